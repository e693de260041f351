r"""Sigma-reparametrisation: every affine map of a critic learns its spectral norm (Zhai et al. 2023, arXiv 2303.06296).

$$\hat W = \frac{\sigma}{s(W)}\,W, \qquad y = \hat W x + b$$

$s(W)$ is an estimate of the largest singular value, so the direction of $W$ is learned apart from its size, $\sigma$, which starts
at 1. Zhai et al. bound the attention logits this way to prevent the collapse that TQL prevents by its temperatures.
"""

from dataclasses import fields

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tql.critic import AbstractTransformerCritic
from tql.linear import Linear
from tql.tokenizer import ScalarTokenizer

ROUNDS = 5
"""Of power iteration. They do not converge, so the number matters: 4 or 6 move Q by 1e-3 to 1e-2 at width 64."""

EPS = 1e-6


def spectral_norm(W: Float[Array, "d_out d_in"]) -> Float[Array, ""]:
    r"""About the largest singular value of W, by power iteration from $u \propto 1$:

    $$v \leftarrow \mathrm{unit}(W^\top u), \quad u \leftarrow \mathrm{unit}(W v) \quad (5\times), \qquad
    v \leftarrow \mathrm{unit}(W^\top u), \quad s = u^\top W v$$

    As in the reference it starts afresh in every forward pass, and the gradient takes u and v for constants. Never above the true
    norm, never below 1e-6.
    """
    unit = lambda x: x / (jnp.linalg.norm(x) + EPS)
    constant = jax.lax.stop_gradient(W)
    u = unit(jnp.ones(W.shape[0], W.dtype))
    u = jax.lax.fori_loop(0, ROUNDS, lambda _, u: unit(constant @ unit(constant.T @ u)), u)
    v = unit(constant.T @ u)
    return jnp.maximum(u @ W @ v, EPS)


class SigmaLinear(Linear):
    r"""$y = \frac{\sigma}{s(W)} W x + b$. Weight decay shrinks W, as in every `Linear`, and leaves $\sigma$ alone.

    The reference starts W of queries, keys and values smaller by $\sqrt{heads}$ here; $\hat W$ does not depend on it and this
    project keeps W as it was drawn. (A smaller W turns further in a step of the same length.)
    """

    sigma: Float[Array, ""]

    def __init__(self, linear: Linear):
        """The map `linear`, its matrix now a direction."""
        self.weight, self.bias, self.d_in, self.d_out = linear.weight, linear.bias, linear.d_in, linear.d_out
        self.sigma = jnp.ones(())

    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        W_hat = self.sigma / spectral_norm(self.weight) * self.weight
        return Linear.__call__(eqx.tree_at(lambda m: m.weight, self, W_hat), x)


class SigmaTokenizer(ScalarTokenizer):
    r"""The paper's tokenizer with its two input maps $w_s, w_a$ (matrices of one column) as $\frac{\sigma}{s(w)}\,w$."""

    sigma_s: Float[Array, ""]
    sigma_a: Float[Array, ""]

    def __init__(self, tokenizer: ScalarTokenizer):
        """The tokenizer `tokenizer`, its two input maps now directions."""
        for field in fields(ScalarTokenizer):
            setattr(self, field.name, getattr(tokenizer, field.name))
        self.sigma_s, self.sigma_a = jnp.ones(()), jnp.ones(())

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, "{self.n} {self.d_model}"]:
        w_s = self.sigma_s / spectral_norm(self.w_s[:, None]) * self.w_s
        w_a = self.sigma_a / spectral_norm(self.w_a[:, None]) * self.w_a
        return ScalarTokenizer.__call__(eqx.tree_at(lambda t: (t.w_s, t.w_a), self, (w_s, w_a)), s, a)


SIGMA = {Linear: SigmaLinear, ScalarTokenizer: SigmaTokenizer}
"""What stands for what."""


def with_sigma_reparam(critic: AbstractTransformerCritic) -> AbstractTransformerCritic:
    """The same critic, every `Linear` in it a `SigmaLinear` and the paper's tokenizer a `SigmaTokenizer`: all affine maps that it has."""
    is_map = lambda node: type(node) in SIGMA
    return jax.tree.map(lambda node: SIGMA[type(node)](node) if is_map(node) else node, critic, is_leaf=is_map)
