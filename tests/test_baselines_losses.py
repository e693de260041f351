"""BC, IQL, IFQL, ReBRAC, FBRAC and FQL: every loss against loops of NumPy in float64, every gradient against differences of those loops.

The loops are written from the papers' equations and share no line with the package; sizes are primes, no weight is 0 or 1. Then what is
checked by eye: constant networks, the published settings, the first weights.
"""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref

from tql.agent import batch_noise, initialise, method_class
from tql.baselines import bc, fbrac, fql, ifql, iql, rebrac
from tql.config import Config
from tql.data import Batch, statistics
from tql.flow_actor import Noise, draw_noise, euler
from tql.implicit_value import expectile_loss, q_loss, value_loss
from tql.mlp import MLP, MeanActor, MLPCritic, log_probability
from tql.optimise import schedule

ROWS, N_S, N_A, HIDDEN, CRITIC_HIDDEN, K = 7, 5, 3, (11, 13), (13, 2), 3
TASK = "cube-single-play-singletask-task1-v0"
GAMMA, TAU, LR, KAPPA = 0.9, 0.05, 0.01, 0.7
NETWORKS = ("value", "critic", "target_critic", "actor", "target_actor", "flow")

pytestmark = pytest.mark.usefixtures("optax_promotion")


# ---------------------------------------------------------------- the loops


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(net, *inputs):
    """Affine, GELU, then the norm; the last map alone."""
    x = np.concatenate([np.atleast_1d(part) for part in inputs])
    for layer, norm in zip(net.layers[:-1], net.norms):
        x = gelu(np.asarray(layer.weight) @ x + np.asarray(layer.bias))
        if isinstance(norm, eqx.nn.LayerNorm):
            x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-6) * np.asarray(norm.weight) + np.asarray(norm.bias)
    return np.asarray(net.layers[-1].weight) @ x + np.asarray(net.layers[-1].bias)


def values(critic, s, a):
    return [mlp(member, s, a)[0] for member in critic.members]


def walk(v, s, x):
    """The flow's action: K steps, clipped at the end."""
    for i in range(K):
        x = x + mlp(v, s, x, i / K) / K
    return np.clip(x, -1, 1)


def mean(terms):
    return sum(terms) / len(terms)


def rows_of(batch, noise):
    """s, a, r, m, s', a' and the noise of one row after the other."""
    for i in range(ROWS):
        columns = (batch.observations, batch.actions, batch.rewards, batch.masks, batch.next_observations, batch.next_actions)
        yield (*(np.asarray(x[i]) for x in columns), jax.tree.map(lambda x: np.asarray(x[i]), noise))


def squared_error(critic, pairs_and_targets, over_members):
    return mean([over_members([(Q - y) ** 2 for Q in values(critic, s, a)]) for s, a, y in pairs_and_targets])


def mean_q(critic, batch):
    return mean([mean(values(critic, np.asarray(s), np.asarray(a))) for s, a in zip(batch.observations, batch.actions)])


def nll(mu, a):
    return 0.5 * sum((a - mu) ** 2) + len(a) / 2 * math.log(2 * math.pi)


def flow_matching(v, rows):
    losses = []
    for s, a, *_, z in rows:
        x_t = (1 - z.t) * z.x_0 + z.t * a
        losses += list((mlp(v, s, x_t, z.t) - (a - z.x_0)) ** 2)
    return mean(losses)


# A loss is a function of the agent whose network moves, and of the one that is frozen: (loss, what is logged of it).


def loss_bc(moving, frozen, batch, noise):
    loss = mean([nll(mlp(moving.actor.net, s), a) for s, a, *_ in rows_of(batch, noise)])
    return loss, {"actor_loss": loss}


def loss_value(moving, frozen, batch, noise):
    losses, v = [], []
    for s, a, *_ in rows_of(batch, noise):
        v.append(mlp(moving.value, s)[0])
        u = min(values(frozen.target_critic, s, a)) - v[-1]
        losses.append(KAPPA * u**2 if u >= 0 else (1 - KAPPA) * u**2)
    return mean(losses), {"value_loss": mean(losses), "v_mean": mean(v)}


def loss_implicit_q(moving, frozen, batch, noise):
    targets = [(s, a, r + GAMMA * m * mlp(frozen.value, s_next)[0]) for s, a, r, m, s_next, *_ in rows_of(batch, noise)]
    loss = squared_error(moving.critic, targets, sum)
    return loss, {"td_loss": loss, "q_mean": mean_q(moving.critic, batch)}


