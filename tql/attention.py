r"""Multi-head self-attention that returns its logits, the entropy of its rows, and the block around
it (paper section 4).

Attention is split where the paper looks at it: `logits` says how much each query wants each key,
and `mix` turns logits into an output. So the critic's last block can have the attention of all rows
and the output of one.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.components import checked
from tql.layers import NORM_EPS, AbstractMap, Linear, Norm, lecun_normal

# Shapes of methods; `self` is the attention or the block.
Tokens = Float[Array, "n {self.d_model}"]
Queries = Float[Array, "m {self.d_model}"]
Logits = Float[Array, "{self.heads} m n"]
AllLogits = Float[Array, "heads n n"]


class AbstractAttention(eqx.Module):
    """The seam for other attentions: how m query rows weigh n rows, and what they read from them.
    One is built by `Mine(d_model, heads, key=key)`."""

    d_model: eqx.AbstractVar[int]
    heads: eqx.AbstractVar[int]

    @abc.abstractmethod
    def logits(self, queries: Queries, x: Tokens) -> Logits:
        """Attention logits of the rows `queries` over the rows `x`; their softmax over the last
        axis is the attention."""

    @abc.abstractmethod
    def mix(self, logits: Logits, x: Tokens) -> Queries:
        """What the query rows read from the rows `x` with these logits."""


class SoftmaxAttention(AbstractAttention):
    r"""The paper's attention, without a mask and without dropout:

    $$l^h = Q^h {K^h}^\top / \sqrt{d_{head}}, \qquad A^h = \mathrm{softmax}(l^h), \qquad
    \mathrm{out} = [A^1 V^1, \dots, A^H V^H]\, W_O + b_O$$

    $Q, K, V$ are affine maps, with bias, of the rows.
    """

    query: AbstractMap
    key: AbstractMap
    value: AbstractMap
    out: AbstractMap
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        """Raises `ValueError` if there is no head, or if heads cannot share the width evenly."""
        if heads < 1 or d_model < 1 or d_model % heads:
            raise ValueError(f"d_model {d_model} is not a multiple of the number of heads {heads}.")
        k_query, k_key, k_value, k_out = jr.split(key, 4)
        make_map = lambda key: Linear(lecun_normal, d_model, d_model, key=key)
        self.query, self.key = make_map(k_query), make_map(k_key)
        self.value, self.out = make_map(k_value), make_map(k_out)
        self.d_model, self.heads = d_model, heads

    def logits(self, queries: Queries, x: Tokens) -> Logits:
        Q, K = self._split(self.query(queries)), self._split(self.key(x))
        return jnp.einsum("hmd,hnd->hmn", Q, K) / math.sqrt(self.d_model // self.heads)

    def mix(self, logits: Logits, x: Tokens) -> Queries:
        A, V = jax.nn.softmax(logits), self._split(self.value(x))
        read = jnp.einsum("hmn,hnd->hmd", A, V).swapaxes(0, 1)
        return self.out(read.reshape(-1, self.d_model))

    def _split(self, rows: Tokens) -> Float[Array, "{self.heads} n d_head"]:
        return rows.reshape(rows.shape[0], self.heads, -1).swapaxes(0, 1)


def row_entropy(logits: Float[Array, " n"]) -> Float[Array, ""]:
    r"""Entropy in nats, between 0 and $\ln n$, of one attention row, from its logits:
    $H = \log Z - \sum_j p_j\,l_j$ with $Z = \sum_j e^{l_j}$ and $p_j = e^{l_j} / Z$.

    The textbook form $-\sum_j p_j \log p_j$ has NaN gradients as soon as one $p_j$ underflows, and
    under collapse they do.
    """
    # H does not change when all logits move together; with a maximum of 0 it loses no digits.
    l = logits - jax.lax.stop_gradient(jnp.max(logits))
    e = jnp.exp(l)
    Z = jnp.sum(e)
    p = e / Z
    return jnp.log(Z) - jnp.sum(p * l)


def group_entropy(logits: AllLogits) -> Float[Array, " 2"]:
    r"""Entropy in nats of one layer in the paper's two groups: the query of `[VALUE]`, and the mean
    of all other queries. Both are means over heads."""
    h = jax.vmap(jax.vmap(row_entropy))(logits)
    return jnp.stack([jnp.mean(h[:, 0]), jnp.mean(h[:, 1:])])


class AbstractBlock(eqx.Module):
    r"""The seam for other blocks: three rules for rows, each applied to every row by itself.

    $$h = \mathrm{attention\_input}(x), \qquad r = \mathrm{Attention}(h), \qquad
    x \leftarrow \mathrm{join}(x, r)$$

    Tokens meet in the attention alone, so row 0 of the output needs all of $h$ but only its own
    query. A block is built by `Mine(attention, key=key)`. It gives `attention_input` and `mlp`, and
    `join` only if it adds in another way.
    """

    attention: eqx.AbstractVar[AbstractAttention]
    d_model: eqx.AbstractVar[int]

    @abc.abstractmethod
    def attention_input(self, x: Tokens) -> Tokens:
        """The rows as attention sees them."""

    @abc.abstractmethod
    def mlp(self, x: Queries) -> Queries:
        """What the MLP adds to the rows, its norm included."""

    def join(self, x: Queries, read: Queries) -> Queries:
        """The block's output for the rows `x`, for which attention has read `read`."""
        x = x + read
        return x + checked(self.mlp(x), x.shape, "block.mlp(x)")

    def __call__(self, x: Tokens) -> tuple[Tokens, AllLogits]:
        """The whole block: the output of every row, and the logits of every row."""
        h, l = self._attend(x, x.shape[0])
        return self._output(x, l, h), l

    def first_row(self, x: Tokens) -> Float[Array, " {self.d_model}"]:
        """Row 0 of the block's output, without computing any other row."""
        h, l = self._attend(x, 1)
        return self._output(x[:1], l, h)[0]

    def first_row_all_logits(self, x: Tokens) -> tuple[Float[Array, " {self.d_model}"], AllLogits]:
        """Row 0 of the block's output, and the logits of every row, which the entropy needs."""
        h, l = self._attend(x, x.shape[0])
        return self._output(x[:1], l[:, :1], h)[0], l

    def _attend(self, x: Tokens, m: int) -> tuple[Tokens, Float[Array, "heads {m} n"]]:
        """The rows as attention sees them, and the logits of the first m of them."""
        h = checked(self.attention_input(x), x.shape, "block.attention_input(x)")
        shape = (self.attention.heads, m, x.shape[0])
        return h, checked(self.attention.logits(h[:m], h), shape, "attention.logits(queries, x)")

    def _output(self, x: Queries, l: Float[Array, "heads m n"], h: Tokens) -> Queries:
        """The output of the rows `x`, whose logits over the rows `h` are `l`."""
        read = checked(self.attention.mix(l, h), x.shape, "attention.mix(logits, x)")
        return checked(self.join(x, read), x.shape, "block.join(x, read)")


