"""floq against golden numbers, against loops in float64, and on decision processes whose values are known."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from loops import clip1, first_adam_step, mlp, moved, mu, random_batch, same, weights

from tql import checkpoint
from tql.agent import batch_noise, initialise
from tql.baselines import floq
from tql.baselines.floq import Floq, ValueFlow, distillation_loss, draw_copies, edges, encode, integrate, velocity_loss
from tql.config import Task
from tql.data import Batch, DataStatistics, statistics
from tql.flow_actor import FlowActor, draw_noise
from tql.loop import train_chunk
from tql.mlp import MLPCritic

N_S, N_A, ROWS, COPIES, K, DISCOUNT = 3, 2, 5, 7, 3, 0.7
TASK = "cube-single-play-singletask-task1-v0"
CONFIG = replace(
    floq.paper(TASK),
    **dict(batch_size=13, discount=0.5, tau=0.1, lr=1e-2, alpha_bc=0.1, steps=1000, updates_per_call=1),
    **dict(hidden=(7,), critic_hidden=(11,), velocity_hidden=(13,), flow_steps=2, critic_flow_steps=3, copies=2),
)


def extremes(low: float, high: float, n_a: int = N_A) -> DataStatistics:
    return DataStatistics(jnp.array(low), jnp.array(high), -jnp.ones(n_a), jnp.ones(n_a))


# ---------------------------------------------------------------- the encoding of values


@pytest.mark.parametrize(
    "z, at_0, at_24, at_49, largest",
    [(-20, 0.000864, 0.017843, 0.038217, 44), (-100, 0.008757, 0.028257, 0.008757, 24), (0, 0.000433, 0.014207, 0.049337, 49)],
)
def test_golden_encoding(x64, z, at_0, at_24, at_49, largest):
    """Rewards from -2 to 0 at discount .99."""
    b = edges(extremes(-2.0, 0.0), 0.99)
    h = encode(jnp.array(float(z)), b)
    assert b.shape == (51,) and h.shape == (50,)
    np.testing.assert_allclose(b[jnp.array([0, 50])], [-201, 1], atol=1e-9)
    np.testing.assert_allclose(h[jnp.array([0, 24, 49])], [at_0, at_24, at_49], atol=5.1e-7)
    assert int(jnp.argmax(h)) in (largest, 25 if largest == 24 else largest)  # -100 is the middle, between 24 and 25
    np.testing.assert_allclose(jnp.sum(h), 1, atol=1e-12)


def loop_encode(z, low, high, discount):
    b = [(low - 0.01) / (1 - discount) + k / 50 * (high - low + 0.02) / (1 - discount) for k in range(51)]
    sigma = 16 * (b[1] - b[0])
    c = [math.erf((b_k - z) / (math.sqrt(2) * sigma)) for b_k in b]
    return np.array([(c[k + 1] - c[k]) / (c[50] - c[0]) for k in range(50)])


@pytest.mark.parametrize("low, high", [(-1.0, -1.0), (-16.0, -14.0)])
def test_values_far_from_every_return_are_encoded_too(low, high):
    """Start values at a tenth of the returns lie 100 sigma beyond the edges where the rewards of a dataset are nearly one value."""
    b = edges(extremes(low, high), 0.99)
    for z in (10 * low, 10 * high, 0.0, 1e6, -1e6):
        h = encode(jnp.array(z, jnp.float32), b)
        assert jnp.isfinite(h).all()
        np.testing.assert_allclose(jnp.sum(h), 1, atol=1e-2)
        assert (jnp.argmax(h) == 49) == (z > low * 100)


def test_points_within_four_sigma_of_the_edges_are_encoded_where_they_are(x64):
    b = edges(extremes(-2.0, 0.0), 0.99)
    sigma = 16 * 202 / 50
    for z in (1 + 3.99 * sigma, -201 - 3.99 * sigma):
        np.testing.assert_allclose(encode(jnp.array(z), b), loop_encode(z, -2, 0, 0.99), rtol=1e-6)


def test_start_values_fill_the_covered_range(getkey):
    """Coverage .1 at discount .99 and rewards from -2 to -1: from -20 to -10, and z' is drawn apart from z, as every copy is."""
    noise = draw_copies(997, N_A, extremes(-2.0, -1.0), 0.99, 0.1, key=getkey())
    for z in (noise.z, noise.z_next):
        assert -20 <= jnp.min(z) < -19.9 and -10.1 < jnp.max(z) <= -10
        assert abs(float(jnp.mean(z)) + 15) < 0.5
    assert 0 <= jnp.min(noise.t) < 0.01 and 0.99 < jnp.max(noise.t) < 1
    assert abs(float(jnp.std(noise.next_action)) - 1) < 0.1 and noise.next_action.shape == (997, N_A)
    columns = np.array([noise.z, noise.z_next, noise.t, *noise.next_action.T])
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 0.15


