"""Losses, gradients, optimiser steps and target updates against the reference's own: `golden/losses.npz`.

The batch, the weights and the noise of every update are the file's; what is compared is computed by `tql.loop` alone.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from tql import loop, optimise
from tql.checkpoint import critic_from_arrays, foreign_name
from tql.config import ActorConfig, Config, ControlConfig, CriticConfig
from tql.data import Batch
from tql.flow_actor import Noise
from tql.linear import decayed

BATCH = ("observations", "actions", "rewards", "masks", "next_observations")
NETWORKS = {"critic": "critic", "target_critic": "target_critic", "actor.flow": "bc_flow", "actor.one_step": "one_step"}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def config(golden, schedule="fast"):
    c = {name.rpartition("/")[2]: x.item() for name, x in golden.items() if name.startswith(f"{schedule}_schedule/config/")}
    steps, warmup = int(c["train_steps"]), int(c["warmup"])
    return Config(
        task="cube-double-play-singletask-v0",
        steps=steps,
        batch_size=16,
        discount=golden["config/discount"].item(),
        tau=golden["config/tau"].item(),
        critic_lr=c["critic_lr"],
        temperature_lr=c["critic_lr"],
        actor_lr=c["actor_lr"],
        weight_decay=c["weight_decay"],
        warmup=warmup,
        critic=CriticConfig(d_model=64),
        actor=ActorConfig(hidden=(32, 32, 32, 32), alpha_bc=golden["config/alpha"].item()),
        control=ControlConfig(target=tuple(map(tuple, golden["config/entropy_target"].tolist()))),
        **{"updates_per_call": 1, "log_every": steps, "checkpoint_every": steps, "evaluate_every": steps},
    )


def mlp(like, arrays):
    """Our MLP with the arrays `layer{i}/kernel|bias` and `norm{i}/scale|bias`."""
    for i in range(len(like.layers)):
        pair = arrays[f"layer{i}/kernel"].T, arrays[f"layer{i}/bias"]
        like = eqx.tree_at(lambda m: (m.layers[i].weight, m.layers[i].bias), like, tuple(map(jnp.asarray, pair)))
    for i in range(len(like.norms)):
        pair = arrays[f"norm{i}/scale"], arrays[f"norm{i}/bias"]
        like = eqx.tree_at(lambda m: (m.norms[i].weight, m.norms[i].bias), like, tuple(map(jnp.asarray, pair)))
    return like


def agent(golden, dtype, schedule="fast"):
    """The agent before any update."""

    def arrays(network):
        prefix = f"params/{network}/"
        return {name.removeprefix(prefix): x.astype(dtype) for name, x in golden.items() if name.startswith(prefix)}

    fresh = loop.initialise(7, 3, config(golden, schedule))
    if dtype == np.float64:  # with integer counters optax computes rates in float32, 1e-6 off; the golden ones are exact
        as_float = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.integer) else x
        states = lambda a: (a.critic_state, a.controller_state, a.actor_state)
        fresh = eqx.tree_at(states, fresh, jax.tree.map(as_float, states(fresh)))
    return eqx.tree_at(
        lambda a: (a.critic, a.target_critic, a.actor.flow, a.actor.one_step, a.controller.log_alpha),
        fresh,
        (
            critic_from_arrays(arrays("critic"), 2),
            critic_from_arrays(arrays("target_critic"), 2),
            mlp(fresh.actor.flow, arrays("bc_flow")),
            mlp(fresh.actor.one_step, arrays("one_step")),
            jnp.asarray(golden["params/temperature_raw"].astype(dtype)),
        ),
    )


def batch(golden, dtype):
    rows = {name: jnp.asarray(golden[f"batch/{name}"].astype(dtype)) for name in BATCH}
    return Batch(**rows, next_actions=jnp.full_like(rows["actions"], jnp.nan))  # the flow actor must not look at it


def noise(golden, k, dtype):
    x = {name: jnp.asarray(golden[f"noise/update{k}/{name}"].astype(dtype)) for name in ("next_action", "flow_x0", "one_step")}
    return Noise(x["next_action"], x["flow_x0"], jnp.asarray(golden[f"noise/update{k}/flow_t"].astype(dtype)[:, 0]), x["one_step"])


def leaves(agent):
    """Every trained array under its golden name, flat in the golden order."""
    out = {"temperature_raw": np.asarray(agent.controller.log_alpha).ravel()}
    for path, network in NETWORKS.items():
        model = agent
        for part in path.split("."):
            model = getattr(model, part)
        for keypath, x in jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array)):
            name = plain_name(network, jax.tree_util.keystr(keypath).lstrip("."))
            out[f"{network}/{name}"] = np.asarray(x.reshape(x.shape[0], -1).T if name.endswith("kernel") else x).ravel()
    return out


def plain_name(network, path):
    if "critic" in network:
        return foreign_name(path)
    kind, i, field = re.fullmatch(r"(layer|norm)s\[(\d)\]\.(weight|bias)", path).groups()
    return f"{kind}{i}/{'bias' if field == 'bias' else {'layer': 'kernel', 'norm': 'scale'}[kind]}"


def losses_and_gradients(agent, batch, noise):
    c = agent.config
    (_, (H, critic_metrics)), of_critic = eqx.filter_value_and_grad(loop.critic_loss, has_aux=True)(
        agent.critic, agent.target_critic, agent.actor, agent.controller, batch, noise, c.discount
    )
    (_, temperature), of_controller = eqx.filter_value_and_grad(loop.temperature_loss, has_aux=True)(agent.controller, H)
    (_, actor), of_actor = eqx.filter_value_and_grad(loop.actor_loss, has_aux=True)(
        agent.actor, agent.critic, batch, noise, c.actor.alpha_bc
    )
    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(agent.target_critic, eqx.is_inexact_array))
    grads = eqx.tree_at(
        lambda a: (a.critic, a.target_critic, a.actor, a.controller), agent, (of_critic, nothing, of_actor, of_controller)
    )
    return critic_metrics | temperature | actor, grads


GOLDEN_LOSSES = {
    "td_loss": "q_loss",
    "attention_loss": "attention_entropy_loss",
    "temperature_loss": "temperature_loss",
    "flow_loss": "bc_flow_loss",
    "distillation_loss": "distill_loss",
}


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 5e-6), (64, 1e-12)])
def test_losses_and_every_gradient(golden, bits, tolerance):
    with jax.enable_x64(bits == 64):
        dtype = np.dtype(f"float{bits}")
        metrics, grads = eqx.filter_jit(losses_and_gradients)(agent(golden, dtype), batch(golden, dtype), noise(golden, 0, dtype))
        for ours, theirs in GOLDEN_LOSSES.items():
            assert metrics[ours].dtype == dtype
            np.testing.assert_allclose(metrics[ours], golden[f"f{bits}/update0/loss/{theirs}"], rtol=0, atol=tolerance, err_msg=ours)
        np.testing.assert_allclose(-metrics["actor_q"], golden[f"f{bits}/update0/loss/actor_q_loss"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(metrics["entropy"], golden[f"f{bits}/update0/aux/entropy"], rtol=0, atol=tolerance)
        if bits == 64:
            grads = leaves(grads)
            prefix = "f64/update0/grad/"
            expected = {name.removeprefix(prefix): x.ravel() for name, x in golden.items() if name.startswith(prefix)}
            assert set(grads) >= set(expected)
            for name, g in grads.items():
                np.testing.assert_allclose(g, expected.get(name, np.zeros_like(g)), rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_three_successive_updates(golden, x64, optax_promotion, schedule):
    """Optimisers, decay, schedule and lagged target: every leaf's change at every update."""
    before = start = agent(golden, np.float64, schedule)
    update = eqx.filter_jit(loop.update_with_noise)
    for k in range(3):
        after, metrics = update(before, batch(golden, np.float64), noise(golden, k, np.float64))
        prefix = f"f64/{schedule}_schedule/update{k}"
        if k:
            for ours, theirs in GOLDEN_LOSSES.items():
                np.testing.assert_allclose(metrics[ours], golden[f"{prefix}/loss/{theirs}"], rtol=1e-10, err_msg=f"{k} {ours}")
            np.testing.assert_allclose(metrics["entropy"], golden[f"{prefix}/aux/entropy"], rtol=1e-10)
        new, old = leaves(after), leaves(before)
        for name in new:
            # The exact gradient of a key bias is 0; Adam turns its round-off into steps of about 1e-11.
            tolerance = dict(rtol=0, atol=1e-9) if name.endswith("key/bias") else dict(rtol=1e-9, atol=0)
            change = np.linalg.norm(new[name] - old[name])
            np.testing.assert_allclose(change, golden[f"{prefix}/param_change_norm/{name}"], err_msg=f"{k} {name}", **tolerance)
        np.testing.assert_allclose(after.controller.log_alpha, golden[f"{prefix}/temperature_raw_after"], rtol=0, atol=1e-12)
        before = after
    new, old = leaves(after), leaves(start)
    for name in new:
        total = golden.get(f"f64/{schedule}_schedule/update2/total_change/{name}")
        if total is not None:
            np.testing.assert_allclose(new[name] - old[name], total.ravel(), rtol=0, atol=1e-9, err_msg=name)
        probe = np.sum((new[name] - old[name]) * np.cos(np.arange(new[name].size)))
        np.testing.assert_allclose(
            probe, golden[f"f64/{schedule}_schedule/update2/total_change_probe/{name}"], rtol=1e-6, atol=1e-9, err_msg=name
        )
    assert int(after.step) == 3


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_schedule(golden, x64, optax_promotion, schedule):
    c = config(golden, schedule)
    counts = golden[f"schedule/{schedule}/count"]
    for name, peak in (("critic_lr", c.critic_lr), ("actor_lr", c.actor_lr)):
        ours = [loop.schedule(peak, c)(jnp.asarray(float(count))) for count in counts]
        np.testing.assert_allclose(ours, golden[f"schedule/{schedule}/{name}"], rtol=1e-9, atol=0)


