"""The loop reference is right: it reproduces golden float64 numbers, and broken versions of it do
not.

`golden/critic.npz` and `golden/losses.npz` were recorded from the method's published code: float32
weights and inputs, results evaluated in float64. n_s 7, n_a 3, d_model 64, 2 heads, 2 layers, 2 Q
heads. Tolerances: EXACT for what is computed in the same way, SLOPE for gradients, where the
reference has only finite differences.
"""

import math

import numpy as np
import pytest
import reference as ref
from conftest import GOLDEN

EXACT = dict(rtol=1e-12, atol=1e-12)
SLOPE = dict(rtol=1e-7, atol=1e-8)
MIXED = np.array([[0.3, -0.7], [0.5, 0.9]])  # the weights of golden/critic.npz's mixed scalar


def arrays(file: str) -> dict[str, np.ndarray | float | int]:
    """Everything in a golden file, in float64; 0-d arrays as Python numbers."""

    def wide(array):
        array = array.astype(float) if array.dtype == np.float32 else array
        return array if array.ndim else array.item()

    with np.load(GOLDEN / file, allow_pickle=False) as npz:
        return {name: wide(npz[name]) for name in npz}


def below(tree: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    found = {
        name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)
    }
    assert found, prefix
    return found


@pytest.fixture(scope="module")
def c0():
    return below(arrays("critic.npz"), "c0/")


@pytest.fixture(scope="module")
def c0_critic(c0):
    return ref.critic_batch(below(c0, "params/"), c0["in/observations"], c0["in/actions"])


@pytest.fixture(scope="module")
def golden():
    return arrays("losses.npz")


@pytest.fixture(scope="module")
def start(golden):
    """The five groups of parameters before any update."""
    networks = ("critic", "target_critic", "bc_flow", "one_step")
    return {k: below(golden, f"params/{k}/") for k in networks} | {
        "temperature_raw": {"": golden["params/temperature_raw"]}
    }


def all_losses(golden, p, update: int) -> dict[str, float | np.ndarray]:
    """Every loss and intermediate of one update, under its name in losses.npz."""
    batch, noise = below(golden, "batch/"), below(golden, f"noise/update{update}/")
    states, actions, t = batch["observations"], batch["actions"], noise["flow_t"][:, 0]
    temperature, target = np.exp(p["temperature_raw"][""]), golden["config/entropy_target"]
    out = {
        "next_actions": ref.next_actions(
            p["one_step"], batch["next_observations"], noise["next_action"]
        )
    }
    out["next_q"] = ref.critic_batch(
        p["target_critic"], batch["next_observations"], out["next_actions"]
    ).q
    out["td_target"] = ref.td_targets(
        batch["rewards"], batch["masks"], out["next_q"], golden["config/discount"]
    )
    seen = ref.critic_batch(p["critic"], states, actions)
    out |= {"q": seen.q, "entropy": ref.group_entropies(seen.logits), "temperature": temperature}
    out["flow_target_actions"] = np.array(
        [
            ref.flow_action(p["bc_flow"], s, z, golden["config/flow_steps"])
            for s, z in zip(states, noise["one_step"])
        ]
    )
    out["q_loss"] = ref.td_loss(out["q"], out["td_target"])
    out["attention_entropy_loss"] = ref.attention_loss(temperature, out["entropy"])
    out["temperature_loss"] = ref.temperature_loss(temperature, out["entropy"], target)
    out["critic_total"] = out["q_loss"] + out["attention_entropy_loss"] + out["temperature_loss"]
    out["bc_flow_loss"] = ref.flow_matching_loss(p["bc_flow"], states, actions, noise["flow_x0"], t)
    out["distill_loss"] = ref.distillation_loss(
        p["one_step"], states, noise["one_step"], out["flow_target_actions"]
    )
    out["actor_q_loss"] = ref.actor_q_loss(p["one_step"], p["critic"], states, noise["one_step"])
    out["actor_total"] = (
        out["bc_flow_loss"] + golden["config/alpha"] * out["distill_loss"] + out["actor_q_loss"]
    )
    return out


