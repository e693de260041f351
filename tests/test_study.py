"""Runs of a study: to the end whatever stops them, and looked at once per planned checkpoint."""

import json
import os
import shutil
import signal
from dataclasses import replace

import equinox as eqx
import numpy as np
import pytest
from conftest import as_in_tests, tiny_settings

import tql.training.run as training
from tql.analysis import study
from tql.analysis.one_checkpoint import analyse_run
from tql.analysis.portrait import load_portrait, portrait_numbers, probe_pairs, take_portrait
from tql.analysis.study import complete, complete_all, is_complete, read_lines
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.training.checkpoint import named_arrays
from tql.training.methods import method_class
from tql.training.run import Interrupted
from tql.training.run_directory import RunError, agent_at, checkpoint_steps, trained_agent

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

ALONE = tiny_settings("cpu-sarsa")
PLANNED = [10, 15, 20, 30, 40]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, maze_file):
    """A critic's run that nothing stopped. It is not to be changed."""
    run = tmp_path_factory.mktemp("study") / "whole"
    with as_in_tests():
        assert complete(ALONE, maze_file, run, workers=1) == run
    return run


def steps_looked_at(run):
    return [line["step"] for line in read_lines(run / "analysis.jsonl")]


def metrics_of(run):
    return [line | {"time": 0} for line in read_lines(run / "metrics.jsonl")]


