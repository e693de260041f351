r"""Other critics for the same algorithm: what people change in a transformer when its attention collapses.

Each variant is one small class behind a seam of `Critic` (`make_attention`, `make_block`), or one kind of part replaced in a critic
that is built (`with_rms_norm`, `sigma_reparam.with_sigma_reparam`). They combine: `make_critic` is the list.
"""

from collections.abc import Callable
from functools import partial
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import NORM_EPS, AbstractAttention, AbstractBlock, Block, Norm, SoftmaxAttention
from tql.config import CriticConfig, Variant
from tql.critic import AbstractTransformerCritic, Critic
from tql.linear import Linear, lecun_normal
from tql.sigma_reparam import with_sigma_reparam


class QKNormAttention(SoftmaxAttention):
    r"""QK-norm (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442): queries and keys of one length.

    $$l^h = \mathrm{RMS}(Q^h)\,\mathrm{RMS}(K^h)^\top / \sqrt{d_{head}}$$

    The norms come after the affine maps, over the channels of one head, each with a learned scale per channel that all heads share.
    With scales of 1 a row has length $\sqrt{d_{head}}$, so $|l| \le \sqrt{d_{head}}$: only the scales can sharpen attention further.
    """

    query_norm: eqx.nn.RMSNorm
    key_norm: eqx.nn.RMSNorm

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        super().__init__(d_model, heads, key=key)
        self.query_norm = rms_norm(d_model // heads)
        self.key_norm = rms_norm(d_model // heads)

    def queries_and_keys(
        self, queries: Float[Array, "m {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> tuple[Float[Array, "m {self.heads} d_head"], Float[Array, "n {self.heads} d_head"]]:
        q, k = super().queries_and_keys(queries, x)
        return jax.vmap(jax.vmap(self.query_norm))(q), jax.vmap(jax.vmap(self.key_norm))(k)


class SoftcapAttention(SoftmaxAttention):
    r"""Soft-capped logits (Gemma 2, arXiv 2408.00118): $l \leftarrow c\,\tanh(l / c)$, so $|l| < c$.

    The entropy measured and controlled is that of the capped logits.
    """

    c: float = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, c: float = 50.0, key: PRNGKeyArray):
        """`c` is Gemma 2's for attention unless given; take a smaller one with `partial(SoftcapAttention, c=...)`.

        Raises `ValueError` if `c` is not above 0.
        """
        if not c > 0:
            raise ValueError(f"the logits cannot be capped at {c}; c must be above 0.")
        super().__init__(d_model, heads, key=key)
        self.c = c

    def logits(
        self, queries: Float[Array, "m {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "{self.heads} m n"]:
        l = super().logits(queries, x)
        return self.c * jnp.tanh(l / self.c)


class SwiGLUBlock(AbstractBlock):
    r"""A block with a gated MLP (Shazeer 2020, arXiv 2002.05202):

    $$x \leftarrow x + W_{down}\,\big(\mathrm{silu}(W_{gate}\,h) \odot W_{up}\,h\big), \qquad h = \mathrm{LN}(x)$$

    Its hidden width is 8/3 d_model, rounded up to a multiple of 8, so that three matrices hold what two of 4 d_model do.
    """

    attention_norm: Norm
    attention: AbstractAttention
    mlp_norm: Norm
    mlp_gate: Linear
    mlp_up: Linear
    mlp_down: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, attention: AbstractAttention, *, key: PRNGKeyArray):
        k_gate, k_up, k_down = jr.split(key, 3)
        self.d_model, self.heads = attention.d_model, attention.heads
        hidden = -(-(8 * self.d_model // 3) // 8) * 8
        self.attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.attention = attention
        self.mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.mlp_gate = Linear(lecun_normal, self.d_model, hidden, key=k_gate)
        self.mlp_up = Linear(lecun_normal, self.d_model, hidden, key=k_up)
        self.mlp_down = Linear(lecun_normal, hidden, self.d_model, key=k_down)

    def attention_input(self, x: Float[Array, "n {self.d_model}"]) -> Float[Array, "n {self.d_model}"]:
        return jax.vmap(self.attention_norm)(x)

    def mlp(self, x: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        h = jax.vmap(self.mlp_norm)(x)
        return self.mlp_down(self.activation(self.mlp_gate(h)) * self.mlp_up(h))

    def activation(self, gate: Float[Array, "m hidden"]) -> Float[Array, "m hidden"]:
        return jax.nn.silu(gate)


class GEGLUBlock(SwiGLUBlock):
    """The same with GELU, in its tanh form, on the gate."""

    def activation(self, gate: Float[Array, "m hidden"]) -> Float[Array, "m hidden"]:
        return jax.nn.gelu(gate, approximate=True)


class PostNormBlock(AbstractBlock):
    r"""Any block with norms on the residual stream too, after each addition (a sandwich):

    $$x \leftarrow \mathrm{LN}(x + \mathrm{Attention}(\mathrm{LN}(x))), \qquad x \leftarrow \mathrm{LN}(x + \mathrm{MLP}(\mathrm{LN}(x)))$$

    So no layer's rows can grow. As in the reference the sum is normalised; other sandwiches normalise what is added.
    """

    block: AbstractBlock
    post_attention_norm: Norm
    post_mlp_norm: Norm
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, attention: AbstractAttention, *, make_block: Callable[..., AbstractBlock] = Block, key: PRNGKeyArray):
        """`make_block(attention, key=...)` makes the block that gets the norms."""
        self.d_model, self.heads = attention.d_model, attention.heads
        self.block = make_block(attention, key=key)
        self.post_attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.post_mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)

    @property
    def attention(self) -> AbstractAttention:
        return self.block.attention

    def attention_input(self, x: Float[Array, "n {self.d_model}"]) -> Float[Array, "n {self.d_model}"]:
        return self.block.attention_input(x)

    def mlp(self, x: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        return self.block.mlp(x)

    def join(self, x: Float[Array, "m {self.d_model}"], read: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        x = jax.vmap(self.post_attention_norm)(x + read)
        return jax.vmap(self.post_mlp_norm)(x + self.mlp(x))


def rms_norm(width: int) -> eqx.nn.RMSNorm:
    r"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467): $g \odot x \big/ \sqrt{\langle x^2 \rangle + 10^{-6}}$; no mean, no bias."""
    return eqx.nn.RMSNorm(width, eps=NORM_EPS, use_bias=False)


def with_rms_norm(critic: AbstractTransformerCritic) -> AbstractTransformerCritic:
    """The same critic, every LayerNorm in it an RMSNorm that starts at scale 1."""
    is_norm = lambda node: isinstance(node, eqx.nn.LayerNorm)
    return jax.tree.map(lambda node: rms_norm(*node.shape) if is_norm(node) else node, critic, is_leaf=is_norm)


def make_critic(n_s: int, n_a: int, config: CriticConfig, *, key: PRNGKeyArray) -> AbstractTransformerCritic:
    """The critic that `config` asks for. Raises `ValueError` for a variant that there is not, and for sizes as `Critic` does.

    `modern` is the paper's name for RMSNorm, post-norm, QK-norm and SwiGLU at once; `all` has sigma-reparametrisation besides.
    """
    sizes = {name: getattr(config, name) for name in ("d_model", "layers", "heads", "ensemble")}
    modern_block = partial(PostNormBlock, make_block=SwiGLUBlock)
    build = partial(Critic, n_s, n_a, **sizes, key=key)
    match config.variant:
        case "plain":
            return build()
        case "qk-norm":
            return build(make_attention=QKNormAttention)
        case "sigma-reparam":
            return with_sigma_reparam(build())
        case "rms-norm":
            return with_rms_norm(build())
        case "post-norm":
            return build(make_block=PostNormBlock)
        case "swiglu":
            return build(make_block=SwiGLUBlock)
        case "geglu":
            return build(make_block=GEGLUBlock)
        case "softcap":
            return build(make_attention=SoftcapAttention)
        case "modern":
            return with_rms_norm(build(make_attention=QKNormAttention, make_block=modern_block))
        case "all":
            return with_sigma_reparam(with_rms_norm(build(make_attention=QKNormAttention, make_block=modern_block)))
    raise ValueError(f"there is no critic variant '{config.variant}'; critic.variant is one of {', '.join(get_args(Variant))}.")
