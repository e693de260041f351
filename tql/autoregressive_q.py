r"""Q-values for one binned action dimension after another (Q-Transformer, Chebotar et al. 2023).

A causal transformer reads [state, start, bin 1, ..., bin A-1], with QK-norm and a final norm; the values of dimension d are read at token
d. So the best of bins^A actions is found in A steps, greedily.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tql.attention import NORM_EPS, Block
from tql.data import DataStatistics
from tql.linear import Linear, lecun_normal
from tql.variants import QKNormAttention

FIRST_LOGIT = -2.5


class BinnedActions(eqx.Module):
    """Equal bins between the dataset's extremes, per action dimension; a dimension that never changes is widened by 1 on both sides."""

    low: Float[Array, " n_a"]
    high: Float[Array, " n_a"]
    bins: int = eqx.field(static=True)

    def __init__(self, data: DataStatistics, bins: int):
        never_changes = data.action_low == data.action_high
        self.low = jnp.where(never_changes, data.action_low - 1, data.action_low)
        self.high = jnp.where(never_changes, data.action_high + 1, data.action_high)
        self.bins = bins

    def bin(self, a: Float[Array, " n_a"]) -> Int[Array, " n_a"]:
        r"""$\lfloor N (a - low)/(high - low) \rfloor$, within 0 and N - 1."""
        k = jnp.floor(self.bins * (a - self.low) / (self.high - self.low)).astype(int)
        return jnp.clip(k, 0, self.bins - 1)

    def centre(self, k: Int[Array, " n_a"]) -> Float[Array, " n_a"]:
        r"""$low + (k + \frac12)\,(high - low)/N$."""
        return self.low + (k.astype(self.low.dtype) + 0.5) / self.bins * (self.high - self.low)


class CausalAttention(QKNormAttention):
    """QK-norm attention in which a row sees itself and the rows before it; the queries are all the rows, in their order."""

    def logits(
        self, queries: Float[Array, "n {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "{self.heads} n n"]:
        seen: Bool[Array, "n n"] = jnp.tri(x.shape[0], dtype=bool)
        return jnp.where(seen[None], super().logits(queries, x), -jnp.inf)


class AutoregressiveQ(eqx.Module):
    r"""$Q_d(s, k_1, \dots, k_{d-1}, \cdot)$ for all bins of every dimension d, each in (0, 1)."""

    state_map: Linear
    start: Float[Array, " d_model"]
    embeddings: Float[Array, "n_a-1 bins d_model"]
    positions: Float[Array, "n_a+1 d_model"]
    blocks: tuple[Block, ...]
    final_norm: eqx.nn.LayerNorm
    U: Float[Array, "n_a bins d_model"]
    c: Float[Array, "n_a bins"]
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    bins: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, *, bins: int, d_model: int, layers: int, heads: int, key: PRNGKeyArray):
        k_map, k_start, k_embeddings, k_positions, k_attention, k_block, k_U = jr.split(key, 7)
        normal = lambda k, *shape: 0.02 * jr.normal(k, shape)
        self.state_map = Linear(lecun_normal, n_s, d_model, key=k_map)
        self.start = normal(k_start, d_model)
        self.embeddings = normal(k_embeddings, n_a - 1, bins, d_model)
        self.positions = normal(k_positions, n_a + 1, d_model)
        self.blocks = tuple(
            Block(CausalAttention(d_model, heads, key=k_a), key=k_b)
            for k_a, k_b in zip(jr.split(k_attention, layers), jr.split(k_block, layers))
        )
        self.final_norm = eqx.nn.LayerNorm(d_model, eps=NORM_EPS)
        self.U = normal(k_U, n_a, bins, d_model)
        self.c = jnp.full((n_a, bins), FIRST_LOGIT, float)
        self.n_s, self.n_a, self.bins = n_s, n_a, bins

    def __call__(self, s: Float[Array, " {self.n_s}"], k: Int[Array, " {self.n_a}"]) -> Float[Array, "{self.n_a} {self.bins}"]:
        r"""$\mathrm{sigmoid}(\langle x_d, U_{d,n} \rangle + c_{d,n})$. Row d knows the bins before d only."""
        before = jnp.stack([self.embeddings[d, k[d]] for d in range(self.n_a - 1)])
        x = jnp.concatenate([self.state_map(s)[None], self.start[None], before]) + self.positions
        for block in self.blocks:
            x, _ = block(x)
        x = jax.vmap(self.final_norm)(x[1:])
        return jax.nn.sigmoid(jnp.einsum("dh,dnh->dn", x, self.U) + self.c)


def greedy(net: AutoregressiveQ, s: Float[Array, " {net.n_s}"]) -> tuple[Int[Array, " {net.n_a}"], Float[Array, ""]]:
    """The bins of the best action, chosen one dimension after another, and the value of the last choice."""
    k, best = jnp.zeros(net.n_a, int), jnp.zeros(())
    for d in range(net.n_a):
        Q_d = net(s, k)[d]
        k, best = k.at[d].set(jnp.argmax(Q_d)), jnp.max(Q_d)
    return k, best
