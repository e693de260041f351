r"""A Perceiver as a critic (Jaegle et al. 2021; in PAC, Springenberg et al. 2024): few learned rows read many tokens.

The state's scalars are tokens; latents read them by cross-attention and then attend to each other; a query made of the action reads the
latents; logits of a distribution over values come out. $Q = \sum_i p_i z_i$. So the price grows with n_s, not with its square.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import D_HEAD, NORM_EPS, Block, SoftmaxAttention
from tql.critic import AbstractCritic
from tql.linear import Linear, lecun_normal


def heads_of(d_model: int) -> int:
    """One attention head per 32 channels: 80 channels have 2 of 40."""
    return max(1, d_model // D_HEAD)


class CrossBlock(eqx.Module):
    r"""$y = x + \mathrm{Attention}(\mathrm{LN}_1(x), \mathrm{LN}_2(c))$, then $y + \mathrm{MLP}(\mathrm{LN}_3(y))$: rows x read a context
    c.
    """

    query_norm: eqx.nn.LayerNorm
    context_norm: eqx.nn.LayerNorm
    mlp_norm: eqx.nn.LayerNorm
    attention: SoftmaxAttention
    mlp_in: Linear
    mlp_out: Linear
    d_model: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        k_attention, k_in, k_out = jr.split(key, 3)
        self.query_norm, self.context_norm, self.mlp_norm = (eqx.nn.LayerNorm(d_model, eps=NORM_EPS) for _ in range(3))
        self.attention = SoftmaxAttention(d_model, heads, key=k_attention)
        self.mlp_in = Linear(lecun_normal, d_model, 4 * d_model, key=k_in)
        self.mlp_out = Linear(lecun_normal, 4 * d_model, d_model, key=k_out)
        self.d_model = d_model

    def __call__(self, x: Float[Array, "m {self.d_model}"], c: Float[Array, "n {self.d_model}"]) -> Float[Array, "m {self.d_model}"]:
        queries, context = jax.vmap(self.query_norm)(x), jax.vmap(self.context_norm)(c)
        y = x + self.attention.mix(self.attention.logits(queries, context), context)
        h = jax.vmap(self.mlp_norm)(y)
        return y + self.mlp_out(jax.nn.gelu(self.mlp_in(h), approximate=True))


class PerceiverCritic(AbstractCritic):
    """State tokens, latents that read them, an action query that reads the latents, logits over the support."""

    state_map: Linear
    positions: Float[Array, "n_s d_model"]
    latents: Float[Array, "latents d_model"]
    encode: CrossBlock
    latent_blocks: tuple[Block, ...]
    latent_norm: eqx.nn.LayerNorm
    action_map: Linear
    action_query: Linear
    query_norm: eqx.nn.LayerNorm
    decode: CrossBlock
    out_norm: eqx.nn.LayerNorm
    hidden: Linear
    out: Linear
    v_min: float = eqx.field(static=True)
    n: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, *, d_model: int, latents: int, latent_blocks: int, v_min: float, key: PRNGKeyArray):
        keys = jr.split(key, 11)
        heads = heads_of(d_model)
        self.state_map = Linear(lecun_normal, 1, d_model, key=keys[0])
        self.positions = 0.02 * jr.normal(keys[1], (n_s, d_model))
        self.latents = 0.02 * jr.normal(keys[2], (latents, d_model))
        self.encode = CrossBlock(d_model, heads, key=keys[3])
        self.latent_blocks = tuple(
            Block(SoftmaxAttention(d_model, heads, key=k_a), key=k_b)
            for k_a, k_b in zip(jr.split(keys[4], latent_blocks), jr.split(keys[5], latent_blocks))
        )
        self.action_map = Linear(lecun_normal, 1, d_model, key=keys[6])
        self.action_query = Linear(lecun_normal, n_a * d_model, d_model, key=keys[7])
        self.decode = CrossBlock(d_model, heads, key=keys[8])
        self.latent_norm, self.query_norm, self.out_norm = (eqx.nn.LayerNorm(d_model, eps=NORM_EPS) for _ in range(3))
        self.hidden = Linear(lecun_normal, d_model, d_model // 2, key=keys[9])
        self.out = Linear(lecun_normal, d_model // 2, 1 - int(v_min), key=keys[10])
        self.v_min, self.n, self.ensemble = v_min, 1 + n_s + n_a, 1

    @property
    def support(self) -> Float[Array, " values"]:
        """$z_i$: v_min, v_min + 1, ..., 0, in discounted reward."""
        return self.v_min + jnp.arange(1 - int(self.v_min), dtype=self.latents.dtype)

    def logits(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " values"]:
        """Of the distribution over the support."""
        tokens = self.state_map(s[:, None]) + self.positions
        x = self.encode(self.latents, tokens)
        for block in self.latent_blocks:
            x, _ = block(x)
        latents = jax.vmap(self.latent_norm)(x)
        query = self.query_norm(self.action_query(self.action_map(a[:, None]).reshape(-1)))
        read = self.decode(query[None], latents)[0]
        return self.out(jax.nn.gelu(self.hidden(self.out_norm(read)), approximate=True))

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " {self.ensemble}"]:
        r"""$Q = \sum_i p_i z_i$."""
        return jnp.sum(jax.nn.softmax(self.logits(s, a)) * self.support)[None]
