r"""Q-Transformer (Q-T; Chebotar et al. 2023) as the TQL authors ran it: one state, 64 bins per
action dimension, rewards mapped to [0, 1].

A causal transformer reads [state, start, bin 1, ..., bin A-1], with QK-norm and a final norm, and
the values of dimension d are read at token d. So the best of bins^A actions is found in A steps,
greedily. It is the one causal decoder of this project. A widely read summary gives TQL a causal
mask and QK-norm: TQL has no mask (with it, `[VALUE]`, which comes first, would see nothing), and
QK-norm is a variant of it (`variants/qk_norm.py`).

Settings: from the authors' repository (4 heads by its launcher, 8 in its configuration; the
learning rate lowered to 2e-5), the same in every domain.

The returns of the dataset bound the values from below. The published code takes the end of a stored
episode for an end of the task. With rewards below 0 the return after it, 0, is the best there is,
so the bound `max(y, G)` makes every cut look like success, and that spreads; and success alone is
worth only 1 - gamma in the TD part. It is a plausible reason for the published average of 2 %.
`mc_mode="authors"` (the default) is the rule of the released code and `mc_mode="lower_bound"` a
correct bound.
"""

from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float64, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, seed_keys
from tql.attention import AbstractAttention, Block
from tql.baselines.networks import Action, Loss, Scalar
from tql.batch import Transition
from tql.config import AbstractScheduledConfig
from tql.layers import NORM_EPS, Linear, lecun_normal
from tql.optimise import Learner, adamw, copy, polyak, value_and_grad
from tql.presets import POCKET
from tql.variants.qk_norm import QKNorm
from tql.variants.returns import goes_on, returns

FIRST_LOGIT = -2.5
CONSERVATIVE_WEIGHT = 0.5
LARGEST_GRADIENT = 1.0

MCMode = Literal["authors", "lower_bound"]


@dataclass(frozen=True)
class QTransformerConfig(AbstractScheduledConfig):
    """Settings of the Q-Transformer; the defaults are the paper's."""

    method: str = "q-transformer"
    weight_decay: float = 0.02  # AdamW's decay of the matrices, as a fraction of the rate.
    lr: float = 2e-5  # Peak learning rate.
    d_model: int = 128  # Width, in channels.
    layers: int = 2  # Number of transformer blocks.
    heads: int = 4  # Attention heads per block.
    bins: int = 64  # Bins per action dimension.
    mc_mode: MCMode = "authors"
    """authors: returns as in the published code, where the end of an episode looks like success.
    lower_bound: a correct lower bound."""

    def __post_init__(self):
        super().__post_init__()
        if self.bins < 2:
            raise ValueError(f"bins is {self.bins}; at least 2 are needed.")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of heads {self.heads}; make it one."
            )


def paper(task: str) -> QTransformerConfig:
    """The paper's settings."""
    return QTransformerConfig(task=task)


def pocket(task: str) -> QTransformerConfig:
    """For 2 cores: half as wide, with a rate 25 times the paper's for a run 55 times as short."""
    return replace(paper(task), **POCKET, lr=5e-4, warmup=300, d_model=64, heads=2)


class DataStatistics(eqx.Module):
    """The extremes of a dataset, between which rewards are mapped to [0, 1] and actions to equal
    bins, per dimension. A dimension of the actions that never changes is widened by 1 on both
    sides."""

    r_low: Scalar
    r_high: Scalar
    a_low: Action
    a_high: Action

    def reward(self, r: Scalar, gamma: float) -> Scalar:
        r"""$\tilde r = (r - r_{lo})(1 - \gamma)/\Delta$ with $\Delta = r_{hi} - r_{lo}$."""
        return (r - self.r_low) * (1 - gamma) / (self.r_high - self.r_low)

    def bin(self, a: Action, bins: int) -> Int[Array, " n_a"]:
        r"""$\lfloor N (a - low)/(high - low) \rfloor$ for N = `bins`, within 0 and N - 1."""
        k = jnp.floor(bins * (a - self.a_low) / (self.a_high - self.a_low)).astype(int)
        return jnp.clip(k, 0, bins - 1)

    def centre(self, k: Int[Array, " n_a"], bins: int) -> Action:
        r"""$low + (k + \frac12)\,(high - low)/N$."""
        share = (k.astype(self.a_low.dtype) + 0.5) / bins
        return self.a_low + share * (self.a_high - self.a_low)


