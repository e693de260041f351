"""Portraits of critics whose landscape, gradient and attention are known in closed form."""

import math
import re

import equinox as eqx
import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from tql import portrait as portraits
from tql.analysis import OFFSETS, SLICE
from tql.critic import AbstractTransformerCritic
from tql.data import Batch
from tql.portrait import KEPT_PAIRS, MAPS_KEPT, PAIRS, Portrait, draw, draw_landscape, draw_map, load, numbers, probe_pairs, save, take

N_S, N_A, LAYERS, HEADS = 7, 5, 2, 6
N = 1 + N_S + N_A


class Known(AbstractTransformerCritic):
    """Q = constant + slope . a + curvature . a^2 + height sin(3 pi a_1) + 10 s_1, whatever the attention, which is sharpness(s) logits.

    Its numbers are arrays, so that all of these critics share one compilation.
    """

    constant: jax.Array
    slope: jax.Array
    curvature: jax.Array
    height: jax.Array
    logits: jax.Array
    n: int = eqx.field(static=True, default=N)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        stripes = self.height * jnp.sin(3 * jnp.pi * a[1])
        q = self.constant + self.slope @ a + self.curvature @ a**2 + stripes + 10 * s[1]
        return jnp.stack([q + 1, q - 1])

    def with_attention(self, s, a):
        return self(s, a), s[0] * self.logits


def known(constant=0.0, slope=(0,) * N_A, curvature=(0,) * N_A, height=0.0, logits=None):
    logits = np.zeros((LAYERS, HEADS, N, N)) if logits is None else logits
    return Known(*(jnp.asarray(x, jnp.float32) for x in (constant, slope, curvature, height, logits)))


SLOPE, CURVATURE = (3.0, -1.0, 0.0, 2.0, -2.0), (1.0, 0.5, -2.0, 0.0, 3.0)
PLANE, QUADRATIC, STRIPES, CONSTANT = known(2.0, SLOPE), known(0.0, curvature=CURVATURE), known(height=1.5), known(7.0)


@pytest.fixture(scope="module")
def pairs():
    """Three pairs; s_0, the sharpness of attention, is 1, 0 and 2, s_1 moves Q, and some actions lie outside the landscape's centre."""
    s = np.zeros((3, N_S), np.float32)
    s[:, 0], s[:, 1] = (1, 0, 2), (0, 0.25, -1)
    a = np.array([[0.1, 0.3, -0.3, -0.7, 0.8], [0.9, -0.8, 0, 0, 0], [-0.2, 0.4, 0.5, 0.6, -0.7]], np.float32)
    return jnp.asarray(s), jnp.asarray(a)


@pytest.fixture(scope="module")
def of_plane(pairs):
    return take(PLANE, *pairs)


def q_of(critic, s, a):
    """The closed form in numpy, float64."""
    slope, curvature = np.asarray(critic.slope, float), np.asarray(critic.curvature, float)
    stripes = float(critic.height) * np.sin(3 * np.pi * a[..., 1])
    return float(critic.constant) + a @ slope + a**2 @ curvature + stripes + 10 * s[1]


def moved(a, i, x):
    a = a.astype(float)
    a[..., i] = x
    return a


# What is seen.


@pytest.mark.parametrize("critic", [PLANE, QUADRATIC, STRIPES, CONSTANT], ids=["plane", "quadratic", "stripes", "constant"])
def test_landscapes_slices_and_gradients_are_the_closed_form(critic, pairs):
    seen = take(critic, *pairs)
    assert seen.landscapes.shape == (3, 11, 11) and seen.slices.shape == (3, N_A, 41)
    for pair, (s, a) in enumerate(zip(*map(np.asarray, pairs))):
        centre = np.clip(a[:2].astype(float), -0.5, 0.5)
        for row, column in np.ndindex(11, 11):
            at = moved(moved(a, 0, centre[0] + OFFSETS[row]), 1, centre[1] + OFFSETS[column])
            assert seen.landscapes[pair, row, column] == pytest.approx(q_of(critic, s, at), abs=2e-5)
        for i in range(N_A):
            line = [q_of(critic, s, moved(a, i, x)) for x in SLICE]
            np.testing.assert_allclose(seen.slices[pair, i], line, rtol=0, atol=2e-5)
        gradient = np.asarray(critic.slope) + 2 * np.asarray(critic.curvature) * a
        gradient[1] += 3 * np.pi * float(critic.height) * np.cos(3 * np.pi * a[1])
        assert seen.sensitivities[pair] == pytest.approx(np.linalg.norm(gradient), rel=1e-4, abs=1e-6)


