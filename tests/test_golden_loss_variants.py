"""Variants of the losses against the reference's own numbers: `golden/variants.npz`, on the batch and weights of `golden/losses.npz`."""

from dataclasses import replace  # of settings and of an `Agent`
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_golden_losses as plain
from conftest import GOLDEN

from tql import loop
from tql.config import Config, ControlConfig, CriticConfig
from tql.critic import Critic
from tql.data import Batch
from tql.entropy_controller import TemperaturePerGroup
from tql.flow_actor import AbstractActor, ActorLosses, DatasetActor, Noise

VARIANTS = {
    "no_entropy": lambda c: replace(c, control=replace(c.control, kind="none")),
    "fixed_penalty": lambda c: replace(c, control=replace(c.control, kind="clipped", clip=(0.7, 0.7))),
    "temp_clip": lambda c: replace(c, control=replace(c.control, kind="clipped", clip=(0.8, 1.3))),
    "sign_temp": lambda c: replace(c, control=replace(c.control, kind="signed")),
    "q_min": lambda c: replace(c, aggregate="min"),
    "normalize_q": lambda c: replace(c, actor=replace(c.actor, normalise_q=True)),
}


@pytest.fixture(scope="module")
def golden():
    """Both files; the variants' arrays are those named `loss_...`."""
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as losses, np.load(GOLDEN / "variants.npz", allow_pickle=False) as variants:
        return {name: losses[name] for name in losses.files} | {
            name: variants[name] for name in variants.files if name.startswith("loss_")
        }


def agent(golden, name, dtype):
    """The agent of `losses.npz` with the settings of a variant, and the temperatures that the file gives it; no optimiser states."""
    start = plain.agent(golden, dtype)
    config = VARIANTS[name](start.config)
    raw = jnp.asarray(golden.get(f"loss_{name}/params/temperature_raw", golden["params/temperature_raw"]).astype(dtype))
    controller = jax.tree.map(lambda x: raw, loop.make_controller(7, 3, config))
    networks = {part: getattr(start, part) for part in ("critic", "target_critic", "actor", "step", "key")}
    return loop.Agent(**networks, controller=controller, critic_state=(), controller_state=(), actor_state=(), config=config)


def critic_side(a, batch, noise):
    """Metrics, and gradients of critic and temperatures, as `update_with_noise` takes them."""
    held = a.target_critic, a.actor, a.controller, batch, noise, a.config.discount, loop.AGGREGATE[a.config.aggregate]
    (_, (H, metrics)), of_critic = eqx.filter_value_and_grad(loop.critic_loss, has_aux=True)(a.critic, *held)
    (_, more), of_controller = eqx.filter_value_and_grad(loop.temperature_loss, has_aux=True)(a.controller, H)
    return metrics | more, (of_critic, of_controller)


def actor_side(a, batch, noise):
    """The whole loss and its Q term, and the actor's gradients."""
    held = a.critic, batch, noise, a.config.actor.alpha_bc, a.config.actor.normalise_q
    (total, metrics), grads = eqx.filter_value_and_grad(loop.actor_loss, has_aux=True)(a.actor, *held)
    q_term = total - metrics["flow_loss"] - a.config.actor.alpha_bc * metrics["distillation_loss"]
    return {"actor_total": total, "actor_q_loss": q_term}, grads


def evaluated(golden, name, dtype, side):
    a = agent(golden, name, dtype)
    return a, *eqx.filter_jit(side)(a, plain.batch(golden, dtype), plain.noise(golden, 0, dtype))


def gradients(a, **grads):
    """Gradients under their golden names."""
    (raw,) = jax.tree.leaves(grads.pop("controller", None)) or [jnp.zeros((2, 2))]
    grads["controller"] = eqx.tree_at(lambda c: c.log_alpha, TemperaturePerGroup(((1.0, 1.0),) * 2, 11), raw)
    nothing = {part: jax.tree.map(jnp.zeros_like, getattr(a, part)) for part in ("critic", "target_critic", "actor")}
    return plain.leaves(replace(a, **nothing | grads))


