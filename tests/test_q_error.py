"""The error of Q: the returns of an episode, by hand; what is said of a critic that is right; the
policy's own episodes; and who measures it."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MAZE as MAZE_NAME
from conftest import tiny_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

from records import Record, record_of

from tql.analysis import q_error as measured
from tql.analysis import study
from tql.analysis.q_error import FIRST, WAVE, episode_returns, own_returns, q_error
from tql.analysis.study import complete, is_complete
from tql.critic import AbstractCritic
from tql.ogbench.environment import Environments, SeededEnvironment
from tql.ogbench.evaluate import episode_seed
from tql.ogbench.tasks import Task
from tql.training.methods import method_class, new_agent
from tql.training.run import wave_policy
from tql.training.run_directory import RunError, trained_agent
from tql.training.whole_file import typed

MAZE = Task.parse(MAZE_NAME)

# ---- the returns of an episode -------------------------------------------------------------------


def test_the_returns_of_a_solved_episode():
    """OGBench gives the reward 0 in the step that finds the task solved. In a task of two parts the
    reward is -2, then -1. By hand: G_3 = 0, G_2 = -1, G_1 = -1 - .5 = -1.5, G_0 = -2 - .75."""
    solved = np.array([False, False, False, True])
    G = episode_returns(np.array([-2.0, -1, -1, 0]), solved, 0.5)
    np.testing.assert_array_equal(G, [-2.75, -1.5, -1, 0])


def test_nothing_is_earned_after_the_task_is_solved():
    G = episode_returns(np.array([-1.0, 0, -1]), np.array([False, True, False]), 0.5)
    np.testing.assert_array_equal(G, [-1, 0, -2])


def test_an_unsolved_episode_earns_its_last_reward_for_ever():
    """A reward of -1 for ever is worth -1 / (1 - gamma) at every step."""
    G = episode_returns(-np.ones(7), np.zeros(7, bool), 0.97)
    np.testing.assert_allclose(G, np.full(7, -1 / 0.03), rtol=1e-12)
    G = episode_returns(np.array([-3.0, -2]), np.zeros(2, bool), 0.5)
    np.testing.assert_array_equal(G, [-5, -4])


# ---- Q against them ------------------------------------------------------------------------------


class Sums(AbstractCritic):
    """Q_1 and Q_2 have the mean `scale` (s_1 + 2 s_2 + 3 a_1) + `shift`."""

    scale: float = 1.0
    shift: float = 0.0
    n_s: int = eqx.field(static=True, default=2)
    n_a: int = eqx.field(static=True, default=1)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        Q = self.scale * (s[0] + 2 * s[1] + 3 * a[0]) + self.shift
        return jnp.stack([Q - 7, Q + 7])

    def with_attention(self, s, a):
        raise NotImplementedError


def pairs(rows=measured.CHUNK + 44):
    """More rows than are computed at a time, and what `Sums()` says of each."""
    rng = np.random.default_rng(3)
    s, a = (rng.integers(-8, 9, (rows, size)).astype(np.float32) for size in (2, 1))
    return s, a, (s[:, 0] + 2 * s[:, 1] + 3 * a[:, 0]).astype(float)


def test_a_critic_that_is_right_has_correlation_1_and_no_bias():
    s, a, G = pairs()
    found = q_error(Sums(), s, a, G)
    assert found == {"q_correlation": pytest.approx(1, abs=1e-12), "q_bias": 0}


def test_the_bias_is_above_0_where_Q_is_too_large():
    s, a, G = pairs()
    found = q_error(Sums(shift=1.5), s, a, G)
    assert found == {"q_correlation": pytest.approx(1, abs=1e-12), "q_bias": 1.5}


def test_a_correlation_has_a_sign_and_no_unit():
    s, a, G = pairs()
    found = q_error(Sums(scale=-4.0), s, a, G)
    assert found["q_correlation"] == pytest.approx(-1, abs=1e-12)
    assert found["q_bias"] == pytest.approx(-5 * G.mean(), abs=1e-12)


def test_a_correlation_by_hand():
    """Q = 0, 1, 2 and G = 0, 2, 1: the deviations are -1, 0, 1 and -1, 1, 0, so r = 1 / 2."""
    s = np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    found = q_error(Sums(), s, np.zeros((3, 1), np.float32), np.array([0.0, 2, 1]))
    assert found == {"q_correlation": pytest.approx(0.5, abs=1e-12), "q_bias": 0}


def test_what_does_not_vary_has_correlation_0():
    s, a, G = pairs()
    assert q_error(Sums(), s, a, np.full_like(G, 0.1))["q_correlation"] == 0
    found = q_error(Sums(scale=0.0, shift=0.1), s, a, G)
    assert found["q_correlation"] == 0 and found["q_bias"] == pytest.approx(0.1 - G.mean())


# ---- the policy's own episodes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent():
    return new_agent(2, 2, tiny_settings("cpu"))


class Scripted(Environments):
    """Stands for `Environments`: episode i ends after `lengths[i]` steps and is solved if it is
    short. The state is (number of the episode, step); a reward is -1, and 0 at success."""

    lengths = [3, 11, 1, 10, 9, 2, 2, 2, 2, 2, 11, 4]
    limit = 9

    def __init__(self, task, *, size, workers, max_episode_steps):
        self.size, self.first, self.next, self.seeds = size, 0, 0, []
        Scripted.last = self

    def reset(self, seeds):
        self.first, self.next, self.clock = self.next, self.next + len(seeds), 0
        self.seeds += seeds
        return self._states()

    def _states(self):
        numbers = self.first + np.arange(self.size)
        return np.stack([numbers, np.full(self.size, self.clock)], axis=1).astype(np.float32)

    def step(self, actions, running):
        self.clock += 1
        ends = np.array((self.lengths + [0] * self.size)[self.first : self.first + self.size])
        ended = ~running | (self.clock == ends)
        success = running & ended & (ends < self.limit)
        return self._states(), np.where(running & ~success, -1.0, 0.0), ended, success

    def __exit__(self, *_):
        pass


def test_the_steps_of_two_waves(agent, monkeypatch):
    monkeypatch.setattr(measured, "Environments", Scripted)
    s, a, G = own_returns(agent, MAZE, episodes=12, seed=5)
    steps = {}
    for number, step in s.astype(int).tolist():
        steps.setdefault(number, []).append(step)
    assert steps == {i: list(range(length)) for i, length in enumerate(Scripted.lengths)}
    gamma = agent.config.discount
    np.testing.assert_allclose(G[:3], [-1 - gamma, -1, 0], rtol=1e-12)
    # The action is that of this state, with the noise of this episode and step.
    wave = np.zeros((WAVE, 2), np.float32)
    wave[1] = (1, 2)
    own = wave_policy(agent, "policy")(wave, FIRST + np.arange(WAVE), 2)[1]
    row = s.tolist().index([1, 2])
    np.testing.assert_array_equal(a[row], np.clip(own, -1, 1))
    # No episode of an evaluation.
    assert Scripted.last.seeds == [episode_seed(5, 10_000 + i) for i in range(12)]


def test_an_episode_is_what_a_loop_by_hand_gives(agent):
    """Episode 1 of 2 in OGBench's own maze, cut after 5 steps."""
    s, a, G = own_returns(agent, MAZE, episodes=2, seed=7, max_steps=5)
    assert s.shape == a.shape == (10, 2) and np.isfinite(G).all() and np.abs(a).max() <= 1
    environment = SeededEnvironment(MAZE, max_episode_steps=5)
    state, rewards = environment.reset(episode_seed(7, 10_001)), []
    policy = wave_policy(agent, "policy")
    for step in range(5):
        wave = np.zeros((WAVE, 2), np.float32)
        wave[1] = state
        action = np.clip(policy(wave, FIRST + np.arange(WAVE), step)[1], -1, 1)
        np.testing.assert_array_equal(s[5 + step], wave[1])
        np.testing.assert_array_equal(a[5 + step], action)
        state, reward, ended, success = environment.step(action)
        rewards.append(reward)
    assert ended and not success
    gamma = agent.config.discount
    rewards[-1] /= 1 - gamma
    for step in range(5):
        powers = gamma ** np.arange(5 - step)
        np.testing.assert_allclose(G[5 + step], powers @ rewards[step:], rtol=1e-12)