def statistics(data: Transition) -> DataStatistics:
    """The extremes of a dataset."""
    low, high = jnp.min(data.a, axis=0), jnp.max(data.a, axis=0)
    widen = jnp.where(low == high, 1, 0).astype(low.dtype)
    return DataStatistics(jnp.min(data.r), jnp.max(data.r), low - widen, high + widen)


class TransitionAndReturn(eqx.Module):
    """A transition with the return that followed, and whether its row is the last of its episode,
    where the record is cut but the task goes on."""

    s: Float[Array, "*batch n_s"]
    a: Float[Array, "*batch n_a"]
    r: Float[Array, "*batch"]
    m: Float[Array, "*batch"]
    s_next: Float[Array, "*batch n_s"]
    G: Float[Array, "*batch"]  # The return that followed, mapped to [0, 1].
    cut: Float[Array, "*batch"]


def scaled_returns(
    data: Transition, gamma: float, mc_mode: MCMode
) -> Float64[np.ndarray, " batch"]:
    r"""$\tilde G$ of every row of a dataset, in [0, 1] and in float64.

    By the authors, nothing follows a cut, and 0, the return that is left, is the best there is:

    $$\tilde G = \big(G - r_{lo}/(1-\gamma)\big)(1-\gamma)/\Delta, \qquad
    G_t = r_t + \gamma\,m_t\,G_{t+1}$$

    As a lower bound, the worst reward follows a cut for ever, and a solved state is worth what
    staying solved is worth, a reward of 0 for ever: $\tilde G_t = \tilde r_t + \gamma\,\tilde
    G_{t+1}$, and $-r_{lo}/\Delta$ where m = 0 (1 if the dataset solves the task).
    """
    found = statistics(data)
    r, m = np.asarray(data.r, np.float64), np.asarray(data.m, np.float64)
    r_low, span = float(found.r_low), float(found.r_high - found.r_low)
    if mc_mode == "authors":
        G = returns(r, m, goes_on(data), gamma)
        return (G - r_low / (1 - gamma)) * (1 - gamma) / span
    scaled = np.where(m == 0, -r_low / span, (r - r_low) * (1 - gamma) / span)
    return returns(scaled, m, goes_on(data), gamma)


def last_target(
    row: TransitionAndReturn,
    best_next: Scalar,
    extremes: DataStatistics,
    gamma: float,
    mc_mode: MCMode,
) -> Scalar:
    r"""The TD target $y_A$ of the last action dimension, from the best value at s',
    $\bar Q' = \max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$.

    By the authors $y_A = \tilde r + \gamma\,m\,(1 - \mathrm{cut})\,\bar Q'$. With the lower bound
    $y_A = \tilde r + \gamma\,\bar Q'$, also through cuts, and $-r_{lo}/\Delta$ where m = 0.
    """
    r = extremes.reward(row.r, gamma)
    if mc_mode == "authors":
        return r + gamma * row.m * (1 - row.cut) * best_next
    solved = -extremes.r_low / (extremes.r_high - extremes.r_low)
    return jnp.where(row.m == 0, solved, r + gamma * best_next)


