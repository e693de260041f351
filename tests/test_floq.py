"""floq's encoding, start values and flow by hand, and decision processes whose values are known.
Its losses and updates are held by golden numbers (test_golden_rivals.py)."""

import math
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.baselines import floq
from tql.baselines.floq import Floq, ValueFlow, draw_copies, edges, encode, integrate
from tql.batch import Transition
from tql.training.chunk import train_chunk

N_S, N_A = 3, 2
TASK = "cube-single-play-singletask-task1-v0"
SIZES = dict(hidden=(7,), critic_hidden=(11,), velocity_hidden=(13,), flow_steps=2, copies=2)
SIZES |= dict(critic_flow_steps=3, batch_size=13, steps=1000, updates_per_call=1)
CONFIG = replace(floq.paper(TASK), discount=0.5, tau=0.1, lr=1e-2, alpha_bc=0.1, **SIZES)


def ends(low: float, high: float):
    return jnp.array(low), jnp.array(high)


GOLDEN = {
    -20.0: (0.000864, 0.017843, 0.038217, 44),
    -100.0: (0.008757, 0.028257, 0.008757, 24),  # the middle, between 24 and 25
    0.0: (0.000433, 0.014207, 0.049337, 49),
}


@pytest.mark.parametrize("z", GOLDEN)
def test_golden_encoding(x64, z):
    """Rewards from -2 to 0 at discount .99: entries 0, 24 and 49, and the largest."""
    *entries, largest = GOLDEN[z]
    b = edges(*ends(-2.0, 0.0), 0.99)
    h = encode(jnp.array(z), b)
    assert b.shape == (51,) and h.shape == (50,)
    np.testing.assert_allclose(b[jnp.array([0, 50])], [-201, 1], atol=1e-9)
    np.testing.assert_allclose(h[jnp.array([0, 24, 49])], entries, atol=5.1e-7)
    assert int(jnp.argmax(h)) in (largest, 25 if largest == 24 else largest)
    np.testing.assert_allclose(jnp.sum(h), 1, atol=1e-12)


def loop_encode(z, low, high, gamma):
    width = (high - low + 0.02) / 50 / (1 - gamma)
    b = [(low - 0.01) / (1 - gamma) + k * width for k in range(51)]
    c = [math.erf((b_k - z) / (math.sqrt(2) * 16 * width)) for b_k in b]
    return np.array([(c[k + 1] - c[k]) / (c[50] - c[0]) for k in range(50)])


@pytest.mark.parametrize("low, high", [(-1.0, -1.0), (-16.0, -14.0)])
def test_values_far_from_every_return_are_encoded_too(low, high):
    """Start values at a tenth of the returns lie 100 sigma beyond the edges where the rewards of a
    dataset are nearly one value."""
    b = edges(*ends(low, high), 0.99)
    for z in (10 * low, 10 * high, 0.0, 1e6, -1e6):
        h = encode(jnp.array(z, jnp.float32), b)
        assert jnp.isfinite(h).all()
        np.testing.assert_allclose(jnp.sum(h), 1, atol=1e-2)
        assert (jnp.argmax(h) == 49) == (z > low * 100)


def test_points_within_four_sigma_of_the_edges_are_encoded_where_they_are(x64):
    b, sigma = edges(*ends(-2.0, 0.0), 0.99), 16 * 202 / 50
    for z in (1 + 3.99 * sigma, -201 - 3.99 * sigma, -37.0):
        np.testing.assert_allclose(encode(jnp.array(z), b), loop_encode(z, -2, 0, 0.99), rtol=1e-6)


def test_copies_are_drawn_apart(getkey):
    noise = draw_copies(997, N_A, *ends(-20.0, -10.0), key=getkey())
    for z in (noise.z, noise.z_next):
        assert -20 <= jnp.min(z) < -19.9 and -10.1 < jnp.max(z) <= -10
        assert abs(float(jnp.mean(z)) + 15) < 0.5
    assert 0 <= jnp.min(noise.t) < 0.01 and 0.99 < jnp.max(noise.t) < 1
    assert abs(float(jnp.std(noise.next_action)) - 1) < 0.1
    columns = np.array([noise.z, noise.z_next, noise.t, *noise.next_action.T])
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 0.15


