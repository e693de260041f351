"""The Q-Transformer's bins, returns and causality by hand, and what its returns do at a cut in
time, in both modes. Its loss and updates by the authors' rule are held by golden numbers
(test_golden_rivals.py)."""

import itertools
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.baselines import q_transformer
from tql.baselines.q_transformer import (
    AutoregressiveQ,
    DataStatistics,
    QTransformer,
    TransitionAndReturn,
    greedy,
    last_target,
    scaled_returns,
    statistics,
)
from tql.batch import Transition
from tql.training.chunk import train_chunk

N_S, N_A, BINS = 5, 3, 7
TASK = "cube-single-play-singletask-task1-v0"
SIZES = dict(d_model=8, layers=1, heads=2, bins=2)
EVERY = dict(batch_size=32, warmup=0, steps=2000, updates_per_call=1)
RATES = dict(discount=0.5, tau=0.1, lr=1e-2, weight_decay=0.02)
CONFIG = replace(q_transformer.paper(TASK), **SIZES, **EVERY, **RATES)
NETWORK = replace(CONFIG, bins=BINS, d_model=6, layers=2)


def extremes(low: float, high: float, a_low=(-1.0,), a_high=(1.0,)) -> DataStatistics:
    return DataStatistics(jnp.array(low), jnp.array(high), jnp.array(a_low), jnp.array(a_high))


# ---------------------------------------------------------------- bins, rewards, returns


def test_golden_bins():
    data = extremes(-1.0, 0.0)
    bins = [int(data.bin(jnp.array([a]), 64)[0]) for a in (-1.0, -0.97, 0.0, 0.999, 1.0, -3.0, 3.0)]
    assert bins == [0, 0, 32, 63, 63, 0, 63]
    centres = [float(data.centre(jnp.array([k]), 64)[0]) for k in (0, 31, 63)]
    assert centres == [-0.984375, -0.015625, 0.984375]


def test_bins_lie_between_the_datasets_extremes_of_each_dimension():
    """A dimension that never changes is widened by 1 on both sides."""
    a = jnp.array([[-0.5, 0.25, 0.9], [0.0, 0.75, 0.9]])
    s, r = jnp.zeros((2, N_S)), jnp.array([-1.0, 0.0])
    data = statistics(Transition(s, a, r, r, s, a))
    assert data.a_low.tolist() == [-0.5, 0.25, np.float32(0.9) - 1]
    assert data.a_high.tolist() == [0, 0.75, np.float32(0.9) + 1]
    k = data.bin(jnp.array([-0.15, 0.3, 0.9]), 5)
    assert k.tolist() == [3, 0, 2]
    np.testing.assert_allclose(data.centre(k, 5), [-0.15, 0.3, 0.9], atol=1e-6)


def episodes(*rewards, masks) -> Transition:
    """States count the rows, and jump between episodes."""
    s = np.concatenate([100 * e + np.arange(len(r)) for e, r in enumerate(rewards)])
    f = lambda x: jnp.asarray(np.asarray(x, np.float32))
    column = lambda x: f(x)[:, None]
    r, m = np.concatenate(rewards), np.concatenate(masks)
    return Transition(column(s), column(s / 1000), f(r), f(m), column(s + 1), column(s))


GOLDEN_RETURNS = {
    "authors": [0.9703, 0.9801, 0.9900, 0.985, 0.995, 1, 0.99],
    "lower_bound": [0, 0, 0, 0.985, 0.995, 1, 0],
}


@pytest.mark.parametrize("mode", GOLDEN_RETURNS)
def test_golden_returns_and_what_prepare_adds(mode):
    """Rewards -2, -2, -2 and a cut; -2, -1, 0 (solved), -2 and a cut. To the authors a cut looks
    like success: nothing is solved in the first episode, yet its last steps are worth almost all
    there is."""
    data = episodes([-2.0, -2, -2], [-2.0, -1, 0, -2], masks=([1.0, 1, 1], [1.0, 1, 0, 1]))
    np.testing.assert_allclose(scaled_returns(data, 0.99, mode), GOLDEN_RETURNS[mode], atol=6e-5)
    config = replace(CONFIG, discount=0.99, mc_mode=mode)
    agent, prepared = QTransformer.create(1, 1, config).prepare(data)
    np.testing.assert_allclose(prepared.G, GOLDEN_RETURNS[mode], atol=6e-5)
    assert prepared.cut.tolist() == [0, 0, 1, 0, 0, 0, 1] and prepared.G.dtype == jnp.float32
    for name in ("s", "a", "r", "m", "s_next"):
        np.testing.assert_array_equal(getattr(prepared, name), getattr(data, name))
    scaled = [agent.statistics.reward(jnp.array(r), 0.99) for r in (-2.0, -1.0, 0.0)]
    np.testing.assert_allclose(scaled, [0, 0.005, 0.01], atol=1e-8)


