r"""What several rivals share, from FQL's reference code: two MLPs as a critic, a mean of actions,
and the types of losses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.agent import Metrics
from tql.layers import MLP

Scalar, State, Action = Float[Array, ""], Float[Array, " n_s"], Float[Array, " n_a"]
Loss = tuple[Scalar, Metrics]
"""What a loss returns: its value, of which the gradient is taken, and numbers to log. All are means
over the batch."""

small_glorot_uniform = jax.nn.initializers.variance_scaling(
    0.01, "fan_avg", "uniform", in_axis=-1, out_axis=-2
)
"""Its bounds are a tenth of Glorot's. It is for the last layer of a mean, so that the first actions
are near 0."""


class MLPCritic(eqx.Module):
    """K independent MLPs with layer norm: $Q_k(s, a)$ from the concatenation of state and
    action."""

    members: tuple[MLP, ...]
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(
        self, n_s: int, n_a: int, hidden: tuple[int, ...], *, ensemble: int = 2, key: PRNGKeyArray
    ):
        self.members = tuple(MLP(n_s + n_a, 1, hidden, key=k) for k in jr.split(key, ensemble))
        self.n_s, self.n_a, self.ensemble = n_s, n_a, ensemble

    def __call__(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " {self.ensemble}"]:
        """The K values of one pair (s, a), in units of discounted reward."""
        sa = jnp.concatenate([s, a])
        return jnp.concatenate([member(sa) for member in self.members])


class MeanActor(eqx.Module):
    r"""A mean $\mu(s)$ of actions. As a Gaussian policy of standard deviation 1 it acts with its
    mean (BC, IQL)."""

    net: MLP
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, hidden: tuple[int, ...], *, key: PRNGKeyArray):
        self.net = MLP(n_s, n_a, hidden, layer_norm=False, last=small_glorot_uniform, key=key)
        self.n_s, self.n_a = n_s, n_a

    def __call__(self, s: Float[Array, " {self.n_s}"]) -> Float[Array, " {self.n_a}"]:
        r"""$\mu(s)$, not clipped."""
        return self.net(s)


def log_probability(mean: Action, a: Action) -> Scalar:
    r"""$\log N(a;\,\mu, I) = -\frac12 |a - \mu|^2 - \frac{n_a}{2} \ln 2\pi$, in nats."""
    return -0.5 * jnp.sum((a - mean) ** 2) - 0.5 * a.shape[0] * jnp.log(2 * jnp.pi)


def mean_action(
    actor: MeanActor, s: Float[Array, " {actor.n_s}"], key: PRNGKeyArray
) -> Float[Array, " {actor.n_a}"]:
    """The policy that acts with the mean, clipped to [-1, 1]. It needs no randomness."""
    return jnp.clip(actor(s), -1, 1)
