"""The flow's integral, what each loss may move, and the actor without a policy.

With no hidden layer the package's MLP is an affine map, so velocities can be set by hand.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tql.critic import AbstractCritic
from tql.flow_actor import AbstractActor, FlowActor, Noise, draw_noise, policy_action
from tql.variants.dataset_actor import DatasetActor

N_S, N_A = 3, 2


def affine(mlp, weight, bias):
    """An MLP without hidden layers as x -> weight x + bias."""
    (layer,) = mlp.layers
    values = jnp.asarray(weight, layer.weight.dtype), jnp.asarray(bias, layer.bias.dtype)
    return eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[0].bias), mlp, values)


def flow_by_hand(getkey, state, x, t, constant, flow_steps):
    """v(s, x, t) = state s + x x + t t + constant."""
    actor = FlowActor(len(state[0]), len(constant), hidden=(), flow_steps=flow_steps, key=getkey())
    weight = np.concatenate([state, x, np.array(t)[:, None]], axis=1)
    return eqx.tree_at(lambda a: a.flow, actor, affine(actor.flow, weight, constant))


def with_policy(actor, mu):
    """mu(s, z) is constant."""
    one_step = affine(actor.one_step, np.zeros((2, N_S + 2)), mu)
    return eqx.tree_at(lambda a: a.one_step, actor, one_step)


# ---------------------------------------------------------------- the Euler integral


def test_euler_has_order_one(x64, getkey):
    """x' = A x + b on [0, 1], the rotation A = ((0, -2), (2, 0)): the exact end is a rotation by 2
    about -b/A.

    Halving the step halves the error: the slope of log error on log step is 1.
    """
    A, b, z = np.array([[0.0, -2], [2, 0]]), np.array([0.4, -0.2]), np.array([0.2, -0.1])
    centre = -np.linalg.solve(A, b)
    rotation = np.array([[math.cos(2), -math.sin(2)], [math.sin(2), math.cos(2)]])
    exact = centre + rotation @ (z - centre)
    assert np.abs(exact).max() < 0.9, "a clipped end would hide the error"
    steps = np.array([64, 128, 256, 512])
    errors = []
    for N in steps:
        actor = flow_by_hand(getkey, np.zeros((2, N_S)), A, [0, 0], b, N.item())
        errors.append(np.linalg.norm(actor.behaviour(jnp.zeros(N_S), jnp.array(z)) - exact))
    order = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert order == pytest.approx(1, abs=0.05)


def test_euler_by_hand(getkey):
    """Two steps of v = s + x + 4 t from x = 0.1 at s = -1.5: v = -1.4, then x = -0.6 and
    v = -1.5 - 0.6 + 2 = -0.1; x = -0.65.

    The time is that of a step's beginning: with its end x would go to 1.85.
    """
    actor = flow_by_hand(getkey, [[1.0]], [[1.0]], [4.0], [0.0], 2)
    assert actor.behaviour(jnp.array([-1.5]), jnp.array([0.1])) == pytest.approx([-0.65], abs=1e-6)


def test_only_the_end_is_clipped(getkey):
    """v = 4 - 16 t in two steps: 0.9, 2.9, 0.9. A clip on the way would end at -1."""
    actor = flow_by_hand(getkey, [[0.0]], [[0.0]], [-16.0], [4.0], 2)
    act = lambda z: actor.behaviour(jnp.zeros(1), jnp.array([z]))
    assert act(0.9) == pytest.approx([0.9], abs=1e-6)
    assert act(3.0) == 1 and act(-2.5) == -1


# ---------------------------------------------------------------- what each loss moves


class Sum(AbstractCritic):
    """Q = w (a_1 + a_2 + ...)."""

    w: jax.Array
    n_s: int = eqx.field(static=True, default=N_S)
    n_a: int = eqx.field(static=True, default=N_A)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        return jnp.stack([self.w * jnp.sum(a)] * 2)

    def with_attention(self, s, a):
        return self(s, a), jnp.zeros((1, 1, 1 + N_S + N_A, 1 + N_S + N_A))


def noise(getkey):
    drawn = draw_noise(N_A, key=getkey())
    return eqx.tree_at(lambda n: n.t, drawn, jnp.array(0.3))


PARTS = [("flow_matching", "flow"), ("distillation", "one_step"), ("q", "one_step")]


@pytest.mark.parametrize(("part", "moves"), PARTS)
def test_each_part_moves_one_network(getkey, part, moves):
    """The teacher learns nothing from the student, and the policy nothing from flow matching."""
    # Shrunk, so that the policy's actions are inside [-1, 1], where Q has a gradient.
    actor = FlowActor(N_S, N_A, hidden=(5,), flow_steps=2, key=getkey())
    actor = jax.tree.map(lambda x: 0.3 * x, actor)
    s, a, z = jr.normal(getkey(), (N_S,)), jr.uniform(getkey(), (N_A,)), noise(getkey)
    loss = lambda actor: getattr(actor.losses(Sum(jnp.array(0.5)), s, a, z), part)
    grads = eqx.filter_jit(eqx.filter_grad(loss))(actor)
    for network in ("flow", "one_step"):
        largest = [np.abs(g).max() for g in jax.tree.leaves(getattr(grads, network))]
        assert min(largest) > 0 if network == moves else max(largest) == 0


def test_losses_by_hand(getkey):
    """v = (1, -1) everywhere and mu = (2, 0.5): x_0 = (0, 0), a = (0.5, 1), z = (0.2, 0.1).

    Flow matching: v - a = (0.5, -2), mean square 2.125. The flow ends at (1, -0.9) after the clip
    (1.2 before): mu minus that is (1, 1.4), mean square 1.48: the student is not clipped there. In
    Q it is: 3 (1 + 0.5) = 4.5.
    """
    actor = flow_by_hand(getkey, np.zeros((2, N_S)), np.zeros((2, 2)), [0, 0], [1, -1], 5)
    actor = with_policy(actor, [2, 0.5])
    z = Noise(jnp.zeros(2), jnp.zeros(2), jnp.array(0.3), jnp.array([0.2, 0.1]))
    parts = actor.losses(Sum(jnp.array(3.0)), jnp.ones(N_S), jnp.array([0.5, 1]), z)
    values = (parts.flow_matching.item(), parts.distillation.item(), parts.q.item())
    assert values == pytest.approx((2.125, 1.48, 4.5), rel=1e-5)


def test_the_clip_stops_the_gradient_of_q_outside(getkey):
    """mu = (2, 0.5): only the second component can follow Q. Distillation still pulls the first
    back."""
    actor = with_policy(FlowActor(N_S, N_A, hidden=(), key=getkey()), [2, 0.5])
    given = (Sum(jnp.array(3.0)), jnp.ones(N_S), jnp.zeros(2), noise(getkey))

    def by_bias(part):
        loss = lambda actor: getattr(actor.losses(*given), part)
        return eqx.filter_jit(eqx.filter_grad(loss))(actor).one_step.layers[0].bias

    np.testing.assert_array_equal(by_bias("q"), [0, 3])
    assert by_bias("distillation")[0] > 0


def test_actions_are_clipped_and_the_target_takes_the_policys(getkey):
    actor = with_policy(FlowActor(N_S, N_A, hidden=(), key=getkey()), [-2, 0.5])
    s, z = jnp.ones(N_S), jnp.zeros(N_A)
    np.testing.assert_array_equal(actor.mu(s, z), [-2, 0.5])
    np.testing.assert_array_equal(actor.act(s, z), [-1, 0.5])
    np.testing.assert_array_equal(actor.next_action(s, jnp.full(N_A, jnp.nan), z), [-1, 0.5])


def test_wrong_shapes_fail_at_the_door(getkey):
    actor = FlowActor(N_S, N_A, hidden=(5,), key=getkey())
    for call in (actor.act, actor.behaviour, actor.mu):
        with pytest.raises(TypeCheckError, match=r"f32\[4\]"):
            call(jnp.zeros(N_S + 1), jnp.zeros(N_A))
        with pytest.raises(TypeCheckError, match=r"f32\[7,2\]"):
            call(jnp.zeros(N_S), jnp.zeros((7, N_A)))
    with pytest.raises(TypeCheckError, match="x_0"):
        Noise(jnp.zeros(N_A), jnp.zeros(N_A + 1), jnp.zeros(()), jnp.zeros(N_A))


# ---------------------------------------------------------------- noise, and no policy


def test_noise(getkey):
    """Normal where it says normal, uniform in time, and every part drawn for itself: no two of them
    are correlated."""
    drawn = jax.jit(jax.vmap(lambda key: draw_noise(1, key=key)))(jr.split(getkey(), 4001))
    assert drawn.t.min() >= 0 and drawn.t.max() < 1
    t = (drawn.t - 0.5) * math.sqrt(12)
    columns = np.stack([drawn.next_action[:, 0], drawn.x_0[:, 0], drawn.z[:, 0], t])
    np.testing.assert_allclose(columns.mean(axis=1), 0, atol=4 / math.sqrt(4001))
    np.testing.assert_allclose(np.cov(columns), np.eye(4), atol=0.1)


def test_dataset_actor():
    """It hands on the dataset's action, learns nothing, and says so when asked to act."""
    actor = DatasetActor(N_S, N_A)
    s, a, z = jnp.ones(N_S), jnp.array([0.3, -0.4]), jnp.ones(N_A)
    np.testing.assert_array_equal(actor.next_action(s, a, z), a)
    assert jax.tree.leaves(actor) == []
    parts = actor.losses(Sum(jnp.array(3.0)), s, a, Noise(z, z, jnp.array(0.5), z))
    assert jax.tree.leaves(parts) == [0, 0, 0]
    with pytest.raises(ValueError, match="no policy; train it with --actor.kind flow"):
        actor.act(s, z)


class Wide(AbstractActor):
    """An actor of one's own that acts in the wrong shape."""

    policies: ClassVar[tuple[str, ...]] = ("policy",)
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def act(self, s, z):
        return z[None]

    next_action = losses = None


def test_what_an_actor_returns_is_checked(getkey):
    """Where it acts; `test_loop.py` has the TD target's action."""
    with pytest.raises(ValueError, match=r"actor.act\(s, z\) returned shape \(1, 2\).*\(2,\)"):
        policy_action(Wide(N_S, N_A), jnp.ones(N_S), getkey())