def assert_same(run, other):
    """All that two runs left, to the bit."""
    ours, theirs = (named_arrays(trained_agent(path)) for path in (run, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metrics_of(run) == metrics_of(other) != []
    assert (run / "analysis.jsonl").read_bytes() == (other / "analysis.jsonl").read_bytes()
    ours, theirs = (vars(load_portrait(path / "portrait.npz")) for path in (run, other))
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_every_checkpoint_is_looked_at_on_the_validation_data(whole, maze_file):
    assert steps_looked_at(whole) == PLANNED and is_complete(whole, ALONE)
    _, validation = load_dataset(Task.parse(ALONE.task), maze_file)
    pairs = probe_pairs(validation)
    *_, before, last = read_lines(whole / "analysis.jsonl")
    for line in (before, last):
        critic = agent_at(whole, line["step"]).critic.model
        numbers = json.loads(json.dumps(portrait_numbers(take_portrait(critic, *pairs))))
        assert line == {"step": line["step"]} | numbers
    assert before["entropy"] != last["entropy"]
    seen = take_portrait(trained_agent(whole).critic.model, *pairs)
    portrait = load_portrait(whole / "portrait.npz")
    np.testing.assert_array_equal(portrait.landscapes, seen.landscapes[:4])


def test_a_run_that_is_done_is_left_as_it_is(whole, maze_file, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    for name in ("train", "start_or_resume"):
        monkeypatch.setattr(study, name, lambda *_, **__: pytest.fail("trained again"))
    assert complete(ALONE, maze_file, whole, workers=1, until=20) == whole
    assert complete(ALONE, maze_file, whole, workers=1) == whole
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def signal_at(at, monkeypatch):
    """SIGTERM while the line of metrics after `at` updates is written."""
    write_line = training.write_line

    def stopping(log, run, step, *rest):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return write_line(log, run, step, *rest)

    monkeypatch.setattr(training, "write_line", stopping)


def test_however_stopped_it_ends_bit_for_bit_the_same(tmp_path, whole, maze_file, monkeypatch):
    """By a signal at 25, where nobody would have looked; killed between checkpoint and portrait."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signal_at(25, patch)
        complete(ALONE, maze_file, run, workers=1)
    assert steps_looked_at(run) == [10, 15, 20] and checkpoint_steps(run)[0] == 25
    for name in ("take_portrait", "whole_file"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(study, name, lambda *_: 1 / 0)
            complete(ALONE, maze_file, run, workers=1)
        assert checkpoint_steps(run)[0] == 30 and steps_looked_at(run) == [10, 15, 20]
        assert not is_complete(run, ALONE)
    complete(ALONE, maze_file, run, workers=1)
    assert_same(run, whole)


def test_ended_early_and_continued(tmp_path, whole, maze_file):
    run = tmp_path / "run"
    complete(ALONE, maze_file, run, workers=1, until=20)
    assert checkpoint_steps(run)[0] == 20 and steps_looked_at(run) == [10, 15, 20]
    assert is_complete(run, ALONE, 20) and is_complete(run, ALONE, 15)
    assert not is_complete(run, ALONE) and not is_complete(run, ALONE, 30)
    complete(ALONE, maze_file, run, workers=1)
    assert_same(run, whole)


def test_other_settings_are_refused(whole, maze_file, tmp_path):
    other = replace(ALONE, seed=4, critic=replace(ALONE.critic, d_model=64))
    said = (
        r"other settings \(seed: 4 instead of 3; critic.d_model: 64 instead of 32\); move it away"
    )
    for call in (lambda: complete(other, maze_file, whole), lambda: is_complete(whole, other, 10)):
        with pytest.raises(RunError, match=said):
            call()
    assert not is_complete(tmp_path / "missing", ALONE) and not is_complete(tmp_path, ALONE)
    shutil.copy(whole / "config.json", tmp_path)
    assert not is_complete(tmp_path, ALONE), "started, and not trained"


def without_rewards(data):
    """The target is then 0, and what the next state is worth counts nothing either."""
    return eqx.tree_at(lambda rows: (rows.r, rows.m), data, (0 * data.r, 0 * data.m))


def test_changed_data_are_what_it_trains_on(tmp_path, whole, maze_file):
    run = tmp_path / "changed"
    complete(ALONE, maze_file, run, workers=1, until=20, change=without_rewards)
    complete(ALONE, maze_file, run, workers=1, change=without_rewards)
    assert [line["target_mean"] for line in metrics_of(run)] == [0] * 8
    complete(ALONE, maze_file, tmp_path / "again", workers=1, until=10)
    assert metrics_of(tmp_path / "again") == metrics_of(whole)[:2], "the loaded data stay"


def test_a_run_is_complete_when_it_is_evaluated_too(
    tmp_path, finished, tiny, maze_file, monkeypatch
):
    """A signal may end it in its last evaluation: saved, looked at, and not yet done."""
    pairs = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.arange(2.0)
    monkeypatch.setattr(study, "own_returns", lambda *_, **__: pairs)
    run = shutil.copytree(finished, tmp_path / "run")
    complete(tiny, maze_file, run, workers=1)
    assert is_complete(run, tiny) and steps_looked_at(run) == [40]
    lines = (run / "evaluation.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluation.jsonl").write_text("".join(lines[:-3]))
    assert not is_complete(run, tiny)
    complete(tiny, maze_file, run, workers=1)
    assert (run / "evaluation.jsonl").read_text() == "".join(lines)


def test_a_rival_is_completed_and_not_looked_at(tmp_path, maze_file):
    every = ("seed", "steps", "batch_size", "updates_per_call", "log_every", "checkpoint_every")
    shared = {name: getattr(ALONE, name) for name in (*every, "evaluate_every", "episodes", "task")}
    config = method_class("bc").presets["pocket"](ALONE.task)
    config = replace(config, **shared, hidden=(11,))
    run = tmp_path / "bc"
    complete(config, maze_file, run, workers=1, until=30)
    assert is_complete(run, config, 30) and not is_complete(run, config)
    complete(config, maze_file, run, workers=1)
    assert is_complete(run, config) and not (run / "analysis.jsonl").exists()
    with pytest.raises(RunError, match="is a run of bc; only TQL's critic has attention"):
        list(analyse_run(run))


@pytest.mark.slow
def test_several_at_a_time(tmp_path, maze_file):
    """Each in another process; what comes out does not depend on how many there are."""
    members = {f"seed{seed}": replace(ALONE, seed=seed) for seed in (3, 4)}
    both = complete_all(members, maze_file, tmp_path / "both")
    assert both == {name: tmp_path / "both" / name for name in members}
    for name, config in members.items():
        assert is_complete(both[name], config)
    one = complete_all({"seed4": members["seed4"]}, maze_file, tmp_path / "one", processes=1)
    assert_same(both["seed4"], one["seed4"])
    assert complete_all(members, maze_file, tmp_path / "both") == both


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_analyse_writes_what_is_seen(tmp_path, whole):
    before = {path.name for path in whole.iterdir()}
    title, over, layer, where = analyse_run(whole, out=tmp_path)
    stem = tmp_path / "analysis-000000040"
    endings = (".json", ".npz", ".png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem.name}{x}" for x in endings]
    assert {path.name for path in whole.iterdir()} == before
    found = json.loads(stem.with_suffix(".json").read_text())
    assert {"step": 40} | found == read_lines(whole / "analysis.jsonl")[-1]
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert title == f"{ALONE.task}, critic 1 x 32, control tql, 40 updates"
    assert over.startswith("over 32 pairs of validation data: roughness ")
    assert f"roughness {found['roughness']:.3f}, " in over and layer.startswith("layer 1: entropy ")
    assert str(stem) in where
    earlier = list(analyse_run(whole, step=30, out=tmp_path / "deeper"))
    assert earlier[0].endswith("30 updates") and (tmp_path / "deeper").is_dir()
    with pytest.raises(RunError, match="no checkpoint after 7 updates; there are: 40, 30"):
        list(analyse_run(whole, step=7, out=tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_analyse_says_what_it_saw_before_it_writes(tmp_path, whole):
    lines = analyse_run(whole, out=tmp_path)
    title = next(lines)
    assert title.startswith(ALONE.task) and not list(tmp_path.glob("analysis*"))