# ---------------------------------------------------------------- the critic


def test_critic_forward(c0, c0_critic):
    """Q, attention, entropies, residual stream and read-out of every example."""
    np.testing.assert_allclose(c0_critic.q, c0["f64/q"], **EXACT)
    weights = np.apply_along_axis(ref.softmax, -1, c0_critic.logits)
    np.testing.assert_allclose(weights.swapaxes(0, 1), c0["f64/attention"], **EXACT)
    np.testing.assert_allclose(ref.group_entropies(c0_critic.logits), c0["f64/entropy"], **EXACT)
    for layer in range(2):
        ours = c0_critic.tokens_after_block[:, layer]
        np.testing.assert_allclose(ours, c0[f"f64/tokens_after_block{layer}"], **EXACT)
    np.testing.assert_allclose(c0_critic.value_token, c0["f64/value_token_final"], **EXACT)


def test_dq_da(c0):
    p = below(c0, "params/")
    for s, a, golden in zip(
        c0["in/observations"], c0["in/actions"], c0["f64/dq_dactions"], strict=True
    ):
        np.testing.assert_allclose(
            ref.gradient(lambda a, s=s: ref.critic(p, s, a).q.mean(), a), golden, **SLOPE
        )


def mixed_scalar(c0, p) -> float:
    seen = ref.critic_batch(p, c0["in/observations"], c0["in/actions"])
    return np.mean(seen.q**2) + np.sum(MIXED * ref.group_entropies(seen.logits))


def test_critic_parameter_gradients(c0):
    """Golden gradients of a scalar with Q and all entropies in it: one random direction through
    each leaf."""
    p, rng = below(c0, "params/"), np.random.default_rng(0)
    np.testing.assert_allclose(mixed_scalar(c0, p), c0["f64/mixed_scalar"], **EXACT)
    for name, golden in below(c0, "f64/grad/").items():
        direction = rng.normal(size=golden.shape) / math.sqrt(golden.size)
        slope = ref.slope(lambda p: mixed_scalar(c0, p), p, {name: direction})
        np.testing.assert_allclose(slope, np.sum(golden * direction), **SLOPE, err_msg=name)


def erf_gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


@pytest.mark.parametrize(
    ("what", "broken", "deviation"),
    [
        ("LAYER_NORM_EPS", 1e-5, 1.2e-4),
        ("gelu", erf_gelu, 3.3e-4),
        ("logit_scale", lambda d, heads: d**-0.5, 0.20),
    ],
)
def test_broken_critic_is_seen(c0, monkeypatch, what, broken, deviation):
    """The deviations of Q are the published ones, and at least 1e7 times the tolerance above."""
    monkeypatch.setattr(ref, what, broken)
    q = ref.critic_batch(below(c0, "params/"), c0["in/observations"], c0["in/actions"]).q
    assert np.abs(q - c0["f64/q"]).max() == pytest.approx(deviation, rel=0.05)


# ---------------------------------------------------------------- entropy


def test_entropy_of_known_rows():
    """ln n, 0, and a half: (1/2, 1/4, 1/4) has 1.5 ln 2. The two forms agree; the stable one
    survives collapse."""
    assert ref.entropy_of_logits(np.zeros(7)) == pytest.approx(math.log(7), abs=1e-15)
    assert ref.entropy_of_weights(np.array([0.5, 0.25, 0.25])) == pytest.approx(
        1.5 * math.log(2), abs=1e-15
    )
    assert ref.entropy_of_logits(np.array([1e4, 0.0, -1e4])) == 0.0
    logits = np.random.default_rng(0).normal(size=11) * 3
    assert ref.entropy_of_logits(logits) == pytest.approx(
        ref.entropy_of_weights(ref.softmax(logits)), abs=1e-14
    )


# ---------------------------------------------------------------- losses and their gradients


def test_losses_before_any_update(golden, start):
    losses = all_losses(golden, start, 0)
    for name, value in losses.items():
        kind = "loss" if np.ndim(value) == 0 else "aux"
        np.testing.assert_allclose(
            value, golden[f"f64/update0/{kind}/{name}"], **EXACT, err_msg=name
        )


