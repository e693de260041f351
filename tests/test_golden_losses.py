"""Losses, gradients, optimiser steps and target updates against the reference's own:
`golden/losses.npz`.

The batch, the weights and the noise of every update are the file's; what is compared is computed by
`tql.loop` alone.
"""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax_names import critic_from_arrays, foreign_name, path_of

from tql import loop, optimise
from tql.batch import Transition
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.entropy_controller import AbstractEntropyController, NoControl, Target
from tql.flow_actor import Noise
from tql.layers import decayed
from tql.optimise import Learner, polyak, value_and_grad

BATCH = {
    **{"s": "observations", "a": "actions", "r": "rewards", "m": "masks"},
    "s_next": "next_observations",
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def config(golden, schedule="fast"):
    prefix = f"{schedule}_schedule/config/"
    c = {name.removeprefix(prefix): x.item() for name, x in golden.items() if prefix in name}
    steps, warmup = int(c["train_steps"]), int(c["warmup"])
    return TQLConfig(
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
        updates_per_call=1,
    )


def mlp(like, arrays):
    """Our MLP with the arrays `layer{i}/kernel|bias` and `norm{i}/scale|bias`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [plain_name("mlp", path_of(path)) for path, _ in leaves]
    ours = [arrays[name].T if name.endswith("kernel") else arrays[name] for name in names]
    return jax.tree_util.tree_unflatten(structure, list(map(jnp.asarray, ours)))


def agent(golden, dtype, schedule="fast"):
    """The agent before any update."""

    def arrays(network):
        prefix = f"params/{network}/"
        found = {name: x for name, x in golden.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): x.astype(dtype) for name, x in found.items()}

    fresh = loop.TQL.create(7, 3, config(golden, schedule))
    if dtype == np.float64:
        # With integer counters optax computes rates in float32, 1e-6 off; golden ones are exact.
        is_count = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
        as_float = lambda x: x.astype(float) if is_count(x) else x
        states = lambda a: [x.optimiser_state for x in (a.critic, a.controller, a.actor)]
        fresh = eqx.tree_at(states, fresh, jax.tree.map(as_float, states(fresh)))
    actor = fresh.actor.model
    return eqx.tree_at(
        networks,
        fresh,
        [
            critic_from_arrays(arrays("critic"), 2, 7),
            critic_from_arrays(arrays("target_critic"), 2, 7),
            mlp(actor.flow, arrays("bc_flow")),
            mlp(actor.one_step, arrays("one_step")),
            jnp.asarray(golden["params/temperature_raw"].astype(dtype)),
        ],
    )


def networks(agent):
    """What learns, in the order of `NETWORKS`, and the temperatures."""
    actor = agent.actor.model
    critics = [agent.critic.model, agent.target_critic]
    return [*critics, actor.flow, actor.one_step, agent.controller.model.log_alpha]


NETWORKS = ("critic", "target_critic", "bc_flow", "one_step")


def batch(golden, dtype):
    rows = {
        ours: jnp.asarray(golden[f"batch/{name}"].astype(dtype)) for ours, name in BATCH.items()
    }
    # The flow actor must not look at the dataset's next action.
    return Transition(**rows, a_next=jnp.full_like(rows["a"], jnp.nan))


def noise(golden, k, dtype):
    drawn = lambda name: jnp.asarray(golden[f"noise/update{k}/{name}"].astype(dtype))
    t = drawn("flow_t")[:, 0]
    return Noise(drawn("next_action"), drawn("flow_x0"), t, drawn("one_step"))


def leaves(agent):
    """Every trained array under its golden name, flat in the golden order."""
    *models, log_alpha = networks(agent)
    out = {"temperature_raw": np.asarray(log_alpha).ravel()}
    for network, model in zip(NETWORKS, models, strict=True):
        for path, x in jax.tree_util.tree_leaves_with_path(model):
            name = plain_name(network, path_of(path))
            x = x.reshape(x.shape[0], -1).T if name.endswith("kernel") else x
            out[f"{network}/{name}"] = np.asarray(x).ravel()
    return out


def plain_name(network, path):
    if "critic" in network:
        return foreign_name(path)
    kind, i, field = re.fullmatch(r"(layer|norm)s\[(\d)\]\.(weight|bias)", path).groups()
    field = {"layerweight": "kernel", "normweight": "scale"}.get(kind + field, field)
    return f"{kind}{i}/{field}"


def losses_and_gradients(agent, batch, noise):
    """The metrics, and an agent with gradients in the place of its networks."""
    c, critic, actor = agent.config, agent.critic.model, agent.actor.model
    held = (agent.target_critic, actor, agent.controller.model, batch, noise, c.discount)
    (_, (H, metrics)), of_critic = value_and_grad(loop.critic_loss)(critic, *held)
    temperature_loss = value_and_grad(loop.temperature_loss)
    (_, of_alpha), of_controller = temperature_loss(agent.controller.model, H)
    actor_loss = value_and_grad(loop.actor_loss)
    (_, of_mu), of_actor = actor_loss(actor, critic, batch, noise, c.actor.alpha_bc)
    nothing = jax.tree.map(jnp.zeros_like, agent.target_critic)
    models = lambda a: (a.critic.model, a.target_critic, a.actor.model, a.controller.model)
    grads = eqx.tree_at(models, agent, (of_critic, nothing, of_actor, of_controller))
    return metrics | of_alpha | of_mu, grads


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
        given = (agent(golden, dtype), batch(golden, dtype), noise(golden, 0, dtype))
        metrics, grads = eqx.filter_jit(losses_and_gradients)(*given)
        expected = lambda name: golden[f"f{bits}/update0/{name}"]
        close = partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
        for ours, theirs in GOLDEN_LOSSES.items():
            assert metrics[ours].dtype == dtype
            close(metrics[ours], expected(f"loss/{theirs}"), err_msg=ours)
        close(-metrics["actor_q"], expected("loss/actor_q_loss"))
        close(metrics["entropy"], expected("aux/entropy"))
        if bits == 64:
            grads = leaves(grads)
            prefix = "f64/update0/grad/"
            theirs = {k.removeprefix(prefix): x.ravel() for k, x in golden.items() if prefix in k}
            assert set(grads) >= set(theirs)
            for name, g in grads.items():
                close(g, theirs.get(name, np.zeros_like(g)), err_msg=name)


class Penalty(AbstractEntropyController):
    """The fixed penalty of the golden file, 0.7."""

    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self):
        return jnp.full((len(self.target), 2), 0.7)


@pytest.mark.parametrize(("name", "make"), [("no_entropy", NoControl), ("fixed_penalty", Penalty)])
def test_other_controllers(golden, x64, name, make):
    """The critic's losses and the norm of every gradient: `golden/variants.npz`, on the same batch
    and weights."""
    with np.load(GOLDEN / "variants.npz", allow_pickle=False) as file:
        prefix = f"loss_{name}/f64/"
        expected = {x.removeprefix(prefix): file[x] for x in file.files if x.startswith(prefix)}
    a = agent(golden, np.float64)
    controller = make(a.controller.model.target, 11)
    given = (a.critic.model, a.target_critic, a.actor.model, controller)
    given = (*given, batch(golden, np.float64), noise(golden, 0, np.float64), a.config.discount)
    loss = eqx.filter_jit(value_and_grad(loop.critic_loss))
    (_, (H, metrics)), grads = loss(*given)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    close(metrics["td_loss"], expected["loss/q_loss"])
    close(metrics["attention_loss"], expected["loss/attention_entropy_loss"])
    close(metrics["target_mean"], np.mean(expected["aux/td_target"]))
    close(H, expected["aux/entropy"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        leaf = f"critic/{foreign_name(path_of(path))}"
        close(np.linalg.norm(g), expected[f"grad_norm/{leaf}"], err_msg=leaf)


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_three_successive_updates(golden, x64, optax_promotion, schedule):
    """Optimisers, decay, schedule and lagged target: every leaf's change at every update."""
    before = start = agent(golden, np.float64, schedule)
    update = eqx.filter_jit(loop.TQL.update_with_noise)
    close = np.testing.assert_allclose
    for k in range(3):
        after, metrics = update(before, batch(golden, np.float64), noise(golden, k, np.float64))
        expected = lambda name: golden[f"f64/{schedule}_schedule/update{k}/{name}"]
        if k:
            for ours, theirs in GOLDEN_LOSSES.items():
                close(metrics[ours], expected(f"loss/{theirs}"), rtol=1e-10, err_msg=f"{k} {ours}")
            close(metrics["entropy"], expected("aux/entropy"), rtol=1e-10)
        new, old = leaves(after), leaves(before)
        for name in new:
            # The exact gradient of a key bias is 0; Adam turns its round-off into steps of 1e-11.
            no_gradient = name.endswith("key/bias")
            tolerance = dict(rtol=0, atol=1e-9) if no_gradient else dict(rtol=1e-9, atol=0)
            change = np.linalg.norm(new[name] - old[name])
            theirs = expected(f"param_change_norm/{name}")
            close(change, theirs, err_msg=f"{k} {name}", **tolerance)
        log_alpha = after.controller.model.log_alpha
        close(log_alpha, expected("temperature_raw_after"), rtol=0, atol=1e-12)
        before = after
    new, old = leaves(after), leaves(start)
    prefix = f"f64/{schedule}_schedule/update2"
    for name in new:
        total = golden.get(f"{prefix}/total_change/{name}")
        if total is not None:
            close(new[name] - old[name], total.ravel(), rtol=0, atol=1e-9, err_msg=name)
        probe = np.sum((new[name] - old[name]) * np.cos(np.arange(new[name].size)))
        theirs = golden[f"{prefix}/total_change_probe/{name}"]
        close(probe, theirs, rtol=1e-6, atol=1e-9, err_msg=name)
    assert int(after.step) == 3


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_schedule(golden, x64, optax_promotion, schedule):
    c = config(golden, schedule)
    counts = golden[f"schedule/{schedule}/count"]
    for name, peak in (("critic_lr", c.critic_lr), ("actor_lr", c.actor_lr)):
        ours = [optimise.schedule(peak, c)(jnp.asarray(float(count))) for count in counts]
        np.testing.assert_allclose(ours, golden[f"schedule/{schedule}/{name}"], rtol=1e-9, atol=0)


def test_decay_set(golden, optax_promotion):
    """By the mask, and by what moves when every gradient is zero."""
    a = agent(golden, np.float32)
    expected = set(golden["decay/decayed_leaves"].tolist())
    marked = {
        f"{network}/{plain_name(network, path_of(path))}"
        for network, model in zip(NETWORKS, networks(a)[:-1], strict=True)
        for path, flag in jax.tree_util.tree_leaves_with_path(decayed(model))
        if flag and network != "target_critic"
    }
    assert marked == expected

    optimiser, _, _ = loop.optimisers(a.config)
    nothing = jax.tree.map(jnp.zeros_like, a.critic.model)
    moved = Learner.start(a.critic.model, optimiser).descend(nothing, optimiser)
    new, old = leaves(eqx.tree_at(lambda a: a.critic, a, moved)), leaves(a)
    changed = {name for name in new if np.any(new[name] != old[name])}
    assert changed == {name for name in expected if name.startswith("critic/")}


MUTANTS = ["target_from_new_critic", "decay_every_matrix", "schedule_off_by_one"]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_usual_mistakes_are_seen(golden, x64, optax_promotion, monkeypatch, mutant):
    """With one thing done wrong, some leaf's change over two updates is off by far more than the
    tolerance above."""
    if mutant == "decay_every_matrix":
        every_matrix = lambda model: jax.tree.map(lambda x: x.ndim > 1, model)
        monkeypatch.setattr(optimise, "decayed", every_matrix)
    if mutant == "schedule_off_by_one":
        right = optimise.schedule
        late = lambda peak, c: lambda count: right(peak, c)(count + 1)
        monkeypatch.setattr(optimise, "schedule", late)
    before = agent(golden, np.float64)
    update = eqx.filter_jit(lambda *args: loop.TQL.update_with_noise(*args))
    for k in range(2):
        after, _ = update(before, batch(golden, np.float64), noise(golden, k, np.float64))
        if mutant == "target_from_new_critic":
            wrong = polyak(after.critic.model, before.target_critic, before.config.tau)
            after = eqx.tree_at(lambda a: a.target_critic, after, wrong)
        previous, before = before, after
    new, old = leaves(after), leaves(previous)
    prefix = "f64/fast_schedule/update1/param_change_norm"
    change = {name: np.linalg.norm(new[name] - old[name]) for name in new}
    assert max(abs(x - golden[f"{prefix}/{name}"]) for name, x in change.items()) > 1e-5
