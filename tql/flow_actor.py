r"""The actor of flow Q-learning (FQL): a behaviour flow, and the one-step policy distilled from it (paper section 4).

The flow carries noise $x_0 \sim N(0, I)$ to an action of the dataset, conditioned on the state; it is what imitates. The policy
$\mu(s, z)$ maps the same noise to an action in one step; it is what acts, and what the critic improves.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.critic import AbstractCritic
from tql.data import Batch
from tql.mlp import MLP


class Noise(eqx.Module):
    """All that is random in one update, drawn before it: what follows is a function of it."""

    next_action: Float[Array, "*batch n_a"]
    x_0: Float[Array, "*batch n_a"]
    t: Float[Array, "*batch"]
    z: Float[Array, "*batch n_a"]


def draw_noise(n_a: int, *, key: PRNGKeyArray) -> Noise:
    """Noise for one transition: standard normal, and the flow's time $t \\sim U(0, 1)$."""
    k_next, k_x0, k_t, k_z = jr.split(key, 4)
    return Noise(jr.normal(k_next, (n_a,)), jr.normal(k_x0, (n_a,)), jr.uniform(k_t), jr.normal(k_z, (n_a,)))


class ActorLosses(eqx.Module):
    """The parts of the actor's loss, for one transition."""

    flow_matching: Float[Array, "*batch"]
    distillation: Float[Array, "*batch"]
    q: Float[Array, "*batch"]


class AbstractActor(eqx.Module):
    """The seam for other actors: an action to take, and what training minimises."""

    n_s: eqx.AbstractVar[int]
    n_a: eqx.AbstractVar[int]
    policies: eqx.AbstractClassVar[tuple[str, ...]]
    """What is evaluated in the environment, of `POLICIES`; empty if there is nothing to act with."""

    @abc.abstractmethod
    def act(self, s: Float[Array, " {self.n_s}"], z: Float[Array, " {self.n_a}"]) -> Float[Array, " {self.n_a}"]:
        """The action for state `s` and standard normal noise `z`, in [-1, 1]."""
        raise NotImplementedError

    @abc.abstractmethod
    def next_action(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], z: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " {self.n_a}"]:
        """The action of the TD target in the next state `s`, where the dataset went on with `a`."""
        raise NotImplementedError

    @abc.abstractmethod
    def losses(
        self, critic: AbstractCritic, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], noise: Noise
    ) -> ActorLosses:
        """The parts of the loss for one transition of the dataset; training differentiates the actor alone."""
        raise NotImplementedError


def velocity(
    v: MLP, s: Float[Array, " n_s"], x: Float[Array, " n_a"], t: Float[Array, ""]
) -> Float[Array, " n_a"]:
    """$v(s, x_t, t)$: a network of state, point and time."""
    return v(jnp.concatenate([s, x, t[None]]))


def flow_matching(
    v: MLP, s: Float[Array, " n_s"], a: Float[Array, " n_a"], x_0: Float[Array, " n_a"], t: Float[Array, ""]
) -> Float[Array, ""]:
    r"""With $x_1 = a$ and $x_t = (1-t)\,x_0 + t\,x_1$: $|v(s, x_t, t) - (x_1 - x_0)|^2$, a mean over action dimensions."""
    x_1 = a
    x_t = (1 - t) * x_0 + t * x_1
    return jnp.mean((velocity(v, s, x_t, t) - (x_1 - x_0)) ** 2)


def euler(v: MLP, s: Float[Array, " n_s"], z: Float[Array, " n_a"], N: int) -> Float[Array, " n_a"]:
    r"""The flow's action from noise `z`: $x \leftarrow x + v(s, x, t)\,/\,N$ at $t = 0, 1/N, \dots, (N-1)/N$.

    Only the result is clipped to [-1, 1], not the points on the way.
    """
    x, _ = jax.lax.scan(lambda x, t: (x + velocity(v, s, x, t) / N, None), z, jnp.arange(N) / N)
    return jnp.clip(x, -1, 1)


