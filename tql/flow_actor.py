r"""The actor of flow Q-learning (FQL): a behaviour flow, and the one-step policy distilled from it
(paper section 4).

The flow carries noise $x_0 \sim N(0, I)$ to an action of the dataset, given the state; it imitates.
The policy $\mu(s, z)$ maps the same noise to an action in one step. It is what acts, and what the
critic improves.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.batch import Transition
from tql.components import checked
from tql.layers import MLP

# Shapes: of methods, where `self` is the actor, and of functions.
State = Float[Array, " {self.n_s}"]
Action = Float[Array, " {self.n_a}"]
S, A, Scalar = Float[Array, " n_s"], Float[Array, " n_a"], Float[Array, ""]

QFunction = Callable[[S, A], Float[Array, " ensemble"]]
"""Any critic: the K values of one pair (s, a)."""


class Noise(eqx.Module):
    """All that is random in one update of a batch, drawn before it."""

    next_action: Float[Array, "*batch n_a"]  # The policy's noise z in the next state, for a'.
    x_0: Float[Array, "*batch n_a"]  # Where flow matching begins.
    t: Float[Array, "*batch"]  # The time at which it looks at the flow.
    z: Float[Array, "*batch n_a"]  # The noise that policy and flow both turn into an action.


def draw_noise(n_a: int, *, key: PRNGKeyArray) -> Noise:
    r"""The noise of one transition: standard normal, and the flow's time $t \sim U(0, 1)$."""
    k_next, k_x0, k_t, k_z = jr.split(key, 4)
    x_0, t = jr.normal(k_x0, (n_a,)), jr.uniform(k_t)
    return Noise(jr.normal(k_next, (n_a,)), x_0, t, jr.normal(k_z, (n_a,)))


class ActorLosses(eqx.Module):
    """The parts of the actor's loss, for one transition."""

    flow_matching: Float[Array, "*batch"]
    distillation: Float[Array, "*batch"]
    q: Float[Array, "*batch"]


class AbstractActor(eqx.Module):
    """The seam for other actors: an action to take, and what training minimises. One is built by
    `Mine(n_s, n_a, hidden=..., flow_steps=..., key=key)`."""

    n_s: eqx.AbstractVar[int]
    n_a: eqx.AbstractVar[int]
    policies: eqx.AbstractClassVar[tuple[str, ...]]
    """The `POLICIES` that are evaluated; empty if it cannot act."""

    @abc.abstractmethod
    def act(self, s: State, z: Action) -> Action:
        """The action, in [-1, 1], for state `s` and standard normal noise `z`."""

    @abc.abstractmethod
    def next_action(self, s_next: State, a_next: Action, z: Action) -> Action:
        """The action of the TD target in the next state, where the dataset took `a_next`."""

    @abc.abstractmethod
    def losses(self, critic: QFunction, s: State, a: Action, noise: Noise) -> ActorLosses:
        """The parts of the loss for one transition of the dataset. Training differentiates the
        actor alone."""


def velocity(v: MLP, s: S, x_t: A, t: Scalar) -> A:
    """$v(s, x_t, t)$: a network of state, point and time."""
    return v(jnp.concatenate([s, x_t, t[None]]))


def flow_matching(v: MLP, s: S, a: A, x_0: A, t: Scalar) -> Scalar:
    r"""With $x_1 = a$ and $x_t = (1-t)\,x_0 + t\,x_1$: $|v(s, x_t, t) - (x_1 - x_0)|^2$, a mean
    over action dimensions."""
    x_1 = a
    x_t = (1 - t) * x_0 + t * x_1
    return jnp.mean((velocity(v, s, x_t, t) - (x_1 - x_0)) ** 2)


def euler(v: MLP, s: S, z: A, N: int) -> A:
    r"""The flow's action from noise `z`: $x \leftarrow x + v(s, x, t)\,/\,N$ at
    $t = 0, 1/N, \dots, (N-1)/N$. Only the result is clipped to [-1, 1], not the points on the way.
    """
    x, _ = jax.lax.scan(lambda x, t: (x + velocity(v, s, x, t) / N, None), z, jnp.arange(N) / N)
    return jnp.clip(x, -1, 1)


