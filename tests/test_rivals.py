"""What every method has to be, TQL and its rivals alike: one update is a pure function, a chunk is
a loop of them, an agent is its seed, and its losses move what they say they move."""

import json
from dataclasses import asdict, fields, replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import MAZE

from tql.agent import batch_noise
from tql.batch import Transition, draw_batch
from tql.config import ActorConfig, CriticConfig
from tql.flow_actor import draw_noise
from tql.optimise import copy
from tql.training.checkpoint import load_checkpoint, named_arrays, save_checkpoint
from tql.training.chunk import train_chunk
from tql.training.methods import METHODS, config_from_dict, method_class, new_agent

N_S, N_A, ROWS = 3, 2, 13
RIVALS = [method for method in METHODS if method != "tql"]

# What a change of one network changes in the next update: what a loss reads, and what it moves.
FLOW_READS = {
    "critic": "critic target_critic actor",
    "actor": "actor critic",
    "target_critic": "target_critic critic",
}
VALUE_READS = {
    "value": "value target_critic",
    "critic": "critic value",
    "target_critic": "target_critic critic",
}
READS = {
    "bc": {"actor": "actor"},
    "iql": VALUE_READS | {"actor": "actor critic value"},
    "ifql": VALUE_READS | {"flow": "flow"},
    "rebrac": {
        "critic": "critic target_critic target_actor",
        "actor": "actor critic",
        "target_critic": "target_critic critic",
        "target_actor": "target_actor actor",
    },
    "fbrac": {
        "critic": "critic target_critic flow",
        "flow": "flow critic",
        "target_critic": "target_critic critic",
    },
    "fql": FLOW_READS,
    "floq": {
        "psi": "psi target_psi actor",
        "critic": "critic psi",
        "actor": "actor critic",
        "target_psi": "target_psi psi",
    },
    "pac": FLOW_READS,
    "q-transformer": {"net": "net target_net", "target_net": "target_net net"},
}
SMALL = dict(hidden=(7,), critic_hidden=(7,), velocity_hidden=(7,), flow_steps=2, candidates=3)
SMALL |= dict(critic_flow_steps=2, copies=2, bins=7, layers=1, d_model=32, heads=2)
SMALL |= dict(latents=3, latent_blocks=1, v_min=-5.0, warmup=1)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def tiny(method: str, task: str = MAZE, **changes):
    """The method's first preset, made small, to be trained in chunks of 2."""
    preset = next(iter(method_class(method).presets.values()))(task)
    there = {field.name for field in fields(preset)}
    small = {name: x for name, x in SMALL.items() if name in there}
    if method == "tql":
        critic, actor = CriticConfig(d_model=32, layers=1), ActorConfig(hidden=(7,), flow_steps=2)
        small = dict(warmup=1, critic=critic, actor=actor)
    every = dict(updates_per_call=2, log_every=2, checkpoint_every=4, evaluate_every=4, episodes=2)
    sizes = dict(seed=3, steps=8, batch_size=5, tau=0.1)
    return replace(preset, **sizes | every | small | changes)


@cache
def random_data() -> Transition:
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    s, m = draw(ROWS + 1, N_S), jnp.array(rng.integers(0, 2, ROWS), jnp.float32)
    return Transition(s[:-1], draw(ROWS, N_A), draw(ROWS) - 1, m, s[1:], draw(ROWS, N_A))


@cache
def _fresh(method: str):
    return new_agent(N_S, N_A, tiny(method)).prepare(random_data())


def fresh(method: str):
    """A copy of the untrained agent, which training consumes, and the dataset as it trains on
    it."""
    agent, data = _fresh(method)
    return copy(agent), data


def same(one, other) -> bool:
    ours, theirs = named_arrays(one), named_arrays(other)
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


update = eqx.filter_jit(lambda agent, batch, key: agent.update(batch, key))
draw = eqx.filter_jit(draw_batch)


def by_hand(agent, data: Transition, updates: int):
    """As a reader would write the loop, and the metrics of every update."""
    history = []
    for _ in range(updates):
        k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
        agent, metrics = update(agent, draw(data, agent.config.batch_size, k_batch), k_update)
        history.append(metrics)
    return agent, history


def types(agent):
    return [leaf.aval for leaf in jax.tree.leaves(eqx.filter(agent, eqx.is_array))]


@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_deterministic_and_survives_a_checkpoint(method, tmp_path):
    """Two updates, a checkpoint and two more are four updates, bitwise; four move every array of
    the networks, and make no number infinite."""
    (start, data), path = fresh(method), tmp_path / "step-000000002.checkpoint"
    agent, history = by_hand(start, data, 4)
    middle, _ = by_hand(start, data, 2)
    assert types(middle) == types(start), "an array of another type: every chunk would be compiled"
    save_checkpoint(path, middle)
    loaded = load_checkpoint(path, tiny(method))
    assert int(loaded.step) == 2 and types(loaded) == types(middle)
    assert jax.tree.structure(loaded) == jax.tree.structure(middle)
    again, metrics = by_hand(loaded, data, 2)
    assert same(agent, again) and int(agent.step) == 4 and not same(agent, middle)
    assert any(name.endswith("_loss") for name in metrics[0])
    for k, line in enumerate(metrics):
        assert all(np.array_equal(x, history[k + 2][name]) for name, x in line.items())
    assert all(np.isfinite(x).all() for line in history for x in line.values())

    before, after = named_arrays(start), named_arrays(agent)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert all(name.startswith(("key", "statistics", "r_low", "r_high")) for name in still), still