def test_a_critic_alone_has_no_returns_of_its_own():
    alone = new_agent(2, 2, tiny_settings("cpu-sarsa"))
    with pytest.raises(RunError, match="it has no policy to act with"):
        own_returns(alone, MAZE, seed=0)


# ---- who measures it -----------------------------------------------------------------------------


def scripted_returns(agent, task, *, seed, workers):
    """Stands for `own_returns`."""
    assert task == MAZE and seed == agent.config.seed and int(agent.step) == agent.config.steps
    s = np.random.default_rng(seed).uniform(-1, 1, (9, 2)).astype(np.float32)
    return s, s, np.arange(9.0)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(study, "own_returns", scripted_returns)


def test_a_run_that_acts_is_complete_once_it_is_measured(
    tmp_path, finished, tiny, maze_file, asked, optax_promotion
):
    """Also one that was killed between its last episode and this file."""
    run = shutil.copytree(finished, tmp_path / "run")
    complete(tiny, maze_file, run, workers=1)
    there = (run / "q_error.json").read_bytes()
    agent = trained_agent(run)
    steps = scripted_returns(agent, MAZE, seed=3, workers=1)
    assert json.loads(there) == q_error(agent.critic.model, *steps)
    (run / "q_error.json").unlink()
    assert not is_complete(run, tiny) and is_complete(run, tiny, 30)
    before = (run / "evaluation.jsonl").read_bytes()
    complete(tiny, maze_file, run, workers=1)
    assert is_complete(run, tiny) and (run / "q_error.json").read_bytes() == there
    assert (run / "evaluation.jsonl").read_bytes() == before

    line = json.loads(json.dumps(vars(record_of(run, "tql-seed3", whole=False)), default=vars))
    rounded = {name: float(f"{value:.6g}") for name, value in json.loads(there).items()}
    assert line["q_error"] == rounded and typed(line, Record, "the run").q_error == rounded
    (run / "q_error.json").unlink()
    assert record_of(run, "tql-seed3", whole=False).q_error is None


def test_who_is_not_asked():
    """Runs before their last update, critics alone, runs without episodes, and rivals."""
    tql, bc = tiny_settings("cpu"), method_class("bc").presets["pocket"](MAZE_NAME)
    due = study.q_error_due
    assert due(tql, ("policy", "behaviour"), 40) and not due(tql, ("policy", "behaviour"), 30)
    assert not due(tql, (), 40) and not due(replace(tql, episodes=0), ("policy",), 40)
    assert not due(bc, ("policy",), bc.steps)


def test_a_run_that_ends_early_or_cannot_act_is_not_measured(
    tmp_path, tiny, maze_file, monkeypatch, no_simulator, optax_promotion
):
    monkeypatch.setattr(study, "own_returns", lambda *_, **__: pytest.fail("measured"))
    early, alone = tmp_path / "early", tmp_path / "alone"
    complete(tiny, maze_file, early, workers=1, until=20)
    assert is_complete(early, tiny, 20)
    critic = tiny_settings("cpu-sarsa")
    complete(critic, maze_file, alone, workers=1)
    assert is_complete(alone, critic)
    assert not list(tmp_path.glob("*/q_error.json"))