def test_numbers_of_a_plane(of_plane):
    found = numbers(of_plane)
    assert found["roughness"] < 1e-8 and found["turning_points"] == 0
    assert found["q_range"] == pytest.approx(3 + 1, rel=1e-5), "|slope_1| + |slope_2| over a range of 1 each"
    assert found["q_variance"] == pytest.approx((9 + 1) * np.var(OFFSETS), rel=1e-5)
    assert found["sensitivity"] == pytest.approx(math.sqrt(9 + 1 + 4 + 4), rel=1e-5)


def test_numbers_of_a_quadratic(pairs):
    """Second differences are 2 c h^2, everywhere the same."""
    s, a = pairs
    found = numbers(take(QUADRATIC, s, a))
    centres = np.clip(np.asarray(a)[:, :2], -0.5, 0.5)[:, :, None] + OFFSETS
    variance = np.var(centres[:, 0] ** 2, axis=1) + np.var(0.5 * centres[:, 1] ** 2, axis=1)
    squares = (2 * 0.1**2) ** 2 * np.mean([1.0**2, 0.5**2])
    assert found["roughness"] == pytest.approx(np.mean(squares / variance), rel=1e-3)
    assert found["q_variance"] == pytest.approx(np.mean(variance), rel=1e-4)
    assert found["turning_points"] == pytest.approx(4 / 5), "each of the four curved dimensions turns at 0"


def test_numbers_of_stripes(pairs):
    """d^2 sin(w x) = -4 sin^2(w h / 2) sin(w x); the other axis does not move."""
    s, a = pairs
    found = numbers(take(STRIPES, s, a))
    y = 3 * np.pi * (np.clip(np.asarray(a, float)[:, 1], -0.5, 0.5)[:, None] + OFFSETS)
    squares = (4 * np.sin(3 * np.pi * 0.1 / 2) ** 2) ** 2 * np.mean(np.sin(y[:, 1:-1]) ** 2, axis=1) / 2
    assert found["roughness"] == pytest.approx(np.mean(squares / np.var(np.sin(y), axis=1)), rel=1e-3)
    assert found["turning_points"] == pytest.approx(6 / 5), "sin(3 pi x) turns six times in [-1, 1]; four dimensions are level"


def test_numbers_of_a_constant(pairs):
    """Zero, not NaN."""
    found = numbers(take(CONSTANT, *pairs))
    assert [found[name] for name in ("roughness", "turning_points", "q_range", "q_variance", "sensitivity")] == [0] * 5


def test_numbers_by_an_independent_route():
    """Of arrays that no critic made, all sizes different; the second differences by shifts, the turns one by one."""
    rng = np.random.default_rng(0)
    sizes = dict(landscapes=(7, 11, 11), slices=(7, 3, 41), sensitivities=(7,), entropies=(7, 2, 5, 2), maps=(2, 4, 13, 13))
    arrays = {name: rng.uniform(0.5, 2, shape).astype(np.float32) for name, shape in sizes.items()}
    seen = Portrait(**arrays, mean_maps=np.ones((2, 13, 13), np.float32), n_s=np.array(9))
    found = numbers(seen)
    rough, turns = [], []
    for Q in seen.landscapes.astype(float):
        along = [Q[:-2] - 2 * Q[1:-1] + Q[2:], Q[:, :-2] - 2 * Q[:, 1:-1] + Q[:, 2:]]
        rough.append(np.mean([d**2 for x in along for d in x.flat]) / np.mean((Q - Q.mean()) ** 2))
    for line in seen.slices.reshape(21, 41):
        turns.append(sum((line[k] - line[k - 1]) * (line[k + 1] - line[k]) < 0 for k in range(1, 40)))
    H = seen.entropies.astype(float).mean(axis=0)
    assert found.keys() == {"roughness", "turning_points", "q_range", "q_variance", "sensitivity", "entropy", "effective_tokens"}
    assert found["roughness"] == pytest.approx(np.mean(rough), rel=1e-5)
    assert found["turning_points"] == pytest.approx(np.mean(turns), rel=1e-6)
    assert found["q_range"] == pytest.approx(np.mean([Q.max() - Q.min() for Q in seen.landscapes]), rel=1e-6)
    assert found["q_variance"] == pytest.approx(np.mean([np.mean((Q - Q.mean()) ** 2) for Q in seen.landscapes]), rel=1e-5)
    assert found["sensitivity"] == pytest.approx(sum(seen.sensitivities) / 7, rel=1e-6)
    np.testing.assert_allclose(found["entropy"], H, rtol=1e-5)
    np.testing.assert_allclose(found["effective_tokens"], np.exp((H[:, 0] + H[:, 1] + H[:, 2] + H[:, 3] + H[:, 4]) / 5), rtol=1e-5)


