"""Runs of a study: to the end whatever stops them, looked at once per checkpoint, recorded in small files without local paths."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import equinox as eqx
import numpy as np
import pytest
from conftest import as_in_tests, tiny_settings
from test_run import Killed, assert_same_arrays, before_chunk, metrics_of, steps_of, what_stops

from tql import portrait as portraits
from tql import run as runs
from tql import run_directory, study
from tql.config import ControlConfig, Task
from tql.data import load
from tql.portrait import numbers, probe_pairs, take
from tql.run import Interrupted
from tql.run_directory import RunError
from tql.study import analyse, complete, is_complete, read_lines, record, seconds_without_pauses

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

ALONE = tiny_settings("cpu-sarsa", control=ControlConfig(kind="none"))
PLANNED = [10, 15, 20, 30, 40]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, maze_file):
    """A critic's run that nothing stopped. Not to be changed."""
    run = tmp_path_factory.mktemp("study") / "whole"
    with as_in_tests():
        assert complete(ALONE, maze_file, run, workers=1) == run
    return run


def steps_looked_at(run):
    return [line["step"] for line in read_lines(run / "analysis.jsonl")]


def files_of(run):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}


def assert_same_study(run, other):
    """All that two runs left, to the bit."""
    assert_same_arrays(run_directory.trained_agent(run), run_directory.trained_agent(other))
    assert metrics_of(run) == metrics_of(other) and metrics_of(run)
    assert (run / "analysis.jsonl").read_bytes() == (other / "analysis.jsonl").read_bytes()
    ours, theirs = (vars(portraits.load(path / "portrait.npz")) for path in (run, other))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert not list(run.glob(".*"))


# To the end.


def test_looking_does_not_change_a_run(whole, critic_alone):
    assert_same_arrays(run_directory.trained_agent(whole), run_directory.trained_agent(critic_alone))
    assert metrics_of(whole) == metrics_of(critic_alone)


def test_every_checkpoint_is_looked_at_on_the_validation_data(whole, maze_file):
    assert steps_looked_at(whole) == PLANNED and is_complete(whole, ALONE)
    _, validation = load(Task.parse(ALONE.task), maze_file)
    seen = take(run_directory.trained_agent(whole).critic, *probe_pairs(validation))
    *_, before, last = read_lines(whole / "analysis.jsonl")
    assert last == {"step": 40} | numbers(seen)
    assert before == {"step": 30} | numbers(take(run_directory.agent_at(whole, 30).critic, *probe_pairs(validation)))
    assert before["entropy"] != last["entropy"]
    np.testing.assert_array_equal(portraits.load(whole / "portrait.npz").landscapes, seen.landscapes[:4])


def test_a_run_that_is_done_is_left_as_it_is(whole, maze_file, monkeypatch):
    before = files_of(whole)
    for name in ("train", "start", "resume"):
        monkeypatch.setattr(runs, name, lambda *_, **__: pytest.fail("trained again"))
    assert complete(ALONE, maze_file, whole, workers=1) == whole
    assert complete(ALONE, maze_file, whole, workers=1, until=20) == whole
    assert files_of(whole) == before


@pytest.mark.parametrize(
    "stops",
    [
        [(signal.SIGTERM, 20)],  # saved at 25, where nobody would have looked
        [(signal.SIGTERM, 0), ("kill", 20)],
        [("kill", 0), (signal.SIGINT, 15), (signal.SIGTERM, 35)],
    ],
)
def test_however_often_stopped_it_ends_bit_for_bit_the_same(stops, tmp_path, whole, maze_file):
    run = tmp_path / "run"
    for kind, at in stops:
        with before_chunk(what_stops(kind, at)), pytest.raises(Killed if kind == "kill" else Interrupted):
            complete(ALONE, maze_file, run, workers=1)
        assert steps_looked_at(run) == [step for step in PLANNED if step <= (at if kind == "kill" else at + 5)]
    complete(ALONE, maze_file, run, workers=1)
    assert_same_study(run, whole)


