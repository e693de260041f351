r"""Blocks with a gated MLP (Shazeer 2020, arXiv 2002.05202)."""

import abc

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import AbstractAttention, AbstractBlock, Queries, Tokens
from tql.layers import NORM_EPS, AbstractMap, Linear, Norm, lecun_normal

Hidden = Float[Array, "m hidden"]


class AbstractGated(AbstractBlock):
    r"""A pre-norm block whose MLP multiplies what goes through it by a gate:

    $$x \leftarrow x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad
    x \leftarrow x + W_{down}\,\big(\mathrm{act}(W_{gate}\,h) \odot W_{up}\,h\big), \quad
    h = \mathrm{LN}(x)$$

    The hidden width is 8/3 `d_model`, rounded up to a multiple of 8, so three matrices hold about
    as many numbers as the two of the paper's block.
    """

    attention_norm: Norm
    attention: AbstractAttention
    mlp_norm: Norm
    mlp_gate: AbstractMap
    mlp_up: AbstractMap
    mlp_down: AbstractMap
    d_model: int = eqx.field(static=True)

    def __init__(self, attention: AbstractAttention, *, key: PRNGKeyArray):
        k_gate, k_up, k_down = jr.split(key, 3)
        self.d_model = attention.d_model
        hidden = -(-(8 * self.d_model // 3) // 8) * 8
        self.attention_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.attention = attention
        self.mlp_norm = eqx.nn.LayerNorm(self.d_model, eps=NORM_EPS)
        self.mlp_gate = Linear(lecun_normal, self.d_model, hidden, key=k_gate)
        self.mlp_up = Linear(lecun_normal, self.d_model, hidden, key=k_up)
        self.mlp_down = Linear(lecun_normal, hidden, self.d_model, key=k_down)

    @abc.abstractmethod
    def act(self, gate: Hidden) -> Hidden:
        """The activation of the gate."""

    def attention_input(self, x: Tokens) -> Tokens:
        return jax.vmap(self.attention_norm)(x)

    def mlp(self, x: Queries) -> Queries:
        h = jax.vmap(self.mlp_norm)(x)
        return self.mlp_down(self.act(self.mlp_gate(h)) * self.mlp_up(h))


class SwiGLU(AbstractGated):
    """The gate goes through SiLU."""

    def act(self, gate: Hidden) -> Hidden:
        return jax.nn.silu(gate)


class GEGLU(AbstractGated):
    """The gate goes through GELU, in its tanh form."""

    def act(self, gate: Hidden) -> Hidden:
        return jax.nn.gelu(gate, approximate=True)
