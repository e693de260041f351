"""The protocol: success of the last step, waves, the same numbers for any number of workers, and
the interval of a rate."""

import json
import math

import equinox as eqx
import hypothesis.strategies as st
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import Array

from tql.ogbench import evaluate
from tql.ogbench.environment import Environments, SeededEnvironment, make
from tql.ogbench.evaluate import (
    Episode,
    act_on_wave,
    as_policy,
    episode_seed,
    episodes_of,
    record_episodes,
    recorded_episodes,
    run_episodes,
    summary,
    wilson,
)
from tql.ogbench.tasks import Task

CUBE = Task.parse("cube-single-play-singletask-task1-v0")
MAZE = Task.parse("pointmaze-medium-navigate-singletask-task1-v0")


class Sines:
    """A policy by hand, of the observation, the episode and the step. It keeps what it saw."""

    def __init__(self, n_a):
        self.n_a, self.seen = n_a, {}

    def __call__(self, observations, episodes, step):
        for observation, episode in zip(observations, episodes.tolist(), strict=True):
            self.seen[episode, step] = observation.copy()
        phase = observations.sum(axis=1, keepdims=True) + episodes[:, None] + 0.3 * step
        return np.sin(phase + np.arange(self.n_a)).astype(np.float32)


def run(task=MAZE, n_a=2, *, episodes, max_steps, **changes):
    """The episodes, and every observation that the policy saw of them."""
    policy = Sines(n_a)
    how = dict(seed=7, workers=1, progress=False, episodes=episodes, max_steps=max_steps) | changes
    finished = run_episodes(policy, task, **how)
    numbers = [(i, t) for i in range(episodes) for t in range(max_steps)]
    return finished, np.stack([policy.seen[number] for number in numbers])


@pytest.mark.parametrize(
    ("task", "n_a", "episodes", "wave", "steps"), [(MAZE, 2, 11, 5, 17), (CUBE, 5, 3, 2, 7)]
)
def test_1_2_and_4_workers_give_the_same_episodes(task, n_a, episodes, wave, steps):
    how = dict(episodes=episodes, wave=wave, max_steps=steps)
    runs = [run(task, n_a, workers=workers, **how) for workers in (1, 2, 4)]
    assert runs[0][0] == runs[1][0] == runs[2][0]
    np.testing.assert_array_equal(runs[1][1], runs[0][1])
    np.testing.assert_array_equal(runs[2][1], runs[0][1])
    assert len(np.unique(runs[0][1], axis=0)) == episodes * steps, "no two observations alike"
    assert [episode.length for episode in runs[0][0]] == [steps] * episodes
    assert len({episode.seed for episode in runs[0][0]}) == episodes


def test_an_episode_does_not_depend_on_how_many_there_are():
    eleven, observations = run(episodes=11, wave=5, max_steps=13)
    three, same_observations = run(episodes=3, wave=5, max_steps=13)
    assert three == eleven[:3]
    np.testing.assert_array_equal(same_observations, observations[: 3 * 13])
    other, other_observations = run(episodes=3, wave=5, max_steps=13, seed=8)
    assert other != three and not np.isin(other_observations, observations).any()


def test_an_episode_is_what_a_loop_by_hand_gives():
    """Episode 3 (the second wave of 2) against OGBench stepped directly."""
    policy, episode = Sines(2), 3
    environment = SeededEnvironment(MAZE, max_episode_steps=19)
    observation = environment.reset(episode_seed(7, episode))
    total, length, ended = 0.0, 0, False
    while not ended:
        action = policy(observation[None].astype(np.float32), np.array([episode]), length)[0]
        observation, reward, ended, success = environment.step(action)
        total, length = total + reward, length + 1
    finished, observations = run(episodes=4, wave=2, max_steps=19)
    assert finished[3] == Episode(episode_seed(7, episode), total, length, success)
    np.testing.assert_array_equal(observations[3 * 19 :], [policy.seen[3, t] for t in range(19)])


