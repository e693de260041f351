"""A transition (s, a, r, m, s', a'), and batches of them."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


class Transition(eqx.Module):
    """One transition. With an axis in front it is a batch, and a dataset is a batch of all rows."""

    s: Float[Array, "*batch n_s"]  # The state; `observations` in OGBench.
    a: Float[Array, "*batch n_a"]  # The action, in [-1, 1].
    r: Float[Array, "*batch"]  # The reward.
    m: Float[Array, "*batch"]  # The mask: 0 where the task is solved, else 1 (at time limits too).
    s_next: Float[Array, "*batch n_s"]  # The next state s'.
    a_next: Float[Array, "*batch n_a"]  # The action a' that the dataset took in s'.


Rows = PyTree[Array]
"""A batch or a dataset: a `Transition`, or what a method makes of it, with as many rows."""


def draw_batch(dataset: Rows, batch_size: int, key: PRNGKeyArray) -> Rows:
    """`batch_size` rows of the dataset, drawn uniformly with replacement."""
    rows = jr.randint(key, (batch_size,), 0, jax.tree.leaves(dataset)[0].shape[0])
    return jax.tree.map(lambda x: x[rows], dataset)
