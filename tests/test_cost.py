"""What training needs by count, against JAX and against XLA's own plans."""

import re
from dataclasses import fields, replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from tql.agent import batch_noise
from tql.config import ActorConfig, CriticConfig
from tql.flow_actor import actor_loss, draw_noise
from tql.loop import critic_loss
from tql.ogbench.environment import make
from tql.ogbench.tasks import DOMAINS, STATE_SIZES, Task
from tql.presets import LARGER, PRESETS, SIZES
from tql.training.chunk import next_update
from tql.training.cost import (
    activations,
    agent_of,
    in_words,
    matmul_flops,
    memory,
    transitions_of,
    update_flops,
)
from tql.training.methods import method_class, new_agent

pytestmark = pytest.mark.usefixtures("optax_promotion")

TASK = "cube-double-play-singletask-task2-v0"
ROWS = 53


def settings(layers=2, **changes):
    actor, critic = ActorConfig(hidden=(11,), flow_steps=2), CriticConfig(128, layers=layers)
    control = replace(PRESETS["paper-0.4M"](TASK).control, target=None)
    config = replace(PRESETS["paper-0.4M"](TASK), actor=actor, critic=critic, control=control)
    return replace(config, batch_size=7, **changes)


is_struct = lambda x: isinstance(x, jax.ShapeDtypeStruct)
nbytes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree) if x.dtype != jr.key(0).dtype)
KEY = 8


@pytest.mark.parametrize("method", ["tql", "iql", "floq"])
def test_the_bytes_of_an_agent_are_those_of_its_arrays(method):
    """Of a method with any parts, and of TQL part by part."""
    config = settings() if method == "tql" else method_class(method).presets["pocket"](TASK)
    shapes, agent = agent_of(11, 3, config), new_agent(11, 3, config)
    need = memory(shapes, transitions_of(11, 3, ROWS))
    assert need.dataset == 4 * ROWS * (2 * 11 + 2 * 3 + 2)
    held = need.weights + need.targets + need.optimiser_state
    assert held == nbytes(eqx.filter(agent, eqx.is_array)) + KEY
    assert memory(agent, transitions_of(11, 3, ROWS)) == need
    if method == "tql":
        assert need.targets == nbytes(agent.target_critic)
        learners = (agent.critic, agent.controller, agent.actor)
        models = [eqx.filter(learner.model, eqx.is_array) for learner in learners]
        assert need.gradients == nbytes(models)
        assert need.weights == nbytes(models) + 4 + KEY, "and the number of updates and the key"
        parts = [getattr(need, field.name) for field in fields(need)]
        assert need.total == sum(parts) and need.activations == activations(config, 15)


