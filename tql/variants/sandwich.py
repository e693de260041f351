"""A block whose residual stream is normalised after each addition too."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from tql.attention import AbstractAttention, AbstractBlock, Block, Queries, Tokens
from tql.components import build
from tql.layers import NORM_EPS, Norm


class Sandwich(AbstractBlock):
    r"""The block `inner` with a norm after each addition:

    $$x \leftarrow \mathrm{LN}(x + \mathrm{Attention}(\mathrm{LN}(x))), \qquad
    x \leftarrow \mathrm{LN}(x + \mathrm{MLP}(\mathrm{LN}(x)))$$

    So the rows of no layer can grow. As in the reference the sum is normalised; other sandwiches
    normalise what is added.
    """

    inner: AbstractBlock
    post_attention_norm: Norm
    post_mlp_norm: Norm
    d_model: int = eqx.field(static=True)

    def __init__(
        self,
        attention: AbstractAttention,
        *,
        inner: Callable[..., AbstractBlock] = Block,
        key: PRNGKeyArray,
    ):
        """`inner` is the class of the block that gets the norms."""
        self.d_model = attention.d_model
        self.inner = build(inner, attention, key=key)
        self.post_attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.post_mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)

    @property
    def attention(self) -> AbstractAttention:
        return self.inner.attention

    def attention_input(self, x: Tokens) -> Tokens:
        return self.inner.attention_input(x)

    def mlp(self, x: Queries) -> Queries:
        return self.inner.mlp(x)

    def join(self, x: Queries, read: Queries) -> Queries:
        x = jax.vmap(self.post_attention_norm)(x + read)
        return jax.vmap(self.post_mlp_norm)(x + self.mlp(x))
