"""A run on disk: stopped and killed anywhere it goes on bit for bit, it always ends, a NaN stops
it, and bad directories are refused by name."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import scripted_episodes
from hypothesis import HealthCheck, given, settings

from tql.loop import TQL
from tql.ogbench.evaluate import recorded_episodes, run_episodes
from tql.ogbench.workers import WorkerError
from tql.training import run as runs
from tql.training import run_directory
from tql.training.checkpoint import load_checkpoint, named_arrays
from tql.training.run import Interrupted, resume_run, start_run, train
from tql.training.run_directory import Diverged, RunError, checkpoint_steps, trained_agent

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")
shared = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


class Killed(BaseException):
    """Stands for kill -9: nothing of the run's code may answer it."""


@pytest.fixture(scope="module")
def compiled(tiny, maze_file, tmp_path_factory):
    """The chunk of the tiny settings, compiled once for this file."""
    with jax.numpy_dtype_promotion("standard"):
        agent, data = start_run(tiny, maze_file, tmp_path_factory.mktemp("compiled") / "run")
        return runs.train_chunk.lower((data, tiny.updates_per_call), agent).compile()


@contextmanager
def before_chunk(hook, compiled=None):
    """Calls `hook(step, inputs, agent)` before every chunk; it may raise, send a signal, or return
    another agent."""
    original = runs.train_chunk

    class Hooked:
        def lower(self, inputs, agent):
            self.chunk = compiled or original.lower(inputs, agent).compile()
            return self

        def compile(self):
            return lambda inputs, agent: self.chunk(
                inputs, hook(int(agent.step), inputs, agent) or agent
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train_chunk", Hooked())
        yield


@pytest.fixture
def quick(compiled):
    """Trains with the chunk that is compiled already."""
    with before_chunk(lambda *_: None, compiled):
        yield


def metrics_of(run):
    lines = run_directory.read_metrics(run)
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def assert_same_arrays(ours, theirs):
    ours, theirs = named_arrays(ours), named_arrays(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def assert_same_run(run, other):
    """All that two runs left: every array, every line."""
    assert_same_arrays(trained_agent(run), trained_agent(other))
    assert metrics_of(run) == metrics_of(other) and metrics_of(run)
    assert (run / "evaluation.jsonl").read_bytes() == (other / "evaluation.jsonl").read_bytes()
    assert checkpoint_steps(run)[0] == checkpoint_steps(other)[0]
    assert len(checkpoint_steps(run)) == 2


def go_on(run, config):
    return train(*resume_run(run, config), run, workers=1)


def what_stops(kind, at):
    """A hook that stops the run before the chunk at update `at`."""

    def hook(step, inputs, agent):
        if step == at:
            if kind == "kill":
                raise Killed
            os.kill(os.getpid(), kind)

    return hook


# Stopped and continued.


def test_an_uninterrupted_run_is_what_the_settings_say(finished, tiny, maze_file):
    lines = run_directory.read_metrics(finished)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert checkpoint_steps(finished) == [40, 30]
    rows = recorded_episodes(finished / "evaluation.jsonl")
    expected = itertools.product((15, 30, 40), ("policy", "behaviour"), range(3))
    assert [(row["step"], row["policy"], row["episode"]) for row in rows] == list(expected)
    assert len({row["return"] for row in rows}) > 9, "the weights show, so that this says much"
    about = run_directory.read_settings(finished)
    assert about.config == tiny and Path(about.dataset.file) == maze_file.resolve()
    assert {"jax", "equinox", "mujoco", "python"} < about.versions.keys() and about.device
    assert about.metrics["entropy"] == (1, 2) and about.metrics["td_loss"] == () and not about.files
    high = 0.8 * np.log(5)
    np.testing.assert_allclose(about.target, [[high - 0.5, high - 0.5]])


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@settings(shared, max_examples=5)
@given(
    stops=st.lists(
        st.tuples(st.sampled_from([*SIGNALS, "kill"]), st.integers(0, 7).map(lambda i: 5 * i)),
        min_size=1,
        max_size=3,
    ).map(lambda stops: sorted(stops, key=lambda stop: stop[1]))
)
def test_however_often_stopped_it_ends_bit_for_bit_the_same(
    stops, finished, tiny, maze_file, compiled
):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        agent, data = start_run(tiny, maze_file, run)
        for kind, at in stops:
            try:
                with before_chunk(what_stops(kind, at), compiled):
                    train(agent, data, run, workers=1)
            except Interrupted as stopped:
                assert kind != "kill" and f"by {kind.name} at update {at + 5}" in str(stopped)
                assert checkpoint_steps(run)[0] == at + 5, (
                    "saved at once, also between two checkpoints"
                )
            except Killed:
                with open(run / "metrics.jsonl", "a") as log:
                    log.write('{"step": 45, "actor_')
            assert len(checkpoint_steps(run)) <= 2
            agent, data = resume_run(run, tiny)
            if kind == "kill":
                lost = "no more than the updates since the last checkpoint are lost"
                assert int(agent.step) >= at - at % 10 - 10, lost
            steps = [line["step"] for line in run_directory.read_metrics(run)]
            assert steps == list(range(5, int(agent.step) + 1, 5))
        with before_chunk(lambda *_: None, compiled):
            train(agent, data, run, workers=1)
        assert_same_run(run, finished)


@settings(shared, max_examples=6)
@given(
    calls=st.integers(1, 60),
    name=st.sampled_from(["os.replace", "os.fsync", "pathlib.Path.unlink", "pathlib.Path.touch"]),
)
def test_killed_in_the_middle_of_writing_it_goes_on_bit_for_bit(
    calls, name, finished, tiny, maze_file, compiled
):
    """The process ends at the n-th call that touches the disk."""
    module, function = name.rsplit(".", 1)
    owner = Path if module == "pathlib.Path" else os
    original, left = getattr(owner, function), iter(range(calls, 0, -1))

    def dies(*arguments, **options):
        if next(left, None) == 1:
            raise Killed
        return original(*arguments, **options)

    with tempfile.TemporaryDirectory() as folder, before_chunk(lambda *_: None, compiled):
        run = Path(folder) / "run"
        agent, data = start_run(tiny, maze_file, run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, dies)
            try:
                train(agent, data, run, workers=1)
            except Killed:
                pass
        for path in run_directory.checkpoints(run):
            load_checkpoint(path, tiny)
        go_on(run, tiny)
        assert_same_run(run, finished)
        assert [path.name for path in run.glob(".*")] == [".lock"], "no half of a file stays"


def test_a_signal_during_an_evaluation_finds_the_state_saved(
    tmp_path, monkeypatch, finished, tiny, maze_file, quick
):
    """The evaluation at update 15, where no checkpoint is due."""
    run = tmp_path / "run"

    def signalled(policy, task, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return scripted_episodes(policy, task, **options)

    monkeypatch.setattr(runs, "run_episodes", signalled)
    with pytest.raises(Interrupted, match="SIGTERM during an evaluation"):
        train(*start_run(tiny, maze_file, run), run, workers=1)
    assert checkpoint_steps(run) == [15, 10] and not (run / "evaluation.jsonl").exists()
    monkeypatch.setattr(runs, "run_episodes", scripted_episodes)
    go_on(run, tiny)
    assert_same_run(run, finished)


@pytest.mark.parametrize("signalled", [True, False])
def test_simulators_that_end_by_the_same_signal_are_no_error(
    signalled, tmp_path, monkeypatch, tiny, maze_file, quick
):
    def ends(policy, task, **_):
        if signalled:
            os.kill(os.getpid(), signal.SIGINT)
        raise WorkerError("its process ended by itself.")

    monkeypatch.setattr(runs, "run_episodes", ends)
    with pytest.raises(Interrupted if signalled else WorkerError):
        train(*start_run(tiny, maze_file, tmp_path / "run"), tmp_path / "run", workers=1)


def test_signals_mean_what_they_did_after_training(tmp_path, tiny, maze_file, compiled):
    before = [signal.getsignal(number) for number in SIGNALS]
    with before_chunk(what_stops(signal.SIGHUP, 10), compiled), pytest.raises(Interrupted):
        train(*start_run(tiny, maze_file, tmp_path / "run"), tmp_path / "run", workers=1)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with runs.stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)


# It always ends, in one process.


@pytest.fixture
def stopped(tmp_path, tiny, maze_file, compiled) -> Path:
    """A run stopped at update 25: checkpoints 25 and 20."""
    run = tmp_path / "stopped"
    with before_chunk(what_stops(signal.SIGTERM, 20), compiled), pytest.raises(Interrupted):
        train(*start_run(tiny, maze_file, run), run, workers=1)
    assert checkpoint_steps(run) == [25, 20]
    return run


def counted(agent, step):
    return eqx.tree_at(lambda agent: agent.step, agent, jnp.asarray(step))


@pytest.mark.parametrize("step", [45, 33_020])
def test_an_agent_beyond_the_end_is_refused(step, tmp_path, tiny, maze_file):
    agent, data = start_run(tiny, maze_file, tmp_path / "run")
    with pytest.raises(RunError, match=f"made {step} updates, which is beyond the 40 steps"):
        train(counted(agent, step), data, tmp_path / "run", workers=1)


def test_training_ends_where_a_chunk_steps_over_the_end(tmp_path, tiny, maze_file, quick):
    """A state that no run of these settings has: update 38 of 40 in chunks of 5."""
    agent, data = start_run(tiny, maze_file, tmp_path / "run")
    assert int(train(counted(agent, 38), data, tmp_path / "run", workers=1).step) == 43


@pytest.mark.parametrize("step", [45, 26])
def test_a_checkpoint_that_the_run_cannot_have_is_refused(step, stopped, tiny):
    for path in run_directory.checkpoints(stopped):
        path.unlink()
    agent = TQL.create(2, 2, tiny)
    run_directory.save(stopped, counted(agent, step))
    words = f"after {step} updates, and a run of 40 steps in chunks of 5 never has it"
    with pytest.raises(RunError, match=words):
        resume_run(stopped, tiny)
    with pytest.raises(RunError, match=words):
        trained_agent(stopped)


def test_an_update_that_forgets_to_count_is_named(tmp_path, tiny, maze_file, monkeypatch):
    counts = TQL.update

    def forgets(self, batch, key):
        agent, metrics = counts(self, batch, key)
        return counted(agent, self.step), metrics

    monkeypatch.setattr(TQL, "update", forgets)
    with pytest.raises(RunError, match=r"after 5 updates TQL.step is 0: .* with step \+ 1"):
        config = replace(tiny, batch_size=6)  # for which nothing is compiled yet
        train(*start_run(config, maze_file, tmp_path / "run"), tmp_path / "run", workers=1)
    assert checkpoint_steps(tmp_path / "run") == []


def test_a_second_process_is_refused_while_the_first_lives(stopped, tiny, maze_file):
    """Training, resuming and evaluating, by name, while another process holds the run."""
    agent, data = resume_run(stopped, tiny)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    program = f"""
from pathlib import Path
from tql.training.run_directory import run_lock
with run_lock(Path({str(stopped)!r})):
    print("held", flush=True)
    input()
"""
    command = [sys.executable, "-c", program]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        tries = (
            lambda: train(agent, data, stopped, workers=1),
            lambda: resume_run(stopped, tiny),
            lambda: runs.evaluate_run(agent, stopped, episodes=1, workers=1),
        )
        for attempt in tries:
            with pytest.raises(
                RunError, match=f"^{stopped}: another process is writing in this run"
            ):
                attempt()
        assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
        holder.kill()
        holder.wait()
        resume_run(stopped, tiny)  # a lock does not outlive its process
    finally:
        holder.kill()
        holder.communicate()


def test_an_agent_that_was_read_before_another_process_went_on_is_refused(stopped, tiny, quick):
    agent, data = resume_run(stopped, tiny)
    go_on(stopped, tiny)
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="newest checkpoint has 40 updates and this agent 25"):
        train(agent, data, stopped, workers=1)
    assert (stopped / "metrics.jsonl").read_bytes() == before


# Files of the user.


def damage(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


MINE = (
    "step-best.checkpoint",
    "step-000000010-keep.checkpoint",
    "step-999.checkpoint",
    "step-0000000300.checkpoint",
    "step-000000300.checkpoint.bak",
    ".step-best.checkpoint.7.tmp",
    ".notes.tmp",
    "notes.tmp",
)


def test_files_that_the_run_did_not_write_are_not_touched(stopped, finished, tiny, quick):
    """Copies under other names, a checkpoint of another update under a checkpoint's name, and two
    beyond the end: none is read as the newest, deleted or renamed."""
    content = (stopped / "step-000000020.checkpoint").read_bytes()
    mine = [*MINE, "step-000000003.checkpoint", "step-000000300.checkpoint"]
    for name in [*mine, "step-999999999.checkpoint"]:
        (stopped / name).write_bytes(content)
    (stopped / "step-000000007.checkpoint").mkdir()
    assert int(trained_agent(stopped).step) == 25
    go_on(stopped, tiny)
    assert int(trained_agent(stopped).step) == 40
    for name in [*mine, "step-999999999.checkpoint"]:
        assert (stopped / name).read_bytes() == content
    assert {40, 30} <= set(checkpoint_steps(stopped)) and 25 not in checkpoint_steps(stopped)
    assert_same_arrays(trained_agent(stopped), trained_agent(finished))


def test_a_file_of_the_user_where_the_run_is_going_to_write_is_named(stopped, tiny):
    theirs = stopped / "step-000000030.checkpoint"
    theirs.write_text("mine")
    with pytest.raises(RunError, match=f"{theirs}: is damaged, or was not written by this run"):
        resume_run(stopped, tiny)
    assert theirs.read_text() == "mine" and checkpoint_steps(stopped) == [30, 25, 20]


def test_a_damaged_newest_checkpoint_is_refused_by_name_and_the_previous_one_used(
    stopped, capfd, finished, tiny, quick
):
    newest, _ = run_directory.checkpoints(stopped)
    damage(newest)
    assert int(trained_agent(stopped).step) == 20
    assert f"refused: {newest}: is damaged" in capfd.readouterr().err and newest.exists()
    agent, data = resume_run(stopped, tiny)
    assert int(agent.step) == 20
    assert [line["step"] for line in run_directory.read_metrics(stopped)] == [5, 10, 15, 20]
    assert checkpoint_steps(stopped) == [20]
    assert newest.with_suffix(".refused").exists(), "out of the way, not lost"
    train(agent, data, stopped, workers=1)
    assert_same_run(stopped, finished)


def test_episodes_of_updates_that_are_made_again_are_run_again(finished, tmp_path, tiny):
    """Evaluations were at 15, 30 and 40; the newest whole checkpoint is at 30."""
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run_directory.checkpoints(run)[0])
    resume_run(run, tiny)
    steps = [row["step"] for row in recorded_episodes(run / "evaluation.jsonl")]
    assert steps == [15] * 6 + [30] * 6
    # Nothing is rewritten where nothing is to be forgotten.
    before = (run / "evaluation.jsonl").stat().st_mtime_ns
    resume_run(run, tiny)
    assert (run / "evaluation.jsonl").stat().st_mtime_ns == before


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(stopped, tiny):
    for path in run_directory.checkpoints(stopped):
        damage(path)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(
        RunError, match="has no usable checkpoint. .*000000025.checkpoint: is damaged"
    ):
        resume_run(stopped, tiny)
    with pytest.raises(
        RunError, match="has no usable checkpoint. .*000000025.checkpoint: is damaged"
    ):
        trained_agent(stopped)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_leftovers_of_a_kill_are_harmless_and_cleared(stopped, finished, tiny, quick):
    (stopped / ".step-000000030.checkpoint.123.tmp").write_bytes(b"half")
    (stopped / ".metrics.jsonl.123.tmp").write_bytes(b"half")
    assert int(trained_agent(stopped).step) == 25
    go_on(stopped, tiny)
    assert_same_run(stopped, finished)
    assert [path.name for path in stopped.glob(".*")] == [".lock"]


# The disk refuses.


def no_space(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["checkpoint", "metrics", "half a line", "episodes"])
def test_a_full_disk_says_what_is_safe_and_how_to_go_on(
    what, stopped, tmp_path, finished, tiny, quick, monkeypatch
):
    agent, data = resume_run(stopped, tiny)
    with monkeypatch.context() as patch:
        file = {"checkpoint": "step-000000030.checkpoint", "episodes": "evaluation.jsonl"}
        file = stopped / file.get(what, "metrics.jsonl")
        if what == "checkpoint":
            fsync = os.fsync
            is_checkpoint = lambda n: "step-" in os.readlink(f"/proc/self/fd/{n}")
            patch.setattr(os, "fsync", lambda n: no_space() if is_checkpoint(n) else fsync(n))
        elif what == "episodes":
            patch.setattr(runs, "record_episodes", no_space)
        else:
            half = (lambda self, content: 7) if what == "half a line" else no_space
            full = type("Log", (FileIO,), dict(write=half))
            patch.setattr(runs, "metrics_log", lambda run: full(run / "metrics.jsonl", "ab"))
        with pytest.raises(RunError) as error:
            train(agent, data, stopped, workers=1)
    message = str(error.value)
    newest = 30 if what == "episodes" else 25
    words = f"{file}: cannot be written in the folder {stopped} (No space left on device)"
    assert message.startswith(words) and "--resume" in message and "\n" not in message
    assert (
        what == "episodes" or f"checkpoint: {stopped / f'step-{newest:09d}.checkpoint'}" in message
    )
    assert checkpoint_steps(stopped)[0] == newest
    go_on(stopped, tiny)
    assert_same_run(stopped, finished)


def test_an_evaluation_finds_out_first_whether_it_can_write(finished, tmp_path, monkeypatch):
    run, agent = shutil.copytree(finished, tmp_path / "run"), trained_agent(finished)
    monkeypatch.setattr(runs, "run_episodes", lambda *_, **__: pytest.fail("acted"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(RunError, match=f"^{taken / 'x.jsonl'}: cannot be written in the folder"):
        runs.evaluate_run(agent, run, episodes=5, workers=1, out=taken / "x.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(RunError, match=r"evaluation.jsonl: .*No space left.* --out"):
            runs.evaluate_run(agent, run, episodes=5, workers=1)
    (run / "evaluation.jsonl").unlink()
    (run / "evaluation.jsonl").mkdir()
    with pytest.raises(RunError, match=r"evaluation.jsonl: .*Is a directory.* --out"):
        runs.evaluate_run(agent, run, episodes=5, workers=1)


def test_a_result_that_cannot_be_written_is_told_first(finished, tmp_path, monkeypatch):
    run, told = shutil.copytree(finished, tmp_path / "run"), []
    monkeypatch.setattr(runs, "record_episodes", no_space)
    tell = lambda name, episodes: told.append((name, len(episodes)))
    with pytest.raises(RunError, match="evaluation.jsonl: cannot be written"):
        runs.evaluate_run(trained_agent(run), run, episodes=5, workers=1, tell=tell)
    assert told == [("policy", 5)]


# NaN and Inf.


def first_draw(data, batch_size, key):
    """Which update draws each row first, by the rule that update k draws from fold_in(key, k)."""
    rows = np.full(len(data.r), -1)
    for update in range(40):
        k_batch, _ = jr.split(jr.fold_in(key, update))
        drawn = np.asarray(jr.randint(k_batch, (batch_size,), 0, len(rows)))
        rows[drawn] = np.where(rows[drawn] < 0, update, rows[drawn])
    return rows


def poisoned(data, row, value):
    return eqx.tree_at(lambda batch: batch.r, data, data.r.at[row].set(value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stops_within_its_chunk_and_says_which_loss_at_which_update(
    value, tmp_path, tiny, maze_file, compiled
):
    run = tmp_path / "run"
    agent, data = start_run(tiny, maze_file, run)
    when = first_draw(data, tiny.batch_size, agent.key)
    row = int(np.flatnonzero((when > 11) & (when % 5 == 2))[0])
    chunks = []
    with before_chunk(lambda step, *_: chunks.append(step), compiled):
        with pytest.raises(Diverged) as error:
            train(agent, poisoned(data, row, value), run, workers=1)
    update = int(when[row])
    last = update // 5 * 5 // 10 * 10
    last = last if update < 15 else max(15, last)
    words = (
        f"td_loss and target_mean became {value} and {value} at update {update}; training stopped"
    )
    message = str(error.value)
    assert message.startswith(words)
    assert f"checkpoint is {run / f'step-{last:09d}.checkpoint'}" in message
    assert "Resuming would repeat it" in message and "smaller learning rate" in message
    assert chunks[-1] == update // 5 * 5
    saved = trained_agent(run)
    assert int(saved.step) == last == checkpoint_steps(run)[0]
    assert all(np.isfinite(array).all() for array in named_arrays(saved).values())
    assert all(np.isfinite(line["td_loss"]) for line in run_directory.read_metrics(run))


def test_nan_at_the_first_update_says_how_to_find_the_line(tmp_path, tiny, maze_file, quick):
    agent, data = start_run(tiny, maze_file, tmp_path / "run")
    words = "^td_loss and target_mean became nan and nan at update 0; .* checkpoint is none yet"
    with pytest.raises(Diverged, match=words) as error:
        train(agent, poisoned(data, slice(None), np.nan), tmp_path / "run", workers=1)
    message = str(error.value)
    assert "JAX_DEBUG_NANS=1 JAX_DISABLE_JIT=1 JAXTYPING_DISABLE=1" in message
    assert "usual remedy" not in message


@pytest.mark.parametrize(
    "where",
    [
        lambda agent: agent.critic.model.tokenizer.v,
        lambda agent: agent.actor.model.flow.layers[0].bias,
        lambda agent: agent.controller.model.log_alpha,
        lambda agent: agent.critic.optimiser_state[0].nu.final_norm.bias,
    ],
)
def test_an_agent_that_is_not_finite_is_never_saved(where, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for value in (np.nan, np.inf):
        agent = eqx.tree_at(where, trained_agent(run), replace_fn=lambda x: jnp.full_like(x, value))
        words = r"NaN or Inf in \w+[.\[].* after 40 updates; the last good .*step-000000040"
        with pytest.raises(Diverged, match=words):
            run_directory.save(run, agent)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# To be looked at, and ended early.


def test_ended_early_it_is_on_the_schedule_of_the_whole_run(
    tmp_path, finished, tiny, maze_file, quick
):
    run, looked = tmp_path / "run", []

    def look(agent):
        assert checkpoint_steps(run)[0] == int(agent.step)
        assert_same_arrays(trained_agent(run), agent)
        looked.append(int(agent.step))

    agent = train(*start_run(tiny, maze_file, run), run, workers=1, until=20, look=look)
    assert int(agent.step) == 20 and checkpoint_steps(run) == [20, 15] and looked == [10, 15, 20]
    agent = train(
        *resume_run(run, tiny), run, workers=1, until=20, look=lambda _: pytest.fail("looked")
    )
    assert int(agent.step) == 20, "it is there already"
    go_on(run, tiny)
    assert_same_run(run, finished)


def test_no_episodes_are_no_evaluation(tmp_path, monkeypatch, tiny, maze_file):
    run = tmp_path / "run"
    monkeypatch.setattr(runs, "run_episodes", lambda *_, **__: pytest.fail("evaluated"))
    config = replace(tiny, episodes=0)
    agent = train(*start_run(config, maze_file, run), run, workers=1, until=20)
    assert int(agent.step) == 20 and not (run / "evaluation.jsonl").exists()


def test_data_that_are_loaded_already_are_not_loaded_again(tmp_path, monkeypatch, tiny, maze_file):
    run = tmp_path / "run"
    data = start_run(tiny, maze_file, tmp_path / "other")[1]
    monkeypatch.setattr(runs, "load_dataset", lambda *_: pytest.fail("loaded"))
    assert start_run(tiny, maze_file, run, data)[1] is data
    assert resume_run(run, tiny, maze_file, data)[1] is data


# Directories that are no runs, and runs that are asked for something else.


def test_start_refuses_a_directory_with_something_in_it(tmp_path, tiny, maze_file):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        RunError, match="exists and is not empty; continue it with --resume or choose"
    ):
        start_run(tiny, maze_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_start_leaves_nothing_where_the_data_or_the_settings_are_wrong(tmp_path, tiny, maze_file):
    with pytest.raises(FileNotFoundError, match="no such file"):
        start_run(tiny, tmp_path / "missing.npz", tmp_path / "run")
    out_of_reach = replace(tiny, control=replace(tiny.control, target=((9.0, 9.0),)))
    with pytest.raises(ValueError, match="between 0 and ln"):
        start_run(out_of_reach, maze_file, tmp_path / "run")
    with pytest.raises(ValueError, match="the nearest name is"):
        start_run(replace(tiny, task="pointmaze-mini-navigate-v0"), maze_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_names_every_setting_that_differs(finished, tiny):
    other = replace(tiny, seed=4, critic=replace(tiny.critic, d_model=64))
    words = r"other settings \(seed: 4 instead of 3; critic.d_model: 64 instead of 32\)"
    with pytest.raises(RunError, match=words):
        resume_run(finished, other)


def test_resume_without_settings_takes_the_run_s_own(stopped, tiny):
    agent, _ = resume_run(stopped)
    assert agent.config == tiny and int(agent.step) == 25


@pytest.mark.parametrize("change", ["missing", "another"])
def test_resume_refuses_other_data(change, finished, tiny, tmp_path, maze_file):
    run, elsewhere = shutil.copytree(finished, tmp_path / "run"), tmp_path / "data.npz"
    if change == "another":
        elsewhere.write_bytes(maze_file.read_bytes() + b"0")
    about = json.loads((run / "config.json").read_text())
    about["dataset"]["file"] = str(elsewhere)
    (run / "config.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=f"{elsewhere}: is not the file that .* was trained on"):
        resume_run(run, tiny)


# Acting.


def test_an_evaluation_that_is_recorded_is_not_repeated(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    agent, content = trained_agent(run), (run / "evaluation.jsonl").read_bytes()
    monkeypatch.setattr(runs, "run_episodes", lambda *_, **__: pytest.fail("run again"))
    three = runs.evaluate_run(agent, run, episodes=3, workers=1)
    assert len(three["policy"]) == len(three["behaviour"]) == 3
    assert (run / "evaluation.jsonl").read_bytes() == content
    monkeypatch.setattr(runs, "run_episodes", scripted_episodes)
    five = runs.evaluate_run(agent, run, episodes=5, workers=1)
    assert [episode.seed for episode in five["policy"]] == [3, 4, 5, 6, 7]
    assert five["policy"][:3] == three["policy"]
    assert (run / "evaluation.jsonl").read_bytes().startswith(content)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    elsewhere = tmp_path / "new" / "episodes.jsonl"
    assert runs.evaluate_run(agent, run, episodes=5, workers=1, out=elsewhere) == five
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert len(recorded_episodes(elsewhere)) == 10


def test_a_real_evaluation(finished, tmp_path, monkeypatch):
    """In the simulator, with episodes cut short."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluation.jsonl").unlink()
    monkeypatch.setattr(runs, "run_episodes", partial(run_episodes, max_steps=7, progress=False))
    results = runs.evaluate_run(trained_agent(run), run, episodes=2, workers=1)
    rows = recorded_episodes(run / "evaluation.jsonl")
    assert [(row["step"], row["policy"], row["episode"], row["length"]) for row in rows] == [
        (40, policy, episode, 7) for policy in ("policy", "behaviour") for episode in (0, 1)
    ]
    assert [row["return"] for row in rows] == [-7.0] * 4
    assert results["policy"][1].seed == rows[1]["seed"] == rows[3]["seed"]


def test_policies_by_name(finished):
    agent = trained_agent(finished)
    states, episodes = np.ones((3, 2), np.float32), np.arange(3)
    one_step, behaviour = (
        runs.wave_policy(agent, name)(states, episodes, 0) for name in ("policy", "behaviour")
    )
    key = jr.fold_in(jr.fold_in(jr.split(jr.key(3), 4)[3], 1), 0)
    z, actor = jr.normal(key, (2,)), agent.actor.model
    np.testing.assert_allclose(one_step[1], actor.act(jnp.ones(2), z), rtol=1e-5)
    np.testing.assert_allclose(behaviour[1], actor.behaviour(jnp.ones(2), z), rtol=1e-5)
    with pytest.raises(RunError, match="no policy 'random'; choose one of policy, behaviour"):
        runs.wave_policy(agent, "random")


def test_a_critic_alone_trains_and_has_no_policy(critic_alone):
    agent = trained_agent(critic_alone)
    assert int(agent.step) == 40 and not (critic_alone / "evaluation.jsonl").exists()
    steps = [line["step"] for line in run_directory.read_metrics(critic_alone)]
    assert steps == list(range(5, 41, 5))
    with pytest.raises(RunError, match="trained a critic only"):
        runs.evaluate_run(agent, critic_alone, episodes=1, workers=1)


# A real process.

OPTIONS = (
    "--steps 600 --batch-size 7 --warmup 2 --critic.d-model 32 --critic.layers 1 --actor.hidden 16 "
    "--updates-per-call 5 --log-every 5 --checkpoint-every 20 --evaluate-every 600 --episodes 1 "
    "--workers 1 --seed 3"
)


def last_step(run):
    """Of the metrics on disk at this moment."""
    try:
        content = (run / "metrics.jsonl").read_bytes()
        return int(re.findall(rb'^{"step": (\d+), .*\n', content, re.MULTILINE)[-1])
    except (FileNotFoundError, IndexError):
        return 0


@pytest.mark.slow
def test_a_process_killed_and_signalled_at_random_ends_bit_for_bit_the_same(
    tmp_path, tiny, maze_file
):
    """kill -9, SIGTERM, kill -9, SIGHUP, Ctrl-C, then to the end; against a run that nothing
    interrupted."""
    rng, run = random.Random(5), tmp_path / "run"
    environment = dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="1", PYTHONUNBUFFERED="1")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "tql", "train", tiny.task, *OPTIONS.split()]
    command += ["--data", maze_file, "--out", run]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kills = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT)
    for number in kills:
        resume = ["--resume"] if run.exists() else []
        process = subprocess.Popen(
            [*command, *resume], env=environment, cwd=Path(__file__).parents[1], **pipes
        )
        try:
            goal = last_step(run) + rng.randrange(30, 100)
            while last_step(run) < goal and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        logged, config = last_step(run), run_directory.read_settings(run).config
        for path in run_directory.checkpoints(run):
            load_checkpoint(path, config)
        newest = int(trained_agent(run).step)
        assert "Traceback" not in errors
        if number is signal.SIGKILL:
            assert process.returncode == -9 and newest >= (logged - 1) // 20 * 20 > 0
        else:
            assert process.returncode == 1 and newest == logged
            said = f"tql: stopped by {number.name} at update {newest}; saved. Go on with --resume."
            assert errors.splitlines()[-1] == said

    go_on(run, config)
    train(*start_run(config, maze_file, tmp_path / "whole"), tmp_path / "whole", workers=1)
    steps = [line["step"] for line in run_directory.read_metrics(run)]
    assert steps == list(range(5, 601, 5)) and checkpoint_steps(run) == [600, 580]
    assert_same_run(run, tmp_path / "whole")
