"""A temperature is a dual variable: which way it moves, where it comes to rest, and what it refuses."""

import inspect
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tql import loop
from tql.config import Config, ControlConfig, CriticConfig
from tql.entropy_controller import (
    ClippedTemperature,
    FixedPenalty,
    NoControl,
    SignedTemperature,
    SingleTemperature,
    TemperaturePerGroup,
    check_target,
    default_target,
)

N = 11
TARGET = ((1.9, 1.7), (1.4, 1.2), (1.1, 0.7))
T = np.array(TARGET)
LEARNED = [SingleTemperature, TemperaturePerGroup]
CONSTANT = [NoControl, FixedPenalty]
CONFIG = Config(task="cube-single-play-singletask-task1-v0", critic=CriticConfig(d_model=8, heads=2, layers=3))


def entropy_away_from_target(away):
    return jnp.array(T + away, jnp.float32)


@jax.jit
def gradient(controller, H):
    return eqx.filter_grad(lambda c: loop.temperature_loss(c, H)[0])(controller)


def dual_step(controller, H, rate=0.5):
    """Gradient descent of the temperature loss."""
    return eqx.apply_updates(controller, jax.tree.map(lambda g: -rate * g, gradient(controller, H)))


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("make", LEARNED)
@pytest.mark.parametrize("away", [-0.3, 0.3])
def test_alpha_grows_below_the_target_and_shrinks_above_it(make, away):
    before = make(TARGET, N)
    after = dual_step(before, entropy_away_from_target(away))
    assert (np.sign(after.alpha() - before.alpha()) == -np.sign(away)).all()


@pytest.mark.parametrize("make", LEARNED)
def test_alpha_rests_at_the_target(make):
    controller = make(TARGET, N)
    np.testing.assert_allclose(dual_step(controller, entropy_away_from_target(0.0)).alpha(), 1, atol=1e-7)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("group", [0, 1])
def test_only_the_own_layer_and_group_move(layer, group):
    """TQL's; a single temperature moves for all."""
    away = np.zeros((3, 2))
    away[layer, group] = -0.3
    H = entropy_away_from_target(away)
    moved = np.asarray(dual_step(TemperaturePerGroup(TARGET, N), H).alpha()) != 1
    expected = np.zeros((3, 2), bool)
    expected[layer, group] = True
    np.testing.assert_array_equal(moved, expected)
    assert (dual_step(SingleTemperature(TARGET, N), H).alpha() > 1).all()


def test_a_single_temperature_sees_only_the_mean():
    """One entropy far below its target and the others above cancel: nothing moves. That is why TQL has one for each."""
    away = np.full((3, 2), 0.1)
    away[1, 0] = -0.5
    H = entropy_away_from_target(away)
    np.testing.assert_allclose(dual_step(SingleTemperature(TARGET, N), H).alpha(), 1, atol=1e-6)
    assert dual_step(TemperaturePerGroup(TARGET, N), H).alpha()[1, 0] > 1.03


@pytest.mark.parametrize("make", LEARNED)
@given(st.lists(st.floats(0, math.log(N)), min_size=6, max_size=6), st.floats(1e-3, 10))
@settings(max_examples=30, deadline=None)
def test_alpha_is_positive(make, entropies, rate):
    """Ten steps of any size at any entropies."""
    controller, H = make(TARGET, N), jnp.array(entropies, jnp.float32).reshape(3, 2)
    for _ in range(10):
        controller = dual_step(controller, H, rate)
        assert (np.asarray(controller.alpha()) > 0).all()


@pytest.mark.parametrize("make", CONSTANT)
def test_none_and_fixed_never_change(make, optax_promotion):
    """Nothing in them is trained; the optimiser of the package leaves them as they are."""
    controller, H = make(TARGET, N), entropy_away_from_target(-0.3)
    assert jax.tree.leaves(eqx.filter(controller, eqx.is_array)) == []
    _, optimiser, _ = loop.optimisers(CONFIG)
    state = optimiser.init(eqx.filter(controller, eqx.is_inexact_array))
    after, _ = loop.descend(optimiser, controller, gradient(controller, H), state)
    assert after == controller
    assert (after.alpha() == {NoControl: 0, FixedPenalty: 1}[make]).all()


# ---------------------------------------------------------------- two losses that do not touch each other