ON_THE_CRITIC = [name for name in VARIANTS if name != "normalize_q"]


@pytest.mark.parametrize("name", ON_THE_CRITIC)
def test_the_critic_s_and_the_temperatures_side_in_float64(golden, x64, name):
    """Losses, target, temperatures, and the gradient of every leaf. The actor's side is that of `losses.npz`."""
    expected = lambda what: golden[f"loss_{name}/f64/{what}"]
    close = lambda x, what: np.testing.assert_allclose(x, expected(what), rtol=0, atol=1e-12, err_msg=what)
    a, metrics, (of_critic, of_controller) = evaluated(golden, name, np.float64, critic_side)
    for ours in ("td_loss", "attention_loss", "temperature_loss"):
        close(metrics[ours], f"loss/{plain.GOLDEN_LOSSES[ours]}")
    if f"loss_{name}/f64/aux/td_target" in golden:
        np.testing.assert_allclose(metrics["target_mean"], np.mean(expected("aux/td_target")), rtol=0, atol=1e-12)
        close(metrics["entropy"], "aux/entropy")
    if name != "no_entropy":  # the file has temperatures there too, that do nothing; here there are none
        close(metrics["alpha"], "aux/temperature")
        close(jnp.clip(a.controller.alpha(), *a.controller.limits()), "aux/temperature_clipped")
    for leaf, g in gradients(a, critic=of_critic, controller=of_controller).items():
        if leaf.startswith(("critic", "temperature")):
            close(np.linalg.norm(g), f"grad_norm/{leaf}")


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 5e-6), (64, 1e-12)])
def test_the_actor_s_side_with_normalised_q(golden, bits, tolerance):
    with jax.enable_x64(bits == 64):
        a, losses, grads = evaluated(golden, "normalize_q", np.dtype(f"float{bits}"), actor_side)
        for term, x in losses.items():
            assert x.dtype == f"float{bits}"
            np.testing.assert_allclose(x, golden[f"loss_normalize_q/f{bits}/loss/{term}"], rtol=2e-7, atol=tolerance, err_msg=term)
        if bits == 64:
            for leaf, g in gradients(a, actor=grads).items():
                if leaf.startswith(("bc_flow", "one_step")):
                    expected = golden[f"loss_normalize_q/f64/grad_norm/{leaf}"]
                    np.testing.assert_allclose(np.linalg.norm(g), expected, rtol=0, atol=1e-12, err_msg=leaf)