class FlowActor(AbstractActor):
    """Behaviour flow $v(s, x_t, t)$ and one-step policy $\\mu(s, z)$, two MLPs of the same widths."""

    policies: ClassVar[tuple[str, ...]] = ("policy", "behaviour")
    flow: MLP
    one_step: MLP
    flow_steps: int = eqx.field(static=True)
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(
        self,
        n_s: int,
        n_a: int,
        *,
        hidden: tuple[int, ...],
        flow_steps: int = 10,
        layer_norm: bool = True,
        key: PRNGKeyArray,
    ):
        """TQL and PAC normalise the hidden layers of both networks; FQL and floq do not."""
        k_flow, k_one_step = jr.split(key)
        self.flow = MLP(n_s + n_a + 1, n_a, hidden, layer_norm=layer_norm, key=k_flow)
        self.one_step = MLP(n_s + n_a, n_a, hidden, layer_norm=layer_norm, key=k_one_step)
        self.flow_steps, self.n_s, self.n_a = flow_steps, n_s, n_a

    def velocity(
        self, s: Float[Array, " {self.n_s}"], x: Float[Array, " {self.n_a}"], t: Float[Array, ""]
    ) -> Float[Array, " {self.n_a}"]:
        """$v(s, x_t, t)$."""
        return velocity(self.flow, s, x, t)

    def mu(self, s: Float[Array, " {self.n_s}"], z: Float[Array, " {self.n_a}"]) -> Float[Array, " {self.n_a}"]:
        """$\\mu(s, z)$, not clipped."""
        return self.one_step(jnp.concatenate([s, z]))

    def behaviour(self, s: Float[Array, " {self.n_s}"], z: Float[Array, " {self.n_a}"]) -> Float[Array, " {self.n_a}"]:
        """The flow's action from noise `z`, clipped to [-1, 1]."""
        return euler(self.flow, s, z, self.flow_steps)

    def act(self, s: Float[Array, " {self.n_s}"], z: Float[Array, " {self.n_a}"]) -> Float[Array, " {self.n_a}"]:
        return jnp.clip(self.mu(s, z), -1, 1)

    def next_action(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], z: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " {self.n_a}"]:
        return self.act(s, z)

    def losses(
        self, critic: AbstractCritic, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], noise: Noise
    ) -> ActorLosses:
        r"""Flow matching, and with student $\mu(s, z)$ and teacher $\mathrm{sg}(\mathrm{flow}(s, z))$:

        $$|\mu(s, z) - \mathrm{flow}(s, z)|^2, \qquad \bar Q(s, \mathrm{clip}(\mu(s, z)))$$

        Squares are means over action dimensions; $\bar Q$ is the mean of the K heads. The clip stops the gradient of the
        components outside [-1, 1].
        """
        matching = flow_matching(self.flow, s, a, noise.x_0, noise.t)

        student = self.mu(s, noise.z)
        teacher = jax.lax.stop_gradient(self.behaviour(s, noise.z))
        distillation = jnp.mean((student - teacher) ** 2)

        q = jnp.mean(critic(s, jnp.clip(student, -1, 1)))
        return ActorLosses(matching, distillation, q)


class DatasetActor(AbstractActor):
    """No policy at all: the TD target's action is the one that the dataset took next (SARSA). It learns nothing and cannot act.

    Not in the paper: the cheapest setting in which a critic collapses.
    """

    policies: ClassVar[tuple[str, ...]] = ()
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def act(self, s: Float[Array, " {self.n_s}"], z: Float[Array, " {self.n_a}"]) -> Float[Array, " {self.n_a}"]:
        """Raises `ValueError`: there is no policy."""
        raise ValueError("this agent trains a critic on the dataset's own actions and has no policy; train with the flow actor.")

    def next_action(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], z: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " {self.n_a}"]:
        return a

    def losses(
        self, critic: AbstractCritic, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"], noise: Noise
    ) -> ActorLosses:
        return ActorLosses(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def actor_loss(
    actor: AbstractActor, critic: AbstractCritic, batch: Batch, noise: Noise, alpha_bc: float, normalise_q: bool = False
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""$\text{flow matching} + \alpha_{bc}\,\text{distillation} - Q$, means over the batch. Moves the flow and the policy.

    With `normalise_q` Q is in units of its own size, $\mathrm{sg}\langle|Q|\rangle$; the metric stays in units of reward.
    """
    parts = jax.vmap(lambda row, z: actor.losses(critic, row.observations, row.actions, z))(batch, noise)
    unit = jax.lax.stop_gradient(jnp.mean(jnp.abs(parts.q))) if normalise_q else 1.0
    parts = jax.tree.map(jnp.mean, parts)
    loss = parts.flow_matching + alpha_bc * parts.distillation - parts.q / unit
    return loss, {"flow_loss": parts.flow_matching, "distillation_loss": parts.distillation, "actor_q": parts.q}


def policy_action(
    actor: AbstractActor, s: Float[Array, " {actor.n_s}"], key: PRNGKeyArray
) -> Float[Array, " {actor.n_a}"]:
    """The one-step policy's action with fresh noise, in training and evaluation alike (paper section 4)."""
    return actor.act(s, jr.normal(key, (actor.n_a,)))


def behaviour_action(actor: FlowActor, s: Float[Array, " {actor.n_s}"], key: PRNGKeyArray) -> Float[Array, " {actor.n_a}"]:
    """The behaviour flow's action: what imitation alone would do."""
    return actor.behaviour(s, jr.normal(key, (actor.n_a,)))


POLICIES = {"policy": policy_action, "behaviour": behaviour_action}
"""By the names that are recorded. All act on the same episodes with the same noise."""