# ---------------------------------------------------------------- the losses, by loops


def loop_integrate(member, s, a, z, low, high, steps=K):
    for i in range(steps):
        z = z + mlp(member, s, a, loop_encode(z, low, high, DISCOUNT), [math.cos(i / steps)], norms=True)[0] / steps
    return z


@pytest.fixture
def parts(x64, getkey):
    """Networks with every array moved, a batch, noise. Rewards from -3 to 0."""
    rng = np.random.default_rng(5)
    psi, target_psi = (moved(ValueFlow(N_S, N_A, (7, 5), key=getkey()), rng) for _ in range(2))
    actor = moved(FlowActor(N_S, N_A, hidden=(7,), flow_steps=2, layer_norm=False, key=getkey()), rng)
    critic = moved(MLPCritic(N_S, N_A, (7,), key=getkey()), rng)
    batch, data = random_batch(rng, ROWS, N_S, N_A), extremes(-3.0, 0.0)
    noise = batch_noise(lambda k: draw_copies(COPIES, N_A, data, DISCOUNT, 0.3, key=k), getkey(), batch)
    return psi, target_psi, actor, critic, batch, data, noise


def test_losses_are_those_of_a_loop(parts):
    """y is one number per transition; copies are summed in the velocity's loss and averaged elsewhere."""
    psi, target_psi, actor, critic, batch, data, noise = parts
    b = edges(data, DISCOUNT)
    of_psi, mean_y = eqx.filter_jit(velocity_loss)(psi, target_psi, actor, batch, noise, b, DISCOUNT, K)
    of_critic, mean_q = eqx.filter_jit(distillation_loss)(critic, psi, batch, noise, b, K)

    ys, velocity, distilled, qs = [], 0.0, 0.0, []
    for i in range(ROWS):
        s, a, s_next = (np.asarray(x[i]) for x in (batch.observations, batch.actions, batch.next_observations))
        y = 0.0
        for j in range(COPIES):
            a_next = clip1(mu(actor, s_next, noise.next_action[i, j]))
            ends = [loop_integrate(member, s_next, a_next, float(noise.z_next[i, j]), -3, 0) for member in target_psi.members]
            y += (float(batch.rewards[i]) + DISCOUNT * float(batch.masks[i]) * sum(ends) / 2) / COPIES
        ys.append(y)
        q_hat = 0.0
        for member in psi.members:
            for j in range(COPIES):
                z, t = float(noise.z[i, j]), float(noise.t[i, j])
                x = (1 - t) * z + t * y
                psi_x = mlp(member, s, a, loop_encode(x, -3, 0, DISCOUNT), [math.cos(t)], norms=True)[0]
                velocity += (psi_x - (y - z)) ** 2 / (2 * ROWS)
                q_hat += loop_integrate(member, s, a, z, -3, 0) / (2 * COPIES)
        for member in critic.members:
            q = mlp(member, s, a, norms=True)[0]
            qs.append(q)
            distilled += (q - q_hat) ** 2 / (2 * ROWS)
    np.testing.assert_allclose(of_psi, velocity, rtol=1e-9)
    np.testing.assert_allclose(mean_y, sum(ys) / ROWS, rtol=1e-9)
    np.testing.assert_allclose(of_critic, distilled, rtol=1e-9)
    np.testing.assert_allclose(mean_q, sum(qs) / len(qs), rtol=1e-9)


def test_members_part_on_the_way(parts):
    """A constant velocity of 2 and -5 by hand: each member goes on from its own point, and K steps of 1/K make one unit of time."""
    psi, *_ = parts
    still = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, psi)
    drift = eqx.tree_at(lambda p: [m.layers[-1].bias for m in p.members], still, [jnp.array([2.0]), jnp.array([-5.0])])
    ends = integrate(drift, jnp.zeros(N_S), jnp.zeros(N_A), jnp.array(-1.0), edges(extremes(-3.0, 0.0), DISCOUNT), 7)
    np.testing.assert_allclose(ends, [1, -6], atol=1e-12)


# ---------------------------------------------------------------- one update