@pytest.mark.parametrize(("call", "at"), [("take", 20), ("take", 40), ("save", 20), ("whole_file", 40)])
def test_killed_between_a_checkpoint_and_its_portrait_it_goes_on(call, at, tmp_path, monkeypatch, whole, maze_file):
    """Before the portrait, before its file, before its line."""
    run, original = tmp_path / "run", getattr(study, call)

    def dies(*arguments):
        if steps_of(run)[0] == at:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(study, call, dies)
        complete(ALONE, maze_file, run, workers=1)
    assert steps_of(run)[0] == at and steps_looked_at(run) == [step for step in PLANNED if step < at]
    assert not is_complete(run, ALONE)
    complete(ALONE, maze_file, run, workers=1)
    assert_same_study(run, whole)


def test_a_damaged_checkpoint_is_trained_and_looked_at_again(tmp_path, capfd, whole, maze_file):
    run = shutil.copytree(whole, tmp_path / "run")
    lines = (run / "analysis.jsonl").read_bytes().splitlines(keepends=True)
    (run / "analysis.jsonl").write_bytes(b"".join(lines[:-1]))
    run_directory.checkpoints(run)[0].write_bytes(b"damaged")
    complete(ALONE, maze_file, run, workers=1)
    assert "refused" in capfd.readouterr().err
    assert steps_looked_at(run) == PLANNED and (run / "analysis.jsonl").read_bytes() == b"".join(lines)


def test_ended_early_and_continued(tmp_path, monkeypatch, whole, maze_file):
    run = tmp_path / "run"
    complete(ALONE, maze_file, run, workers=1, until=20)
    assert steps_of(run)[0] == 20 and steps_looked_at(run) == [10, 15, 20]
    assert is_complete(run, ALONE, 20) and is_complete(run, ALONE, 15) and not is_complete(run, ALONE) and not is_complete(run, ALONE, 30)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
        complete(ALONE, maze_file, run, workers=1, until=20)
    complete(ALONE, maze_file, run, workers=1)
    assert_same_study(run, whole)


def test_other_settings_are_refused(whole, maze_file):
    before = files_of(whole)
    other = replace(ALONE, seed=4, critic=replace(ALONE.critic, d_model=64))
    for call in (lambda: complete(other, maze_file, whole), lambda: is_complete(whole, other), lambda: is_complete(whole, other, 10)):
        with pytest.raises(RunError, match=r"other settings \(seed: 4 instead of 3; critic.d_model: 64 instead of 32\); move it away"):
            call()
    assert files_of(whole) == before


def test_what_is_not_there_is_not_complete(tmp_path, whole):
    assert not is_complete(tmp_path / "missing", ALONE) and not is_complete(tmp_path, ALONE)
    shutil.copy(whole / "config.json", tmp_path)
    assert not is_complete(tmp_path, ALONE), "started, not trained"


