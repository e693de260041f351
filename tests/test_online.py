"""The online phase: stopped and killed anywhere it goes on bit for bit, it learns from the dataset
and from what the environment gave, resets move what they should, and wrong runs are refused."""

import os
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import MAZE, trained
from hypothesis import HealthCheck, given, settings
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

import records

from tql.__main__ import main
from tql.agent import seed_keys
from tql.analysis import plot
from tql.analysis.online_study import OnlinePhase, complete_online, is_complete_online
from tql.ogbench.dataset import load_dataset
from tql.ogbench.environment import Environments
from tql.ogbench.evaluate import episode_seed, recorded_episodes
from tql.ogbench.tasks import Task
from tql.training import online, run_directory
from tql.training.checkpoint import named_arrays
from tql.training.methods import method_class
from tql.training.online import acting_key, acting_seed, finetune, resume_online, start_online
from tql.training.online_config import OnlineConfig
from tql.training.replay import Replay
from tql.training.resets import PARTS, reset
from tql.training.run import Interrupted, resume_run
from tql.training.run_directory import (
    RunError,
    checkpoint_steps,
    newest_state,
    read_settings,
    trained_agent,
)

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

OPTIONS = dict(environment_steps=30, updates_per_step=2, reset_every=13, reset="heads")
OPTIONS |= dict(log_every=5, checkpoint_every=10, evaluate_every=15, episodes=3)


class Killed(BaseException):
    """Stands for kill -9: nothing of the run's code may answer it."""


class Walks(Environments):
    """Stands for `Environments`: one walk in the plane, with a wind that only the seed and the
    steps so far determine. It is solved on the left and on the right, and ends after 7 steps."""

    before_step = staticmethod(lambda: None)

    def __init__(self, task, *, size, workers):
        assert (task.name, size, workers) == (MAZE, 1, 1)

    def __exit__(self, *_):
        pass

    def reset(self, seeds):
        (self.seed,) = seeds
        self.wind = np.random.default_rng(self.seed)
        self.s, self.t = self.wind.uniform(-1, 1, 2).astype(np.float32), 0
        return self.s[None].copy()

    def step(self, actions, running):
        self.before_step()
        assert actions.shape == (1, 2) and actions.dtype == np.float32 and running.all()
        self.s = (self.s + actions[0] / 3 + self.wind.normal(0, 0.1, 2)).astype(np.float32)
        self.t += 1
        success = bool(abs(self.s[0]) > 0.6)
        ended = success or self.t == 7
        reward = float(success) - 1
        return self.s[None].copy(), np.array([reward]), np.array([ended]), np.array([success])


@pytest.fixture(autouse=True)
def walks(monkeypatch):
    monkeypatch.setattr(online, "Environments", Walks)
    monkeypatch.setattr(online, "LONGEST_EPISODE", 7)


def begin(run, out, **changes):
    return start_online(run, out, OPTIONS | changes)


def go_on(run, out, **changes):
    return finetune(*resume_online(run, out, OPTIONS | changes), out, workers=1)


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """An online phase that nothing interrupted. It is not to be changed."""
    out = tmp_path_factory.mktemp("online") / "whole"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        from conftest import scripted_episodes

        patch.setattr("tql.training.run.run_episodes", scripted_episodes)
        patch.setattr(online, "Environments", Walks)
        patch.setattr(online, "LONGEST_EPISODE", 7)
        finetune(*begin(finished, out), out, workers=1)
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def metrics_of(out):
    return [line | {"time": 0} for line in run_directory.read_metrics(out)]


def assert_same(out, other):
    """All that two online phases left: every array, every line."""
    ours, theirs = (newest_state(x, read_settings(x).whole) for x in (out, other))
    ours, theirs = named_arrays(ours), named_arrays(theirs)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert metrics_of(out) == metrics_of(other) and metrics_of(out)
    for name in ("evaluation.jsonl", "episodes.jsonl"):
        assert (out / name).read_bytes() == (other / name).read_bytes()
    assert checkpoint_steps(out)[0] == checkpoint_steps(other)[0]


# ---- what it leaves ------------------------------------------------------------------------------


