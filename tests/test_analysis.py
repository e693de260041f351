"""Measures and portraits of critics whose landscape, gradient and attention are known in closed
form, and against the loop reference."""

import math

import equinox as eqx
import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from tql.analysis import landscape as analysis
from tql.analysis.landscape import OFFSETS, SLICE
from tql.analysis.portrait import (
    KEPT_MAPS,
    KEPT_PAIRS,
    PAIRS,
    draw_portrait,
    load_portrait,
    portrait_numbers,
    probe_pairs,
    save_portrait,
    take_portrait,
)
from tql.attention import group_entropy
from tql.batch import Transition
from tql.critic import AbstractCritic, Critic

N_S, N_A, LAYERS, HEADS = 7, 5, 2, 6
N = 1 + N_S + N_A


class Known(AbstractCritic):
    """Q = slope . a + curvature . a^2 + height sin(3 pi a_1) + 10 s_1, with two heads that differ
    by 2; its attention logits are s_0 times `logits`."""

    slope: jax.Array
    curvature: jax.Array
    height: jax.Array
    logits: jax.Array
    n_s: int = eqx.field(static=True, default=N_S)
    n_a: int = eqx.field(static=True, default=N_A)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        q = self.slope @ a + self.curvature @ a**2 + self.height * jnp.sin(3 * jnp.pi * a[1])
        return jnp.stack([q + 10 * s[1] + 1, q + 10 * s[1] - 1])

    def with_attention(self, s, a):
        return self(s, a), s[0] * self.logits


def known(slope=(0,) * N_A, curvature=(0,) * N_A, height=0.0, logits=None):
    logits = np.zeros((LAYERS, HEADS, N, N)) if logits is None else logits
    return Known(*(jnp.asarray(x, float) for x in (slope, curvature, height, logits)))


SLOPE, CURVATURE = (3.0, -1.0, 0.0, 2.0, -2.0), (1.0, 0.5, -2.0, 0.0, 3.0)
CRITICS = {
    "plane": known(SLOPE),
    "quadratic": known(curvature=CURVATURE),
    "stripes": known(height=1.5),
    "constant": known(),
}


@pytest.fixture(scope="module")
def pairs():
    """Three pairs: s_0, the sharpness of attention, is 1, 0 and 2; some actions lie outside the
    landscape's centre."""
    s = np.zeros((3, N_S), np.float32)
    s[:, 0], s[:, 1] = (1, 0, 2), (0, 0.25, -1)
    rows = [[0.1, 0.3, -0.3, -0.7, 0.8], [0.9, -0.8, 0, 0, 0], [-0.2, 0.4, 0.5, 0.6, -0.7]]
    return jnp.asarray(s), jnp.asarray(np.array(rows, np.float32))


def q_of(critic, s, a):
    """The closed form in NumPy."""
    q = a @ np.asarray(critic.slope, float) + a**2 @ np.asarray(critic.curvature, float)
    return q + float(critic.height) * np.sin(3 * np.pi * a[..., 1]) + 10 * s[1]


def moved(a, i, x):
    a = a.astype(float)
    a[i] = x
    return a


# ---- what is seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CRITICS)
def test_landscapes_slices_and_gradients_are_the_closed_form(kind, pairs):
    critic = CRITICS[kind]
    seen = take_portrait(critic, *pairs)
    for pair, (s, a) in enumerate(zip(*map(np.asarray, pairs))):
        centre = np.clip(a[:2].astype(float), -0.5, 0.5)
        for row, column in np.ndindex(11, 11):
            at = moved(moved(a, 0, centre[0] + OFFSETS[row]), 1, centre[1] + OFFSETS[column])
            assert seen.landscapes[pair, row, column] == pytest.approx(
                q_of(critic, s, at), abs=2e-5
            )
        for i in range(N_A):
            line = [q_of(critic, s, moved(a, i, x)) for x in SLICE]
            np.testing.assert_allclose(seen.slices[pair, i], line, rtol=0, atol=2e-5)
        gradient = np.asarray(critic.slope) + 2 * np.asarray(critic.curvature) * a
        gradient[1] += 3 * np.pi * float(critic.height) * np.cos(3 * np.pi * a[1])
        length = np.linalg.norm(gradient)
        assert seen.sensitivities[pair] == pytest.approx(length, rel=1e-4, abs=1e-6)