def test_the_lower_bound_is_one():
    """Over random episodes it is the return of going on with the worst reward for ever after the
    cut, and nothing can be worse."""
    rng, gamma = np.random.default_rng(3), 0.9
    rewards = [rng.choice([-3.0, -1.0, 0.0], 11) for _ in range(7)]
    masks = [np.where(r == 0, 0.0, 1.0) for r in rewards]
    found = scaled_returns(episodes(*rewards, masks=masks), gamma, "lower_bound").reshape(7, 11)
    for r, m, G in zip(rewards, masks, found, strict=True):
        value = -3 / (1 - gamma)
        for t in reversed(range(11)):
            value = r[t] + gamma * m[t] * value
            scaled = (value + 3 / (1 - gamma)) * (1 - gamma) / 3
            np.testing.assert_allclose(G[t], scaled, atol=1e-6)


def test_the_last_dimension_s_target():
    """r = -1 of -4 to 0 at discount .9, so the scaled reward is .075; the best value at s' is
    .4."""
    data, best = extremes(-4.0, 0.0), jnp.array(0.4)

    def y(mode, m, cut):
        numbers = jnp.zeros(1), jnp.zeros(1), jnp.array(-1.0), jnp.array(m), jnp.zeros(1)
        row = TransitionAndReturn(*numbers, jnp.array(0.0), jnp.array(cut))
        return pytest.approx(float(last_target(row, best, data, 0.9, mode)))

    assert [y("authors", m, cut) for m, cut in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0))] == [
        *(0.435, 0.075, 0.075)
    ]
    assert [y("lower_bound", m, cut) for m, cut in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0))] == [
        *(0.435, 0.435, 1.0)
    ]


def test_one_single_reward_is_refused():
    data = episodes([-1.0, -1], masks=([1.0, 1],))
    with pytest.raises(ValueError, match="every reward of the dataset is -1; .* at least two"):
        QTransformer.create(1, 1, CONFIG).prepare(data)


# ---------------------------------------------------------------- the network


values = eqx.filter_jit(lambda net, s, k: net(s, k))
greedy_bins = eqx.filter_jit(greedy)


def make_net(key) -> AutoregressiveQ:
    """With every array moved, embeddings most of all."""
    rng, net = np.random.default_rng(7), AutoregressiveQ(N_S, N_A, NETWORK, key=key)
    move = lambda x: x + jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)
    numbers, rest = eqx.partition(net, eqx.is_inexact_array)
    net = eqx.combine(jax.tree.map(move, numbers), rest)
    return eqx.tree_at(lambda n: n.embeddings, net, 4 * net.embeddings)


def test_no_dimension_sees_its_own_bin_or_later_ones(getkey):
    """Bin d changes the values of dimensions above d and of no other; the last bin changes
    nothing."""
    net, s, k = make_net(getkey()), jnp.linspace(-1, 1, N_S), np.array([3, 6, 2])
    f = lambda s, k: np.asarray(values(net, s, jnp.asarray(k)))
    base = f(s, k)
    for d in range(N_A):
        k_other = k.copy()
        k_other[d] = (k[d] + 3) % BINS
        change = np.abs(f(s, k_other) - base).max(axis=1)
        assert (change[: d + 1] == 0).all() and (change[d + 1 :] > 1e-4).all()
    assert (np.abs(f(2 * s, k) - base).max(axis=1) > 1e-4).all()


def test_golden_first_values(getkey):
    net = AutoregressiveQ(N_S, N_A, NETWORK, key=getkey())
    s, k = jnp.ones(N_S), jnp.zeros(N_A, int)
    Q = values(net, s, k)
    np.testing.assert_allclose(Q, 0.07586, atol=0.02)
    assert jnp.std(Q) > 1e-3
    without = eqx.tree_at(lambda n: n.U, net, jnp.zeros_like(net.U))
    np.testing.assert_allclose(values(without, s, k), 0.07586, atol=5e-6)
    for name in ("embeddings", "positions", "U"):
        assert 0.01 < float(np.std(getattr(net, name))) < 0.03
    assert 0 < np.abs(np.asarray(net.start)).max() < 0.1


def test_greedy_takes_one_dimension_after_another(getkey):
    net, other = make_net(getkey()), 0
    for s in np.random.default_rng(13).normal(size=(5, N_S)).astype(np.float32):
        k, best = greedy_bins(net, jnp.asarray(s))
        Q = lambda bins: np.asarray(values(net, jnp.asarray(s), jnp.array(bins)))
        chosen = []
        for d in range(N_A):
            chosen.append(int(np.argmax(Q(chosen + [0] * (N_A - d))[d])))
        assert k.tolist() == chosen
        np.testing.assert_allclose(best, Q(chosen)[-1].max(), rtol=1e-6)
        other += any(chosen != np.argmax(Q([n] * N_A), axis=1).tolist() for n in range(BINS))
    assert other, "no state in which a dimension depends on those before: nothing was tested"


