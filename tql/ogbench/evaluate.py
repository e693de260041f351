"""How often a policy solves its task in the real environment: seeded episodes, and the success rate
with its interval.

OGBench's protocol (the paper's section 5): 50 episodes. An episode ends when the task is solved or
at OGBench's step limit, and it is a success if `info["success"]` holds at its last step.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray
from tqdm import tqdm

from tql.ogbench.environment import Environments
from tql.ogbench.tasks import Task
from tql.ogbench.validate import check_fields

WavePolicy = Callable[
    [Float32[np.ndarray, "wave n_s"], Int[np.ndarray, " wave"], int],
    Float32[np.ndarray, "wave n_a"],
]
"""Actions for a wave of episodes, from their observations, their numbers and the environment step
that they have in common. `as_policy` makes one."""


@dataclass(frozen=True)
class Episode:
    """One episode: the seed it is made from, the sum of its rewards, its length in environment
    steps, and whether its last step was a success."""

    seed: int
    total_reward: float
    length: int
    success: bool


def episode_seed(seed: int, episode: int) -> int:
    """The seed of one episode. Evaluations with different seeds share no episodes."""
    return int(np.random.SeedSequence(seed, spawn_key=(episode,)).generate_state(1)[0])


def run_episodes(
    policy: WavePolicy,
    task: Task,
    *,
    episodes: int = 50,
    seed: int,
    workers: int = 2,
    wave: int = 10,
    max_steps: int | None = None,
    progress: bool = True,
) -> list[Episode]:
    """Runs episodes in waves of `wave`, which take that many environments (about 0.2 GB each).

    Episode i is the same for any number of workers and of episodes: its seed comes from `seed` and
    i, and the policy always sees `wave` rows (padded where episodes have ended), so that one
    compiled function computes every action. `max_steps` replaces OGBench's step limit, for tests.
    Raises `ValueError` for a policy that gives no usable action, and `WorkerError` where an
    environment fails.
    """
    if episodes < 1 or wave < 1:
        raise ValueError(f"episodes={episodes} and wave={wave} must be at least 1.")
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    finished = []
    limits = {"size": min(wave, episodes), "max_episode_steps": max_steps}
    shown = {} if progress else {"disable": True}  # if it is left out, $TQDM_DISABLE decides
    bar = tqdm(total=episodes, desc=f"evaluate {task.env_name}", unit="episode", **shown)
    with bar, Environments(task, workers=workers, **limits) as environments:
        count = lambda _, ended: bar.update(int(ended.sum()))
        for first in range(0, episodes, wave):
            now = seeds[first : first + wave]
            finished += play_wave(policy, environments, now, first, wave, count)
            bar.set_postfix(solved=sum(episode.success for episode in finished))
    return finished


def play_wave(
    policy: WavePolicy,
    environments: Environments,
    seeds: Sequence[int],
    first: int,
    wave: int,
    at_step: Callable[[int, Bool[np.ndarray, " size"]], Any],
) -> list[Episode]:
    """The episodes `first`, `first + 1`, ..., one per seed, until the last of them ends. `at_step`
    is called at the start and after each environment step, with its number and which episodes it
    ended."""
    size = environments.size
    observations = environments.reset(seeds)
    running = np.arange(size) < len(seeds)
    total_rewards, lengths = np.zeros(size), np.zeros(size, int)
    successes = np.zeros(size, bool)
    step = 0
    at_step(step, np.zeros(size, bool))
    while running.any():
        actions = act_on_wave(policy, observations, first + np.arange(size), step, wave)
        observations, rewards, ended, success = environments.step(actions, running)
        total_rewards += rewards
        lengths += running
        successes = np.where(running, success, successes)  # the last step's is the one that stays
        step += 1
        at_step(step, running & ended)
        running &= ~ended
    rows = zip(seeds, total_rewards.tolist(), lengths.tolist(), successes.tolist())
    return [Episode(*row) for row in rows]


def act_on_wave(
    policy: WavePolicy,
    observations: Float32[np.ndarray, "size n_s"],
    episodes: Int[np.ndarray, " size"],
    step: int,
    wave: int,
) -> Float32[np.ndarray, "size n_a"]:
    """The policy's actions, clipped to [-1, 1]. Episode i is row `i % wave` of a full wave, and the
    other rows are padding. Raises `ValueError` for actions of another shape, and for NaN or Inf."""
    rows = episodes % wave
    padded = np.zeros((wave, observations.shape[1]), np.float32)
    padded[rows] = observations
    wave_episodes = episodes[0] // wave * wave + np.arange(wave)
    actions = np.asarray(policy(padded, wave_episodes, step), np.float32)
    if actions.ndim != 2 or len(actions) != wave:
        shapes = f"{actions.shape}, not ({wave}, n_a)"
        raise ValueError(f"the policy got {wave} observations and gave actions of shape {shapes}.")
    bad = ~np.isfinite(actions[rows]).all(axis=1)
    if bad.any():
        where = f"episode {episodes[bad][0]}, environment step {step}"
        raise ValueError(f"the policy gave NaN or Inf as an action: {where}.")
    return np.clip(actions[rows], -1, 1)


def as_policy(
    policy: Callable[[Float[Array, " n_s"], PRNGKeyArray], Float[Array, " n_a"]], key: PRNGKeyArray
) -> WavePolicy:
    """The policy for a wave, from `policy(s, key) -> a`, which is written for one state.

    The noise of episode i at environment step t comes from `fold_in(fold_in(key, i), t)`, and
    depends on nothing else. `policy` should be a PyTree (an `eqx.Module` or
    `jax.tree_util.Partial`). Then it is compiled once, however often its weights change.
    """

    def of_wave(observations, episodes, step):
        numbers = jnp.asarray(episodes, jnp.int32), jnp.asarray(step, jnp.int32)
        return np.asarray(_wave_actions(policy, key, jnp.asarray(observations), *numbers))

    return of_wave


@eqx.filter_jit
def _wave_actions(
    policy: Callable,
    key: PRNGKeyArray,
    observations: Float[Array, "wave n_s"],
    episodes: Int[Array, " wave"],
    step: Int[Array, ""],
) -> Float[Array, "wave n_a"]:
    keys = jax.vmap(lambda episode: jr.fold_in(jr.fold_in(key, episode), step))(episodes)
    return jax.vmap(policy)(observations, keys)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate: all rates p for which |successes / n - p| is at
    most 1.96 standard errors, sqrt(p (1 - p) / n), which are those that the score test does not
    reject (Wilson 1927). Raises `ValueError` for numbers that are not a rate."""
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} episodes: there is no such rate.")
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def summary(episodes: Sequence[Episode]) -> str:
    """For people: `solved 12 of 50 episodes: 24% (95 % interval 14% to 37%)`."""
    solved, n = sum(episode.success for episode in episodes), len(episodes)
    low, high = wilson(solved, n)
    rate = f"{solved / n:.0%} (95 % interval {low:.0%} to {high:.0%})"
    return f"solved {solved} of {n} episodes: {rate}"