def test_temperature_gradient(golden, start):
    """The closed form, the golden gradient and a finite difference are one number per layer and
    group."""
    raw, target = start["temperature_raw"][""], golden["config/entropy_target"]
    H = golden["f64/update0/aux/entropy"]
    closed = ref.temperature_gradient(np.exp(raw), H, target)
    np.testing.assert_allclose(closed, golden["f64/update0/grad/temperature_raw"], **EXACT)
    numeric = ref.gradient(
        lambda r: ref.temperature_loss(np.exp(r.reshape(raw.shape)), H, target), raw.flatten()
    )
    np.testing.assert_allclose(numeric, closed.flatten(), **SLOPE)


# ---------------------------------------------------------------- the optimiser, update by update


DECAYED = {
    "critic": ref.critic_decayed(layers=2, ensemble=2),
    "bc_flow": ref.actor_decayed(hidden_layers=4),
    "one_step": ref.actor_decayed(hidden_layers=4),
    "temperature_raw": set(),
}


def first_update(golden, start, schedule: str) -> dict[str, dict[str, np.ndarray]]:
    """All parameters after one update from the golden gradients."""
    config, after = below(golden, f"{schedule}_schedule/config/"), {}
    for network, decayed in DECAYED.items():
        peak = config["critic_lr" if network in ("critic", "temperature_raw") else "actor_lr"]
        rate = ref.learning_rate(0, peak, config["warmup"], config["train_steps"])
        prefix = f"f64/update0/grad/{network}"
        grads = {name: golden[f"{prefix}/{name}" if name else prefix] for name in start[network]}
        adam = ref.adamw_step(
            ref.adam_start(start[network]), grads, rate, config["weight_decay"], decayed
        )
        after[network] = adam.params
    after["target_critic"] = ref.polyak(
        start["target_critic"], start["critic"], golden["config/tau"]
    )
    return after


def assert_changes(golden, before, after, update: str, networks) -> None:
    """Norms of the changes per leaf. A norm is (p + step) - p, so it carries the round-off of p:
    1e-14 absolute."""
    for network in networks:
        for name, old in before[network].items():
            leaf = f"{network}/{name}".removesuffix("/")
            change = math.sqrt(np.sum((after[network][name] - old) ** 2))
            golden_change = golden[f"f64/{update}/param_change_norm/{leaf}"]
            if network == "critic" and name.endswith(
                "key/bias"
            ):  # exact gradient 0: Adam amplifies round-off
                assert change < 1e-6 and golden_change < 1e-6
            else:
                np.testing.assert_allclose(
                    change, golden_change, rtol=1e-9, atol=1e-14, err_msg=leaf
                )


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_first_update(golden, start, schedule):
    after = first_update(golden, start, schedule)
    assert_changes(golden, start, after, f"{schedule}_schedule/update0", start)


def test_second_update(golden, start):
    """After one fast update: all losses, and the target, which by now has followed a critic that
    moved."""
    once = first_update(golden, start, "fast")
    losses = all_losses(golden, once, 1)
    for name in ("entropy", "temperature"):
        np.testing.assert_allclose(
            losses[name], golden[f"f64/fast_schedule/update1/aux/{name}"], rtol=1e-9
        )
    for name, value in below(golden, "f64/fast_schedule/update1/loss/").items():
        if name != "total":
            np.testing.assert_allclose(losses[name], value, rtol=1e-9, err_msg=name)
    twice = {
        "target_critic": ref.polyak(once["target_critic"], once["critic"], golden["config/tau"])
    }
    assert_changes(golden, once, twice, "fast_schedule/update1", twice)
    unlagged = ref.polyak(start["target_critic"], once["critic"], golden["config/tau"])
    with pytest.raises(AssertionError):
        assert_changes(
            golden, start, {"target_critic": unlagged}, "fast_schedule/update0", ["target_critic"]
        )