class ScriptedEnvironments(Environments):
    """Stands for `Environments`: episode i plays `plays[i]`, a list of successes. The reward of a
    step is its number."""

    plays = [
        *[[True, False, False], [False, True], [False] * 5, [True]],
        *[[True, True, False, True], [False, True, False]],
    ]
    alive = most_alive = 0
    resets = []

    def __init__(self, task, *, size, workers, max_episode_steps):
        self.size, self.started = size, 0
        cls = type(self)
        cls.resets, cls.alive, cls.most_alive = [], size, max(cls.most_alive, size)

    def reset(self, seeds):
        assert len(seeds) <= self.size
        self.first, self.started, self.clock = self.started, self.started + len(seeds), 0
        type(self).resets.append(list(seeds))
        return np.full((self.size, 3), 0.5, np.float32)

    def step(self, actions, running):
        assert actions.shape == (self.size, 2)
        rewards, ended, success = np.zeros(self.size), ~running, np.zeros(self.size, bool)
        for slot in np.flatnonzero(running):
            play = self.plays[self.first + slot]
            success[slot], rewards[slot] = play[self.clock], self.clock
            ended[slot] = len(play) == self.clock + 1
        self.clock += 1
        return np.full((self.size, 3), 0.5, np.float32), rewards, ended, success

    def __exit__(self, *_):
        type(self).alive = 0


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(evaluate, "Environments", ScriptedEnvironments)
    ScriptedEnvironments.alive = ScriptedEnvironments.most_alive = 0
    return ScriptedEnvironments


@pytest.mark.parametrize("wave", [1, 2, 3, 4, 5, 6, 7, 10])
def test_success_is_that_of_the_last_step_and_waves_are_bounded(scripted, wave):
    seen = []

    def policy(observations, episodes, step):
        seen.append((observations.shape, episodes.tolist()))
        assert observations.dtype == np.float32
        return np.zeros((len(observations), 2), np.float32)

    episodes = run_episodes(policy, MAZE, episodes=6, seed=0, wave=wave, progress=False)
    last = [play[-1] for play in scripted.plays]
    assert [episode.success for episode in episodes] == last
    assert last != [any(play) for play in scripted.plays], "counting any success would be seen"
    assert [episode.length for episode in episodes] == [3, 2, 5, 1, 4, 3]
    assert [episode.total_reward for episode in episodes] == [3, 1, 10, 0, 6, 3]
    seeds = [episode_seed(0, i) for i in range(6)]
    assert [episode.seed for episode in episodes] == sum(scripted.resets, []) == seeds
    assert scripted.most_alive == min(wave, 6) and scripted.alive == 0
    assert {shape for shape, _ in seen} == {(wave, 3)}, "one shape, so one compilation"
    waves = [list(range(first, first + wave)) for first in range(0, 6, wave)]
    changes = [i for i in range(len(seen)) if i == 0 or seen[i - 1][1] != seen[i][1]]
    assert [seen[i][1] for i in changes] == waves


def still(observations, episodes, step):
    return np.zeros((len(observations), 2), np.float32)


def test_the_protocols_defaults(scripted, monkeypatch):
    monkeypatch.setattr(scripted, "plays", [[True]] * 50)
    episodes = run_episodes(still, MAZE, seed=0, progress=False)
    assert len(episodes) == 50 and scripted.most_alive == 10


def test_ogbenchs_own_step_limit_ends_an_episode():
    (episode,) = run_episodes(still, MAZE, episodes=1, seed=0, workers=1, progress=False)
    assert (episode.length, episode.total_reward, episode.success) == (1000, -1000.0, False)


