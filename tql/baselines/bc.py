r"""Behaviour cloning (BC): imitate the dataset and ignore the rewards. It is the floor of every
comparison.

Network: a mean $\mu(s)$; the policy is Gaussian with standard deviation 1, and it acts with
$\mathrm{clip}(\mu(s))$. Settings: the usual ones of this family of codes, the same in every domain.
Doubt: no file of the authors was found. The loss is the one that IQL has for its actor, without the
weights, and the published numbers were taken over from earlier papers.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, seed_keys
from tql.baselines.networks import Loss, MeanActor, log_probability, mean_action
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.optimise import Learner, value_and_grad
from tql.presets import POCKET


@dataclass(frozen=True)
class BCConfig(AbstractConfig):
    """Settings of BC; the defaults are the paper's."""

    method: str = "bc"
    lr: float = 3e-4  # Learning rate.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of the actor.


def paper(task: str) -> BCConfig:
    """The paper's settings."""
    return BCConfig(task=task)


def pocket(task: str) -> BCConfig:
    """For 2 cores: narrower, at the learning rate that TQL has there."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256))


def actor_loss(actor: MeanActor, batch: Transition) -> Loss:
    r"""$-\langle \log N(a;\,\mu(s), I) \rangle$, in nats."""
    loss = -jnp.mean(jax.vmap(lambda row: log_probability(actor(row.s), row.a))(batch))
    return loss, {"actor_loss": loss}


class BC(AbstractAgent):
    """The state of BC's training."""

    Config = BCConfig
    presets = {"pocket": pocket, "paper": paper}

    actor: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: BCConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: BCConfig) -> "BC":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        actor = Learner.start(MeanActor(n_s, n_a, config.hidden, key=keys.actor), adam)
        return cls(actor, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["BC", Metrics]:
        """One update. Nothing in it is random."""
        adam = optax.adam(self.config.lr)
        (_, metrics), gradient = value_and_grad(actor_loss)(self.actor.model, batch)
        actor = self.actor.descend(gradient, adam)
        return replace(self, actor=actor, step=self.step + 1), metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(mean_action, self.actor.model)
