r"""The seam for methods: what training, checkpoints, evaluation and the command line need to know of one.

A method is one PyTree (networks, targets, optimiser states, step, key, settings) with a pure `update`. Everything else in the project
serves any of them. `config.METHODS` names them; a new one is a file and a line there.
"""

import abc
import importlib
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from tql.config import METHODS, TrainingConfig
from tql.data import Batch, DataStatistics

Metrics = dict[str, Array]

Act = Callable[[Float[Array, " n_s"], PRNGKeyArray], Float[Array, " n_a"]]
"""An action in [-1, 1] from a state and a fresh key. A PyTree, so that it is compiled once, however often its weights change."""


class AbstractAgent(eqx.Module):
    """A method and the state of its training."""

    Config: ClassVar[type[TrainingConfig]]
    """The dataclass of its settings."""
    presets: ClassVar[dict[str, Callable[[str], TrainingConfig]]]
    """Settings by name, each a function of the task; the first is the command line's default. The benchmark asks for `pocket` and
    `paper`."""

    policies: ClassVar[tuple[str, ...]] = ("policy",)
    """What is evaluated in the environment, "policy" first; empty if there is nothing to act with."""

    n_s: eqx.AbstractVar[int]
    n_a: eqx.AbstractVar[int]
    step: eqx.AbstractVar[Int[Array, ""]]
    """Gradient updates made so far."""
    key: eqx.AbstractVar[PRNGKeyArray]
    """Never changes; update number k draws from fold_in(key, k)."""
    config: eqx.AbstractVar[TrainingConfig]

    @classmethod
    @abc.abstractmethod
    def initialise(cls, n_s: int, n_a: int, config: TrainingConfig, statistics: DataStatistics) -> "AbstractAgent":
        """A fresh agent for states of size `n_s` and actions of size `n_a`, determined by `config.seed` and the dataset."""
        raise NotImplementedError

    @abc.abstractmethod
    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["AbstractAgent", Metrics]:
        """The agent after one gradient update of all its networks, and numbers to log (losses end in `_loss`)."""
        raise NotImplementedError

    @abc.abstractmethod
    def policy(self, name: str) -> Act:
        """One of `policies`."""
        raise NotImplementedError

    @staticmethod
    def prepare(data: Batch, config: TrainingConfig) -> Batch:
        """What the method makes of the dataset before training; the dataset itself unless overridden."""
        return data

    def about(self) -> dict:
        """What `config.json` says of the agent besides its settings."""
        return {}

    def progress(self, line: dict) -> str:
        """What the progress bar says of a line of metrics."""
        return ", ".join(f"{name.removesuffix('_loss')} {x:.3g}" for name, x in line.items() if name.endswith("_loss"))


def method_class(method: str) -> type[AbstractAgent]:
    """Imports the method of that name. Raises `ValueError` for a name that `config.METHODS` does not have, for a place where it is not,
    and for settings that do not carry the name.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; choose one of {', '.join(METHODS)}.")
    module, _, name = METHODS[method].rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module.partition(".")[0] and error.name != module:
            raise  # something that the method itself imports
        raise ValueError(f"{method} is {METHODS[method]} in METHODS of tql/config.py, but {error}; is its folder on PYTHONPATH?") from None
    if (said := getattr(found.Config, "method", None)) != method:
        needed = f'{found.Config.__name__} of {METHODS[method]} needs the line `method: ClassVar[str] = "{method}"`'
        raise ValueError(f"{needed}, its name in METHODS of tql/config.py; it has {said!r}.")
    return found


def initialise(n_s: int, n_a: int, config: TrainingConfig, statistics: DataStatistics) -> AbstractAgent:
    """A fresh agent of the method that `config` is for."""
    return method_class(config.method).initialise(n_s, n_a, config, statistics)


class SeedKeys(NamedTuple):
    """The keys that one seed stands for, each for one purpose."""

    critic: PRNGKeyArray
    actor: PRNGKeyArray
    training: PRNGKeyArray
    evaluation: PRNGKeyArray


def seed_keys(seed: int) -> SeedKeys:
    """All randomness of a run outside the simulator."""
    return SeedKeys(*jr.split(jr.key(seed), 4))


def batch_noise(draw: Callable[[PRNGKeyArray], PyTree], key: PRNGKeyArray, batch: Batch) -> PyTree:
    """`draw(key)` for every row of a batch, each with a key of its own."""
    return jax.vmap(draw)(jr.split(key, batch.rewards.shape[0]))