@pytest.mark.parametrize("make", LEARNED)
def test_each_loss_moves_its_own_side_only(make):
    """Both losses depend on both sides, but the attention loss has no gradient to alpha, the temperature loss none to H."""
    controller, H = make(TARGET, N), entropy_away_from_target(-0.3)
    hotter = jax.tree.map(lambda x: x + 1, controller)

    by_alpha = eqx.filter_grad(lambda c: c.attention_loss(H))(controller)
    assert (by_alpha.log_alpha == 0).all()
    assert hotter.attention_loss(H) < 2 * controller.attention_loss(H) < 0

    by_H = jax.grad(controller.temperature_loss)(H)
    assert (by_H == 0).all()
    assert controller.temperature_loss(H + 0.6) > 0 > controller.temperature_loss(H)

    # The critic descends -alpha / 2L with respect to each of its entropies: it pushes every one of them up.
    np.testing.assert_allclose(jax.grad(hotter.attention_loss)(H), np.full((3, 2), -math.e / 6), rtol=1e-6)


# ---------------------------------------------------------------- dynamics


@eqx.filter_jit
def simulate(controller, respond, steps=3000, rate=0.1):
    """The package's Adam on the temperatures of a critic whose entropies answer at once: H = respond(alpha)."""
    optimiser = optax.adam(rate)
    arrays, static = eqx.partition(controller, eqx.is_array)

    def step(carry, _):
        controller = eqx.combine(carry[0], static)
        grads = eqx.filter_grad(lambda c: loop.temperature_loss(c, respond(controller.alpha()))[0])(controller)
        controller, state = loop.descend(optimiser, controller, grads, carry[1])
        return (eqx.filter(controller, eqx.is_array), state), controller.alpha()

    (arrays, _), alphas = jax.lax.scan(step, (arrays, optimiser.init(arrays)), None, length=steps)
    return eqx.combine(arrays, static), alphas


STIFFNESS = np.array([[0.1, 3.0], [1.0, 0.3], [10.0, 2.0]], np.float32)


def collapsing(alpha):
    """Without control the entropy is 0; the more alpha, the closer to ln n; each layer and group resists differently."""
    return math.log(N) * alpha / (alpha + STIFFNESS)


def test_every_entropy_reaches_its_target(optax_promotion):
    """alpha* = stiffness T / (ln n - T), where the response equals the target."""
    controller, _ = simulate(TemperaturePerGroup(TARGET, N), collapsing)
    np.testing.assert_allclose(collapsing(controller.alpha()), T, atol=1e-3)
    np.testing.assert_allclose(controller.alpha(), STIFFNESS * T / (math.log(N) - T), rtol=0.01)


def test_a_single_temperature_reaches_only_the_mean(optax_promotion):
    controller, _ = simulate(SingleTemperature(TARGET, N), collapsing)
    H = np.asarray(collapsing(controller.alpha()))
    assert np.mean(H) == pytest.approx(T.mean(), abs=1e-3)
    assert np.abs(H - T).max() > 0.3


def test_alpha_cannot_pull_an_entropy_down_and_comes_back(optax_promotion):
    """Above the target alpha goes to nearly 0, not below; and when the entropy falls, alpha recovers."""
    high = TemperaturePerGroup(TARGET, N)
    low, alphas = simulate(high, lambda alpha: jnp.asarray(T + 0.4, jnp.float32) + 0 * alpha)
    assert (np.diff(alphas, axis=0) <= 0).all()
    assert 0 < np.min(low.alpha()) and np.max(low.alpha()) < 1e-3
    again, _ = simulate(low, collapsing)
    np.testing.assert_allclose(collapsing(again.alpha()), T, atol=1e-2)


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("make", LEARNED + CONSTANT)
@pytest.mark.parametrize("bad", [math.log(N), math.log(N) + 0.01, 0.0, -0.5, math.nan, math.inf])
def test_targets_that_no_attention_has_are_refused(make, bad):
    for pair in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match=r"layer 1 is not between 0 and ln\(n\) = 2\.398 nats \(n = 11 tokens\)"):
            make(((1.0, 1.0), pair), N)
    make(((1.0, 1.0), (math.log(N) - 1e-6, 1e-6)), N)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, 1.0, 1.0)])
def test_a_target_is_a_pair(wrong):
    """The shape checks refuse it first; with them off, `check_target` does."""
    with pytest.raises(TypeCheckError, match="'target'"):
        TemperaturePerGroup((wrong,), N)
    with pytest.raises(ValueError, match="target of layer 1 is .* give a pair"):
        inspect.unwrap(check_target)(((1.0, 1.0), wrong), N)


@pytest.mark.parametrize("kind", ["none", "fixed", "single", "tql", "clipped", "signed"])
def test_one_pair_per_layer(kind):
    make = lambda target: loop.make_controller(7, 3, with_target(kind, target))
    with pytest.raises(ValueError, match="has 2 pairs for 3 layers"):
        make(TARGET[:2])
    controller = make(TARGET)
    assert controller.target == TARGET and controller.n == N and controller.alpha().shape == (3, 2)