FIELDS = {
    "step": (int, 0, 2**32),
    "policy": (str,),
    "episode": (int, 0, 2**32),
    "seed": (int, 0, 2**32),
    "return": (float, -sys.float_info.max, sys.float_info.max),
    "length": (int, 1, 2**32),
    "success": (bool,),
}
"""The fields of a recorded episode: `step` counts gradient updates, `length` environment steps, and
`return` is the sum of rewards."""


def record_episodes(
    path: Path, step: int, policy: str, episodes: Sequence[Episode], first: int = 0
) -> None:
    """Appends one line of JSON per episode of the policy with this name, after `step` updates. They
    are numbered from `first` on.

    An episode that is there already (the same step, policy, number and seed: an evaluation was
    repeated after a crash) is not written again. A last line that a crash has torn is dropped.
    Raises `ValueError`, naming the line, where the file is damaged.
    """
    there = {_identity(row) for row in recorded_episodes(path)}
    rows = []
    for number, episode in enumerate(episodes, first):
        row = {"step": step, "policy": policy, "episode": number, "seed": episode.seed}
        if _identity(row) not in there:
            row |= {"return": episode.total_reward, "length": episode.length}
            rows.append(row | {"success": episode.success})
    path.touch()
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)  # nothing, unless the last line is torn
        file.seek(0, os.SEEK_END)
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def recorded_episodes(path: Path) -> list[dict[str, Any]]:
    """The whole lines of such a file, in order, each with the fields of `FIELDS`; none if there is
    no file. Raises `ValueError`, which names the file, the line and the field."""
    *lines, _torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
            check_fields(rows[-1], FIELDS)
        except (ValueError, RecursionError) as error:
            wrong = f"not the record of an episode ({error})"
            raise ValueError(f"{path}, line {number}: {wrong}; mend or remove that line.") from None
    return rows


def episodes_of(rows: list[dict], step: int, policy: str) -> list[Episode]:
    """The recorded episodes of one policy after `step` updates."""
    mine = [row for row in rows if (row["step"], row["policy"]) == (step, policy)]
    return [Episode(row["seed"], row["return"], row["length"], row["success"]) for row in mine]


def _identity(row: dict[str, Any]) -> tuple[int, str, int, int]:
    return row["step"], row["policy"], row["episode"], row["seed"]
