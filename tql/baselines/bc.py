r"""Behaviour cloning (BC): imitate the dataset, ignore the rewards. The floor of every comparison.

Networks: a mean $\mu(s)$, standard deviation 1. It acts with $\mathrm{clip}(\mu(s))$. Settings: the usual ones of this family of codes;
the same in every domain. Doubt: no file of the authors was found; the loss is IQL's for its actor without the weights, and the published
numbers were taken over from earlier papers.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, seed_keys
from tql.config import POCKET, TrainingConfig
from tql.data import Batch, DataStatistics
from tql.mlp import MeanActor, log_probability, mean_action
from tql.optimise import descend, start


@dataclass(frozen=True)
class BCConfig(TrainingConfig):
    """Settings of BC; the defaults are the paper's."""

    method: ClassVar[str] = "bc"

    lr: float = 3e-4
    """Learning rate."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the actor, in channels."""


def paper(task: str) -> BCConfig:
    """The paper's settings."""
    return BCConfig(task=task)


def pocket(task: str) -> BCConfig:
    """For 2 cores: narrower, at TQL's learning rate there."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256))


def actor_loss(actor: MeanActor, batch: Batch) -> Float[Array, ""]:
    r"""$-\langle \log N(a;\,\mu(s), I) \rangle$, in nats."""
    log_p = jax.vmap(lambda row: log_probability(actor(row.observations), row.actions))(batch)
    return -jnp.mean(log_p)


class BC(AbstractAgent):
    """The state of its training."""

    Config = BCConfig
    presets = {"pocket": pocket, "paper": paper}

    actor: MeanActor
    actor_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: BCConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: BCConfig, statistics: DataStatistics) -> "BC":
        keys = seed_keys(config.seed)
        actor = MeanActor(n_s, n_a, config.hidden, key=keys.actor)
        return cls(actor, start(optax.adam(config.lr), actor), jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["BC", Metrics]:
        loss, grads = eqx.filter_value_and_grad(actor_loss)(self.actor, batch)
        actor, state = descend(optax.adam(self.config.lr), self.actor, grads, self.actor_state)
        agent = replace(self, actor=actor, actor_state=state, step=self.step + 1)
        return agent, {"actor_loss": loss}

    def policy(self, name: str) -> Act:
        return eqx.Partial(mean_action, self.actor)
