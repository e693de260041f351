"""PAC against golden numbers, against loops in float64, and on decision processes whose distributions of values are known."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from loops import affine, attend, clip1, feed_forward, first_adam_step, layer_norm, moved, mu, random_batch, same, self_block, weights
from reference import gelu, softmax

from tql import checkpoint
from tql.agent import batch_noise, initialise
from tql.baselines import pac
from tql.baselines.pac import PAC, PerceiverCritic, critic_loss, project
from tql.config import Task
from tql.data import Batch, statistics
from tql.flow_actor import FlowActor, draw_noise
from tql.loop import train_chunk
from tql.optimise import schedule

N_S, N_A, ROWS = 3, 2, 5
TASK = "cube-single-play-singletask-task1-v0"
CONFIG = replace(
    pac.paper(TASK),
    **dict(batch_size=13, discount=0.5, tau=0.1, critic_lr=3e-3, actor_lr=1e-2, weight_decay=0.3, warmup=1, steps=2000, updates_per_call=1),
    **dict(d_model=32, latents=3, latent_blocks=1, v_min=-5.0, hidden=(7,), flow_steps=2, alpha_bc=0.1),
)


# ---------------------------------------------------------------- the projection


@pytest.mark.parametrize("r, discount, expected", [(-1.0, 0.99, [0.296, 0.301, 0.403, 0]), (0.0, 0.0, [0, 0, 0, 1])])
def test_golden_projection(x64, r, discount, expected):
    found = project(jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([-3.0, -2, -1, 0]), jnp.array(r), jnp.array(discount))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def loop_project(p, v_min, r, discount):
    """Every p_i to the index below where it lands and to the one above, by distance."""
    M = len(p)
    target = np.zeros(M)
    for i in range(M):
        b = min(max(r + discount * (v_min + i), v_min), 0.0) - v_min
        lower = int(np.floor(b))
        upper = min(lower + 1, M - 1)
        target[lower] += p[i] * (1 - (b - lower))
        target[upper] += p[i] * (b - lower)
    return target / sum(target)


@pytest.mark.parametrize("r", [0.0, -0.3, -2.0, -4.7, -16.0])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_the_projection_is_that_of_a_loop(x64, r, discount):
    p = softmax(np.random.default_rng(3).normal(size=8))
    z = np.arange(-7.0, 1)
    found = project(jnp.asarray(p), jnp.asarray(z), jnp.array(r), jnp.array(discount))
    np.testing.assert_allclose(found, loop_project(p, -7, r, discount), atol=1e-12)
    if r + discount * -7 >= -7:  # nothing is cut off: the mean is that of r + discount z
        np.testing.assert_allclose(found @ z, r + discount * (p @ z), atol=1e-12)
    if r == -16:
        np.testing.assert_allclose(found, np.eye(8)[0], atol=1e-12)


# ---------------------------------------------------------------- critic and loss, by loops


def loop_cross(block, x, context, heads):
    rows, context = [layer_norm(block.query_norm, row) for row in x], [layer_norm(block.context_norm, row) for row in context]
    return feed_forward(block, [row + read for row, read in zip(x, attend(block.attention, rows, context, heads), strict=True)])


def loop_logits(critic, s, a, heads) -> np.ndarray:
    tokens = [affine(critic.state_map, np.array([s_i])) + np.asarray(critic.positions)[i] for i, s_i in enumerate(s)]
    x = loop_cross(critic.encode, list(np.asarray(critic.latents)), tokens, heads)
    for block in critic.latent_blocks:
        x = self_block(block, x, heads)
    latents = [layer_norm(critic.latent_norm, row) for row in x]
    of_actions = np.concatenate([affine(critic.action_map, np.array([a_i])) for a_i in a])
    query = layer_norm(critic.query_norm, affine(critic.action_query, of_actions))
    read = loop_cross(critic.decode, [query], latents, heads)[0]
    return affine(critic.out, gelu(affine(critic.hidden, layer_norm(critic.out_norm, read))))


def test_the_loss_is_that_of_a_loop(x64, getkey):
    """Two heads of 32 channels, two blocks, three latents, eight values; and Q is the mean of the distribution."""
    rng, discount = np.random.default_rng(5), 0.7
    make = lambda: moved(PerceiverCritic(N_S, N_A, d_model=64, latents=3, latent_blocks=2, v_min=-7.0, key=getkey()), rng, 0.1)
    critic, target_critic = make(), make()
    actor = moved(FlowActor(N_S, N_A, hidden=(7,), flow_steps=2, key=getkey()), rng)
    batch = random_batch(rng, ROWS, N_S, N_A)
    noise = batch_noise(lambda k: draw_noise(N_A, key=k), getkey(), batch)
    loss, mean_q = eqx.filter_jit(critic_loss)(critic, target_critic, actor, batch, noise, discount)

    z = np.arange(-7.0, 1)
    np.testing.assert_array_equal(critic.support, z)
    expected, qs = 0.0, []
    for i in range(ROWS):
        s, a, s_next = (np.asarray(x[i]) for x in (batch.observations, batch.actions, batch.next_observations))
        a_next = clip1(mu(actor, s_next, noise.next_action[i]))
        p_next = softmax(loop_logits(target_critic, s_next, a_next, 2))
        p_target = loop_project(p_next, -7, float(batch.rewards[i]), discount * float(batch.masks[i]))
        p = softmax(loop_logits(critic, s, a, 2))
        expected += -sum(p_target[j] * np.log(p[j]) for j in range(8)) / ROWS
        qs.append(sum(p[j] * z[j] for j in range(8)))
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_allclose(mean_q, np.mean(qs), rtol=1e-9)
    Q = eqx.filter_jit(critic)(batch.observations[0], batch.actions[0])
    np.testing.assert_allclose(Q, [qs[0]], rtol=1e-9)


# ---------------------------------------------------------------- one update


@pytest.fixture(scope="module")
def data() -> Batch:
    return random_batch(np.random.default_rng(7), 13, N_S, N_A)


UPDATE = replace(CONFIG, critic_lr=1.0, actor_lr=0.5, warmup=10)
"""The first update is made at 1 % of these rates."""


@pytest.fixture(scope="module")
def agent(data):
    """With a target that differs from what it follows."""
    fresh = initialise(N_S, N_A, UPDATE, statistics(data))
    return replace(fresh, target_critic=moved(fresh.target_critic, np.random.default_rng(11), 0.1))


@eqx.filter_jit
def step(agent, batch):
    return agent.update(batch, jr.key(3))


def test_one_update(agent, data, optax_promotion):
    """AdamW on the critic's gradient, which decays its maps alone; the target follows the critic from before the update."""
    after, metrics = step(agent, data)
    assert set(metrics) == {"cross_entropy_loss", "q_mean", "flow_loss", "distillation_loss", "actor_q"} and int(after.step) == 1
    noise = batch_noise(lambda k: draw_noise(N_A, key=k), jr.key(3), data)
    gradient = eqx.filter_grad(lambda critic: critic_loss(critic, agent.target_critic, agent.actor, data, noise, 0.5)[0])
    grads = checkpoint.named_arrays(eqx.filter_jit(gradient)(agent.critic))
    before, new = checkpoint.named_arrays(agent.critic), checkpoint.named_arrays(after.critic)
    decayed = {name for name in before if name.endswith(".weight") and "norm" not in name}
    assert len(decayed) == 5 + 3 * 6  # state, action, query, hidden, out; query, key, value, out and the MLP of three blocks
    for name, g in grads.items():
        clear = np.abs(g) > 1e-4
        expected = first_adam_step(before[name], g, 1e-2, 0.3 if name in decayed else 0.0)
        np.testing.assert_allclose(new[name][clear], expected[clear], atol=1e-5, err_msg=name)
    averages = zip(weights(agent.critic), weights(agent.target_critic), weights(after.target_critic), strict=True)
    for online, old, new_target in averages:
        np.testing.assert_allclose(new_target, 0.1 * online + 0.9 * old, atol=1e-6)