@pytest.mark.parametrize("method", ["rebrac", "q-transformer"])
def test_chunks_are_updates_and_are_compiled_once(method, monkeypatch):
    """2 + 2 updates in chunks are 4 by hand. The other methods differ only in `update`."""
    cls, (start, data), traces = method_class(method), fresh(method), []
    agent, history = by_hand(start, data, 4)
    original = cls.update
    counted = lambda *arguments: traces.append(1) or original(*arguments)
    monkeypatch.setattr(cls, "update", counted)
    middle, _ = train_chunk((data, 2), start)
    last, metrics = train_chunk((data, 2), middle)
    assert len(traces) == 1, "the second chunk was compiled again"
    ours, theirs = named_arrays(agent), named_arrays(last)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name, x in metrics.items():
        np.testing.assert_allclose(x, [line[name] for line in history[2:]], rtol=1e-4, err_msg=name)


def network_of(agent, name: str):
    """The network itself, without its optimiser."""
    return getattr(agent, name) if name.startswith("target_") else getattr(agent, name).model


def with_moved(agent, name: str):
    """The agent with that network's arrays moved a little."""
    shift = lambda x: 0.01 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    moved = jax.tree.map(lambda x: x + shift(x), network_of(agent, name))
    return eqx.tree_at(lambda agent: network_of(agent, name), agent, moved)


@pytest.mark.parametrize("method", RIVALS)
def test_who_reads_whom(method):
    """The gradient of a loss depends on the networks that the loss reads, and on no other.

    It is told by Adam's first moment after one update, which is 0.1 times the gradient, and for
    targets by their change.
    """
    (agent, data), is_adam = fresh(method), lambda x: hasattr(x, "mu")
    if method == "rebrac":  # the next update moves its actor and averages too
        agent = eqx.tree_at(lambda a: a.step, agent, jnp.ones_like(agent.step))
    if method == "q-transformer":  # returns near 1 would hide the target network
        data = eqx.tree_at(lambda data: data.G, data, jnp.zeros_like(data.G))
    # Apart, so that a change of the target is not hidden by its being the network.
    for network in READS[method]:
        agent = with_moved(agent, network) if network.startswith("target_") else agent

    def effects(agent):
        after, _ = update(agent, draw_batch(data, 5, jr.key(1)), jr.key(5))
        found = {}
        for network in READS[method]:
            if network.startswith("target_"):
                found[network] = named_arrays(getattr(after, network))
            else:
                state = getattr(after, network).optimiser_state
                (adam,) = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
                found[network] = named_arrays(adam.mu)
        return found

    before = effects(agent)
    for network in READS[method]:
        after = effects(with_moved(agent, network))
        differs = lambda name: any(
            not np.array_equal(before[name][x], after[name][x]) for x in before[name]
        )
        reading = {name for name, read in READS[method].items() if network in read.split()}
        assert {name for name in before if differs(name)} == reading, network


@pytest.mark.parametrize("method", METHODS)
def test_actions_are_in_range_whatever_the_weights(method):
    """With every network ten times as large means and flows leave [-1, 1], and actions do not."""
    agent, _ = fresh(method)
    numbers = eqx.filter(agent, eqx.is_inexact_array)
    agent = eqx.combine(jax.tree.map(lambda x: 10 * x, numbers), agent)
    assert agent.policies[0] == "policy" and (agent.n_s, agent.n_a) == (N_S, N_A)
    states = 3 * jr.normal(jr.key(1), (17, N_S))
    for name in agent.policies:
        actions = jax.jit(jax.vmap(agent.policy(name)))(states, jr.split(jr.key(2), 17))
        assert actions.shape == (17, N_A) and 0.5 < np.abs(actions).max() <= 1
        assert np.isfinite(actions).all() and len(np.unique(actions, axis=0)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_settings_come_back_from_json_and_are_checked(method):
    for preset in method_class(method).presets.values():
        for config in (preset(MAZE), tiny(method), preset("scene-play-singletask-task2-v0")):
            assert config.method == method
            assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config
    config = tiny(method)
    names = [field.name for field in fields(config)]
    rates = [name for name in names if name.endswith("lr") or name.startswith("alpha")]
    assert rates
    for change, message in [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(steps=7), "steps 7 .* multiple of updates_per_call 2"),
        (dict(discount=1.0), "discount 1.0 must lie in"),
        *(({name: -1.0}, f"{name} is -1.0") for name in rates),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(config, **change)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_is_an_agent(method):
    agent, config = new_agent(N_S, N_A, tiny(method)), tiny(method)
    assert same(agent, new_agent(N_S, N_A, config))
    arrays = named_arrays(agent)
    other = named_arrays(new_agent(N_S, N_A, replace(config, seed=4)))
    skip = ("norm", "optimiser_state")
    is_weight = lambda name: name.endswith(".weight") and not any(x in name for x in skip)
    weights = [name for name in arrays if is_weight(name)]
    assert weights and all(not np.array_equal(arrays[name], other[name]) for name in weights)
    targets = [name for name in arrays if name.startswith("target_")]
    for name in targets:
        network, _, rest = name.removeprefix("target_").partition(".")
        np.testing.assert_array_equal(arrays[name], arrays[f"{network}.model.{rest}"])
    assert bool(targets) == (method != "bc")


def test_every_row_of_a_batch_has_noise_of_its_own():
    noise = batch_noise(lambda key: draw_noise(N_A, key=key), jr.key(0), random_data())
    for part in (noise.next_action, noise.x_0, noise.t, noise.z):
        assert len(np.unique(part, axis=0)) == ROWS
