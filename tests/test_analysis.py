"""Measures of a critic, against functions whose landscape is known and against the loop reference."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from tql import analysis
from tql.attention import group_entropy
from tql.critic import AbstractTransformerCritic, Critic

N_S, N_A = 3, 5


class Known(AbstractTransformerCritic):
    """A critic that is the function `q` of the action; its two heads differ by 2, their mean is `q`. Attention is given too."""

    q: Callable
    logits: jax.Array
    n: int = eqx.field(static=True, default=1 + N_S + N_A)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        return jnp.stack([self.q(a) + 1, self.q(a) - 1])

    def with_attention(self, s, a):
        return self(s, a), self.logits


def known(q, logits=None):
    return Known(q, jnp.zeros((1, 1, 9, 9)) if logits is None else logits)


@pytest.fixture
def s():
    return jnp.zeros(N_S)


@pytest.fixture
def a():
    """Coordinates 1 and 3 are outside [-0.5, 0.5], and so is 4, which no test moves."""
    return jnp.array([0.1, 0.9, -0.3, -0.7, 0.8])


# ---------------------------------------------------------------- landscapes and slices


def test_landscape_by_hand(s, a):
    """Rows move the first dimension, columns the second, others stay; the centre is clipped in these two alone."""
    grid = analysis.landscape(known(lambda a: 100 * a[3] + a[1] + 1000 * a[4]), s, a, 3, 1)
    assert grid.shape == (11, 11)
    at = {(0, 0): -100 + 0, (10, 0): 0 + 0, (0, 10): -100 + 1, (5, 5): -50 + 0.5, (6, 4): -40 + 0.4}
    for (row, column), q in at.items():
        assert grid[row, column] == pytest.approx(800 + q, abs=1e-3)


@pytest.mark.parametrize(("i", "j"), [(0, 1), (3, 1), (4, 2)])
def test_landscape_is_the_references(x64, s, i, j):
    a = np.array([0.1, 0.9, -0.3, -0.7, 0.8])
    weights = np.random.default_rng(0).normal(size=(2, N_A))
    ours = analysis.landscape(known(lambda a: jnp.sin(3 * a @ weights[0]) * (a @ weights[1])), s, jnp.array(a), i, j)
    theirs = ref.landscape(lambda a: np.sin(3 * a @ weights[0]) * (a @ weights[1]), a, i, j)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
    assert np.ptp(theirs) > 0.1


def test_landscape_stays_among_the_actions(s):
    for x in (-1.0, 0.0, 1.0):
        grid = analysis.landscape(known(lambda a: jnp.max(jnp.abs(a))), s, jnp.full(N_A, x), 0, 2)
        assert grid.max() <= 1


def test_slice(s, a):
    line = analysis.q_slice(known(lambda a: a[3] ** 2 + 10 * a[4]), s, a, 3)
    np.testing.assert_allclose(line, np.linspace(-1, 1, 41) ** 2 + 8, rtol=1e-6)


def test_dimensions_are_checked(s, a):
    """JAX itself would clamp or drop such an index in silence."""
    critic = known(jnp.sum)
    for i, j in ((0, 5), (-1, 2), (5, 0)):
        with pytest.raises(ValueError, match="dimensions 0 to 4"):
            analysis.landscape(critic, s, a, i, j)
    with pytest.raises(ValueError, match="got 2 twice"):
        analysis.landscape(critic, s, a, 2, 2)
    with pytest.raises(ValueError, match="no action dimension 7"):
        analysis.q_slice(critic, s, a, 7)


# ---------------------------------------------------------------- roughness


def test_roughness_of_planes_and_products_is_zero(s, a):
    for q in (lambda a: 3 * a[0] - 2 * a[2] + 7, lambda a: a[0] * a[2]):
        assert analysis.roughness(analysis.landscape(known(q), s, a, 0, 2)) < 1e-9


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
def test_roughness_of_a_constant_is_zero(value):
    """Not NaN; 0.1 is not a binary fraction, so that a mean over the grid rounds."""
    assert analysis.roughness(jnp.full((11, 11), value)) == 0


@pytest.mark.parametrize("slope", [0.0, 0.3, -2.0])
def test_roughness_of_quadratics(x64, s, slope):
    """Q = x^2 + b x at x = k/10, k = -5..5. Second differences are 2/100 along x and 0 along y: mean square 2e-4.
    <k^2> = 10 and <k^4> = 178, so the variance is 78e-4 + b^2 / 10. For b = 0: 1/39, also for x^2 + y^2 and for any factor."""
    origin = jnp.zeros(N_A)
    grid = analysis.landscape(known(lambda a: a[1] ** 2 + slope * a[1]), s, origin, 1, 4)
    assert analysis.roughness(grid) == pytest.approx(2e-4 / (78e-4 + slope**2 / 10), rel=1e-11)
    for q in (lambda a: a[1] ** 2 + a[4] ** 2, lambda a: -50 * a[4] ** 2 + 3):
        assert analysis.roughness(analysis.landscape(known(q), s, origin, 1, 4)) == pytest.approx(1 / 39, rel=1e-11)


def test_roughness_of_a_checkerboard_and_of_noise(x64):
    """+-1 in turn: every second difference is +-4, the mean is 1/121. Independent noise: 1 + 4 + 1 = 6."""
    k = np.arange(11)
    board = (-1.0) ** (k[:, None] + k[None, :])
    assert analysis.roughness(jnp.array(board)) == pytest.approx(16 / (1 - 121**-2), rel=1e-12)
    noise = np.random.default_rng(0).normal(size=(401, 401))
    assert analysis.roughness(jnp.array(noise)) == pytest.approx(6, rel=0.05)


def test_roughness_is_the_references_and_has_no_unit(x64):
    """On a grid that is not square, so that a forgotten axis is seen."""
    grid = np.random.default_rng(1).normal(size=(7, 11)) + np.arange(11)
    expected = ref.roughness(grid)
    assert analysis.roughness(jnp.array(grid)) == pytest.approx(expected, rel=1e-12)
    assert analysis.roughness(jnp.array(grid.T)) == pytest.approx(expected, rel=1e-12)
    assert analysis.roughness(jnp.array(-40 * grid + 9)) == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------- turning points


@pytest.mark.parametrize("waves", [1, 2, 3, 4, 5])
def test_turning_points_of_sinusoids(s, a, waves):
    """sin(m pi x) has 2 m turns between -1 and 1."""
    line = analysis.q_slice(known(lambda a: jnp.sin(waves * math.pi * a[2])), s, a, 2)
    assert analysis.turning_points(line) == 2 * waves


@pytest.mark.parametrize(
    ("line", "turns"),
    [
        ([1, 2, 3], 0),
        ([5, 5, 5, 5], 0),
        ([3, 1, 1, 1, 2], 1),
        ([1, 2, 2, 3], 0),
        ([4, 4, 5, 4, 4], 1),
        ([0, 1, 0, 1, 0], 3),
        ([0, 0, 0, 1, 1, 0, 0, 1], 2),
    ],
)
def test_turning_points_by_hand(line, turns):
    assert analysis.turning_points(jnp.array(line, float)) == turns == ref.turning_points(np.array(line, float))


count_turns = jax.jit(analysis.turning_points)


@given(st.lists(st.integers(-2, 2), min_size=13, max_size=13))
@settings(max_examples=100, deadline=None)
def test_turning_points_are_the_references(line):
    """Small integers, so that level steps are frequent."""
    assert count_turns(jnp.array(line, jnp.float32)) == ref.turning_points(np.array(line))


# ---------------------------------------------------------------- sensitivity


def test_sensitivity(s, a):
    assert analysis.sensitivity(known(lambda a: 3 * a[0] - 4 * a[4] + 2), s, a) == pytest.approx(5)
    assert analysis.sensitivity(known(lambda a: jnp.sum(a**2)), s, a) == pytest.approx(2 * np.linalg.norm(a), rel=1e-6)
    assert analysis.sensitivity(known(lambda a: 0 * a[0]), s, a) == 0


def test_sensitivity_of_a_transformer(x64, getkey):
    """Against finite differences."""
    critic = Critic(2, 3, d_model=6, heads=2, layers=1, key=getkey())
    s, a = jr.normal(getkey(), (2,)), jr.uniform(getkey(), (3,), minval=0.2)
    q = jax.jit(lambda a: analysis.mean_q(critic, s, a))
    slope = ref.gradient(lambda a: q(jnp.array(a)).item(), np.array(a))
    ours = jax.jit(lambda a: analysis.sensitivity(critic, s, a))(a)
    assert ours == pytest.approx(np.linalg.norm(slope), rel=1e-6)
    assert np.linalg.norm(slope) > 1e-3


# ---------------------------------------------------------------- attention


def test_attention_and_its_entropy_by_hand(s, a):
    """One layer, two heads, 9 tokens. Head 0: all uniform. Head 1: [VALUE] looks at one token, the others at two evenly."""
    nowhere = -1e4
    logits = np.zeros((1, 2, 9, 9))
    logits[0, 1] = nowhere
    logits[0, 1, 0, 4] = 0
    logits[0, 1, 1:, [2, 7]] = 0
    critic = known(jnp.sum, jnp.array(logits, jnp.float32))
    maps = analysis.attention_maps(critic, s, a)
    np.testing.assert_allclose(maps[0, 0], np.full((9, 9), 1 / 9), rtol=1e-6)
    np.testing.assert_allclose(maps[0, 1, 0], np.eye(9)[4], atol=1e-7)
    np.testing.assert_allclose(maps[0, 1, 5], (np.eye(9)[2] + np.eye(9)[7]) / 2, atol=1e-7)
    H = analysis.head_entropies(critic, s, a)
    np.testing.assert_allclose(H, [[[math.log(9), math.log(9)], [0, math.log(2)]]], atol=1e-6)
    np.testing.assert_allclose(analysis.effective_tokens(H), [[[9, 9], [1, 2]]], rtol=1e-5)


def test_attention_of_a_transformer(x64, getkey):
    """Sizes all different; batch by vmap; entropies against -sum p log p, and their mean over heads is what is controlled."""
    critic = Critic(5, 2, d_model=15, heads=3, layers=2, key=getkey())
    states, actions = jr.normal(getkey(), (7, 5)), jr.uniform(getkey(), (7, 2))

    @jax.jit
    @jax.vmap
    def look(s, a):
        _, logits = critic.with_attention(s, a)
        controlled = jax.vmap(group_entropy)(logits)
        return analysis.attention_maps(critic, s, a), analysis.head_entropies(critic, s, a), controlled

    maps, H, controlled = look(states, actions)
    assert maps.shape == (7, 2, 3, 8, 8)
    np.testing.assert_allclose(np.sum(maps, axis=-1), 1, rtol=1e-12)
    h = np.apply_along_axis(ref.entropy_of_weights, -1, np.asarray(maps))
    np.testing.assert_allclose(H, np.stack([h[..., 0], h[..., 1:].mean(axis=-1)], axis=-1), rtol=1e-10)
    np.testing.assert_allclose(np.mean(H, axis=2), controlled, rtol=1e-12)
