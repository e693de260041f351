r"""FBRAC (flow behaviour-regularised actor-critic, as in the FQL paper): Q's gradient runs through the whole multi-step flow.

    critic   y = r + gamma m <Q̄_k(s', a')>_k with a' = flow(s', z'), and <(Q_k(s, a) - y)^2>
    actor    alpha_bc flow matching - <Q(s, flow(s, z))>: through every Euler step of the flow itself (`flow_loss`)

Networks: a velocity $v(s, x, t)$ without layer norm and two MLP critics with layer norm, with an average $\bar Q_k$ of the critics.
Beside FQL: no one-step policy, and backpropagation through every Euler step. It acts with $\mathrm{flow}(s, z)$, fresh z at every step;
`flow_actor.euler` ends in the clip.
Settings: cube-triple from the code of Value Flows, other domains as remembered from the FQL paper; puzzle-3x3 (100 or 300) is the least
certain, and an earlier revision of Value Flows has 10 on cube-triple. One re-implementation (FAC's) takes the minimum in the target, others
the mean, as here.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, batch_noise, seed_keys
from tql.config import POCKET, Task, TrainingConfig
from tql.critic import AbstractCritic
from tql.data import Batch, DataStatistics
from tql.flow_actor import Noise, draw_noise, euler, flow_matching
from tql.mlp import MLP, MLPCritic
from tql.optimise import copy, descend, polyak, start, value_and_grad


@dataclass(frozen=True)
class FBRACConfig(TrainingConfig):
    """Settings of FBRAC; `paper` sets what differs by domain."""

    method: ClassVar[str] = "fbrac"

    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the flow, in channels."""
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the critics, in channels."""
    flow_steps: int = 10
    """Euler steps of the flow."""
    alpha_bc: float = 100.0
    """Weight of flow matching against Q: larger stays closer to the dataset."""


def paper(task: str) -> FBRACConfig:
    """The paper's settings."""
    domain = Task.parse(task).domain
    return FBRACConfig(task=task, alpha_bc=300.0 if domain == "puzzle-4x4" else 100.0, discount=0.995 if domain == "cube-triple" else 0.99)


def pocket(task: str) -> FBRACConfig:
    """For 2 cores: narrower, at TQL's learning rate there, half the flow steps; alpha_bc from a search (`benchmark_presets.search`)."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), critic_hidden=(256, 256, 256), flow_steps=5, alpha_bc=10.0)


def critic_loss(
    critic: AbstractCritic, target_critic: AbstractCritic, v: MLP, batch: Batch, noise: Noise, discount: float, flow_steps: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""With $a' = \mathrm{flow}(s', z')$:
    $y = r + \gamma\,m\,\frac1K \sum_k \bar Q_k(s', a')$ and $\langle (Q_k(s, a) - y)^2 \rangle$.

    A mean over members and batch. Moves the critic alone; also returns the mean of Q.
    """

    def one(row: Batch, z: Noise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        a_next = euler(v, row.next_observations, z.next_action, flow_steps)
        y = row.rewards + discount * row.masks * jnp.mean(target_critic(row.next_observations, a_next))
        Q = critic(row.observations, row.actions)
        return jnp.mean((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(Q)


def flow_loss(
    v: MLP, critic: AbstractCritic, batch: Batch, noise: Noise, alpha_bc: float, flow_steps: int
) -> tuple[Float[Array, ""], Metrics]:
    r"""$\alpha_{bc}\,\text{flow matching} - \langle \frac1K \sum_k Q_k(s, \mathrm{flow}(s, z)) \rangle$.

    Moves the flow alone; the gradient of Q runs through all Euler steps and the clip.
    """

    def one(row: Batch, z: Noise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        s = row.observations
        return flow_matching(v, s, row.actions, z.x_0, z.t), jnp.mean(critic(s, euler(v, s, z.z, flow_steps)))

    matching, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return alpha_bc * matching - Q, {"flow_loss": matching, "actor_q": Q}


class FBRAC(AbstractAgent):
    """The state of its training."""

    Config = FBRACConfig
    presets = {"pocket": pocket, "paper": paper}

    critic: MLPCritic
    target_critic: MLPCritic
    flow: MLP
    critic_state: optax.OptState
    flow_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FBRACConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: FBRACConfig, statistics: DataStatistics) -> "FBRAC":
        keys = seed_keys(config.seed)
        critic = MLPCritic(n_s, n_a, config.critic_hidden, key=keys.critic)
        flow = MLP(n_s + n_a + 1, n_a, config.hidden, layer_norm=False, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (critic, flow))
        return cls(critic, copy(critic), flow, *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["FBRAC", Metrics]:
        c, adam = self.config, optax.adam(self.config.lr)
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        (of_critic, q), critic_grads = value_and_grad(critic_loss)(
            self.critic, self.target_critic, self.flow, batch, noise, c.discount, c.flow_steps
        )
        (_, flow_metrics), flow_grads = value_and_grad(flow_loss)(self.flow, self.critic, batch, noise, c.alpha_bc, c.flow_steps)

        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        flow, flow_state = descend(adam, self.flow, flow_grads, self.flow_state)
        target_critic = polyak(self.critic, self.target_critic, c.tau)

        networks = dict(critic=critic, target_critic=target_critic, flow=flow)
        agent = replace(self, **networks, critic_state=critic_state, flow_state=flow_state, step=self.step + 1)
        return agent, {"td_loss": of_critic, "q_mean": q} | flow_metrics

    def policy(self, name: str) -> Act:
        return eqx.Partial(flow_action, self.flow, self.n_a, self.config.flow_steps)


def flow_action(v: MLP, n_a: int, flow_steps: int, s: Float[Array, " n_s"], key: PRNGKeyArray) -> Float[Array, " n_a"]:
    """The flow's action from fresh noise."""
    return euler(v, s, jr.normal(key, (n_a,)), flow_steps)
