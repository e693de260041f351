"""One update and a chunk of them: determinism, one compilation, who moves whom, and critics and actors that learn what is known."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import compiled_as_shipped
from jaxtyping import TypeCheckError

from tql import loop
from tql.config import ActorConfig, Config, ControlConfig, CriticConfig
from tql.data import Batch, sample
from tql.flow_actor import draw_noise

N_S, N_A, ROWS = 3, 2, 13
CONFIG = Config(
    task="cube-single-play-singletask-task1-v0",
    steps=40,
    warmup=3,
    batch_size=5,
    tau=0.1,
    critic_lr=1e-2,
    actor_lr=1e-2,
    temperature_lr=1e-2,
    updates_per_call=1,
    critic=CriticConfig(d_model=4, heads=2, layers=1),
    actor=ActorConfig(hidden=(7,), flow_steps=2, alpha_bc=10.0),
    control=ControlConfig(target=((1.0, 1.2),)),
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def random_data(rows=ROWS):
    """Nothing follows any row, so that the TD target of a row is its reward: a batch can be read off its mean."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    states, actions = draw(rows, N_S), draw(rows, N_A)
    return Batch(states, actions, draw(rows), jnp.zeros(rows), draw(rows, N_S), draw(rows, N_A))


@pytest.fixture(scope="module")
def data():
    return random_data()


def fresh(config=CONFIG):
    return loop.initialise(N_S, N_A, config)


update = eqx.filter_jit(loop.update)
draw = eqx.filter_jit(sample)


def arrays(tree):
    """Every array of a tree as numpy, keys as their data."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [np.asarray(jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def same(one, other):
    return all(np.array_equal(x, y) for x, y in zip(arrays(one), arrays(other), strict=True))


def train(config, data, *chunks):
    """A fresh agent after these chunks, and the metrics of all updates."""
    agent, history = fresh(config), []
    for updates in chunks:
        agent, metrics = loop.train_chunk((data, updates), agent)
        history.append({name: np.asarray(x) for name, x in metrics.items()})
    return agent, {name: np.concatenate([metrics[name] for metrics in history]) for name in history[0]}


# ---------------------------------------------------------------- a chunk is a loop of updates


@pytest.fixture(scope="module")
def six(data):
    with jax.numpy_dtype_promotion("standard"):
        return train(CONFIG, data, 3, 3)


@pytest.fixture(scope="module")
def other(data):
    """Another seed, in three chunks of 2, and how often `update` was traced, which happens when a chunk is compiled."""
    traces = []
    original = loop.update
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(loop, "update", lambda *arguments: traces.append(1) or original(*arguments))
        return *train(replace(CONFIG, seed=1), data, 2, 2, 2), len(traces)


@compiled_as_shipped
def test_chunks_are_updates_by_hand_bitwise(data, six):
    """As a reader would write it; and two chunks of 3 are six updates."""
    agent = fresh()
    for k in range(6):
        k_batch, k_update = jr.split(jr.fold_in(agent.key, k))
        agent, metrics = update(agent, draw(data, CONFIG.batch_size, k_batch), k_update)
        for name, x in metrics.items():
            np.testing.assert_array_equal(six[1][name][k], x, err_msg=name)
    assert same(agent, six[0])
    assert int(agent.step) == 6


def test_every_part_has_moved(six):
    before, after = fresh(), six[0]
    for part in ("critic", "target_critic", "controller"):
        assert not same(getattr(before, part), getattr(after, part))
    assert not same(before.actor.flow, after.actor.flow) and not same(before.actor.one_step, after.actor.one_step)


def test_same_seed_same_run(data, six):
    again, metrics = train(CONFIG, data, 3, 3)
    assert same(again, six[0])
    assert all(np.array_equal(metrics[name], six[1][name]) for name in metrics)


def test_another_seed_is_another_run(six, other):
    """From the first batch on: with nothing to follow, the mean target is the mean reward of the batch."""
    agent, metrics, _ = other
    assert not np.isclose(metrics["target_mean"], six[1]["target_mean"]).any()
    assert not same(agent.critic, six[0].critic)
    assert not same(fresh(), fresh(replace(CONFIG, seed=1)))


def test_one_compilation_for_many_chunks(other):
    agent, _, traces = other
    assert int(agent.step) == 6 and traces == 1


def test_batches_depend_on_seed_and_step_alone(data, six):
    """Not on the weights, nor on when the run was cut in chunks; every update has another one."""
    agent = fresh()
    agent = eqx.tree_at(lambda a: a.critic.q_heads[0].out.bias, agent, jnp.ones(1))
    _, metrics = loop.train_chunk((data, 3), agent)
    np.testing.assert_array_equal(metrics["target_mean"], six[1]["target_mean"][:3])
    assert not np.isclose(metrics["td_loss"], six[1]["td_loss"][:3]).any()
    assert len(set(six[1]["target_mean"].tolist())) == 6


def test_a_donated_agent_is_gone(data):
    """The data are kept, the agent is not: its memory is the new one's."""
    agent = fresh()
    loop.train_chunk((data, 3), agent)
    assert not data.rewards.is_deleted()
    with pytest.raises((RuntimeError, ValueError), match="deleted|donated"):
        loop.train_chunk((data, 3), agent)


