"""One update and a chunk of them: determinism, one compilation, who moves whom, and critics and
actors that learn what is known."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tql import loop
from tql.agent import batch_noise
from tql.batch import Transition, draw_batch
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.critic import AbstractCritic
from tql.flow_actor import AbstractActor, actor_loss, draw_noise
from tql.loop import TQL
from tql.training.chunk import train_chunk

N_S, N_A, ROWS = 3, 2, 13
CONFIG = TQLConfig(
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
    """Nothing follows any row, so that the TD target of a row is its reward: a batch can be read
    off its mean."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), float)
    s, a, r, m = draw(rows, N_S), draw(rows, N_A), draw(rows), jnp.zeros(rows)
    return Transition(s, a, r, m, draw(rows, N_S), draw(rows, N_A))


@pytest.fixture(scope="module")
def data():
    return random_data()


def fresh(config=CONFIG):
    return TQL.create(N_S, N_A, config)


update = eqx.filter_jit(TQL.update)


def parts(agent):
    """What an update moves."""
    actor = agent.actor.model
    critics = {"critic": agent.critic.model, "target_critic": agent.target_critic}
    return critics | {"controller": agent.controller.model, "actor": actor}


def noise_of(rows):
    return batch_noise(lambda key: draw_noise(N_A, key=key), jr.key(0), random_data(rows))


def arrays(tree):
    """Every array of numbers."""
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def distance(one, other):
    """The largest difference between two arrays that belong together."""
    pairs = zip(arrays(one), arrays(other), strict=True)
    return max(np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in pairs)


def same(one, other):
    return all(np.array_equal(x, y) for x, y in zip(arrays(one), arrays(other), strict=True))


def train(config, data, *chunks):
    """A fresh agent after these chunks, and the metrics of all updates."""
    agent, history = fresh(config), []
    for updates in chunks:
        agent, metrics = train_chunk((data, updates), agent)
        history.append({name: np.asarray(x) for name, x in metrics.items()})
    names = history[0]
    return agent, {name: np.concatenate([metrics[name] for metrics in history]) for name in names}


# ---------------------------------------------------------------- a chunk is a loop of updates


@pytest.fixture(scope="module")
def six(data):
    with jax.numpy_dtype_promotion("standard"):
        return train(CONFIG, data, 3, 3)


@pytest.fixture(scope="module")
def other(data):
    """Another seed, in three chunks of 2, and how often the loss was traced, which happens when a
    chunk is compiled."""
    traces = []
    loss = loop.critic_loss
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(loop, "critic_loss", lambda *given: traces.append(1) or loss(*given))
        return *train(replace(CONFIG, seed=1), data, 2, 2, 2), len(traces)


def test_a_chunk_is_updates_by_hand(x64):
    """As a reader would write it. The two are compiled apart, so they may round otherwise: in
    float64 they agree to 1e-9, and one update with another batch is 1e-3 away."""
    data, hand = random_data(), fresh()
    chunk, history = train(CONFIG, data, 3)
    for k in range(3):
        k_batch, k_update = jr.split(jr.fold_in(hand.key, k))
        before, batch = hand, draw_batch(data, CONFIG.batch_size, k_batch)
        hand, metrics = update(hand, batch, k_update)
        for name, x in metrics.items():
            np.testing.assert_allclose(history[name][k], x, rtol=0, atol=1e-9, err_msg=name)
    assert distance(parts(hand), parts(chunk)) < 1e-9 and int(hand.step) == int(chunk.step) == 3
    other, _ = update(before, draw_batch(data, CONFIG.batch_size, jr.key(5)), k_update)
    assert distance(parts(other), parts(chunk)) > 1e-3


def test_every_part_has_moved(six):
    before, after = parts(fresh()), parts(six[0])
    for part in before:
        assert not any(map(np.array_equal, arrays(before[part]), arrays(after[part]))), part


def test_same_seed_same_run(data, six):
    """Bitwise: it is the same compiled program."""
    again, metrics = train(CONFIG, data, 3, 3)
    assert same(again, six[0])
    assert all(np.array_equal(metrics[name], six[1][name]) for name in metrics)


def test_another_seed_is_another_run(six, other):
    """From the first batch on: with nothing to follow, the mean target is the mean reward of the
    batch."""
    agent, metrics, _ = other
    assert not np.isclose(metrics["target_mean"], six[1]["target_mean"]).any()
    assert not same(agent.critic.model, six[0].critic.model)
    assert not same(fresh(), fresh(replace(CONFIG, seed=1)))


def test_one_compilation_for_many_chunks(other):
    agent, _, traces = other
    assert int(agent.step) == 6 and traces == 1