class CausalAttention(AbstractAttention):
    """QK-norm attention in which a row sees itself and the rows before it. The queries are all the
    rows, in their order."""

    inner: QKNorm
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        self.inner = QKNorm(d_model, heads, key=key)
        self.d_model, self.heads = d_model, heads

    def logits(
        self, queries: Float[Array, "n {self.d_model}"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "{self.heads} n n"]:
        seen: Bool[Array, "n n"] = jnp.tri(x.shape[0], dtype=bool)
        return jnp.where(seen[None], self.inner.logits(queries, x), -jnp.inf)

    def mix(
        self, logits: Float[Array, "{self.heads} m n"], x: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "m {self.d_model}"]:
        return self.inner.mix(logits, x)


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

    def __init__(self, n_s: int, n_a: int, config: QTransformerConfig, *, key: PRNGKeyArray):
        bins, d_model, layers = config.bins, config.d_model, config.layers
        k_map, k_start, k_embeddings, k_positions, k_attention, k_block, k_U = jr.split(key, 7)
        normal = lambda k, *shape: 0.02 * jr.normal(k, shape)
        self.state_map = Linear(lecun_normal, n_s, d_model, key=k_map)
        self.start = normal(k_start, d_model)
        self.embeddings = normal(k_embeddings, n_a - 1, bins, d_model)
        self.positions = normal(k_positions, n_a + 1, d_model)
        block_keys = zip(jr.split(k_attention, layers), jr.split(k_block, layers))
        make_attention = lambda k: CausalAttention(d_model, config.heads, key=k)
        self.blocks = tuple(Block(make_attention(k_a), key=k_b) for k_a, k_b in block_keys)
        self.final_norm = eqx.nn.LayerNorm(d_model, eps=NORM_EPS)
        self.U = normal(k_U, n_a, bins, d_model)
        self.c = jnp.full((n_a, bins), FIRST_LOGIT, float)
        self.n_s, self.n_a, self.bins = n_s, n_a, bins

    def __call__(
        self, s: Float[Array, " {self.n_s}"], k: Int[Array, " {self.n_a}"]
    ) -> Float[Array, "{self.n_a} {self.bins}"]:
        r"""$\mathrm{sigmoid}(\langle x_d, U_{d,n} \rangle + c_{d,n})$. Row d knows the bins before
        d only."""
        before = jnp.stack([self.embeddings[d, k[d]] for d in range(self.n_a - 1)])
        x = jnp.concatenate([self.state_map(s)[None], self.start[None], before]) + self.positions
        for block in self.blocks:
            x, _ = block(x)
        x = jax.vmap(self.final_norm)(x[1:])
        return jax.nn.sigmoid(jnp.einsum("dh,dnh->dn", x, self.U) + self.c)


def greedy(
    net: AutoregressiveQ, s: Float[Array, " {net.n_s}"]
) -> tuple[Int[Array, " {net.n_a}"], Scalar]:
    """The bins of the best action, chosen one dimension after another, and the value of the last
    choice."""
    k, best = jnp.zeros(net.n_a, int), jnp.zeros(())
    for d in range(net.n_a):
        Q_d = net(s, k)[d]
        k, best = k.at[d].set(jnp.argmax(Q_d)), jnp.max(Q_d)
    return k, best


def target(
    target_net: AutoregressiveQ,
    row: TransitionAndReturn,
    k: Int[Array, " {target_net.n_a}"],
    extremes: DataStatistics,
    gamma: float,
    mc_mode: MCMode,
) -> Float[Array, " {target_net.n_a}"]:
    r"""What each dimension regresses to, $\mathrm{clip}(\max(y_d, \tilde G), 0, 1)$; k are the bins
    of the data.

    $$y_d = \max_n \bar Q_{d+1}(s, k_1, \dots, k_d, n), \qquad
    y_A\ \text{from}\ \max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$$

    with g the greedy bins at s'; how $y_A$ follows is said at `last_target`.
    """
    within = jnp.max(target_net(row.s, k), axis=1)[1:]
    _, best_next = greedy(target_net, row.s_next)
    y = jnp.append(within, last_target(row, best_next, extremes, gamma, mc_mode))
    return jnp.clip(jnp.maximum(y, row.G), 0, 1)


def q_loss(
    net: AutoregressiveQ,
    target_net: AutoregressiveQ,
    batch: TransitionAndReturn,
    extremes: DataStatistics,
    gamma: float,
    mc_mode: MCMode,
) -> Loss:
    r"""$\frac12 \langle (Q_d(k_d) - y_d)^2 \rangle +
    \frac12 \cdot \frac12 \langle \sum_{n \ne k_d} Q_d(n)^2 / (N - 1) \rangle$, means over batch and
    dimensions. It moves the network.

    The second, conservative part pulls bins that the data do not choose to 0.
    """

    def one(row: TransitionAndReturn) -> tuple[Action, Action, Action]:
        k = extremes.bin(row.a, net.bins)
        y = jax.lax.stop_gradient(target(target_net, row, k, extremes, gamma, mc_mode))
        Q = net(row.s, k)
        chosen = jax.nn.one_hot(k, net.bins)
        Q_k = jnp.sum(chosen * Q, axis=1)
        others = jnp.sum((1 - chosen) * Q**2, axis=1) / (net.bins - 1)
        return (Q_k - y) ** 2, others, Q_k

    td, others, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch))
    td, conservative = 0.5 * td, 0.5 * others
    metrics = {"td_loss": td, "conservative_loss": conservative, "q_mean": Q}
    return td + CONSERVATIVE_WEIGHT * conservative, metrics


