"""A run on disk: stopped and killed anywhere it goes on bit for bit, a NaN stops it, and bad directories are refused by name."""

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
from pathlib import Path

import equinox as eqx
import hypothesis.strategies as st
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import scripted_episodes
from hypothesis import HealthCheck, given, settings

from tql import checkpoint, run_directory
from tql import run as runs
from tql.checkpoint import named_arrays
from tql.config import Task
from tql.environment import WorkerError
from tql.evaluate import recorded, run_episodes
from tql.run import Interrupted
from tql.run_directory import Diverged, RunError

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")
shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


class Killed(BaseException):
    """Stands for kill -9: nothing of the run's code may answer it."""


@contextmanager
def before_chunk(hook):
    """Calls `hook(step, inputs, agent)` before every chunk; it may raise, send a signal, or return another agent."""
    compiled_chunk = runs.train_chunk

    class Hooked:
        def lower(self, inputs, agent):
            self.chunk = compiled_chunk.lower(inputs, agent).compile()
            return self

        def compile(self):
            return lambda inputs, agent: self.chunk(inputs, hook(int(agent.step), inputs, agent) or agent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train_chunk", Hooked())
        yield


def metrics_of(run):
    return [{name: value for name, value in line.items() if name != "time"} for line in run_directory.read_metrics(run)]


def steps_of(run):
    return [int(re.fullmatch(r"step-(\d{9})\.checkpoint", path.name)[1]) for path in run_directory.checkpoints(run)]


def assert_same_arrays(ours, theirs):
    ours, theirs = named_arrays(ours), named_arrays(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def assert_same_run(run, other):
    """All that two runs left: every array, every line."""
    assert_same_arrays(run_directory.trained_agent(run), run_directory.trained_agent(other))
    assert metrics_of(run) == metrics_of(other) and metrics_of(run)
    assert (run / "evaluation.jsonl").read_bytes() == (other / "evaluation.jsonl").read_bytes()
    assert steps_of(run)[0] == steps_of(other)[0] and len(steps_of(run)) == 2


def go_on(run, config):
    return runs.train(*runs.resume(run, Task.parse(config.task), config), run, workers=1)


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
    assert steps_of(finished) == [40, 30]
    rows = [json.loads(line) for line in (finished / "evaluation.jsonl").read_text().splitlines()]
    expected = itertools.product((15, 30, 40), ("policy", "behaviour"), range(3))
    assert [(row["step"], row["policy"], row["episode"]) for row in rows] == list(expected)
    assert len({row["return"] for row in rows}) > 9, "the weights show, so that this says much"
    about = json.loads((finished / "config.json").read_text())
    assert run_directory.read_settings(finished).config == tiny
    assert Path(about["dataset"]["file"]) == maze_file.resolve()
    assert {"jax", "equinox", "mujoco", "python"} < about["versions"].keys() and about["device"]
    high = 0.8 * np.log(5)
    np.testing.assert_allclose(about["target"], [[high - 0.5, high - 0.5]])


@settings(shared, max_examples=8)
@given(
    stops=st.lists(
        st.tuples(st.sampled_from([signal.SIGTERM, signal.SIGINT, "kill"]), st.integers(0, 7).map(lambda i: 5 * i)), min_size=1, max_size=3
    ).map(lambda stops: sorted(stops, key=lambda stop: stop[1]))
)
def test_however_often_stopped_it_ends_bit_for_bit_the_same(stops, finished, tiny, maze_file):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        agent, data = runs.start(tiny, maze_file, run)
        for kind, at in stops:
            try:
                with before_chunk(what_stops(kind, at)):
                    runs.train(agent, data, run, workers=1)
            except Interrupted as stopped:
                assert kind != "kill" and f"stopped by {kind.name} at update {at + 5}" in str(stopped)
                assert steps_of(run)[0] == at + 5, "saved at once, also between two checkpoints"
            except Killed:
                with open(run / "metrics.jsonl", "a") as log:
                    log.write('{"step": 45, "actor_')
            assert len(steps_of(run)) <= 2
            agent, data = runs.resume(run, Task.parse(tiny.task), tiny)
            if kind == "kill":
                assert int(agent.step) >= at - at % 10 - 10, "no more than the updates since the last checkpoint are lost"
            steps = [line["step"] for line in run_directory.read_metrics(run)]
            assert steps == list(range(5, int(agent.step) + 1, 5))
        runs.train(agent, data, run, workers=1)
        assert_same_run(run, finished)


@settings(shared, max_examples=10)
@given(calls=st.integers(1, 60), name=st.sampled_from(["os.replace", "os.fsync", "pathlib.Path.unlink", "pathlib.Path.touch"]))
def test_killed_in_the_middle_of_writing_it_goes_on_bit_for_bit(calls, name, finished, tiny, maze_file):
    """The process ends at the n-th call that touches the disk."""
    module, function = name.rsplit(".", 1)
    owner = Path if module == "pathlib.Path" else os
    original, left = getattr(owner, function), iter(range(calls, 0, -1))

    def dies(*arguments, **options):
        if next(left, None) == 1:
            raise Killed
        return original(*arguments, **options)

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        agent, data = runs.start(tiny, maze_file, run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, dies)
            try:
                runs.train(agent, data, run, workers=1)
            except Killed:
                pass
        for path in run_directory.checkpoints(run):
            checkpoint.load(path, tiny)
        go_on(run, tiny)
        assert_same_run(run, finished)
        assert not list(run.glob(".*")), "no half of a file stays"


def test_a_signal_during_an_evaluation_finds_the_state_saved(tmp_path, monkeypatch, finished, tiny, maze_file):
    """The evaluation at update 15, where no checkpoint is due."""
    run = tmp_path / "run"

    def signalled(policy, task, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return scripted_episodes(policy, task, **options)

    monkeypatch.setattr(runs, "run_episodes", signalled)
    with pytest.raises(Interrupted, match="SIGTERM during an evaluation"):
        runs.train(*runs.start(tiny, maze_file, run), run, workers=1)
    assert steps_of(run) == [15, 10] and not (run / "evaluation.jsonl").exists()
    monkeypatch.setattr(runs, "run_episodes", scripted_episodes)
    go_on(run, tiny)
    assert_same_run(run, finished)


@pytest.mark.parametrize("signalled", [True, False])
def test_simulators_that_end_by_the_same_signal_are_no_error(signalled, tmp_path, monkeypatch, tiny, maze_file):
    def ends(policy, task, **_):
        if signalled:
            os.kill(os.getpid(), signal.SIGINT)
        raise WorkerError("its process ended by itself.")

    monkeypatch.setattr(runs, "run_episodes", ends)
    with pytest.raises(Interrupted if signalled else WorkerError):
        runs.train(*runs.start(tiny, maze_file, tmp_path / "run"), tmp_path / "run", workers=1)


def test_signals_mean_what_they_did_after_training(tmp_path, tiny, maze_file):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with before_chunk(what_stops(signal.SIGTERM, 10)), pytest.raises(Interrupted):
        runs.train(*runs.start(tiny, maze_file, tmp_path / "run"), tmp_path / "run", workers=1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# Checkpoints of a run.


@pytest.fixture
def stopped(tmp_path, finished, tiny, maze_file) -> Path:
    """A run stopped at update 25: checkpoints 25 and 20."""
    run = tmp_path / "stopped"
    with before_chunk(what_stops(signal.SIGTERM, 20)), pytest.raises(Interrupted):
        runs.train(*runs.start(tiny, maze_file, run), run, workers=1)
    assert steps_of(run) == [25, 20]
    return run


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_refused_by_name_and_the_previous_one_used(stopped, capfd, finished, tiny):
    newest, previous = run_directory.checkpoints(stopped)
    damage(newest)
    assert int(run_directory.trained_agent(stopped).step) == 20
    assert f"refused: {newest}: is damaged" in capfd.readouterr().err and newest.exists()
    agent, data = runs.resume(stopped, Task.parse(tiny.task), tiny)
    assert int(agent.step) == 20 and [line["step"] for line in run_directory.read_metrics(stopped)] == [5, 10, 15, 20]
    assert steps_of(stopped) == [20] and newest.with_suffix(".refused").exists(), "out of the way, not lost"
    runs.train(agent, data, stopped, workers=1)
    assert_same_run(stopped, finished)


def test_episodes_of_updates_that_are_made_again_are_run_again(finished, tmp_path, tiny):
    """Evaluations were at 15, 30 and 40; the newest whole checkpoint is at 30."""
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run_directory.checkpoints(run)[0])
    runs.resume(run, Task.parse(tiny.task), tiny)
    assert [row["step"] for row in recorded(run / "evaluation.jsonl")] == [15] * 6 + [30] * 6
    # Nothing is rewritten where nothing is to be forgotten.
    before = (run / "evaluation.jsonl").stat().st_mtime_ns
    runs.resume(run, Task.parse(tiny.task), tiny)
    assert (run / "evaluation.jsonl").stat().st_mtime_ns == before


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(stopped, tiny):
    for path in run_directory.checkpoints(stopped):
        damage(path)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(RunError, match="none of its checkpoints can be used"):
        runs.resume(stopped, Task.parse(tiny.task), tiny)
    with pytest.raises(RunError, match="no usable checkpoint"):
        run_directory.trained_agent(stopped)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_leftovers_of_a_kill_are_harmless_and_cleared(stopped, finished, tiny):
    (stopped / ".step-000000030.checkpoint.123.tmp").write_bytes(b"half")
    (stopped / ".metrics.jsonl.123.tmp").write_bytes(b"half")
    assert int(run_directory.trained_agent(stopped).step) == 25
    go_on(stopped, tiny)
    assert_same_run(stopped, finished)
    assert not list(stopped.glob(".*"))


# NaN and Inf.


def first_draw(data, batch_size, key):
    """Which update draws each row first, by the rule that update k draws from fold_in(key, k)."""
    rows = np.full(len(data.rewards), -1)
    for update in range(40):
        k_batch, _ = jr.split(jr.fold_in(key, update))
        drawn = np.asarray(jr.randint(k_batch, (batch_size,), 0, len(rows)))
        rows[drawn] = np.where(rows[drawn] < 0, update, rows[drawn])
    return rows


def poisoned(data, row, value):
    return eqx.tree_at(lambda batch: batch.rewards, data, data.rewards.at[row].set(value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stops_within_its_chunk_and_says_which_loss_at_which_update(value, tmp_path, tiny, maze_file):
    run = tmp_path / "run"
    agent, data = runs.start(tiny, maze_file, run)
    when = first_draw(data, tiny.batch_size, agent.key)
    row = int(np.flatnonzero((when > 11) & (when % 5 == 2))[0])
    chunks = []
    with before_chunk(lambda step, *_: chunks.append(step)), pytest.raises(Diverged) as error:
        runs.train(agent, poisoned(data, row, value), run, workers=1)
    update = int(when[row])
    last = (update // 5 * 5) // 10 * 10 if update < 15 else max(15, update // 5 * 5 // 10 * 10)
    message = f"td_loss and target_mean became {value} and {value} at update {update}; training stopped"
    assert str(error.value).startswith(message) and f"checkpoint is {run / f'step-{last:09d}.checkpoint'}" in str(error.value)
    assert chunks[-1] == update // 5 * 5
    saved = run_directory.trained_agent(run)
    assert int(saved.step) == last == steps_of(run)[0]
    assert all(np.isfinite(array).all() for array in named_arrays(saved).values())
    assert all(np.isfinite(line["td_loss"]) for line in run_directory.read_metrics(run))


def test_nan_in_the_first_chunk(tmp_path, tiny, maze_file):
    agent, data = runs.start(tiny, maze_file, tmp_path / "run")
    with pytest.raises(Diverged, match="^td_loss and target_mean became nan and nan at update 0; .* checkpoint is none yet"):
        runs.train(agent, poisoned(data, slice(None), np.nan), tmp_path / "run", workers=1)


@pytest.mark.parametrize(
    "where",
    [
        lambda agent: agent.critic.tokenizer.v,
        lambda agent: agent.actor.flow.layers[0].bias,
        lambda agent: agent.controller.log_alpha,
        lambda agent: agent.critic_state[0].nu.final_norm.bias,
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_agent_that_is_not_finite_is_never_saved(where, value, stopped):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    agent = eqx.tree_at(where, run_directory.trained_agent(stopped), replace_fn=lambda x: jnp.full_like(x, value))
    with pytest.raises(Diverged, match=r"NaN or Inf in \w+[.\[].* after 25 updates; the last good checkpoint is .*step-000000025"):
        run_directory.save(stopped, agent)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


# To be looked at, and ended early.


def test_ended_early_it_is_on_the_schedule_of_the_whole_run(tmp_path, finished, tiny, maze_file):
    run, looked = tmp_path / "run", []
    agent = runs.train(*runs.start(tiny, maze_file, run), run, workers=1, until=20, look=lambda agent: looked.append(int(agent.step)))
    assert int(agent.step) == 20 and steps_of(run) == [20, 15] and looked == [10, 15, 20]
    agent = runs.train(*runs.resume(run, Task.parse(tiny.task), tiny), run, workers=1, until=20, look=lambda _: pytest.fail("looked"))
    assert int(agent.step) == 20, "it is there already"
    go_on(run, tiny)
    assert_same_run(run, finished)


def test_a_look_is_at_what_is_on_the_disk(tmp_path, tiny, maze_file):
    run = tmp_path / "run"

    def look(agent):
        assert steps_of(run)[0] == int(agent.step)
        assert_same_arrays(run_directory.trained_agent(run), agent)
        raise Killed

    with pytest.raises(Killed):
        runs.train(*runs.start(tiny, maze_file, run), run, workers=1, look=look)


def test_no_episodes_are_no_evaluation(tmp_path, monkeypatch, tiny, maze_file):
    run = tmp_path / "run"
    monkeypatch.setattr(runs, "run_episodes", lambda *_, **__: pytest.fail("evaluated"))
    agent = runs.train(*runs.start(replace(tiny, episodes=0), maze_file, run), run, workers=1, until=20)
    assert int(agent.step) == 20 and not (run / "evaluation.jsonl").exists()


def test_data_that_are_loaded_already_are_not_loaded_again(tmp_path, monkeypatch, tiny, maze_file):
    run, data = tmp_path / "run", runs.load(Task.parse(tiny.task), maze_file)[0]
    monkeypatch.setattr(runs, "load", lambda *_: pytest.fail("loaded"))
    assert runs.start(tiny, maze_file, run, data)[1] is data
    assert runs.resume(run, Task.parse(tiny.task), tiny, maze_file, data)[1] is data


# Directories that are no runs, and runs that are asked for something else.


def test_start_refuses_a_directory_with_something_in_it(tmp_path, tiny, maze_file):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not empty; continue it with --resume or choose another directory with --out"):
        runs.start(tiny, maze_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_start_leaves_nothing_where_the_data_or_the_settings_are_wrong(tmp_path, tiny, maze_file):
    with pytest.raises(FileNotFoundError, match="no such file"):
        runs.start(tiny, tmp_path / "missing.npz", tmp_path / "run")
    out_of_reach = replace(tiny, control=replace(tiny.control, target=((9.0, 9.0),)))
    with pytest.raises(ValueError, match="not between 0 and ln"):
        runs.start(out_of_reach, maze_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_names_every_setting_that_differs(stopped, tiny):
    other = replace(tiny, seed=4, critic=replace(tiny.critic, d_model=64))
    with pytest.raises(RunError, match=r"other settings \(seed: 4 instead of 3; critic.d_model: 64 instead of 32\)"):
        runs.resume(stopped, Task.parse(tiny.task), other)


def test_resume_refuses_another_task(stopped, tiny):
    with pytest.raises(RunError, match="was started on .*task1-v0, not on .*task2-v0"):
        runs.resume(stopped, Task.parse(tiny.task.replace("task1", "task2")), None)


def test_resume_without_settings_takes_the_run_s_own(stopped, tiny):
    agent, _ = runs.resume(stopped, Task.parse(tiny.task), None)
    assert agent.config == tiny and int(agent.step) == 25


@pytest.mark.parametrize("change", ["missing", "another"])
def test_resume_refuses_other_data(change, stopped, tiny, tmp_path, maze_file):
    elsewhere = tmp_path / "data.npz"
    if change == "another":
        elsewhere.write_bytes(maze_file.read_bytes() + b"0")
    about = json.loads((stopped / "config.json").read_text())
    about["dataset"]["file"] = str(elsewhere)
    (stopped / "config.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=f"{elsewhere}: is not the file that .* was trained on"):
        runs.resume(stopped, Task.parse(tiny.task), tiny)


# Acting.


def test_an_evaluation_that_is_recorded_is_not_repeated(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    agent, content = run_directory.trained_agent(run), (run / "evaluation.jsonl").read_bytes()
    monkeypatch.setattr(runs, "run_episodes", lambda *_, **__: pytest.fail("run again"))
    three = runs.evaluate(agent, run, episodes=3, workers=1)
    assert len(three["policy"]) == len(three["behaviour"]) == 3 and (run / "evaluation.jsonl").read_bytes() == content
    monkeypatch.setattr(runs, "run_episodes", scripted_episodes)
    five = runs.evaluate(agent, run, episodes=5, workers=1)
    assert [episode.seed for episode in five["policy"]] == [3, 4, 5, 6, 7] and five["policy"][:3] == three["policy"]
    assert (run / "evaluation.jsonl").read_bytes().startswith(content)


def test_a_real_evaluation(finished, tmp_path, monkeypatch):
    """In the simulator, with episodes cut short."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluation.jsonl").unlink()
    monkeypatch.setattr(runs, "run_episodes", partial(run_episodes, max_steps=7, progress=False))
    results = runs.evaluate(run_directory.trained_agent(run), run, episodes=2, workers=1)
    rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["policy"], row["episode"], row["length"]) for row in rows] == [
        (40, policy, episode, 7) for policy in ("policy", "behaviour") for episode in (0, 1)
    ]
    assert [row["return"] for row in rows] == [-7.0] * 4 and results["policy"][1].seed == rows[1]["seed"] == rows[3]["seed"]


def test_policies_by_name(finished):
    agent = run_directory.trained_agent(finished)
    states, episodes = np.ones((3, 2), np.float32), np.arange(3)
    one_step, behaviour = (runs.wave_policy(agent, name)(states, episodes, 0) for name in ("policy", "behaviour"))
    key = jr.fold_in(jr.fold_in(jr.split(jr.key(3), 4)[3], 1), 0)
    z = jr.normal(key, (2,))
    np.testing.assert_allclose(one_step[1], agent.actor.act(jnp.ones(2), z), rtol=1e-5)
    np.testing.assert_allclose(behaviour[1], agent.actor.behaviour(jnp.ones(2), z), rtol=1e-5)
    with pytest.raises(RunError, match="no policy 'random'; choose one of policy, behaviour"):
        runs.wave_policy(agent, "random")


def test_a_critic_alone_trains_and_has_no_policy(critic_alone):
    agent = run_directory.trained_agent(critic_alone)
    assert int(agent.step) == 40 and not (critic_alone / "evaluation.jsonl").exists()
    assert [line["step"] for line in run_directory.read_metrics(critic_alone)] == list(range(5, 41, 5))
    with pytest.raises(RunError, match="trained a critic only"):
        runs.evaluate(agent, critic_alone, episodes=1, workers=1)


# A real process.

OPTIONS = "--steps 600 --batch-size 7 --warmup 2 --critic.d-model 32 --critic.layers 1 --actor.hidden 16 --updates-per-call 5"
OPTIONS += " --log-every 5 --checkpoint-every 20 --evaluate-every 600 --episodes 1 --workers 1 --seed 3"


def last_step(run):
    """Of the metrics on disk at this moment."""
    try:
        return int(re.findall(rb'^{"step": (\d+), .*\n', (run / "metrics.jsonl").read_bytes(), re.MULTILINE)[-1])
    except (FileNotFoundError, IndexError):
        return 0


@pytest.mark.slow
def test_a_process_killed_and_signalled_at_random_ends_bit_for_bit_the_same(tmp_path, tiny, maze_file):
    """kill -9, SIGTERM, kill -9, Ctrl-C, then to the end; against a run that nothing interrupted."""
    rng, run = random.Random(5), tmp_path / "run"
    environment = dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="1", PYTHONPATH=str(Path(__file__).parents[1]), PYTHONUNBUFFERED="1")
    environment |= dict(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    command = [sys.executable, "-m", "tql", "train", tiny.task, *OPTIONS.split(), "--data", maze_file, "--out", run]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        resume = ["--resume"] if run.exists() else []
        process = subprocess.Popen([*command, *resume], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
            checkpoint.load(path, config)
        newest = int(run_directory.trained_agent(run).step)
        assert "Traceback" not in errors
        if number is signal.SIGKILL:
            assert process.returncode == -9 and newest >= (logged - 1) // 20 * 20 > 0
        else:
            assert process.returncode == 1 and newest == logged
            assert errors.splitlines()[-1] == f"tql: stopped by {number.name} at update {newest}; saved. Go on with --resume."

    go_on(run, config)
    runs.train(*runs.start(config, maze_file, tmp_path / "whole"), tmp_path / "whole", workers=1)
    assert [line["step"] for line in run_directory.read_metrics(run)] == list(range(5, 601, 5))
    assert steps_of(run) == [600, 580]
    assert_same_run(run, tmp_path / "whole")