# Attention. Hand-made logits: head 0 uniform; head 1 one-hot; head 2 [VALUE] at key 3, others at keys 5 and 11; head 5 of layer 2 one-hot.


@pytest.fixture(scope="module")
def seen(pairs):
    logits = np.random.default_rng(1).normal(size=(LAYERS, HEADS, N, N))
    logits[0, 0] = 0
    logits[0, 1:3], logits[1, 5] = -1e4, -1e4
    logits[0, 1, np.arange(N), (np.arange(N) + 2) % N] = 0
    logits[0, 2, 0, 3] = 0
    logits[0, 2, 1:, [5, 11]] = 0
    logits[1, 5, np.arange(N), 4] = 0
    return take(known(1.0, SLOPE, logits=logits), *pairs), logits


def test_entropies_by_hand(seen):
    portrait, logits = seen
    assert portrait.entropies.shape == (3, LAYERS, HEADS, 2)
    np.testing.assert_allclose(portrait.entropies[1], math.log(N), rtol=1e-6, err_msg="with s_0 = 0 all logits are 0")
    for pair in (0, 2):
        np.testing.assert_allclose(portrait.entropies[pair, 0, 0], math.log(N), rtol=1e-6, err_msg="uniform")
        np.testing.assert_allclose(portrait.entropies[pair, 0, 1], 0, atol=1e-6, err_msg="one-hot")
        np.testing.assert_allclose(portrait.entropies[pair, 0, 2], [0, math.log(2)], atol=1e-6)
    H = numbers(portrait)["entropy"]
    np.testing.assert_allclose(H[0][1], [math.log(N) / 3] * 2, rtol=1e-6)
    tokens = np.exp(np.mean(H, axis=1))
    np.testing.assert_allclose(numbers(portrait)["effective_tokens"], tokens, rtol=1e-5)