def test_numbers_of_closed_forms(pairs):
    of = {kind: portrait_numbers(take_portrait(critic, *pairs)) for kind, critic in CRITICS.items()}
    centres = np.clip(np.asarray(pairs[1], float)[:, :2], -0.5, 0.5)[:, :, None] + OFFSETS

    plane = of["plane"]
    assert plane["roughness"] < 1e-8 and plane["turning_points"] == 0
    assert plane["q_range"] == pytest.approx(3 + 1, rel=1e-5)
    assert plane["q_variance"] == pytest.approx((9 + 1) * np.var(OFFSETS), rel=1e-5)
    assert plane["sensitivity"] == pytest.approx(math.sqrt(9 + 1 + 4 + 4), rel=1e-5)

    # Second differences of a quadratic are 2 c h^2, everywhere the same.
    variance = np.var(centres[:, 0] ** 2, axis=1) + np.var(0.5 * centres[:, 1] ** 2, axis=1)
    squares = (2 * 0.1**2) ** 2 * np.mean([1.0**2, 0.5**2])
    assert of["quadratic"]["roughness"] == pytest.approx(np.mean(squares / variance), rel=1e-3)
    assert of["quadratic"]["turning_points"] == pytest.approx(4 / 5), "four dimensions turn at 0"

    # d^2 sin(w x) = -4 sin^2(w h / 2) sin(w x); the other axis does not move.
    y = 3 * np.pi * centres[:, 1]
    squares = (
        (4 * np.sin(3 * np.pi * 0.05) ** 2) ** 2 * np.mean(np.sin(y[:, 1:-1]) ** 2, axis=1) / 2
    )
    rough = np.mean(squares / np.var(np.sin(y), axis=1))
    assert of["stripes"]["roughness"] == pytest.approx(rough, rel=1e-3)
    assert of["stripes"]["turning_points"] == pytest.approx(6 / 5), "one dimension turns six times"

    names = ("roughness", "turning_points", "q_range", "q_variance", "sensitivity")
    assert [of["constant"][name] for name in names] == [0] * 5, "zero, not NaN"


def test_landscape_of_two_other_dimensions(pairs):
    """Rows move the first dimension, columns the second; the centre is clipped in these two
    alone."""
    critic, (s, a) = known((0, 1, 0, 100, 1000)), (pairs[0][0], pairs[1][0])
    grid = analysis.landscape(critic, s, a, 3, 1)
    at = {(0, 0): -100 - 0.2, (10, 0): -0.2, (0, 10): -100 + 0.8, (6, 4): -40 + 0.2}
    for (row, column), q in at.items():
        assert grid[row, column] == pytest.approx(800 + q, abs=1e-3)
    for i, j in ((0, 5), (-1, 2), (5, 0)):
        with pytest.raises(ValueError, match="dimensions 0 to 4"):
            analysis.landscape(critic, s, a, i, j)
    with pytest.raises(ValueError, match="got 2 twice"):
        analysis.landscape(critic, s, a, 2, 2)
    with pytest.raises(ValueError, match="no action dimension 7"):
        analysis.q_slice(critic, s, a, 7)


# ---- roughness and turning points ----------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
def test_roughness_of_a_constant_is_zero(value):
    """0.1 is not a binary fraction, so that a mean over the grid rounds."""
    assert analysis.roughness(jnp.full((11, 11), value)) == 0


def test_roughness_of_a_checkerboard_and_of_noise(x64):
    """+-1 in turn: every second difference is +-4, the mean is 1/121. Noise: 1 + 4 + 1 = 6."""
    k = np.arange(11)
    board = (-1.0) ** (k[:, None] + k[None, :])
    assert analysis.roughness(jnp.array(board)) == pytest.approx(16 / (1 - 121**-2), rel=1e-12)
    noise = np.random.default_rng(0).normal(size=(401, 401))
    assert analysis.roughness(jnp.array(noise)) == pytest.approx(6, rel=0.05)


def test_roughness_is_the_references_and_has_no_unit(x64):
    """On a grid that is not square, so that a forgotten axis is seen."""
    grid = np.random.default_rng(1).normal(size=(7, 11)) + np.arange(11)
    for same in (grid, grid.T, -40 * grid + 9):
        assert analysis.roughness(jnp.array(same)) == pytest.approx(ref.roughness(grid), rel=1e-12)


LINES = {
    (1, 2, 3): 0,
    (5, 5, 5, 5): 0,
    (3, 1, 1, 1, 2): 1,
    (1, 2, 2, 3): 0,
    (4, 4, 5, 4, 4): 1,
    (0, 1, 0, 1, 0): 3,
    (0, 0, 0, 1, 1, 0, 0, 1): 2,
}


@pytest.mark.parametrize("line", LINES)
def test_turning_points_by_hand(line):
    assert analysis.turning_points(jnp.array(line, float)) == LINES[line]


count_turns = jax.jit(analysis.turning_points)


@given(st.lists(st.integers(-2, 2), min_size=13, max_size=13))
@settings(max_examples=100, deadline=None)
def test_turning_points_are_the_references(line):
    """Small integers, so that level steps are frequent."""
    assert count_turns(jnp.array(line, jnp.float32)) == ref.turning_points(np.array(line))


# ---- a transformer -------------------------------------------------------------------------------


