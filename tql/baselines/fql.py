r"""Flow Q-learning (FQL; Park, Li, Levine 2025): a behaviour flow, and a one-step policy distilled from it that maximises Q.

    critic   y = r + gamma m <Q̄_k(s', a')>_k with a' = clip(mu(s', z')), and <(Q_k(s, a) - y)^2>
    actor    flow matching + alpha_bc <|mu(s, z) - flow(s, z)|^2> - <Q(s, clip(mu(s, z)))>: a network of one step (`flow_actor.actor_loss`)

Networks: the flow actor (`flow_actor.FlowActor`, here without layer norm) and two MLP critics with layer norm, with an average $\bar Q_k$
of the critics. It is the actor of floq, PAC and TQL too; only the critic differs. It acts with $\mathrm{clip}(\mu(s, z))$, fresh z at
every step. Settings: from FQL's code. Doubts: cube-triple's discount is .99 in the TQL authors' scripts and .995 elsewhere (the default
is .99), and the scaling curve of the paper may be of a variant with quantile critics.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, batch_noise, seed_keys
from tql.config import POCKET, Task, TrainingConfig
from tql.critic import AbstractCritic
from tql.data import Batch, DataStatistics
from tql.flow_actor import POLICIES, FlowActor, Noise, actor_loss, draw_noise
from tql.mlp import MLPCritic
from tql.optimise import copy, descend, polyak, start, value_and_grad


@dataclass(frozen=True)
class FQLConfig(TrainingConfig):
    """Settings of FQL; `paper` sets what differs by domain."""

    method: ClassVar[str] = "fql"

    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the flow and of the policy, in channels."""
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the critics; the scaling study has 320, 512, 1536, 2944."""
    flow_steps: int = 10
    """Euler steps of the behaviour flow."""
    alpha_bc: float = 300.0
    """Weight of the distillation loss against Q: larger stays closer to the dataset."""


def paper(task: str) -> FQLConfig:
    """The paper's settings."""
    domain = Task.parse(task).domain
    return FQLConfig(task=task, alpha_bc=1000.0 if domain.startswith("puzzle") else 300.0)


def pocket(task: str) -> FQLConfig:
    """For 2 cores: narrower, at TQL's learning rate and alpha_bc there (a thirtieth of the paper's), half the flow steps."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), critic_hidden=(256, 256, 256), flow_steps=5, alpha_bc=10.0)


def critic_loss(
    critic: AbstractCritic, target_critic: AbstractCritic, actor: FlowActor, batch: Batch, noise: Noise, discount: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""With $a' = \mathrm{clip}(\mu(s', z'))$:
    $y = r + \gamma\,m\,\frac1K \sum_k \bar Q_k(s', a')$ and $\langle (Q_k(s, a) - y)^2 \rangle$.

    A mean over members and batch. Moves the critic alone; also returns the mean of Q.
    """

    def one(row: Batch, z: Noise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        a_next = actor.act(row.next_observations, z.next_action)
        y = row.rewards + discount * row.masks * jnp.mean(target_critic(row.next_observations, a_next))
        Q = critic(row.observations, row.actions)
        return jnp.mean((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(Q)


class FQL(AbstractAgent):
    """The state of its training."""

    Config = FQLConfig
    presets = {"pocket": pocket, "paper": paper}

    critic: MLPCritic
    target_critic: MLPCritic
    actor: FlowActor
    critic_state: optax.OptState
    actor_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FQLConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: FQLConfig, statistics: DataStatistics) -> "FQL":
        keys = seed_keys(config.seed)
        critic = MLPCritic(n_s, n_a, config.critic_hidden, key=keys.critic)
        actor = FlowActor(n_s, n_a, hidden=config.hidden, flow_steps=config.flow_steps, layer_norm=False, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (critic, actor))
        return cls(critic, copy(critic), actor, *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["FQL", Metrics]:
        c, adam = self.config, optax.adam(self.config.lr)
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        (of_critic, q), critic_grads = value_and_grad(critic_loss)(self.critic, self.target_critic, self.actor, batch, noise, c.discount)
        (_, actor_metrics), actor_grads = value_and_grad(actor_loss)(self.actor, self.critic, batch, noise, c.alpha_bc)

        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        actor, actor_state = descend(adam, self.actor, actor_grads, self.actor_state)
        target_critic = polyak(self.critic, self.target_critic, c.tau)

        networks = dict(critic=critic, target_critic=target_critic, actor=actor)
        agent = replace(self, **networks, critic_state=critic_state, actor_state=actor_state, step=self.step + 1)
        return agent, {"td_loss": of_critic, "q_mean": q} | actor_metrics

    def policy(self, name: str) -> Act:
        return eqx.Partial(POLICIES[name], self.actor)
