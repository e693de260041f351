r"""Q-Transformer (Q-T; Chebotar et al. 2023), as the TQL authors ran it: one state, 64 bins per action dimension, rewards mapped to [0, 1].

A causal transformer (`autoregressive_q.py`) gives Q-values for one action dimension after another, so a greedy action is built dimension by
dimension. Settings: from the authors' repository (4 heads by its launcher, 8 in its configuration; learning rate lowered to 2e-5); the same
in every domain.

The published code takes the end of a stored episode for an end of the task. With rewards below 0 the return after it, 0, is the best
there is, so the lower bound `max(y, G)` makes every cut look like success and spreads; and success alone is worth only 1 - gamma in the
TD part. It is a plausible reason for the published average of 2 %. `mc_mode="authors"` (the default) is the released code's,
`mc_mode="lower_bound"` a correct bound (`return_bound.py` has both).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, seed_keys
from tql.autoregressive_q import AutoregressiveQ, BinnedActions, greedy
from tql.config import POCKET, ScheduledConfig
from tql.data import Batch, DataStatistics
from tql.optimise import adamw, copy, descend, polyak, start, value_and_grad
from tql.return_bound import RETURN_BOUNDS, AbstractReturnBound, ReturnsBatch, with_returns

CONSERVATIVE_WEIGHT = 0.5
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class QTransformerConfig(ScheduledConfig):
    """Settings of the Q-Transformer; the defaults are the paper's."""

    method: ClassVar[str] = "q-transformer"

    weight_decay: float = 0.02
    """AdamW's decay of the matrices, as a fraction of the learning rate per update."""
    lr: float = 2e-5
    """Peak learning rate."""
    d_model: int = 128
    """Width, in channels."""
    layers: int = 2
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads per block."""
    bins: int = 64
    """Bins per action dimension."""
    mc_mode: Literal["authors", "lower_bound"] = "authors"
    """authors: returns as in the published code, where the end of an episode looks like success. lower_bound: a correct lower bound."""

    def __post_init__(self):
        super().__post_init__()
        if self.bins < 2:
            raise ValueError(f"bins is {self.bins}; at least 2 are needed.")
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of heads {self.heads}; make it one.")


def paper(task: str) -> QTransformerConfig:
    """The paper's settings."""
    return QTransformerConfig(task=task)


def pocket(task: str) -> QTransformerConfig:
    """For 2 cores: half as wide, a rate 25 times the paper's for a run 55 times as short."""
    return replace(paper(task), **POCKET, lr=5e-4, warmup=300, d_model=64, heads=2)


def target(
    target_net: AutoregressiveQ, row: ReturnsBatch, k: Int[Array, " {target_net.n_a}"], data: DataStatistics, discount: float,
    bound: AbstractReturnBound,
) -> Float[Array, " {target_net.n_a}"]:
    r"""What each dimension regresses to, $\mathrm{clip}(\max(y_d, \tilde G), 0, 1)$; k are the bins of the data.

    $$y_d = \max_n \bar Q_{d+1}(s, k_1, \dots, k_d, n), \qquad y_A\ \text{from}\ \max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$$

    with g the greedy bins at s'; how $y_A$ follows is the bound's (`last`).
    """
    within = jnp.max(target_net(row.observations, k), axis=1)[1:]
    _, best_next = greedy(target_net, row.next_observations)
    y = jnp.append(within, bound.last(row, best_next, data, discount))
    return jnp.clip(jnp.maximum(y, row.returns), 0, 1)


def loss(
    net: AutoregressiveQ, target_net: AutoregressiveQ, actions: BinnedActions, batch: ReturnsBatch, data: DataStatistics,
    discount: float, bound: AbstractReturnBound,
) -> tuple[Float[Array, ""], Metrics]:
    r"""$\frac12 \langle (Q_d(k_d) - y_d)^2 \rangle + \frac12 \cdot \frac12 \langle \sum_{n \ne k_d} Q_d(n)^2 / (N - 1) \rangle$, means
    over batch and dimensions.

    The second, conservative part pulls bins that the data do not choose to 0.
    """

    def one(row: ReturnsBatch) -> tuple[Float[Array, " n_a"], Float[Array, " n_a"], Float[Array, " n_a"]]:
        k = actions.bin(row.actions)
        y = jax.lax.stop_gradient(target(target_net, row, k, data, discount, bound))
        Q = net(row.observations, k)
        chosen = jax.nn.one_hot(k, net.bins)
        Q_k = jnp.sum(chosen * Q, axis=1)
        others = jnp.sum((1 - chosen) * Q**2, axis=1) / (net.bins - 1)
        return (Q_k - y) ** 2, others, Q_k

    td, others, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch))
    td, conservative = 0.5 * td, 0.5 * others
    return td + CONSERVATIVE_WEIGHT * conservative, {"td_loss": td, "conservative_loss": conservative, "q_mean": Q}


class QTransformer(AbstractAgent):
    """The state of its training."""

    Config = QTransformerConfig
    presets = {"pocket": pocket, "paper": paper}

    net: AutoregressiveQ
    target_net: AutoregressiveQ
    net_state: optax.OptState
    statistics: DataStatistics
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: QTransformerConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: QTransformerConfig, statistics: DataStatistics) -> "QTransformer":
        keys = seed_keys(config.seed)
        sizes = dict(bins=config.bins, d_model=config.d_model, layers=config.layers, heads=config.heads)
        net = AutoregressiveQ(n_s, n_a, **sizes, key=keys.critic)
        state = start(optimiser(config), net)
        return cls(net, copy(net), state, copy(statistics), jnp.zeros((), int), keys.training, n_s, n_a, config)

    @staticmethod
    def prepare(data: Batch, config: QTransformerConfig) -> ReturnsBatch:
        return with_returns(data, RETURN_BOUNDS[config.mc_mode], config.discount)

    def update(self, batch: ReturnsBatch, key: PRNGKeyArray) -> tuple["QTransformer", Metrics]:
        c = self.config
        actions = BinnedActions(self.statistics, c.bins)
        bound = RETURN_BOUNDS[c.mc_mode]
        (_, metrics), grads = value_and_grad(loss)(self.net, self.target_net, actions, batch, self.statistics, c.discount, bound)
        net, net_state = descend(optimiser(c), self.net, grads, self.net_state)
        # Unlike the other methods, the reference averages the network after its update here.
        target_net = polyak(net, self.target_net, c.tau)
        return replace(self, net=net, target_net=target_net, net_state=net_state, step=self.step + 1), metrics

    def policy(self, name: str) -> Act:
        return eqx.Partial(greedy_action, self.net, BinnedActions(self.statistics, self.config.bins))


def optimiser(config: QTransformerConfig) -> optax.GradientTransformation:
    """AdamW with the gradient's norm limited to 1."""
    return optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), adamw(config.lr, config))


def greedy_action(
    net: AutoregressiveQ, actions: BinnedActions, s: Float[Array, " {net.n_s}"], key: PRNGKeyArray
) -> Float[Array, " {net.n_a}"]:
    """The centres of the greedy bins; it needs no randomness."""
    k, _ = greedy(net, s)
    return jnp.clip(actions.centre(k), -1, 1)