def test_maps_are_those_of_the_first_pair_rows_queries_columns_keys(seen):
    portrait, logits = seen
    assert portrait.maps.shape == (LAYERS, MAPS_KEPT, N, N) and portrait.n_s == N_S
    np.testing.assert_allclose(portrait.maps.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(portrait.maps[0, 1], np.eye(N)[(np.arange(N) + 2) % N], atol=1e-6)
    np.testing.assert_allclose(portrait.maps[0, 2, 0], np.eye(N)[3], atol=1e-6)
    np.testing.assert_allclose(portrait.maps[0, 2, 7], (np.eye(N)[5] + np.eye(N)[11]) / 2, atol=1e-6)
    p = np.exp(logits[1, 3])
    np.testing.assert_allclose(portrait.maps[1, 3], p / p.sum(axis=1, keepdims=True), rtol=1e-4)
    assert not np.allclose(portrait.maps[1, 3], portrait.maps[1, 3].T, atol=0.01)


def test_mean_maps_are_means_over_pairs_and_all_heads(seen):
    portrait, logits = seen
    p = np.exp(np.array([1, 0, 2])[:, None, None, None, None] * logits)
    p /= p.sum(axis=-1, keepdims=True)
    assert portrait.mean_maps.shape == (LAYERS, N, N)
    np.testing.assert_allclose(portrait.mean_maps, np.mean(p, axis=(0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(portrait.mean_maps.sum(axis=-1), 1, rtol=1e-5)


def test_one_action_dimension_has_no_landscape(pairs):
    s, a = pairs
    with pytest.raises(ValueError, match="needs two action dimensions; these actions have 1"):
        take(PLANE, s, a[:, :1])


# The pairs.


def rows_of(count):
    x = np.arange(count, dtype=np.float32)
    wide = jnp.asarray(np.stack([x, x + 0.5], axis=1))
    return Batch(wide, wide / count, *[jnp.asarray(x)] * 2, wide, wide)


def test_the_probes_are_the_same_for_every_run_and_different_rows():
    s, a = probe_pairs(rows_of(1000))
    again, _ = probe_pairs(rows_of(1000))
    rows = np.asarray(s[:, 0]).astype(int)
    assert len(set(rows)) == PAIRS == 32 and s.shape == a.shape == (32, 2)
    np.testing.assert_array_equal(s, again)
    np.testing.assert_allclose(a, s / 1000, rtol=1e-6, err_msg="states and actions of the same rows")
    assert rows.min() < 200 and rows.max() > 800, "from all of the data, not from one episode"
    np.random.default_rng()  # whatever else draws
    np.testing.assert_array_equal(rows, np.random.default_rng(0).choice(1000, 32, replace=False))


def test_few_rows_are_probed_more_than_once():
    s, _ = probe_pairs(rows_of(5))
    assert s.shape == (32, 2) and set(np.asarray(s[:, 0])) <= set(range(5))


# The file.


def tall(portrait, pairs):
    """The same with more pairs, so that the file leaves some out."""
    grown = {name: np.concatenate([getattr(portrait, name)] * pairs)[:pairs] for name in portraits.PER_PAIR}
    return Portrait(**vars(portrait) | grown)


def test_a_portrait_comes_back_from_its_file(seen, tmp_path):
    portrait = tall(seen[0], 7)
    save(tmp_path / "portrait.npz", portrait)
    back = load(tmp_path / "portrait.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["portrait.npz"]
    for name in ("landscapes", "slices", "sensitivities", "entropies"):
        kept = getattr(back, name)
        assert kept.dtype == np.float32 and len(kept) == KEPT_PAIRS == 4
        np.testing.assert_array_equal(kept, getattr(portrait, name)[:4], err_msg=name)
    for name in ("maps", "mean_maps"):
        assert getattr(back, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(back, name), getattr(portrait, name).astype(np.float16), err_msg=name)
        np.testing.assert_allclose(getattr(back, name), getattr(portrait, name), rtol=1e-3, atol=1e-7)
    assert back.n_s == N_S and np.issubdtype(back.n_s.dtype, np.integer)
    with np.load(tmp_path / "portrait.npz") as arrays:
        assert arrays["maps"].dtype == arrays["mean_maps"].dtype == np.float16
    assert isinstance(draw(back, "from a file"), matplotlib.figure.Figure)


def test_the_file_of_a_wide_critic_is_small(tmp_path):
    """Sizes of cube-double at the paper's largest critic, noise, which does not compress."""
    rng, n = np.random.default_rng(0), 43
    sizes = dict(landscapes=(32, 11, 11), slices=(32, 5, 41), sensitivities=(32,), entropies=(32, 2, 32, 2), maps=(2, 4, n, n))
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    save(tmp_path / "portrait.npz", Portrait(**arrays, mean_maps=rng.random((2, n, n), np.float32), n_s=np.array(37)))
    assert (tmp_path / "portrait.npz").stat().st_size < 60_000


def written(tmp_path, content):
    (tmp_path / "portrait.npz").write_bytes(content)
    return tmp_path / "portrait.npz"


def test_files_that_hold_no_portrait(seen, tmp_path):
    save(tmp_path / "whole.npz", seen[0])
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    for content in (b"", b"text", whole[:-30], damaged):
        with pytest.raises(ValueError, match="portrait.npz: holds no portrait of a critic .* make it with tql analyse"):
            load(written(tmp_path, content))
    with pytest.raises(ValueError, match="holds no portrait"):
        load(tmp_path / "missing.npz")
    for wrong in ({"landscapes": np.zeros((4, 11, 11))}, {"n_s": np.array(3), "other": np.zeros(2)}):
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(ValueError, match="wrong.npz: holds no portrait"):
            load(tmp_path / "wrong.npz")


# The picture.


def test_the_landscape_s_x_is_action_1_and_y_action_2(of_plane):
    axis = matplotlib.figure.Figure().subplots()
    grid = of_plane.landscapes[1]
    draw_landscape(axis, grid, "title, ")
    (image,) = axis.images
    shown = np.asarray(image.get_array())
    assert image.origin == "lower" and tuple(image.get_extent()) == (-0.5, 0.5, -0.5, 0.5)
    # Q rises by 3 along action 1 and falls by 1 along action 2.
    np.testing.assert_allclose(shown[:, -1] - shown[:, 0], 3, rtol=1e-4)
    np.testing.assert_allclose(shown[-1] - shown[0], -1, rtol=1e-4)
    low, high = map(float, re.fullmatch(r"title, Q from (-?[\d.]+) to (-?[\d.]+)", axis.get_title()).groups())
    np.testing.assert_allclose([low, high], [grid.min(), grid.max()], atol=0.006)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("offset along action 1", "offset along action 2")


def test_a_map_s_rows_are_queries_and_its_labels_in_their_places():
    axis = matplotlib.figure.Figure().subplots()
    attention = np.zeros((N, N), np.float32)
    attention[0, 4] = 0.25
    draw_map(axis, attention, N_S, "layer 1")
    (image,) = axis.images
    assert np.asarray(image.get_array())[0, 4] == 0.25 and image.origin == "upper" and image.norm.vmin == 0
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == [label.get_text() for label in axis.get_yticklabels()] == ["[v]", "obs", "act"]
    of_obs, of_act = np.arange(1, 1 + N_S), np.arange(1 + N_S, N)
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == [0, of_obs.mean(), of_act.mean()]
    across = sorted(line.get_ydata()[0] for line in axis.lines if line.get_ydata()[0] == line.get_ydata()[1])
    down = sorted(line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] == line.get_xdata()[1])
    assert across == down == [0.5, of_obs[-1] + 0.5]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title().split("\n")[0]) == ("key", "query", "layer 1")


def test_a_portrait_is_drawn(seen, tmp_path):
    portrait, _ = seen
    figure = draw(portrait, "a critic")
    land, slices, first, second, entropies = figure.axes
    assert figure.get_suptitle() == "a critic"
    np.testing.assert_array_equal(land.images[0].get_array(), portrait.landscapes[0].T)
    assert [line.get_label() for line in slices.lines] == [f"action {i}" for i in range(1, N_A + 1)]
    for i, line in enumerate(slices.lines):
        np.testing.assert_array_equal(line.get_xdata(), SLICE)
        np.testing.assert_array_equal(line.get_ydata(), portrait.slices[0, i])
    for layer, axis in enumerate((first, second)):
        np.testing.assert_array_equal(axis.images[0].get_array(), portrait.mean_maps[layer])
        assert axis.get_title().startswith(f"attention, layer {layer + 1}\n")
    *groups, limit = entropies.lines
    H = portrait.entropies.mean(axis=0)
    np.testing.assert_array_equal([line.get_ydata() for line in groups], [H[0, :, 0], H[0, :, 1], H[1, :, 0], H[1, :, 1]])
    assert [line.get_color() for line in groups] == ["C0", "C1"] * 2 and entropies.get_ylim()[0] == 0
    np.testing.assert_allclose(groups[3].get_xdata(), 1 + np.linspace(-0.25, 0.25, HEADS))
    np.testing.assert_allclose(limit.get_ydata(), math.log(N))
    assert [text.get_text() for text in entropies.get_legend().get_texts()] == ["[VALUE]", "other tokens", "ln n"]
    figure.savefig(tmp_path / "portrait.png", dpi=40)
    assert imageio.imread(tmp_path / "portrait.png").std() > 10


def test_a_critic_of_one_layer_and_one_head_is_drawn(seen):
    portrait = Portrait(**{k: v[:, :1, :1] if k == "entropies" else v[:1] if "maps" in k else v for k, v in vars(seen[0]).items()})
    *_, entropies = draw(portrait, "small").axes
    assert [line.get_xdata()[0] for line in entropies.lines[:2]] == [0, 0]