def test_the_actor_is_fqls_with_layer_norm_at_its_own_rate(agent, data, optax_promotion):
    after, metrics = step(agent, data)
    assert weights(agent.actor.flow.norms) and weights(agent.actor.one_step.norms)
    assert agent.critic.ensemble == 1
    noise = batch_noise(lambda k: draw_noise(N_A, key=k), jr.key(3), data)
    q = []
    for i, s in enumerate(np.asarray(data.observations)):
        q.append(softmax(loop_logits(agent.critic, s, clip1(mu(agent.actor, s, noise.z[i])), 1)) @ np.arange(-5.0, 1))
    np.testing.assert_allclose(metrics["actor_q"], np.mean(q), atol=1e-4)
    # Adam's first step is the rate itself: 1 % of 0.5 on biases that have a gradient, and decay alone where there is none.
    bias = lambda agent: np.asarray(agent.actor.flow.layers[-1].bias)
    np.testing.assert_allclose(np.abs(bias(after) - bias(agent)), 5e-3, rtol=1e-3)


def test_who_moves_whom(agent, data, optax_promotion):
    """The policy reads the online critic; the critic reads the policy and the target; the flow reads nobody."""
    rng = np.random.default_rng(13)
    after, _ = step(agent, data)
    other, _ = step(replace(agent, target_critic=moved(agent.target_critic, rng)), data)
    assert same(other.actor, after.actor) and not same(other.critic, after.critic)
    other, _ = step(replace(agent, critic=moved(agent.critic, rng)), data)
    assert same(other.actor.flow, after.actor.flow) and not same(other.actor.one_step, after.actor.one_step)
    other, _ = step(eqx.tree_at(lambda a: a.actor.flow, agent, moved(agent.actor.flow, rng)), data)
    assert same(other.critic, after.critic)
    other, _ = step(eqx.tree_at(lambda a: a.actor.one_step, agent, moved(agent.actor.one_step, rng)), data)
    assert not same(other.critic, after.critic) and same(other.target_critic, after.target_critic)