def loss_weighted_regression(moving, frozen, batch, noise):
    losses, weights = [], []
    for s, a, *_ in rows_of(batch, noise):
        advantage = min(values(frozen.critic, s, a)) - mlp(frozen.value, s)[0]
        weights.append(min(math.exp(frozen.config.alpha * advantage), 100))
        losses.append(weights[-1] * nll(mlp(moving.actor.net, s), a))
    assert 100 in weights and min(weights) < 50, "rows on both sides of the cap"
    return mean(losses), {"actor_loss": mean(losses), "weight": mean(weights)}


def loss_flow(moving, frozen, batch, noise):
    loss = flow_matching(moving.flow, rows_of(batch, noise))
    return loss, {"flow_loss": loss}


def loss_rebrac_critic(moving, frozen, batch, noise):
    targets = []
    for s, a, r, m, s_next, a_plus, epsilon in rows_of(batch, noise):
        n = np.clip(0.2 * epsilon, -0.5, 0.5)
        a_next = np.clip(np.tanh(mlp(frozen.target_actor.net, s_next)) + n, -1, 1)
        inside = min(values(frozen.target_critic, s_next, a_next)) - frozen.config.alpha_critic * sum((a_next - a_plus) ** 2)
        targets.append((s, a, r + GAMMA * m * inside))
    loss = squared_error(moving.critic, targets, mean)
    return loss, {"td_loss": loss, "q_mean": mean_q(moving.critic, batch)}


def loss_rebrac_actor(moving, frozen, batch, noise):
    def parts(actor):
        acted = [(s, np.tanh(mlp(actor.net, s)), a) for s, a, *_ in rows_of(batch, noise)]
        return [min(values(frozen.critic, s, pi)) for s, pi, _ in acted], [sum((pi - a) ** 2) for _, pi, a in acted]

    q, tie = parts(moving.actor)
    unit = mean([abs(x) for x in parts(frozen.actor)[0]])
    loss = -mean(q) / unit + frozen.config.alpha_actor * mean(tie)
    return loss, {"actor_objective": loss, "actor_q": mean(q), "tie_loss": mean(tie)}


def loss_on_next_actions(moving, frozen, batch, noise, act):
    """The critic of FBRAC and FQL: the mean of the target's members at the policy's next action."""
    targets = []
    for s, a, r, m, s_next, _, z in rows_of(batch, noise):
        targets.append((s, a, r + GAMMA * m * mean(values(frozen.target_critic, s_next, act(s_next, z.next_action)))))
    loss = squared_error(moving.critic, targets, mean)
    return loss, {"td_loss": loss, "q_mean": mean_q(moving.critic, batch)}


def loss_fbrac_critic(moving, frozen, batch, noise):
    return loss_on_next_actions(moving, frozen, batch, noise, lambda s, z: walk(frozen.flow, s, z))


def loss_fbrac_flow(moving, frozen, batch, noise):
    matching = flow_matching(moving.flow, rows_of(batch, noise))
    q = mean([mean(values(frozen.critic, s, walk(moving.flow, s, z.z))) for s, *_, z in rows_of(batch, noise)])
    return frozen.config.alpha_bc * matching - q, {"flow_loss": matching, "actor_q": q}


def loss_fql_critic(moving, frozen, batch, noise):
    act = lambda s, z: np.clip(mlp(frozen.actor.one_step, s, z), -1, 1)
    return loss_on_next_actions(moving, frozen, batch, noise, act)


def loss_fql_actor(moving, frozen, batch, noise):
    matching = flow_matching(moving.actor.flow, rows_of(batch, noise))
    distances, q, outside = [], [], []
    for s, *_, z in rows_of(batch, noise):
        mu = mlp(moving.actor.one_step, s, z.z)
        distances += list((mu - walk(frozen.actor.flow, s, z.z)) ** 2)
        q.append(mean(values(frozen.critic, s, np.clip(mu, -1, 1))))
        outside += list(abs(mu) > 1)
    assert 0 < sum(outside) < len(outside), "components on both sides of the clip"
    loss = matching + frozen.config.alpha_bc * mean(distances) - mean(q)
    return loss, {"flow_loss": matching, "distillation_loss": mean(distances), "actor_q": mean(q)}


