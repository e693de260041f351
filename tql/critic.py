r"""The transformer critic: tokens, blocks, heads; $Q_1(s,a), \dots, Q_K(s,a)$ and, on request, every layer's attention logits."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import D_HEAD, NORM_EPS, AbstractAttention, AbstractBlock, Block, Norm, SoftmaxAttention
from tql.linear import Linear, lecun_normal
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer


class AbstractCritic(eqx.Module):
    """The seam for other critics. `n` is 1 + n_s + n_a; `ensemble` is K, the number of values."""

    n: eqx.AbstractVar[int]
    ensemble: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " {self.ensemble}"]:
        """The K values of one pair (s, a), in units of discounted reward."""
        raise NotImplementedError


class AbstractTransformerCritic(AbstractCritic):
    """The seam for critics that attend: TQL controls what they show. Q is the mean over the K heads wherever one number is needed."""

    @abc.abstractmethod
    def with_attention(
        self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]
    ) -> tuple[Float[Array, " {self.ensemble}"], Float[Array, "layers heads n n"]]:
        """The same values, and the attention logits of every layer, head, query and key."""
        raise NotImplementedError


class QHead(eqx.Module):
    r"""One member of the ensemble: $Q_k = W_2\,\mathrm{relu}(W_1 x + b_1) + b_2$, `d_model -> d_model/2 -> 1`."""

    hidden: Linear
    out: Linear
    d_model: int = eqx.field(static=True)

    def __init__(self, d_model: int, *, key: PRNGKeyArray):
        k_hidden, k_out = jr.split(key)
        self.hidden = Linear(lecun_normal, d_model, d_model // 2, key=k_hidden)
        self.out = Linear(lecun_normal, d_model // 2, 1, key=k_out)
        self.d_model = d_model

    def __call__(self, x: Float[Array, " {self.d_model}"]) -> Float[Array, ""]:
        return self.out(jax.nn.relu(self.hidden(x)))[0]


class Critic(AbstractTransformerCritic):
    """Tokenizer, `layers` blocks, a final norm, and K heads that all read the `[VALUE]` row (paper section 4).

    Only that row is read after the last block, so the last block computes its output (values mixed, output map, MLP) for it
    alone. The result is that of the plain stack of whole blocks; at two layers it saves about 40 % of the arithmetic.
    """

    tokenizer: AbstractTokenizer
    blocks: tuple[AbstractBlock, ...]
    final_norm: Norm
    q_heads: tuple[QHead, ...]
    n: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(
        self,
        n_s: int,
        n_a: int,
        *,
        d_model: int,
        layers: int = 2,
        heads: int | None = None,
        ensemble: int = 2,
        make_tokenizer: Callable[..., AbstractTokenizer] = ScalarTokenizer,
        make_attention: Callable[..., AbstractAttention] = SoftmaxAttention,
        make_block: Callable[..., AbstractBlock] = Block,
        key: PRNGKeyArray,
    ):
        """`heads` is `d_model / 32` unless given. `make_tokenizer(n_s, n_a, d_model, key=...)`, `make_attention(d_model, heads, key=...)`
        and `make_block(attention, key=...)` are where another tokenizer, attention or block comes in.

        Raises `ValueError` if heads are not given and `d_model` is no multiple of 32, or if there is no layer or no head.
        """
        if heads is None and d_model % D_HEAD:
            raise ValueError(f"d_model {d_model} is not a multiple of {D_HEAD}; choose another width or give heads.")
        if layers < 1 or ensemble < 1:
            raise ValueError(f"a critic needs at least one layer and one Q head; got layers {layers}, ensemble {ensemble}.")
        heads = d_model // D_HEAD if heads is None else heads
        k_tokenizer, k_attention, k_block, k_heads = jr.split(key, 4)
        self.tokenizer = make_tokenizer(n_s, n_a, d_model, key=k_tokenizer)
        self.blocks = tuple(
            make_block(make_attention(d_model, heads, key=k_a), key=k_b)
            for k_a, k_b in zip(jr.split(k_attention, layers), jr.split(k_block, layers))
        )
        self.final_norm = eqx.nn.LayerNorm(d_model, eps=NORM_EPS)
        self.q_heads = tuple(QHead(d_model, key=k) for k in jr.split(k_heads, ensemble))
        self.n, self.ensemble = 1 + n_s + n_a, ensemble

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " {self.ensemble}"]:
        x = self.tokenizer(s, a)
        for block in self.blocks[:-1]:
            x, _ = block(x)
        return self.read_out(self.blocks[-1].first_row(x))

    def with_attention(
        self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]
    ) -> tuple[Float[Array, " {self.ensemble}"], Float[Array, "layers heads n n"]]:
        x = self.tokenizer(s, a)
        logits = []
        for block in self.blocks[:-1]:
            x, l = block(x)
            logits.append(l)
        value, l = self.blocks[-1].first_row_all_logits(x)
        return self.read_out(value), jnp.stack([*logits, l])

    def read_out(self, value: Float[Array, " d_model"]) -> Float[Array, " {self.ensemble}"]:
        """The K values from the `[VALUE]` row after the last block."""
        x = self.final_norm(value)
        return jnp.stack([q_head(x) for q_head in self.q_heads])