@pytest.fixture(scope="module")
def data() -> Batch:
    return random_batch(np.random.default_rng(7), 13, N_S, N_A)


@pytest.fixture(scope="module")
def agent(data):
    """With targets that differ from what they follow."""
    fresh = initialise(N_S, N_A, CONFIG, statistics(data))
    return replace(fresh, target_psi=moved(fresh.target_psi, np.random.default_rng(11)))


@eqx.filter_jit
def step(agent, batch):
    return agent.update(batch, jr.key(3))


def test_one_update(agent, data, optax_promotion):
    """Adam on the gradient of each loss, all at the weights before the update; the target follows psi from before it."""
    after, metrics = step(agent, data)
    assert set(metrics) == {
        *("velocity_loss", "critic_loss", "target_mean", "q_mean"), *("flow_loss", "distillation_loss", "actor_q")
    }  # fmt: skip
    k_copies, _ = jr.split(jr.key(3))
    found = statistics(data)
    noise = batch_noise(lambda k: draw_copies(2, N_A, found, 0.5, CONFIG.coverage, key=k), k_copies, data)
    b = edges(found, 0.5)
    losses = {
        "psi": eqx.filter_grad(lambda psi: velocity_loss(psi, agent.target_psi, agent.actor, data, noise, b, 0.5, 3)[0]),
        "critic": eqx.filter_grad(lambda critic: distillation_loss(critic, agent.psi, data, noise, b, 3)[0]),
    }
    for name, gradient in losses.items():
        before = getattr(agent, name)
        g = weights(eqx.filter_jit(gradient)(before))
        for old, new, g_i in zip(weights(before), weights(getattr(after, name)), g, strict=True):
            clear = np.abs(g_i) > 1e-4  # elsewhere the sign is rounding
            np.testing.assert_allclose(new[clear], first_adam_step(old, g_i, 1e-2)[clear], atol=1e-5)
    averages = zip(weights(agent.psi), weights(agent.target_psi), weights(after.target_psi), strict=True)
    for online, old, new in averages:
        np.testing.assert_allclose(new, 0.1 * online + 0.9 * old, atol=1e-6)
    assert int(after.step) == 1 and not same(agent.actor.flow, after.actor.flow)


def test_who_moves_whom(agent, data, optax_promotion):
    """Another critic changes the policy alone; another psi the critic but not the policy; the actor's flow changes no critic."""
    rng = np.random.default_rng(13)
    after, _ = step(agent, data)
    change = lambda name: step(replace(agent, **{name: moved(getattr(agent, name), rng)}), data)[0]
    other = change("critic")
    assert same(other.psi, after.psi) and same(other.target_psi, after.target_psi) and same(other.actor.flow, after.actor.flow)
    assert not same(other.actor.one_step, after.actor.one_step)
    other = change("psi")
    assert same(other.actor, after.actor) and not same(other.critic, after.critic)
    other = change("target_psi")
    assert same(other.actor, after.actor) and same(other.critic, after.critic) and not same(other.psi, after.psi)
    flow = moved(agent.actor.flow, rng)
    other, _ = step(eqx.tree_at(lambda a: a.actor.flow, agent, flow), data)
    assert same(other.psi, after.psi) and same(other.critic, after.critic)


def test_the_actor_is_fqls_under_this_critic(agent, data, optax_promotion):
    """Without layer norm; flow matching + alpha distillation - Q, the flow taught by the data alone."""
    assert not weights(agent.actor.flow.norms) and not weights(agent.actor.one_step.norms)
    assert weights(agent.critic.members[0].norms) and weights(agent.psi.members[0].norms)
    _, k_actor = jr.split(jr.key(3))
    noise = batch_noise(lambda k: draw_noise(N_A, key=k), k_actor, data)
    _, metrics = step(agent, data)
    q = []
    for i, s in enumerate(np.asarray(data.observations)):
        a = clip1(mu(agent.actor, s, noise.z[i]))
        q += [mlp(member, s, a, norms=True)[0] for member in agent.critic.members]
    np.testing.assert_allclose(metrics["actor_q"], np.mean(q), atol=1e-5)


def test_it_acts_with_the_clipped_policy(agent, getkey):
    loud = eqx.tree_at(lambda a: a.actor.one_step.layers[-1].bias, agent, jnp.array([0.3, 9.0]))
    act, s, key = loud.policy("policy"), jnp.ones(N_S), getkey()
    expected = clip1(mu(loud.actor, np.ones(N_S), np.asarray(jr.normal(key, (N_A,)))))
    np.testing.assert_allclose(act(s, key), expected, atol=1e-5)
    assert act(s, key)[1] == 1 and act(s, getkey())[0] != act(s, key)[0]


