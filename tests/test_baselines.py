"""What every method has to be, TQL and its rivals alike: one update is a pure function, a chunk is a loop of them, a run is resumable."""

import json
from dataclasses import asdict, fields, replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import MAZE, compiled_as_shipped

from tql import checkpoint, run_directory
from tql import run as runs
from tql.agent import batch_noise, initialise, method_class
from tql.checkpoint import named_arrays
from tql.config import METHODS, ActorConfig, CriticConfig, Task
from tql.data import Batch, sample, statistics
from tql.flow_actor import draw_noise
from tql.loop import train_chunk
from tql.optimise import copy
from tql.plot import plot
from tql.run_directory import RunError, config_from_dict

N_S, N_A, ROWS = 3, 2, 13
RIVALS = [method for method in METHODS if method != "tql"]

# A change of one network shows in the next change of these alone: what a loss reads, and what it moves.
READS = {
    "bc": {"actor": "actor"},
    "iql": {
        "value": "value target_critic",
        "critic": "critic value",
        "actor": "actor critic value",
        "target_critic": "target_critic critic",
    },
    "ifql": {"value": "value target_critic", "critic": "critic value", "flow": "flow", "target_critic": "target_critic critic"},
    "rebrac": {
        "critic": "critic target_critic target_actor",
        "actor": "actor critic",
        "target_critic": "target_critic critic",
        "target_actor": "target_actor actor",
    },
    "fbrac": {"critic": "critic target_critic flow", "flow": "flow critic", "target_critic": "target_critic critic"},
    "fql": {"critic": "critic target_critic actor", "actor": "actor critic", "target_critic": "target_critic critic"},
    "floq": {
        "psi": "psi target_psi actor",
        "critic": "critic psi",
        "actor": "actor critic",
        "target_psi": "target_psi psi",
    },
    "pac": {"critic": "critic target_critic actor", "actor": "actor critic", "target_critic": "target_critic critic"},
    "q-transformer": {"net": "net target_net", "target_net": "target_net net"},
}
SMALL = dict(hidden=(7,), critic_hidden=(7,), velocity_hidden=(7,), flow_steps=2, candidates=3, critic_flow_steps=2, copies=2)
SMALL |= dict(bins=7, layers=1, d_model=32, heads=2, latents=3, latent_blocks=1, v_min=-5.0, warmup=1)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def tiny(method: str, task: str = MAZE, **changes):
    """The method's first preset, made small, to be trained in chunks of 2."""
    preset = next(iter(method_class(method).presets.values()))(task)
    there = {field.name for field in fields(preset)}
    small = {name: x for name, x in SMALL.items() if name in there}
    if method == "tql":
        small = dict(warmup=1, critic=CriticConfig(d_model=32, layers=1), actor=ActorConfig(hidden=(7,), flow_steps=2))
    every = dict(updates_per_call=2, log_every=2, checkpoint_every=4, evaluate_every=4, episodes=2)
    return replace(preset, **dict(seed=3, steps=8, batch_size=5, tau=0.1) | every | small | changes)


@cache
def random_data() -> Batch:
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    states = draw(ROWS + 1, N_S)
    masks = jnp.array(rng.integers(0, 2, ROWS), jnp.float32)
    return Batch(states[:-1], draw(ROWS, N_A), draw(ROWS) - 1, masks, states[1:], draw(ROWS, N_A))


def data_for(method: str) -> Batch:
    """The dataset as the method has it prepared."""
    return method_class(method).prepare(random_data(), tiny(method))


@cache
def _fresh(method: str):
    return initialise(N_S, N_A, tiny(method), statistics(random_data()))


def fresh(method: str):
    """A copy of the untrained agent: training consumes it."""
    return copy(_fresh(method))


def same(one, other) -> bool:
    ours, theirs = named_arrays(one), named_arrays(other)
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


update = eqx.filter_jit(lambda agent, batch, key: agent.update(batch, key))
draw = eqx.filter_jit(sample)


def by_hand(agent, data: Batch, updates: int):
    """As a reader would write the loop, and the metrics of every update."""
    history = []
    for _ in range(updates):
        k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
        agent, metrics = update(agent, draw(data, agent.config.batch_size, k_batch), k_update)
        history.append(metrics)
    return agent, history


# ---------------------------------------------------------------- updates


def types(agent):
    return [leaf.aval for leaf in jax.tree.leaves(eqx.filter(agent, eqx.is_array))]


@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_deterministic_and_survives_a_checkpoint(method, tmp_path):
    """Two updates, a checkpoint and two more are four updates, bitwise."""
    data, path = data_for(method), tmp_path / "step-000000002.checkpoint"
    agent, history = by_hand(fresh(method), data, 4)
    middle, _ = by_hand(fresh(method), data, 2)
    assert types(middle) == types(fresh(method)), "an array turned into another type (a weak one?): every chunk would be compiled"
    checkpoint.save(path, middle)
    loaded = checkpoint.load(path, tiny(method))
    assert int(loaded.step) == 2 and jax.tree.structure(loaded) == jax.tree.structure(middle) and types(loaded) == types(middle)
    again, metrics = by_hand(loaded, data, 2)
    assert same(agent, again) and int(agent.step) == 4 and not same(agent, middle)
    assert any(name.endswith("_loss") for name in metrics[0])
    assert all(np.array_equal(metrics[k][name], history[k + 2][name]) for k in (0, 1) for name in history[0])
    assert all(np.isfinite(x).all() for line in history for x in line.values())


