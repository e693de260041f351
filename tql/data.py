"""A batch of transitions, and a dataset as one large batch."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

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
