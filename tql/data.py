"""A batch of transitions, and a dataset as one large batch."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, PRNGKeyArray

from tql.config import Task
from tql.environment import make
from tql.validate import read_pair

LARGEST_ACTION = 1 - 1e-5
"""Actions are clipped to plus or minus this, as in OGBench's reference agents (float32)."""


class Batch(eqx.Module):
    """Transitions (s, a, r, mask, s', a'), OGBench's names; a dataset is a `Batch` of all its rows."""

    observations: Float[Array, "batch n_s"]
    actions: Float[Array, "batch n_a"]
    rewards: Float[Array, " batch"]
    masks: Float[Array, " batch"]
    """1, or 0 where the task was solved and nothing follows."""
    next_observations: Float[Array, "batch n_s"]
    next_actions: Float[Array, "batch n_a"]
    """The action that the dataset took in s'."""


def sample(dataset: Batch, batch_size: int, key: PRNGKeyArray) -> Batch:
    """`batch_size` rows, drawn uniformly with replacement."""
    rows = jr.randint(key, (batch_size,), 0, dataset.rewards.shape[0])
    return jax.tree.map(lambda x: x[rows], dataset)


def load(task: Task, path: Path) -> tuple[Batch, Batch]:
    """Training and validation data from a file in OGBench's format, with the task's rewards.

    Rewards and masks are OGBench's own: they belong to the state *before* the action. Raises `FileNotFoundError` and
    `validate.DatasetError` for anything that could not be trained on; warns where other versions of the simulator made the data.
    """
    environment = make(task)
    try:
        return tuple(transitions(task, arrays, environment) for arrays in read_pair(task, path, environment))
    finally:
        environment.close()


def transitions(task: Task, arrays: dict[str, np.ndarray], environment) -> Batch:
    """The steps of all episodes, from arrays with one row more per episode: the one whose observation ends it.

    `environment` is the task's; OGBench reads its goal from it.
    """
    from ogbench.relabel_utils import relabel_dataset

    now = np.flatnonzero(~arrays["terminals"])
    solved = {name: arrays[name][now] for name in ("qpos", "button_states") if name in arrays}
    relabel_dataset(task.env_name, environment, solved)
    actions = np.clip(arrays["actions"], -LARGEST_ACTION, LARGEST_ACTION)
    return Batch(
        observations=jnp.asarray(arrays["observations"][now]),
        actions=jnp.asarray(actions[now]),
        rewards=jnp.asarray(solved["rewards"]),
        masks=jnp.asarray(solved["masks"]),
        next_observations=jnp.asarray(arrays["observations"][now + 1]),
        next_actions=jnp.asarray(actions[now + 1]),
    )


class DataStatistics(eqx.Module):
    """What some methods need to know of the whole dataset."""

    reward_low: Float[Array, ""]
    reward_high: Float[Array, ""]
    """Below 0 where no state of the dataset solves the task."""
    action_low: Float[Array, " n_a"]
    action_high: Float[Array, " n_a"]


def statistics(data: Batch) -> DataStatistics:
    """Extremes of the rewards, and of every action dimension."""
    r, a = data.rewards, data.actions
    return DataStatistics(jnp.min(r), jnp.max(r), jnp.min(a, axis=0), jnp.max(a, axis=0))


def unknown_statistics(n_a: int) -> DataStatistics:
    """Those of no dataset, for a skeleton whose arrays come from a checkpoint."""
    return DataStatistics(jnp.zeros(()), jnp.zeros(()), jnp.zeros(n_a), jnp.zeros(n_a))


def goes_on(data: Batch) -> Bool[np.ndarray, " batch"]:
    """Whether the next row of the dataset is the next step of the same episode; false in an episode's last row, a cut in time."""
    follows = np.all(np.asarray(data.observations[1:]) == np.asarray(data.next_observations[:-1]), axis=1)
    return np.append(follows, False)


def returns(
    r: Float[np.ndarray, " batch"], m: Float[np.ndarray, " batch"], goes_on: Bool[np.ndarray, " batch"], discount: float
) -> Float64[np.ndarray, " batch"]:
    r"""$G_t = r_t + \gamma\,m_t\,G_{t+1}$, as far as the episode goes: what lies beyond its last row counts as 0."""
    G = np.zeros(len(r) + 1)
    for t in reversed(range(len(r))):
        G[t] = r[t] + discount * m[t] * goes_on[t] * G[t + 1]
    return G[:-1]


def regression_to_returns(data: Batch, discount: float, horizon: int = 100) -> Batch:
    r"""The same pairs (s, a) with the return that followed as reward and nothing after it, so that the TD target is the return.

    $$r_t \leftarrow G_t = r_t + \gamma\,m_t\,G_{t+1}, \qquad m_t \leftarrow 0$$

    TD without bootstrapping: what is left of a finding under it does not come from bootstrapping. The last `horizon` steps of every
    episode are left out, for their returns are cut short (at discount 0.95, 100 steps leave an error of 0.6 % of the largest return).
    """
    continued = goes_on(data)
    G = returns(np.asarray(data.rewards), np.asarray(data.masks), continued, discount)
    steps_left = returns(np.ones(len(G)), np.ones(len(G)), continued, 1.0)
    kept = np.flatnonzero(steps_left > horizon)
    whole = eqx.tree_at(lambda b: (b.rewards, b.masks), data, (jnp.asarray(G, data.rewards.dtype), jnp.zeros_like(data.masks)))
    return jax.tree.map(lambda x: x[kept], whole)