LOSSES = {
    "bc": {"actor": loss_bc},
    "iql": {"value": loss_value, "critic": loss_implicit_q, "actor": loss_weighted_regression},
    "ifql": {"value": loss_value, "critic": loss_implicit_q, "flow": loss_flow},
    "rebrac": {"critic": loss_rebrac_critic, "actor": loss_rebrac_actor},
    "fbrac": {"critic": loss_fbrac_critic, "flow": loss_fbrac_flow},
    "fql": {"critic": loss_fql_critic, "actor": loss_fql_actor},
}
SETTINGS = {
    "bc": bc.BCConfig(task=TASK),
    "iql": iql.IQLConfig(task=TASK, kappa=KAPPA, alpha=7.0),
    "ifql": ifql.IFQLConfig(task=TASK, kappa=KAPPA, flow_steps=K),
    "rebrac": rebrac.ReBRACConfig(task=TASK, alpha_actor=0.7, alpha_critic=0.3),
    "fbrac": fbrac.FBRACConfig(task=TASK, flow_steps=K, critic_hidden=CRITIC_HIDDEN, alpha_bc=1.7),
    "fql": fql.FQLConfig(task=TASK, flow_steps=K, critic_hidden=CRITIC_HIDDEN, alpha_bc=1.7),
}
for name, config in SETTINGS.items():
    SETTINGS[name] = replace(config, discount=GAMMA, tau=TAU, lr=LR, hidden=HIDDEN, batch_size=ROWS)


def some_batch(rng):
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape))
    masks = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    return Batch(draw(ROWS, N_S), draw(ROWS, N_A), draw(ROWS) - 1, masks, draw(ROWS, N_S), draw(ROWS, N_A))


def some_agent(method, rng):
    """All weights drawn, biases and norms too, and targets that are no copies. ReBRAC: about to make an even update."""
    batch = some_batch(rng)
    agent = initialise(N_S, N_A, SETTINGS[method], statistics(batch))
    for network in NETWORKS:
        if hasattr(agent, network):
            moved = jax.tree.map(lambda x: x + jnp.array(0.4 * rng.normal(size=x.shape)), getattr(agent, network))
            agent = eqx.tree_at(lambda a: getattr(a, network), agent, moved)
    return eqx.tree_at(lambda a: a.step, agent, jnp.ones_like(agent.step)), batch


def moved(agent, network, direction, h):
    there = jax.tree.map(lambda x, d: x + h * d, getattr(agent, network), direction)
    return eqx.tree_at(lambda a: getattr(a, network), agent, there)


def noise_of(method, batch, key):
    """What the update draws from this key."""
    normal = lambda k: jr.normal(k, (N_A,))
    return batch_noise(normal if method == "rebrac" else lambda k: draw_noise(N_A, key=k), key, batch)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", LOSSES)
def test_losses_gradients_and_the_step(method):
    """Losses to 1e-10; the gradient that each optimiser got (10 times Adam's first moment) against differences of that network's own
    loss, so nothing reaches a network from another's; Adam's first step; targets after the networks *before* the step."""
    rng, key = np.random.default_rng(11), jr.key(3)
    agent, batch = some_agent(method, rng)
    noise = noise_of(method, batch, key)
    after, metrics = eqx.filter_jit(lambda agent, batch, key: agent.update(batch, key))(agent, batch, key)
    logged = {}
    for network, loss in LOSSES[method].items():
        _, parts = loss(agent, agent, batch, noise)
        logged |= parts
        (mu,) = [x.mu for x in jax.tree.leaves(getattr(after, f"{network}_state"), is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]
        for _ in range(2):
            direction = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), getattr(agent, network))
            ends = [loss(moved(agent, network, direction, h), agent, batch, noise)[0] for h in (1e-6, -1e-6)]
            slope = sum(10 * np.sum(np.asarray(g) * np.asarray(d)) for g, d in zip(jax.tree.leaves(mu), jax.tree.leaves(direction)))
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7, err_msg=network)
        old, new = jax.tree.leaves(getattr(agent, network)), jax.tree.leaves(getattr(after, network))
        for w, w_new, m in zip(old, new, jax.tree.leaves(mu)):
            np.testing.assert_allclose(w_new, w - LR * 10 * m / (abs(10 * m) + 1e-8), rtol=0, atol=1e-6)
    assert metrics.keys() == logged.keys()
    for name, x in logged.items():
        np.testing.assert_allclose(metrics[name], x, rtol=1e-10, err_msg=name)
    for network in ("critic", "actor"):
        if hasattr(agent, f"target_{network}"):
            online, target, result = (jax.tree.leaves(x) for x in (getattr(agent, network), getattr(agent, f"target_{network}"),
                                                                  getattr(after, f"target_{network}")))  # fmt: skip
            for theta, theta_bar, x in zip(online, target, result):
                np.testing.assert_allclose(x, TAU * theta + (1 - TAU) * theta_bar, rtol=1e-12)


