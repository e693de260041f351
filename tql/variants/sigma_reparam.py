r"""Sigma-reparametrisation: every affine map of a critic learns its spectral norm (Zhai et al.
2023, arXiv 2303.06296).

$$\hat W = \frac{\sigma}{s(W)}\,W, \qquad y = \hat W x + b$$

$s(W)$ is an estimate of the largest singular value. So the direction of $W$ is learned apart from
its size $\sigma$, which starts at 1. Zhai et al. bound the attention logits in this way, and so
prevent the collapse that TQL prevents by its temperatures.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tql.critic import AbstractCritic
from tql.layers import AbstractMap, Linear
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer

ROUNDS = 5
"""Rounds of power iteration. They do not converge, so their number matters: with 4 or 6 of them Q
moves by 1e-3 to 1e-2 at width 64."""

EPS = 1e-6


def spectral_norm(W: Float[Array, "d_out d_in"]) -> Float[Array, ""]:
    r"""About the largest singular value of W, by power iteration from $u \propto 1$:

    $$v \leftarrow \mathrm{unit}(W^\top u), \quad u \leftarrow \mathrm{unit}(W v) \quad (5\times),
    \qquad v \leftarrow \mathrm{unit}(W^\top u), \quad s = u^\top W v$$

    As in the reference it starts afresh in every forward pass, and the gradient takes u and v for
    constants. It is never above the true norm and never below 1e-6.
    """
    unit = lambda x: x / (jnp.linalg.norm(x) + EPS)
    constant = jax.lax.stop_gradient(W)
    u = unit(jnp.ones(W.shape[0], W.dtype))
    u = jax.lax.fori_loop(0, ROUNDS, lambda _, u: unit(constant @ unit(constant.T @ u)), u)
    v = unit(constant.T @ u)
    return jnp.maximum(u @ W @ v, EPS)


class SigmaLinear(AbstractMap):
    r"""$y = \frac{\sigma}{s(W)} W x + b$. Weight decay shrinks W, but not $\sigma$.

    The reference starts W of queries, keys and values smaller by $\sqrt{heads}$ here. $\hat W$
    does not depend on it, so W stays as it was drawn. (A smaller W turns further in equal steps.)
    """

    linear: Linear
    sigma: Float[Array, ""]
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(self, linear: Linear):
        """The map `linear`, whose matrix is now a direction."""
        self.linear, self.sigma = linear, jnp.ones(())
        self.d_in, self.d_out = linear.d_in, linear.d_out

    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        W = self.linear.weight
        W_hat = self.sigma / spectral_norm(W) * W
        return eqx.tree_at(lambda linear: linear.weight, self.linear, W_hat)(x)


class SigmaTokenizer(AbstractTokenizer):
    r"""The paper's tokenizer with its two input maps, which are matrices of one column, as
    $\frac{\sigma}{s(w)}\,w$."""

    tokenizer: ScalarTokenizer
    sigma_s: Float[Array, ""]
    sigma_a: Float[Array, ""]

    def __init__(self, tokenizer: ScalarTokenizer):
        """The tokenizer `tokenizer`, whose two input maps are now directions."""
        self.tokenizer, self.sigma_s, self.sigma_a = tokenizer, jnp.ones(()), jnp.ones(())

    def __call__(
        self, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
    ) -> Float[Array, "n d_model"]:
        maps = lambda tokenizer: (tokenizer.w_s, tokenizer.w_a)
        w_s, w_a = maps(self.tokenizer)
        w_s = self.sigma_s / spectral_norm(w_s[:, None]) * w_s
        w_a = self.sigma_a / spectral_norm(w_a[:, None]) * w_a
        return eqx.tree_at(maps, self.tokenizer, (w_s, w_a))(s, a)


def with_sigma_reparam(critic: AbstractCritic) -> AbstractCritic:
    """The same critic with every `Linear` in a `SigmaLinear` and the paper's tokenizer in a
    `SigmaTokenizer`, which are all the affine maps that it has."""
    wrappers = {Linear: SigmaLinear, ScalarTokenizer: SigmaTokenizer}
    is_map = lambda node: type(node) in wrappers
    wrap = lambda node: wrappers[type(node)](node) if is_map(node) else node
    return jax.tree.map(wrap, critic, is_leaf=is_map)
