"""BC, IQL, IFQL, ReBRAC, FBRAC and FQL learn a decision process whose answers are known.

From state A every action leads to B, for nothing. In B an action a earns 1 - ((a - 0.6) / 1.2)^2
and ends the episode. The dataset takes a = 0.6 (worth 1) and a = -0.6 (worth 0) equally often, with
a little spread, in both states.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.batch import Transition
from tql.training.chunk import train_chunk
from tql.training.methods import method_class

GAMMA, ROWS, UPDATES = 0.9, 224, 300
A, B = (1.0, 0.0), (0.0, 1.0)
METHODS = ("bc", "iql", "ifql", "rebrac", "fbrac", "fql")
TIES = {
    "iql": dict(alpha=10.0),
    "rebrac": dict(alpha_actor=0.1, alpha_critic=0.0),
    **dict.fromkeys(("fbrac", "fql"), dict(alpha_bc=0.03)),
}
CLOSE = 0.07

pytestmark = pytest.mark.usefixtures("optax_promotion")


def reward(a):
    return 1 - ((a - 0.6) / 1.2) ** 2


def two_steps() -> Transition:
    rng = np.random.default_rng(1)
    modes = lambda: np.clip(rng.choice([-0.6, 0.6], ROWS) + 0.1 * rng.normal(size=ROWS), -1, 1)
    in_B, a = np.arange(ROWS) % 2 == 1, modes()
    s, s_next, r = (
        np.where(in_B[:, None], B, A),
        np.tile(B, (ROWS, 1)),
        np.where(in_B, reward(a), 0),
    )
    columns = s, a[:, None], r, 1.0 - in_B, s_next, modes()[:, None]
    return Transition(*(jnp.asarray(x, jnp.float32) for x in columns))


def seven_rows() -> Transition:
    """Any pairs with any rewards, after which nothing follows: what is learnt by heart."""
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.uniform(-1, 1, shape)
    columns = draw(7, 2), draw(7, 1), draw(7), np.zeros(7), draw(7, 2), draw(7, 1)
    repeat = lambda x: jnp.asarray(np.concatenate([x] * (ROWS // 7)), jnp.float32)
    return Transition(*(repeat(x) for x in columns))


def trained(method, data, chunks):
    """The agent, and its metrics over all updates. Both datasets have the same sizes, so they share
    a compilation."""
    config = method_class(method).presets["paper"]("cube-single-play-singletask-task1-v0")
    names = ("hidden", "critic_hidden")
    widths = {name: (32, 32) for name in names if hasattr(config, name)}
    ties = TIES.get(method, {})
    config = replace(config, lr=3e-3, batch_size=56, discount=GAMMA, tau=0.05, **widths, **ties)
    agent, history = method_class(method).create(2, 1, config), []
    for _ in range(chunks):
        agent, metrics = train_chunk((data, UPDATES), agent)
        history.append(metrics)
    together = lambda name: np.concatenate([metrics[name] for metrics in history])
    return agent, {name: together(name) for name in history[0]}


@cache
def after_two_steps(method):
    return trained(method, two_steps(), 3)[0]


def actions(agent, state, draws=101):
    act = jax.jit(jax.vmap(agent.policy("policy"), in_axes=(None, 0)))
    return np.asarray(act(jnp.array(state), jr.split(jr.key(1), draws)))[:, 0]


def q_values(agent, state, a):
    Q = lambda a: jnp.mean(agent.critic.model(jnp.array(state), a))
    return np.asarray(jax.vmap(Q)(jnp.asarray(a)[:, None]))


@pytest.mark.parametrize("method", METHODS)
def test_the_policy_takes_the_better_mode(method):
    """BC knows no better than the mean of both, which the dataset never takes.

    A flow is continuous in its noise, so between the modes' noises a few draws stay between the
    modes (with imitation alone, half are off).
    """
    acts = actions(after_two_steps(method), B)
    if method == "bc":
        assert np.abs(acts).max() < 0.15
    else:
        assert np.mean(np.abs(acts - 0.6) < 0.25) > 0.85, np.quantile(acts, [0.02, 0.5, 0.98])


@pytest.mark.parametrize("method", METHODS[1:])
def test_values_of_the_last_step_are_its_rewards(method):
    agent, a = after_two_steps(method), np.linspace(0.45, 0.75, 7, dtype=np.float32)
    np.testing.assert_allclose(q_values(agent, B, a), reward(a), atol=CLOSE)
    np.testing.assert_allclose(q_values(agent, B, -a), reward(-a), atol=CLOSE)


@pytest.mark.parametrize("method", ["rebrac", "fbrac", "fql"])
def test_values_of_the_first_step_are_what_the_policy_earns_next(method):
    """Q(A, .) = gamma E[r(pi(B))]. ReBRAC's target acts with noise, which costs 0.2^2 / 1.2^2."""
    agent = after_two_steps(method)
    lost = 0.2**2 / 1.2**2 if method == "rebrac" else 0
    expected = GAMMA * (np.mean(reward(actions(agent, B))) - lost)
    assert expected > 0.7 * GAMMA
    a = np.array([-0.6, 0.6], np.float32)
    np.testing.assert_allclose(q_values(agent, A, a), expected, atol=CLOSE)


@pytest.mark.parametrize("method", ["iql", "ifql"])
def test_implicit_values_are_the_expectile(method):
    """V(B) is the v with 0.9 <(r - v)+> = 0.1 <(v - r)+> over the dataset's actions in B, about
    0.9; V(A) = Q(A, .) = gamma V(B)."""
    agent, r = after_two_steps(method), np.asarray(two_steps().r)[1::2]
    grid = np.linspace(0, 1, 1001)
    imbalance = lambda v: abs(0.9 * np.maximum(r - v, 0).mean() - 0.1 * np.maximum(v - r, 0).mean())
    expectile = min(grid, key=imbalance)
    assert 0.8 < expectile < 0.95
    V = lambda state: agent.value.model(jnp.array(state)).item()
    assert V(B) == pytest.approx(expectile, abs=CLOSE)
    assert V(A) == pytest.approx(GAMMA * expectile, abs=CLOSE)
    a = np.array([-0.6, 0.6], np.float32)
    np.testing.assert_allclose(q_values(agent, A, a), GAMMA * expectile, atol=CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_seven_rows_are_learnt_by_heart(method):
    """The error falls more than tenfold; of BC's loss the half logarithm of 2 pi stays."""
    _, metrics = trained(method, seven_rows(), 1)
    if method == "bc":
        losses = metrics["actor_loss"] - 0.5 * np.log(2 * np.pi)
    else:
        losses = metrics["td_loss"]
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3]), (losses[:3], losses[-10:])
    assert all(np.isfinite(x).all() for x in metrics.values())
