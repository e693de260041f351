"""The command line: help without jax, one clear line for what a user can mend, a traceback for what
is our own mistake."""

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

from tql.__main__ import main
from tql.batch import Transition
from tql.commands import COMMANDS
from tql.commands import train as train_command
from tql.commands.plot import Plot
from tql.commands.train import (
    EXPECTED,
    Train,
    parse_train,
    presets_of,
    say_what_it_needs,
    warn_of_other_data,
)
from tql.config import TQLConfig
from tql.presets import PRESETS
from tql.training import cost, run_directory
from tql.training.methods import METHODS

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")
CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(name="tql")
def command_line(monkeypatch, capfd):
    """Runs a command in this process; gives its exit status (a message means 1), and what it
    printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", *map(str, arguments)])
        try:
            main()
            status, message = 0, ""
        except SystemExit as left:
            said = isinstance(left.code, str)
            status, message = (1, left.code) if said else (left.code or 0, "")
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, message or out + err

    return call


def is_one_line(answer):
    status, message = answer
    assert status == 1 and message.startswith("tql: ") and "\n" not in message, answer
    return message


def plain(text):
    """Without the boxes that tyro draws."""
    return re.sub(r"[\s│]+", " ", text)


# Help.


def test_help_loads_no_simulator():
    code = f"""