def test_it_acts_with_the_clipped_policy(agent, getkey):
    loud = eqx.tree_at(lambda a: a.actor.one_step.layers[-1].bias, agent, jnp.array([0.3, 9.0]))
    act, s, key = loud.policy("policy"), jnp.ones(N_S), getkey()
    expected = clip1(mu(loud.actor, np.ones(N_S), np.asarray(jr.normal(key, (N_A,)))))
    np.testing.assert_allclose(act(s, key), expected, atol=1e-5)
    assert act(s, key)[1] == 1


# ---------------------------------------------------------------- what is learned


def trained(data: Batch) -> PAC:
    fresh = initialise(N_S, N_A, CONFIG, statistics(data))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            fresh, _ = train_chunk((data, 150), fresh)
    return fresh


def test_distributions_of_a_chain():
    """s0 (reward -2) to s1 (-1) to s2, solved (0, mask 0), from which the data go on to s0. At discount .5 Q is -2.5, -1, 0.

    -1 and 0 are values of the support; -2.5 lies half way between -3 and -2.
    """
    rng, which = np.random.default_rng(17), np.arange(60) % 3
    one_hot, f = np.eye(3), lambda x: jnp.asarray(x, jnp.float32)
    a = rng.uniform(-1, 1, (60, N_A))
    rewards, masks = np.array([-2.0, -1, 0])[which], np.array([1.0, 1, 0])[which]
    agent = trained(Batch(f(one_hot[which]), f(a), f(rewards), f(masks), f(one_hot[(which + 1) % 3]), f(a)))
    # Values -5, -4, -3, -2, -1, 0.
    for s, Q, p in zip(one_hot, (-2.5, -1, 0), ([0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1])):
        s, a = jnp.asarray(s, jnp.float32), jnp.array([0.1, -0.3])
        np.testing.assert_allclose(agent.critic(s, a)[0], Q, atol=0.15)
        np.testing.assert_allclose(jax.nn.softmax(agent.critic.logits(s, a)), p, atol=0.15)