# ---------------------------------------------------------------- who moves whom


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"critic_lr": 0.02}, "critic"),
        ({"temperature_lr": 0.02}, "controller"),
        ({"actor": replace(CONFIG.actor, alpha_bc=1.0)}, "actor"),
        ({"tau": 0.2}, "target_critic"),
    ],
)
def test_each_loss_moves_one_part(data, change, moved):
    """One update with one setting changed: that part ends elsewhere, all others bitwise where they were.

    The target starts as the critic's copy, so it is moved away first: else there is nothing to follow.
    """

    def one_update(config):
        agent = fresh(config)
        agent = eqx.tree_at(lambda a: a.target_critic.q_heads[0].out.bias, agent, jnp.ones(1))
        return update(agent, draw(data, CONFIG.batch_size, jr.key(1)), jr.key(0))[0]

    plain, changed = one_update(CONFIG), one_update(replace(CONFIG, **change))
    for part in ("critic", "target_critic", "actor", "controller"):
        assert same(getattr(plain, part), getattr(changed, part)) == (part != moved), part


def test_gradients_are_of_the_first_argument(data):
    """What `filter_grad` returns has the structure and shapes of what learns, and nothing of what is held still."""
    a = fresh()
    noise = jax.vmap(lambda k: draw_noise(N_A, key=k))(jr.split(jr.key(0), ROWS))
    H = jnp.array([[0.5, 0.5]])
    for loss, learns, *held in (
        (loop.critic_loss, a.critic, a.target_critic, a.actor, a.controller, data, noise, 0.9),
        (loop.temperature_loss, a.controller, H),
        (loop.actor_loss, a.actor, a.critic, data, noise, 1.0),
    ):
        grads = eqx.filter_eval_shape(eqx.filter_grad(loss, has_aux=True), learns, *held)[0]
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, eqx.filter(tree, lambda x: hasattr(x, "shape")))
        assert shapes(grads) == shapes(learns)


def test_polyak_in_closed_form():
    """Towards a critic that stands still the target covers 1 - (1 - tau)^k of the way in k updates."""
    still, start, tau = fresh().critic, fresh(replace(CONFIG, seed=1)).critic, 0.2
    target = start
    for k in range(1, 4):
        target = loop.polyak(still, target, tau)
        covered = 1 - (1 - tau) ** k
        for goal, old, new in zip(arrays(still), arrays(start), arrays(target), strict=True):
            np.testing.assert_allclose(new, old + covered * (goal - old), rtol=1e-5, atol=1e-6)
    assert same(loop.polyak(still, start, 1.0), still)


# ---------------------------------------------------------------- the silent [batch, 1] bug


def test_rewards_of_shape_batch_1():
    """NumPy takes Q of shape [batch] minus y of shape [batch, 1] for a [batch, batch] table and gives a wrong loss in silence.

    Here it fails where the batch is made, and again at the loss if it was made behind the door's back.
    """
    q, y = np.array([1.0, 2, 3]), np.array([1.0, 2, 3])
    assert np.mean((q - y) ** 2) == 0 and np.mean((q - y[:, None]) ** 2) == pytest.approx(4 / 3)

    good = random_data(3)
    parts = {name: getattr(good, name) for name in ("observations", "actions", "masks", "next_observations", "next_actions")}
    with pytest.raises(TypeCheckError, match=r"(?s)rewards.*f32\[3,1\]"):
        Batch(**parts, rewards=good.rewards[:, None])
    smuggled = eqx.tree_at(lambda b: b.rewards, good, good.rewards[:, None])
    noise = jax.vmap(lambda k: draw_noise(N_A, key=k))(jr.split(jr.key(0), 3))
    agent = fresh()
    with pytest.raises(TypeCheckError, match=r"f32\[3,1\]|f32\[1\]|f32\[2\]"):
        held = (agent.target_critic, agent.actor, agent.controller)
        eqx.filter_eval_shape(loop.critic_loss, agent.critic, *held, smuggled, noise, 0.9)