def test_the_smaller_head_in_float32(golden):
    _, metrics, _ = evaluated(golden, "q_min", np.float32, critic_side)
    np.testing.assert_allclose(metrics["td_loss"], golden["loss_q_min/f32/loss/q_loss"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["no_entropy", "fixed_penalty", "temp_clip", "sign_temp"])
def test_what_temperatures_weigh_in_float32(golden, name):
    """Both of their losses at the entropies of the file."""
    controller = agent(golden, name, np.float32).controller
    H = jnp.asarray(golden["loss_temp_clip/f64/aux/entropy"].astype(np.float32))
    for loss, term in ((controller.attention_loss(H), "attention_entropy_loss"), (controller.temperature_loss(H), "temperature_loss")):
        assert loss.dtype == np.float32
        np.testing.assert_allclose(loss, golden[f"loss_{name}/f32/loss/{term}"], rtol=0, atol=5e-6, err_msg=term)


@pytest.mark.parametrize("name", ["temp_clip", "q_min", "normalize_q"])
def test_an_update_obeys_the_settings(monkeypatch, optax_promotion, name):
    """What `update` hands to the two losses, without computing any."""
    config = VARIANTS[name](Config(task="cube-double-play-singletask-v0", critic=CriticConfig(d_model=4, heads=1)))
    seen = {}
    for loss in ("critic_loss", "actor_loss"):
        real = getattr(loop, loss)
        monkeypatch.setattr(loop, loss, lambda *args, name=loss, real=real: seen.update({name: args}) or real(*args))
    one = jax.ShapeDtypeStruct((2, 1), jnp.float32)
    batch = eqx.filter_eval_shape(lambda x: Batch(x, x, x[:, 0], x[:, 0], x, x), one)
    a = eqx.filter_eval_shape(loop.initialise, 1, 1, config)
    eqx.filter_eval_shape(loop.update, a, batch, jax.random.key(0))
    assert seen["critic_loss"][-1] is {"min": jnp.min, "mean": jnp.mean}["min" if name == "q_min" else "mean"]
    assert seen["actor_loss"][-1] is (name == "normalize_q")
    assert seen["critic_loss"][3].limits() == ((0.8, 1.3) if name == "temp_clip" else (-100, 100))


def test_the_fixed_penalty_weighs_entropy_as_temperatures_clipped_to_one_value_do(golden, x64):
    """The package's own fixed penalty, 0.7: the same loss and the same push on the critic's entropies."""
    H = jnp.asarray(golden["loss_temp_clip/f64/aux/entropy"])
    config = Config(task="cube-double-play-singletask-v0", control=ControlConfig(kind="fixed", coefficient=0.7))
    loss, push = jax.value_and_grad(loop.make_controller(7, 3, config).attention_loss)(H)
    np.testing.assert_allclose(loss, golden["loss_fixed_penalty/f64/loss/attention_entropy_loss"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(push, np.full((2, 2), -0.7 / 4), rtol=1e-12)


# ---------------------------------------------------------------- by hand


class Slope(AbstractActor):
    """Stands for an actor of one weight, whose Q is that weight times the state."""

    policies: ClassVar[tuple[str, ...]] = ()
    weight: jax.Array
    n_s: int = 1
    n_a: int = 1

    def act(self, s, z):
        return z

    def next_action(self, s, a, z):
        return a

    def losses(self, critic, s, a, noise):
        return ActorLosses(jnp.zeros(()), jnp.zeros(()), self.weight * s[0])


def test_normalised_q_by_hand():
    """States 1 and -3, weight 5: Q is 5 and -15, of mean -5 and mean size 10. So the loss is 5 / 10, and its slope 1 / 10 with 10 held."""
    rows = jnp.array([[1.0], [-3.0]])
    batch, noise = Batch(rows, rows, rows[:, 0], rows[:, 0], rows, rows), Noise(rows, rows, rows[:, 0], rows)
    critic = Critic(1, 1, d_model=4, heads=1, layers=1, key=jax.random.key(0))
    for settings, loss, slope in (((True,), 0.5, 0.1), ((False,), 5.0, 1.0), ((), 5.0, 1.0)):
        descend = eqx.filter_jit(eqx.filter_value_and_grad(loop.actor_loss, has_aux=True))
        (value, metrics), grads = descend(Slope(jnp.array(5.0)), critic, batch, noise, 3.0, *settings)
        np.testing.assert_allclose([value, grads.weight, metrics["actor_q"]], [loss, slope, -5.0], rtol=1e-6)


def test_the_aggregate_of_the_target_by_hand():
    """Heads of 2 and 6 (all weights 0): y = 1 + 0.5 * 4 with their mean, 1 + 0.5 * 2 with the smaller."""
    critic = Critic(1, 1, d_model=4, heads=1, layers=1, key=jax.random.key(0))
    critic = jax.tree.map(jnp.zeros_like, critic)
    critic = eqx.tree_at(lambda c: [q.out.bias for q in c.q_heads], critic, [jnp.array([2.0]), jnp.array([6.0])])
    rows, one = jnp.ones((1, 1)), jnp.ones(1)
    row = jax.tree.map(lambda x: x[0], Batch(rows, rows, one, one, rows, rows))
    noise = Noise(one, one, jnp.ones(()), one)
    for aggregate, y in (((), 3.0), ((loop.AGGREGATE["mean"],), 3.0), ((loop.AGGREGATE["min"],), 2.0)):
        loss, (_, target, _) = eqx.filter_jit(loop.td_loss)(critic, critic, DatasetActor(1, 1), 0.5, row, noise, *aggregate)
        np.testing.assert_allclose([target, loss], [y, ((2 - y) ** 2 + (6 - y) ** 2) / 2], rtol=1e-6)
