r"""The multi-layer perceptron of all actors and of the rivals' critics, and an ensemble of them as a critic (FQL's reference code)."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import NORM_EPS
from tql.critic import AbstractCritic
from tql.linear import Linear, glorot_uniform

small_glorot_uniform = jax.nn.initializers.variance_scaling(0.01, "fan_avg", "uniform", in_axis=-1, out_axis=-2)
"""Bounds a tenth of Glorot's: the last layer of a mean, so that first actions are near 0."""


class MLP(eqx.Module):
    r"""Hidden layers $x \leftarrow \mathrm{LN}(\mathrm{gelu}(Wx + b))$ (the norm after the activation), then an affine map.

    Without `layer_norm`, hidden layers are $x \leftarrow \mathrm{gelu}(Wx + b)$.
    """

    layers: tuple[Linear, ...]
    norms: tuple[eqx.Module, ...]
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        hidden: tuple[int, ...],
        *,
        layer_norm: bool = True,
        last: Callable = glorot_uniform,
        key: PRNGKeyArray,
    ):
        """`last` initialises the matrix of the last map, all others are Glorot-uniform."""
        *keys, k_last = jr.split(key, len(hidden) + 1)
        widths = (d_in, *hidden)
        self.layers = (
            *(Linear(glorot_uniform, d, d_next, key=k) for d, d_next, k in zip(widths, hidden, keys)),
            Linear(last, widths[-1], d_out, key=k_last),
        )
        self.norms = tuple(eqx.nn.LayerNorm(d, eps=NORM_EPS) if layer_norm else eqx.nn.Identity() for d in hidden)
        self.d_in, self.d_out = d_in, d_out

    def __call__(self, x: Float[Array, " {self.d_in}"]) -> Float[Array, " {self.d_out}"]:
        for layer, norm in zip(self.layers[:-1], self.norms):
            x = norm(jax.nn.gelu(layer(x), approximate=True))
        return self.layers[-1](x)


class MLPCritic(AbstractCritic):
    """K independent MLPs with layer norm, $Q_k(s, a)$ from the concatenation of state and action."""

    members: tuple[MLP, ...]
    n: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, hidden: tuple[int, ...], *, ensemble: int = 2, key: PRNGKeyArray):
        self.members = tuple(MLP(n_s + n_a, 1, hidden, key=k) for k in jr.split(key, ensemble))
        self.n, self.ensemble = 1 + n_s + n_a, ensemble

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " {self.ensemble}"]:
        sa = jnp.concatenate([s, a])
        return jnp.concatenate([member(sa) for member in self.members])


class MeanActor(eqx.Module):
    r"""A mean $\mu(s)$ of actions. As a Gaussian policy of standard deviation 1 it acts with its mean (BC, IQL)."""

    net: MLP
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, hidden: tuple[int, ...], *, key: PRNGKeyArray):
        self.net = MLP(n_s, n_a, hidden, layer_norm=False, last=small_glorot_uniform, key=key)
        self.n_s, self.n_a = n_s, n_a

    def __call__(self, s: Float[Array, " {self.n_s}"]) -> Float[Array, " {self.n_a}"]:
        """$\\mu(s)$, not clipped."""
        return self.net(s)


def log_probability(mean: Float[Array, " n_a"], a: Float[Array, " n_a"]) -> Float[Array, ""]:
    r"""$\log N(a;\,\mu, I) = -\frac12 |a - \mu|^2 - \frac{n_a}{2} \ln 2\pi$, in nats."""
    return -0.5 * jnp.sum((a - mean) ** 2) - 0.5 * a.shape[0] * jnp.log(2 * jnp.pi)


def mean_action(
    actor: MeanActor, s: Float[Array, " {actor.n_s}"], key: PRNGKeyArray
) -> Float[Array, " {actor.n_a}"]:
    """The policy that acts with the mean; it needs no randomness."""
    return jnp.clip(actor(s), -1, 1)
