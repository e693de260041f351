"""How often a policy solves its task in the real environment: seeded episodes, success rate with its interval.

OGBench's protocol (paper, section 5): 50 episodes; an episode ends when the task is solved or at OGBench's step limit;
success is `info["success"]` of its last step.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray
from tqdm import tqdm

from tql.config import Task
from tql.environment import Environments
from tql.whole_file import whole_lines

Policy = Callable[[Float32[np.ndarray, "wave n_s"], Int[np.ndarray, " wave"], int], Float32[np.ndarray, "wave n_a"]]
"""Actions from observations, the episodes' numbers and the environment step that they have in common."""


@dataclass(frozen=True)
class Episode:
    """One episode: the seed it is made from, the sum of its rewards, its environment steps, success of the last of them."""

    seed: int
    total_reward: float
    length: int
    success: bool


def episode_seed(seed: int, episode: int) -> int:
    """The seed of one episode of an evaluation. Evaluations with different seeds share no episodes."""
    return int(np.random.SeedSequence(seed, spawn_key=(episode,)).generate_state(1)[0])


def run_episodes(
    policy: Policy,
    task: Task,
    *,
    episodes: int = 50,
    seed: int,
    workers: int = 2,
    wave: int = 10,
    max_steps: int | None = None,
    progress: bool = True,
    environments: Environments | None = None,
) -> list[Episode]:
    """Runs `episodes` episodes in waves of `wave`, which take that many environments (about 0.2 GB each) and no more.

    Episode i is the same for any number of workers and of episodes: its seed comes from `seed` and i, and the policy always
    sees `wave` rows (padded where episodes have ended), so one compiled function computes every action. `max_steps` replaces
    OGBench's step limit, for tests. Evaluations can share open `environments` (`wave` of this task), which take seconds to
    start. Raises `ValueError` for a policy that gives no usable action and `WorkerError` where an environment fails.
    """
    if episodes < 1 or wave < 1:
        raise ValueError(f"at least 1 episode and a wave of 1 are needed, not episodes={episodes} and wave={wave}.")
    if environments and environments.size != wave:
        raise ValueError(f"the open environments are {environments.size}, the wave is {wave}: they have to be as many.")
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    finished = []
    shown = {} if progress else {"disable": True}  # left out, it is $TQDM_DISABLE's to say
    bar = tqdm(total=episodes, desc=f"evaluate {task.env_name}", unit="episode", **shown)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        if environments is None:
            size = min(wave, episodes)
            environments = stack.enter_context(
                Environments(task, size=size, workers=workers, max_episode_steps=max_steps)
            )
        for first in range(0, episodes, wave):
            finished += _run_wave(policy, environments, seeds[first : first + wave], first, wave, bar)
            bar.set_postfix(solved=sum(episode.success for episode in finished))
    return finished


def _run_wave(
    policy: Policy, environments: Environments, seeds: Sequence[int], first: int, wave: int, bar: tqdm
) -> list[Episode]:
    """Episodes number `first`, `first + 1`, ..., one per seed, side by side until the last of them ends."""
    size = environments.size
    observations = environments.reset(seeds)
    running = np.arange(size) < len(seeds)
    total_rewards, lengths, successes = np.zeros(size), np.zeros(size, int), np.zeros(size, bool)
    step = 0
    while running.any():
        actions = act_on_wave(policy, observations, first + np.arange(size), step, wave)
        observations, rewards, ended, success = environments.step(actions, running)
        total_rewards += rewards
        lengths += running
        successes = np.where(running, success, successes)  # each step overwrites: the last one stays
        bar.update(int((running & ended).sum()))
        running &= ~ended
        step += 1
    return [Episode(*record) for record in zip(seeds, total_rewards.tolist(), lengths.tolist(), successes.tolist())]


