r"""How far Q is from what the policy really earns: the critic's values against the discounted
returns of the policy's own episodes. Not in the paper."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64

from tql.agent import AbstractAgent
from tql.critic import AbstractCritic
from tql.ogbench.environment import Environments
from tql.ogbench.evaluate import WavePolicy, act_on_wave, episode_seed
from tql.ogbench.tasks import Task
from tql.training.run import wave_policy
from tql.variants.returns import returns

FIRST = 10_000
"""The number of the first episode, so that none of them is an episode of an evaluation."""
WAVE = 10
"""Episodes that are played at the same time."""
CHUNK = 256
"""Pairs (s, a) whose values are computed at the same time."""

States = Float32[np.ndarray, "steps n_s"]
Actions = Float32[np.ndarray, "steps n_a"]
Returns = Float64[np.ndarray, " steps"]


def own_returns(
    agent: AbstractAgent,
    task: Task,
    *,
    episodes: int = 20,
    seed: int,
    workers: int = 1,
    max_steps: int | None = None,
) -> tuple[States, Actions, Returns]:
    """Plays episodes with the agent's policy in the real environment. Returns the states and
    actions of all their steps, and the returns that followed, in discounted reward.

    Episode i begins from `episode_seed(seed, 10_000 + i)`. `max_steps` replaces OGBench's step
    limit, for tests. Raises what `run_episodes` raises, and `RunError` for an agent without a
    policy.
    """
    policy, gamma = wave_policy(agent, "policy"), agent.config.discount
    limits = {"size": min(WAVE, episodes), "max_episode_steps": max_steps}
    steps = []
    with Environments(task, workers=workers, **limits) as environments:
        for first in range(FIRST, FIRST + episodes, WAVE):
            numbers = range(first, min(first + WAVE, FIRST + episodes))
            seeds = [episode_seed(seed, number) for number in numbers]
            for s, a, r, solved in play(policy, environments, seeds, first):
                steps.append((s, a, episode_returns(r, solved, gamma)))
    s, a, G = map(np.concatenate, zip(*steps))
    return s, a, G


def play(
    policy: WavePolicy, environments: Environments, seeds: Sequence[int], first: int
) -> list[tuple[States, Actions, Float64[np.ndarray, " steps"], Bool[np.ndarray, " steps"]]]:
    """The episodes `first`, `first + 1`, ..., one per seed: the states, actions and rewards of all
    their steps, and which steps were a success."""
    numbers = first + np.arange(environments.size)
    running = np.arange(environments.size) < len(seeds)
    s = environments.reset(seeds)
    steps = []
    while running.any():
        a = act_on_wave(policy, s, numbers, len(steps), WAVE)
        s_next, r, ended, success = environments.step(a, running)
        steps.append((running, s, a, r, success))
        s, running = s_next, running & ~ended
    ran, *columns = map(np.stack, zip(*steps))
    return [tuple(x[ran[:, slot], slot] for x in columns) for slot in range(len(seeds))]


def episode_returns(
    r: Float64[np.ndarray, " steps"], solved: Bool[np.ndarray, " steps"], gamma: float
) -> Returns:
    r"""The returns of one episode, $G_t = r_t + \gamma\,m_t\,G_{t+1}$, with $m_t = 0$ where the
    task was solved and $m_t = 1$ elsewhere.

    The time limit cuts an unsolved episode although the task goes on. It is taken to earn its last
    reward for ever, $r / (1 - \gamma)$: what it would have earned later is not known.
    """
    if not solved[-1]:
        r = np.append(r[:-1], r[-1] / (1 - gamma))
    return returns(r, 1.0 - solved, np.ones(len(r), bool), gamma)


def q_error(critic: AbstractCritic, s: States, a: Actions, G: Returns) -> dict[str, float]:
    r"""The error of $Q(s,a) = \frac1K\sum_k Q_k(s,a)$ against the returns G of the same steps.

    - `q_correlation`: Pearson's correlation of Q with G; 0 where either does not vary.
    - `q_bias`: the mean of Q - G, in discounted reward; above 0 where Q is too large.
    """
    Q = np.asarray(_values(critic, jnp.asarray(s), jnp.asarray(a)), float)
    vary = np.ptp(Q) > 0 and np.ptp(G) > 0
    correlation = np.corrcoef(Q, G)[0, 1] if vary else 0.0
    return {"q_correlation": float(correlation), "q_bias": float(np.mean(Q - G))}


@eqx.filter_jit
def _values(
    critic: AbstractCritic, s: Float[Array, "steps n_s"], a: Float[Array, "steps n_a"]
) -> Float[Array, " steps"]:
    """The mean over the K heads, for every row; `CHUNK` rows at a time, so that memory stays
    small."""
    return jax.lax.map(lambda pair: jnp.mean(critic(*pair)), (s, a), batch_size=CHUNK)
