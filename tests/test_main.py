"""The command line: help without jax, one clear line for what a user can mend, a traceback for what is our own mistake."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import pytest
import tyro
from conftest import MAZE, TINY_OPTIONS

from tql import __main__ as command_line
from tql import run as runs
from tql import run_directory
from tql.__main__ import COMMANDS, Train, main, presets_of, train_defaults
from tql.baselines.bc import BCConfig
from tql.config import EXPECTED, METHODS, PRESETS, Config
from tql.data import Batch

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")


@pytest.fixture
def tql(monkeypatch, capfd):
    """Runs a command in this process; gives its exit status (a message means 1), and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", *map(str, arguments)])
        try:
            main()
            status, message = 0, ""
        except SystemExit as left:
            status, message = (1, left.code) if isinstance(left.code, str) else (left.code or 0, "")
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, message or out + err

    return call


def is_one_line(answer):
    status, message = answer
    return status == 1 and message.startswith("tql: ") and "\n" not in message and message


# Help.


def test_help_loads_neither_jax_nor_the_simulator():
    code = f"""
import sys
from tql.__main__ import main
for arguments in ([], *([name] for name in {list(COMMANDS)})):
    sys.argv = ["tql", *arguments, "--help"]
    try:
        main()
    except SystemExit as left:
        assert not left.code, left.code
    slow = {{"jax", "equinox", "optax", "matplotlib", "mujoco", "dm_control", "gymnasium", "ogbench", "scipy"}} & set(sys.modules)
    assert not slow, (arguments, slow)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert answer.returncode == 0, answer.stderr
    assert all(name in answer.stdout for name in (*COMMANDS, "--resume", "--critic.d-model", "--control.target", "--from"))


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    options = {"default": train_defaults([MAZE])} if name == "train" else {}
    actions = tyro.extras.get_parser(COMMANDS[name], **options)._actions
    explained = {action.dest: re.sub(r"\((default|required|optional|repeatable).*", "", str(action.help)).strip() for action in actions}
    assert len(explained) >= 2 and all(len(text) > 10 for text in explained.values()), explained


def test_help_names_every_preset_and_only_those(tql):
    status, text = tql("train", "--help")
    listed = re.search(r"--preset STR(.*?)\(default", re.sub(r"[\s│]+", " ", text))[1]
    of_tql, others = listed.split("Other methods")
    others, of_pac = others.split("pac also")
    presets = r"\b(cpu[\w-]*|pocket|paper[\w.-]*|overnight)\b"
    assert status == 0 and re.findall(presets, of_tql) == list(PRESETS)
    assert all(re.findall(presets, others) == list(presets_of(method)) for method in METHODS if method not in ("tql", "pac"))
    assert re.findall(presets, others + of_pac) == list(presets_of("pac"))


def test_help_names_every_method_and_only_those(tql):
    status, text = tql("train", "--help")
    listed = re.search(r"--method STR What to train: (.*?); tql unless given", re.sub(r"[\s│]+", " ", text))[1]
    assert status == 0 and listed.split(", ") == list(METHODS)


# Errors.


@pytest.mark.parametrize("command", ["data", "train"])
def test_a_wrong_task_gets_the_nearest_right_one(command, tql, tmp_path):
    answer = is_one_line(tql(command, "cube-singel-play-v0", "--out", tmp_path / "out"))
    assert answer == "tql: there is no task 'cube-singel-play-v0'; the nearest name is 'cube-single-play-v0'."
    assert not (tmp_path / "out").exists()


def test_a_wrong_preset_gets_the_list(tql):
    expected = f"tql: there is no preset 'huge' of tql; choose one of {', '.join(PRESETS)}."
    assert is_one_line(tql("train", MAZE, "--preset", "huge")) == is_one_line(tql("train", MAZE, "--preset=huge")) == expected
    expected = "tql: there is no preset 'cpu' of fql; choose one of pocket, paper."
    assert is_one_line(tql("train", MAZE, "--method", "fql", "--preset", "cpu")) == expected


def test_a_wrong_method_gets_the_list(tql):
    expected = f"tql: there is no method 'qfl'; choose one of {', '.join(METHODS)}."
    assert is_one_line(tql("train", MAZE, "--method", "qfl")) == is_one_line(tql("train", MAZE, "--method=qfl")) == expected


def test_no_task(tql):
    assert "give the task first" in is_one_line(tql("train"))
    assert "give the task first" in is_one_line(tql("train", "--preset", "cpu", MAZE))


@pytest.mark.parametrize("command", ["evaluate", "render", "plot", "analyse"])
def test_no_run_directory(command, tql, tmp_path):
    assert f"{tmp_path}: holds no run of tql" in is_one_line(tql(command, tmp_path))
    assert "holds no run of tql" in is_one_line(tql(command, tmp_path / "missing"))


def test_resume_without_a_run(tql, tmp_path):
    assert "holds no run of tql" in is_one_line(tql("train", MAZE, "--out", tmp_path, "--resume"))


def test_an_output_directory_in_use(tql, tmp_path, maze_file):
    (tmp_path / "mine").touch()
    answer = tql("train", MAZE, *TINY_OPTIONS, "--data", maze_file, "--out", tmp_path)
    assert "exists and is not empty; continue it with --resume" in is_one_line(answer)
    assert "Not a directory" in is_one_line(tql("train", MAZE, *TINY_OPTIONS, "--data", maze_file, "--out", tmp_path / "mine"))


def test_a_dataset_that_is_named_and_missing_is_not_generated(tql, tmp_path, monkeypatch):
    monkeypatch.setattr("tql.collect.collect", lambda *_, **__: pytest.fail("generated"))
    answer = tql("train", MAZE, *TINY_OPTIONS, "--data", tmp_path / "no.npz", "--out", tmp_path / "run")
    assert "no.npz: there is no such file" in is_one_line(answer) and not list(tmp_path.iterdir())


def test_a_dataset_that_a_method_cannot_use_leaves_nothing(tql, tmp_path, monkeypatch, maze_file):
    """What a method says is as good as what the rest of the package says: one line."""
    pairs, numbers = jnp.ones((7, 2)), jnp.ones(7)
    alike = Batch(pairs, pairs, -numbers, numbers, pairs, pairs)
    monkeypatch.setattr("tql.run.load", lambda task, path: (alike, alike))
    answer = tql("train", MAZE, "--method", "q-transformer", "--d-model", 8, "--data", maze_file, "--out", tmp_path / "run")
    assert "every reward of the dataset is -1" in is_one_line(answer) and not list(tmp_path.iterdir())


def test_a_dataset_that_is_not_named_is_generated(tql, tmp_path, monkeypatch, maze_file):
    asked = []

    def collect(task, **options):
        asked.append((task.name, options))
        raise OSError("no space")

    monkeypatch.setattr("tql.collect.collect", collect)
    monkeypatch.chdir(tmp_path)
    assert is_one_line(tql("train", MAZE, "--preset", "cpu-sarsa", "--dataset-episodes", 4)) == "tql: no space"
    assert asked == [("pointmaze-medium-navigate-v0", dict(episodes=4, seed=0, workers=2, out=Path("data")))]


def test_settings_that_cannot_be_run(tql):
    status, text = tql("train", MAZE, "--steps", "1501")
    assert status != 0 and "1501 is no multiple of updates_per_call" in re.sub(r"[\s│]+", " ", text)


@pytest.mark.parametrize("arguments", [("train", MAZE, "--stebs", "7"), ("train", MAZE, "--steps", "many"), ("tran",), ()])
def test_wrong_options_are_refused(arguments, tql):
    status, text = tql(*arguments)
    assert status != 0 and text


def test_our_own_mistakes_show_where(tql, monkeypatch, finished):
    """Raised by Python within tql, or anywhere else: no message to a user."""
    monkeypatch.setattr("tql.plot.read_metrics", lambda run: [None])
    with pytest.raises(TypeError):
        tql("plot", finished)
    monkeypatch.setattr("tql.plot.read_metrics", lambda run: {}["no such key"])
    with pytest.raises(KeyError):
        tql("plot", finished)
    monkeypatch.setattr("tql.plot.read_metrics", lambda run: int("raised by Python"))
    with pytest.raises(ValueError):
        tql("plot", finished)


def test_a_mistake_shows_its_traceback_in_a_process(tmp_path):
    code = "import sys, tql.__main__ as m; sys.argv = ['tql', 'plot', 'x']; m.Plot.__call__ = lambda self: 1 / 0; m.main()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert answer.returncode == 1 and answer.stderr.startswith("Traceback") and "ZeroDivisionError" in answer.stderr


def test_ctrl_c_is_one_line(tql, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.Plot, "__call__", interrupted)
    assert is_one_line(tql("plot", "x")) == "tql: interrupted."


# Settings.


def test_presets_follow_the_task():
    assert train_defaults(["puzzle-3x3-play-singletask-v0", "--preset", "paper-7M"]).config == PRESETS["paper-7M"](
        "puzzle-3x3-play-singletask-v0"
    )
    assert train_defaults([MAZE, "--seed", "4", "--preset=cpu-sarsa"]) == Train(PRESETS["cpu-sarsa"](MAZE))
    assert train_defaults([MAZE]) == Train(PRESETS["cpu"](MAZE))
    for method in METHODS:
        name, preset = next(iter(presets_of(method).items()))
        assert train_defaults([MAZE, "--method", method]) == Train(preset(MAZE))


def every_option(values, prefix="--"):
    for field in fields(values):
        value, name = getattr(values, field.name), field.name.replace("_", "-")
        if is_dataclass(value):
            yield from every_option(value, f"{prefix}{name}.")
        elif field.name != "task":
            yield prefix + name, value


def test_every_setting_of_a_run_is_an_option(tql):
    _, text = tql("train", "--help")
    names = [name for name, _ in every_option(Config(MAZE))]
    assert len(names) > 25 and [name for name in names if not re.search(rf"{name}[ ,]", text)] == []


def test_options_override_the_preset(monkeypatch, tql):
    trains = []
    monkeypatch.setattr(Train, "__call__", lambda train: trains.append(train))
    tql("train", MAZE, "--preset", "paper-1M", "--control.target", "1.25", "1.0", "1.2", "0.5", "--actor.hidden", "7", "5", "--tau", "0.5")
    preset = PRESETS["paper-1M"](MAZE)
    control = replace(preset.control, target=((1.25, 1.0), (1.2, 0.5)))
    assert trains[0].config == replace(preset, tau=0.5, control=control, actor=replace(preset.actor, hidden=(7, 5)))


def test_a_dataset_of_another_length_is_named(tmp_path, monkeypatch, capsys):
    """What `tql data --episodes 2` left is not silently taken for the 120 episodes of the preset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cube-single-noisy-v0.npz").touch()
    (tmp_path / "data" / "cube-single-noisy-v0.json").write_text('{"episodes": {"train": 2, "val": 1}}')
    monkeypatch.setattr(runs, "start", lambda *_: pytest.skip("started"))
    config = PRESETS["cpu"]("cube-single-noisy-singletask-task3-v0")
    for asked, words in ((config, "has 2 episodes, these settings ask for 120"), (replace(config, dataset_episodes=2), "")):
        with pytest.raises(pytest.skip.Exception):
            Train(asked)()
        err = capsys.readouterr().err
        assert words in err and ("warning" in err) == bool(words)


