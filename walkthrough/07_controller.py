# %% [markdown]
# # 7. How does one learned temperature per layer and token group hold entropy where it should be?
#
# We start with the rule for one temperature, watch its dynamics on a toy whose answer is known,
# and see what goes wrong with a target that cannot be reached. Then come the critics of walkthrough
# 6 with the controller, side by side with those without, and the paper's ablations.
#
# **Price**: 11 min on 2 cores (19 min of processor time), 1.8 GB of memory in each of 2 processes.
#
# **Writes**: pictures to `runs/walkthrough/07_controller/`, and runs to `runs/study/cpu/`. The runs
# of walkthrough 6 are compared with; they are trained here only if they are missing.
#
# You need walkthrough 6.

# %%
import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float

from tql.analysis.portrait import draw_landscape, draw_map, load_portrait
from tql.analysis.study import complete_all, read_lines
from tql.attention import row_entropy
from tql.entropy_controller import ALPHA_MAX, AbstractEntropyController, TemperaturePerGroup
from tql.loop import TQL, optimisers, temperature_loss
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.optimise import Learner, value_and_grad
from tql.presets import PRESETS
from tql.training.chunk import train_chunk
from tql.training.workspace import dataset, home, pictures

PICTURES = pictures("07_controller")
STUDY = home() / "runs" / "study" / "cpu"
TASK = "cube-single-play-singletask-task2-v0"
WIDTHS = (32, 64, 128)
SEEDS = (0, 1, 2)
UPDATES = 1000  # of a critic
EPISODES = 100  # of data
FULL = len(SEEDS) >= 3 and UPDATES >= 1000
SIZES = dict(
    steps=UPDATES,
    evaluate_every=UPDATES,
    checkpoint_every=UPDATES // 4,
    log_every=UPDATES // 20,
    updates_per_call=UPDATES // 20,
)
SARSA = replace(PRESETS["cpu-sarsa"](TASK), **SIZES, warmup=UPDATES // 10)
LONGER = dict(steps=3 * UPDATES // 2, evaluate_every=3 * UPDATES // 2)
FLOW = replace(PRESETS["cpu-flow"](TASK), **SIZES | LONGER, warmup=UPDATES // 10, episodes=0)
FILE = dataset(TASK, episodes=EPISODES)


def claim(holds, text):
    """Stops where a sentence of this page is false; at smaller sizes it only says so."""
    print("holds:" if holds else "DOES NOT HOLD:", text)
    assert holds or not FULL, text


# %% [markdown]
# ## A constraint becomes a price
#
# We want the critic to fit its targets *subject to* $H \ge T$. Lagrange's method turns a constraint
# into a price: the critic minimises $\text{TD} - \alpha H$, and the price $\alpha > 0$ rises as
# long as the constraint is broken. This $\alpha$, called the temperature, is a *dual variable*: a
# weight that belongs to a constraint. We learn $\log\alpha$, so that $\alpha$ stays positive, by
# descending $\alpha\,(H - T)$ with $H$ held still:
#
# $$\frac{\partial}{\partial \log\alpha}\; \alpha\,(H - T) = \alpha\,(H - T), \qquad
# \log\alpha \leftarrow \log\alpha - \eta\,\alpha\,(H - T)$$
#
# Below the target the price grows, above it the price decays towards 0. The algorithm SAC (soft
# actor-critic) holds the entropy of its policy with the same rule.

# %%
controller = TemperaturePerGroup(target=((2.0, 2.0), (1.5, 1.5)), n=34)
H = jnp.array([[1.0, 3.0], [1.5, 0.2]])  # below, above, at, far below the target
(loss, _), grad = value_and_grad(temperature_loss)(controller, H)
eta = 0.1
log_alpha = controller.log_alpha - eta * grad.log_alpha
print(
    "H - T:\n",
    np.asarray(H) - np.array(controller.target),
    "\nchange of log alpha:\n",
    np.asarray(log_alpha - controller.log_alpha),
)

# %% [markdown]
# **Claim 1.** One step moves $\log\alpha$ against the sign of $H - T$, by $\eta\,\alpha\,(H - T)$
# over the number of entries (since the loss is a mean), and not at all at the target.

# %%
expected = -eta * 1.0 * (np.asarray(H) - np.array(controller.target)) / 4
np.testing.assert_allclose(log_alpha - controller.log_alpha, expected, atol=1e-6)
assert log_alpha[0, 0] > 0 > log_alpha[0, 1], (
    "below its target a temperature must grow, above it must shrink"
)

# %% [markdown]
# ## The loop on a toy
#
# The toy is one attention row of n = 34 logits $l$. Its "TD loss" is $-c\,p_1$: it wants all
# attention on the first token, so left alone the entropy goes to 0. The controller adds
# $-\alpha H(l)$. Logits and temperature descend at the same time, as in the critic.

# %%
N, STEPS = 34, 3000  # tokens, updates of the toy


@eqx.filter_jit
def toy(T, c, lr_alpha, alpha_0=1.0):
    """Entropy and temperature by update. Adam has rate 0.01, and `lr_alpha` for log alpha."""
    row, dual = optax.adam(0.01), optax.adam(lr_alpha)
    l, log_alpha = 0.1 * jax.random.normal(jax.random.key(0), (N,)), jnp.log(alpha_0)

    def step(state, _):
        l, log_alpha, of_row, of_dual = state
        H = row_entropy(l)
        alpha = jnp.minimum(jnp.exp(log_alpha), ALPHA_MAX)
        g_l = jax.grad(lambda l: -c * jax.nn.softmax(l)[0] - alpha * row_entropy(l))(l)
        g_alpha = jnp.exp(log_alpha) * (H - T)
        u_l, of_row = row.update(g_l, of_row)
        u_alpha, of_dual = dual.update(g_alpha, of_dual)
        return (l + u_l, log_alpha + u_alpha, of_row, of_dual), (H, jnp.exp(log_alpha))

    _, (H, alpha) = jax.lax.scan(
        step, (l, log_alpha, row.init(l), dual.init(log_alpha)), None, length=STEPS
    )
    return H, alpha


CASES = {
    "no control": toy(2.5, 1.0, 0.0, 1e-9),
    "T = 2.5": toy(2.5, 1.0, 0.01),
    "T = 2.5, slow temperature": toy(2.5, 1.0, 0.0005),
    "T = 3.6 > ln n": toy(3.6, 1.0, 0.01),
    "T = 2.5, no pull (c = 0)": toy(2.5, 0.0, 0.01),
}
fig, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
for label, (H, alpha) in CASES.items():
    axes[0].plot(H, label=label)
    axes[1].plot(alpha, label=label)
axes[0].axhline(math.log(N), color="black", linestyle=":")
axes[0].axhline(2.5, color="gray", linestyle=":")
axes[0].set(title="entropy of the row (dotted: ln n, T = 2.5)", xlabel="updates", ylabel="nats")
axes[1].set(title="temperature", xlabel="updates", yscale="log", ylim=(1e-6, 1e6))
axes[0].legend(fontsize="small", loc="center right")
fig.savefig(PICTURES / "toy.png", dpi=110)

# %% [markdown]
# **Claim 2.** Without control the row collapses. With control the entropy settles at the target. A
# temperature with a small learning rate gets there late.
#
# **Claim 3.** A target above ln n is never met, and the temperature grows without end. At ln n
# itself only uniform attention would meet it. So `tql` refuses both.
#
# **Claim 4.** Above the target a temperature cannot pull down: it decays to nothing, and the
# entropy stays where the task leaves it. So control sets a floor; it does not hold the entropy down
# like a thermostat.

# %%
end = {label: (float(H[-200:].mean()), float(alpha[-1])) for label, (H, alpha) in CASES.items()}
for label, (H, alpha) in end.items():
    print(f"{label:28} entropy {H:.3f} nats, alpha {alpha:.3g}")
assert end["no control"][0] < 0.1, "alone, the pull should end in one token"
assert abs(end["T = 2.5"][0] - 2.5) < 0.05, (
    "the entropy should settle within 0.05 nats of its target"
)
settled = {
    label: int(np.flatnonzero(np.abs(H - 2.5) > 0.05)[-1]) for label, (H, _) in CASES.items()
}
print(
    "last update more than 0.05 nats off the target:",
    settled["T = 2.5"],
    "and, with the slow temperature,",
    settled["T = 2.5, slow temperature"],
)
assert settled["T = 2.5"] < 0.5 * STEPS < settled["T = 2.5, slow temperature"], (
    "a slow temperature should settle late"
)
assert end["T = 3.6 > ln n"][1] > ALPHA_MAX, (
    "the temperature of an unreachable target should run away"
)
assert end["T = 2.5, no pull (c = 0)"][0] > 3.4 and end["T = 2.5, no pull (c = 0)"][1] < 0.01, (
    "above its target it can only let go"
)
for T in (math.log(N), 3.6):
    try:
        TemperaturePerGroup(target=((T, T),), n=N)
    except ValueError as refusal:
        print("refused:", refusal)
    else:
        raise AssertionError(f"the target {T} is not below ln n and was accepted")

# %% [markdown]
# Why do the CPU settings give the temperatures a learning rate of their own? Adam moves
# $\log\alpha$ by about its learning rate per update, whatever the size of the gradient. At the
# critic's rate of 0.001, a run of 1000 updates can change $\alpha$ by a factor of $e$ and no more.
# At the paper's length, $10^6$ updates, that is no limit.

# %% [markdown]
# ## The same critics, with control
#
# Data, seeds, batches and initial weights are the same as in walkthrough 6. The target is the
# paper's first guess, $0.8 \ln n$ in the first layer and 0.5 nats lower in the last.


# %%
def with_control(base, d_model, control, seed):
    """The settings `base` at another width and seed, with this kind of control."""
    return replace(
        base,
        seed=seed,
        critic=replace(base.critic, d_model=d_model),
        control=replace(base.control, kind=control),
    )


members = {
    f"sarsa-{control}-{d}-seed{seed}": with_control(SARSA, d, control, seed)
    for seed in SEEDS
    for d in WIDTHS
    for control in ("none", "tql")
}
runs = complete_all(members, FILE, STUDY)
TARGET = np.array(TQL.create(28, 5, SARSA).controller.model.target)
print("targets [layer, group] in nats:\n", TARGET)


# %%
def metric(run, name):
    """Updates, and a metric at each of them."""
    lines = read_lines(run / "metrics.jsonl")
    return np.array([line["step"] for line in lines]), np.array([line[name] for line in lines])


def late_entropy(run):
    """Entropy per layer and group, mean over the second half of training."""
    steps, H = metric(run, "entropy")
    return H[steps > steps[-1] / 2].mean(axis=0)


COLOURS = {"none": "tab:red", "fixed": "tab:purple", "single": "tab:cyan", "tql": "tab:blue"}
wide = WIDTHS[-1]
fig, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
for layer in range(2):
    for group in range(2):
        axis = axes[layer, group]
        for control in ("none", "tql"):
            for seed in SEEDS:
                steps, H = metric(runs[f"sarsa-{control}-{wide}-seed{seed}"], "entropy")
                axis.plot(
                    steps,
                    H[:, layer, group],
                    color=COLOURS[control],
                    label=control if seed == 0 else None,
                )
        axis.axhline(TARGET[layer, group], color="black", linestyle=":", label="target")
        title = f"layer {layer + 1}, {('[VALUE]', 'other tokens')[group]}"
        axis.set(title=f"entropy, {title}", ylim=(0, 3.7), xlabel="updates", ylabel="nats")
    for seed in SEEDS:
        steps, alpha = metric(runs[f"sarsa-tql-{wide}-seed{seed}"], "alpha")
        for group in range(2):
            label = ("[VALUE]", "other tokens")[group] if seed == 0 else None
            axes[layer, 2].plot(steps, alpha[:, layer, group], color=f"C{group}", label=label)
    axes[layer, 2].set(title=f"temperatures, layer {layer + 1}", yscale="log", xlabel="updates")
    axes[layer, 2].legend(fontsize="small")
axes[0, 0].legend(fontsize="small", loc="lower left")
fig.suptitle(f"d_model {wide}: attention entropy without control and with it ({len(SEEDS)} seeds)")
fig.savefig(PICTURES / "held.png", dpi=110)

# %% [markdown]
# **Claim 5.** With control no group ends far below its target, at any width (mean over seeds).
# Without it, a group of the widest critic does.
#
# Layer 2 stays *above* its target here: 1000 updates do not pull it down, and the controller cannot
# (claim 4).

# %%
for d in WIDTHS:
    for control in ("none", "tql"):
        below = TARGET - np.mean(
            [late_entropy(runs[f"sarsa-{control}-{d}-seed{seed}"]) for seed in SEEDS], axis=0
        )
        print(
            f"d_model {d:4}, {control:5} furthest below target: {below.max():+.2f} nats; "
            f"all [layer, group]: {(-below).round(2).tolist()}"
        )
        if control == "tql":
            claim(
                below.max() < 0.3,
                "no group ends more than 0.3 nats below its target (typically none is below)",
            )
        elif d == wide:
            claim(
                below.max() > 0.4, "without control one does, by at least 0.4 nats (typically 1.0)"
            )

# %% [markdown]
# ## Maps, landscapes, roughness

# %%
fig, axes = plt.subplots(2, 4, figsize=(16, 8), layout="constrained")
for row, control in enumerate(("none", "tql")):
    seen = load_portrait(runs[f"sarsa-{control}-{wide}-seed0"] / "portrait.npz")
    for layer in range(2):
        draw_map(
            axes[row, layer],
            seen.mean_maps[layer],
            int(seen.n_s),
            f"{control}: attention, layer {layer + 1}",
        )
    for pair in range(2):
        draw_landscape(axes[row, 2 + pair], seen.landscapes[pair], f"{control}\n")
fig.suptitle(f"d_model {wide}, seed 0, 1000 updates: without control (top) and with it (bottom)")
fig.savefig(PICTURES / "side_by_side.png", dpi=110)


# %%
def late(run, name):
    """One of the portrait's numbers, mean over the checkpoints of the second half of training."""
    lines = read_lines(run / "analysis.jsonl")
    return np.mean([line[name] for line in lines if line["step"] >= lines[-1]["step"] / 2])


fig, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
means = {}
for axis, name in zip(axes, ("roughness", "turning_points")):
    for control in ("none", "tql"):
        values = np.array(
            [
                [late(runs[f"sarsa-{control}-{d}-seed{seed}"], name) for seed in SEEDS]
                for d in WIDTHS
            ]
        )
        axis.plot(WIDTHS, values, "o", color=COLOURS[control], alpha=0.5)
        axis.plot(WIDTHS, values.mean(axis=1), color=COLOURS[control], label=control)
        means[control, name] = values.mean(axis=1)
    axis.set(
        title=name.replace("_", " "),
        xscale="log",
        xticks=WIDTHS,
        xticklabels=WIDTHS,
        xlabel="d_model",
        ylim=(0, None),
    )
    axis.minorticks_off()
axes[0].legend()
fig.suptitle(
    "Roughness of Q against width, mean of the checkpoints in the second half (points: seeds)"
)
fig.savefig(PICTURES / "roughness.png", dpi=110)

# %% [markdown]
# **Claim 6.** At the largest width control makes Q smoother by both measures, in the mean over
# seeds.

# %%
for (control, name), values in means.items():
    print(
        f"{control:5} {name:15}",
        "  ".join(f"d_model {d}: {value:.2f}" for d, value in zip(WIDTHS, values)),
    )
rougher = means["none", "roughness"][-1] / means["tql", "roughness"][-1]
more_turns = means["none", "turning_points"][-1] / means["tql", "turning_points"][-1]
claim(
    rougher > 1.4,
    f"without control the widest is at least 1.4 times as rough (typically 2.7): {rougher:.2f} x",
)
claim(
    more_turns > 1.1,
    f"and turns at least 1.1 times as often (typically 1.5): {more_turns:.2f} times",
)

# %% [markdown]
# ## With the actor

# %%
members = {
    f"flow-{control}-64-seed{seed}": with_control(FLOW, 64, control, seed)
    for seed in SEEDS
    for control in ("none", "tql")
}
runs |= complete_all(members, FILE, STUDY)
for control in ("none", "tql"):
    H = np.array([late_entropy(runs[f"flow-{control}-64-seed{seed}"]).mean() for seed in SEEDS])
    r = np.array([late(runs[f"flow-{control}-64-seed{seed}"], "roughness") for seed in SEEDS])
    print(
        f"flow actor, d_model 64, {control:5} entropy {H.mean():.2f} (seeds {H.round(2)}), "
        f"roughness {r.mean():.2f} (seeds {r.round(2)})"
    )

# %% [markdown]
# With the actor the entropy is held just as well, but these critics (d_model 64, 1500 updates) are
# *not* smoother with control by the first measure: its mean over seeds rises from 0.30 to 0.41.
# Without an actor, at this width, the means fall with control and the seeds overlap. The paper's
# claim about smoothness is about much wider critics.
#
# ## The ablations
#
# An ablation takes one part of a method away to see what it did. Does it take a *learned*
# temperature, and one per layer and token group? We run the paper's ablations at our largest width.
# One is a fixed penalty: $\alpha = 1$ for ever, so that entropy is maximised and no target is held.
# The other is a single temperature for all layers and groups.

# %%
KINDS = {
    "none": "no control",
    "fixed": "fixed penalty",
    "single": "single temperature",
    "tql": "TQL: per layer and group",
}
members = {
    f"sarsa-{control}-{wide}-seed{seed}": with_control(SARSA, wide, control, seed)
    for seed in SEEDS
    for control in KINDS
}
runs |= complete_all(members, FILE, STUDY)
fig, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
for x, control in enumerate(KINDS):
    of_seeds = [runs[f"sarsa-{control}-{wide}-seed{seed}"] for seed in SEEDS]
    H = np.array([late_entropy(run) for run in of_seeds])
    for axis, values, name in (
        (axes[0], H.mean(axis=(1, 2)), "entropy (nats)"),
        (axes[1], [late(run, "roughness") for run in of_seeds], "roughness"),
        (axes[2], [late(run, "sensitivity") for run in of_seeds], "|dQ/da|"),
    ):
        axis.bar(x, np.mean(values), color=COLOURS[control], alpha=0.5)
        axis.plot([x] * len(values), values, "ko", markersize=4)
        axis.set_title(name)
    print(
        f"{KINDS[control]:26} entropy {H.mean():.2f}, "
        f"per layer and group {H.mean(axis=0).round(2).tolist()}"
    )
for axis in axes:
    axis.set_xticks(
        range(len(KINDS)),
        [name.replace(": ", ":\n").replace(" ", "\n", 1) for name in KINDS.values()],
        fontsize="small",
    )
axes[0].axhline(math.log(34), color="black", linestyle=":")
fig.suptitle(f"Ablations at d_model {wide} (bars: mean of {len(SEEDS)} seeds)")
fig.savefig(PICTURES / "ablations.png", dpi=110)

# %% [markdown]
# **Claim 7.** A fixed penalty pushes every group to nearly uniform attention, far above the
# targets. The single temperature, whose price falls as soon as the *mean* entropy is high enough,
# leaves the first layer's `[VALUE]` query lower than TQL does.

# %%
by_group = {
    c: np.mean([late_entropy(runs[f"sarsa-{c}-{wide}-seed{seed}"]) for seed in SEEDS], axis=0)
    for c in KINDS
}
print(
    "layer 1, [VALUE]:",
    {c: round(float(H[0, 0]), 2) for c, H in by_group.items()},
    f"target {TARGET[0, 0]:.2f}",
)
least, less = by_group["fixed"].min(), by_group["tql"][0, 0] - by_group["single"][0, 0]
claim(
    least > math.log(34) - 0.3,
    "a fixed penalty leaves every group within 0.3 nats of ln n = 3.53 (typically 3.38): "
    f"{least:.2f}",
)
claim(
    less > 0.05,
    "the single temperature leaves this group at least 0.05 nats lower than TQL (typically 0.24): "
    f"{less:.2f}",
)
for c in KINDS:
    td = [metric(runs[f"sarsa-{c}-{wide}-seed{seed}"], "td_loss")[1][-10:].mean() for seed in SEEDS]
    print(f"{KINDS[c]:26} TD loss, second half: {np.mean(td):.2f} (seeds {np.round(td, 2)})")

# %% [markdown]
# These bars do not say which of the three is *best*. All smooth the landscape at this size, and TQL
# is the least smooth of the three (roughness 0.53; fixed penalty 0.46; single temperature 0.37).
# Nor do 1000 updates say anything about success, where the paper's order is 6, 38, 41 and 67 % (no
# control, fixed penalty, single temperature, TQL; 26 M parameters, cube-double).

# %% [markdown]
# ## A controller of your own
#
# A controller is one class with one method, `alpha`, built by `Mine(target, n)`. The class below
# has one temperature per layer, which its two groups share. In a cell we put it into an agent with
# `eqx.tree_at`, as a `Learner` with a fresh optimiser state. To train with it from the command
# line, put the class and its imports into a file `mine.py` of your own and name it. No file of the
# project changes:
#
# ```
# python -m tql train cube-single-noisy-singletask-task3-v0 \
#     --control.kind mine.py:TemperaturePerLayer
# ```


# %%
class TemperaturePerLayer(AbstractEntropyController):
    """One learned temperature per layer."""

    log_alpha: Float[Array, " layers"]
    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: tuple, n: int):
        self.log_alpha, self.target, self.n = jnp.zeros(len(target)), target, n

    def alpha(self) -> Float[Array, "layers 2"]:
        return jnp.stack([jnp.exp(self.log_alpha)] * 2, axis=1)


train, _ = load_dataset(Task.parse(TASK), FILE)
plain = TQL.create(28, 5, with_control(SARSA, 32, "tql", 0))
mine = TemperaturePerLayer(plain.controller.model.target, plain.controller.model.n)
_, of_temperature, _ = optimisers(plain.config)
learner = Learner.start(mine, of_temperature)
agent = eqx.tree_at(lambda agent: agent.controller, plain, learner)
agent, metrics = train_chunk((train, 50), agent)  # it consumes the agent that it is given
print("temperatures [layer, group] after 50 updates:\n", np.asarray(metrics["alpha"][-1]).round(3))
assert np.all(np.diff(metrics["alpha"][-1], axis=1) == 0), (
    "the two groups of a layer share their temperature"
)

# %% [markdown]
# ## What this scale does not show
#
# - Entropy *at* its target. Within 1000 updates every group stays above it, layer 2 by more than a
#   nat, and the controller can only let go. The agents of walkthrough 9 train 18 times as long:
#   there the `[VALUE]` queries come down to their targets, and the other tokens do not.
# - That TQL beats the other two forms of control, or that control helps TD.
# - Smoothness at widths 32 and 64 beyond the spread of the seeds. At 128 the smoothest run without
#   control equals the roughest with it.
# - That controlled critics get *better* with width, which is the paper's main result. That takes
#   its sizes and a million updates.
#
# ## Your turn
#
# *Predict*: what happens to entropy and roughness at d_model 128 if the target is lowered to 1.5
# nats everywhere: do they come nearer to TQL or nearer to no control? (The answer is at the end.)
# Then run (about a minute):
#
# ```python
# low = with_control(SARSA, 128, "tql", seed=0)
# low = replace(low, control=replace(low.control, target=((1.5, 1.5), (1.5, 1.5))))
# run = complete_all({"low-128-seed0": low}, FILE, STUDY)["low-128-seed0"]
# print(late_entropy(run).round(2), late(run, "roughness"))
# ```
#
# *Swap*: with `TemperaturePerLayer` in a file `mine.py`, train the widest critic with it and
# compare: `with_control(SARSA, 128, "mine.py:TemperaturePerLayer", seed=0)`.
#
# Next: `08_one_update.py` takes one whole update apart, gradient by gradient.

# %% [markdown]
# ## Answers
#
# <details><summary>Answer to the prediction</summary>
#
# Nearer to no control. A temperature only acts while its entropy is near or below the target, and
# without control none of these groups comes down to 1.5 nats on average: in the recorded runs at
# this width the four of them have 1.78, 2.17, 2.08 and 2.70 nats (layer 1, then layer 2; `[VALUE]`,
# then the others), means over three seeds and the second half of training. So all four temperatures
# do nothing but fall, by up to 1 % at every update, as long as the learning rate is high. What is
# left of the control is its beginning, when $\alpha$ is still near 1 and pushes all entropies
# towards ln n. It delays the collapse by a few hundred updates, so expect the entropy a little
# above that of no control. Roughness should be nearer to no control as well (1.44 in the recorded
# runs, and 0.53 with TQL), but it varies so much between seeds (0.78 to 2.12) that one run cannot
# decide it. This answer comes from the rule and from the recorded runs; the run with the target 1.5
# is left to you.
#
# </details>
