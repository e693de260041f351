r"""floq (flow-matching critic): Q is the end point of a learned flow in one dimension, so compute
can be spent by integrating longer.

Networks, two members each: the velocity $\psi_k(s, a, z, t)$ of the value flow, with an average
$\bar\psi_k$, and MLP critics $Q_k(s, a)$ without one, which are distilled from the flow to guide
the actor. The actor is FQL's; it acts with $\mathrm{clip}(\mu(s, z))$.

Settings: from floq's code and the TQL authors' fork of it (four hidden layers everywhere). As in
the code, time enters as the single number cos t, where the floq paper speaks of 64 Fourier
features, and copies are summed in the loss of $\psi$ and averaged elsewhere. Departure: points far
outside the range of returns are encoded as nearer ones (`encode`), where the code divides 0 by 0.
Doubts: which size the published column is; floq's own README has two hidden layers on cubes and
coverage .25 on puzzle-4x4.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.baselines.networks import Action, Loss, MLPCritic, Scalar, State
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.flow_actor import POLICIES, FlowActor, Noise, actor_loss, draw_noise
from tql.layers import MLP
from tql.optimise import Learner, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of

EDGES, SIGMA_IN_BINS, MARGIN = 51, 16.0, 0.01
"""Edges of the bins that encode a value, width of its Gaussian, and reward added at both ends."""
REACH = 4.0
"""Points further than so many sigma beyond the edges are encoded as the point there. In float32 the
denominator of the encoding would soon be 0."""
Edges = Float[Array, " edges"]


@dataclass(frozen=True)
class FloqConfig(AbstractConfig):
    """Settings of floq; `paper` sets what differs by domain."""

    method: str = "floq"
    lr: float = 3e-4  # Learning rate of all networks.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of flow and policy.
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of the critics.
    velocity_hidden: tuple[int, ...] = (320, 320, 320, 320)
    """Widths of the hidden layers of the value flow; the scaling study has 320, 512, 1536, 2944."""
    flow_steps: int = 10  # Euler steps of the behaviour flow.
    critic_flow_steps: int = 8  # Euler steps of the value flow (K).
    copies: int = 8  # Start values per transition (n).
    coverage: float = 0.1  # Start values are uniform over this share of the range of returns (c).
    alpha_bc: float = 300.0  # Weight of the actor's distillation loss against Q.


def paper(task: str) -> FloqConfig:
    """The paper's settings."""
    return FloqConfig(task=task, alpha_bc=1000.0 if domain_of(task).startswith("puzzle") else 300.0)


def pocket(task: str) -> FloqConfig:
    """For 2 cores: half the copies and steps, and a narrow value flow."""
    widths = dict(hidden=(256, 256, 256), critic_hidden=(256, 256, 256), velocity_hidden=(128, 128))
    steps = dict(flow_steps=5, critic_flow_steps=4, copies=4)
    return replace(paper(task), **POCKET, **widths, **steps, lr=1e-3, alpha_bc=10.0)


class ValueFlow(eqx.Module):
    r"""The velocities $\psi_k(s, a, z, t)$: MLPs with layer norm of $[s, a, h(z), \cos t]$."""

    members: tuple[MLP, ...]
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(
        self, n_s: int, n_a: int, hidden: tuple[int, ...], *, ensemble: int = 2, key: PRNGKeyArray
    ):
        d_in = n_s + n_a + (EDGES - 1) + 1
        self.members = tuple(MLP(d_in, 1, hidden, key=k) for k in jr.split(key, ensemble))
        self.n_s, self.n_a, self.ensemble = n_s, n_a, ensemble

    def __call__(
        self,
        s: Float[Array, " {self.n_s}"],
        a: Float[Array, " {self.n_a}"],
        h: Float[Array, "{self.ensemble} bins"],
        t: Scalar,
    ) -> Float[Array, " {self.ensemble}"]:
        """Every member at a point of its own, given by its encoding h."""
        inputs = [jnp.concatenate([s, a, h_k, jnp.cos(t)[None]]) for h_k in h]
        return jnp.concatenate([member(x) for member, x in zip(self.members, inputs, strict=True)])