def test_greedy_is_the_best_of_all_actions_where_q_adds_up(getkey):
    """With embeddings all alike no dimension depends on another, and the sum over dimensions is
    largest at the greedy bins."""
    net, s = make_net(getkey()), jnp.linspace(-1, 1, N_S)
    net = eqx.tree_at(lambda n: n.embeddings, net, jnp.ones_like(net.embeddings))
    Q = np.asarray(values(net, s, jnp.zeros(N_A, int)))
    worth = lambda k: sum(Q[d, k[d]] for d in range(N_A))
    best = max(itertools.product(range(BINS), repeat=N_A), key=worth)
    assert tuple(greedy_bins(net, s)[0].tolist()) == best


def test_it_acts_with_centres_of_the_online_networks_bins(getkey):
    """Clipped, because the bins of a dimension that never changes reach beyond 1."""
    net, s = make_net(getkey()), jnp.linspace(-1, 1, N_S)
    net = eqx.tree_at(lambda n: n.c, net, net.c.at[2].add(jnp.linspace(0, 40, BINS)))
    agent = QTransformer.create(N_S, N_A, NETWORK)
    agent = eqx.tree_at(lambda a: a.net.model, agent, net)
    found = extremes(-1.0, 0.0, (-0.5, 0.2, -0.1), (0.5, 0.4, 1.9))
    k = np.asarray(greedy_bins(net, s)[0])
    expected = [-0.5 + (k[0] + 0.5) / 7, 0.2 + (k[1] + 0.5) / 35, 1.0]
    action = replace(agent, statistics=found).policy("policy")(s, getkey())
    assert k[2] >= 4, "a centre beyond 1"
    np.testing.assert_allclose(action, expected, atol=1e-6)


# ---------------------------------------------------------------- a maze of four states


def dilemma() -> Transition:
    """From state 0 two steps solve the task if both actions have the same sign, and one leads to a
    place without exit if not. Rewards are -1, and 0 in the solved state (2). Episodes end when the
    task is solved, and are cut at once in the bad place (3)."""
    rng, rows = np.random.default_rng(29), []
    # A row that another episode's follows never ends where that one begins: it is a cut.
    for now, after in [(0, 1), (1, 2), (2, 2), (0, 3), (2, 2), (3, 3)] * 10:
        sign = rng.choice([-1.0, 1.0], 2)
        if now == 0:
            sign[1] = sign[0] if after == 1 else -sign[0]
        rows.append((now, after, sign))
    now, after, sign = (np.array(x) for x in zip(*rows))
    f, one_hot, solved = lambda x: jnp.asarray(x, jnp.float32), np.eye(N_S), now == 2
    r = np.where(solved, 0.0, -1.0)
    return Transition(f(one_hot[now]), f(sign), f(r), f(~solved), f(one_hot[after]), f(sign))


@cache
def trained(mode: str):
    config = replace(CONFIG, mc_mode=mode)
    agent, data = QTransformer.create(N_S, 2, config).prepare(dilemma())
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            agent, _ = train_chunk((data, 200), agent)
    return agent


@pytest.mark.parametrize("mode, solves", [("lower_bound", True), ("authors", False)])
def test_the_authors_returns_prefer_the_cut_and_the_bound_does_not(mode, solves):
    """At discount .5 solving from state 0 is worth .25. The bad place is worth 0 or, if a cut looks
    like success, .5."""
    agent, s = trained(mode), jnp.eye(N_S)
    first = agent.policy("policy")(s[0], jr.key(0))
    assert (float(first[0] * first[1]) > 0) == solves
    best = lambda i: float(greedy_bins(agent.net.model, s[i])[1])
    good = float(values(agent.net.model, s[0], jnp.array([1, 1]))[1, 1])
    assert (best(3) > good + 0.05) == (not solves)
    if solves:
        assert best(2) > best(1) + 0.1 > best(0) + 0.2 and best(3) < 0.06


def test_the_gradient_is_cut_to_norm_1(optax_promotion):
    """The final norm is a thousand times larger and U smaller, so Q is the same and the gradient is
    large. Adam's first moment is a tenth of what reached it."""
    agent, batch = QTransformer.create(N_S, 2, CONFIG).prepare(dilemma())
    parts = lambda a: (a.net.model.final_norm.weight, a.net.model.U)
    norm, U = parts(agent)
    agent = eqx.tree_at(parts, agent, (norm * 1e3, U / 1e3))
    after, _ = eqx.filter_jit(lambda agent: agent.update(batch, jr.key(0)))(agent)
    momentum = jax.tree.leaves(after.net.optimiser_state[1][0].mu)
    size = np.sqrt(sum(np.sum(np.float64(m) ** 2) for m in momentum))
    np.testing.assert_allclose(size, 0.1, rtol=1e-4)