@pytest.mark.parametrize("damage", ['{"episodes": {', "[2]", '{"episodes": 2}', "\xff\xfe"])
def test_a_damaged_manifest_is_left_to_the_loader(damage, tmp_path, capsys):
    """`validate.check_manifest` refuses it in words."""
    (tmp_path / "x.json").write_bytes(damage.encode("latin-1"))
    Train(PRESETS["cpu"]("cube-single-noisy-singletask-task3-v0")).warn_of_other_length(tmp_path / "x.npz")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [("evaluate", "run", "--episodes", "-1"), ("evaluate", "run", "--workers", "0"), ("benchmark", "--minutes", "-5")]
    + [("benchmark", "--minutes", "nan"), ("benchmark", "--processes", "0")],
)
def test_numbers_that_make_no_sense_are_refused(words, tql):
    assert "at least 1" in is_one_line(tql(*words))


def test_a_method_that_cannot_be_imported_is_one_line(tql, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", "no_such_module.Mine")
    monkeypatch.setitem(METHODS, "other", "tql.loop.NoSuchAgent")
    for name in ("mine", "other"):
        answer = is_one_line(tql("train", MAZE, "--method", name))
        assert f"{name} is {METHODS[name]} in METHODS of tql/config.py" in answer and "PYTHONPATH" in answer


def test_a_method_under_two_names_is_one_line(tql, monkeypatch):
    """A copied file whose settings still carry the old name would train the old method; so would one that inherits no name."""
    monkeypatch.setitem(METHODS, "mine", "tql.baselines.bc.BC")
    answer = is_one_line(tql("train", MAZE, "--method", "mine"))
    assert 'BCConfig of tql.baselines.bc.BC needs the line `method: ClassVar[str] = "mine"`' in answer and "it has 'bc'" in answer
    monkeypatch.delattr(BCConfig, "method")
    assert "it has None" in is_one_line(tql("train", MAZE, "--method", "mine"))


def test_the_last_of_repeated_options_counts(monkeypatch, tql):
    trains = []
    monkeypatch.setattr(Train, "__call__", lambda train: trains.append(train))
    tql("train", MAZE, "--preset", "pocket", "--preset", "cpu-sarsa")
    assert (trains[0].preset, trains[0].config) == ("cpu-sarsa", PRESETS["cpu-sarsa"](MAZE))


# Whole commands.


def test_train_resume_evaluate_plot(tql, tmp_path, maze_file, finished, monkeypatch):
    run = tmp_path / "run"
    command = ["train", MAZE, *TINY_OPTIONS, "--data", maze_file, "--out", run]
    monkeypatch.setitem(EXPECTED, ("cpu", MAZE), "a measured number")
    status, text = tql(*command)
    assert status == 0 and f"run directory {run}" in text and f"plot: {run / 'plot.png'}" in text
    assert "policy: solved 1 of 3 episodes: 33%" in text and "behaviour flow alone: solved 1 of 3" in text
    steps = [line["step"] for line in run_directory.read_metrics(run)]
    assert steps == [line["step"] for line in run_directory.read_metrics(finished)]

    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".png"}
    for again in (["train", MAZE, "--out", run, "--resume"], [*command, "--resume"]):
        status, text = tql(*again)
        assert status == 0 and "policy: solved 1 of 3" in text
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".png"} == before
    other = [*command, "--resume", "--tau", "0.5"]
    assert "was started with other settings (tau: 0.5 instead of 0.02)" in is_one_line(tql(*other))
    assert "preset" not in is_one_line(tql("train", MAZE, "--preset", "cpu-sarsa", "--out", run, "--resume"))
    assert "was started on" in is_one_line(tql("train", MAZE.replace("task1", "task2"), "--out", run, "--resume"))
    assert "exists and is not empty" in is_one_line(tql(*command))

    status, text = tql("evaluate", run, "--episodes", "5")
    assert status == 0 and "policy at update 40: solved 1 of 5" in text and "behaviour at update 40" in text
    (run / "plot.png").unlink()
    assert str(run / "plot.png") in tql("plot", run)[1] and (run / "plot.png").exists()
    assert "there is no policy 'random'" in is_one_line(tql("render", run, "--policy", "random"))