def edges(r_low: Scalar, r_high: Scalar, gamma: float) -> Edges:
    r"""$b_0, \dots, b_{50}$, evenly from $(r_{lo} - 0.01)/(1-\gamma)$ to
    $(r_{hi} + 0.01)/(1-\gamma)$, of the dataset's smallest and largest reward."""
    return jnp.linspace((r_low - MARGIN) / (1 - gamma), (r_high + MARGIN) / (1 - gamma), EDGES)


def encode(z: Scalar, b: Edges) -> Float[Array, " edges-1"]:
    r"""$h(z)$: how much of a Gaussian around z, of 16 bins' width, lies in each bin.

    $$c_k = \mathrm{erf}\big((b_k - z) / (\sqrt2\,\sigma)\big), \qquad
    h_k = (c_{k+1} - c_k) / (c_{50} - c_0)$$
    """
    sigma = SIGMA_IN_BINS * (b[1] - b[0])
    # Start values lie that far out where all rewards are nearly the same and none is 0.
    z = jnp.clip(z, b[0] - REACH * sigma, b[-1] + REACH * sigma)
    c = jax.lax.erf((b - z) / (jnp.sqrt(2.0) * sigma))
    return (c[1:] - c[:-1]) / (c[-1] - c[0])


def integrate(
    psi: ValueFlow, s: State, a: Action, z: Scalar, b: Edges, K: int
) -> Float[Array, " {psi.ensemble}"]:
    r"""$\Phi_k(s, a, z)$ by Euler's rule: $z_k \leftarrow z_k + \psi_k(s, a, z_k, i/K)/K$ for
    $i = 0, \dots, K-1$, every member from the same z."""

    def step(z: Float[Array, " members"], t: Scalar) -> tuple[Float[Array, " members"], None]:
        h = jax.vmap(lambda z: encode(z, b))(z)
        return z + psi(s, a, h, t) / K, None

    z, _ = jax.lax.scan(step, jnp.broadcast_to(z, (psi.ensemble,)), jnp.arange(K) / K)
    return z


class FloqNoise(eqx.Module):
    """What is random in the copies of one transition: the next actions' noise, the start values z'
    of the target and z, and the times."""

    next_action: Float[Array, "*batch copies n_a"]
    z_next: Float[Array, "*batch copies"]
    z: Float[Array, "*batch copies"]
    t: Float[Array, "*batch copies"]


def draw_copies(copies: int, n_a: int, l: Scalar, u: Scalar, *, key: PRNGKeyArray) -> FloqNoise:
    r"""Noise for the copies of one transition, with $z, z' \sim U(l, u)$."""
    k_action, k_next, k_z, k_t = jr.split(key, 4)
    uniform = lambda k: l + (u - l) * jr.uniform(k, (copies,))
    next_action = jr.normal(k_action, (copies, n_a))
    return FloqNoise(next_action, uniform(k_next), uniform(k_z), jr.uniform(k_t, (copies,)))


def flow_target(
    target_psi: ValueFlow,
    actor: FlowActor,
    row: Transition,
    noise: FloqNoise,
    b: Edges,
    gamma: float,
    K: int,
) -> Scalar:
    r"""One y per transition: $y = \langle r + \gamma\,m\,\frac1E \sum_k \bar\Phi_k(s', a'_j, z'_j)
    \rangle_j$ over the copies j, with $a'_j = \mathrm{clip}(\mu(s', \cdot))$."""

    def one(epsilon: Action, z: Scalar) -> Scalar:
        a_next = actor.act(row.s_next, epsilon)
        return jnp.mean(integrate(target_psi, row.s_next, a_next, z, b, K))

    return row.r + gamma * row.m * jnp.mean(jax.vmap(one)(noise.next_action, noise.z_next))


def velocity_loss(
    psi: ValueFlow,
    target_psi: ValueFlow,
    actor: FlowActor,
    batch: Transition,
    noise: FloqNoise,
    b: Edges,
    gamma: float,
    K: int,
) -> Loss:
    r"""With $x_j = (1 - t_j)\,z_j + t_j\,y$:
    $\langle \sum_j (\psi_k(s, a, x_j, t_j) - (y - z_j))^2 \rangle$, a sum over copies.

    The mean is over members and batch. It moves the value flow.
    """

    def one(row: Transition, noise: FloqNoise) -> tuple[Scalar, Scalar]:
        y = flow_target(target_psi, actor, row, noise, b, gamma, K)

        def of_copy(z: Scalar, t: Scalar) -> Scalar:
            x = (1 - t) * z + t * y
            h = jnp.broadcast_to(encode(x, b), (psi.ensemble, EDGES - 1))
            return jnp.mean((psi(row.s, row.a, h, t) - (y - z)) ** 2)

        return jnp.sum(jax.vmap(of_copy)(noise.z, noise.t)), y

    loss, y = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return loss, {"velocity_loss": loss, "target_mean": y}


