r"""What the paper looks at in a critic: Q over actions and how rough it is, and where attention
goes.

Every function takes a critic and one pair (s, a); `vmap` it over a batch. Q is the mean over the
K heads, in discounted reward. Actions are in [-1, 1] and have no unit; entropies are in nats. The
paper shows landscapes and attention maps. The two numbers for a landscape, `roughness` and
`turning_points`, are this project's own."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tql.attention import row_entropy
from tql.critic import AbstractCritic

OFFSETS = np.linspace(-0.5, 0.5, 11)
"""The landscape's 11 offsets along each of its two action dimensions."""

SLICE = np.linspace(-1, 1, 41)
"""The 41 points of a slice: the whole range of one action dimension."""


def mean_q(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
) -> Float[Array, ""]:
    r"""$\bar Q(s, a) = \frac1K \sum_k Q_k(s, a)$."""
    return jnp.mean(critic(s, a))


def landscape(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"], i: int, j: int
) -> Float[Array, "11 11"]:
    r"""$\bar Q(s, a + \delta_i e_i + \delta_j e_j)$ for $\delta_i$ (rows) and $\delta_j$
    (columns) in `OFFSETS`.

    Coordinates i and j of `a` are first clipped to [-0.5, 0.5], so that the grid stays among the
    actions. Raises `ValueError` unless i and j are two different dimensions of the action.
    """
    _check_dimension(i, a)
    _check_dimension(j, a)
    if i == j:
        raise ValueError(f"a landscape needs two different action dimensions; got {i} twice.")
    two = jnp.array([i, j])
    centre = a.at[two].set(jnp.clip(a[two], OFFSETS[0].item(), OFFSETS[-1].item()))
    delta = jnp.asarray(OFFSETS, a.dtype)

    def q(d_i: Float[Array, ""], d_j: Float[Array, ""]) -> Float[Array, ""]:
        return mean_q(critic, s, centre.at[two].add(jnp.stack([d_i, d_j])))

    return jax.vmap(lambda d_i: jax.vmap(lambda d_j: q(d_i, d_j))(delta))(delta)


def q_slice(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"], i: int
) -> Float[Array, " 41"]:
    r"""$\bar Q$ with $a_i$ at every point of `SLICE`; the other dimensions of `a` stay.

    Raises `ValueError` unless i is a dimension of the action.
    """
    _check_dimension(i, a)
    return jax.vmap(lambda x: mean_q(critic, s, a.at[i].set(x)))(jnp.asarray(SLICE, a.dtype))


def _check_dimension(i: int, a: Float[Array, " n_a"]) -> None:
    # JAX would drop or clamp such an index without a word.
    if not 0 <= i < a.shape[0]:
        raise ValueError(
            f"there is no action dimension {i}; this action has dimensions 0 to {a.shape[0] - 1}."
        )


def roughness(grid: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""Mean squared second difference along both axes, over the variance of the grid; no unit.

    $$\frac{\langle (Q_{k-1} - 2 Q_k + Q_{k+1})^2 \rangle}
           {\langle (Q - \langle Q \rangle)^2 \rangle}$$

    A plane has 0, and so has a constant grid (0/0 is taken as 0). Independent noise has 6. The
    number does not change when Q is scaled or shifted. It depends on the grid's spacing, so
    compare equal grids only. A small value can mean a smooth landscape or a large range of Q, so
    look at the variance too. Where Q is flat up to rounding, this measures the rounding."""
    squares = [jnp.ravel(jnp.diff(grid, n=2, axis=axis) ** 2) for axis in (0, 1)]
    variance = jnp.var(grid)
    mean_square = jnp.mean(jnp.concatenate(squares))
    return jnp.where(variance > 0, mean_square / jnp.where(variance > 0, variance, 1), 0)


def turning_points(line: Float[Array, " points"]) -> Int[Array, ""]:
    """How often Q turns from rising to falling or back along a slice. Level steps are skipped. Any
    size of turn counts, rounding too."""
    direction = jnp.sign(jnp.diff(line))
    # Every level step takes the direction of the last step that was not level; level steps at the
    # start keep 0.
    steps = jnp.arange(direction.shape[0])
    last = jax.lax.cummax(jnp.where(direction != 0, steps, 0))
    filled = direction[last]
    return jnp.sum(filled[1:] * filled[:-1] < 0)


def sensitivity(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
) -> Float[Array, ""]:
    r"""$|\partial \bar Q / \partial a|$, the Euclidean length over action dimensions, in discounted
    reward per unit of action."""
    return jnp.linalg.norm(jax.grad(lambda a: mean_q(critic, s, a))(a))


def attention_maps(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
) -> Float[Array, "layers heads n n"]:
    """Attention as probabilities: each row is one query and sums to 1. Rows and columns are
    `[VALUE]`, states, actions."""
    _, logits = critic.with_attention(s, a)
    return jax.nn.softmax(logits)


def head_entropies(
    critic: AbstractCritic, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
) -> Float[Array, "layers heads 2"]:
    """Attention entropy, in nats, per layer, head and group: `[VALUE]`'s query, and the mean of all
    other queries. Its mean over heads is what the controller sees (`attention.group_entropy`)."""
    _, logits = critic.with_attention(s, a)
    h = jax.vmap(jax.vmap(jax.vmap(row_entropy)))(logits)
    return jnp.stack([h[..., 0], jnp.mean(h[..., 1:], axis=-1)], axis=-1)


def effective_tokens(H: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """exp(H): over how many tokens attention of entropy H (nats) is spread, if it is spread evenly;
    from 1 to n."""
    return jnp.exp(H)
