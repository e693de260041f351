"""The schedule by hand, a network with its optimiser, and the target's moving average.

`test_golden_losses.py` and `test_parity.py` hold AdamW and the schedule to the reference's numbers.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tql.config import TQLConfig
from tql.layers import Linear, glorot_uniform
from tql.optimise import Learner, copy, polyak, schedule, value_and_grad

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture
def linear(getkey):
    return Linear(glorot_uniform, 3, 2, key=getkey())


def test_schedule_by_hand():
    """1 % at first, 100 % after the warm-up, 55 % half-way down the cosine, 10 % from one warm-up
    before the end."""
    config = TQLConfig(task="scene-play-v0", steps=1000, warmup=100)
    rate = schedule(2.0, config)
    rates = [rate(made) for made in (0, 100, 500, 900, 1000)]
    np.testing.assert_allclose(rates, [0.02, 2.0, 1.1, 0.2, 0.2], rtol=1e-5)


def test_a_learner_descends(linear):
    """Plain gradient descent by hand, and momentum that only the state can know: the second step
    along the same gradient is 1.5 times as long."""
    learner = Learner.start(linear, optax.sgd(0.1, momentum=0.5))
    loss = lambda model, x: (jnp.sum(model(x)), "logged")
    x = jnp.array([1.0, 2, 3])
    (value, extra), gradient = value_and_grad(loss)(linear, x)
    assert extra == "logged" and value == pytest.approx(float(jnp.sum(linear(x))))
    for moved in (0.1, 0.25):
        learner = learner.descend(gradient, optax.sgd(0.1, momentum=0.5))
        expected = linear.weight - moved * jnp.stack([x, x])
        np.testing.assert_allclose(learner.model.weight, expected, rtol=1e-5)
        np.testing.assert_allclose(learner.model.bias, [-moved] * 2, rtol=1e-5)
    assert (learner.model.d_in, learner.model.d_out) == (3, 2)


def test_polyak_in_closed_form(linear, getkey):
    """Towards a network that stands still the target covers 1 - (1 - tau)^k of the way."""
    start, tau = Linear(glorot_uniform, 3, 2, key=getkey()), 0.2
    target = start
    for k in range(1, 4):
        target = polyak(linear, target, tau)
        covered = 1 - (1 - tau) ** k
        expected = start.weight + covered * (linear.weight - start.weight)
        np.testing.assert_allclose(target.weight, expected, rtol=1e-5, atol=1e-6)
    assert eqx.tree_equal(polyak(linear, start, 1.0), linear)


def test_a_copy_owns_its_arrays(linear):
    """A donated array must have one owner."""
    other = copy(linear)
    assert eqx.tree_equal(other, linear)
    jax.tree.map(lambda x: x.delete(), linear)
    assert other.weight.shape == (2, 3) and np.isfinite(other.weight).all()
