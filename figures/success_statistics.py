r"""What a few runs per task say about a method: means, intervals over runs, tests between methods.

The scores of a method are one array per task, with the success (0 to 1) of every run on it; a task
may have more runs than another. A run is the unit everywhere: episodes of different runs are never
put together, because runs differ by far more than their episodes do.

Interquartile mean, probability of improvement and the bootstrap stratified by task are those of
Agarwal et al. 2021 (arXiv 2108.13264). With three runs a bootstrap interval is too narrow to decide
anything by; the permutation test is exact.

(The file is not called `statistics.py`, because Python would then import it in place of its own
module of that name.)
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy import stats

Scores = Sequence[Float[np.ndarray, "*draws runs"]]
"""One array per task; leading axes are kept, so that one call takes all draws of a bootstrap."""


def mean_score(x: Scores) -> Float[np.ndarray, "*draws"]:
    r"""$\frac1T \sum_t \frac{1}{n_t} \sum_s x_{ts}$: every task weighs the same."""
    return np.mean([runs.mean(axis=-1) for runs in x], axis=0)


def mean_deviation(x: Scores) -> float:
    """The mean over tasks of the standard deviation over runs (divided by n - 1), which is the
    paper's number behind the plus-minus sign of an average."""
    return float(np.mean([np.std(runs, ddof=1) for runs in x]))


def iqm(x: Scores) -> Float[np.ndarray, "*draws"]:
    """The interquartile mean: of the n runs of all tasks together, the lowest and the highest
    floor(n / 4) are left out."""
    return stats.trim_mean(np.concatenate(x, axis=-1), 0.25, axis=-1)


def improvement(x: Scores, y: Scores) -> Float[np.ndarray, "*draws"]:
    r"""$\frac1T \sum_t \Pr(x_{ts} > y_{ts'}) + \frac12 \Pr(x_{ts} = y_{ts'})$: how often a run of x
    beats a run of y on the same task."""

    def on_task(a, b):
        a, b = a[..., :, None], b[..., None, :]
        return np.mean((a > b) + 0.5 * (a == b), axis=(-2, -1))

    return np.mean([on_task(a, b) for a, b in zip(x, y, strict=True)], axis=0)


def difference(x: Scores, y: Scores) -> Float[np.ndarray, "*draws"]:
    """The mean score of x minus that of y."""
    return mean_score(x) - mean_score(y)


def interval(
    statistic: Callable, *scores: Scores, repetitions: int = 20_000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of `statistic(*scores)` when the runs of every task and method are
    drawn anew from themselves. Raises `ValueError` for a task with a single run."""
    ends = np.cumsum([len(x) for x in scores])[:-1]
    regrouped = lambda runs: [runs[i:j] for i, j in zip([0, *ends], [*ends, len(runs)])]
    found = stats.bootstrap(
        [runs for x in scores for runs in x],
        lambda *runs, axis=-1: statistic(*regrouped(runs)),
        n_resamples=repetitions,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def permutation_p(x: Scores, y: Scores) -> float:
    r"""The two-sided p of `difference` if both methods were the same: $\Pr(|d_\pi| \ge |d|)$ over
    all ways $\pi$ to divide the runs of every task among both.

    It is exact. Three runs against three cannot get below .1 on one task, nor below .005 on two.
    (`scipy.stats.permutation_test` has no strata, so it does one task only.)
    """
    d_pi = reduce(np.add.outer, [_differences(a, b) for a, b in zip(x, y, strict=True)]) / len(x)
    return float(np.mean(np.abs(d_pi) >= abs(difference(x, y)) - 1e-9))


def _differences(a: Float[np.ndarray, " runs"], b: Float[np.ndarray, " others"]) -> np.ndarray:
    """The difference of means for every division of these runs into parts of the same sizes."""
    runs = np.concatenate([a, b])
    first = np.array([runs[list(part)].sum() for part in combinations(range(len(runs)), len(a))])
    return first / len(a) - (runs.sum() - first) / len(b)


def adjusted(p: Sequence[float]) -> Float[np.ndarray, " pairs"]:
    """The p values of many comparisons, corrected by Benjamini and Hochberg: of those at most .05,
    one in twenty is expected to be chance."""
    return stats.false_discovery_control(p)