def test_decay_set(golden, optax_promotion):
    """By the mask, and by what moves when every gradient is zero."""
    a = agent(golden, np.float32)
    expected = set(golden["decay/decayed_leaves"].tolist())
    models = eqx.tree_at(lambda a: (a.critic, a.actor), a, (decayed(a.critic), decayed(a.actor)))
    marked = {
        name
        for network, model in (("critic", models.critic), ("bc_flow", models.actor.flow), ("one_step", models.actor.one_step))
        for path, flag in jax.tree_util.tree_leaves_with_path(model)
        for name in [f"{network}/{plain_name(network, jax.tree_util.keystr(path).lstrip('.'))}"]
        if flag
    }
    assert marked == expected

    optimiser, _, _ = loop.optimisers(a.config)
    params = eqx.filter(a.critic, eqx.is_inexact_array)
    moved, _ = loop.descend(optimiser, a.critic, jax.tree.map(jnp.zeros_like, params), optimiser.init(params))
    new, old = leaves(eqx.tree_at(lambda a: a.critic, a, moved)), leaves(a)
    assert {name for name in new if np.any(new[name] != old[name])} == {name for name in expected if name.startswith("critic/")}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["target_from_new_critic", "decay_every_matrix", "schedule_off_by_one"])
def test_the_update_check_sees_the_usual_mistakes(golden, x64, optax_promotion, monkeypatch, mutant):
    """With one thing done wrong, some leaf's change over two updates is off by far more than the tolerance above."""
    if mutant == "decay_every_matrix":
        monkeypatch.setattr(optimise, "decayed", lambda model: jax.tree.map(lambda x: x.ndim > 1, model))
    if mutant == "schedule_off_by_one":
        right = optimise.schedule
        monkeypatch.setattr(optimise, "schedule", lambda peak, c: lambda count: right(peak, c)(count + 1))
    before = agent(golden, np.float64)
    update = eqx.filter_jit(lambda *args: loop.update_with_noise(*args))
    for k in range(2):
        after, _ = update(before, batch(golden, np.float64), noise(golden, k, np.float64))
        if mutant == "target_from_new_critic":
            wrong = loop.polyak(after.critic, before.target_critic, before.config.tau)
            after = eqx.tree_at(lambda a: a.target_critic, after, wrong)
        previous, before = before, after
    new, old = leaves(after), leaves(previous)
    errors = [
        abs(np.linalg.norm(new[name] - old[name]) - golden[f"f64/fast_schedule/update1/param_change_norm/{name}"]) for name in new
    ]
    assert max(errors) > 1e-5
