"""Statistics of a benchmark: answers by hand, loops in plain Python, scipy's and rliable's numbers.

golden/statistics.json holds what rliable 1.2.0 gave once for two fixed matrices of 5 and 7 runs x 3
tasks with ties, its intervals with 50,000 repetitions.
"""

import json
import sys
from itertools import combinations
from math import floor
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

import success_statistics as st

RLIABLE = json.loads((GOLDEN / "statistics.json").read_text())
X, Y = (list(np.array(RLIABLE[name]).T) for name in "xy")


def test_the_numbers_of_rliable():
    assert st.iqm(X) == pytest.approx(RLIABLE["iqm"]["x"]["value"], abs=1e-12)
    assert st.iqm(Y) == pytest.approx(RLIABLE["iqm"]["y"]["value"], abs=1e-12)
    assert st.mean_score(X) == pytest.approx(RLIABLE["mean"]["x"]["value"], abs=1e-12)
    improvement = RLIABLE["probability_of_improvement"]["value"]
    assert st.improvement(X, Y) == pytest.approx(improvement, abs=1e-12)


def test_the_intervals_of_rliable():
    """Both are Monte Carlo: percentiles of 20,000 repetitions scatter by about 0.002 here."""
    for of, scores, golden, near in (
        (st.iqm, (X,), RLIABLE["iqm"]["x"], 0.012),
        (st.iqm, (Y,), RLIABLE["iqm"]["y"], 0.012),
        (st.mean_score, (X,), RLIABLE["mean"]["x"], 0.008),
        (st.improvement, (X, Y), RLIABLE["probability_of_improvement"], 0.02),
    ):
        np.testing.assert_allclose(st.interval(of, *scores), golden["interval"], atol=near)


def test_means_and_deviations_by_hand():
    x = [np.array([0.1, 0.3, 0.5]), np.array([1.0, 0.0, 0.5])]
    assert st.mean_score(x) == pytest.approx(0.4) and st.mean_deviation(x) == pytest.approx(0.35)
    uneven = [np.array([1.0, 1.0, 1.0]), np.array([0.5])]
    assert st.mean_score(uneven) == 0.75, "a task weighs the same, however many runs it has"
    assert st.iqm(uneven) == 1.0, "a run weighs the same: 0.5, 1, 1, 1 without lowest and highest"
    assert st.difference([np.full(3, 0.75)] * 2, [np.full(2, 0.5)] * 2) == 0.25


@pytest.mark.parametrize("runs, tasks", [(3, 1), (5, 3), (7, 2), (2, 11)])
def test_iqm_leaves_out_a_quarter_at_both_ends(runs, tasks):
    x = list(np.random.default_rng(runs).uniform(size=(tasks, runs)))
    values = sorted(float(value) for task in x for value in task)
    cut = floor(len(values) / 4)
    kept = values[cut : len(values) - cut]
    assert st.iqm(x) == pytest.approx(sum(kept) / len(kept), abs=1e-14)


def test_improvement_against_loops():
    of_tasks = []
    for a_task, b_task in zip(X, Y):
        won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in a_task for b in b_task]
        of_tasks.append(sum(won) / len(won))
    assert st.improvement(X, Y) == pytest.approx(sum(of_tasks) / 3, abs=1e-14)
    assert st.improvement(X, Y) + st.improvement(Y, X) == pytest.approx(1)
    assert st.improvement(X, X) == 0.5


def test_runs_are_drawn_within_their_task():
    """Of two runs, 0 and 1, a mean of draws is 0, 1/2, 1 with probability 1/4, 1/2, 1/4; tasks that
    differ do not widen the interval."""
    two = [np.array([0.0, 1.0])]
    assert st.interval(st.mean_score, two) == (0.0, 1.0)
    assert st.interval(st.mean_score, two, level=0.4) == (0.5, 0.5)
    single = [np.array([0.5]), np.array([0.1, 0.2])]
    with pytest.raises(ValueError, match="two or more observations"):
        st.interval(st.mean_score, single)


def test_the_permutation_test_on_one_task_is_scipys():
    rng = np.random.default_rng(1)
    for n, m in ((3, 3), (3, 5), (4, 2)):
        x, y = rng.integers(0, 6, n) / 5, rng.integers(0, 6, m) / 5
        theirs = stats.permutation_test(
            (x, y), lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis), n_resamples=np.inf
        )
        # scipy doubles the smaller tail; both are the same where the distribution is symmetric.
        if n == m:
            assert st.permutation_p([x], [y]) == pytest.approx(theirs.pvalue)
        d = abs(x.mean() - y.mean())
        runs, at_least, divisions = [*x, *y], 0, 0
        for part in combinations(range(n + m), n):
            first = [runs[i] for i in part]
            second = [runs[i] for i in range(n + m) if i not in part]
            at_least += abs(np.mean(first) - np.mean(second)) >= d - 1e-9
            divisions += 1
        assert st.permutation_p([x], [y]) == pytest.approx(at_least / divisions)


def test_the_permutation_test_divides_the_runs_of_every_task():
    low, high = np.array([0.0, 0.1, 0.2]), np.array([0.8, 0.9, 1.0])
    assert st.permutation_p([high], [low]) == pytest.approx(2 / 20)
    assert st.permutation_p([high] * 2, [low] * 2) == pytest.approx(2 / 400)
    assert st.permutation_p([high, low], [low, high]) == 1, "tasks that cancel"
    assert st.permutation_p([low], [low]) == 1


def test_p_values_are_corrected_as_by_hand():
    """Benjamini and Hochberg: p_(i) n / i, made increasing from the end."""
    np.testing.assert_allclose(
        st.adjusted([0.01, 0.04, 0.03, 0.5]), [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )
