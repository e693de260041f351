"""The rivals' published settings, their first weights, and what golden numbers do not reach: BC's
loss, and clips and choices at their edges, by hand."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref
from jaxtyping import TypeCheckError

from tql.baselines import bc, fbrac, floq, ifql, iql, pac, q_transformer, rebrac
from tql.baselines.networks import MeanActor, MLPCritic
from tql.batch import Transition
from tql.flow_actor import Noise
from tql.layers import MLP
from tql.training.methods import method_class

N_S, N_A, HIDDEN, CRITIC_HIDDEN = 5, 3, (11, 13), (13, 2)
TASK = "cube-single-play-singletask-task1-v0"
DOMAINS = ("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4", "cube-triple")
LONGER = (0.99, 0.99, 0.99, 0.99, 0.99, 0.995)
ALPHA_BC = (300.0, 300.0, 300.0, 1000.0, 1000.0, 300.0)
ALWAYS = dict(steps=1_000_000, batch_size=256, tau=0.005, evaluate_every=100_000, episodes=50)
ALWAYS |= dict(hidden=(512,) * 4, critic_hidden=(512,) * 4, flow_steps=10, kappa=0.9, warmup=10_000)
SIZES = dict(copies=8, critic_flow_steps=8, velocity_hidden=(320,) * 4, coverage=0.1)
PAPER = {
    "bc": dict(lr=3e-4),
    "iql": dict(lr=3e-4, alpha=(1.0, 0.3, 10.0, 10.0, 3.0, 10.0), discount=LONGER),
    "rebrac": dict(
        lr=3e-4,
        alpha_actor=(1.0, 0.1, 0.1, 0.3, 0.3, 0.03),
        alpha_critic=(0.0, 0.0, 0.01, 0.01, 0.01, 0.0),
        discount=LONGER,
    ),
    "fbrac": dict(lr=3e-4, alpha_bc=(100.0, 100.0, 100.0, 100.0, 300.0, 100.0), discount=LONGER),
    "ifql": dict(lr=3e-4, candidates=32, discount=LONGER),
    "fql": dict(lr=3e-4, alpha_bc=ALPHA_BC),
    "floq": dict(lr=3e-4, alpha_bc=ALPHA_BC, **SIZES),
    "q-transformer": dict(
        lr=2e-5, weight_decay=0.02, d_model=128, layers=2, heads=4, bins=64, mc_mode="authors"
    ),
    "pac": dict(
        alpha_bc=ALPHA_BC,
        v_min=(-100.0, -200.0, -400.0, -300.0, -900.0, -300.0),
        critic_lr=1e-4,
        actor_lr=1e-4,  # the published code trains its actors at the critic's rate
        weight_decay=0.001,
        d_model=160,
        latents=32,
        latent_blocks=2,
    ),
}


@pytest.mark.parametrize("method", PAPER)
def test_the_paper_s_settings(method):
    for number, domain in enumerate(DOMAINS):
        config = method_class(method).presets["paper"](f"{domain}-play-singletask-task2-v0")
        for name, value in (ALWAYS | dict(discount=0.99) | PAPER[method]).items():
            per_domain = isinstance(value, tuple) and len(value) == len(DOMAINS)
            expected = value[number] if per_domain else value
            assert getattr(config, name, expected) == expected, (domain, name)
        assert all(hasattr(config, name) for name in PAPER[method])


def test_an_expectile_lies_between_0_and_1():
    for config in (iql.IQLConfig, ifql.IFQLConfig):
        with pytest.raises(ValueError, match="kappa is 1.0; an expectile lies between 0 and 1"):
            config(task=TASK, kappa=1.0)


# ---------------------------------------------------------------- the first weights


def test_first_weights():
    """Glorot: uniform within sqrt(6 / (in + out)); a mean's last layer a tenth of that; no bias."""
    net, mean = MLP(53, 59, (61, 67), key=jr.key(0)), MeanActor(53, 59, (61, 67), key=jr.key(1))
    for layers, last in ((net.layers, 1.0), (mean.net.layers, 0.1)):
        for layer, scale in zip(layers, (1.0, 1.0, last)):
            bound = scale * math.sqrt(6 / sum(layer.weight.shape))
            assert 0.99 * bound < np.abs(layer.weight).max() <= bound
            assert np.std(layer.weight) == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert not np.any(layer.bias)
    assert ref.glorot_uniform_std(53, 61) == pytest.approx(math.sqrt(6 / (53 + 61)) / math.sqrt(3))


@pytest.mark.parametrize("method", ["bc", "iql", "ifql", "rebrac", "fbrac", "fql", "floq", "pac"])
def test_critics_are_normalised_and_actors_only_in_pac(method):
    config = method_class(method).presets["pocket"](TASK)
    sizes = dict(hidden=HIDDEN, critic_hidden=CRITIC_HIDDEN, velocity_hidden=CRITIC_HIDDEN)
    sizes = {name: x for name, x in sizes.items() if hasattr(config, name)}
    agent = method_class(method).create(N_S, N_A, replace(config, **sizes))
    is_mlp = lambda x: isinstance(x, MLP)
    for network in ("value", "critic", "target_critic", "psi", "target_psi", "actor", "flow"):
        tree = getattr(agent, network, None)
        for net in (x for x in jax.tree.leaves(tree, is_leaf=is_mlp) if is_mlp(x)):
            is_actor = network in ("actor", "flow")
            kind = eqx.nn.Identity if is_actor and method != "pac" else eqx.nn.LayerNorm
            assert {type(norm) for norm in net.norms} == {kind}
            assert all(norm.eps == 1e-6 for norm in net.norms if kind is eqx.nn.LayerNorm)
            wide = CRITIC_HIDDEN if "critic" in network or "psi" in network else HIDDEN
            expected = wide if "critic_hidden" in sizes else HIDDEN
            assert tuple(layer.d_out for layer in net.layers[:-1]) == expected
    if method not in ("bc", "pac"):
        one, other = agent.critic.model.members
        assert not np.array_equal(one.layers[0].weight, other.layers[0].weight)


# ---------------------------------------------------------------- by hand


def linear(critic, *members):
    """The critic without hidden layers, with Q_k = slope a + offset."""
    for k, (slope, offset) in enumerate(members):
        row = jnp.zeros_like(critic.members[k].layers[0].weight).at[0, -1].set(slope)
        where = lambda c: (c.members[k].layers[0].weight, c.members[k].layers[0].bias)
        critic = eqx.tree_at(where, critic, (row, jnp.full((1,), offset)))
    return critic


def still(net, offset):
    """The network without hidden layers that is this constant."""
    (layer,) = net.layers
    parts = lambda n: (n.layers[0].weight, n.layers[0].bias)
    return eqx.tree_at(parts, net, (jnp.zeros_like(layer.weight), jnp.array([offset])))


def one_row(a=0.5, r=-1.0, m=1.0, a_next=0.5):
    column = lambda x: jnp.full((1, 1), x)
    return Transition(
        jnp.ones((1, 2)),
        column(a),
        jnp.full(1, r),
        jnp.full(1, m),
        jnp.ones((1, 2)),
        column(a_next),
    )


@pytest.fixture
def affine(getkey):
    """A critic, a mean and a velocity for n_s = 2, n_a = 1, without hidden layers."""
    critic, actor = MLPCritic(2, 1, (), key=getkey()), MeanActor(2, 1, (), key=getkey())
    return critic, actor, MLP(4, 1, (), key=getkey())


def test_bc_s_loss_is_the_negative_log_likelihood(affine):
    """mu = 0.5, a = 1.5: half of 1 and half of ln 2 pi."""
    actor = eqx.tree_at(lambda a: a.net, affine[1], still(affine[1].net, 0.5))
    loss, _ = bc.actor_loss(actor, one_row(a=1.5))
    assert float(loss) == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi))


ROWS_OF_PAC = dict(d_model=8, latents=5, latent_blocks=1, v_min=-3.0)
NETWORKS = {
    "mlp": lambda key: MLPCritic(3, 2, (5,), key=key),
    "value-flow": lambda key: floq.ValueFlow(3, 2, (5,), key=key),
    "perceiver": lambda key: pac.PerceiverCritic(
        3, 2, pac.PACConfig(task=TASK, **ROWS_OF_PAC), key=key
    ),
    "autoregressive": lambda key: q_transformer.AutoregressiveQ(
        3, 2, q_transformer.QTransformerConfig(task=TASK, bins=7, d_model=4, heads=2), key=key
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_state_in_the_place_of_the_action_is_refused(network, getkey):
    s, a = jnp.ones(3), jnp.ones(2)
    rest = (jnp.ones((2, 50)), jnp.ones(())) if network == "value-flow" else ()
    with pytest.raises(TypeCheckError):
        NETWORKS[network](getkey())(a, s, *rest)


def test_rebrac_s_next_action_is_clipped(affine):
    """pi = tanh(2) = 0.964 and noise 0.5: a' = 1, not 1.464. With Q = 0, r = 0: (0.9 * 1)^2."""
    critic, actor, _ = affine
    actor = eqx.tree_at(lambda a: a.net, actor, still(actor.net, 2.0))
    zero, target = linear(critic, (0.0, 0.0), (0.0, 0.0)), linear(critic, (1.0, 0.0), (1.0, 0.0))
    noise = jnp.full((1, 1), 9.0)
    loss, _ = rebrac.critic_loss(zero, target, actor, one_row(r=0.0), noise, 0.9, 0.0)
    assert float(loss) == pytest.approx(0.81)


def test_the_gradient_of_fbrac_runs_through_all_steps(affine):
    """v = c, members 2a and 4a: each of ten steps adds c / 10, so dQ/dc = 3; through the last step
    alone it would be 0.3."""
    critic, _, v = affine
    critic, zero = linear(critic, (2.0, 0.0), (4.0, 0.0)), jnp.zeros((1, 1))
    noise = Noise(zero, zero, jnp.zeros(1), zero)

    def slope(c):
        gradient = eqx.filter_grad(fbrac.flow_loss, has_aux=True)
        moved, _ = gradient(still(v, c), critic, one_row(), noise, 0.0, 10)
        return moved.layers[0].bias.item()

    assert slope(0.5) == pytest.approx(-3) and slope(1.5) == 0, "the clip at the end stops it"


def test_ifql_takes_the_best_of_its_draws_by_the_smaller_online_value(affine):
    """Without velocity the candidates are the clipped noise. Online members are a and -a, so the
    smaller is -|a| and the draw nearest to 0 wins; by the targets (a and a) the largest would."""
    critic, _, v = affine
    agent = ifql.IFQL.create(2, 1, ifql.IFQLConfig(task=TASK, hidden=(), candidates=31))
    online, upwards = (linear(critic, (1.0, 0.0), (slope, 0.0)) for slope in (-1.0, 1.0))
    parts = lambda a: (a.flow.model, a.critic.model, a.target_critic)
    agent = eqx.tree_at(parts, agent, (still(v, 0.0), online, upwards))
    for seed in range(3):
        z = np.asarray(jr.normal(jr.key(seed), (31, 1)))
        action = agent.policy("policy")(jnp.ones(2), jr.key(seed))
        np.testing.assert_array_equal(action, z[np.argmin(abs(z))])


@pytest.mark.usefixtures("x64", "optax_promotion")
def test_rebrac_moves_its_actor_and_averages_at_even_updates():
    """Update 1 moves the critic alone and update 2 all. In update 3 averages rest to the bit, while
    the actor coasts on Adam's moments, m = 0.09 g and v = 0.000999 g^2: a step of
    lr (0.09 / 0.271) / sqrt(0.000999 / 0.002997001)."""
    rng, lr = np.random.default_rng(2), 0.01
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape))
    rows = (7, N_S), (7, N_A), (7,), (7,), (7, N_S), (7, N_A)
    batch = Transition(*(draw(*shape) for shape in rows))
    config = replace(rebrac.paper(TASK), lr=lr, hidden=HIDDEN, tau=0.1)
    start = rebrac.ReBRAC.create(N_S, N_A, config)
    moved = jax.tree.map(lambda x: x + draw(*x.shape), (start.target_critic, start.target_actor))
    agents = [replace(start, target_critic=moved[0], target_actor=moved[1])]
    update = eqx.filter_jit(lambda agent, key: agent.update(batch, key)[0])
    for k in range(3):
        agents.append(update(agents[-1], jr.key(k)))

    def arrays(k, network):
        found = getattr(agents[k], network)
        return jax.tree.leaves(found if network.startswith("target_") else found.model)

    def moves(k, network):
        pairs = zip(arrays(k - 1, network), arrays(k, network))
        return [not np.array_equal(x, y) for x, y in pairs]

    assert all(all(moves(k, "critic")) for k in (1, 2, 3))
    for network in ("target_critic", "target_actor"):
        assert not any(moves(1, network)) and all(moves(2, network)) and not any(moves(3, network))
    assert not any(moves(1, "actor")) and all(moves(2, "actor"))
    coast = lr * (0.09 / 0.271) / math.sqrt(0.000999 / 0.002997001)
    mu = jax.tree.leaves(agents[2].actor.optimiser_state[0].mu)
    for old, new, m in zip(arrays(2, "actor"), arrays(3, "actor"), mu):
        np.testing.assert_allclose(new - old, -coast * np.sign(m), rtol=2e-3)
