r"""floq (flow-matching critic): Q is the end point of a learned flow in one dimension, so compute can be spent by integrating longer.

Networks, two members each: the velocity $\psi_k(s, a, z, t)$ of the value flow, with an average $\bar\psi_k$, and MLP critics $Q_k(s, a)$
without one, distilled from it to guide the actor. The actor is FQL's. It acts with $\mathrm{clip}(\mu(s, z))$. Settings: from floq's code
and the TQL authors' fork of it (four hidden layers everywhere). As in the code, time enters as the single number cos t, where the floq
paper speaks of 64 Fourier features; sums over copies in the loss of $\psi$, means elsewhere. Departure: points far outside the range of
returns are encoded as nearer ones (`value_flow.encode`); the code divides 0 by 0 there. Doubts: which size the published column is; floq's
own README has two hidden layers on cubes and coverage .25 on puzzle-4x4.
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
from tql.flow_actor import POLICIES, FlowActor, actor_loss, draw_noise
from tql.mlp import MLPCritic
from tql.optimise import copy, descend, polyak, start, value_and_grad
from tql.value_flow import EDGES, FloqNoise, ValueFlow, draw_copies, edges, encode, integrate


@dataclass(frozen=True)
class FloqConfig(TrainingConfig):
    """Settings of floq; `paper` sets what differs by domain."""

    method: ClassVar[str] = "floq"

    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the flow actor, in channels."""
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the distilled critics, in channels."""
    velocity_hidden: tuple[int, ...] = (320, 320, 320, 320)
    """Widths of the hidden layers of the value flow; the scaling study has 320, 512, 1536, 2944."""
    flow_steps: int = 10
    """Euler steps of the behaviour flow."""
    critic_flow_steps: int = 8
    """Euler steps of the value flow (K)."""
    copies: int = 8
    """Start values per transition (n)."""
    coverage: float = 0.1
    """Start values are uniform over this share of the range of returns (c)."""
    alpha_bc: float = 300.0
    """Weight of the actor's distillation loss against Q."""


def paper(task: str) -> FloqConfig:
    """The paper's settings."""
    return FloqConfig(task=task, alpha_bc=1000.0 if Task.parse(task).domain.startswith("puzzle") else 300.0)


def pocket(task: str) -> FloqConfig:
    """For 2 cores: half the copies and steps, and a narrow value flow."""
    widths = dict(hidden=(256, 256, 256), critic_hidden=(256, 256, 256), velocity_hidden=(128, 128))
    return replace(paper(task), **POCKET, **widths, lr=1e-3, flow_steps=5, critic_flow_steps=4, copies=4, alpha_bc=10.0)


def flow_target(
    target_psi: ValueFlow, actor: FlowActor, row: Batch, noise: FloqNoise, b: Float[Array, " edges"], discount: float, K: int
) -> Float[Array, ""]:
    r"""One y per transition: $y = \langle r + \gamma\,m\,\frac1E \sum_k \bar\Phi_k(s', a'_j, z'_j) \rangle_j$ over the copies j, $a'_j =
    \mathrm{clip}(\mu(s', \cdot))$.
    """

    def one(epsilon: Float[Array, " n_a"], z: Float[Array, ""]) -> Float[Array, ""]:
        a_next = actor.act(row.next_observations, epsilon)
        return jnp.mean(integrate(target_psi, row.next_observations, a_next, z, b, K))

    return row.rewards + discount * row.masks * jnp.mean(jax.vmap(one)(noise.next_action, noise.z_next))