def test_a_bandits_good_action_is_found():
    """Nothing follows; the reward falls with the distance from (.5, -.4). The data are uniform: what is learned beats 4 of 5 of them."""
    rng, f = np.random.default_rng(19), lambda x: jnp.asarray(x, jnp.float32)
    a = rng.uniform(-1, 1, (60, N_A))
    rewards = -2 * np.abs(a - [0.5, -0.4]).sum(1)
    s = np.zeros((60, N_S))
    agent = trained(Batch(f(s), f(a), f(rewards), f(np.zeros(60)), f(s), f(a)))
    actions = jax.vmap(lambda key: agent.policy("policy")(jnp.zeros(N_S), key))(jr.split(jr.key(0), 101))
    assert np.mean(-2 * np.abs(np.asarray(actions) - [0.5, -0.4]).sum(1)) > np.quantile(rewards, 0.8)


# ---------------------------------------------------------------- settings and checkpoints


def test_golden_schedule():
    rate = schedule(1e-4, pac.paper(TASK))
    steps = (0, 5000, 10_000, 255_000, 500_000, 745_000, 990_000, 1_000_000)
    expected = (1.0e-6, 5.05e-5, 1.0e-4, 8.682e-5, 5.5e-5, 2.318e-5, 1.0e-5, 1.0e-5)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=2e-4)


@pytest.mark.parametrize(
    "domain, v_min, alpha_bc",
    [
        ("cube-single", -100, 300), ("cube-double", -200, 300), ("scene", -400, 300),
        ("puzzle-3x3", -300, 1000), ("puzzle-4x4", -900, 1000), ("cube-triple", -300, 300),
    ],
)  # fmt: skip
def test_paper_settings(domain, v_min, alpha_bc):
    c = pac.paper(f"{domain}-play-singletask-task2-v0")
    assert Task.parse(c.task).domain == domain and (c.v_min, c.alpha_bc) == (v_min, alpha_bc)
    assert (c.critic_lr, c.actor_lr, c.weight_decay, c.warmup) == (1e-4, 5e-4, 0.001, 10_000)
    assert (c.batch_size, c.steps, c.tau, c.discount) == (256, 1_000_000, 0.005, 0.99)
    assert (c.d_model, c.latents, c.latent_blocks, c.hidden, c.flow_steps) == (160, 32, 2, (512,) * 4, 10)


@pytest.mark.parametrize("d_model, heads", [(80, 2), (160, 5), (320, 10), (640, 20)])
def test_heads_of_the_scaling_study(d_model, heads, data):
    config = replace(pac.paper("cube-double-play-singletask-task2-v0"), d_model=d_model)
    critic = eqx.filter_eval_shape(lambda: initialise(N_S, N_A, config, statistics(data))).critic
    assert {block.attention.heads for block in (critic.encode, critic.decode, *critic.latent_blocks)} == {heads}
    assert critic.out.weight.shape == (201, d_model // 2)


def test_heads_must_share_the_channels_evenly():
    with pytest.raises(ValueError, match="d_model is 97; it must be a multiple of 3, its number of attention heads"):
        replace(CONFIG, d_model=97)


@pytest.mark.parametrize(
    "domain, smallest",
    [("cube-single", -100), ("cube-double", -200), ("cube-triple", -300), ("scene", -500), ("puzzle-3x3", -900), ("puzzle-4x4", -1600)],
)
def test_the_whole_range_ends_at_the_return_of_failing_for_ever(domain, smallest):
    task = f"{domain}-play-singletask-task4-v0"
    assert pac.paper_whole_range(task) == replace(pac.paper(task), v_min=float(smallest))
    assert PAC.presets["paper-whole-range"](task).v_min <= pac.paper(task).v_min


@pytest.mark.parametrize("v_min", [0.0, 3.0, -2.5])
def test_a_support_that_cannot_be_is_refused(v_min):
    with pytest.raises(ValueError, match="v_min is .* whole number below 0"):
        replace(CONFIG, v_min=v_min)


def test_a_checkpoint_keeps_everything(tmp_path, data):
    agent = moved(initialise(N_S, N_A, CONFIG, statistics(data)), np.random.default_rng(23))
    checkpoint.save(tmp_path / "c", agent)
    again = checkpoint.load(tmp_path / "c", CONFIG)
    assert same(agent, again) and again.critic.v_min == -5
