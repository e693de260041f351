r"""Implicit Q-learning's value functions (Kostrikov, Nair, Levine 2022): no action outside the dataset is ever asked for.

V(s) regresses to an upper expectile of Q(s, a) over the dataset's actions, and Q to one step ahead of V. IQL and IFQL share it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tql.critic import AbstractCritic
from tql.data import Batch
from tql.mlp import MLP


def check_expectile(kappa: float) -> None:
    """Raises `ValueError` for what is no expectile."""
    if not 0 < kappa < 1:
        raise ValueError(f"kappa is {kappa}; an expectile lies between 0 and 1, and above one half to be an upper one.")


def expectile_loss(u: Float[Array, ""], kappa: float) -> Float[Array, ""]:
    r"""$\ell_\kappa(u) = \kappa\,u^2$ if $u \ge 0$, else $(1 - \kappa)\,u^2$; its minimiser over a shift is the $\kappa$-expectile."""
    return jnp.where(u >= 0, kappa, 1 - kappa) * u**2


def value_loss(V: MLP, target_critic: AbstractCritic, batch: Batch, kappa: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$\langle \ell_\kappa(\min_k \bar Q_k(s, a) - V(s)) \rangle$. Moves V; also returns the mean of V."""

    def one(row: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        Q, v = jnp.min(target_critic(row.observations, row.actions)), V(row.observations)[0]
        return expectile_loss(Q - v, kappa), v

    loss, v = jax.vmap(one)(batch)
    return jnp.mean(loss), jnp.mean(v)


def q_loss(critic: AbstractCritic, V: MLP, batch: Batch, discount: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$y = r + \gamma\,m\,V(s')$ and $\langle \sum_k (Q_k(s, a) - y)^2 \rangle$: a sum over the K members, as in the reference.

    Moves the critic; also returns the mean of Q. V is the online one, without a gradient.
    """

    def one(row: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        y = row.rewards + discount * row.masks * V(row.next_observations)[0]
        Q = critic(row.observations, row.actions)
        return jnp.sum((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.vmap(one)(batch)
    return jnp.mean(loss), jnp.mean(Q)