def test_an_uninterrupted_phase_is_what_the_settings_say(finished, whole):
    """40 updates before it, 2 a step."""
    lines = run_directory.read_metrics(whole)
    assert [line["environment_steps"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert [line["step"] for line in lines] == [50, 60, 70, 80, 90, 100]
    assert checkpoint_steps(whole) == [100, 80]
    rows = recorded_episodes(whole / "evaluation.jsonl")
    steps = [(row["step"], row["policy"]) for row in rows[::3]]
    both = ("policy", "behaviour")
    assert steps == [(step, name) for step in (40, 70, 100) for name in both]
    before = [row for row in recorded_episodes(finished / "evaluation.jsonl") if row["step"] == 40]
    assert rows[:6] == before, "the run's last evaluation is its first"
    learnt = recorded_episodes(whole / "episodes.jsonl")
    assert [row["episode"] for row in learnt] == list(range(len(learnt))) and len(learnt) > 3
    assert [row["seed"] for row in learnt] == [acting_seed(3, i) for i in range(len(learnt))]
    ends = np.cumsum([row["length"] for row in learnt])
    assert [row["step"] for row in learnt] == (40 + 2 * ends).tolist()
    assert all(-row["return"] == row["length"] - row["success"] for row in learnt)
    settings = read_settings(whole)
    assert settings.config == read_settings(finished).config
    assert settings.online.buffer_size == 68 + 30 and settings.online.updates_per_step == 2
    assert int(trained_agent(whole).step) == 100


def test_the_run_is_left_as_it_is(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = contents(run)
    finetune(*begin(run, tmp_path / "out"), tmp_path / "out", workers=1)
    assert contents(run) == before


def test_the_buffer_is_the_dataset_and_what_the_environment_gave(
    finished, whole, maze_file, monkeypatch
):
    """The walks by hand, with the actions in the buffer."""
    data, _ = load_dataset(Task.parse(MAZE), maze_file)
    state = newest_state(whole, read_settings(whole).whole)
    ring = Replay.start(data, 98).with_window(68, state.rows, 98)
    for ours, theirs in zip(jax.tree.leaves(ring.rows), jax.tree.leaves(data)):
        np.testing.assert_array_equal(ours[:68], theirs)
    walk, rows, episode = Walks(Task.parse(MAZE), size=1, workers=1), state.rows, 0
    moved = []
    (s,) = walk.reset([acting_seed(3, 0)])
    for i in range(30):
        np.testing.assert_array_equal(rows.s[i], s)
        (s,), (r,), (ended,), (success,) = walk.step(np.asarray(rows.a[i])[None], np.ones(1, bool))
        np.testing.assert_array_equal(rows.s_next[i], s)
        assert (rows.r[i], rows.m[i]) == (r, 1 - success)
        assert np.all(np.abs(rows.a_next[i]) <= 1)
        if not ended and i not in (12, 25, 29):
            # The next action comes from two updates later; both have the same noise.
            moved.append(np.max(np.abs(rows.a_next[i] - rows.a[i + 1])))
        if ended:
            episode += 1
            (s,) = walk.reset([acting_seed(3, episode)])
    assert 0 < max(moved) < 0.1
    assert (int(state.episode), int(state.length)) == (episode, walk.t)
    np.testing.assert_array_equal(state.s, s)
    assert len({*np.asarray(rows.m).tolist()}) == 2, "some are solved, so that masks are seen"


def test_a_step_is_what_a_loop_by_hand_gives(finished, maze_file, tmp_path):
    """One environment step with two updates: the batches are drawn from 69 rows."""
    out, agent = tmp_path / "out", trained_agent(finished)
    one = dict(environment_steps=1, buffer_size=98, log_every=1, checkpoint_every=1, episodes=0)
    after = finetune(*begin(finished, out, evaluate_every=1, **one), out, workers=1)
    data, _ = load_dataset(Task.parse(MAZE), maze_file)
    walk = Walks(Task.parse(MAZE), size=1, workers=1)
    (s,) = walk.reset([acting_seed(3, 0)])
    noise = lambda t: jr.fold_in(jr.fold_in(acting_key(3), 0), t)
    act = lambda s, t: np.asarray(agent.policy("policy")(jnp.asarray(s), noise(t)), np.float32)
    a = act(s, 0)
    (s_next,), r, _, (success,) = walk.step(a[None], np.ones(1, bool))
    new = (s, a, r[0], 1 - success, s_next, act(s_next, 1))
    values = jax.tree.leaves(data)
    rows = jax.tree.unflatten(
        jax.tree.structure(data),
        [jnp.concatenate([x, jnp.asarray(y, x.dtype)[None]]) for x, y in zip(values, new)],
    )
    update = eqx.filter_jit(lambda agent, batch, key: agent.update(batch, key)[0])
    for _ in range(2):
        k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
        drawn = jr.randint(k_batch, (7,), 0, 69)
        agent = update(agent, jax.tree.map(lambda x: x[drawn], rows), k_update)
    for name, array in named_arrays(agent).items():
        np.testing.assert_allclose(named_arrays(after)[name], array, atol=1e-5, err_msg=name)


# ---- stopped and continued -----------------------------------------------------------------------


@settings(
    deadline=None,
    derandomize=True,
    max_examples=4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.tuples(st.sampled_from(["kill", "signal"]), st.integers(1, 40)),
                      min_size=1, max_size=3))
def test_however_often_stopped_it_ends_bit_for_bit_the_same(stops, finished, whole):
    """At the n-th environment step of each try, also one that is only played again."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        state, data = begin(finished, out)
        for kind, calls in stops:
            left = iter(range(calls, 0, -1))

            def stop():
                if next(left, None) == 1:
                    if kind == "kill":
                        raise Killed
                    os.kill(os.getpid(), signal.SIGTERM)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Walks, "before_step", staticmethod(stop))
                try:
                    finetune(state, data, out, workers=1)
                except Killed:
                    pass
                except Interrupted as stopped:
                    saved = (checkpoint_steps(out)[0] - 40) // 2
                    assert f"by SIGTERM at environment step {saved}; saved" in str(stopped)
                    assert saved % 5 == 0
            state, data = resume_online(finished, out, {})
        finetune(state, data, out, workers=1)
        assert_same(out, whole)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    calls=st.integers(1, 40),
    name=st.sampled_from(["os.replace", "os.fsync", "pathlib.Path.unlink", "pathlib.Path.touch"]),
)
def test_killed_in_the_middle_of_writing_it_goes_on_bit_for_bit(calls, name, finished, whole):
    module, function = name.rsplit(".", 1)
    owner = Path if module == "pathlib.Path" else os
    original, left = getattr(owner, function), iter(range(calls, 0, -1))

    def dies(*arguments, **options):
        if next(left, None) == 1:
            raise Killed
        return original(*arguments, **options)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        state, data = begin(finished, out)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, dies)
            try:
                finetune(state, data, out, workers=1)
            except Killed:
                pass
        go_on(finished, out)
        assert_same(out, whole)
        assert [path.name for path in out.glob(".*")] == [".lock"], "no half of a file stays"


@pytest.fixture
def stopped(finished, tmp_path, monkeypatch):
    """Killed in the middle of an episode, after the checkpoint at environment step 10."""
    out, left = tmp_path / "stopped", iter(range(17, 0, -1))

    def stop():
        if next(left, None) == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Walks, "before_step", staticmethod(stop))
        with pytest.raises(Killed):
            finetune(*begin(finished, out), out, workers=1)
    assert checkpoint_steps(out)[0] == 70
    return out


def test_an_environment_that_comes_back_elsewhere_is_refused(stopped, finished, monkeypatch):
    state, data = resume_online(finished, stopped, {})
    assert int(state.length) > 0
    step = Walks.step

    def another_version(self, actions, running):
        s, *rest = step(self, actions, running)
        return s + np.float32(1e-6), *rest

    monkeypatch.setattr(Walks, "step", another_version)
    with pytest.raises(RunError, match="did not come back to where it was.*another version"):
        finetune(state, data, stopped, workers=1)


def test_a_ring_that_has_wrapped_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    """68 rows of data in 71 places: after 30 steps 27 of them are gone."""
    for name, kill in (("whole", 0), ("stopped", 27)):
        left, out = iter(range(kill, 0, -1)), tmp_path / name

        def stop():
            if next(left, None) == 1:
                raise Killed

        monkeypatch.setattr(Walks, "before_step", staticmethod(stop))
        state, data = begin(finished, out, buffer_size=71)
        try:
            finetune(state, data, out, workers=1)
        except Killed:
            go_on(finished, out, buffer_size=71)
    assert_same(tmp_path / "stopped", tmp_path / "whole")


# ---- seeds ---------------------------------------------------------------------------------------


def test_no_randomness_is_used_twice():
    seeds = {acting_seed(3, i) for i in range(97)} | {episode_seed(3, i) for i in range(97)}
    assert len(seeds | {acting_seed(4, i) for i in range(97)}) == 3 * 97
    keys = [*seed_keys(3), acting_key(3), acting_key(4)]
    assert len({tuple(jr.key_data(key).tolist()) for key in keys}) == 6


# ---- resets --------------------------------------------------------------------------------------

MOVED = {
    "critic": lambda name: name.startswith(("critic.", "target_critic.")),
    "heads": lambda name: name.startswith(("critic.", "target_critic.")) and "q_heads" in name,
    "all": lambda name: not name.startswith(("step", "key")),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_reset_moves_exactly_what_it_should(what, finished):
    """Everything that is reset differs from before, but for what is 0 or 1 in a fresh agent too."""
    agent = trained_agent(finished)
    before, after = named_arrays(agent), named_arrays(reset(agent, what, 13))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if MOVED[what](name)}
    for name in moved:
        if ".mu" in name or ".nu" in name or name.endswith("count"):
            assert not np.any(after[name]), f"{name}: what the optimiser remembers is gone"
    critic, target = ({x: after[x] for x in after if x.startswith(y)}
                      for y in ("critic.model", "target_critic"))
    if what != "heads":
        assert all(map(np.array_equal, critic.values(), target.values()))
    others = named_arrays(reset(agent, what, 26)), named_arrays(reset(agent, what, 13))
    weight = "critic.model.q_heads[0].out.weight"
    assert not np.array_equal(others[0][weight], after[weight])
    np.testing.assert_array_equal(others[1][weight], after[weight])


def test_resets_come_when_they_should(finished, tmp_path, monkeypatch):
    came = []
    keep = lambda agent, what, t: came.append((what, t, int(agent.step))) or reset(agent, what, t)
    monkeypatch.setattr(online, "reset", keep)
    finetune(*begin(finished, tmp_path / "out", reset="critic"), tmp_path / "out", workers=1)
    assert came == [("critic", 13, 66), ("critic", 26, 92)]


# ---- what is refused -----------------------------------------------------------------------------


def test_a_run_that_cannot_go_on_is_refused(finished, whole, critic_alone, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="trained a critic only .* no policy to act with"):
        begin(critic_alone, out)
    with pytest.raises(RunError, match="is an online phase itself"):
        begin(whole, out)
    with pytest.raises(RunError, match="holds no run of tql"):
        begin(tmp_path / "nowhere", out)
    half = shutil.copytree(finished, tmp_path / "half")
    run_directory.checkpoints(half)[0].unlink()
    with pytest.raises(RunError, match="has made 30 of its 40 updates; finish it first"):
        begin(half, out)
    with pytest.raises(ValueError, match="buffer_size is 67; it must be at least 68"):
        begin(finished, out, buffer_size=67)
    assert not out.exists()
    with pytest.raises(RunError, match="exists and is not empty"):
        begin(finished, finished)


def test_other_settings_than_it_began_with_are_refused(stopped, finished, whole, tmp_path):
    before = contents(stopped)
    wrong = dict(environment_steps=5, updates_per_step=1, reset="all", episodes=0)
    for name, value in wrong.items():
        with pytest.raises(RunError, match=f"other settings .*{name}: {value} instead of"):
            resume_online(finished, stopped, {name: value})
    other = shutil.copytree(finished, tmp_path / "other")
    config = (other / "config.json").read_text().replace('"seed": 3', '"seed": 4')
    (other / "config.json").write_text(config)
    with pytest.raises(RunError, match="other settings .seed: 4 instead of 3"):
        resume_online(other, stopped, {})
    with pytest.raises(RunError, match="is a run of train, not an online phase"):
        resume_online(finished, finished, {})
    with pytest.raises(RunError, match="is an online phase; go on with: tql finetune"):
        resume_run(stopped)
    assert contents(stopped) == before


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(environment_steps=0), r"environment_steps is 0; it must lie in \[1"),
        (dict(updates_per_step=0), r"updates_per_step is 0"),
        (dict(reset_every=-1), r"reset_every is -1; it must lie in \[0"),
        (dict(checkpoint_every=7), "checkpoint_every 7 is no multiple of log_every 5"),
        (dict(environment_steps=31), "environment_steps 31 is no multiple of log_every 5"),
        (dict(reset="actor"), "reset is 'actor'; it must be one of critic, heads, all"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        OnlineConfig(**OPTIONS | dict(buffer_size=98) | changes)


@pytest.fixture(scope="module")
def imitator(tmp_path_factory, tiny, maze_file):
    """A finished run of BC, whose policy is no part of a critic."""
    config = method_class("bc").presets["pocket"](MAZE)
    names = ("steps", "batch_size", "updates_per_call", "log_every", "checkpoint_every")
    names += ("evaluate_every", "episodes", "seed", "warmup")
    same = {name: getattr(tiny, name) for name in names if hasattr(config, name)}
    config = replace(config, hidden=(11,), **same)
    return trained(config, maze_file, tmp_path_factory.mktemp("runs") / "bc")


def test_another_method_goes_on_too_but_has_nothing_to_reset(imitator, tmp_path):
    with pytest.raises(ValueError, match="resetting 'critic' is defined for tql alone, not for bc"):
        begin(imitator, tmp_path / "out", reset="critic")
    agent = finetune(*begin(imitator, tmp_path / "out", reset_every=0), tmp_path / "out", workers=1)
    assert int(agent.step) == 100
    assert int(trained_agent(tmp_path / "out").step) == 100


def test_a_method_that_trains_on_more_than_transitions_is_refused(
    imitator, tmp_path, monkeypatch
):
    kind = type(trained_agent(imitator))
    monkeypatch.setattr(kind, "prepare", lambda self, data: (self, (data, data.r)))
    with pytest.raises(RunError, match="bc trains on more than single transitions"):
        begin(imitator, tmp_path / "out", reset_every=0)
    assert not (tmp_path / "out").exists()


# ---- the command line, and figures ---------------------------------------------------------------


@pytest.fixture(name="tql")
def command_line(monkeypatch, capfd):
    """Runs a command in this process; gives what it printed, or its message."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return str(left.code)
        return capfd.readouterr().out

    return call


WORDS = "--environment-steps 30 --updates-per-step 2 --reset-every 13 --reset heads --log-every 5 "
WORDS = (WORDS + "--checkpoint-every 10 --evaluate-every 15 --episodes 3").split()


def test_finetune_resume_evaluate_plot(tql, finished, whole, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    said, out = tql("finetune", run, *WORDS), tmp_path / "run-online"
    assert "policy before: solved 1 of 3" in said and "after: solved 1 of 3" in said, said
    assert "episodes that it learnt from: " in said and (out / "plot.png").exists()
    assert_same(out, whole)
    assert "exists and is not empty" in tql("finetune", run, *WORDS)
    assert f"plot: {out / 'plot.png'}" in tql("finetune", run, "--resume")
    said = tql("finetune", run, "--resume", "--environment-steps", 5)
    assert "environment_steps: 5 instead of 30" in said and "\n" not in said
    assert_same(out, whole)
    assert "policy at update 100: solved 1 of 5" in tql("evaluate", out, "--episodes", 5)
    assert "is an online phase" in tql("train", MAZE, "--resume", "--out", out)


def test_what_the_command_needs_is_said(tql, finished, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "give --environment-steps" in tql("finetune", finished, *out)
    said = tql("finetune", finished, "--environment-steps", 100, "--reset", "all", *out)
    assert "--reset all: give --reset-every too" in said
    said = tql("finetune", finished, "--environment-steps", 150, *out)
    assert "environment_steps 150 is no multiple of log_every 100" in said
    assert "at least 1 process" in tql("finetune", finished, *WORDS, "--workers", 0, *out)
    assert not (tmp_path / "out").exists()


def test_a_plot_is_over_environment_steps(whole, tmp_path, monkeypatch):
    figures = []
    keep = lambda **how: figures.append(Figure(**how)) or figures[-1]
    monkeypatch.setattr(plot, "Figure", keep)
    plot.plot_run(shutil.copytree(whole, tmp_path / "run"))
    losses, entropy, *_, success, learnt = figures[0].axes[:7]
    assert losses.lines[0].get_xdata().tolist() == [5, 10, 15, 20, 25, 30]
    assert success.containers[0].lines[0].get_xdata().tolist() == [0, 15, 30]
    assert {axis.get_xlabel() for axis in figures[0].axes[:7]} == {"environment steps"}
    rows = recorded_episodes(whole / "episodes.jsonl")
    assert learnt.lines[0].get_xdata().tolist() == np.cumsum([x["length"] for x in rows]).tolist()
    assert learnt.lines[0].get_ydata()[-1] == np.mean([x["success"] for x in rows][-20:])
    assert "2 updates a step and a reset (heads) every 13 steps" in figures[0].get_suptitle()


def test_a_phase_of_a_study_is_brought_to_its_end_once(finished, whole, maze_file, tmp_path):
    config, settings = read_settings(finished).config, read_settings(whole).online
    phase, out = OnlinePhase("finished", config, settings), tmp_path / "out"
    assert not is_complete_online(out, phase)
    complete_online(phase, maze_file, finished, out, workers=1)
    assert_same(out, whole)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    complete_online(phase, maze_file, finished, out, workers=1)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    other = replace(phase, online=replace(settings, updates_per_step=1))
    with pytest.raises(RunError, match="holds a run of other settings"):
        is_complete_online(out, other)
    run_directory.checkpoints(out)[0].unlink()
    assert not is_complete_online(out, phase)


def test_a_record_of_a_phase_has_what_the_picture_needs(whole, tmp_path):
    """30 steps: checkpoints after 10, 20 and 30. An episode counts for the first at or after its
    end."""
    record = records.record_of(whole, "online-tql-x2-heads-seed3", whole=True)
    records.write([record], "mine", tmp_path)
    (record,) = records.read("mine", tmp_path)
    assert record.config["online"]["updates_per_step"] == 2 and record.config["steps"] == 40
    assert record.metrics["environment_steps"] == [5, 10, 15, 20, 25, 30]
    assert record.success().keys() == {40, 70, 100} and record.entropy.shape == (6, 1, 2)
    rows = recorded_episodes(whole / "episodes.jsonl")
    bins = {60: [], 80: [], 100: []}
    for row in rows:
        bins[next(end for end in bins if row["step"] <= end)].append(row["success"])
    assert record.success("learning") == {end: np.mean(x) for end, x in bins.items() if x}
    first, last = record.metrics["step"][0], record.metrics["step"][-1]
    assert (first, last) == (50, 100)


# ---- the real environment ------------------------------------------------------------------------


def test_in_the_real_maze_a_killed_phase_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    """300 environment steps of one episode, killed after 237, with 200 of them saved."""
    how = dict(environment_steps=300, updates_per_step=1, reset_every=0, log_every=50)
    how |= dict(checkpoint_every=100, evaluate_every=300, episodes=0)
    count, step = iter(range(237, 0, -1)), Environments.step

    def dies(self, *arguments):
        if next(count, None) == 1:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(online, "Environments", Environments)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(*begin(finished, whole, **how), whole, workers=1)
    monkeypatch.setattr(Environments, "step", dies)
    with pytest.raises(Killed):
        finetune(*begin(finished, stopped, **how), stopped, workers=1)
    assert checkpoint_steps(stopped)[0] == 240
    agent = go_on(finished, stopped, **how)
    assert int(agent.step) == 340
    states = [newest_state(x, read_settings(x).whole) for x in (whole, stopped)]
    ours, theirs = map(named_arrays, states)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert metrics_of(whole) == metrics_of(stopped)
    assert len(np.unique(states[0].rows.s, axis=0)) > 290, "the point moves"
