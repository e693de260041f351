r"""What a few runs per task say about a method: means as in the paper's table, interquartile mean, probability of improvement, intervals.

The scores of a method are a matrix $x_{st}$: the success of seed s on task t, between 0 and 1. Tasks may have different numbers of
seeds: a run that is not there is NaN, and so is no run at all. Means over seeds give every task the same weight, however many
seeds it has; the interquartile mean gives every run the same weight.

Interquartile mean, probability of improvement and the stratified bootstrap are those of Agarwal et al. 2021 (arXiv 2108.13264). With
three seeds bootstrap intervals are too narrow to decide anything by; the permutation test is exact.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations
from math import comb, prod

import numpy as np
from jaxtyping import Float, Int

Statistic = Callable[..., Float[np.ndarray, "*draws"] | float]
"""A number from the scores of one method or of several. Leading axes of the scores are kept, so that one call takes all bootstrap draws."""


def run_success(rows: Sequence[dict], policy: str = "policy", last: int = 1) -> float:
    """Share of the episodes solved by one run: mean over its `last` evaluations. `rows` are the lines of `evaluation.jsonl`.

    The mean of the last three is less noisy than the last evaluation, and less of what was learned. Raises `ValueError` where there
    are fewer evaluations than that.
    """
    rates = success_by_step(rows, policy)
    if not 1 <= last <= len(rates):
        raise ValueError(f"the mean of the last {last} evaluations of '{policy}' is asked for; {len(rates)} are recorded.")
    return float(np.mean([*rates.values()][-last:]))


def success_by_step(rows: Sequence[dict], policy: str = "policy") -> dict[int, float]:
    """Updates of every evaluation of a policy, in order, with the share of its episodes that were solved."""
    solved: dict[int, list[bool]] = {}
    for row in rows:
        if row["policy"] == policy:
            solved.setdefault(row["step"], []).append(row["success"])
    return {step: float(np.mean(solved[step])) for step in sorted(solved)}


def counts(x: Float[np.ndarray, "*draws seeds tasks"]) -> Int[np.ndarray, "*draws tasks"]:
    """Number of runs of every task. Raises `ValueError`, with its number, for a task that has none and for scores that are no shares."""
    if np.any((x < 0) | (x > 1)):
        low, high = np.nanmin(x), np.nanmax(x)
        raise ValueError(f"scores are shares of solved episodes, from 0 to 1, not {low:g} to {high:g}; divide percents by 100.")
    n = (~np.isnan(x)).sum(axis=-2)
    if x.size == 0 or n.min() == 0:
        missing = sorted({int(task) for task in np.nonzero(n == 0)[-1]})
        raise ValueError(f"there is no run of the tasks in columns {missing} of {x.shape[-1]}; leave those tasks out, for every method.")
    return n


def task_means(x: Float[np.ndarray, "*draws seeds tasks"]) -> Float[np.ndarray, "*draws tasks"]:
    r"""$m_t = \frac{1}{n_t} \sum_s x_{st}$"""
    n = counts(x)
    return np.nansum(x, axis=-2) / n


def task_deviations(x: Float[np.ndarray, "seeds tasks"]) -> Float[np.ndarray, " tasks"]:
    r"""$d_t = \sqrt{\frac{1}{n_t - 1} \sum_s (x_{st} - m_t)^2}$; NaN for a single seed, which shows no deviation."""
    n, m = counts(x), task_means(x)
    squares = np.nansum((x - m) ** 2, axis=0)
    return np.sqrt(np.divide(squares, n - 1, out=np.full(len(n), np.nan), where=n > 1))


def mean_score(x: Float[np.ndarray, "*draws seeds tasks"]) -> Float[np.ndarray, "*draws"] | float:
    r"""$\frac{1}{T} \sum_t m_t$: the paper's average over a domain, and over all tasks."""
    return task_means(x).mean(axis=-1)


def mean_deviation(x: Float[np.ndarray, "seeds tasks"]) -> float:
    r"""$\frac{1}{T} \sum_t d_t$, the paper's +- of an average: a mean of deviations, larger than the deviation of the mean."""
    return float(task_deviations(x).mean())


