"""The protocol: success of the last step, waves, the same numbers for any worker count, and the interval of a rate."""

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

from tql import evaluate
from tql.config import Task
from tql.environment import Environments, SeededEnvironment, make
from tql.evaluate import Episode, act_on_wave, as_policy, episode_seed, record, recorded, run_episodes, summary, wilson

CUBE = Task.parse("cube-single-play-singletask-task1-v0")
MAZE = Task.parse("pointmaze-medium-navigate-singletask-task1-v0")


class Sines:
    """A policy by hand, of the observation, the episode and the step. It keeps what it saw: trajectories, bit for bit."""

    def __init__(self, n_a):
        self.n_a, self.seen = n_a, {}

    def __call__(self, observations, episodes, step):
        for observation, episode in zip(observations, episodes.tolist(), strict=True):
            self.seen[episode, step] = observation.copy()
        phase = observations.sum(axis=1, keepdims=True) + episodes[:, None] + 0.3 * step + np.arange(self.n_a)
        return np.sin(phase).astype(np.float32)


def run(task=MAZE, n_a=2, *, episodes, max_steps, **settings):
    """The episodes, and every observation that the policy saw of them."""
    policy = Sines(n_a)
    settings = dict(seed=7, workers=1, progress=False, episodes=episodes, max_steps=max_steps) | settings
    finished = run_episodes(policy, task, **settings)
    return finished, np.stack([policy.seen[i, t] for i in range(episodes) for t in range(max_steps)])


@pytest.mark.parametrize(("task", "n_a", "episodes", "wave", "steps"), [(MAZE, 2, 11, 5, 17), (CUBE, 5, 3, 2, 7)])
def test_1_2_and_4_workers_give_the_same_episodes(task, n_a, episodes, wave, steps):
    runs = [run(task, n_a, episodes=episodes, wave=wave, max_steps=steps, workers=workers) for workers in (1, 2, 4)]
    assert runs[0][0] == runs[1][0] == runs[2][0]
    np.testing.assert_array_equal(runs[1][1], runs[0][1])
    np.testing.assert_array_equal(runs[2][1], runs[0][1])
    assert len(np.unique(runs[0][1], axis=0)) == episodes * steps, "no two observations alike, so that this says much"
    assert [episode.length for episode in runs[0][0]] == [steps] * episodes
    assert len({episode.seed for episode in runs[0][0]}) == episodes


def test_an_episode_does_not_depend_on_how_many_there_are():
    eleven, observations = run(episodes=11, wave=5, max_steps=13)
    three, same_observations = run(episodes=3, wave=5, max_steps=13)
    assert three == eleven[:3]
    np.testing.assert_array_equal(same_observations, observations[: 3 * 13])
    other, other_observations = run(episodes=3, wave=5, max_steps=13, seed=8)
    assert other != three and not np.isin(other_observations, observations).any()


def test_evaluations_that_share_environments_give_the_same_episodes():
    alone = [run(episodes=7, wave=3, max_steps=13, seed=seed) for seed in (0, 1)]
    with Environments(MAZE, size=3, workers=2, max_episode_steps=13) as shared:
        for seed in (0, 1, 0):
            finished, observations = run(episodes=7, wave=3, max_steps=13, seed=seed, environments=shared)
            assert finished == alone[seed][0]
            np.testing.assert_array_equal(observations, alone[seed][1])
        with pytest.raises(ValueError, match="open environments are 3, the wave is 10"):
            run(episodes=7, max_steps=13, environments=shared)


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
    """Stands for `Environments`: episode i plays `plays[i]`, a list of successes; the reward of a step is its number."""

    plays = [[True, False, False], [False, True], [False] * 5, [True], [True, True, False, True], [False, True, False]]
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
            success[slot], ended[slot], rewards[slot] = play[self.clock], len(play) == self.clock + 1, self.clock
        self.clock += 1
        return np.full((self.size, 3), 0.5, np.float32), rewards, ended, success

    def __enter__(self):
        return self

    def __exit__(self, *_):
        type(self).alive = 0


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(evaluate, "Environments", ScriptedEnvironments)
    ScriptedEnvironments.alive = ScriptedEnvironments.most_alive = 0
    return ScriptedEnvironments