def test_start_values_cover_a_share_of_the_range_of_returns(monkeypatch):
    """Rewards of -4 to -1 and coverage .1 at discount .5: `update` draws from -0.8 to -0.2."""

    def drawn(copies, n_a, low, high, *, key):
        raise RuntimeError(copies, n_a, round(float(low), 6), round(float(high), 6))

    monkeypatch.setattr(floq, "draw_copies", drawn)
    data = eqx.tree_at(lambda data: data.r, chain(), jnp.linspace(-4, -1, 60))
    agent, _ = Floq.create(N_S, N_A, CONFIG).prepare(data)
    with pytest.raises(RuntimeError) as told:
        agent.update(data, jr.key(0))
    assert told.value.args == (2, N_A, -0.8, -0.2)


def test_members_part_on_the_way(x64, getkey):
    """A constant velocity of 2 and -5: each member goes on from its own point, and K steps of 1/K
    make one unit of time."""
    psi = ValueFlow(N_S, N_A, (7, 5), key=getkey())
    zero = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, psi)
    biases = lambda p: [member.layers[-1].bias for member in p.members]
    drift = eqx.tree_at(biases, zero, [jnp.array([2.0]), jnp.array([-5.0])])
    b, s, a = edges(*ends(-3.0, 0.0), 0.7), jnp.zeros(N_S), jnp.zeros(N_A)
    np.testing.assert_allclose(integrate(drift, s, a, jnp.array(-1.0), b, 7), [1, -6], atol=1e-12)


# ---------------------------------------------------------------- what is learned


def trained(data: Transition, updates: int) -> Floq:
    agent, data = Floq.create(N_S, N_A, CONFIG).prepare(data)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(updates // 200):
            agent, _ = train_chunk((data, 200), agent)
    return agent


def chain() -> Transition:
    """s0 (reward -2) to s1 (-1) to s2, solved (0, mask 0), from which the data go on to s0. At
    discount .5 Q is -2.5, -1, 0."""
    rng, which = np.random.default_rng(17), np.arange(60) % 3
    one_hot, f = np.eye(3), lambda x: jnp.asarray(x, jnp.float32)
    a, after = f(rng.uniform(-1, 1, (60, N_A))), one_hot[(which + 1) % 3]
    r, m = np.array([-2.0, -1, 0])[which], np.array([1.0, 1, 0])[which]
    return Transition(f(one_hot[which]), a, f(r), f(m), f(after), a)


@cache
def learned_chain() -> Floq:
    return trained(chain(), 600)


@pytest.mark.parametrize("route", ["flow", "critic"])
def test_values_of_a_chain(route):
    agent = learned_chain()
    b = edges(agent.r_low, agent.r_high, 0.5)
    for s, value in zip(np.eye(3), (-2.5, -1, 0)):
        s, a = jnp.asarray(s, jnp.float32), jnp.array([0.1, -0.3])
        if route == "flow":
            end = lambda z: integrate(agent.psi.model, s, a, z, b, 3)
            Q = jax.vmap(end)(jnp.linspace(-0.4, 0, 5))
        else:
            Q = agent.critic.model(s, a)
        np.testing.assert_allclose(jnp.mean(Q), value, atol=0.2)


def test_a_bandits_good_action_is_found():
    """Nothing follows; the reward falls with the distance from (.5, -.4). The data are uniform, and
    what is learned beats 4 of 5 of them."""
    rng, f = np.random.default_rng(19), lambda x: jnp.asarray(x, jnp.float32)
    a = rng.uniform(-1, 1, (60, N_A))
    worth = lambda a: -2 * np.abs(np.asarray(a) - [0.5, -0.4]).sum(1)
    s = f(np.zeros((60, N_S)))
    agent = trained(Transition(s, f(a), f(worth(a)), f(np.zeros(60)), s, f(a)), 600)
    act = lambda key: agent.policy("policy")(jnp.zeros(N_S), key)
    actions = jax.vmap(act)(jr.split(jr.key(0), 101))
    assert np.mean(worth(actions)) > np.quantile(worth(a), 0.8)
    np.testing.assert_allclose(jnp.mean(actions, axis=0), [0.5, -0.4], atol=0.35)