def test_batches_depend_on_seed_and_step_alone(data, six):
    """Not on the weights, nor on when the run was cut in chunks; every update has another one."""
    agent = fresh()
    agent = eqx.tree_at(lambda a: a.critic.model.q_heads[0].out.bias, agent, jnp.ones(1))
    _, metrics = train_chunk((data, 3), agent)
    np.testing.assert_array_equal(metrics["target_mean"], six[1]["target_mean"][:3])
    assert not np.isclose(metrics["td_loss"], six[1]["td_loss"][:3]).any()
    assert len(set(six[1]["target_mean"].tolist())) == 6


def test_a_donated_agent_is_gone(data):
    """The data are kept, the agent is not: its memory is the new one's."""
    agent = fresh()
    train_chunk((data, 3), agent)
    assert not data.r.is_deleted()
    with pytest.raises((RuntimeError, ValueError), match="deleted|donated"):
        train_chunk((data, 3), agent)


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
def test_each_loss_moves_one_part(x64, change, moved):
    """One update with one setting changed: that part ends elsewhere, all others where they were.

    The two updates are compiled apart, so they may round otherwise: in float64 they agree to 1e-11,
    and a setting that reaches a part moves it, or what its optimiser remembers of the gradient, by
    more than 1e-6. The target starts as the critic's copy, so it is moved away first: else there is
    nothing to follow.
    """

    def one_update(config):
        agent = fresh(config)
        agent = eqx.tree_at(lambda a: a.target_critic.q_heads[0].out.bias, agent, jnp.ones(1))
        agent, _ = update(agent, random_data(CONFIG.batch_size), jr.key(0))
        return {part: getattr(agent, part) for part in parts(agent)}

    plain, changed = one_update(CONFIG), one_update(replace(CONFIG, **change))
    apart = {part: distance(plain[part], changed[part]) for part in plain}
    assert apart.pop(moved) > 1e-6
    assert max(apart.values()) < 1e-11, apart


def test_gradients_are_of_the_first_argument(data):
    """What `filter_grad` returns has the structure and shapes of what learns, and nothing of what
    is held still."""
    a, noise, H = fresh(), noise_of(ROWS), jnp.array([[0.5, 0.5]])
    critic, controller, actor = a.critic.model, a.controller.model, a.actor.model
    for loss, learns, *held in (
        (loop.critic_loss, critic, a.target_critic, actor, controller, data, noise, 0.9),
        (loop.temperature_loss, controller, H),
        (actor_loss, actor, critic, data, noise, 1.0),
    ):
        grads = eqx.filter_eval_shape(eqx.filter_grad(loss, has_aux=True), learns, *held)[0]
        is_array = lambda x: hasattr(x, "shape")
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, eqx.filter(tree, is_array))
        assert shapes(grads) == shapes(learns)


# ---------------------------------------------------------------- the silent [batch, 1] bug


def test_rewards_of_shape_batch_1():
    """NumPy takes Q of shape [batch] minus y of shape [batch, 1] for a [batch, batch] table and
    gives a wrong loss in silence.

    Here it fails where the batch is made, and again at the loss if it was made behind the door's
    back.
    """
    q, y = np.array([1.0, 2, 3]), np.array([1.0, 2, 3])
    assert np.mean((q - y) ** 2) == 0 and np.mean((q - y[:, None]) ** 2) == pytest.approx(4 / 3)

    good = random_data(3)
    with pytest.raises(TypeCheckError, match=r"(?s)'r'.*f32\[3,1\]|f32\[3,1\].*'r'"):
        replace(good, r=good.r[:, None])
    smuggled = eqx.tree_at(lambda b: b.r, good, good.r[:, None])
    with pytest.raises(TypeCheckError, match=r"f32\[3,1\]|f32\[1\]|f32\[2\]"):
        trace_critic_loss(smuggled)


def trace_critic_loss(batch, **others):
    """`critic_loss` of a fresh agent, some parts of which may be others."""
    given = parts(fresh()) | others
    held = [given[name] for name in ("critic", "target_critic", "actor", "controller")]
    noise = noise_of(batch.r.shape[0])
    eqx.filter_eval_shape(loop.critic_loss, *held, batch, noise, 0.9)


def test_a_batch_with_a_row_missing():
    good = random_data(5)
    with pytest.raises(TypeCheckError, match=r"f32\[4,2\]"):
        replace(good, a=good.a[:4])


# ---------------------------------------------------------------- components of one's own


class TwoActions(AbstractActor):
    """An actor whose next action has an axis too many."""

    policies = ()
    n_s: int = eqx.field(static=True, default=N_S)
    n_a: int = eqx.field(static=True, default=N_A)

    def next_action(self, s_next, a_next, z):
        return a_next[None]

    act = losses = None