@pytest.mark.parametrize("wave", [1, 2, 3, 4, 5, 6, 7, 10])
def test_success_is_that_of_the_last_step_and_waves_are_bounded(scripted, wave):
    shapes = []

    def policy(observations, episodes, step):
        shapes.append((observations.shape, episodes.tolist()))
        assert observations.dtype == np.float32
        return np.zeros((len(observations), 2), np.float32)

    episodes = run_episodes(policy, MAZE, episodes=6, seed=0, wave=wave, progress=False)
    last = [play[-1] for play in scripted.plays]
    assert [episode.success for episode in episodes] == last
    assert last != [any(play) for play in scripted.plays], "so that counting any success would be seen"
    assert [episode.length for episode in episodes] == [3, 2, 5, 1, 4, 3]
    assert [episode.total_reward for episode in episodes] == [3, 1, 10, 0, 6, 3]
    assert [episode.seed for episode in episodes] == sum(scripted.resets, []) == [episode_seed(0, i) for i in range(6)]
    assert scripted.most_alive == min(wave, 6) and scripted.alive == 0
    assert {shape for shape, _ in shapes} == {(wave, 3)}, "one shape, so one compilation"
    waves = [list(range(first, first + wave)) for first in range(0, 6, wave)]
    assert [numbers for i, (_, numbers) in enumerate(shapes) if i == 0 or shapes[i - 1][1] != numbers] == waves


def test_the_protocols_defaults(scripted, monkeypatch):
    monkeypatch.setattr(scripted, "plays", [[True]] * 50)
    episodes = run_episodes(lambda o, e, t: np.zeros((len(o), 2), np.float32), MAZE, seed=0, progress=False)
    assert len(episodes) == 50 and scripted.most_alive == 10


def test_ogbenchs_own_step_limit_ends_an_episode():
    def still(observations, episodes, step):
        return np.zeros((len(observations), 2), np.float32)

    (episode,) = run_episodes(still, MAZE, episodes=1, seed=0, workers=1, progress=False)
    assert (episode.length, episode.total_reward, episode.success) == (1000, -1000.0, False)


def test_a_solved_maze_ends_with_success():
    """OGBench's own shortest path, far below the limit of 1000 steps. The reward is -1 for every step but the last."""
    maze = make(MAZE).unwrapped
    goal = np.array(maze.ij_to_xy((6, 6)))

    def policy(observations, episodes, step):
        aims = np.stack([maze.get_oracle_subgoal(xy, goal)[0] for xy in observations]) - observations
        return (aims / np.maximum(np.linalg.norm(aims, axis=1, keepdims=True), 1e-6)).astype(np.float32)

    episodes = run_episodes(policy, MAZE, episodes=3, seed=1, wave=2, progress=False)
    assert all(episode.success and 50 < episode.length < 1000 for episode in episodes)
    assert all(episode.total_reward == -(episode.length - 1) for episode in episodes)


def test_actions_that_cannot_be_used_name_the_episode_and_the_step():
    observations, episodes = np.zeros((2, 3), np.float32), np.array([4, 5])
    bad = np.zeros((4, 2), np.float32)
    bad[1] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf.*episode 5, environment step 9"):
        act_on_wave(lambda o, e, t: bad, observations, episodes, 9, wave=4)
    with pytest.raises(ValueError, match=r"gave actions of shape \(3, 2\)"):
        act_on_wave(lambda o, e, t: bad[:3], observations, episodes, 9, wave=4)
    clipped = act_on_wave(lambda o, e, t: np.full((4, 1), 1.5, np.float32), observations, episodes, 9, wave=4)
    np.testing.assert_array_equal(clipped, np.ones((2, 1)))


def test_no_episodes_is_an_error():
    with pytest.raises(ValueError, match="at least 1 episode"):
        run(episodes=0, max_steps=1)


class NoisyLinear(eqx.Module):
    """Shows its noise as the action, so that a test can see it; counts how often it is traced."""

    weight: Array
    traces = []

    def __call__(self, observation, key):
        self.traces.append(1)
        return self.weight * observation[:2] + jr.normal(key, (2,))


def test_noise_comes_from_the_episode_and_the_step_alone(getkey):
    key = getkey()
    policy = as_policy(NoisyLinear(jnp.float32(0.0)), key)
    episodes = np.array([13, 2, 7])
    actions = policy(np.zeros((3, 5), np.float32), episodes, 11)
    by_hand = [jr.normal(jr.fold_in(jr.fold_in(key, int(i)), 11), (2,)) for i in episodes]
    np.testing.assert_array_equal(actions, np.stack(by_hand))
    np.testing.assert_array_equal(policy(np.ones((3, 5), np.float32), episodes[::-1], 11), actions[::-1])
    assert not np.array_equal(policy(np.zeros((3, 5), np.float32), episodes, 12), actions)


