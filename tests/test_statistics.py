"""Statistics of a benchmark: answers checkable by eye, loops in plain Python, and rliable's numbers.

tests/golden/statistics.json holds what rliable 1.2.0 (with arch 7.2.0, scipy 1.17.1, numpy 2.4.6) gave once for two fixed matrices of
rounded Beta variates, 5 and 7 seeds x 3 tasks with ties: `metrics.aggregate_iqm`, `aggregate_mean`, `probability_of_improvement`, and
`library.get_interval_estimates` with 50,000 repetitions after `numpy.random.seed(0)`.
"""

import json
from itertools import combinations
from math import floor, sqrt

import numpy as np
import pytest
from conftest import GOLDEN
from scipy.stats import permutation_test

from tql import statistics as st

NAN = np.nan
RLIABLE = json.loads((GOLDEN / "statistics.json").read_text())


@pytest.fixture
def matrices():
    return np.array(RLIABLE["x"]), np.array(RLIABLE["y"])


def row(step, success, policy="policy"):
    return dict(step=step, policy=policy, success=success)


# ---- rliable ---------------------------------------------------------------------------------------------------------------------


def test_the_numbers_of_rliable(matrices):
    x, y = matrices
    assert st.iqm(x) == pytest.approx(RLIABLE["iqm"]["x"]["value"], abs=1e-12)
    assert st.iqm(y) == pytest.approx(RLIABLE["iqm"]["y"]["value"], abs=1e-12)
    assert st.mean_score(x) == pytest.approx(RLIABLE["mean"]["x"]["value"], abs=1e-12)
    assert st.improvement(x, y) == pytest.approx(RLIABLE["probability_of_improvement"]["value"], abs=1e-12)


def test_the_intervals_of_rliable(matrices):
    """Both are Monte Carlo: the 2.5 % percentiles of 20,000 repetitions scatter by about 0.002 here."""
    x, y = matrices
    many = dict(repetitions=20_000)
    np.testing.assert_allclose(st.stratified_bootstrap(st.iqm, x, **many), RLIABLE["iqm"]["x"]["interval"], atol=0.012)
    np.testing.assert_allclose(st.stratified_bootstrap(st.iqm, y, **many), RLIABLE["iqm"]["y"]["interval"], atol=0.012)
    np.testing.assert_allclose(st.stratified_bootstrap(st.mean_score, x, **many), RLIABLE["mean"]["x"]["interval"], atol=0.008)
    interval = st.stratified_bootstrap(st.improvement, x, y, **many)
    np.testing.assert_allclose(interval, RLIABLE["probability_of_improvement"]["interval"], atol=0.02)


# ---- one run ---------------------------------------------------------------------------------------------------------------------


def test_a_run_counts_its_last_evaluation_or_the_mean_of_the_last_three():
    solved_at = ((400, 4), (100, 1), (300, 0), (200, 2))
    rows = [row(step, episode < solved) for step, solved in solved_at for episode in range(5)]
    rows += [row(500, True, "behaviour")] * 5
    assert st.success_by_step(rows) == {100: 0.2, 200: 0.4, 300: 0.0, 400: 0.8}
    assert st.run_success(rows) == 0.8, "by updates, not by place in the file; the other policy does not count"
    assert st.run_success(rows, last=3) == pytest.approx((0.4 + 0.0 + 0.8) / 3)
    assert st.run_success(rows, policy="behaviour") == 1


@pytest.mark.parametrize("last, policy", [(3, "policy"), (0, "policy"), (1, "behaviour")])
def test_too_few_evaluations_are_an_error(last, policy):
    with pytest.raises(ValueError, match=rf"last {last} evaluations of '{policy}'.*are recorded"):
        st.run_success([row(100, True), row(200, False)], policy, last)


# ---- means as in the table -------------------------------------------------------------------------------------------------------