def distillation_loss(
    critic: MLPCritic, psi: ValueFlow, batch: Transition, noise: FloqNoise, b: Edges, K: int
) -> Loss:
    r"""$\langle (Q_k(s, a) - \hat q)^2 \rangle$ with
    $\hat q = \langle \Phi_k(s, a, z_j) \rangle_{k,j}$. It moves the critic."""

    def one(row: Transition, noise: FloqNoise) -> tuple[Scalar, Scalar]:
        ends = jax.vmap(lambda z: integrate(psi, row.s, row.a, z, b, K))(noise.z)
        Q = critic(row.s, row.a)
        return jnp.mean((Q - jnp.mean(ends)) ** 2), jnp.mean(Q)

    loss, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return loss, {"critic_loss": loss, "q_mean": Q}


class Floq(AbstractAgent):
    """The state of floq's training."""

    Config = FloqConfig
    presets = {"pocket": pocket, "paper": paper}

    psi: Learner
    target_psi: ValueFlow
    critic: Learner
    actor: Learner
    r_low: Scalar  # The dataset's smallest reward; 0 until `prepare` has seen the dataset.
    r_high: Scalar  # Its largest reward.
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FloqConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: FloqConfig) -> "Floq":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        k_psi, k_critic = jr.split(keys.critic)
        psi = Learner.start(ValueFlow(n_s, n_a, config.velocity_hidden, key=k_psi), adam)
        critic = Learner.start(MLPCritic(n_s, n_a, config.critic_hidden, key=k_critic), adam)
        sizes = dict(hidden=config.hidden, flow_steps=config.flow_steps)
        actor = FlowActor(n_s, n_a, **sizes, layer_norm=False, key=keys.actor)
        rewards = jnp.zeros(()), jnp.zeros(())
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(psi, copy(psi.model), critic, Learner.start(actor, adam), *rewards, *rest)

    def prepare(self, data: Transition) -> tuple["Floq", Transition]:
        """The agent with the dataset's extreme rewards, and the dataset as it is."""
        return replace(self, r_low=jnp.min(data.r), r_high=jnp.max(data.r)), data

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["Floq", Metrics]:
        """One update."""
        c, (k_copies, k_actor) = self.config, jr.split(key)
        l, u = (c.coverage * r / (1 - c.discount) for r in (self.r_low, self.r_high))
        noise = batch_noise(lambda k: draw_copies(c.copies, self.n_a, l, u, key=k), k_copies, batch)
        actor_noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), k_actor, batch)
        return self.update_with_noise(batch, noise, actor_noise)

    def update_with_noise(
        self, batch: Transition, noise: FloqNoise, actor_noise: Noise
    ) -> tuple["Floq", Metrics]:
        """One update, a deterministic function of batch and noise."""
        c, adam, K = self.config, optax.adam(self.config.lr), self.config.critic_flow_steps
        psi, critic, actor = self.psi.model, self.critic.model, self.actor.model
        b = edges(self.r_low, self.r_high, c.discount)
        (_, psi_metrics), psi_gradient = value_and_grad(velocity_loss)(
            psi, self.target_psi, actor, batch, noise, b, c.discount, K
        )
        (_, critic_metrics), critic_gradient = value_and_grad(distillation_loss)(
            critic, psi, batch, noise, b, K
        )
        (_, actor_metrics), actor_gradient = value_and_grad(actor_loss)(
            actor, critic, batch, actor_noise, c.alpha_bc
        )
        agent = replace(
            self,
            psi=self.psi.descend(psi_gradient, adam),
            target_psi=polyak(psi, self.target_psi, c.tau),
            critic=self.critic.descend(critic_gradient, adam),
            actor=self.actor.descend(actor_gradient, adam),
            step=self.step + 1,
        )
        return agent, psi_metrics | critic_metrics | actor_metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(POLICIES[name], self.actor.model)