def test_another_method(tql, tmp_path, maze_file):
    """Trained, continued, evaluated and drawn by the same commands, its own options included."""
    run = tmp_path / "run"
    small = "--seed 3 --hidden 7 --critic-hidden 7 --flow-steps 2 --batch-size 5 --steps 4 --alpha-bc 2.5".split()
    every = "--updates-per-call 2 --log-every 2 --checkpoint-every 2 --evaluate-every 4 --episodes 3".split()
    command = ["train", MAZE, "--method", "fql", *small, *every, "--data", maze_file, "--out", run]
    status, text = tql(*command)
    assert status == 0 and f"plot: {run / 'plot.png'}" in text and "policy: solved 1 of 3 episodes: 33%" in text
    assert "what to expect" not in text and "behaviour" not in text
    about = json.loads((run / "config.json").read_text())
    assert (about["method"], about["config"]["alpha_bc"], about["config"]["hidden"]) == ("fql", 2.5, [7])
    before = (run / "metrics.jsonl").read_bytes()
    for again in (["train", MAZE, "--out", run, "--resume"], [*command, "--resume"]):
        assert tql(*again)[0] == 0 and (run / "metrics.jsonl").read_bytes() == before
    assert tql("train", MAZE, "--method", "fql", "--out", run, "--resume")[0] == 0, "its own method, and nothing else asked"
    for other in ("iql", "tql"):
        answer = is_one_line(tql("train", MAZE, "--method", other, "--out", run, "--resume"))
        assert f"was started with other settings (method: {other} instead of fql)" in answer
    answer = is_one_line(tql("train", MAZE, "--tau", "0.5", "--seed", "0", "--out", run, "--resume"))
    assert "was started with other settings (seed: 0 instead of 3; tau: 0.5 instead of 0.02)" in answer, "what is typed, and no more"
    pocket = is_one_line(tql("train", MAZE, "--method", "fql", "--preset", "pocket", "--out", run, "--resume"))
    assert "batch_size: 64 instead of 5" in pocket, "the default preset, asked for"
    assert "policy at update 4: solved 1 of 5" in tql("evaluate", run, "--episodes", "5")[1]
    assert "there is no policy 'behaviour'; choose one of policy" in is_one_line(tql("render", run, "--policy", "behaviour"))
    assert "is a run of fql; only TQL's critic has attention" in is_one_line(tql("analyse", run))
    status, text = tql("train", MAZE, "--method", "fql", "--control.kind", "none")
    assert status != 0 and "control.kind" in text, "an option of TQL"


