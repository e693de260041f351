"""Q-Transformer against golden numbers and loops in float64; what its returns do at a cut in time, in both modes."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from loops import affine, first_adam_step, layer_norm, moved, random_batch, same, self_block, weights

from tql import autoregressive_q, checkpoint
from tql.agent import initialise
from tql.baselines import q_transformer
from tql.baselines.q_transformer import (
    RETURN_BOUNDS,
    AutoregressiveQ,
    BinnedActions,
    QTransformer,
    greedy,
    loss,
)
from tql.config import Task
from tql.data import Batch, DataStatistics, statistics
from tql.loop import train_chunk
from tql.return_bound import ReturnsBatch, scale_reward

N_S, N_A, BINS, HEADS, D, ROWS = 5, 3, 7, 2, 6, 5
TASK = "cube-single-play-singletask-task1-v0"
CONFIG = replace(
    q_transformer.paper(TASK),
    **dict(batch_size=32, discount=0.5, tau=0.1, lr=1e-2, weight_decay=0.02, warmup=0, steps=2000, updates_per_call=1),
    **dict(d_model=8, layers=1, heads=2, bins=2),
)


def extremes(low: float, high: float, a_low=(-1.0,), a_high=(1.0,)) -> DataStatistics:
    return DataStatistics(jnp.array(low), jnp.array(high), jnp.array(a_low), jnp.array(a_high))


# ---------------------------------------------------------------- bins


def test_golden_bins():
    actions = BinnedActions(extremes(-1.0, 0.0), 64)
    assert [int(actions.bin(jnp.array([a]))[0]) for a in (-1.0, -0.97, 0.0, 0.999, 1.0)] == [0, 0, 32, 63, 63]
    assert [float(actions.centre(jnp.array([k]))[0]) for k in (0, 31, 63)] == [-0.984375, -0.015625, 0.984375]
    assert [int(actions.bin(jnp.array([a]))[0]) for a in (-3.0, 3.0)] == [0, 63]


def test_bins_lie_between_the_datasets_extremes_of_each_dimension():
    """A dimension that never changes is widened by 1 on both sides."""
    actions = BinnedActions(extremes(-1.0, 0.0, (-0.5, 0.25, 0.9), (0.0, 0.75, 0.9)), 5)
    assert actions.low.tolist() == [-0.5, 0.25, np.float32(0.9) - 1] and actions.high.tolist() == [0, 0.75, np.float32(0.9) + 1]
    assert actions.bin(jnp.array([-0.15, 0.3, 0.9])).tolist() == [3, 0, 2]
    np.testing.assert_allclose(actions.centre(jnp.array([3, 0, 2])), [-0.15, 0.3, 0.9], atol=1e-6)


# ---------------------------------------------------------------- rewards and returns


def episodes(*rewards, masks) -> Batch:
    """States count the rows, and jump between episodes."""
    s = np.concatenate([100 * e + np.arange(len(r)) for e, r in enumerate(rewards)])
    f = lambda x: jnp.asarray(np.asarray(x, np.float32))
    column = lambda x: f(x)[:, None]
    return Batch(column(s), column(s / 1000), f(np.concatenate(rewards)), f(np.concatenate(masks)), column(s + 1), column(s))


def golden_episodes() -> Batch:
    return episodes([-2.0, -2, -2], [-2.0, -1, 0, -2], masks=([1.0, 1, 1], [1.0, 1, 0, 1]))


GOLDEN_RETURNS = {
    "authors": [0.9703, 0.9801, 0.9900, 0.985, 0.995, 1, 0.99],
    "lower_bound": [0, 0, 0, 0.985, 0.995, 1, 0],
}


def test_golden_rewards():
    data = extremes(-2.0, 0.0)
    np.testing.assert_allclose([scale_reward(jnp.array(r), data, 0.99) for r in (-2.0, -1.0, 0.0)], [0, 0.005, 0.01], atol=1e-8)


@pytest.mark.parametrize("mode", GOLDEN_RETURNS)
def test_golden_returns(mode):
    np.testing.assert_allclose(RETURN_BOUNDS[mode].returns(golden_episodes(), 0.99), GOLDEN_RETURNS[mode], atol=6e-5)


@pytest.mark.parametrize("mode, before_the_cut", [("authors", 0.9), ("lower_bound", 0)])
def test_a_cut_looks_like_success_to_the_authors(mode, before_the_cut):
    """Nothing is ever solved (m = 1 everywhere), yet the last steps of an episode are worth almost all there is."""
    data = episodes([-2.0, -2, -2, -2], [-1.0, 0], masks=([1.0] * 4, [1.0, 1]))
    np.testing.assert_allclose(RETURN_BOUNDS[mode].returns(data, 0.9)[3], before_the_cut, atol=1e-9)


def test_the_lower_bound_is_one():
    """Over random episodes it is the return of going on with the worst reward for ever after the cut; nothing can be worse."""
    rng, discount = np.random.default_rng(3), 0.9
    rewards = [rng.choice([-3.0, -1.0, 0.0], 11) for _ in range(7)]
    masks = [np.where(r == 0, 0.0, 1.0) for r in rewards]
    found = RETURN_BOUNDS["lower_bound"].returns(episodes(*rewards, masks=masks), discount).reshape(7, 11)
    for r, m, G in zip(rewards, masks, found, strict=True):
        value = -3 / (1 - discount)
        for t in reversed(range(11)):
            value = r[t] + discount * m[t] * value
            np.testing.assert_allclose(G[t], (value + 3 / (1 - discount)) * (1 - discount) / 3, atol=1e-6)


def test_prepare_adds_returns_and_cuts():
    data = golden_episodes()
    config = replace(CONFIG, discount=0.99)
    for mode, expected in GOLDEN_RETURNS.items():
        prepared = QTransformer.prepare(data, replace(config, mc_mode=mode))
        np.testing.assert_allclose(prepared.returns, expected, atol=6e-5)
        assert prepared.terminals.tolist() == [0, 0, 1, 0, 0, 0, 1] and prepared.returns.dtype == jnp.float32
        for name in Batch.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(prepared, name), getattr(data, name))


def test_one_single_reward_is_refused():
    with pytest.raises(ValueError, match="every reward of the dataset is -1; .* at least two"):
        QTransformer.prepare(episodes([-1.0, -1], masks=([1.0, 1],)), CONFIG)


# ---------------------------------------------------------------- the network, by loops


values = eqx.filter_jit(lambda net, s, k: net(s, k))
greedy_bins = eqx.filter_jit(greedy)


def make_net(key, rng, layers=2) -> AutoregressiveQ:
    return moved(AutoregressiveQ(N_S, N_A, bins=BINS, d_model=D, layers=layers, heads=HEADS, key=key), rng, 0.5)


def loop_Q(net, s, k) -> np.ndarray:
    """Token 0 is the state, token 1 the start, token d the bin of dimension d - 1; dimension d is read at token d."""
    tokens = [affine(net.state_map, s), np.asarray(net.start)]
    tokens += [np.asarray(net.embeddings)[d, k[d]] for d in range(N_A - 1)]
    x = [token + np.asarray(net.positions)[i] for i, token in enumerate(tokens)]
    for block in net.blocks:
        x = self_block(block, x, HEADS, sees=lambda i, j: j <= i, qk_norm=True)
    Q = np.zeros((N_A, BINS))
    for d in range(N_A):
        row = layer_norm(net.final_norm, x[1 + d])
        for n in range(BINS):
            Q[d, n] = 1 / (1 + np.exp(-(row @ np.asarray(net.U)[d, n] + np.asarray(net.c)[d, n])))
    return Q


def loop_greedy(net, s) -> list[int]:
    chosen: list[int] = []
    for d in range(N_A):
        chosen.append(int(np.argmax(loop_Q(net, s, chosen + [0] * (N_A - d))[d])))
    return chosen


def test_the_network_is_that_of_a_loop(x64, getkey):
    rng = np.random.default_rng(7)
    net = make_net(getkey(), rng)
    s, k = rng.normal(size=N_S), np.array([3, 6, 2])
    np.testing.assert_allclose(values(net, jnp.asarray(s), jnp.asarray(k)), loop_Q(net, s, k), rtol=1e-9)


def test_no_dimension_sees_its_own_bin_or_later_ones(getkey):
    """Bin d changes the values of dimensions above d and of no other; the last bin changes nothing."""
    net = make_net(getkey(), np.random.default_rng(11))
    s, k = jnp.linspace(-1, 1, N_S), np.array([3, 6, 2])
    f = lambda s, k: np.asarray(values(net, s, jnp.asarray(k)))
    base = f(s, k)
    for d in range(N_A):
        k_other = k.copy()
        k_other[d] = (k[d] + 3) % BINS
        change = np.abs(f(s, k_other) - base).max(axis=1)
        assert (change[: d + 1] == 0).all() and (change[d + 1 :] > 1e-4).all()
    assert (np.abs(f(2 * s, k) - base).max(axis=1) > 1e-4).all()


def test_golden_first_values(getkey):
    net = AutoregressiveQ(N_S, N_A, bins=BINS, d_model=D, layers=2, heads=HEADS, key=getkey())
    s, k = jnp.ones(N_S), jnp.zeros(N_A, int)
    Q = values(net, s, k)
    np.testing.assert_allclose(Q, 0.07586, atol=0.02)
    assert jnp.std(Q) > 1e-3
    np.testing.assert_allclose(values(eqx.tree_at(lambda n: n.U, net, jnp.zeros_like(net.U)), s, k), 0.07586, atol=5e-6)
    for name in ("embeddings", "positions", "U"):
        assert 0.01 < float(np.std(getattr(net, name))) < 0.03
    assert 0 < np.abs(np.asarray(net.start)).max() < 0.1
    assert not np.any(weights(net.blocks[0].attention.query)[1]) and (np.asarray(net.final_norm.weight) == 1).all()


# ---------------------------------------------------------------- greedy actions


def test_greedy_takes_one_dimension_after_another(x64, getkey):
    rng = np.random.default_rng(13)
    net = make_net(getkey(), rng)
    net = eqx.tree_at(lambda n: n.embeddings, net, 4 * net.embeddings)
    other = 0
    for s in rng.normal(size=(5, N_S)):
        k, best = greedy_bins(net, jnp.asarray(s))
        expected = loop_greedy(net, s)
        assert k.tolist() == expected
        np.testing.assert_allclose(best, loop_Q(net, s, expected)[-1].max(), rtol=1e-9)
        other += any(k.tolist() != np.argmax(loop_Q(net, s, [n] * N_A), axis=1).tolist() for n in range(BINS))
    assert other, "no state in which a dimension depends on those before: nothing was tested"


def test_greedy_is_the_best_of_all_actions_where_q_adds_up(x64, getkey):
    """With embeddings all alike no dimension depends on another; the sum over dimensions is largest at the greedy bins."""
    net = make_net(getkey(), np.random.default_rng(17))
    net = eqx.tree_at(lambda n: n.embeddings, net, jnp.ones_like(net.embeddings))
    s = jnp.linspace(-1, 1, N_S)
    Q = np.asarray(values(net, s, jnp.zeros(N_A, int)))
    best = max(itertools.product(range(BINS), repeat=N_A), key=lambda k: sum(Q[d, k[d]] for d in range(N_A)))
    assert tuple(greedy_bins(net, s)[0].tolist()) == best


def test_it_acts_with_centres_of_the_online_networks_bins(getkey):
    """Clipped: the bins of a dimension that never changes reach beyond 1."""
    rng = np.random.default_rng(19)
    config = replace(CONFIG, bins=BINS, d_model=D, heads=HEADS, layers=1)
    found = extremes(-1.0, 0.0, (-0.5, 0.2, 0.9), (0.5, 0.4, 0.9))
    agent = replace(initialise(N_S, N_A, config, found), net=make_net(getkey(), rng, 1), target_net=make_net(getkey(), rng, 1))
    far = agent.net.c.at[2].add(jnp.linspace(0, 12, BINS))  # the last dimension takes one of its last bins
    agent = eqx.tree_at(lambda a: a.net.c, agent, far)
    s = rng.normal(size=N_S)
    k = loop_greedy(agent.net, s)
    act = eqx.filter_jit(agent.policy("policy"))
    action = act(jnp.asarray(s, jnp.float32), getkey())
    expected = [-0.5 + (k[0] + 0.5) / 7, 0.2 + (k[1] + 0.5) / 35, 1.0]
    assert k[2] >= 4
    np.testing.assert_allclose(action, expected, atol=1e-6)
    np.testing.assert_array_equal(action, act(jnp.asarray(s, jnp.float32), getkey()))


# ---------------------------------------------------------------- the loss, by loops


def returns_batch(rng) -> ReturnsBatch:
    batch = random_batch(rng, ROWS, N_S, N_A)
    columns = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    f = lambda x: jnp.asarray(x, float)
    return ReturnsBatch(**columns, returns=f([-0.3, 0.1, 0.6, 1.4, -0.1]), terminals=f([0.0, 0, 1, 0, 0]))


@pytest.mark.parametrize("mode", ["authors", "lower_bound"])
def test_the_loss_is_that_of_a_loop(x64, getkey, mode):
    rng, discount = np.random.default_rng(23), 0.9
    net, target_net, batch = make_net(getkey(), rng), make_net(getkey(), rng), returns_batch(rng)
    low, high = np.array([-1.0, -0.7, -0.9]), np.array([1.0, 0.8, 0.6])
    data = DataStatistics(jnp.array(-3.0), jnp.array(0.0), jnp.asarray(low), jnp.asarray(high))
    total, metrics = eqx.filter_jit(loss)(net, target_net, BinnedActions(data, BINS), batch, data, discount, RETURN_BOUNDS[mode])

    td = conservative = mean = 0.0
    for i in range(ROWS):
        s, a, s_next = (np.asarray(x[i]) for x in (batch.observations, batch.actions, batch.next_observations))
        r, m, cut, G = (float(x[i]) for x in (batch.rewards, batch.masks, batch.terminals, batch.returns))
        k = [min(max(int(np.floor(BINS * (a[d] - low[d]) / (high[d] - low[d]))), 0), BINS - 1) for d in range(N_A)]
        here, Q = loop_Q(target_net, s, k), loop_Q(net, s, k)
        g = loop_greedy(target_net, s_next)
        best_next = loop_Q(target_net, s_next, g)[N_A - 1].max()
        scaled = (r + 3) * (1 - discount) / 3
        if mode == "authors":
            last = scaled + discount * m * (1 - cut) * best_next
        else:
            last = 1.0 if m == 0 else scaled + discount * best_next  # -r_lo / (r_hi - r_lo) = 1
        for d in range(N_A):
            y = here[d + 1].max() if d < N_A - 1 else last
            y = min(max(y, G, 0.0), 1.0)
            td += 0.5 * (Q[d, k[d]] - y) ** 2 / (ROWS * N_A)
            conservative += 0.5 * sum(Q[d, n] ** 2 for n in range(BINS) if n != k[d]) / (BINS - 1) / (ROWS * N_A)
            mean += Q[d, k[d]] / (ROWS * N_A)
    np.testing.assert_allclose(metrics["td_loss"], td, rtol=1e-9)
    np.testing.assert_allclose(metrics["conservative_loss"], conservative, rtol=1e-9)
    np.testing.assert_allclose(metrics["q_mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(total, td + 0.5 * conservative, rtol=1e-9)


# ---------------------------------------------------------------- a maze of four states


def dilemma(action_of_state: bool = False) -> Batch:
    """From state 0 two steps solve the task if both actions have the same sign, and one leads to a place without exit if not.

    Rewards are -1, and 0 in the solved state (2). Episodes end when the task is solved, and are cut at once in the bad place (3).
    """
    rng, rows = np.random.default_rng(29), []
    # A row that another episode's follows never ends where that one begins: it is a cut.
    steps = [(0, 1), (1, 2), (2, 2), (0, 3), (2, 2), (3, 3)] * 10
    for now, after in [(0, 1), (1, 2), (2, 2), (3, 3)] * 15 if action_of_state else steps:
        sign = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]][now]) if action_of_state else rng.choice([-1.0, 1.0], 2)
        if now == 0 and not action_of_state:
            sign[1] = sign[0] if after == 1 else -sign[0]
        rows.append((now, after, sign))
    now, after, sign = (np.array(x) for x in zip(*rows))
    f, one_hot = lambda x: jnp.asarray(x, jnp.float32), np.eye(N_S)
    solved = now == 2
    return Batch(f(one_hot[now]), f(sign), f(np.where(solved, 0.0, -1.0)), f(~solved), f(one_hot[after]), f(sign))


_TRAINED: dict = {}


def trained(mode: str, data: Batch, name: str):
    """The agent and its last metrics after 600 updates."""
    if (mode, name) not in _TRAINED:
        config = replace(CONFIG, mc_mode=mode)
        agent, prepared = initialise(N_S, 2, config, statistics(data)), QTransformer.prepare(data, config)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(3):
                agent, metrics = train_chunk((prepared, 200), agent)
        _TRAINED[mode, name] = agent, {key: float(x[-1]) for key, x in metrics.items()}
    return _TRAINED[mode, name]


@pytest.mark.parametrize("mode, solves", [("lower_bound", True), ("authors", False)])
def test_the_authors_returns_prefer_the_cut_and_the_bound_does_not(mode, solves):
    """At discount .5 solving from state 0 is worth .25. The bad place is worth 0, or, if a cut looks like success, .5."""
    agent, _ = trained(mode, dilemma(), "dilemma")
    s = jnp.eye(N_S)
    first = agent.policy("policy")(s[0], jr.key(0))
    assert (float(first[0] * first[1]) > 0) == solves
    best = lambda i: float(greedy_bins(agent.net, s[i])[1])
    good = float(values(agent.net, s[0], jnp.array([1, 1]))[1, 1])
    assert (best(3) > good + 0.05) == (not solves)
    if solves:
        assert best(2) > best(1) + 0.1 > best(0) + 0.2 and best(3) < 0.06


def test_a_batch_is_fitted():
    """One action per state: values of the data and zeros elsewhere do not contradict each other."""
    agent, metrics = trained("lower_bound", dilemma(action_of_state=True), "one action")
    assert metrics["td_loss"] < 2e-3 and metrics["conservative_loss"] < 2e-3
    Q = values(agent.net, jnp.eye(N_S)[1], jnp.array([0, 1]))
    np.testing.assert_allclose([Q[0, 0], Q[1, 1]], 0.5, atol=0.1)
    np.testing.assert_allclose([Q[0, 1], Q[1, 0]], 0.0, atol=0.1)


# ---------------------------------------------------------------- one update


@pytest.fixture(scope="module")
def batch() -> ReturnsBatch:
    return QTransformer.prepare(dilemma(), CONFIG)


def test_one_update(batch, optax_promotion):
    """The gradient is cut to norm 1, then AdamW, which decays the maps alone; the target follows the network from after the update.

    The final norm is a thousand times larger and U smaller, so Q is the same and the gradient is large.
    """
    fresh = initialise(N_S, 2, CONFIG, statistics(batch))
    net = eqx.tree_at(lambda n: (n.final_norm.weight, n.U), fresh.net, (fresh.net.final_norm.weight * 1e3, fresh.net.U / 1e3))
    agent = replace(fresh, net=net, target_net=moved(fresh.target_net, np.random.default_rng(31)))
    after, metrics = eqx.filter_jit(lambda agent: agent.update(batch, jr.key(0)))(agent)
    assert set(metrics) == {"td_loss", "conservative_loss", "q_mean"} and int(after.step) == 1

    before, new, target, old = (checkpoint.named_arrays(x) for x in (net, after.net, after.target_net, agent.target_net))
    momentum = checkpoint.named_arrays(after.net_state[1][0].mu)  # a tenth of the gradient
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.float64(m) ** 2) for m in momentum.values())), 0.1, rtol=1e-4)
    decayed = {name for name in before if name.endswith(".weight") and "norm" not in name}
    assert len(decayed) == 1 + 6  # the state's map; query, key, value, out and two of the MLP
    for name, m in momentum.items():
        clear = np.abs(m) > 1e-6
        expected = first_adam_step(before[name], 10 * m, 1e-2, 0.02 if name in decayed else 0.0)
        # The scale of the final norm is so large that float32 holds the step to 1e-4 of it.
        np.testing.assert_allclose(new[name][clear], expected[clear], atol=2e-4 if "final_norm" in name else 2e-5, err_msg=name)
        np.testing.assert_allclose(target[name], 0.1 * new[name] + 0.9 * old[name], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- settings and checkpoints


@pytest.mark.parametrize("domain", ["cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4"])
def test_paper_settings(domain):
    c = q_transformer.paper(f"{domain}-play-singletask-task2-v0")
    assert Task.parse(c.task).domain == domain and c.mc_mode == "authors"
    assert (c.lr, c.weight_decay, c.warmup, c.batch_size, c.steps, c.tau, c.discount) == (2e-5, 0.02, 10_000, 256, 1_000_000, 0.005, 0.99)
    assert (c.d_model, c.layers, c.heads, c.bins) == (128, 2, 4, 64)
    assert (autoregressive_q.FIRST_LOGIT, q_transformer.CONSERVATIVE_WEIGHT, q_transformer.LARGEST_GRADIENT) == (-2.5, 0.5, 1.0)


def test_a_checkpoint_keeps_the_bins(tmp_path):
    found = DataStatistics(jnp.array(-7.0), jnp.array(-2.0), jnp.array([-0.5, -0.3]), jnp.array([0.2, 0.9]))
    agent = initialise(N_S, 2, CONFIG, found)
    checkpoint.save(tmp_path / "c", agent)
    again = checkpoint.load(tmp_path / "c", CONFIG)
    assert same(agent, again) and again.statistics.action_high.tolist() == found.action_high.tolist()
    act = lambda agent: agent.policy("policy")(jnp.ones(N_S), jr.key(0)).tolist()
    assert act(again) == act(agent) != act(replace(agent, statistics=extremes(-7.0, -2.0, (-1.0, -1.0), (1.0, 1.0))))
