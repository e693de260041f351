"""The speed measurement: what is counted equals a count by hand, both loops make the same updates; no test looks at a clock."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql import __main__ as command_line
from tql import bench as measurement
from tql.agent import initialise, method_class
from tql.bench import (
    HEADER,
    N_A,
    N_S,
    TASK,
    PlainCritic,
    Row,
    as_published,
    bench,
    matmul_flops,
    measure,
    methods,
    plain_loop,
    shipped_loop,
    synthetic,
    update_flops,
    widths,
)
from tql.config import METHODS, ActorConfig, CriticConfig
from tql.data import statistics

pytestmark = pytest.mark.usefixtures("optax_promotion")

B = 7


def tiny(method):
    """The settings of a method cut down to a batch of 7 and narrow networks."""
    config = replace(methods(method)[method], batch_size=B)
    match method:
        case "bc":
            return replace(config, hidden=(11, 13))
        case "tql":
            return replace(config, critic=CriticConfig(d_model=32), actor=ActorConfig(kind="dataset"))
        case "q-transformer":
            return replace(config, d_model=8, heads=2, layers=1, bins=3)


def fresh(config, rows=53):
    """An agent and its data."""
    data = synthetic(rows)
    agent = initialise(N_S, N_A, config, statistics(data))
    return agent, agent.prepare(data, config)


# What is measured.


def test_every_method_is_measured_at_its_published_settings():
    configs = methods("all")
    assert list(configs) == list(METHODS) and {config.batch_size for config in configs.values()} == {256}
    for name, config in configs.items():
        assert config == (method_class(name).presets["paper-0.4M" if name == "tql" else "paper"])(TASK)
    assert list(methods("pac")) == ["pac"]
    with pytest.raises(ValueError, match="there is no method 'sarsa'; choose one of tql, bc"):
        methods("sarsa")


def test_widths_are_crossed_with_batch_sizes():
    configs = widths((64, 96), (5, 7, 11))
    assert [(c.critic.d_model, c.batch_size) for c in configs.values()] == [(64, 5), (64, 7), (64, 11), (96, 5), (96, 7), (96, 11)]
    assert {c.actor for c in configs.values()} == {ActorConfig()}


def test_synthetic_data_have_two_rewards_and_a_mask_where_solved():
    data = synthetic(301)
    assert data.observations.shape == data.next_observations.shape == (301, 37) and data.next_actions.shape == (301, 5)
    assert np.flatnonzero(data.rewards == 0).tolist() == np.flatnonzero(data.masks == 0).tolist() == [0, 100, 200, 300]
    assert set(np.asarray(data.rewards)) == {-1, 0} and set(np.asarray(data.masks)) == {0, 1}


# Counts.


def test_a_matrix_product_is_counted_by_hand():
    x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert matmul_flops(lambda: x @ y) == 2 * 3 * 5 * 7
    assert matmul_flops(lambda: jax.vmap(lambda row: row @ y)(x)) == 2 * 3 * 5 * 7
    # A batch dimension, here of 11, multiplies what every member costs.
    assert matmul_flops(lambda: jax.vmap(lambda s: (s * x) @ y)(jnp.ones(11))) == 11 * 2 * 3 * 5 * 7
    # Two products in every step of a loop of 13, one of them inside another jit.
    inner = jax.jit(lambda z: z @ jnp.ones((3, 3)))
    assert matmul_flops(lambda: jax.lax.scan(lambda z, _: (inner(inner(z)), None), x.T, None, length=13)) == 13 * 2 * 2 * 5 * 3 * 3
    assert matmul_flops(lambda: x + 1) == 0


def test_the_update_of_an_mlp_is_counted_by_hand():
    """A layer of d_in x d_out is 2 B d_in d_out operations forward, as many for its matrix and as many for its input; data need none."""
    products = [37 * 11, 11 * 13, 13 * 5]
    agent, data = fresh(tiny("bc"))
    assert update_flops(agent, data) == 2 * B * (3 * sum(products) - products[0])


# The two loops.


def test_both_loops_make_the_number_of_updates_they_are_asked_for():
    agent, data = fresh(tiny("bc"))
    before = np.asarray(agent.actor.net.layers[0].weight)
    shipped, plain = shipped_loop(agent, data, 3), plain_loop(agent, data)
    for updates, made in ((3, 3), (6, 9)):
        ours, theirs = shipped(updates), plain(updates)
        assert int(ours.step) == int(theirs.step) == made
        assert int(ours.actor_state[0].count) == int(theirs.actor_state[0].count) == made
    assert not np.allclose(ours.actor.net.layers[0].weight, before) and not np.allclose(theirs.actor.net.layers[0].weight, before)
    # The agent given is neither consumed nor changed.
    np.testing.assert_array_equal(agent.actor.net.layers[0].weight, before)


def test_the_plain_loop_makes_the_methods_own_update():
    """A dataset of one row, so that both loops see the same batches, and a method without noise."""
    agent, data = fresh(tiny("bc"))
    data = jax.tree.map(lambda x: x[:1], data)
    ours, theirs = shipped_loop(agent, data, 2)(4), plain_loop(agent, data)(4)
    for a, b in zip(jax.tree.leaves(ours.actor), jax.tree.leaves(theirs.actor)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tql_as_published_makes_the_same_update_with_more_work():
    agent, data = fresh(tiny("tql"))
    batch = jax.tree.map(lambda x: x[:B], data)
    plain = as_published(agent)
    assert isinstance(plain.critic, PlainCritic) and isinstance(plain.target_critic, PlainCritic)
    ours, metrics = jax.jit(lambda: agent.update(batch, jr.key(3)))()
    theirs, same_metrics = jax.jit(lambda: plain.update(batch, jr.key(3)))()
    for name, value in metrics.items():
        np.testing.assert_allclose(same_metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(ours.critic_state), jax.tree.leaves(theirs.critic_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    assert update_flops(plain, data) > update_flops(agent, data)
    other, _ = fresh(tiny("bc"))
    assert as_published(other) is other


# Rates and rows.


def test_a_rate_is_that_of_a_call_which_lasts_long_enough(monkeypatch):
    """By a clock on which an update takes a quarter of a second and the first call five seconds more."""
    now, asked = [0.0], []
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now[0])

    def loop(updates):
        asked.append(updates)
        now[0] += updates / 4

    assert measurement.rate(loop, 3, 20.0) == 4
    assert asked[0] == 3 and asked[-1] >= 80 and all(updates % 3 == 0 for updates in asked) and asked == sorted(asked)


def row(**changes):
    values = dict(flops=3e9, matmul_rate=1e11, call_seconds=0.02, updates_per_call=2, compile_seconds=1.5, peak_bytes=2 * 10**9)
    return Row("bc", shipped=(8.0, 10.0, 20.0), plain=(4.0, 5.0, 40.0), **values | changes)


def test_time_over_the_ideal_by_hand():
    # 0.1 s an update, of which matrix products need 0.03 s, and half of a call's 0.02 s is its own.
    assert row().over_ideal == pytest.approx(0.1 / (0.03 + 0.01))
    assert row(updates_per_call=1, flops=0.0).over_ideal == pytest.approx(0.1 / 0.02)


def test_a_row_stands_under_its_header():
    text = str(row())
    assert text.split() == "bc 10.00 5.00 2.00 (0.50 to 2.00) 3.00 30.0 30% 2.50 2 1.5 2.00".split()
    for column, word in {"shipped": "10.00", "plain": "5.00", "of matmul": "30%", "over ideal": "2.50", "peak GB": "2.00"}.items():
        end = HEADER.index(column) + len(column)
        assert text[:end].endswith(word), column


def test_one_measurement(monkeypatch):
    """Of a method that adds columns to the data."""
    monkeypatch.setattr(measurement, "best_matmul_rate", lambda: 1.0)
    monkeypatch.setattr(measurement, "synthetic", lambda: synthetic(53))
    monkeypatch.setattr(measurement, "rate", lambda loop, unit, seconds: float(loop(unit).step))
    agent, data = fresh(tiny("q-transformer"))
    found = measure("mine", tiny("q-transformer"), repeats=3, seconds=0.0)
    # One update of the plain loop and one call of the shipped one go before, which compile.
    assert found.name == "mine" and found.shipped == (4.0, 6.0, 8.0) and found.plain == (2.0, 3.0, 4.0)
    assert found.flops == update_flops(agent, data) > 0 and found.matmul_rate == 1 and found.updates_per_call == 2
    assert found.call_seconds > 0 and found.compile_seconds > 0 and found.peak_bytes > 10**7


def test_the_table(capfd):
    """In a process of its own, as always."""
    (found,) = bench({"mine": tiny("bc")}, repeats=1, seconds=0.01)
    printed = capfd.readouterr().out.splitlines()
    assert printed[1:3] == [HEADER, str(found)] and "GFLOP/s on" in printed[3] and len(printed) == 4
    # By a machine's rate, an update of a few thousand operations is short.
    assert found.matmul_rate > 1e8 and found.updates_per_call == 20


# The command line.


def test_the_command_line(monkeypatch):
    asked = []
    monkeypatch.setattr(measurement, "bench", lambda *arguments: asked.append(arguments))

    def tql(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", "bench", *arguments])
        command_line.main()
        return asked.pop()

    assert tql() == (widths((64, 128, 256, 512), (64, 256)), 3, 4.0)
    assert tql("--d-model", "96", "--batch-size", "7", "11", "--repeats", "5") == (widths((96,), (7, 11)), 5, 4.0)
    assert tql("--method", "all", "--seconds", "2") == (methods("all"), 3, 2.0)
    assert tql("--method", "pac") == (methods("pac"), 3, 4.0)
    with pytest.raises(SystemExit, match="^tql: there is no method 'sarsa'; choose one of"):
        tql("--method", "sarsa")