class OneValue(AbstractCritic):
    """A critic that returns the mean of its heads, not the heads."""

    n_s: int = eqx.field(static=True, default=N_S)
    n_a: int = eqx.field(static=True, default=N_A)
    ensemble: int = eqx.field(static=True, default=2)

    def __call__(self, s, a):
        return jnp.sum(s)

    def with_attention(self, s, a):
        return self(s, a), jnp.zeros((1, 2, 6, 6))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"actor": TwoActions()}, r"next_action\(.*\) returned shape \(1, 2\).*\(2,\)"),
        ({"critic": OneValue()}, r"with_attention\(s, a\).*returned shape \(\).*\(2,\)"),
    ],
)
def test_what_components_return_is_checked_in_the_loss(wrong, words):
    """Both would broadcast in silence."""
    with pytest.raises(ValueError, match=words):
        trace_critic_loss(random_data(5), **wrong)


# ---------------------------------------------------------------- learning what is known


def learner(updates, **settings):
    """A small critic without control, trained fast."""
    every = dict(checkpoint_every=updates, evaluate_every=updates, log_every=updates)
    every |= dict(steps=updates, updates_per_call=updates)
    rest = dict(task=CONFIG.task, warmup=50, batch_size=32, critic_lr=3e-3)
    parts = dict(critic=CriticConfig(d_model=16, heads=2, layers=1))
    parts |= dict(control=ControlConfig(kind="none", target=((0.5, 0.5),)))
    return TQLConfig(**every, **rest, **parts, **settings)


def rows(columns):
    return jnp.array(np.array(columns, np.float32)[:, None])


def test_critic_learns_a_two_state_process():
    """States and actions are +1 and -1; an action is the next state; being in +1 pays 1; taking -1
    in -1 ends the episode.

    The dataset's next action is +1 or -1 with equal chance, so with discount 1/2 and V(s) the mean
    of Q(s, +-1): Q(+, +) = 1 + V(+)/2, Q(+, -) = 1 + V(-)/2, Q(-, +) = V(+)/2, Q(-, -) = 0, which
    are 19/11, 13/11, 8/11 and 0. The loss stays at the variance that the next action leaves in the
    target: (3/22)^2, (4/22)^2, (3/22)^2 and 0.
    """
    s, a, a_next = map(rows, zip(*itertools.product([1.0, -1.0], repeat=3), strict=True))
    r, end = (s[:, 0] > 0).astype(float), (s[:, 0] < 0) & (a[:, 0] < 0)
    data = Transition(s, a, r, 1 - end.astype(float), s_next=a, a_next=a_next)
    config = learner(700, discount=0.5, tau=0.1, actor=ActorConfig(kind="dataset"))
    agent, metrics = train_chunk((data, 700), TQL.create(1, 1, config))
    q = np.mean(jax.vmap(agent.critic.model)(s[::2], a[::2]), axis=1)
    np.testing.assert_allclose(q, [19 / 11, 13 / 11, 8 / 11, 0], atol=0.1)
    left = (3**2 + 4**2 + 3**2) / 22**2 / 4
    assert metrics["td_loss"][-50:].mean() == pytest.approx(left, rel=0.15)


@pytest.mark.parametrize("alpha_bc", [0.1, 100.0])
def test_policy_between_q_and_the_data(alpha_bc):
    """One state, actions +0.6 and -0.6 with equal chance, and only the first pays.

    With little weight on the data the policy takes the side where Q is higher; with much it takes
    both, and so does the flow always. Only the side is asked for: after so few updates the critic
    sees little but the sign of an action.
    """
    a, s = rows([0.6, -0.6]), rows([1.0, 1.0])
    data = Transition(s, a, jnp.array([1.0, 0.0]), jnp.zeros(2), s, a)
    actor = ActorConfig(hidden=(32,), flow_steps=5, alpha_bc=alpha_bc)
    config = learner(500, actor_lr=5e-3, actor=actor)
    agent, _ = train_chunk((data, 500), TQL.create(1, 1, config))
    actor = agent.actor.model

    @jax.jit
    @jax.vmap
    def act(z):
        return actor.act(s[0], z)[0], actor.behaviour(s[0], z)[0]

    policy, flow = map(np.asarray, act(jr.normal(jr.key(0), (500, 1))))
    assert 0.35 < np.mean(flow > 0) < 0.65
    if alpha_bc < 1:
        assert np.mean(policy > 0) > 0.95
    else:
        assert 0.35 < np.mean(policy > 0) < 0.65
