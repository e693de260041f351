"""A batch is whole rows, drawn evenly."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tql.batch import Transition, draw_batch


def test_a_batch_has_whole_rows_drawn_evenly(getkey):
    number = jnp.arange(7, dtype="float32")
    column = lambda offset: number[:, None] + offset
    data = Transition(column(0), column(10), number + 20, number + 30, column(40), column(50))
    drawn = eqx.filter_jit(draw_batch)(data, 7000, getkey())
    row = np.asarray(drawn.s[:, 0])
    for name, offset in {"a": 10, "r": 20, "m": 30, "s_next": 40, "a_next": 50}.items():
        np.testing.assert_array_equal(np.ravel(getattr(drawn, name)), row + offset)
    # Five standard deviations.
    assert np.abs(np.bincount(row.astype(int), minlength=7) - 1000).max() < 150
    other = draw_batch(data, 7, jr.key(1))
    assert not np.array_equal(draw_batch(data, 7, jr.key(0)).r, other.r)