def test_one_compilation_for_all_waves_steps_and_weights(getkey, scripted):
    NoisyLinear.traces.clear()
    for weight in (1.0, 2.0):
        policy = as_policy(NoisyLinear(jnp.float32(weight)), getkey())
        run_episodes(policy, MAZE, episodes=5, seed=3, wave=3, progress=False)
    assert len(NoisyLinear.traces) == 1


def test_a_jax_policy_gives_the_same_episodes_for_1_and_2_workers(getkey):
    policy = as_policy(NoisyLinear(jnp.float32(0.1)), getkey())
    one, two = (run_episodes(policy, MAZE, episodes=5, seed=3, wave=3, workers=w, max_steps=9, progress=False) for w in (1, 2))
    assert one == two


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
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(case):
    """The ends are where the score test |p_hat - p| / sqrt(p (1 - p) / n) reaches z, found by bisection."""
    successes, n = case

    def accepted(p):
        return abs(successes / n - p) <= 1.959963984540054 * math.sqrt(p * (1 - p) / n)

    def edge(inside, outside):
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
        return inside

    low, high = wilson(successes, n)
    assert low == (0 if successes == 0 else pytest.approx(edge(successes / n, 0.0), abs=1e-9))
    assert high == (1 if successes == n else pytest.approx(edge(successes / n, 1.0), abs=1e-9))
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n)
    np.testing.assert_allclose((1 - mirrored[1], 1 - mirrored[0]), (low, high), atol=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_rate(successes, n):
    with pytest.raises(ValueError, match="no such rate"):
        wilson(successes, n)


EPISODES = [Episode(31, -200.0, 200, False), Episode(37, -56.0, 57, True), Episode(41, -200.0, 200, False)]


def test_summary_is_a_sentence():
    assert summary(EPISODES) == "solved 1 of 3 episodes: 33% (95 % interval 6% to 79%)"


def test_a_record_has_every_number_and_never_repeats(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    assert recorded(path) == []
    record(path, 1000, "tql", EPISODES[:2])
    record(path, 1000, "tql", EPISODES)
    record(path, 1000, "behaviour flow", EPISODES)
    record(path, 2000, "tql", EPISODES)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == recorded(path)
    assert rows[1] == dict(step=1000, policy="tql", episode=1, seed=37, length=57, success=True) | {"return": -56.0}
    assert [(row["step"], row["policy"], row["episode"]) for row in rows] == [
        *[(1000, "tql", i) for i in range(3)],
        *[(1000, "behaviour flow", i) for i in range(3)],
        *[(2000, "tql", i) for i in range(3)],
    ]


def test_an_evaluation_with_another_seed_is_kept_too(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    record(path, 1000, "tql", EPISODES)
    record(path, 1000, "tql", [Episode(43, -200.0, 200, False)])
    assert [row["seed"] for row in recorded(path)] == [31, 37, 41, 43]


def test_a_crash_at_any_byte_is_mended_by_recording_again(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    record(path, 0, "tql", EPISODES[:1])
    before = path.read_bytes()
    record(path, 5, "tql", EPISODES)
    whole = path.read_bytes()
    for end in range(len(before), len(whole)):
        path.write_bytes(whole[:end])
        assert len(recorded(path)) == whole[:end].count(b"\n")
        record(path, 5, "tql", EPISODES)
        assert path.read_bytes() == whole


def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    record(path, 0, "tql", EPISODES)
    for damage in (b"{}", b"[1]", b"not json", b"\xff\x00"):
        damaged = path.read_bytes().split(b"\n")
        damaged[1] = damage
        path.write_bytes(b"\n".join(damaged))
        with pytest.raises(ValueError, match=r"evaluation.jsonl, line 2: not the record"):
            record(path, 1, "tql", EPISODES)
        assert path.read_bytes() == b"\n".join(damaged)


def test_episode_seeds_differ_within_and_between_evaluations():
    seeds = [episode_seed(seed, episode) for seed in range(7) for episode in range(50)]
    assert len(set(seeds)) == 350 and all(0 <= seed < 2**32 for seed in seeds)
