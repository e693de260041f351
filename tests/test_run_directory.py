"""A run's directory: what lies in it is read back, and what is damaged, edited or missing is
refused by name, in one line."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import damage, shared

from tql.training import run_directory
from tql.training.checkpoint import CheckpointError
from tql.training.run import resume_run
from tql.training.run_directory import (
    RunError,
    agent_at,
    read_metrics,
    read_settings,
    trained_agent,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def refused(call, *arguments) -> str:
    with pytest.raises(RunError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_checkpoint_after_so_many_updates(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert int(agent_at(run, 30).step) == 30 and int(agent_at(run, 40).step) == 40
    assert "no checkpoint after 35 updates; there are: 40, 30" in refused(agent_at, run, 35)
    damage(run_directory.checkpoints(run)[0])
    with pytest.raises(CheckpointError, match="000000040.checkpoint: is damaged"):
        agent_at(run, 40)
    for path in run_directory.checkpoints(run):
        path.unlink()
    assert "there are: none" in refused(agent_at, run, 40)
    assert "has no checkpoint yet; train it first" in refused(trained_agent, run)


def test_a_checkpoint_under_another_number_is_refused(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "step-000000035.checkpoint").write_bytes(
        (run / "step-000000030.checkpoint").read_bytes()
    )
    with pytest.raises(
        CheckpointError, match="holds the state after 30 updates, not that of its name"
    ):
        agent_at(run, 35)


def test_no_run_directory(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert f"{path}: holds no run of tql" in refused(read_settings, path)


@settings(shared, max_examples=30)
@given(cut=st.floats(0, 0.99))
def test_a_cut_config_is_refused(cut, finished):
    with tempfile.TemporaryDirectory() as folder:
        content = (finished / "config.json").read_bytes()
        (Path(folder) / "config.json").write_bytes(content[: int(cut * (len(content) - 2))])
        assert "is not JSON, or damaged" in refused(read_settings, Path(folder))


def edited(finished, run, change) -> Path:
    """The finished run with another `config.json`."""
    shutil.copytree(finished, run)
    about = json.loads((run / "config.json").read_text())
    change(about)
    (run / "config.json").write_text(json.dumps(about))
    return run


CHANGES = {
    "config.task is missing": lambda about: about["config"].pop("task"),
    "config.discount is missing": lambda about: about["config"].pop("discount"),
    'config.seed is "three"; it must be a whole number': lambda about: about["config"].update(
        seed="three"
    ),
    "seed is 4294967296; it must lie in [0, 2^32)": lambda about: about["config"].update(
        seed=2**32
    ),
    "config.new_setting is not a setting of TQLConfig": lambda about: about["config"].update(
        new_setting=1
    ),
    "config.critic.d_model is null; it must be": lambda about: about["config"]["critic"].update(
        d_model=None
    ),
    "of updates_per_call 5": lambda about: about["config"].update(steps=41),
    "config.control is null; it must be an object": lambda about: about["config"].update(
        control=None
    ),
    'config.actor.hidden[1] is "x"; it must be': lambda about: about["config"]["actor"].update(
        hidden=[7, "x"]
    ),
    "config.method is 'qfl'; it must be one of tql, bc": lambda about: about["config"].update(
        method="qfl"
    ),
    "config.method is 7": lambda about: about["config"].update(method=7),
    "there is no task 'cube'; the nearest name is": lambda about: about["config"].update(
        task="cube"
    ),
    "config is [1]; it must be an object": lambda about: about.update(config=[1]),
    "target is 7; it must be": lambda about: about.update(target=7),
    "dataset is missing": lambda about: about.pop("dataset"),
    "dataset.file is 3; it must be a text": lambda about: about["dataset"].update(file=3),
    "versions.jax is missing": lambda about: about["versions"].pop("jax"),
    'metrics.td_loss[0] is "a"': lambda about: about["metrics"].update(td_loss=["a"]),
    "policies is missing": lambda about: about.pop("policies"),
    "files is 1; it must be": lambda about: about.update(files=1),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_config_of_other_content_is_refused(words, finished, tmp_path):
    run = edited(finished, tmp_path / "run", CHANGES[words])
    message = refused(read_settings, run)
    assert message.startswith(f"{run / 'config.json'}: is damaged or of another version of tql: ")
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(steps=20), "config.json says steps 20, the checkpoint has 40"),
        (
            dict(steps=400, seed=4),
            "says seed 4, the checkpoint has 3, steps 400, the checkpoint has 40",
        ),
        (dict(discount=0.5), "config.json says discount 0.5, the checkpoint has 0.97"),
        (
            dict(task="cube-double-play-singletask-v0"),
            "says task cube-double-play-singletask-v0, the checkpoint has pointmaze",
        ),
    ],
)
def test_a_config_that_differs_from_the_checkpoint_is_not_trained_on_silently(
    change, words, finished, tmp_path, maze_file
):
    run = edited(finished, tmp_path / "run", lambda about: about["config"].update(change))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert words in refused(trained_agent, run)
    with pytest.raises(
        (RunError, ValueError), match=words if "task" not in change else "cube-double"
    ):
        resume_run(run, dataset=maze_file)
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
    assert after == {name: content for name, content in before.items() if name != ".lock"}


def test_an_edited_size_is_named(finished, tmp_path):
    widen = lambda about: about["config"]["critic"].update(d_model=64)
    message = refused(trained_agent, edited(finished, tmp_path / "run", widen))
    assert "config.json says critic.d_model 64, the checkpoint has 32" in message


def test_metrics_with_a_torn_last_line(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    content = (run / "metrics.jsonl").read_bytes()
    for cut in (len(content) - 1, len(content) - 40):
        (run / "metrics.jsonl").write_bytes(content[:cut])
        assert read_metrics(run) == read_metrics(finished)[:-1]


LINES = {
    "step is missing": (rb'"step": 15', rb'"stxp": 15'),
    "Expecting": (rb'\{"step": 15', b"\\0\\0\\0"),
    "step is 10; it must lie above the step of the line before, 10": (
        rb'"step": 15',
        b'"step": 10',
    ),
    "step is 0; it must": (rb'"step": 15', b'"step": 0'),
    "step is 4000; it must": (rb'"step": 15', b'"step": 4000'),
    "step is 15.5; it must be a whole number": (rb'"step": 15', b'"step": 15.5'),
    'td_loss is "low"; it must be a finite number': (rb'"td_loss": [^,]*', b'"td_loss": "low"'),
    "td_loss is NaN; it must be a finite number": (rb'"td_loss": [^,]*', b'"td_loss": NaN'),
    "td_loss is missing": (rb'"td_loss"', b'"td_lost"'),
    "entropy[0] is [1.0]; it must be a list of 2": (
        rb'"entropy": \[\[.*?\]\]',
        b'"entropy": [[1.0]]',
    ),
    "entropy is 1; it must be a list of 1": (rb'"entropy": \[\[.*?\]\]', b'"entropy": 1'),
    "time is null; it must be a finite number": (rb'"time": [^}]*', b'"time": null'),
    "the line is 7": (rb".*", b"7"),
}


@pytest.mark.parametrize("words", LINES)
def test_a_line_of_metrics_of_other_content_is_named(words, finished, tmp_path):
    run, (old, new) = shutil.copytree(finished, tmp_path / "run"), LINES[words]
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[2] = re.sub(old, new, lines[2], count=1)
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    message = refused(read_metrics, run)
    assert message.startswith(f"{run / 'metrics.jsonl'}, line 3: ") and words in message