class FlowActor(AbstractActor):
    r"""The behaviour flow $v(s, x_t, t)$ and the one-step policy $\mu(s, z)$: two MLPs of the same
    widths."""

    policies: ClassVar[tuple[str, ...]] = ("policy", "behaviour")
    flow: MLP
    one_step: MLP
    flow_steps: int = eqx.field(static=True)
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(
        self, n_s: int, n_a: int, *, hidden: tuple[int, ...], flow_steps: int = 10,
        layer_norm: bool = True, key: PRNGKeyArray
    ):
        """TQL and PAC normalise the hidden layers of both networks; FQL and floq do not."""
        k_flow, k_one_step = jr.split(key)
        self.flow = MLP(n_s + n_a + 1, n_a, hidden, layer_norm=layer_norm, key=k_flow)
        self.one_step = MLP(n_s + n_a, n_a, hidden, layer_norm=layer_norm, key=k_one_step)
        self.flow_steps, self.n_s, self.n_a = flow_steps, n_s, n_a

    def mu(self, s: State, z: Action) -> Action:
        r"""$\mu(s, z)$, not clipped."""
        return self.one_step(jnp.concatenate([s, z]))

    def behaviour(self, s: State, z: Action) -> Action:
        """The flow's action from noise `z`, clipped to [-1, 1]."""
        return euler(self.flow, s, z, self.flow_steps)

    def act(self, s: State, z: Action) -> Action:
        return jnp.clip(self.mu(s, z), -1, 1)

    def next_action(self, s_next: State, a_next: Action, z: Action) -> Action:
        return self.act(s_next, z)

    def losses(self, critic: QFunction, s: State, a: Action, noise: Noise) -> ActorLosses:
        r"""Flow matching, and with the student $\mu(s, z)$ and the teacher
        $\mathrm{sg}(\mathrm{flow}(s, z))$:

        $$|\mu(s, z) - \mathrm{flow}(s, z)|^2, \qquad Q(s, \mathrm{clip}(\mu(s, z)))$$

        Squares are means over action dimensions; Q is the mean of the K heads. The clip stops the
        gradient of the components outside [-1, 1].
        """
        matching = flow_matching(self.flow, s, a, noise.x_0, noise.t)

        student = self.mu(s, noise.z)
        teacher = jax.lax.stop_gradient(self.behaviour(s, noise.z))
        distillation = jnp.mean((student - teacher) ** 2)

        q = jnp.mean(critic(s, jnp.clip(student, -1, 1)))
        return ActorLosses(matching, distillation, q)


def actor_loss(
    actor: AbstractActor, critic: QFunction, batch: Transition, noise: Noise, alpha_bc: float
) -> tuple[Scalar, dict[str, Scalar]]:
    r"""$\text{flow matching} + \alpha_{bc}\,\text{distillation} - Q$, means over the batch. It
    moves the flow and the policy. Its parts are returned too, for the log."""
    parts = jax.vmap(lambda row, noise: actor.losses(critic, row.s, row.a, noise))(batch, noise)
    parts = jax.tree.map(jnp.mean, parts)
    loss = parts.flow_matching + alpha_bc * parts.distillation - parts.q
    names = {"flow_loss": parts.flow_matching, "distillation_loss": parts.distillation}
    return loss, names | {"actor_q": parts.q}


def policy_action(actor: AbstractActor, s: S, key: PRNGKeyArray) -> A:
    """The one-step policy's action with fresh noise, in training and evaluation alike."""
    a = actor.act(s, jr.normal(key, (actor.n_a,)))
    return checked(a, (actor.n_a,), "actor.act(s, z)")


def behaviour_action(actor: FlowActor, s: S, key: PRNGKeyArray) -> A:
    """The behaviour flow's action: what imitation alone would do."""
    return actor.behaviour(s, jr.normal(key, (actor.n_a,)))


POLICIES = {"policy": policy_action, "behaviour": behaviour_action}
"""Policies by the names that are recorded. All act on the same episodes with the same noise."""

ACTORS = {"flow": FlowActor, "dataset": "tql.variants.dataset_actor:DatasetActor"}
"""Actors by the short names that settings may use."""
