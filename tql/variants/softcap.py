r"""Soft-capped attention logits (Gemma 2, arXiv 2408.00118)."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from tql.attention import AbstractAttention, Logits, Queries, SoftmaxAttention, Tokens
from tql.components import build


class Softcap(AbstractAttention):
    r"""The attention `inner` with its logits capped: $l \leftarrow c\,\tanh(l / c)$, so $|l| < c$.
    The entropy that is measured and controlled is that of the capped logits."""

    inner: AbstractAttention
    c: float = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        inner: Callable[..., AbstractAttention] = SoftmaxAttention,
        c: float = 50.0,  # Gemma 2's.
        key: PRNGKeyArray,
    ):
        """`inner` is the class of the capped attention. Raises `ValueError` unless `c` is above
        0."""
        if not c > 0:
            raise ValueError(f"the logits cannot be capped at {c}; c must be above 0.")
        self.inner = build(inner, d_model, heads, key=key)
        self.c, self.d_model, self.heads = c, d_model, heads

    def logits(self, queries: Queries, x: Tokens) -> Logits:
        return self.c * jnp.tanh(self.inner.logits(queries, x) / self.c)

    def mix(self, logits: Logits, x: Tokens) -> Queries:
        return self.inner.mix(logits, x)
