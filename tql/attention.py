r"""Multi-head self-attention that returns its logits, the entropy of its rows, and the block around it (paper section 4).

Attention is split where the paper looks at it. `logits` says how much each query wants each key; `mix` turns logits into an
output. Whoever wants the attention of all rows but the output of one (the critic's last block) asks for just that.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.linear import Linear, lecun_normal

D_HEAD = 32
"""Channels per head at every width of the paper, so heads = d_model / 32."""

NORM_EPS = 1e-6
"""Flax's LayerNorm epsilon; Equinox's default is 1e-5 (the difference moves Q by 1e-4)."""

Norm = eqx.nn.LayerNorm | eqx.nn.RMSNorm
"""What may normalise one row: `LayerNorm`, or `RMSNorm` in a variant."""


class AbstractAttention(eqx.Module):
    """The seam for other attentions: how `m` query rows weigh `n` rows, and what they read from them."""

    d_model: eqx.AbstractVar[int]
    heads: eqx.AbstractVar[int]

    @abc.abstractmethod
    def logits(
        self, queries: Float[Array, "m {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "{self.heads} m n"]:
        """Attention logits of the rows `queries` over the rows `x`; their softmax over the last axis is the attention."""
        raise NotImplementedError

    @abc.abstractmethod
    def mix(
        self, logits: Float[Array, "{self.heads} m n"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "m {self.d_model}"]:
        """What the query rows read from `x` with these logits."""
        raise NotImplementedError


class SoftmaxAttention(AbstractAttention):
    r"""$$l^h = Q^h {K^h}^\top / \sqrt{d_{head}}, \qquad A^h = \mathrm{softmax}(l^h), \qquad
    \mathrm{out} = [A^1 V^1, \dots, A^H V^H]\, W_O + b_O$$

    $Q, K, V$ are affine maps of the (normalised) rows, with bias; no mask, no dropout.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        """Raises `ValueError` if there is no head, or if the heads do not share the width evenly."""
        if heads < 1 or d_model < 1 or d_model % heads:
            raise ValueError(f"d_model {d_model} is not a multiple of heads {heads}; every head needs d_model / heads channels.")
        k_query, k_key, k_value, k_out = jr.split(key, 4)
        self.query = Linear(lecun_normal, d_model, d_model, key=k_query)
        self.key = Linear(lecun_normal, d_model, d_model, key=k_key)
        self.value = Linear(lecun_normal, d_model, d_model, key=k_value)
        self.out = Linear(lecun_normal, d_model, d_model, key=k_out)
        self.d_model, self.heads = d_model, heads

    def logits(
        self, queries: Float[Array, "m {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "{self.heads} m n"]:
        q, k = self.queries_and_keys(queries, x)
        return jnp.einsum("mhd,nhd->hmn", q, k) / math.sqrt(self.d_model // self.heads)

    def mix(
        self, logits: Float[Array, "{self.heads} m n"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "m {self.d_model}"]:
        v = self._split(self.value(x))
        read = jnp.einsum("hmn,nhd->mhd", jax.nn.softmax(logits), v)
        return self.out(read.reshape(-1, self.d_model))

    def queries_and_keys(
        self, queries: Float[Array, "m {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> tuple[Float[Array, "m {self.heads} d_head"], Float[Array, "n {self.heads} d_head"]]:
        """$Q$ of the rows `queries` and $K$ of the rows `x`, cut into heads."""
        return self._split(self.query(queries)), self._split(self.key(x))

    def _split(self, rows: Float[Array, "n {self.d_model}"]) -> Float[Array, "n {self.heads} d_head"]:
        return rows.reshape(rows.shape[0], self.heads, -1)


def row_entropy(logits: Float[Array, " n"]) -> Float[Array, ""]:
    r"""Entropy, in nats, of one attention row from its logits: $H = \log\sum_j e^{l_j} - \sum_j p_j\,l_j$, in $[0, \ln n]$.

    The textbook form $-\sum_j p_j \log p_j$ has NaN gradients as soon as one $p_j$ underflows, which is exactly under collapse.
    """
    # H does not change when all logits move together; moved to a maximum of 0 it loses no digits, however large they are.
    l = logits - jax.lax.stop_gradient(jnp.max(logits))
    p = jax.nn.softmax(l)
    return jax.nn.logsumexp(l) - jnp.sum(p * l)


def group_entropy(logits: Float[Array, "heads n n"]) -> Float[Array, " 2"]:
    r"""Entropy of one layer in the paper's two groups: `[VALUE]`'s query, and the mean of all other queries; mean over heads."""
    h = jax.vmap(jax.vmap(row_entropy))(logits)
    return jnp.stack([jnp.mean(h[:, 0]), jnp.mean(h[:, 1:])])


class AbstractBlock(eqx.Module):
    r"""The seam for other blocks: three rules for rows, each applied to every row by itself.

    $$h = \mathrm{attention\_input}(x), \qquad r = \mathrm{Attention}(h), \qquad x \leftarrow \mathrm{join}(x, r)$$

    Rows meet in the attention alone. So row 0 of the output needs all of $h$ but only its own query, and the three ways to ask for
    it follow from the rules. A new block gives `attention_input` and `mlp`, and `join` only if it adds otherwise.
    """

    attention: eqx.AbstractVar[AbstractAttention]
    d_model: eqx.AbstractVar[int]
    heads: eqx.AbstractVar[int]

    @abc.abstractmethod
    def attention_input(self, x: Float[Array, "n {self.d_model}"]) -> Float[Array, "n {self.d_model}"]:
        """The rows as attention sees them."""
        raise NotImplementedError

    @abc.abstractmethod
    def mlp(self, x: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        """What the MLP adds to the rows, its norm included."""
        raise NotImplementedError

    def join(self, x: Float[Array, "m {self.d_model}"], read: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        """The block's output for the rows x, of which attention read `read`."""
        x = x + read
        return x + self.mlp(x)

    def __call__(
        self, x: Float[Array, "n {self.d_model}"]
    ) -> tuple[Float[Array, "n {self.d_model}"], Float[Array, "{self.heads} n n"]]:
        """The whole block: every row's output, and the logits of every row."""
        h = self.attention_input(x)
        logits = self.attention.logits(h, h)
        return self.join(x, self.attention.mix(logits, h)), logits

    def first_row(self, x: Float[Array, "n {self.d_model}"]) -> Float[Array, " {self.d_model}"]:
        """Row 0 of the block's output, without computing any other row."""
        h = self.attention_input(x)
        logits = self.attention.logits(h[:1], h)
        return self.join(x[:1], self.attention.mix(logits, h))[0]

    def first_row_all_logits(
        self, x: Float[Array, "n {self.d_model}"]
    ) -> tuple[Float[Array, " {self.d_model}"], Float[Array, "{self.heads} n n"]]:
        """Row 0 of the block's output, and the logits of every row: what the entropy of the last layer needs."""
        h = self.attention_input(x)
        logits = self.attention.logits(h, h)
        return self.join(x[:1], self.attention.mix(logits[:, :1], h))[0], logits


class Block(AbstractBlock):
    r"""The paper's block, with norms before what they feed (pre-norm).

    $$x \leftarrow x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad x \leftarrow x + W_2\,\mathrm{gelu}(W_1\,\mathrm{LN}(x))$$

    The MLP is `d_model -> 4 d_model -> d_model`; GELU in its tanh form.
    """

    attention_norm: Norm
    attention: AbstractAttention
    mlp_norm: Norm
    mlp_in: Linear
    mlp_out: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, attention: AbstractAttention, *, key: PRNGKeyArray):
        k_in, k_out = jr.split(key)
        self.d_model, self.heads = attention.d_model, attention.heads
        self.attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.attention = attention
        self.mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.mlp_in = Linear(lecun_normal, self.d_model, 4 * self.d_model, key=k_in)
        self.mlp_out = Linear(lecun_normal, 4 * self.d_model, self.d_model, key=k_out)

    def attention_input(self, x: Float[Array, "n {self.d_model}"]) -> Float[Array, "n {self.d_model}"]:
        return jax.vmap(self.attention_norm)(x)

    def mlp(self, x: Float[Array, "m {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        h = jax.vmap(self.mlp_norm)(x)
        return self.mlp_out(jax.nn.gelu(self.mlp_in(h), approximate=True))