def test_something_else_in_the_directory_is_left_alone(tmp_path, maze_file):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not empty"):
        complete(ALONE, maze_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Changed data.


def without_rewards(data):
    """The target is 0 for certain, but for what the last state is worth: nothing either, for nothing follows."""
    return eqx.tree_at(lambda batch: (batch.rewards, batch.masks), data, (0 * data.rewards, 0 * data.masks))


def test_changed_data_are_what_it_trains_on_also_after_a_stop(tmp_path, whole, maze_file):
    run, stopped = tmp_path / "changed", tmp_path / "stopped"
    complete(ALONE, maze_file, run, workers=1, change=without_rewards)
    assert [line["target_mean"] for line in metrics_of(run)] == [0] * 8
    assert all(line["target_mean"] < -0.5 for line in metrics_of(whole)), "rewards are -1 a step"
    with before_chunk(what_stops(signal.SIGTERM, 20)), pytest.raises(Interrupted):
        complete(ALONE, maze_file, stopped, workers=1, change=without_rewards)
    complete(ALONE, maze_file, stopped, workers=1, change=without_rewards)
    assert_same_study(stopped, run)
    again = tmp_path / "again"
    complete(ALONE, maze_file, again, workers=1, until=10)
    assert metrics_of(again) == metrics_of(whole)[:2], "what is loaded is not what was changed"


# Evaluated.


@pytest.mark.parametrize("lost", ["behaviour at the end", "the end", "all"])
def test_a_run_is_complete_when_it_is_evaluated_too(lost, tmp_path, finished, tiny, maze_file):
    """A signal may end it in its last chunk or in its last evaluation: saved, looked at, and not yet done."""
    run = shutil.copytree(finished, tmp_path / "run")
    complete(tiny, maze_file, run, workers=1)
    assert is_complete(run, tiny) and steps_looked_at(run) == [40], "a run of tql train becomes one of a study"
    lines = (run / "evaluation.jsonl").read_text().splitlines(keepends=True)
    kept = {"behaviour at the end": lines[:-3], "the end": lines[:-6], "all": []}[lost]
    (run / "evaluation.jsonl").write_text("".join(kept))
    assert not is_complete(run, tiny)
    complete(tiny, maze_file, run, workers=1)
    assert is_complete(run, tiny) and (run / "evaluation.jsonl").read_text() == "".join(kept + lines[len(kept) - len(lines) :][-6:])


def test_a_signal_in_the_last_chunk_leaves_the_evaluation_to_be_done(tmp_path, tiny, finished, maze_file):
    run = shutil.copytree(finished, tmp_path / "run")
    run_directory.checkpoints(run)[0].unlink()
    lines = (run / "evaluation.jsonl").read_text()
    (run / "evaluation.jsonl").write_text("".join(lines.splitlines(keepends=True)[:-6]))
    with before_chunk(what_stops(signal.SIGTERM, 35)), pytest.raises(Interrupted):
        complete(tiny, maze_file, run, workers=1)
    assert steps_looked_at(run) == [30, 40] and not is_complete(run, tiny)
    complete(tiny, maze_file, run, workers=1)
    assert (run / "evaluation.jsonl").read_text() == lines


def test_evaluations_that_are_not_due_are_not_waited_for(tmp_path, finished, tiny, maze_file):
    run = shutil.copytree(finished, tmp_path / "run")
    run_directory.checkpoints(run)[0].unlink()
    (run / "evaluation.jsonl").unlink()
    (run / "analysis.jsonl").write_text('{"step": 20}\n')
    assert is_complete(run, tiny, 20) and not is_complete(run, tiny, 15) and not is_complete(run, tiny)


# Recorded.


def numbers_in(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, float):
        yield value


def test_the_record_of_a_run(tmp_path, whole, maze_file):
    out = tmp_path / "deep" / "record"
    record(whole, out)
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.jsonl", "analysis.jsonl", "portrait.npz"}
    assert sum(path.stat().st_size for path in out.iterdir()) < 60_000
    text = "".join((out / name).read_text() for name in ("config.json", "metrics.jsonl", "analysis.jsonl"))
    assert str(maze_file.parent) not in text and str(whole) not in text and not re.search(r'"/|\bhome\b|\btmp\b', text)
    assert (out / "portrait.npz").read_bytes() == (whole / "portrait.npz").read_bytes()

    ours, theirs = json.loads((whole / "config.json").read_text()), json.loads((out / "config.json").read_text())
    seconds = theirs.pop("training_seconds")
    assert seconds == pytest.approx(seconds_without_pauses(read_lines(whole / "metrics.jsonl")), abs=0.051) and "time" not in text
    assert theirs["dataset"] == {"file": maze_file.name, "sha256": ours["dataset"]["sha256"]}
    assert theirs | {"dataset": 0} == ours | {"dataset": 0}, "settings, versions, device, target"
    for name in ("metrics.jsonl", "analysis.jsonl"):
        before, after = read_lines(whole / name), read_lines(out / name)
        assert [line["step"] for line in after] == [line["step"] for line in before]
        for a, b in zip(before, after):
            a.pop("time", None)
            assert a.keys() == b.keys()
            x, y = list(numbers_in(a)), list(numbers_in(b))
            np.testing.assert_allclose(y, x, rtol=5.1e-6)
            assert len(y) > 5 and y == [float(f"{value:.6g}") for value in x]

    assert is_complete(out, ALONE) and is_complete(out, ALONE, 20) and run_directory.read_settings(out).config == ALONE
    with pytest.raises(RunError, match="other settings"):
        is_complete(out, replace(ALONE, seed=0))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    record(whole, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, "the same again"


def test_the_record_of_an_agent_has_its_episodes(tmp_path, finished, tiny, maze_file):
    run = shutil.copytree(finished, tmp_path / "run")
    complete(tiny, maze_file, run, workers=1)
    record(run, tmp_path / "out")
    rows, kept = read_lines(run / "evaluation.jsonl"), read_lines(tmp_path / "out" / "evaluation.jsonl")
    assert len(kept) == 18 and [row | {"return": 0} for row in kept] == [row | {"return": 0} for row in rows]
    np.testing.assert_allclose([row["return"] for row in kept], [row["return"] for row in rows], rtol=5.1e-6)
    assert kept[4]["success"] is True and is_complete(tmp_path / "out", tiny)


def lines_at(*times):
    return [{"step": step, "time": 1.7e9 + time} for step, time in enumerate(times)]


def test_training_time_leaves_pauses_out():
    assert seconds_without_pauses(lines_at(0, 1, 2, 3)) == pytest.approx(3)
    assert seconds_without_pauses(lines_at(0, 1, 2, 1002, 1003, 1004)) == pytest.approx(4)
    assert seconds_without_pauses(lines_at(0, 2, 4, 23, 25)) == pytest.approx(25), "slow is no pause"
    assert seconds_without_pauses(lines_at(0, 2, 4, 25, 27)) == pytest.approx(6)
    assert seconds_without_pauses([]) == seconds_without_pauses(lines_at(5)) == 0


def test_lines_of_a_file_that_is_not_there(tmp_path):
    assert read_lines(tmp_path / "missing") == []
    (tmp_path / "lines").write_text('{"a": 1}\n{"a": [2]}\n')
    assert read_lines(tmp_path / "lines") == [{"a": 1}, {"a": [2]}]


# One checkpoint, for people.


def test_analyse_writes_what_take_sees(tmp_path, whole, maze_file):
    run = shutil.copytree(whole, tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    title, over, layer, where = analyse(run)
    stem = run / "analysis-000000040"
    assert {path.name for path in run.iterdir()} - before == {f"{stem.name}{end}" for end in (".png", ".json", ".npz")}
    found = json.loads(stem.with_suffix(".json").read_text())
    assert {"step": 40} | found == read_lines(run / "analysis.jsonl")[-1]
    assert portraits.load(stem.with_suffix(".npz")).n_s == 2
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert title == f"{ALONE.task}, critic 1 x 32, control none, 40 updates"
    assert over.startswith(f"over 32 pairs of validation data: roughness {found['roughness']:.3f}, ")
    assert f"turning points {found['turning_points']:.2f}, Q range on the landscape {found['q_range']:.3f}" in over
    assert over.endswith(f"|dQ/da| {found['sensitivity']:.3f}")
    ((value, others),) = np.mean(found["entropy"], axis=1)
    assert layer.startswith(f"layer 1: entropy {value:.2f} nats for [VALUE], {others:.2f} for the others; looks at ")
    assert layer.endswith(f"looks at {np.exp(value):.1f} and {np.exp(others):.1f} of 5 tokens")
    assert all(str(stem.with_suffix(end)) in where for end in (".png", ".json", ".npz"))


def test_analyse_another_checkpoint_with_data_elsewhere(tmp_path, whole, maze_file):
    run = shutil.copytree(whole, tmp_path / "run")
    about = json.loads((run / "config.json").read_text())
    about["dataset"]["file"] = str(tmp_path / "gone.npz")
    (run / "config.json").write_text(json.dumps(about))
    with pytest.raises(FileNotFoundError, match="gone.npz"):
        analyse(run, 30)
    analyse(run, 30, maze_file)
    found = json.loads((run / "analysis-000000030.json").read_text())
    assert {"step": 30} | found == read_lines(run / "analysis.jsonl")[-2]
    with pytest.raises(RunError, match="no checkpoint after 35 updates; there are: 40, 30"):
        analyse(run, 35, maze_file)
    assert os.listdir(run) and not (run / "analysis-000000035.png").exists()