def test_means_and_deviations_by_hand():
    x = np.array([[0.1, 1.0], [0.3, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(st.task_means(x), [0.3, 0.5])
    np.testing.assert_allclose(st.task_deviations(x), [0.2, 0.5])  # sqrt(0.08 / 2), sqrt(0.5 / 2)
    assert st.mean_score(x) == pytest.approx(0.4) and st.mean_deviation(x) == pytest.approx(0.35)
    np.testing.assert_allclose(st.task_deviations(np.array([[0.1], [0.3]])), [sqrt(0.02)])


def test_the_paper_averages_deviations_over_tasks():
    """Deviations of the tasks cancel in the mean; the paper's +- does not."""
    x = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert st.mean_score(x) == 0.5 and st.mean_deviation(x) == pytest.approx(sqrt(0.5)) and x.mean(axis=1).std() == 0


def test_a_task_weighs_the_same_however_many_seeds_it_has_and_a_run_weighs_the_same_in_the_iqm():
    x = np.array([[1.0, 0.5], [1.0, NAN], [1.0, NAN]])
    assert st.mean_score(x) == 0.75
    assert st.iqm(x) == 1.0  # the runs 0.5, 1, 1, 1 without the lowest and the highest
    np.testing.assert_array_equal(st.task_deviations(x), [0, NAN])
    assert np.isnan(st.mean_deviation(x)), "a single seed has no deviation, so neither has the average"


def test_missing_runs_may_stand_anywhere():
    x = np.array([[NAN, 0.2], [0.4, NAN], [0.6, 0.3]])
    packed = np.array([[0.4, 0.2], [0.6, 0.3], [NAN, NAN]])
    y = np.array([[0.5, NAN], [NAN, 0.25]])
    for of in (st.task_means, st.task_deviations, st.iqm, lambda x: st.improvement(x, y), lambda x: st.stratified_bootstrap(st.iqm, x)):
        np.testing.assert_array_equal(of(x), of(packed))
    assert st.improvement(x, y) == 0.5  # one of two, one of two


# ---- interquartile mean, improvement ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds, tasks", [(3, 1), (5, 3), (7, 2), (2, 11)])
def test_iqm_leaves_out_a_quarter_at_both_ends_over_all_runs_and_tasks(seeds, tasks):
    x = np.random.default_rng(seeds).uniform(size=(seeds, tasks))
    values = sorted(float(value) for value in x.flatten())
    cut = floor(len(values) / 4)
    kept = values[cut : len(values) - cut]
    assert st.iqm(x) == pytest.approx(sum(kept) / len(kept), abs=1e-14)


def test_iqm_ignores_outliers():
    assert st.iqm(np.array([[0.0, 0.4], [0.5, 1.0]])) == 0.45


def test_improvement_against_loops():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, (5, 3)) / 5, rng.integers(0, 6, (7, 3)) / 5
    of_tasks = []
    for t in range(3):
        won = 0.0
        for a in range(5):
            for b in range(7):
                won += 1.0 if x[a, t] > y[b, t] else 0.5 if x[a, t] == y[b, t] else 0.0
        of_tasks.append(won / 35)
    assert st.improvement(x, y) == pytest.approx(sum(of_tasks) / 3, abs=1e-14)
    assert st.improvement(x, y) + st.improvement(y, x) == pytest.approx(1)
    assert st.improvement(x, x) == 0.5 and st.improvement(np.ones((3, 2)), np.zeros((2, 2))) == 1


def test_improvement_averages_tasks_whatever_their_seeds():
    x = np.array([[1.0, 0.0], [1.0, NAN], [1.0, NAN]])
    assert st.improvement(x, np.array([[0.5, 0.5]])) == 0.5


def test_statistics_take_a_stack_of_draws():
    rng = np.random.default_rng(5)
    x, y = rng.uniform(size=(2, 5, 3)), rng.uniform(size=(2, 7, 3))
    x[:, 4, 1] = NAN
    for of in (st.mean_score, st.iqm):
        np.testing.assert_allclose(of(x), [of(x[0]), of(x[1])], rtol=1e-14)
    for of in (st.improvement, st.difference):
        np.testing.assert_allclose(of(x, y), [of(x[0], y[0]), of(x[1], y[1])], rtol=1e-14)


def test_difference_has_its_sign():
    assert st.difference(np.full((3, 2), 0.75), np.full((2, 2), 0.5)) == 0.25


# ---- bootstrap -------------------------------------------------------------------------------------------------------------------


def test_seeds_are_resampled_within_their_task():
    x = np.array([[0.1, 0.7, 0.9], [0.2, 0.8, NAN], [0.3, NAN, NAN]])
    draws = st.resampled(x, np.random.default_rng(0), 211)
    assert np.all(np.isnan(draws).sum(axis=1) == [0, 1, 2])
    first, second, third = np.moveaxis(draws, 2, 0)
    assert set(first.flatten()) == {0.1, 0.2, 0.3} and set(second[:, :2].flatten()) == {0.7, 0.8} and set(third[:, 0]) == {0.9}
    repeats = np.mean([len(set(draw)) for draw in first])
    assert 1.9 < repeats < 2.3, "with replacement, and every place for itself: 3 (1 - (2/3)^3) = 2.1 different ones"
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.2, "tasks draw independently"


def test_the_interval_of_a_mean_of_two_runs_is_known():
    """The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    x = np.array([[0.0], [1.0]])
    assert st.stratified_bootstrap(st.mean_score, x) == (0.0, 1.0)
    assert st.stratified_bootstrap(st.mean_score, x, level=0.4) == (0.5, 0.5)
    assert st.stratified_bootstrap(st.mean_score, x, level=0.6) == (0.0, 1.0)


def test_tasks_are_strata_so_differences_between_them_do_not_widen_the_interval():
    easy_and_hard = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert st.stratified_bootstrap(st.mean_score, easy_and_hard) == (0.5, 0.5)


def test_the_interval_is_the_same_for_the_same_seed_only(matrices):
    x = matrices[0] + np.linspace(0, 1e-3, 15).reshape(5, 3)
    a, b, c = (st.stratified_bootstrap(st.mean_score, x, seed=seed, repetitions=100) for seed in (1, 1, 2))
    assert a == b != c


def test_methods_are_resampled_independently():
    """Var(mean x - mean y) is the sum of both; resampled together it would be 0 for equal matrices."""
    x = np.random.default_rng(0).uniform(size=(11, 1))
    low, high = st.stratified_bootstrap(st.difference, x, x, repetitions=4000)
    expected = 1.96 * sqrt(2 * x.var() / 11)
    assert low == pytest.approx(-expected, rel=0.1) and high == pytest.approx(expected, rel=0.1)


# ---- errors ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [st.task_means, st.iqm, lambda x: st.improvement(np.ones((2, 3)), x)])
def test_a_task_without_runs_is_an_error_that_names_it(statistic):
    with pytest.raises(ValueError, match=r"no run of the tasks in columns \[1\] of 3; leave those tasks out"):
        statistic(np.array([[0.5, NAN, 0.5], [0.5, NAN, 0.5]]))


def test_a_single_seed_has_no_interval():
    with pytest.raises(ValueError, match=r"columns \[1\] have a single seed"):
        st.stratified_bootstrap(st.iqm, np.array([[0.5, 0.5], [0.5, NAN]]))


@pytest.mark.parametrize("bad", [55.0, -0.1])
def test_percents_and_negative_scores_are_an_error(bad):
    with pytest.raises(ValueError, match="from 0 to 1"):
        st.iqm(np.array([[bad], [0.5]]))


@pytest.mark.parametrize("wrong", [dict(repetitions=0), dict(level=95.0)])
def test_bootstrap_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="repetitions|level"):
        st.stratified_bootstrap(st.iqm, np.array([[0.5], [0.5]]), **wrong)


def test_methods_need_the_same_tasks():
    with pytest.raises(Exception, match="tasks|shape|Type"):
        st.improvement(np.ones((2, 3)), np.ones((2, 5)))


# The permutation test.


def test_p_by_hand():
    """Of the 6 ways to divide 1, 2, 3, 4 into two pairs, 2 are as far apart as (1, 2) and (3, 4), and 4 as (1, 3) and (2, 4)."""
    column = lambda *runs: np.array([runs], dtype=float).T / 10
    assert st.permutation_p(column(1, 2), column(3, 4)) == pytest.approx(2 / 6)
    assert st.permutation_p(column(3, 1), column(2, 4)) == pytest.approx(4 / 6)
    assert st.permutation_p(column(3, 3), column(3, 3)) == st.permutation_p(column(1), column(9)) == 1


def test_p_of_one_task_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 50, size=3) / 50, rng.integers(10, 50, size=5) / 50
        distance = lambda a, b: abs(np.mean(a) - np.mean(b))
        by_scipy = permutation_test((x, y), distance, n_resamples=np.inf, alternative="greater").pvalue
        assert st.permutation_p(x[:, None], y[:, None]) == pytest.approx(by_scipy)


def test_p_of_two_tasks_against_loops_and_without_the_runs_that_are_missing():
    x, y = np.array([[0.1, 0.9], [0.4, 0.5], [np.nan, 0.6]]), np.array([[0.2, 0.3], [0.7, np.nan]])
    mean = lambda runs: sum(runs) / len(runs)
    all_differences = [
        (mean(first) - mean([run for run in four if run not in first])) + (mean(second) - mean([run for run in of if run not in second]))
        for four, of in [((0.1, 0.4, 0.2, 0.7), (0.9, 0.5, 0.6, 0.3))]
        for first in combinations(four, 2)
        for second in combinations(of, 3)
    ]
    d = mean([0.1, 0.4]) - mean([0.2, 0.7]) + mean([0.9, 0.5, 0.6]) - 0.3
    expected = np.mean([abs(other) >= abs(d) - 1e-9 for other in all_differences])
    assert len(all_differences) == 24 and 0 < expected < 1
    assert st.permutation_p(x, y) == pytest.approx(expected)


def test_p_of_random_divisions_is_near_the_exact_one():
    """With 120 those of each task are drawn already, so their error comes twice."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.5, 0.2, size=(4, 3)), rng.normal(0.7, 0.2, size=(5, 3))
    exact = st.permutation_p(x, y, most=126**3)
    assert 0.005 < exact < 0.5
    for most in (100_000, 20_000, 120):
        error = 4 * np.sqrt(exact * (1 - exact) / most) * (3 if most < 126 else 1)
        assert st.permutation_p(x, y, most=most) == pytest.approx(exact, abs=error)


@pytest.mark.parametrize("seeds, tasks", [(3, 1), (3, 2), (8, 1)])
def test_equal_methods_differ_by_the_permutation_test_in_one_of_twenty_by_the_interval_in_more(seeds, tasks):
    """Runs of 50 episodes that solve 55 % of them, give or take 10 points by seed; 400 pairs: three standard errors are .033."""
    rng = np.random.default_rng(0)
    by_interval = by_test = 0
    for trial in range(400):
        x, y = rng.binomial(50, np.clip(rng.normal(0.55, 0.1, size=(2, seeds, tasks)), 0, 1)) / 50
        low, high = st.stratified_bootstrap(st.difference, x, y, seed=trial, repetitions=500)
        by_interval += low > 0 or high < 0
        by_test += st.permutation_p(x, y) <= 0.05
    assert by_test / 400 < 0.05 + 0.033 and (by_test == 0) == (seeds * tasks == 3)
    assert by_interval > 1.3 * by_test