import sys
from tql.__main__ import main
for arguments in ([], *([name] for name in {list(COMMANDS)})):
    sys.argv = ["tql", *arguments, "--help"]
    try:
        main()
    except SystemExit as left:
        assert not left.code, left.code
    slow = {{"equinox", "optax", "matplotlib", "mujoco", "gymnasium", "ogbench", "scipy"}}
    assert not slow & set(sys.modules), (arguments, slow & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 0, answer.stderr
    options = ("--resume", "--critic.d-model", "--control.target", "--from", "--method")
    assert all(name in answer.stdout for name in (*COMMANDS, *options))


def every_option(values, prefix="--"):
    for field in fields(values):
        value, name = getattr(values, field.name), field.name.replace("_", "-")
        if is_dataclass(value):
            yield from every_option(value, f"{prefix}{name}.")
        elif field.name not in ("task", "method"):
            yield prefix + name


def test_every_setting_of_a_run_is_an_option_that_is_explained(tql):
    _, text = tql("train", "--help")
    names = list(every_option(TQLConfig(MAZE)))
    assert len(names) > 25
    for name in (*names, "--method", "--preset", "--out", "--data", "--resume", "--workers"):
        explained = re.findall(rf"{name}(?: [A-Z{{[]|, --no)(.*?)\(default", plain(text))
        assert any(len(words.split()) > 3 for words in explained), name
    assert "--task" not in text, "it comes first, without a name"


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_option_is_explained(name):
    actions = tyro.extras.get_parser(COMMANDS[name])._actions
    brackets = r"\((default|required|optional|repeatable).*"
    explained = {x.dest: re.sub(brackets, "", str(x.help)).strip() for x in actions}
    assert len(explained) >= 2 and all(len(text) > 10 for text in explained.values()), explained


def test_help_names_every_preset_and_every_method(tql):
    status, text = tql("train", "--help")
    listed = re.search(r"--preset STR(.*?)\(default", plain(text))[1]
    of_tql, others = listed.split("Other methods")
    others, of_pac = others.split("pac also")
    presets = r"\b(cpu[\w-]*|pocket|paper[\w.-]*)\b"
    assert status == 0 and re.findall(presets, of_tql) == list(PRESETS)
    for method in METHODS:
        if method not in ("tql", "pac"):
            assert re.findall(presets, others) == list(presets_of(method)), method
    assert re.findall(presets, others + of_pac) == list(presets_of("pac"))
    listed = re.search(r"--method STR What to train: (.*?), or a class in", plain(text))[1]
    assert re.split(", | or ", listed) == list(METHODS)


def test_help_of_another_method_has_its_settings(tql):
    status, text = tql("train", MAZE, "--method", "iql", "--help")
    assert status == 0 and "--kappa FLOAT" in text and "--critic.d-model" not in text


# Errors.


@pytest.mark.parametrize("command", ["data", "train"])
def test_a_wrong_task_gets_the_nearest_right_one(command, tql, tmp_path):
    answer = is_one_line(tql(command, "cube-singel-play-v0", "--out", tmp_path / "out"))
    nearest = "the nearest name is 'cube-single-play-v0'."
    assert answer == f"tql: there is no task 'cube-singel-play-v0'; {nearest}"
    assert not (tmp_path / "out").exists()


def test_a_wrong_preset_gets_the_list(tql):
    expected = f"tql: there is no preset 'huge' of tql; choose one of {', '.join(PRESETS)}."
    for words in (["--preset", "huge"], ["--preset=huge"]):
        assert is_one_line(tql("train", MAZE, *words)) == expected
    expected = "tql: there is no preset 'cpu' of fql; choose one of pocket, paper."
    assert is_one_line(tql("train", MAZE, "--method", "fql", "--preset", "cpu")) == expected


def test_a_wrong_method_gets_the_list(tql):
    for words in (["--method", "qfl"], ["--method=qfl"]):
        answer = is_one_line(tql("train", MAZE, *words))
        assert "'qfl'" in answer and ", ".join(METHODS) in answer


def test_no_task(tql):
    assert "give the task first" in is_one_line(tql("train"))
    assert "give the task first" in is_one_line(tql("train", "--preset", "cpu", MAZE))


@pytest.mark.parametrize("command", ["evaluate", "render", "plot", "analyse"])
def test_no_run_directory(command, tql, tmp_path):
    assert f"{tmp_path}: holds no run of tql" in is_one_line(tql(command, tmp_path))
    assert "holds no run of tql" in is_one_line(tql(command, tmp_path / "missing"))


def test_resume_without_a_run(tql, tmp_path):
    answer = tql("train", MAZE, "--out", tmp_path, "--resume")
    assert "holds no run of tql" in is_one_line(answer)


def test_an_output_directory_in_use(tql, tmp_path, maze_file):
    (tmp_path / "mine").touch()
    command = ["train", MAZE, *TINY_OPTIONS, "--data", maze_file, "--out"]
    words = "exists and is not empty; continue it with --resume"
    assert words in is_one_line(tql(*command, tmp_path))
    assert "Not a directory" in is_one_line(tql(*command, tmp_path / "mine"))
    assert "Not a directory" in is_one_line(tql(*command, tmp_path / "mine" / "run"))


def test_a_dataset_that_is_named_and_missing_is_not_generated(tql, tmp_path, monkeypatch):
    monkeypatch.setattr("tql.ogbench.collect.collect", lambda *_, **__: pytest.fail("generated"))
    command = ["train", MAZE, *TINY_OPTIONS, "--data", tmp_path / "no.npz"]
    answer = is_one_line(tql(*command, "--out", tmp_path / "run"))
    assert "no.npz: there is no such file" in answer and not list(tmp_path.iterdir())


def test_a_dataset_that_a_method_cannot_use_leaves_nothing(tql, tmp_path, monkeypatch, maze_file):
    """What a method says is as good as what the rest of the package says: one line."""
    pairs, numbers = jnp.ones((7, 2)), jnp.ones(7)
    alike = Transition(pairs, pairs, -numbers, numbers, pairs, pairs)
    monkeypatch.setattr("tql.training.run.load_dataset", lambda task, path: (alike, alike))
    command = ["train", MAZE, "--method", "q-transformer", "--d-model", 8, "--data", maze_file]
    answer = is_one_line(tql(*command, "--out", tmp_path / "run"))
    assert "every reward of the dataset is -1" in answer and not list(tmp_path.iterdir())


def test_a_dataset_that_is_not_named_is_generated(tql, tmp_path, monkeypatch):
    asked = []

    def collect(task, **options):
        asked.append((task.name, options))
        raise OSError("no space")

    monkeypatch.setattr("tql.ogbench.collect.collect", collect)
    monkeypatch.chdir(tmp_path)
    answer = tql("train", MAZE, "--preset", "cpu-sarsa", "--dataset-episodes", 4)
    assert is_one_line(answer) == "tql: no space"
    options = dict(episodes=4, seed=0, workers=2, out=Path("data"))
    assert asked == [("pointmaze-medium-navigate-v0", options)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "1501"), "of updates_per_call"),
        (("--seed", "4294967296"), "2^32"),
        (("--seed", "-1"), "2^32"),
        (("--workers", "0"), "at least 1"),
    ],
)
def test_settings_that_cannot_be_run(words, said, tql):
    assert said in is_one_line(tql("train", MAZE, *words))


@pytest.mark.parametrize("arguments", [("train", MAZE, "--stebs", "7"), ("tran",), ()])
def test_wrong_options_are_refused(arguments, tql):
    status, text = tql(*arguments)
    assert status != 0 and text


def test_a_wrong_option_is_named_with_the_right_one(tql):
    status, text = tql("train", MAZE, "--critic.d-mode", "7")
    assert status != 0 and "--critic.d-mode" in text and "--critic.d-model INT" in text
    status, text = tql("train", MAZE, "--steps", "many")
    assert status != 0 and "--steps" in text and "many" in text
    status, text = tql("train", MAZE, "--method", "fql", "--control.kind", "none")
    assert status != 0 and "control.kind" in text, "an option of TQL"


def test_our_own_mistakes_show_where(tql, monkeypatch, finished):
    """Raised by Python within tql, or anywhere else: no message to a user."""
    for mistake, error in (
        (lambda run: {}["no such key"], KeyError),
        (lambda run: int("raised by Python"), ValueError),
    ):
        monkeypatch.setattr("tql.analysis.plot.plot_run", mistake)
        with pytest.raises(error):
            tql("plot", finished)


def test_a_mistake_shows_its_traceback_in_a_process():
    code = "import sys, tql.__main__ as m; from tql.commands.plot import Plot; "
    code += "sys.argv = ['tql', 'plot', 'x']; Plot.__call__ = lambda self: 1 / 0; m.main()"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 1 and answer.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in answer.stderr


def test_ctrl_c_is_one_line(tql, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Plot, "__call__", interrupted)
    assert is_one_line(tql("plot", "x")) == "tql: interrupted."


# Settings.


@pytest.fixture
def asked(monkeypatch):
    """What `train` is called with, instead of training: a list of (`Train`, settings)."""
    calls = []
    monkeypatch.setattr(train_command, "train_with", lambda *call: calls.append(call))
    return calls


def test_presets_follow_the_task(asked):
    task = "puzzle-3x3-play-singletask-v0"
    parse_train([task, "--preset", "paper-7M"])()
    parse_train([MAZE, "--preset=cpu-sarsa"])()
    parse_train([MAZE])()
    settings = [config for _, config in asked]
    assert settings == [PRESETS["paper-7M"](task), PRESETS["cpu-sarsa"](MAZE), PRESETS["cpu"](MAZE)]
    for method in METHODS:
        preset = next(iter(presets_of(method).values()))
        parse_train([MAZE, "--method", method])()
        assert asked[-1][1] == preset(MAZE) and asked[-1][1].method == method


def test_options_override_the_preset(asked):
    words = "--preset paper-1M --control.target 1.25 1.0 1.2 0.5 --actor.hidden 7 5 --tau 0.5"
    parse_train([MAZE, *words.split(), "--workers", "1", "--critic.tokenizer", "x.py:Y"])()
    preset = PRESETS["paper-1M"](MAZE)
    control = replace(preset.control, target=((1.25, 1.0), (1.2, 0.5)))
    critic, actor = replace(preset.critic, tokenizer="x.py:Y"), replace(preset.actor, hidden=(7, 5))
    expected = replace(preset, tau=0.5, control=control, actor=actor, critic=critic)
    (train, config), *_ = asked
    assert config == expected and type(config) is TQLConfig
    assert (train.task, train.preset, train.workers) == (MAZE, "paper-1M", 1)


def test_the_last_of_repeated_options_counts(asked):
    parse_train([MAZE, "--preset", "pocket", "--preset", "cpu-sarsa"])()
    assert asked[0][0].preset == "cpu-sarsa" and asked[0][1] == PRESETS["cpu-sarsa"](MAZE)


@pytest.mark.parametrize(
    ("made", "seed", "words"),
    [
        (2, 0, "has 2 episodes of seed 0, these settings ask for 120 of seed 0"),
        (120, 7, "has 120 episodes of seed 7, these settings ask for 120 of seed 0"),
        (120, 0, ""),
    ],
)
def test_other_data_than_the_settings_ask_for_is_named(made, seed, words, tmp_path, capsys):
    """What `tql data --episodes 2` left is not silently taken for the 120 episodes of the
    preset."""
    content = f'{{"episodes": {{"train": {made}, "val": 1}}, "seed": {seed}}}'
    (tmp_path / "x.json").write_text(content)
    warn_of_other_data(tmp_path / "x.npz", PRESETS["cpu"](MAZE))
    err = capsys.readouterr().err
    assert words in err and ("warning" in err) == bool(words)


@pytest.mark.parametrize("damage", ['{"episodes": {', "[2]", '{"episodes": 2}', "\xff\xfe"])
def test_a_damaged_manifest_is_left_to_the_loader(damage, tmp_path, capsys):
    """`validate.check_manifest` refuses it in words."""
    (tmp_path / "x.json").write_bytes(damage.encode("latin-1"))
    warn_of_other_data(tmp_path / "x.npz", PRESETS["cpu"](MAZE))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [("--episodes", "-1"), ("--workers", "0")])
