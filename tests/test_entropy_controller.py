"""A temperature is a dual variable: which way it moves, where it comes to rest, and what it
refuses."""

import math
from dataclasses import replace

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
from tql.config import ControlConfig, CriticConfig, TQLConfig
from tql.entropy_controller import (
    CONTROLLERS,
    AbstractEntropyController,
    FixedPenalty,
    NoControl,
    SingleTemperature,
    TemperaturePerGroup,
    default_target,
)
from tql.optimise import Learner

N = 11
TARGET = ((1.9, 1.7), (1.4, 1.2), (1.1, 0.7))
T = np.array(TARGET)
LEARNED = [SingleTemperature, TemperaturePerGroup]
CONSTANT = [NoControl, FixedPenalty]
CONFIG = TQLConfig(
    task="cube-single-play-singletask-task1-v0", critic=CriticConfig(d_model=8, heads=2, layers=3)
)


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
    after = dual_step(controller, entropy_away_from_target(0.0))
    np.testing.assert_allclose(after.alpha(), 1, atol=1e-7)


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
    """One entropy far below its target and the others above cancel: nothing moves. That is why TQL
    has one for each."""
    away = np.full((3, 2), 0.1)
    away[1, 0] = -0.5
    H = entropy_away_from_target(away)
    np.testing.assert_allclose(dual_step(SingleTemperature(TARGET, N), H).alpha(), 1, atol=1e-6)
    assert dual_step(TemperaturePerGroup(TARGET, N), H).alpha()[1, 0] > 1.03


@pytest.mark.parametrize("make", LEARNED)
@given(st.lists(st.floats(0, math.log(N)), min_size=6, max_size=6), st.floats(1e-3, 10))
@settings(max_examples=20, deadline=None)
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
    learner = Learner.start(controller, optimiser)
    after = learner.descend(gradient(controller, H), optimiser).model
    assert after == controller
    assert (after.alpha() == {NoControl: 0, FixedPenalty: 1}[make]).all()


# ---------------------------------------------------------------- two losses, apart


@pytest.mark.parametrize("make", LEARNED)
def test_each_loss_moves_its_own_side_only(make):
    """Both losses depend on both sides, but the attention loss has no gradient to alpha, the
    temperature loss none to H."""
    controller, H = make(TARGET, N), entropy_away_from_target(-0.3)
    hotter = jax.tree.map(lambda x: x + 1, controller)

    by_alpha = eqx.filter_grad(lambda c: c.attention_loss(H))(controller)
    assert (by_alpha.log_alpha == 0).all()
    assert hotter.attention_loss(H) < 2 * controller.attention_loss(H) < 0

    by_H = jax.grad(controller.temperature_loss)(H)
    assert (by_H == 0).all()
    assert controller.temperature_loss(H + 0.6) > 0 > controller.temperature_loss(H)

    # The critic descends -alpha / 2L with respect to each of its entropies: all are pushed up.
    push = jax.grad(hotter.attention_loss)(H)
    np.testing.assert_allclose(push, np.full((3, 2), -math.e / 6), rtol=1e-6)


# ---------------------------------------------------------------- dynamics


@eqx.filter_jit
def simulate(controller, respond, steps=3000, rate=0.1):
    """Adam on the temperatures of a critic whose entropies answer at once: H = respond(alpha)."""
    optimiser = optax.adam(rate)
    arrays, static = eqx.partition(Learner.start(controller, optimiser), eqx.is_array)

    def step(arrays, _):
        learner = eqx.combine(arrays, static)
        H = respond(learner.model.alpha())
        learner = learner.descend(gradient(learner.model, H), optimiser)
        return eqx.filter(learner, eqx.is_array), learner.model.alpha()

    arrays, alphas = jax.lax.scan(step, arrays, None, length=steps)
    return eqx.combine(arrays, static).model, alphas


STIFFNESS = np.array([[0.1, 3.0], [1.0, 0.3], [10.0, 2.0]], np.float32)


def collapsing(alpha):
    """Without control the entropy is 0; the more alpha, the closer to ln n. Each layer and group
    resists differently."""
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
    """Above the target alpha goes to nearly 0, not below. When the entropy falls, alpha
    recovers."""
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
    words = r"must lie between 0 and ln\(n\) = 2\.398 nats \(n = 11 tokens\)"
    for pair in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match=words):
            make(((1.0, 1.0), pair), N)
    make(((1.0, 1.0), (math.log(N) - 1e-6, 1e-6)), N)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, 1.0, 1.0)])
def test_a_target_is_a_pair(wrong):
    """The shape checks refuse it at the constructor; one of one's own may have no types."""
    with pytest.raises(TypeCheckError, match="'target'"):
        TemperaturePerGroup((wrong,), N)
    for target in (((1.0, 1.0), wrong), ()):
        with pytest.raises(ValueError, match="needs a pair .* a layer"):
            Broadcasting(target, N)


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_by_name(kind):
    """The settings' target, or 0.8 ln n and 0.5 less in the last layer."""
    for target in (TARGET, None):
        control = ControlConfig(kind=kind, target=target)
        controller = loop.make_controller(7, 3, replace(CONFIG, control=control))
        assert type(controller) is CONTROLLERS[kind] and controller.n == N
        assert controller.target == (target or default_target(N, 3))
        assert controller.alpha().shape == (3, 2)


def test_default_target_is_the_papers():
    """0.8 ln 43 = 3.009 for cube-double (37 + 5 scalars): the paper's 3.0 and 2.5."""
    papers = [[3.009, 3.009], [2.509, 2.509]]
    np.testing.assert_allclose(default_target(43, 2), papers, atol=5e-4)
    assert default_target(11, 1) == ((0.8 * math.log(11) - 0.5,) * 2,)
    TemperaturePerGroup(default_target(5, 2), 5)


def test_no_temperature_weighs_more_than_the_limit_and_the_limit_stops_no_learning():
    """The reference clips the temperature in the attention loss, at 100, and not in the temperature
    loss: e^6 = 403.4."""
    controller = TemperaturePerGroup(((1.0, 1.0),), 11)
    controller = eqx.tree_at(lambda c: c.log_alpha, controller, jnp.full((1, 2), 6.0))
    H = jnp.full((1, 2), 0.5)
    np.testing.assert_allclose(controller.attention_loss(H), -50.0, rtol=1e-6)
    np.testing.assert_allclose(controller.temperature_loss(H), math.exp(6) * (0.5 - 1.0), rtol=1e-6)


class Broadcasting(AbstractEntropyController):
    """A controller of one's own with one temperature for all, in the wrong shape."""

    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self):
        return jnp.ones((1, 2))


def test_what_a_controller_returns_is_checked():
    """It would weigh every layer alike in silence."""
    controller, H = Broadcasting(TARGET, N), entropy_away_from_target(0.1)
    for loss in (controller.attention_loss, controller.temperature_loss):
        with pytest.raises(ValueError, match=r"alpha\(\) returned shape \(1, 2\).*\(3, 2\)"):
            loss(H)