def iqm(x: Float[np.ndarray, "*draws seeds tasks"]) -> Float[np.ndarray, "*draws"] | float:
    """Interquartile mean: of all n runs, of all tasks together, the lowest and the highest floor(n / 4) are left out."""
    n = counts(x).sum(axis=-1)[..., None]
    values = np.sort(x.reshape(*x.shape[:-2], -1), axis=-1)  # NaN comes last
    place = np.arange(values.shape[-1])
    kept = (n // 4 <= place) & (place < n - n // 4)
    return values.sum(axis=-1, where=kept) / kept.sum(axis=-1)


def improvement(
    x: Float[np.ndarray, "*draws seeds tasks"], y: Float[np.ndarray, "*draws others tasks"]
) -> Float[np.ndarray, "*draws"] | float:
    r"""$\frac{1}{T} \sum_t \frac{1}{n_t n'_t} \sum_{s, s'} [x_{st} > y_{s't}] + \frac{1}{2} [x_{st} = y_{s't}]$

    How often a run of x beats a run of y on the same task; 1/2 means that neither is better.
    """
    x_runs, y_runs = x[..., :, None, :], y[..., None, :, :]
    won = (x_runs > y_runs) + 0.5 * (x_runs == y_runs)  # 0 where either is NaN
    return (won.sum(axis=(-3, -2)) / (counts(x) * counts(y))).mean(axis=-1)


def difference(
    x: Float[np.ndarray, "*draws seeds tasks"], y: Float[np.ndarray, "*draws others tasks"]
) -> Float[np.ndarray, "*draws"] | float:
    """Mean score of x minus that of y."""
    return mean_score(x) - mean_score(y)


def resampled(
    x: Float[np.ndarray, "seeds tasks"], rng: np.random.Generator, repetitions: int
) -> Float[np.ndarray, "{repetitions} seeds tasks"]:
    """The runs of every task drawn anew from that task's runs, with replacement and as many as they are."""
    n = counts(x)
    index = rng.integers(0, n, size=(repetitions, *x.shape))
    drawn = np.take_along_axis(np.sort(x, axis=0)[None], index, axis=1)  # sorting puts NaN last, out of the index's reach
    return np.where(np.arange(len(x))[:, None] < n, drawn, np.nan)


def stratified_bootstrap(
    statistic: Statistic, *scores: Float[np.ndarray, "_ tasks"], seed: int = 0, repetitions: int = 20_000, level: float = 0.95
) -> tuple[float, float]:
    """The interval between the percentiles of `statistic(*scores)` when every method's seeds are resampled within each task.

    It shows what other seeds might have given on the same tasks. With few seeds it is too narrow: three seeds contain little of
    what others might do. Raises `ValueError` where a task has a single run, which cannot show any spread.
    """
    for x in scores:
        if counts(x).min() < 2:
            single = [int(task) for task in np.flatnonzero(counts(x) == 1)]
            raise ValueError(f"the tasks in columns {single} have a single seed each: an interval needs at least 2 runs of every task.")
    if repetitions < 1 or not 0 < level < 1:
        raise ValueError(f"repetitions {repetitions} must be at least 1, and level {level} between 0 and 1.")
    rng = np.random.default_rng(seed)
    values = statistic(*(resampled(x, rng, repetitions) for x in scores))
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def divisions(
    x: Float[np.ndarray, " seeds"], y: Float[np.ndarray, " others"], rng: np.random.Generator, most: int
) -> Float[np.ndarray, " divisions"]:
    """Mean of the first part minus that of the second, for every way of dividing all these runs into parts of the same sizes, or for
    `most` random ones. The way they are divided comes first.
    """
    runs, n = np.concatenate([x, y]), len(x)
    if comb(len(runs), n) <= most:
        parts = np.array(list(combinations(range(len(runs)), n)))
    else:
        parts = rng.permuted(np.tile(np.arange(len(runs)), (most, 1)), axis=1)[:, :n]
        parts[0] = np.arange(n)
    first = runs[parts].sum(axis=1)
    return first / n - (runs.sum() - first) / len(y)


def permutation_p(
    x: Float[np.ndarray, "seeds tasks"], y: Float[np.ndarray, "others tasks"], *, seed: int = 0, most: int = 100_000
) -> float:
    r"""Two-sided p of `difference` between equal methods: $\Pr(|d_\pi| \ge |d|)$ over divisions $\pi$ of every task's runs among both.

    Exact if there are at most `most` divisions over all tasks, else over so many random ones. Unlike the bootstrap's interval it holds its
    level with few seeds: 3 against 3 runs of one task cannot go below .1, of two tasks not below .005.
    """
    rng = np.random.default_rng(seed)
    d = difference(x, y)
    of_task = [divisions(a[~np.isnan(a)], b[~np.isnan(b)], rng, most) for a, b in zip(x.T, y.T, strict=True)]
    if prod(map(len, of_task)) <= most:
        d_pi = reduce(np.add.outer, of_task) / len(of_task)
    else:
        d_pi = np.append(sum(rng.choice(differences, most - 1) for differences in of_task) / len(of_task), d)
    return float(np.mean(np.abs(d_pi) >= abs(d) - 1e-9))
