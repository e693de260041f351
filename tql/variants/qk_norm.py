r"""QK-norm: queries and keys of one length (Henry et al. 2020, arXiv 2010.04245; Dehghani et al.
2023, arXiv 2302.05442)."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import AbstractAttention, Logits, Queries, SoftmaxAttention, Tokens
from tql.components import build
from tql.layers import AbstractMap
from tql.variants.rms_norm import rms_norm


class NormedPerHead(AbstractMap):
    """The map `inner`, its output normalised over the channels of each head; all heads share one
    learned scale per channel."""

    inner: AbstractMap
    norm: eqx.nn.RMSNorm
    heads: int = eqx.field(static=True)
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(self, inner: AbstractMap, heads: int):
        self.inner, self.norm, self.heads = inner, rms_norm(inner.d_out // heads), heads
        self.d_in, self.d_out = inner.d_in, inner.d_out

    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        y = self.inner(x)
        per_head = y.reshape(-1, self.heads, self.d_out // self.heads)
        return jax.vmap(jax.vmap(self.norm))(per_head).reshape(y.shape)


class QKNorm(AbstractAttention):
    r"""The attention `inner` with its queries and keys normalised:
    $l^h = \mathrm{RMS}(Q^h)\,\mathrm{RMS}(K^h)^\top / \sqrt{d_{head}}$.

    The norms follow the maps `query` and `key`, which `inner` must have. At scale 1 a row has
    length $\sqrt{d_{head}}$, so $|l| \le \sqrt{d_{head}}$: only the scales can sharpen it further.
    """

    inner: AbstractAttention
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        inner: Callable[..., AbstractAttention] = SoftmaxAttention,
        key: PRNGKeyArray,
    ):
        """`inner` is a class. Raises `ValueError` unless it has maps `query` and `key`."""
        attention, maps = build(inner, d_model, heads, key=key), lambda a: (a.query, a.key)
        if not (hasattr(attention, "query") and hasattr(attention, "key")):
            raise ValueError(
                f"{type(attention).__name__} has no maps `query` and `key` that qk-norm could "
                "normalise; name qk-norm after other wrappers, as in softcap+qk-norm."
            )
        normed = tuple(NormedPerHead(map_, heads) for map_ in maps(attention))
        self.inner = eqx.tree_at(maps, attention, normed)
        self.d_model, self.heads = d_model, heads

    def logits(self, queries: Queries, x: Tokens) -> Logits:
        return self.inner.logits(queries, x)

    def mix(self, logits: Logits, x: Tokens) -> Queries:
        return self.inner.mix(logits, x)