def temperatures_after(golden, schedule: str) -> np.ndarray:
    """log alpha after each of the three recorded updates: AdamW on the closed-form gradient of the
    golden entropies."""
    config, states = below(golden, f"{schedule}_schedule/config/"), []
    adam = ref.adam_start({"raw": golden["params/temperature_raw"]})
    for k in range(3):
        before = f"f64/{schedule}_schedule/update{k}/aux/" if k else "f64/update0/aux/"
        H, temperature = golden[f"{before}entropy"], np.exp(adam.params["raw"])
        gradient = {
            "raw": ref.temperature_gradient(temperature, H, golden["config/entropy_target"])
        }
        rate = ref.learning_rate(k, config["critic_lr"], config["warmup"], config["train_steps"])
        adam = ref.adamw_step(adam, gradient, rate, config["weight_decay"], set())
        states.append(adam.params["raw"])
    return np.array(states)


def recorded_temperatures(golden, schedule: str) -> np.ndarray:
    return np.array(
        [golden[f"f64/{schedule}_schedule/update{k}/temperature_raw_after"] for k in range(3)]
    )


@pytest.mark.parametrize("schedule", ["default", "fast"])
def test_successive_updates_of_the_temperatures(golden, schedule):
    """Adam's moments, bias corrections and rates; the fast schedule reaches its peak at the third
    update."""
    ours = temperatures_after(golden, schedule)
    np.testing.assert_allclose(ours, recorded_temperatures(golden, schedule), **EXACT)


def test_schedule_off_by_one_is_seen(golden, monkeypatch):
    right = ref.learning_rate
    monkeypatch.setattr(ref, "learning_rate", lambda made, *rest: right(made + 1, *rest))
    ours = temperatures_after(golden, "fast")
    assert np.abs(ours - recorded_temperatures(golden, "fast")).max() > 1e-3


def test_decayed_leaves(golden):
    decayed = {f"{network}/{name}" for network, names in DECAYED.items() for name in names}
    assert decayed == set(golden["decay/decayed_leaves"])
    assert not decayed & set(golden["decay/undecayed_leaves"])


# ------------------------------------------------------ what has no golden number: by hand


def test_polyak_by_hand():
    target = {"w": np.array([1.0])}
    for _ in range(3):
        target = ref.polyak(target, {"w": np.array([0.0])}, tau=0.25)
    assert target["w"][0] == 0.75**3


def test_euler_by_hand():
    """A flow that is the constant 0.03 moves by 0.03; one that is t moves by 0 + .1 + ... + .9
    tenths = 0.45."""
    p = {"layer0/kernel": np.zeros((4, 1)), "layer0/bias": np.array([0.03])}
    assert ref.flow_action(p, np.zeros(2), np.array([0.5]))[0] == pytest.approx(0.53, abs=1e-15)
    p = {"layer0/kernel": np.array([[0.0], [0], [0], [1]]), "layer0/bias": np.zeros(1)}
    assert ref.flow_action(p, np.zeros(2), np.array([0.25]))[0] == pytest.approx(0.70, abs=1e-15)
    p["layer0/bias"] = np.full(1, -3.0)
    assert ref.flow_action(p, np.zeros(2), np.array([0.25]))[0] == -1


def test_roughness_by_hand():
    """x^2 + y at -1, 0, 1: second differences 2 along x and 0 along y, so mean square 2; variance
    2/9 + 2/3."""
    x = np.array([-1.0, 0.0, 1.0])
    grid = x[:, None] ** 2 + x[None, :]
    assert ref.roughness(grid) == pytest.approx(2 / (2 / 9 + 2 / 3))
    assert ref.roughness(3 * grid + 5) == pytest.approx(ref.roughness(grid))
    assert ref.roughness(x[:, None] - 2 * x[None, :]) == 0


def test_turning_points_by_hand():
    assert ref.turning_points(np.array([0.0, 1, 1, 2, 1, 0, 0, 3])) == 2
    assert ref.turning_points(np.array([0.0, 1, 2, 2])) == 0