def test_numbers_that_make_no_sense_are_refused(words, tql):
    assert "at least 1" in is_one_line(tql("evaluate", "run", *words))


# Whole commands.


def test_an_estimate_says_what_training_needs_and_stops(tql, tmp_path, monkeypatch):
    """Without a dataset. Large runs say it by themselves, small ones do not."""
    monkeypatch.chdir(tmp_path)
    words = ["train", MAZE, "--preset", "paper-400M", "--devices", "1"]
    status, text = tql(*words, "--estimate")
    assert status == 0 and "training needs" in text and "TFLOP" in text, text
    assert not list(tmp_path.iterdir())
    said = []
    monkeypatch.setattr(cost, "in_words", lambda *_: said.append("needs") or "needs")
    for preset, expected in (("cpu", 0), ("paper-7M", 1)):
        task = "cube-double-play-singletask-task2-v0"
        say_what_it_needs(Train(task), PRESETS[preset](task))
        assert len(said) == expected


def test_devices_that_cannot_share_a_batch_are_refused_before_anything(tql, tmp_path):
    run = tmp_path / "run"
    said = is_one_line(tql("train", MAZE, "--devices", "7", "--out", run))
    assert "--devices 7: the batch of 64 transitions" in said and not run.exists()


def files_of(run):
    return {x.name: x.read_bytes() for x in run.iterdir() if x.suffix != ".png"}


def test_train_resume_evaluate_plot(tql, tmp_path, maze_file, finished, monkeypatch):
    run = tmp_path / "run"
    command = ["train", MAZE, *TINY_OPTIONS, "--data", maze_file, "--out", run]
    status, text = tql(*command)
    assert status == 0 and f"run directory {run}" in text and f"plot: {run / 'plot.png'}" in text
    assert "policy: solved 1 of 3 episodes: 33%" in text
    assert "behaviour flow alone: solved 1 of 3" in text and "what to expect" not in text
    steps = [line["step"] for line in run_directory.read_metrics(run)]
    assert steps == [line["step"] for line in run_directory.read_metrics(finished)]

    before = files_of(run)
    for again in (["train", MAZE, "--out", run, "--resume"], [*command, "--resume"]):
        status, text = tql(*again)
        assert status == 0 and "policy: solved 1 of 3" in text and files_of(run) == before
    other = is_one_line(tql(*command, "--resume", "--tau", "0.5"))
    assert "was started with other settings (tau: 0.5 instead of 0.02)" in other
    assert "preset" not in is_one_line(
        tql("train", MAZE, "--preset", "cpu-sarsa", "--out", run, "--resume")
    )
    other = is_one_line(tql("train", MAZE.replace("task1", "task2"), "--out", run, "--resume"))
    assert f"task: {MAZE.replace('task1', 'task2')} instead of {MAZE}" in other
    assert "exists and is not empty" in is_one_line(tql(*command))

    status, text = tql("evaluate", run, "--episodes", "5")
    assert status == 0 and "policy at update 40: solved 1 of 5" in text
    assert "behaviour at update 40" in text
    (run / "plot.png").unlink()
    assert str(run / "plot.png") in tql("plot", run)[1] and (run / "plot.png").exists()
    assert "there is no policy 'random'" in is_one_line(tql("render", run, "--policy", "random"))


def test_what_to_expect_is_said_beside_the_result(finished, monkeypatch, capsys, tiny):
    agent = run_directory.trained_agent(finished)
    monkeypatch.setitem(PRESETS, "cpu", lambda task: replace(tiny, task=task, seed=0))
    monkeypatch.setitem(EXPECTED, ("cpu", MAZE), "a measured number")
    monkeypatch.setattr("tql.analysis.plot.plot_run", lambda run: run / "plot.png")
    train_command.report(finished, agent)
    assert "what to expect: a measured number\n" in capsys.readouterr().out


def test_evaluate_prints_its_result_even_if_it_cannot_be_written(
    tql, finished, tmp_path, monkeypatch
):
    run = shutil.copytree(finished, tmp_path / "run")
    elsewhere = tmp_path / "episodes.jsonl"
    status, text = tql("evaluate", run, "--episodes", "5", "--out", elsewhere)
    assert (
        status == 0 and "solved 1 of 5" in text and len(elsewhere.read_bytes().splitlines()) == 10
    )

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tql.training.run.record_episodes", full)
    monkeypatch.setattr(sys, "argv", ["tql", "evaluate", str(run), "--episodes", "5"])
    out = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: out.append(" ".join(map(str, words))))
    with pytest.raises(SystemExit, match=r"evaluation.jsonl: cannot be written .*No space left"):
        main()
    assert any("policy at update 40: solved 1 of 5" in line for line in out)