def test_of_the_optimisers_state_each_device_has_its_part():
    """Six matrices of 128 x 512 numbers, in the two moments of the critic's two blocks and of no
    other shape, are as large as `LARGE`."""
    shapes, data = agent_of(11, 3, settings()), transitions_of(11, 3, ROWS)
    one, four = memory(shapes, data), memory(shapes, data, 4)
    cut = 2 * 2 * 2 * 4 * 128 * 512
    assert one.optimiser_state - four.optimiser_state == cut - cut // 4
    assert four.activations == one.activations // 4
    assert replace(one, optimiser_state=0, activations=0) == replace(
        four, optimiser_state=0, activations=0
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_rule_for_activations_counts_what_jax_keeps(layers):
    """The residuals of both losses that have the size of the tokens, of the inside of the MLP or of
    the logits, at sizes where no other array has one of these."""
    n_s, n_a = 11, 3
    config = settings(layers)
    B, d, h, n = config.batch_size, 128, 4, 1 + n_s + n_a
    arrays, static = eqx.partition(agent_of(n_s, n_a, config), is_struct)

    def kept(arrays, batch):
        agent = eqx.combine(arrays, static)
        noise = batch_noise(lambda key: draw_noise(n_a, key=key), jr.key(0), batch)
        critic, actor = agent.critic.model, agent.actor.model
        controller = agent.controller.model
        losses = (
            (critic, lambda x: critic_loss(x, critic, actor, controller, batch, noise, 0.9)),
            (actor, lambda x: actor_loss(x, critic, batch, noise, 1.0)),
        )
        residuals = []
        for model, loss in losses:
            weights, rest = eqx.partition(model, eqx.is_inexact_array)
            value = lambda weights, loss=loss, rest=rest: loss(eqx.combine(weights, rest))[0]
            residuals.append(jax.vjp(value, weights)[1])
        return residuals

    found = jax.tree.leaves(jax.eval_shape(kept, arrays, transitions_of(n_s, n_a, B)))
    sizes = {B * n * d, B * n * 4 * d, B * h * n * n}
    counted = sum(4 * x.size for x in found if x.size in sizes)
    assert counted == activations(config, n)


def test_other_parts_than_the_papers_have_no_rule():
    critic = CriticConfig(128, attention="qk-norm")
    assert activations(settings(), 7) and activations(replace(settings(), critic=critic), 7) is None
    assert activations(method_class("iql").presets["pocket"](TASK), 7) is None
    other = replace(settings(), actor=ActorConfig(kind="dataset"))
    assert activations(other, 7) is None
    assert "activations" not in in_words(agent_of(3, 2, other), transitions_of(3, 2, ROWS))


def test_xla_counts_the_same_operations_and_plans_about_that_memory():
    """One update at width 256: operations to 3 % (XLA also counts what is no product), and memory
    within a factor of 1.5."""
    config = replace(settings(), critic=CriticConfig(256), batch_size=32)
    agent, data = agent_of(37, 5, config), transitions_of(37, 5, ROWS)
    arrays, static = eqx.partition(agent, is_struct)

    def update(arrays, data):
        agent, metrics = next_update(eqx.combine(arrays, static), data)
        return eqx.filter(agent, eqx.is_array), metrics

    compiled = jax.jit(update, donate_argnums=0).lower(arrays, data).compile()
    flops, plan = compiled.cost_analysis()["flops"], compiled.memory_analysis()
    assert update_flops(agent, data) == pytest.approx(flops, rel=0.03)
    need = memory(agent, data)
    # The dataset's next actions, which this actor does not use, are not passed in.
    held = need.weights + need.targets + need.optimiser_state + need.dataset - 4 * ROWS * 5
    assert plan.argument_size_in_bytes == pytest.approx(held, abs=100)
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    assert 1 / 1.5 < need.total / planned < 1.5


def test_the_larger_presets_are_the_papers_rule():
    """Their widths give about 100 and 400 million parameters, with heads of 32 channels."""
    assert {**SIZES, **LARGER} == {
        **{"0.4M": 128, "1M": 256, "7M": 512, "26M": 1024}, "100M": 2048, "400M": 4096
    }  # fmt: skip
    for size, count in (("100M", 105e6), ("400M", 419e6)):
        config = PRESETS[f"paper-{size}"](TASK)
        small = PRESETS["paper-0.4M"](TASK)
        assert replace(config, critic=small.critic) == small
        critic = agent_of(37, 5, config).critic.model
        parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(critic, is_struct)))
        assert parameters == pytest.approx(count, rel=0.01)
        assert critic.blocks[0].attention.heads == critic.d_model // 32


ROW = re.compile(r"^\| ([\d.]+M) \| (\d+) \| ([\d,]+) \| (.+) \|$", re.MULTILINE)


def test_the_books_table_is_what_the_command_says():
    page = (Path(__file__).parents[1] / "walkthrough" / "cluster.md").read_text()
    rows = ROW.findall(page)
    assert {size: int(width) for size, width, *_ in rows} == SIZES | LARGER
    data = transitions_of(37, 5, 1_000_000)
    for size, _, parameters, numbers in rows:
        agent = agent_of(37, 5, PRESETS[f"paper-{size}"](TASK))
        leaves = jax.tree.leaves(eqx.filter(agent.critic.model, is_struct))
        assert f"{sum(x.size for x in leaves):,}" == parameters
        one, eight = memory(agent, data), memory(agent, data, 8)
        state = one.weights + one.targets + one.optimiser_state
        found = (state, one.gradients, one.activations, one.total, eight.total)
        words = [f"{x / 1e9:.2f}" for x in found] + [f"{update_flops(agent, data) / 1e12:.3f}"]
        assert " | ".join(words) == numbers, size


@pytest.mark.parametrize("domain", ["cube-quadruple", "scene", "pointmaze-medium"])
def test_the_size_of_a_state_is_the_environments(domain):
    kind = "navigate" if domain in DOMAINS["navigate"] else "play"
    task = Task.parse(f"{domain}-{kind}-singletask-v0")
    environment = make(task)
    sizes = environment.observation_space.shape, environment.action_space.shape
    environment.close()
    assert sizes == tuple((size,) for size in task.sizes)
    assert set(STATE_SIZES) == {domain for domains in DOMAINS.values() for domain in domains}


def test_matrix_products_are_counted_by_hand():
    x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert matmul_flops(lambda: x @ y) == 2 * 3 * 5 * 7
    # A batch dimension, here of 11, multiplies what every member costs.
    assert matmul_flops(lambda: jax.vmap(lambda s: (s * x) @ y)(jnp.ones(11))) == 11 * 2 * 3 * 5 * 7
    # Two products in every step of a loop of 13, each inside another jit.
    inner = jax.jit(lambda z: z @ jnp.ones((3, 3)))
    loop = lambda: jax.lax.scan(lambda z, _: (inner(inner(z)), None), x.T, None, length=13)
    assert matmul_flops(loop) == 13 * 2 * 2 * 5 * 3 * 3
    assert matmul_flops(lambda: x + 1) == 0