# ---------------------------------------------------------------- by eye


def constant(critic, *numbers):
    """A critic without hidden layers whose members are these constants."""
    return linear(critic, *((0.0, number) for number in numbers))


def linear(critic, *members):
    """Without hidden layers: Q_k = slope (a_1 + a_2 + ...) + offset."""
    n_a = 1
    for k, (slope, offset) in enumerate(members):
        row = jnp.zeros_like(critic.members[k].layers[0].weight).at[0, -n_a:].set(slope)
        where = lambda c: (c.members[k].layers[0].weight, c.members[k].layers[0].bias)
        critic = eqx.tree_at(where, critic, (row, jnp.full((1,), offset)))
    return critic


def still(net, *offsets):
    """A network without hidden layers that is this constant."""
    (layer,) = net.layers
    return eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[0].bias), net, (jnp.zeros_like(layer.weight), jnp.array(offsets)))


def one_row(a=0.5, r=-1.0, m=1.0, a_next=0.5):
    return Batch(jnp.ones((1, 2)), jnp.full((1, 1), a), jnp.full(1, r), jnp.full(1, m), jnp.ones((1, 2)), jnp.full((1, 1), a_next))


@pytest.fixture
def affine(getkey):
    """A critic, V, a mean and a velocity for n_s = 2, n_a = 1, none with hidden layers."""
    critic, V, actor = MLPCritic(2, 1, (), key=getkey()), MLP(2, 1, (), key=getkey()), MeanActor(2, 1, (), key=getkey())
    return critic, V, actor, MLP(4, 1, (), key=getkey())


def test_expectile():
    loss = lambda u: float(expectile_loss(jnp.array(u), 0.9))
    assert (loss(2.0), loss(-2.0), loss(0.0)) == (pytest.approx(3.6), pytest.approx(0.4), 0)


def test_value_and_q_losses_by_hand(affine):
    """Target members 5 and 3, V = 1: u = 3 - 1 = 2, 0.9 * 4 = 3.6. V(s') = 1, y = -1 + 0.9 * 1 = -0.1; (2.1)^2 + (4.1)^2 = 21.22."""
    critic, V, *_ = affine
    loss, v = value_loss(still(V, 1.0), constant(critic, 5.0, 3.0), one_row(), 0.9)
    assert (float(loss), float(v)) == pytest.approx((3.6, 1))
    loss, q = q_loss(constant(critic, 2.0, 4.0), still(V, 1.0), one_row(), 0.9)
    assert (float(loss), float(q)) == pytest.approx((21.22, 3))
    solved, _ = q_loss(constant(critic, 2.0, 4.0), still(V, 1.0), one_row(r=0.0, m=0.0), 0.9)
    assert float(solved) == pytest.approx(4 + 16), "nothing follows a solved state"


def test_weights_of_the_regression(affine):
    """Members 3 and 1, V = 0: the advantage is 1. At alpha 10 e^10 is capped at 100; at alpha 0.5 it is e^0.5, not e^2."""
    critic, V, actor, _ = affine
    actor = eqx.tree_at(lambda a: a.net, actor, still(actor.net, 0.5))
    weight = lambda alpha: iql.actor_loss(actor, constant(critic, 3.0, 1.0), still(V, 0.0), one_row(a=1.5), alpha)
    loss, w = weight(10.0)
    assert float(w) == 100 and float(loss) == pytest.approx(100 * (0.5 + 0.5 * math.log(2 * math.pi)))
    assert float(weight(0.5)[1]) == pytest.approx(math.exp(0.5))


def test_log_probability():
    """Of (1, -1) under N(0, I): density e^-1 / (2 pi)."""
    assert float(log_probability(jnp.zeros(2), jnp.array([1.0, -1.0]))) == pytest.approx(math.log(math.exp(-1) / (2 * math.pi)))