def with_target(kind, target):
    return Config(task=CONFIG.task, critic=CONFIG.critic, control=ControlConfig(kind=kind, target=target))


def test_default_target_is_the_papers():
    """0.8 ln 43 = 3.009 for cube-double (37 + 5 scalars): the paper's 3.0 and 2.5."""
    np.testing.assert_allclose(default_target(37, 5, 2), [[3.009, 3.009], [2.509, 2.509]], atol=5e-4)
    assert default_target(7, 3, 1) == ((0.8 * math.log(11) - 0.5,) * 2,)
    check_target(default_target(2, 2, 2), 5)


def test_no_temperature_weighs_more_than_the_limit_and_the_limit_stops_no_learning():
    """The reference clips the temperature in the attention loss, at 100, and not in the temperature loss: e^6 = 403.4."""
    controller = TemperaturePerGroup(((1.0, 1.0),), 11)
    controller = eqx.tree_at(lambda c: c.log_alpha, controller, jnp.full((1, 2), 6.0))
    H = jnp.full((1, 2), 0.5)
    np.testing.assert_allclose(controller.attention_loss(H), -50.0, rtol=1e-6)
    np.testing.assert_allclose(controller.temperature_loss(H), math.exp(6) * (0.5 - 1.0), rtol=1e-6)


# ---------------------------------------------------------------- variants


def test_clipped_temperatures_go_on_learning_outside_the_limits():
    """exp(log alpha) = 4, 1, 1/4 between 1/2 and 2: the critic feels 2, 1, 1/2; the temperatures' own gradient is the unclipped one."""
    alpha = jnp.array([[4.0, 1.0], [0.25, 1.0], [1.0, 1.0]])
    controller, tql = (
        eqx.tree_at(lambda c: c.log_alpha, c, jnp.log(alpha))
        for c in (ClippedTemperature(TARGET, N, (0.5, 2.0)), TemperaturePerGroup(TARGET, N))
    )
    H = entropy_away_from_target(-0.3)
    np.testing.assert_allclose(jax.grad(controller.attention_loss)(H), [[-2 / 6, -1 / 6], [-0.5 / 6, -1 / 6], [-1 / 6, -1 / 6]], rtol=1e-6)
    np.testing.assert_allclose(controller.alpha(), alpha, rtol=1e-6)
    np.testing.assert_array_equal(gradient(controller, H).log_alpha, gradient(tql, H).log_alpha)
    np.testing.assert_allclose(gradient(controller, H).log_alpha, -0.3 * alpha / 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("r", "alpha", "slope"), [(math.log(2), 1, 2), (-math.log(2), -1, 2), (0.0, 0, 1), (3.0, math.e**3 - 1, math.e**3)]
)
def test_a_signed_temperature_by_hand(x64, r, alpha, slope):
    """sign(r) (exp|r| - 1), whose slope exp|r| is never 0: at r = 0 too, so that it cannot get stuck there."""
    at = lambda r: eqx.tree_at(lambda c: c.r, SignedTemperature(TARGET, N), jnp.full((3, 2), r)).alpha()[0, 0]
    value, derivative = jax.value_and_grad(at)(r)
    np.testing.assert_allclose([value, derivative], [alpha, slope], rtol=1e-14)
    assert SignedTemperature(TARGET, N).alpha() == pytest.approx(np.ones((3, 2)))


def test_a_signed_temperature_pulls_an_entropy_down(optax_promotion):
    """Entropies that rest at 0.9 ln n without control, above every target, are held at their targets by negative temperatures.

    TQL's can only go to 0 and leave them where they are.
    """
    stubborn = lambda alpha: math.log(N) * jax.nn.sigmoid(alpha / STIFFNESS + math.log(9.0))
    signed, _ = simulate(SignedTemperature(TARGET, N), stubborn)
    np.testing.assert_allclose(stubborn(signed.alpha()), T, atol=1e-3)
    assert (np.asarray(signed.alpha()) < 0).all()
    tql, _ = simulate(TemperaturePerGroup(TARGET, N), stubborn)
    np.testing.assert_allclose(stubborn(tql.alpha()), np.full((3, 2), 0.9 * math.log(N)), atol=0.02)


def test_a_signed_temperature_is_limited_on_both_sides():
    """The attention loss takes no more than 100 either way."""
    for sign in (1, -1):
        controller = eqx.tree_at(lambda c: c.r, SignedTemperature(((1.0, 1.0),), N), jnp.full((1, 2), 6.0 * sign))
        np.testing.assert_allclose(controller.attention_loss(jnp.full((1, 2), 0.5)), -50.0 * sign, rtol=1e-6)