# ---------------------------------------------------------------- what is learned


def trained(data: Batch, updates: int) -> Floq:
    fresh = initialise(N_S, N_A, CONFIG, statistics(data))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(updates // 200):
            fresh, _ = train_chunk((data, 200), fresh)
    return fresh


def chain() -> Batch:
    """s0 (reward -2) to s1 (-1) to s2, solved (0, mask 0), from which the data go on to s0. At discount .5 Q is -2.5, -1, 0."""
    rng, which = np.random.default_rng(17), np.arange(60) % 3
    one_hot, f = np.eye(3), lambda x: jnp.asarray(x, jnp.float32)
    a = rng.uniform(-1, 1, (60, N_A))
    rewards, masks = np.array([-2.0, -1, 0])[which], np.array([1.0, 1, 0])[which]
    return Batch(f(one_hot[which]), f(a), f(rewards), f(masks), f(one_hot[(which + 1) % 3]), f(a))


@pytest.mark.parametrize("route", ["flow", "critic"])
def test_values_of_a_chain(route):
    data = chain()
    agent = learned_chain()
    b = edges(statistics(data), 0.5)
    for s, value in zip(np.eye(3), (-2.5, -1, 0)):
        s, a = jnp.asarray(s, jnp.float32), jnp.array([0.1, -0.3])
        if route == "flow":
            starts = jnp.linspace(-0.4, 0, 5)
            Q = jax.vmap(lambda z: integrate(agent.psi, s, a, z, b, 3))(starts)
        else:
            Q = agent.critic(s, a)
        np.testing.assert_allclose(jnp.mean(Q), value, atol=0.2)


_CHAIN = []


def learned_chain() -> Floq:
    if not _CHAIN:
        _CHAIN.append(trained(chain(), 600))
    return _CHAIN[0]


def test_a_bandits_good_action_is_found():
    """Nothing follows; the reward falls with the distance from (.5, -.4). The data are uniform: what is learned beats 4 of 5 of them."""
    rng, f = np.random.default_rng(19), lambda x: jnp.asarray(x, jnp.float32)
    a = rng.uniform(-1, 1, (60, N_A))
    rewards = -2 * np.abs(a - [0.5, -0.4]).sum(1)
    s = np.zeros((60, N_S))
    agent = trained(Batch(f(s), f(a), f(rewards), f(np.zeros(60)), f(s), f(a)), 600)
    actions = jax.vmap(lambda key: agent.policy("policy")(jnp.zeros(N_S), key))(jr.split(jr.key(0), 101))
    assert np.mean(-2 * np.abs(np.asarray(actions) - [0.5, -0.4]).sum(1)) > np.quantile(rewards, 0.8)
    np.testing.assert_allclose(jnp.mean(actions, axis=0), [0.5, -0.4], atol=0.35)


# ---------------------------------------------------------------- settings and checkpoints


@pytest.mark.parametrize("domain", ["cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4"])
def test_paper_settings(domain):
    c = floq.paper(f"{domain}-play-singletask-task2-v0")
    assert Task.parse(c.task).domain == domain
    assert c.alpha_bc == {"puzzle-3x3": 1000, "puzzle-4x4": 1000}.get(domain, 300)
    assert (c.coverage, c.copies, c.critic_flow_steps, c.flow_steps) == (0.1, 8, 8, 10)
    assert (c.lr, c.batch_size, c.steps, c.tau, c.discount) == (3e-4, 256, 1_000_000, 0.005, 0.99)
    assert c.hidden == c.critic_hidden == (512,) * 4 and c.velocity_hidden == (320,) * 4


def test_a_checkpoint_keeps_the_statistics(tmp_path, data):
    agent = initialise(N_S, N_A, CONFIG, DataStatistics(jnp.array(-7.0), jnp.array(-2.0), jnp.array([-0.5, -0.3]), jnp.array([0.2, 0.9])))
    checkpoint.save(tmp_path / "c", agent)
    again = checkpoint.load(tmp_path / "c", CONFIG)
    assert same(agent, again) and float(again.statistics.reward_low) == -7 and again.statistics.action_high.tolist() == [
        np.float32(0.2), np.float32(0.9)
    ]  # fmt: skip
