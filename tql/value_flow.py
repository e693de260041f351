r"""A value as the end point of a learned flow in one dimension (floq), so that compute can be spent by integrating longer; and the noise
of its training.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.data import DataStatistics
from tql.mlp import MLP

EDGES, SIGMA_IN_BINS, MARGIN = 51, 16.0, 0.01
REACH = 4.0
"""Points further than so many sigma beyond the edges are encoded as the point there; in float32 $c_{50} - c_0$ would soon be 0."""


class ValueFlow(eqx.Module):
    r"""The velocities $\psi_k(s, a, z, t)$: MLPs with layer norm of $[s, a, h(z), \cos t]$."""

    members: tuple[MLP, ...]
    ensemble: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, hidden: tuple[int, ...], *, ensemble: int = 2, key: PRNGKeyArray):
        self.members = tuple(MLP(n_s + n_a + (EDGES - 1) + 1, 1, hidden, key=k) for k in jr.split(key, ensemble))
        self.ensemble = ensemble

    def __call__(
        self, s: Float[Array, " n_s"], a: Float[Array, " n_a"], h: Float[Array, "{self.ensemble} bins"], t: Float[Array, ""]
    ) -> Float[Array, " {self.ensemble}"]:
        """Every member at a point of its own, given by its encoding h."""
        inputs = [jnp.concatenate([s, a, h_k, jnp.cos(t)[None]]) for h_k in h]
        return jnp.concatenate([member(x) for member, x in zip(self.members, inputs, strict=True)])


def edges(data: DataStatistics, discount: float) -> Float[Array, " edges"]:
    r"""$b_0, \dots, b_{50}$, evenly from $(r_{lo} - 0.01)/(1-\gamma)$ to $(r_{hi} + 0.01)/(1-\gamma)$, of the dataset's rewards."""
    return jnp.linspace((data.reward_low - MARGIN) / (1 - discount), (data.reward_high + MARGIN) / (1 - discount), EDGES)


def encode(z: Float[Array, ""], b: Float[Array, " edges"]) -> Float[Array, " edges-1"]:
    r"""$h(z)$: how much of a Gaussian around z, of 16 bins' width, lies in each bin.

    $$c_k = \mathrm{erf}\big((b_k - z) / (\sqrt2\,\sigma)\big), \qquad h_k = (c_{k+1} - c_k) / (c_{50} - c_0)$$
    """
    sigma = SIGMA_IN_BINS * (b[1] - b[0])
    # Start values lie that far out where all rewards of the dataset are nearly the same and none is 0.
    z = jnp.clip(z, b[0] - REACH * sigma, b[-1] + REACH * sigma)
    c = jax.lax.erf((b - z) / (jnp.sqrt(2.0) * sigma))
    return (c[1:] - c[:-1]) / (c[-1] - c[0])


def integrate(
    psi: ValueFlow, s: Float[Array, " n_s"], a: Float[Array, " n_a"], z: Float[Array, ""], b: Float[Array, " edges"], K: int
) -> Float[Array, " {psi.ensemble}"]:
    r"""$\Phi_k(s, a, z)$: Euler, $z_k \leftarrow z_k + \psi_k(s, a, z_k, i/K)/K$ for $i = 0, \dots, K-1$, every member from the same z."""

    def step(z: Float[Array, " members"], t: Float[Array, ""]) -> tuple[Float[Array, " members"], None]:
        h = jax.vmap(lambda z: encode(z, b))(z)
        return z + psi(s, a, h, t) / K, None

    z, _ = jax.lax.scan(step, jnp.broadcast_to(z, (psi.ensemble,)), jnp.arange(K) / K)
    return z


class FloqNoise(eqx.Module):
    """What is random in one copy of a transition: the next action's noise, the start values z' of the target and z, and the time."""

    next_action: Float[Array, "*batch n_a"]
    z_next: Float[Array, "*batch"]
    z: Float[Array, "*batch"]
    t: Float[Array, "*batch"]


def draw_copies(copies: int, n_a: int, data: DataStatistics, discount: float, coverage: float, *, key: PRNGKeyArray) -> FloqNoise:
    r"""Noise for the copies of one transition; $z, z' \sim U(l, u)$ with $l = c\,r_{lo}/(1-\gamma)$ and $u = c\,r_{hi}/(1-\gamma)$."""
    k_action, k_next, k_z, k_t = jr.split(key, 4)
    l, u = coverage * data.reward_low / (1 - discount), coverage * data.reward_high / (1 - discount)
    uniform = lambda k: l + (u - l) * jr.uniform(k, (copies,))
    return FloqNoise(jr.normal(k_action, (copies, n_a)), uniform(k_next), uniform(k_z), jr.uniform(k_t, (copies,)))