def velocity_loss(
    psi: ValueFlow, target_psi: ValueFlow, actor: FlowActor, batch: Batch, noise: FloqNoise, b: Float[Array, " edges"],
    discount: float, K: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""With $x_j = (1 - t_j)\,z_j + t_j\,y$: $\langle \sum_j (\psi_k(s, a, x_j, t_j) - (y - z_j))^2 \rangle$, a sum over copies.

    A mean over members and batch. Moves the value flow alone; also returns the mean of y.
    """

    def one(row: Batch, noise: FloqNoise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        y = flow_target(target_psi, actor, row, noise, b, discount, K)

        def of_copy(z: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
            x = (1 - t) * z + t * y
            h = jnp.broadcast_to(encode(x, b), (psi.ensemble, EDGES - 1))
            return jnp.mean((psi(row.observations, row.actions, h, t) - (y - z)) ** 2)

        return jnp.sum(jax.vmap(of_copy)(noise.z, noise.t)), y

    loss, y = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(y)


def distillation_loss(
    critic: AbstractCritic, psi: ValueFlow, batch: Batch, noise: FloqNoise, b: Float[Array, " edges"], K: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$\langle (Q_k(s, a) - \hat q)^2 \rangle$ with $\hat q = \langle \Phi_k(s, a, z_j) \rangle_{k,j}$. Moves the critic alone; also
    returns the mean of Q.
    """

    def one(row: Batch, noise: FloqNoise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        q_hat = jnp.mean(jax.vmap(lambda z: integrate(psi, row.observations, row.actions, z, b, K))(noise.z))
        Q = critic(row.observations, row.actions)
        return jnp.mean((Q - q_hat) ** 2), jnp.mean(Q)

    loss, Q = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(Q)


class Floq(AbstractAgent):
    """The state of its training."""

    Config = FloqConfig
    presets = {"pocket": pocket, "paper": paper}

    psi: ValueFlow
    target_psi: ValueFlow
    critic: MLPCritic
    actor: FlowActor
    psi_state: optax.OptState
    critic_state: optax.OptState
    actor_state: optax.OptState
    statistics: DataStatistics
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FloqConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: FloqConfig, statistics: DataStatistics) -> "Floq":
        keys = seed_keys(config.seed)
        k_psi, k_critic = jr.split(keys.critic)
        psi = ValueFlow(n_s, n_a, config.velocity_hidden, key=k_psi)
        critic = MLPCritic(n_s, n_a, config.critic_hidden, key=k_critic)
        actor = FlowActor(n_s, n_a, hidden=config.hidden, flow_steps=config.flow_steps, layer_norm=False, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (psi, critic, actor))
        step = jnp.zeros((), int)
        return cls(psi, copy(psi), critic, actor, *states, copy(statistics), step, keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["Floq", Metrics]:
        c, adam, K = self.config, optax.adam(self.config.lr), self.config.critic_flow_steps
        k_copies, k_actor = jr.split(key)
        draw = lambda k: draw_copies(c.copies, self.n_a, self.statistics, c.discount, c.coverage, key=k)
        noise, actor_noise = batch_noise(draw, k_copies, batch), batch_noise(lambda k: draw_noise(self.n_a, key=k), k_actor, batch)
        b = edges(self.statistics, c.discount)
        (of_psi, y), psi_grads = value_and_grad(velocity_loss)(self.psi, self.target_psi, self.actor, batch, noise, b, c.discount, K)
        (of_critic, q), critic_grads = value_and_grad(distillation_loss)(self.critic, self.psi, batch, noise, b, K)
        (_, actor_metrics), actor_grads = value_and_grad(actor_loss)(self.actor, self.critic, batch, actor_noise, c.alpha_bc)

        psi, psi_state = descend(adam, self.psi, psi_grads, self.psi_state)
        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        actor, actor_state = descend(adam, self.actor, actor_grads, self.actor_state)
        target_psi = polyak(self.psi, self.target_psi, c.tau)

        networks = dict(psi=psi, target_psi=target_psi, critic=critic, actor=actor)
        agent = replace(self, **networks, psi_state=psi_state, critic_state=critic_state, actor_state=actor_state, step=self.step + 1)
        return agent, {"velocity_loss": of_psi, "critic_loss": of_critic, "target_mean": y, "q_mean": q} | actor_metrics

    def policy(self, name: str) -> Act:
        return eqx.Partial(POLICIES[name], self.actor)