def test_euler_numbers(affine):
    """v = 1 from 0 ends at 1, v = 3 at the clip, v = t at the mean of 0, 0.1, ..., 0.9."""
    *_, v = affine
    end = lambda v: euler(v, jnp.ones(2), jnp.zeros(1), 10)[0]
    assert float(end(still(v, 1.0))) == pytest.approx(1) and float(end(still(v, 3.0))) == 1 and float(end(still(v, -3.0))) == -1
    of_time = eqx.tree_at(lambda n: n.layers[0].weight, still(v, 0.0), jnp.array([[0.0, 0.0, 0.0, 1.0]]))
    assert float(end(of_time)) == pytest.approx(0.45)


@pytest.mark.parametrize(("epsilon", "a_next"), [(1.0, 0.2), (-2.0, -0.4), (3.0, 0.5), (-100.0, -0.5)])
def test_rebrac_s_noise_is_scaled_then_clipped(epsilon, a_next, affine):
    """pi = 0, target members a and 2a, alpha_2 = 0.5, a+ = 0.5: y = -1 + 0.9 (min(a', 2a') - 0.5 (a' - 0.5)^2); Q = 0."""
    critic, _, actor, _ = affine
    actor = eqx.tree_at(lambda a: a.net, actor, still(actor.net, 0.0))
    target = linear(critic, (1.0, 0.0), (2.0, 0.0))
    loss, _ = rebrac.critic_loss(constant(critic, 0.0, 0.0), target, actor, one_row(), jnp.full((1, 1), epsilon), 0.9, 0.5)
    y = -1 + 0.9 * (min(a_next, 2 * a_next) - 0.5 * (a_next - 0.5) ** 2)
    assert float(loss) == pytest.approx(y**2)


def test_rebrac_s_next_action_is_clipped(affine):
    """pi = tanh(2) = 0.964 and noise 0.5: a' = 1, not 1.464."""
    critic, _, actor, _ = affine
    actor = eqx.tree_at(lambda a: a.net, actor, still(actor.net, 2.0))
    target = linear(critic, (1.0, 0.0), (1.0, 0.0))
    loss, _ = rebrac.critic_loss(constant(critic, 0.0, 0.0), target, actor, one_row(r=0.0), jnp.full((1, 1), 9.0), 0.9, 0.0)
    assert float(loss) == pytest.approx(0.81)


def test_rebrac_s_actor_by_hand(affine):
    """pi = tanh(mu) = 0.5, members 4a and 6a: q = 2, -2 / 2 + 0.7 (0.5 - 0.1)^2."""
    critic, _, actor, _ = affine
    actor = eqx.tree_at(lambda a: a.net, actor, still(actor.net, math.atanh(0.5)))
    loss, (q, tie) = rebrac.actor_loss(actor, linear(critic, (4.0, 0.0), (6.0, 0.0)), one_row(a=0.1), 0.7)
    assert (float(loss), float(q), float(tie)) == pytest.approx((-1 + 0.7 * 0.16, 2, 0.16))


def weights(agent, network):
    return [np.asarray(x) for x in jax.tree.leaves(getattr(agent, network))]


