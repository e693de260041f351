"""Returns are those of an episode, and end where the task is solved or the record is cut."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from tql.batch import Transition
from tql.variants.returns import goes_on, regression_to_returns, returns


def two_episodes():
    """An episode of 5 steps that is solved after 3 (mask 0) and goes on, and one of 3 steps that is
    never solved; s counts the rows."""
    s = np.array([0, 1, 2, 3, 4, 10, 11, 12.0])
    r, m = np.array([-1, -1, 0, -1, -1, -1, -1, -1.0]), np.array([1, 1, 0, 1, 1, 1, 1, 1.0])
    column = lambda x: jnp.asarray(x[:, None], jnp.float32)
    flat = lambda x: jnp.asarray(x, jnp.float32)
    return Transition(column(s), column(s), flat(r), flat(m), column(s + 1), column(s + 1))


def test_returns_are_those_of_the_episode_and_stop_where_the_task_is_solved():
    found = regression_to_returns(two_episodes(), 0.5, horizon=0)
    # By hand: G_4 = -1, G_3 = -1.5, G_2 = 0 (solved, nothing follows), G_1 = -1, G_0 = -1.5; the
    # second episode -1.75, -1.5, -1.
    np.testing.assert_allclose(found.r, [-1.5, -1, 0, -1.5, -1, -1.75, -1.5, -1], atol=1e-7)
    assert not found.m.any() and found.r.dtype == jnp.float32
    np.testing.assert_array_equal(found.s, two_episodes().s)


def test_returns_that_are_cut_short_are_left_out():
    """Only rows stay that have more than two steps of their episode left."""
    found = regression_to_returns(two_episodes(), 0.5, horizon=2)
    np.testing.assert_array_equal(found.s[:, 0], [0, 1, 2, 10])
    np.testing.assert_allclose(found.r, [-1.5, -1, 0, -1.75], atol=1e-7)


def test_returns_are_sums_over_what_is_left_of_the_episode():
    """G_t = sum over the later rows k of the episode of gamma^(k-t) r_k, as long as every mask
    before k is 1."""
    rng = np.random.default_rng(5)
    r, m = rng.normal(size=23), (rng.uniform(size=23) < 0.8).astype(float)
    goes = rng.uniform(size=23) < 0.8
    goes[-1] = False
    expected = []
    for t in range(23):
        k, G, factor = t, 0.0, 1.0
        while True:
            G += factor * r[k]
            if not goes[k]:
                break
            factor *= 0.7 * m[k]
            k += 1
        expected.append(G)
    np.testing.assert_allclose(returns(r, m, goes, 0.7), expected, atol=1e-12)


def test_where_episodes_end():
    """Where the next row's state is not the one that this row led to, if only in one number; and
    after the last row."""
    data = two_episodes()
    assert goes_on(data).tolist() == [True, True, True, True, False, True, True, False]
    both = lambda x, other: jnp.concatenate([x, other], axis=1)
    s, s_next = both(data.s, data.s), both(data.s_next, data.s_next.at[1].add(1e-3))
    data = eqx.tree_at(lambda row: (row.s, row.s_next), data, (s, s_next))
    assert goes_on(data).tolist() == [True, False, True, True, False, True, True, False]
