r"""What a method must offer: the seam for training, checkpoints, evaluation and the command line.

A method is one PyTree (networks, targets, optimiser states, step, key, settings) with a pure
`update`. Everything else in the project serves any of them.
"""

import abc
from collections import namedtuple
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from tql.batch import Rows, Transition
from tql.config import AbstractConfig

Metrics = dict[str, Array]

Policy = Callable[[Float[Array, " n_s"], PRNGKeyArray], Float[Array, " n_a"]]
"""An action in [-1, 1] from a state and a fresh key; a PyTree, so that it is compiled only once."""


class AbstractAgent(eqx.Module):
    """A method and the state of its training."""

    Config: ClassVar[type[AbstractConfig]]  # The dataclass of its settings.
    presets: ClassVar[dict[str, Callable[[str], AbstractConfig]]]
    """Settings by name, each a function of the task. The first is the command line's default."""
    policies: ClassVar[tuple[str, ...]] = ("policy",)
    """What is evaluated in the environment, "policy" first; empty if it cannot act."""

    n_s: eqx.AbstractVar[int]
    n_a: eqx.AbstractVar[int]
    step: eqx.AbstractVar[Int[Array, ""]]  # Gradient updates made so far.
    key: eqx.AbstractVar[PRNGKeyArray]  # Constant; an update draws from `fold_in(key, step)`.
    config: eqx.AbstractVar[AbstractConfig]

    @classmethod
    @abc.abstractmethod
    def create(cls, n_s: int, n_a: int, config: AbstractConfig) -> "AbstractAgent":
        """A fresh agent of `config.seed`, for states of `n_s` numbers and actions of `n_a`."""

    def prepare(self, data: Transition) -> tuple["AbstractAgent", Rows]:
        """The agent once it has seen the dataset, and what it trains on; most change neither."""
        return self, data

    @abc.abstractmethod
    def update(self, batch: Rows, key: PRNGKeyArray) -> tuple["AbstractAgent", Metrics]:
        """The agent after one gradient update, and numbers to log; losses end in `_loss`."""

    @abc.abstractmethod
    def policy(self, name: str) -> Policy:
        """One of `policies`."""

    def about(self) -> dict:
        """What `config.json` says of the agent besides its settings."""
        return {}


SeedKeys = namedtuple("SeedKeys", "critic actor training evaluation")


def seed_keys(seed: int) -> SeedKeys:
    """All the randomness of a run outside the simulator: one key for each purpose."""
    return SeedKeys(*jr.split(jr.key(seed), 4))


def batch_noise(draw: Callable, key: PRNGKeyArray, batch: Transition) -> PyTree:
    """`draw(key)` for every row of a batch, each with a key of its own."""
    return jax.vmap(draw)(jr.split(key, batch.r.shape[0]))