def test_a_batch_with_a_row_missing():
    good = random_data(5)
    parts = {name: getattr(good, name) for name in ("observations", "rewards", "masks", "next_observations", "next_actions")}
    with pytest.raises(TypeCheckError, match=r"(?s)actions.*f32\[4,2\]"):
        Batch(**parts, actions=good.actions[:4])


# ---------------------------------------------------------------- learning what is known


def learner(updates, **settings):
    """A small critic without control, trained fast."""
    every = {name: updates for name in ("steps", "updates_per_call", "log_every", "checkpoint_every", "evaluate_every")}
    small = CriticConfig(d_model=16, heads=2, layers=1)
    start = Config(task=CONFIG.task, warmup=50, batch_size=32, critic_lr=3e-3, critic=small, **every)
    return replace(start, control=ControlConfig(kind="none", target=((0.5, 0.5),)), **settings)


def rows(columns):
    return jnp.array(np.array(columns, np.float32)[:, None])


def test_critic_learns_a_two_state_process():
    """States and actions are +1 and -1; an action is the next state; being in +1 pays 1; taking -1 in -1 ends the episode.

    The dataset's next action is +1 or -1 with equal chance, so with discount 1/2 and V(s) the mean of Q(s, +-1)
    Q(+, +) = 1 + V(+)/2, Q(+, -) = 1 + V(-)/2, Q(-, +) = V(+)/2, Q(-, -) = 0: 19/11, 13/11, 8/11 and 0.
    The loss stays at the variance that the next action leaves in the target: (3/22)^2, (4/22)^2, (3/22)^2 and 0.
    """
    s, a, next_a = map(rows, zip(*itertools.product([1.0, -1.0], repeat=3), strict=True))
    rewards, masks = (s[:, 0] > 0).astype(float), 1 - ((s[:, 0] < 0) & (a[:, 0] < 0)).astype(float)
    data = Batch(s, a, rewards, masks, next_observations=a, next_actions=next_a)
    config = learner(700, discount=0.5, tau=0.1, actor=ActorConfig(kind="dataset"))
    agent, metrics = loop.train_chunk((data, 700), loop.initialise(1, 1, config))
    q = np.mean(jax.vmap(agent.critic)(s[::2], a[::2]), axis=1)
    np.testing.assert_allclose(q, [19 / 11, 13 / 11, 8 / 11, 0], atol=0.1)
    assert metrics["td_loss"][-50:].mean() == pytest.approx((3**2 + 4**2 + 3**2) / 22**2 / 4, rel=0.15)


@pytest.mark.parametrize("alpha_bc", [0.1, 100.0])
def test_policy_between_q_and_the_data(alpha_bc):
    """One state, actions +0.6 and -0.6 with equal chance, and only the first pays.

    With little weight on the data the policy takes the side where Q is higher; with much it takes both, and so does the flow always.
    Only the side is asked for: after so few updates the critic sees little but the sign of an action.
    """
    a, s = rows([0.6, -0.6]), rows([1.0, 1.0])
    data = Batch(s, a, jnp.array([1.0, 0.0]), jnp.zeros(2), s, a)
    config = learner(500, actor_lr=5e-3, actor=ActorConfig(hidden=(32,), flow_steps=5, alpha_bc=alpha_bc))
    agent, _ = loop.train_chunk((data, 500), loop.initialise(1, 1, config))

    @jax.jit
    @jax.vmap
    def act(z):
        return agent.actor.act(s[0], z)[0], agent.actor.behaviour(s[0], z)[0]

    policy, flow = map(np.asarray, act(jr.normal(jr.key(0), (500, 1))))
    assert 0.35 < np.mean(flow > 0) < 0.65
    if alpha_bc < 1:
        assert np.mean(policy > 0) > 0.95
    else:
        assert 0.35 < np.mean(policy > 0) < 0.65
