r"""Returns of the dataset as a lower bound of values in [0, 1], and what an episode's last row is worth: two answers (Q-Transformer).

Rewards become $\tilde r = (r - r_{lo})(1 - \gamma)/\Delta$ with $\Delta = r_{hi} - r_{lo}$, so that returns lie in [0, 1]. Episodes
are cut in time, which ends the record but not the task. What does the cut row's future count?
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from tql.data import Batch, DataStatistics, goes_on, returns, statistics


class ReturnsBatch(Batch):
    """Transitions with the return that followed, mapped to [0, 1], and whether the row is the last of its episode (a cut in time)."""

    returns: Float[Array, " batch"]
    terminals: Float[Array, " batch"]


def scale_reward(r: Float[Array, ""], data: DataStatistics, discount: float) -> Float[Array, ""]:
    r"""$\tilde r = (r - r_{lo})(1 - \gamma)/\Delta$."""
    return (r - data.reward_low) * (1 - discount) / (data.reward_high - data.reward_low)


class AbstractReturnBound(eqx.Module):
    """The seam: the returns of a dataset, and the TD target of an action's last dimension."""

    @abc.abstractmethod
    def returns(self, data: Batch, discount: float) -> Float64[np.ndarray, " batch"]:
        r"""$\tilde G$ of every row, in float64."""
        raise NotImplementedError

    @abc.abstractmethod
    def last(self, row: ReturnsBatch, best_next: Float[Array, ""], data: DataStatistics, discount: float) -> Float[Array, ""]:
        r"""$y_A$ from the best value at s', $\max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$."""
        raise NotImplementedError


class AuthorsReturns(AbstractReturnBound):
    r"""The published code: nothing follows a cut, and 0, the return that is left, is the best there is.

    $$\tilde G = \big(G - r_{lo}/(1-\gamma)\big)(1-\gamma)/\Delta, \qquad G_t = r_t + \gamma\,m_t\,G_{t+1}$$
    $$y_A = \tilde r + \gamma\,m\,(1 - d_{cut})\,\max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$$
    """

    def returns(self, data: Batch, discount: float) -> Float64[np.ndarray, " batch"]:
        r, m, r_lo, span = in_float64(data)
        G = returns(r, m, goes_on(data), discount)
        return (G - r_lo / (1 - discount)) * (1 - discount) / span

    def last(self, row: ReturnsBatch, best_next: Float[Array, ""], data: DataStatistics, discount: float) -> Float[Array, ""]:
        r = scale_reward(row.rewards, data, discount)
        return r + discount * row.masks * (1 - row.terminals) * best_next


class LowerBound(AbstractReturnBound):
    r"""A correct bound: the worst reward for ever after a cut; a solved state is worth what staying solved is worth.

    $$\tilde G_t = \tilde r_t + \gamma\,\tilde G_{t+1}, \qquad y_A = \tilde r + \gamma\,\max_n \bar Q_A(s', g_1, \dots, g_{A-1}, n)$$

    Both are $-r_{lo}/\Delta$, a reward of 0 for ever, where $m = 0$ (1 if the dataset solves the task); $y_A$ goes on through cuts.
    """

    def returns(self, data: Batch, discount: float) -> Float64[np.ndarray, " batch"]:
        r, m, r_lo, span = in_float64(data)
        return returns(np.where(m == 0, -r_lo / span, (r - r_lo) * (1 - discount) / span), m, goes_on(data), discount)

    def last(self, row: ReturnsBatch, best_next: Float[Array, ""], data: DataStatistics, discount: float) -> Float[Array, ""]:
        r, solved = scale_reward(row.rewards, data, discount), -data.reward_low / (data.reward_high - data.reward_low)
        return jnp.where(row.masks == 0, solved, r + discount * best_next)


RETURN_BOUNDS: dict[str, AbstractReturnBound] = {"authors": AuthorsReturns(), "lower_bound": LowerBound()}
"""By the names of `--mc-mode`."""


def with_returns(data: Batch, bound: AbstractReturnBound, discount: float) -> ReturnsBatch:
    """The dataset with its returns. Raises `ValueError` if all its rewards are the same: nothing could be mapped to [0, 1]."""
    if np.ptp(np.asarray(data.rewards)) == 0:
        raise ValueError(f"every reward of the dataset is {float(data.rewards[0]):g}; the Q-Transformer maps at least two to [0, 1].")
    columns = {field: getattr(data, field) for field in Batch.__dataclass_fields__}
    as_data = lambda x: jnp.asarray(x, data.rewards.dtype)
    return ReturnsBatch(**columns, returns=as_data(bound.returns(data, discount)), terminals=as_data(~goes_on(data)))


def in_float64(data: Batch) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"], float, float]:
    r"""Rewards, masks, $r_{lo}$ and $\Delta$."""
    extremes = statistics(data)
    r, m = np.asarray(data.rewards, np.float64), np.asarray(data.masks, np.float64)
    return r, m, float(extremes.reward_low), float(extremes.reward_high - extremes.reward_low)