def test_another_method(tql, tmp_path, maze_file):
    """Trained, continued, evaluated and drawn by the same commands, its own options included."""
    run = tmp_path / "run"
    words = "--seed 3 --hidden 7 --critic-hidden 7 --flow-steps 2 --batch-size 5 --steps 4"
    words += " --alpha-bc 2.5 --updates-per-call 2 --log-every 2 --checkpoint-every 2"
    words += " --evaluate-every 4 --episodes 3"
    command = ["train", MAZE, "--method", "fql", *words.split(), "--data", maze_file, "--out", run]
    status, text = tql(*command)
    assert status == 0 and f"plot: {run / 'plot.png'}" in text
    assert "policy: solved 1 of 3 episodes: 33%" in text
    assert "what to expect" not in text and "behaviour" not in text
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["method"], config["alpha_bc"], config["hidden"]) == ("fql", 2.5, [7])
    before = (run / "metrics.jsonl").read_bytes()
    resume = ["train", MAZE, "--out", run, "--resume"]
    for again in (resume, [*command, "--resume"], [*resume, "--method", "fql"]):
        assert tql(*again)[0] == 0 and (run / "metrics.jsonl").read_bytes() == before
    for other in ("iql", "tql"):
        answer = is_one_line(tql(*resume, "--method", other))
        assert f"was started with other settings (method: {other} instead of fql)" in answer
    answer = is_one_line(tql(*resume, "--tau", "0.5", "--seed", "0"))
    assert "other settings (seed: 0 instead of 3; tau: 0.5 instead of 0.02)" in answer, "no more"
    answer = is_one_line(tql(*resume, "--method", "fql", "--preset", "pocket"))
    assert "batch_size: 64 instead of 5" in answer, "the default preset, asked for"
    assert "policy at update 4: solved 1 of 5" in tql("evaluate", run, "--episodes", "5")[1]
    answer = is_one_line(tql("render", run, "--policy", "behaviour"))
    assert "there is no policy 'behaviour'; choose one of policy" in answer
    assert "only TQL's critic has attention" in is_one_line(tql("analyse", run))


def test_a_critic_alone(tql, critic_alone, tmp_path):
    run = shutil.copytree(critic_alone, tmp_path / "run")
    for command in ("evaluate", "render"):
        answer = is_one_line(tql(command, run))
        assert "trained a critic only (actor.kind = dataset): it has no policy" in answer
    assert tql("plot", run)[0] == 0


def test_analyse(tql, tmp_path, finished, maze_file):
    run, parts = shutil.copytree(finished, tmp_path / "run"), (".png", ".json", ".npz")
    status, text = tql("analyse", run)
    assert status == 0 and f"{MAZE}, critic 1 x 32, control tql, 40 updates\n" in text
    assert re.search(r"roughness \d+\.\d{3}, turning points \d\.\d\d, Q range", text)
    assert all((run / f"analysis-000000040{end}").exists() for end in parts)
    moved = shutil.copytree(maze_file.parent, tmp_path / "moved") / maze_file.name
    out = tmp_path / "looked"
    status, text = tql("analyse", run, "--step", "30", "--data", moved, "--out", out)
    assert status == 0 and " 30 updates\n" in text
    assert all((out / f"analysis-000000030{end}").exists() for end in parts)

    before = sorted(run.iterdir())
    answer = is_one_line(tql("analyse", run, "--step", "35"))
    assert answer == f"tql: {run}: has no checkpoint after 35 updates; there are: 40, 30."
    answer = is_one_line(tql("analyse", run, "--data", tmp_path / "no.npz"))
    assert "no.npz: there is no such file" in answer
    for path in run_directory.checkpoints(run):
        path.write_bytes(b"damaged")
    assert "is no checkpoint of tql" in is_one_line(tql("analyse", run, "--step", "40"))
    assert "has no usable checkpoint" in is_one_line(tql("analyse", run))
    assert sorted(run.iterdir()) == before


def test_a_dataset_is_no_task_to_train_on(tql):
    """OGBench's own name of the dataset would train, for minutes, on a task that nobody named."""
    assert "name one of them" in is_one_line(tql("train", "pointmaze-medium-navigate-v0"))