@compiled_as_shipped
@pytest.mark.parametrize("method", ["rebrac", "q-transformer"])
def test_chunks_are_updates_and_are_compiled_once(method, monkeypatch):
    """2 + 2 updates in chunks are 4 by hand, bitwise. The others differ only in `update`; see the types above, and test_loop."""
    cls, data, traces = method_class(method), data_for(method), []
    agent, history = by_hand(fresh(method), data, 4)
    original = cls.update
    monkeypatch.setattr(cls, "update", lambda *arguments: traces.append(1) or original(*arguments))
    middle, _ = train_chunk((data, 2), fresh(method))
    last, metrics = train_chunk((data, 2), middle)
    assert len(traces) == 1, "the second chunk was compiled again"
    assert same(agent, last) and metrics.keys() == history[0].keys()
    assert all(np.array_equal(metrics[name][k], history[k + 2][name]) for k in (0, 1) for name in metrics)


@pytest.mark.parametrize("method", METHODS)
def test_every_array_of_the_networks_moves(method):
    """In four updates; statistics of the dataset, the key and targets of zeros (biases move late) aside."""
    before, after = fresh(method), by_hand(fresh(method), data_for(method), 4)[0]
    ours, theirs = named_arrays(before), named_arrays(after)
    still = [name for name in ours if np.array_equal(ours[name], theirs[name])]
    assert all(name == "key" or name.startswith("statistics") for name in still), still


def agent_with(agent, network: str):
    """The agent with that network's arrays moved a little."""
    moved = jax.tree.map(lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), getattr(agent, network))
    return eqx.tree_at(lambda a: getattr(a, network), agent, moved)


@pytest.mark.parametrize("method", RIVALS)
def test_who_reads_whom(method):
    """The gradient of a loss depends on the networks that the loss reads, and on no other.

    Told by Adam's first moment after one update, which is 0.1 times the gradient; for targets by their change.
    """
    agent, data, key = fresh(method), data_for(method), jr.key(5)
    if method == "rebrac":
        agent = eqx.tree_at(lambda a: a.step, agent, jnp.ones_like(agent.step))  # the next update moves its actor and averages too
    if method == "q-transformer":
        data = eqx.tree_at(lambda b: b.returns, data, jnp.zeros_like(data.returns))  # returns near 1 would hide the target network
    # Apart, so that a change of the target is not hidden by its being the network.
    for network in READS[method]:
        if network.startswith("target_"):
            agent = agent_with(agent, network)

    def effects(agent):
        after, _ = update(agent, sample(data, 5, jr.key(1)), key)
        found = {}
        for network in READS[method]:
            if network.startswith("target_"):
                found[network] = named_arrays(getattr(after, network))
            else:
                moments = [x for x in jax.tree.leaves(getattr(after, f"{network}_state"), is_leaf=is_adam) if is_adam(x)]
                found[network] = named_arrays(moments[0].mu)
        return found

    is_adam = lambda x: hasattr(x, "mu")
    before = effects(agent)
    for network in READS[method]:
        after = effects(agent_with(agent, network))
        changed = {name for name in before if any(not np.array_equal(before[name][x], after[name][x]) for x in before[name])}
        assert changed == {name for name, read in READS[method].items() if network in read.split()}, network


# ---------------------------------------------------------------- acting, settings, names