def test_a_solved_maze_ends_with_success():
    """OGBench's own shortest path, far below the limit of 1000 steps. The reward is -1 for every
    step but the last."""
    maze = make(MAZE).unwrapped
    goal = np.array(maze.ij_to_xy((6, 6)))

    def policy(observations, episodes, step):
        aims = np.stack([maze.get_oracle_subgoal(xy, goal)[0] for xy in observations])
        ahead = aims - observations
        lengths = np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-6)
        return (ahead / lengths).astype(np.float32)

    episodes = run_episodes(policy, MAZE, episodes=3, seed=1, wave=2, progress=False)
    assert all(episode.success and 50 < episode.length < 1000 for episode in episodes)
    assert all(episode.total_reward == -(episode.length - 1) for episode in episodes)


def test_actions_that_cannot_be_used_name_the_episode_and_the_step():
    def act(actions):
        observations, episodes = np.zeros((2, 3), np.float32), np.array([4, 5])
        return act_on_wave(lambda o, e, t: actions, observations, episodes, 9, wave=4)

    bad = np.zeros((4, 2), np.float32)
    bad[1] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf.*episode 5, environment step 9"):
        act(bad)
    with pytest.raises(ValueError, match=r"gave actions of shape \(3, 2\), not \(4, n_a\)"):
        act(bad[:3])
    np.testing.assert_array_equal(act(np.full((4, 1), 1.5, np.float32)), np.ones((2, 1)))


def test_no_episodes_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        run(episodes=0, max_steps=1)


class NoisyLinear(eqx.Module):
    """Shows its noise as the action, and counts how often it is traced."""

    weight: Array
    traces = []

    def __call__(self, s, key):
        self.traces.append(1)
        return self.weight * s[:2] + jr.normal(key, (2,))


def test_noise_comes_from_the_episode_and_the_step_alone(getkey):
    key = getkey()
    policy = as_policy(NoisyLinear(jnp.float32(0.0)), key)
    episodes, zeros = np.array([13, 2, 7]), np.zeros((3, 5), np.float32)
    actions = policy(zeros, episodes, 11)
    by_hand = [jr.normal(jr.fold_in(jr.fold_in(key, int(i)), 11), (2,)) for i in episodes]
    np.testing.assert_array_equal(actions, np.stack(by_hand))
    np.testing.assert_array_equal(policy(zeros + 1, episodes[::-1], 11), actions[::-1])
    assert not np.array_equal(policy(zeros, episodes, 12), actions)


def test_one_compilation_for_all_waves_steps_and_weights(getkey, scripted):
    NoisyLinear.traces.clear()
    for weight in (1.0, 2.0):
        policy = as_policy(NoisyLinear(jnp.float32(weight)), getkey())
        run_episodes(policy, MAZE, episodes=5, seed=3, wave=3, progress=False)
    assert len(NoisyLinear.traces) == 1