class Block(AbstractBlock):
    r"""The paper's block, which normalises before attention and before the MLP (pre-norm):

    $$x \leftarrow x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad
    x \leftarrow x + W_2\,\mathrm{gelu}(W_1\,\mathrm{LN}(x))$$

    The MLP is `d_model -> 4 d_model -> d_model`, with GELU in its tanh form.
    """

    attention_norm: Norm
    attention: AbstractAttention
    mlp_norm: Norm
    mlp_in: AbstractMap
    mlp_out: AbstractMap
    d_model: int = eqx.field(static=True)

    def __init__(self, attention: AbstractAttention, *, key: PRNGKeyArray):
        k_in, k_out = jr.split(key)
        self.d_model = attention.d_model
        self.attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.attention = attention
        self.mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.mlp_in = Linear(lecun_normal, self.d_model, 4 * self.d_model, key=k_in)
        self.mlp_out = Linear(lecun_normal, 4 * self.d_model, self.d_model, key=k_out)

    def attention_input(self, x: Tokens) -> Tokens:
        return jax.vmap(self.attention_norm)(x)

    def mlp(self, x: Queries) -> Queries:
        h = jax.vmap(self.mlp_norm)(x)
        return self.mlp_out(jax.nn.gelu(self.mlp_in(h), approximate=True))


ATTENTIONS = {
    "softmax": SoftmaxAttention,
    "qk-norm": "tql.variants.qk_norm:QKNorm", "softcap": "tql.variants.softcap:Softcap",
}
"""Attentions by the short names that settings may use. The last two are wrappers: they combine."""

BLOCKS = {
    "pre-norm": Block, "sandwich": "tql.variants.sandwich:Sandwich",
    "swiglu": "tql.variants.gated:SwiGLU", "geglu": "tql.variants.gated:GEGLU",
}
"""Blocks by the short names that settings may use; `sandwich` is a wrapper."""