@pytest.mark.parametrize("method", METHODS)
def test_actions_are_in_range_whatever_the_weights(method):
    """Every network ten times as large: means and flows leave [-1, 1], actions do not, and some touch its ends."""
    agent = fresh(method)
    larger = jax.tree.map(lambda x: 10 * x if eqx.is_inexact_array(x) else x, eqx.filter(agent, eqx.is_inexact_array))
    agent = eqx.combine(larger, agent)
    assert agent.policies[0] == "policy" and (agent.n_s, agent.n_a) == (N_S, N_A)
    states = 3 * jr.normal(jr.key(1), (17, N_S))
    for name in agent.policies:
        actions = jax.jit(jax.vmap(agent.policy(name)))(states, jr.split(jr.key(2), 17))
        assert actions.shape == (17, N_A) and np.abs(actions).max() <= 1 and np.abs(actions).max() > 0.5
        assert np.isfinite(actions).all() and len(np.unique(actions, axis=0)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_settings_come_back_from_json(method):
    for preset in method_class(method).presets.values():
        for config in (preset(MAZE), tiny(method), preset("scene-play-singletask-task2-v0")):
            assert config.method == method
            assert config_from_dict(json.loads(json.dumps(asdict(config))), method) == config


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_all_methods_are_checked(method):
    config = tiny(method)
    for change, message in (
        (dict(task="cube"), "there is no task 'cube'"),
        (dict(batch_size=0), "batch_size is 0; it must be at least 1"),
        (dict(steps=7), "steps 7 is no multiple of updates_per_call 2"),
        (dict(discount=1.0), "discount 1.0 must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
    rates = [field.name for field in fields(config) if field.name.endswith("lr") or field.name.startswith("alpha")]
    assert rates
    for name in rates:
        with pytest.raises(ValueError, match=f"{name} is -1.0; it must be at least 0"):
            replace(config, **{name: -1.0})


def test_a_method_that_there_is_not():
    with pytest.raises(ValueError, match="there is no method 'qfl'; choose one of tql, bc, iql"):
        method_class("qfl")
    assert {name: method_class(name).Config.method for name in METHODS} == {name: name for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_is_an_agent(method):
    agent, config = fresh(method), tiny(method)
    assert same(agent, initialise(N_S, N_A, config, statistics(random_data())))
    other = initialise(N_S, N_A, replace(config, seed=4), statistics(random_data()))
    weights = [name for name in named_arrays(agent) if name.endswith(".weight") and "norm" not in name and "_state" not in name]
    assert weights and all(not np.array_equal(named_arrays(agent)[name], named_arrays(other)[name]) for name in weights)
    targets = [name for name in named_arrays(agent) if name.startswith("target_")]
    for name in targets:
        online = named_arrays(agent)[name.removeprefix("target_")]
        np.testing.assert_array_equal(named_arrays(agent)[name], online, err_msg="a target begins as a copy")
    assert bool(targets) == (method != "bc")


def test_every_row_of_a_batch_has_noise_of_its_own():
    noise = batch_noise(lambda key: draw_noise(N_A, key=key), jr.key(0), random_data())
    for part in (noise.next_action, noise.x_0, noise.t, noise.z):
        assert len(np.unique(part, axis=0)) == ROWS


# ---------------------------------------------------------------- runs


def maze_run(method: str, maze_file, run, until: int | None = None):
    config = tiny(method)
    return runs.train(*runs.start(config, maze_file, run), run, workers=1, until=until)


@pytest.mark.parametrize("method", ["fql"])
@pytest.mark.usefixtures("no_simulator")
def test_a_run_is_trained_resumed_evaluated_and_drawn(method, tmp_path, maze_file):
    whole, run, config = tmp_path / "whole", tmp_path / "run", tiny(method)
    agent = maze_run(method, maze_file, whole)
    maze_run(method, maze_file, run, until=4)
    resumed = runs.train(*runs.resume(run, Task.parse(MAZE), config), run, workers=1)
    assert same(agent, resumed) and same(agent, run_directory.trained_agent(run)) and int(resumed.step) == 8
    without_time = lambda run: [{name: x for name, x in line.items() if name != "time"} for line in run_directory.read_metrics(run)]
    assert without_time(run) == without_time(whole) and [line["step"] for line in without_time(run)] == [2, 4, 6, 8]
    rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["policy"]) for row in rows] == [(4, "policy")] * 2 + [(8, "policy")] * 2

    about = json.loads((run / "config.json").read_text())
    assert (about["method"], about["policies"], about["config"]) == (method, ["policy"], json.loads(json.dumps(asdict(config))))
    settings = run_directory.read_settings(run)
    assert settings.config == config and settings.policies == ("policy",) and settings.target is None
    assert plot(run).stat().st_size > 10_000
    with pytest.raises(RunError, match="there is no policy 'behaviour'; choose one of policy"):
        runs.wave_policy(agent, "behaviour")


@pytest.mark.usefixtures("no_simulator")
def test_a_run_of_one_method_is_not_resumed_as_another(tmp_path, maze_file):
    runs.start(tiny("bc"), maze_file, tmp_path / "run")
    with pytest.raises(RunError, match=r"other settings \(method: fql instead of bc\)"):
        runs.resume(tmp_path / "run", Task.parse(MAZE), tiny("fql"))


@pytest.mark.parametrize("method", METHODS)
def test_whatever_a_method_logs_can_be_drawn(method, tmp_path, maze_file, monkeypatch):
    """From the names of its metrics alone: nothing is compiled or trained."""
    config, agent, data = tiny(method), fresh(method), data_for(method)
    metrics = eqx.filter_eval_shape(lambda agent: agent.update(sample(data, 5, jr.key(1)), jr.key(0))[1], agent)
    run_directory.write_settings(tmp_path, agent, maze_file)
    draw = np.random.default_rng(0).uniform
    lines = [{"step": step, "time": 0.0} | {name: draw(0.1, 1, x.shape).tolist() for name, x in metrics.items()} for step in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot(tmp_path).exists() and run_directory.read_settings(tmp_path).config == config
    assert agent.progress(lines[0]) and "nan" not in agent.progress(lines[0])