# The interval.


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [
        # z^2 = 3.841459; 0 of 50: 0 to z^2 / (50 + z^2); 50 of 50: its mirror image.
        (0, 50, (0.0, 0.0713476)),
        (50, 50, (0.9286524, 1.0)),
        # 25 of 50: 1/2 +- z / (2 sqrt(50 + z^2)).
        (25, 50, (0.3664440, 0.6335560)),
        # 1 of 1: n / (n + z^2) = 1 / 4.841459.
        (1, 1, (0.2065493, 1.0)),
        # 12 of 50: (0.24 + 0.03841459 +- 1.959964 sqrt(0.003648 + 0.00036894)) / 1.07682918.
        (12, 50, (0.1429739, 0.3741268)),
    ],
)
def test_wilson_by_hand(successes, n, interval):
    np.testing.assert_allclose(wilson(successes, n), interval, atol=2e-6)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_wilsons_ends_are_where_the_score_test_rejects(case):
    successes, n = case
    p, p_hat = wilson(successes, n)[0], successes / n
    assert p_hat - p == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / n), abs=1e-9)
    mirrored = wilson(n - successes, n)
    np.testing.assert_allclose(1 - mirrored[1], p, atol=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_not_a_rate(successes, n):
    with pytest.raises(ValueError, match="no such rate"):
        wilson(successes, n)


# The record.

EPISODES = [
    *[Episode(31, -200.0, 200, False), Episode(37, -56.0, 57, True)],
    Episode(41, -200.0, 200, False),
]


def test_summary_is_a_sentence():
    assert summary(EPISODES) == "solved 1 of 3 episodes: 33% (95 % interval 6% to 79%)"


def test_a_record_has_every_number_and_never_repeats(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    assert recorded_episodes(path) == []
    record_episodes(path, 1000, "tql", EPISODES[:2])
    record_episodes(path, 1000, "tql", EPISODES)
    record_episodes(path, 1000, "behaviour flow", EPISODES)
    record_episodes(path, 2000, "tql", EPISODES)
    record_episodes(path, 2000, "tql", [Episode(43, -200.0, 200, False)])  # another seed
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == recorded_episodes(path)
    expected = dict(step=1000, policy="tql", episode=1, seed=37, length=57, success=True)
    assert rows[1] == expected | {"return": -56.0}
    assert [(row["step"], row["policy"], row["episode"], row["seed"]) for row in rows] == [
        *[(1000, "tql", i, e.seed) for i, e in enumerate(EPISODES)],
        *[(1000, "behaviour flow", i, e.seed) for i, e in enumerate(EPISODES)],
        *[(2000, "tql", i, e.seed) for i, e in enumerate(EPISODES)],
        (2000, "tql", 0, 43),
    ]
    assert episodes_of(rows, 1000, "behaviour flow") == EPISODES


def test_a_crash_at_any_byte_is_mended_by_recording_again(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    record_episodes(path, 0, "tql", EPISODES[:1])
    before = path.read_bytes()
    record_episodes(path, 5, "tql", EPISODES)
    whole = path.read_bytes()
    for end in range(len(before), len(whole)):
        path.write_bytes(whole[:end])
        assert len(recorded_episodes(path)) == whole[:end].count(b"\n")
        record_episodes(path, 5, "tql", EPISODES)
        assert path.read_bytes() == whole


ROW = {"step": 0, "policy": "tql", "episode": 1, "seed": 37, "return": -56.0, "length": 57}
ROW |= {"success": True}
DAMAGE = {
    **{"[1]": "not a JSON object", "not json": "Expecting value", "\xff": "decode"},
    **{"": "Expecting value", "[" * 9**5: "recursion"},
    **{json.dumps(ROW | {"success": 1}): "the field 'success' is 1, expected bool"},
    **{json.dumps(ROW | {"step": -1}): "the field 'step' is -1, expected int in .0"},
    **{json.dumps(ROW | {"seed": 1.5}): "the field 'seed' is 1.5, expected int"},
    **{json.dumps(ROW | {"return": "much"}): "the field 'return' is \"much\", expected float"},
    **{json.dumps(ROW | {"return": math.nan}): "the field 'return' is NaN, expected float in"},
    **{json.dumps(ROW | {"length": True}): "the field 'length' is true, expected int in .1"},
    **{json.dumps({"step": 3}): "the field 'policy' is missing, expected str"},
}


@pytest.mark.parametrize("line", DAMAGE)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "evaluation.jsonl"
    record_episodes(path, 0, "tql", EPISODES)
    lines = path.read_bytes().split(b"\n")
    lines[1] = line.encode("latin-1")
    path.write_bytes(b"\n".join(lines))
    wrong = f"evaluation.jsonl, line 2: not the record of an episode .*{DAMAGE[line]}.*; mend or"
    with pytest.raises(ValueError, match=wrong) as caught:
        record_episodes(path, 1, "tql", EPISODES)
    assert "\n" not in str(caught.value) and path.read_bytes() == b"\n".join(lines)


def test_episode_seeds_differ_within_and_between_evaluations():
    seeds = [episode_seed(seed, episode) for seed in range(7) for episode in range(50)]
    assert len(set(seeds)) == 350 and all(0 <= seed < 2**32 for seed in seeds)