def act_on_wave(
    policy: Policy,
    observations: Float32[np.ndarray, "size n_s"],
    episodes: Int[np.ndarray, " size"],
    step: int,
    wave: int,
) -> Float32[np.ndarray, "size n_a"]:
    """The policy's actions, clipped to [-1, 1]. Episode i is row `i % wave` of a full wave; the other rows are padding."""
    rows = episodes % wave
    padded = np.zeros((wave, observations.shape[1]), np.float32)
    padded[rows] = observations
    wave_episodes = episodes[0] // wave * wave + np.arange(wave)
    actions = np.asarray(policy(padded, wave_episodes, step), np.float32)
    if actions.ndim != 2 or len(actions) != wave:
        raise ValueError(f"the policy got {wave} observations and gave actions of shape {actions.shape}, not ({wave}, n_a).")
    bad = ~np.isfinite(actions[rows]).all(axis=1)
    if bad.any():
        raise ValueError(f"the policy gave NaN or Inf as an action: episode {episodes[bad][0]}, environment step {step}.")
    return np.clip(actions[rows], -1, 1)


def as_policy(act: Callable[[Float[Array, " n_s"], PRNGKeyArray], Float[Array, " n_a"]], key: PRNGKeyArray) -> Policy:
    """Turns `act(observation, key) -> action`, written for one observation, into a policy for a wave.

    The noise of episode i at environment step t comes from `fold_in(fold_in(key, i), t)`: it depends on nothing else. `act`
    should be a PyTree (an `eqx.Module` or `jax.tree_util.Partial`): then it is compiled once, however often its weights change.
    """

    def policy(observations, episodes, step):
        return np.asarray(_wave_actions(act, key, observations, episodes.astype(np.int32), np.int32(step)))

    return policy


@eqx.filter_jit
def _wave_actions(
    act: Callable,
    key: PRNGKeyArray,
    observations: Float[Array, "wave n_s"],
    episodes: Int[Array, " wave"],
    step: Int[Array, ""],
) -> Float[Array, "wave n_a"]:
    keys = jax.vmap(lambda episode: jr.fold_in(jr.fold_in(key, episode), step))(episodes)
    return jax.vmap(act)(observations, keys)


def wilson(successes: int, n: int) -> tuple[float, float]:
    r"""Wilson's 95 % interval of a success rate, $p = s / n$:

    $$\frac{1}{1 + z^2/n} \left( p + \frac{z^2}{2n} \pm z \sqrt{\frac{p (1 - p)}{n} + \frac{z^2}{4 n^2}} \right)$$

    the rates that the score test at this level does not reject (Wilson 1927).
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} episodes: there is no such rate.")
    z = NormalDist().inv_cdf(0.975)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The ends are exactly 0 and 1 there; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def summary(episodes: Sequence[Episode]) -> str:
    """For people: `solved 12 of 50 episodes: 24 % (95 % interval 14 to 37 %)`."""
    solved = sum(episode.success for episode in episodes)
    low, high = wilson(solved, len(episodes))
    rate = solved / len(episodes)
    return f"solved {solved} of {len(episodes)} episodes: {rate:.0%} (95 % interval {low:.0%} to {high:.0%})"


def record(path: Path, step: int, policy_name: str, episodes: Sequence[Episode]) -> None:
    """Appends one JSON line per episode: step (gradient updates), policy, episode, seed, return, length, success.

    An episode that is there already (same step, policy, number and seed: an evaluation repeated after a crash) is not written
    again, and a last line torn by a crash is dropped. Raises `ValueError`, naming the line, where the file is damaged.
    """
    there = {_identity(row) for row in recorded(path)}
    rows = []
    for number, episode in enumerate(episodes):
        row = dict(step=step, policy=policy_name, episode=number, seed=episode.seed)
        if _identity(row) not in there:
            rows.append(row | {"return": episode.total_reward, "length": episode.length, "success": episode.success})
    path.touch()
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)  # nothing, unless the last line is torn
        file.seek(0, os.SEEK_END)
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def recorded(path: Path) -> list[dict]:
    """The whole lines of such a file, in order; none if there is no file. Raises `ValueError`, naming a damaged line."""
    return whole_lines(path, ("step", "policy", "episode", "seed", "return", "length", "success"), "not the record of an episode")


def episodes_of(rows: list[dict], step: int, policy: str) -> list[Episode]:
    """The recorded episodes of one policy after `step` updates."""
    mine = [row for row in rows if row["step"] == step and row["policy"] == policy]
    return [Episode(row["seed"], row["return"], row["length"], row["success"]) for row in mine]


def _identity(row: dict) -> tuple[int, str, int, int]:
    return row["step"], row["policy"], row["episode"], row["seed"]