@pytest.mark.usefixtures("x64")
def test_rebrac_moves_its_actor_and_averages_at_even_updates():
    """Update 1: the critic alone. Update 2: all. Update 3: averages rest to the bit; the actor coasts on Adam's moments:
    m = 0.09 g, v = 0.000999 g^2, a step of lr (0.09 / 0.271) / sqrt(0.000999 / 0.002997001)."""
    rng = np.random.default_rng(2)
    agent, batch = some_agent("rebrac", rng)
    agents = [eqx.tree_at(lambda a: a.step, agent, jnp.zeros_like(agent.step))]
    update = eqx.filter_jit(lambda agent, key: agent.update(batch, key)[0])
    for k in range(3):
        agents.append(update(agents[-1], jr.key(k)))
    moves = lambda k, network: [not np.array_equal(x, y) for x, y in zip(weights(agents[k - 1], network), weights(agents[k], network))]
    assert [all(moves(k, "critic")) for k in (1, 2, 3)] == [True] * 3
    for network in ("target_critic", "target_actor"):
        assert not any(moves(1, network)) and all(moves(2, network)) and not any(moves(3, network))
    assert not any(moves(1, "actor")) and all(moves(2, "actor"))
    (mu,) = [x.mu for x in jax.tree.leaves(agents[2].actor_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]
    coast = LR * (0.09 / 0.271) / math.sqrt(0.000999 / 0.002997001)
    for old, new, m in zip(weights(agents[2], "actor"), weights(agents[3], "actor"), jax.tree.leaves(mu)):
        np.testing.assert_allclose(new - old, -coast * np.sign(m), rtol=2e-4)


def test_the_gradient_of_fbrac_runs_through_all_steps(affine):
    """v = c, members 2a and 4a: each of the ten steps adds c / 10, so dQ/dc = 3; through the last step alone it would be 0.3."""
    critic, *_, v = affine
    critic, zero = linear(critic, (2.0, 0.0), (4.0, 0.0)), jnp.zeros((1, 1))
    slope = lambda c: eqx.filter_grad(fbrac.flow_loss, has_aux=True)(
        still(v, c), critic, one_row(), Noise(zero, zero, jnp.zeros(1), zero), 0.0, 10
    )[0].layers[0].bias.item()  # fmt: skip
    assert slope(0.5) == pytest.approx(-3) and slope(1.5) == 0, "the clip at the end stops it"


def test_fbrac_and_fql_take_the_mean_of_the_target(affine, getkey):
    """Members 1 and 3: y = -1 + 0.9 * 2 = 0.8; with Q = (0.8, 2.8) the mean of 0 and 4 is 2 (IQL's sum would be 4)."""
    critic, *_, v = affine
    online, target, zero = constant(critic, 0.8, 2.8), constant(critic, 1.0, 3.0), jnp.zeros((1, 1))
    noise = Noise(zero, zero, jnp.zeros(1), zero)
    assert float(fbrac.critic_loss(online, target, v, one_row(), noise, 0.9, 10)[0]) == pytest.approx(2)
    actor = method_class("fql").initialise(2, 1, replace(SETTINGS["fql"], hidden=()), statistics(one_row())).actor
    assert float(fql.critic_loss(online, target, actor, one_row(), noise, 0.9)[0]) == pytest.approx(2)


def test_ifql_takes_the_best_of_its_draws_by_the_smaller_online_value(affine):
    """No velocity: the candidates are the clipped noise. Online members a and -a, so the smaller is -|a|: the draw nearest to 0 wins.

    By their mean all are alike; by the targets (a and a) the largest wins.
    """
    critic, *_, v = affine
    agent = initialise(2, 1, replace(SETTINGS["ifql"], hidden=(), candidates=31), statistics(one_row()))
    online, target = linear(critic, (1.0, 0.0), (-1.0, 0.0)), linear(critic, (1.0, 0.0), (1.0, 0.0))
    agent = eqx.tree_at(lambda a: (a.flow, a.critic, a.target_critic), agent, (still(v, 0.0), online, target))
    for seed in range(3):
        z = np.asarray(jr.normal(jr.key(seed), (31, 1)))
        np.testing.assert_array_equal(agent.policy("policy")(jnp.ones(2), jr.key(seed)), z[np.argmin(abs(z))])
    upwards = eqx.tree_at(lambda a: a.critic, agent, target)
    assert upwards.policy("policy")(jnp.ones(2), jr.key(0)).item() == 1, "the largest of 31 normal draws, clipped"


# ---------------------------------------------------------------- the first weights


def test_first_weights():
    """Glorot: uniform within sqrt(6 / (in + out)); a mean's last layer a tenth of that; no bias."""
    net, mean_net = MLP(53, 59, (61, 67), key=jr.key(0)), MeanActor(53, 59, (61, 67), key=jr.key(1)).net
    for layers, last in ((net.layers, 1.0), (mean_net.layers, 0.1)):
        for layer, scale in zip(layers, (1.0, 1.0, last)):
            bound = scale * math.sqrt(6 / sum(layer.weight.shape))
            assert 0.99 * bound < np.abs(layer.weight).max() <= bound
            assert np.std(layer.weight) == pytest.approx(bound / math.sqrt(3), rel=0.05) and not np.any(layer.bias)
    assert ref.glorot_uniform_std(53, 61) == pytest.approx(math.sqrt(6 / (53 + 61)) / math.sqrt(3))


def test_the_norm_comes_after_the_activation(getkey):
    """Hidden units +1 and -1: gelu 0.841192 and -0.158808 (tanh's form; erf's is 0.841345), normalised +1 and -1; the first is read.

    The norm before the activation would give 0.841.
    """
    for layer_norm, expected in ((True, 1.0), (False, 0.841192)):
        net = MLP(1, 1, (2,), layer_norm=layer_norm, key=getkey())
        weights = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 0.0]])
        net = eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[1].weight), net, weights)
        assert net(jnp.ones(1)).item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("method", LOSSES)
