"""The replay buffer of an agent that acts: a ring of transitions on the device."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PRNGKeyArray

from tql.batch import Transition


class Replay(eqx.Module):
    """Once the ring is full, a new row takes the place of the oldest. The dataset's rows were
    written first, so they are also overwritten first."""

    rows: Transition
    written: Int[Array, ""]  # Rows written so far, also those that were overwritten since.

    @staticmethod
    def start(dataset: Transition, capacity: int) -> "Replay":
        """A ring that holds the dataset, and room for the rest."""
        grown = lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype).at[: len(x)].set(x)
        return Replay(jax.tree.map(grown, dataset), jnp.asarray(len(dataset.r), int))

    @property
    def capacity(self) -> int:
        return len(self.rows.r)

    def add(self, row: Transition) -> "Replay":
        """The ring with one row more, or with the oldest one replaced."""
        slot = self.written % self.capacity
        rows = jax.tree.map(lambda ring, x: ring.at[slot].set(x), self.rows, row)
        return Replay(rows, self.written + 1)

    def draw(self, batch_size: int, key: PRNGKeyArray) -> Transition:
        """`batch_size` rows, drawn uniformly with replacement from those that were written."""
        slots = jr.randint(key, (batch_size,), 0, jnp.minimum(self.written, self.capacity))
        return jax.tree.map(lambda ring: ring[slots], self.rows)

    def window(self, first: int, length: int) -> Transition:
        """What is in the places of the rows number `first`, `first + 1`, ..., whether they were
        written already or not."""
        slots = self._slots(first, length)
        return jax.tree.map(lambda ring: ring[slots], self.rows)

    def with_window(self, first: int, rows: Transition, written: int) -> "Replay":
        """The ring with these rows in those places, after `written` rows."""
        slots = self._slots(first, len(rows.r))
        put = lambda ring, x: ring.at[slots].set(x)
        return Replay(jax.tree.map(put, self.rows, rows), jnp.asarray(written, int))

    def _slots(self, first: int, length: int) -> Int[Array, " length"]:
        return (first + jnp.arange(length)) % self.capacity