def test_sensitivity_and_attention_of_a_transformer(x64, getkey):
    """The gradient against finite differences; entropies against -sum p log p; their mean over
    heads is what is controlled."""
    critic = Critic(5, 3, d_model=6, heads=2, layers=2, key=getkey())
    s, a = jr.normal(getkey(), (5,)), jr.uniform(getkey(), (3,), minval=0.2)
    q = jax.jit(lambda a: analysis.mean_q(critic, s, a))
    slope = ref.gradient(lambda a: q(jnp.array(a)).item(), np.array(a))
    ours = jax.jit(lambda a: analysis.sensitivity(critic, s, a))(a)
    assert ours == pytest.approx(np.linalg.norm(slope), rel=1e-6) and ours > 1e-3

    maps, H = analysis.attention_maps(critic, s, a), analysis.head_entropies(critic, s, a)
    assert maps.shape == (2, 2, 9, 9)
    np.testing.assert_allclose(np.sum(maps, axis=-1), 1, rtol=1e-12)
    h = np.apply_along_axis(ref.entropy_of_weights, -1, np.asarray(maps))
    np.testing.assert_allclose(H[..., 0], h[..., 0], rtol=1e-10)
    np.testing.assert_allclose(H[..., 1], h[..., 1:].mean(axis=-1), rtol=1e-10)
    controlled = jax.vmap(group_entropy)(critic.with_attention(s, a)[1])
    np.testing.assert_allclose(np.mean(H, axis=1), controlled, rtol=1e-12)


# ---- portraits of known attention ----------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(pairs):
    """Head 1 of layer 1 is even, head 2 looks at one token, head 3 at one ([VALUE]) or two."""
    logits = np.random.default_rng(1).normal(size=(LAYERS, HEADS, N, N))
    logits[0, 0], logits[0, 1:3] = 0, -1e4
    logits[0, 1, np.arange(N), (np.arange(N) + 2) % N] = 0
    logits[0, 2, 0, 3] = 0
    logits[0, 2, 1:, [5, 11]] = 0
    return take_portrait(known(SLOPE, logits=logits), *pairs)


def test_attention_and_entropies_by_hand(seen):
    np.testing.assert_allclose(seen.entropies[1], math.log(N), rtol=1e-6)  # there all logits are 0
    for pair in (0, 2):
        np.testing.assert_allclose(seen.entropies[pair, 0, 0], math.log(N), rtol=1e-6)
        np.testing.assert_allclose(seen.entropies[pair, 0, 1], 0, atol=1e-6)
        np.testing.assert_allclose(seen.entropies[pair, 0, 2], [0, math.log(2)], atol=1e-6)
    assert seen.maps.shape == (LAYERS, KEPT_MAPS, N, N)
    np.testing.assert_allclose(seen.maps[0, 0], np.full((N, N), 1 / N), rtol=1e-5)
    np.testing.assert_allclose(seen.maps[0, 1], np.eye(N)[(np.arange(N) + 2) % N], atol=1e-6)
    np.testing.assert_allclose(np.sum(seen.mean_maps, axis=-1), 1, rtol=1e-5)
    H = seen.entropies.mean(axis=0)
    found = portrait_numbers(seen)
    np.testing.assert_allclose(found["entropy"], H, rtol=1e-6)
    np.testing.assert_allclose(found["effective_tokens"], np.exp(H.mean(axis=1)), rtol=1e-5)


def test_a_portrait_comes_back_from_its_file(seen, tmp_path):
    file = tmp_path / "portrait.npz"
    save_portrait(file, seen)
    back = load_portrait(file)
    np.testing.assert_array_equal(back.landscapes, seen.landscapes[:KEPT_PAIRS])
    np.testing.assert_array_equal(back.slices, seen.slices[:KEPT_PAIRS])
    np.testing.assert_allclose(back.mean_maps, seen.mean_maps, atol=1e-3)
    assert back.n_s == N_S and file.stat().st_size < 60_000
    for content in (b"", b"nothing", file.read_bytes()[:-100]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no portrait of a critic"):
            load_portrait(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_portrait_is_drawn(seen, tmp_path):
    figure = draw_portrait(seen, "a critic")
    assert len(figure.axes) == 3 + LAYERS
    assert figure.axes[0].get_title().startswith("Q from ")
    figure.savefig(tmp_path / "portrait.png", dpi=50)
    assert imageio.imread(tmp_path / "portrait.png").std() > 10


def test_the_same_pairs_for_every_run():
    rows = jnp.arange(200.0)
    data = Transition(rows[:, None], rows[:, None] + 1000, rows, rows, rows[:, None], rows[:, None])
    s, a = probe_pairs(data)
    assert s.shape == (PAIRS, 1) and len(set(np.ravel(s))) == PAIRS
    np.testing.assert_array_equal(a, s + 1000)
    np.testing.assert_array_equal(probe_pairs(data)[0], s)
    few = jax.tree.map(lambda x: x[:3], data)
    assert probe_pairs(few)[0].shape == (PAIRS, 1), "with repeats, where there are fewer"
    with pytest.raises(ValueError, match="needs two action dimensions; these have 1"):
        take_portrait(CRITICS["plane"], s, a)