class QTransformer(AbstractAgent):
    """The state of the Q-Transformer's training."""

    Config = QTransformerConfig
    presets = {"pocket": pocket, "paper": paper}

    net: Learner
    target_net: AutoregressiveQ
    statistics: DataStatistics  # The dataset's; zeros until `prepare` has seen it.
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: QTransformerConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: QTransformerConfig) -> "QTransformer":
        keys = seed_keys(config.seed)
        net = AutoregressiveQ(n_s, n_a, config, key=keys.critic)
        net = Learner.start(net, optimiser(config))
        unknown = DataStatistics(*(jnp.zeros(shape) for shape in ((), (), n_a, n_a)))
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(net, copy(net.model), unknown, *rest)

    def prepare(self, data: Transition) -> tuple["QTransformer", TransitionAndReturn]:
        """The agent with the dataset's extremes, and the dataset with its returns.

        Raises `ValueError` if all its rewards are the same, because nothing could be mapped to [0,
        1].
        """
        if np.ptp(np.asarray(data.r)) == 0:
            raise ValueError(
                f"every reward of the dataset is {float(data.r[0]):g}; the Q-Transformer maps at "
                "least two to [0, 1]."
            )
        G = scaled_returns(data, self.config.discount, self.config.mc_mode)
        G, cut = (jnp.asarray(x, data.r.dtype) for x in (G, ~goes_on(data)))
        rows = TransitionAndReturn(data.s, data.a, data.r, data.m, data.s_next, G, cut)
        return replace(self, statistics=statistics(data)), rows

    def update(
        self, batch: TransitionAndReturn, key: PRNGKeyArray
    ) -> tuple["QTransformer", Metrics]:
        """One update. Nothing in it is random."""
        c, net = self.config, self.net.model
        (_, metrics), gradient = value_and_grad(q_loss)(
            net, self.target_net, batch, self.statistics, c.discount, c.mc_mode
        )
        learner = self.net.descend(gradient, optimiser(c))
        # Unlike the other methods, the reference averages the network after its update here.
        target_net = polyak(learner.model, self.target_net, c.tau)
        agent = replace(self, net=learner, target_net=target_net, step=self.step + 1)
        return agent, metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(greedy_action, self.net.model, self.statistics)


def optimiser(config: QTransformerConfig) -> optax.GradientTransformation:
    """AdamW with the gradient's norm limited to 1."""
    return optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), adamw(config.lr, config))


def greedy_action(
    net: AutoregressiveQ, extremes: DataStatistics, s: Float[Array, " {net.n_s}"], key: PRNGKeyArray
) -> Float[Array, " {net.n_a}"]:
    """The centres of the greedy bins, clipped to [-1, 1]. It needs no randomness."""
    k, _ = greedy(net, s)
    return jnp.clip(extremes.centre(k, net.bins), -1, 1)