def test_critics_are_normalised_and_actors_are_not(method):
    agent = initialise(N_S, N_A, SETTINGS[method], statistics(some_batch(np.random.default_rng(0))))
    find = lambda tree: [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, MLP)) if isinstance(x, MLP)]
    for network in NETWORKS:
        for net in find(getattr(agent, network, None)):
            kinds = {type(norm) for norm in net.norms}
            assert kinds == ({eqx.nn.LayerNorm} if network in ("value", "critic", "target_critic") else {eqx.nn.Identity})
            assert all(norm.eps == 1e-6 for norm in net.norms if isinstance(norm, eqx.nn.LayerNorm))
            sizes = [layer.d_out for layer in net.layers[:-1]]
            critic_sizes = SETTINGS[method].critic_hidden if method in ("fbrac", "fql") else HIDDEN
            assert sizes == list(critic_sizes if "critic" in network else HIDDEN)
    if method != "bc":
        one, other = agent.critic.members
        assert not np.array_equal(one.layers[0].weight, other.layers[0].weight), "two members, each with weights of its own"


# ---------------------------------------------------------------- the published settings

DOMAINS = ("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4", "cube-triple")
PAPER = {
    "bc": {},
    "iql": {"alpha": (1.0, 0.3, 10.0, 10.0, 3.0, 10.0), "discount": (0.99, 0.99, 0.99, 0.99, 0.99, 0.995)},
    "rebrac": {
        "alpha_actor": (1.0, 0.1, 0.1, 0.3, 0.3, 0.03),
        "alpha_critic": (0.0, 0.0, 0.01, 0.01, 0.01, 0.0),
        "discount": (0.99, 0.99, 0.99, 0.99, 0.99, 0.995),
    },
    "fbrac": {"alpha_bc": (100.0, 100.0, 100.0, 100.0, 300.0, 100.0), "discount": (0.99, 0.99, 0.99, 0.99, 0.99, 0.995)},
    "ifql": {"candidates": (32,) * 6, "discount": (0.99, 0.99, 0.99, 0.99, 0.99, 0.995)},
    "fql": {"alpha_bc": (300.0, 300.0, 300.0, 1000.0, 1000.0, 300.0)},
    "floq": {"alpha_bc": (300.0, 300.0, 300.0, 1000.0, 1000.0, 300.0), "coverage": (0.1,) * 6},
    "q-transformer": {"lr": (2e-5,) * 6},
    "pac": {
        "alpha_bc": (300.0, 300.0, 300.0, 1000.0, 1000.0, 300.0),
        "v_min": (-100.0, -200.0, -400.0, -300.0, -900.0, -300.0),
        "critic_lr": (1e-4,) * 6,
        "actor_lr": (5e-4,) * 6,
    },
}


@pytest.mark.parametrize("method", PAPER)
@pytest.mark.parametrize("number", range(6), ids=DOMAINS)
def test_the_paper_s_settings(method, number):
    config = method_class(method).presets["paper"](f"{DOMAINS[number]}-play-singletask-task2-v0")
    for name, by_domain in PAPER[method].items():
        assert getattr(config, name) == by_domain[number], name
    assert "discount" in PAPER[method] or config.discount == 0.99
    assert (config.steps, config.batch_size, config.tau) == (1_000_000, 256, 0.005)
    assert (config.evaluate_every, config.episodes) == (100_000, 50)
    common = dict(hidden=(512,) * 4, critic_hidden=(512,) * 4, flow_steps=10, kappa=0.9)
    for name, x in common.items():
        assert getattr(config, name, x) == x, name
    if method in LOSSES:
        assert config.lr == 3e-4


def test_the_learning_rate_s_schedule():
    """A peak of 1e-4, warm-up 10,000 of 1,000,000."""
    rate = schedule(1e-4, Config(task=TASK))
    steps = (0, 5_000, 10_000, 255_000, 500_000, 745_000, 990_000, 1_000_000)
    golden = (1.0e-6, 5.05e-5, 1.0e-4, 8.682e-5, 5.5e-5, 2.318e-5, 1.0e-5, 1.0e-5)
    np.testing.assert_allclose([float(rate(step)) for step in steps], golden, rtol=1e-4)