def test_a_critic_alone(tql, tmp_path, maze_file):
    run = tmp_path / "run"
    status, text = tql("train", MAZE, "--preset", "cpu-sarsa", "--control.kind", "none", *TINY_OPTIONS, "--data", maze_file, "--out", run)
    assert status == 0 and "plot: " in text and "solved" not in text and not (run / "evaluation.jsonl").exists()
    assert json.loads((run / "config.json").read_text())["config"]["actor"]["kind"] == "dataset"
    for command in ("evaluate", "render"):
        assert "trained a critic only (actor.kind = dataset): it has no policy" in is_one_line(tql(command, run))
    assert tql("plot", run)[0] == 0


def test_analyse(tql, tmp_path, finished, maze_file):
    run, parts = shutil.copytree(finished, tmp_path / "run"), (".png", ".json", ".npz")
    status, text = tql("analyse", run)
    assert status == 0 and f"{MAZE}, critic 1 x 32, control tql, 40 updates\n" in text
    assert re.search(r"roughness \d+\.\d{3}, turning points \d\.\d\d, Q range on the landscape \d\.\d{3}, \|dQ/da\| \d\.\d{3}\n", text)
    assert re.search(r"layer 1: entropy 1\.\d\d nats for \[VALUE\], 1\.\d\d for the others; looks at \d\.\d and \d\.\d of 5 tokens\n", text)
    assert all(str(run / f"analysis-000000040{end}") in text and (run / f"analysis-000000040{end}").exists() for end in parts)
    moved = shutil.copytree(maze_file.parent, tmp_path / "moved") / maze_file.name
    status, text = tql("analyse", run, "--step", "30", "--data", moved)
    assert status == 0 and " 30 updates\n" in text and all((run / f"analysis-000000030{end}").exists() for end in parts)

    before = sorted(run.iterdir())
    assert is_one_line(tql("analyse", run, "--step", "35")) == (f"tql: {run}: has no checkpoint after 35 updates; there are: 40, 30.")
    assert "no.npz: there is no such file" in is_one_line(tql("analyse", run, "--data", tmp_path / "no.npz"))
    for path in run_directory.checkpoints(run):
        path.write_bytes(b"damaged")
    assert "is no checkpoint of tql" in is_one_line(tql("analyse", run, "--step", "40"))
    assert "has no usable checkpoint; train it first" in is_one_line(tql("analyse", run))
    assert sorted(run.iterdir()) == before
