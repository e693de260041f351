# %% [markdown]
# # 6. What becomes of attention and of Q(s, a) when the critic gets wider?
#
# We train the same transformer critic at three widths, on the same real data, with the same
# settings, and without any control of its attention. We look at its entropy, its attention maps and
# its Q landscape. Then we ask what causes what we see, by changing one thing at a time.
#
# **Price**: 15 min on 2 cores (23 min of processor time), 1.8 GB of memory in each of 2 processes.
#
# **Writes**: pictures to `runs/walkthrough/06_collapse/`, runs to `runs/study/cpu/` (walkthrough 7
# goes on with them), and data to `data/100-episodes/`. If it is stopped halfway, it goes on where
# it was. If it is run again, it only draws.
#
# You need walkthroughs 3 (entropy) and 4 (TD).

# %%
import json
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from tql.analysis.portrait import draw_landscape, draw_map, load_portrait
from tql.analysis.study import complete_all, read_lines
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.presets import PRESETS
from tql.training.workspace import CHECKOUT, dataset, home, pictures
from tql.variants.returns import regression_to_returns

PICTURES = pictures("06_collapse")
# For other settings take another folder: a run is never continued with changed settings.
STUDY = home() / "runs" / "study" / "cpu"
TASK = "cube-single-play-singletask-task2-v0"
WIDTHS = (32, 64, 128)
SEEDS = (0, 1, 2)  # single critics vary, so every number is a mean over these
STEPS = 1000  # updates of a critic
EPISODES = 100  # of data
FULL = len(SEEDS) >= 3 and STEPS >= 1000
SIZES = dict(
    steps=STEPS,
    evaluate_every=STEPS,
    checkpoint_every=STEPS // 4,
    log_every=STEPS // 20,
    updates_per_call=STEPS // 20,
)
SARSA = replace(PRESETS["cpu-sarsa"](TASK), **SIZES, warmup=STEPS // 10)
LONGER = dict(steps=3 * STEPS // 2, evaluate_every=3 * STEPS // 2)
# It is too short to act, so it is not evaluated.
FLOW = replace(PRESETS["cpu-flow"](TASK), **SIZES | LONGER, warmup=STEPS // 10, episodes=0)
FILE = dataset(TASK, episodes=EPISODES)


def claim(holds, text):
    """Stops where a sentence of this page is false; at smaller sizes it only says so."""
    print("holds:" if holds else "DOES NOT HOLD:", text)
    assert holds or not FULL, text


# %% [markdown]
# ## The setting
#
# The environment has a robot arm and one cube. The reward is -1 until the cube lies at its goal,
# then 0. The data are 100 episodes of OGBench's `play` policy, a script that moves the cube about.
# The TD target uses the action that the dataset took next, so there is no actor, and the critic is
# all that learns:
#
# $$y = r + \gamma\,m\,\bar Q(s', a'), \qquad (s, a, r, m, s', a') \text{ from the data}$$
#
# To make 1000 updates on two cores enough, these settings differ from the paper: a horizon of 20
# steps instead of 100, a faster target network, a learning rate ten times as large, small critics
# (the paper's have widths 128 to 1024), and no actor. The last section puts the actor back.

# %%
train, validation = load_dataset(Task.parse(TASK), FILE)
n = 1 + train.s.shape[1] + train.a.shape[1]
print(
    f"{len(train.r):,} transitions; n = {n} tokens, "
    f"so entropies lie between 0 and ln n = {np.log(n):.2f} nats"
)
print(
    f"batch {SARSA.batch_size}, gamma {SARSA.discount}, tau {SARSA.tau}, "
    f"learning rate {SARSA.critic_lr}, {SARSA.steps} updates"
)

# %% [markdown]
# ## Nine critics
#
# There are three widths and three seeds. `complete_all` trains the critics two at a time, each on
# one core. Every 250 updates it takes a *portrait* of the critic: its landscape, slices and
# attention on 32 pairs (s, a) of the validation data (`tql/analysis/portrait.py`).


# %%
def without_control(base, d_model, seed):
    """The settings `base` at another width and seed, and without entropy control."""
    return replace(
        base,
        seed=seed,
        critic=replace(base.critic, d_model=d_model),
        control=replace(base.control, kind="none"),
    )


members = {
    f"sarsa-none-{d}-seed{seed}": without_control(SARSA, d, seed) for seed in SEEDS for d in WIDTHS
}
runs = complete_all(members, FILE, STUDY)

# %% [markdown]
# ## Entropy over training
#
# In every layer there are two groups: the query of `[VALUE]`, and the mean of all other queries.
# Where a single number is wanted, we take the mean over layers and groups,
# $\langle H \rangle = \frac1{2L}\sum_{l,g} H_{l,g}$, and over the second half of training.


# %%
def entropy(run):
    """Updates, and the entropy in nats of every layer and group at each of them."""
    lines = read_lines(run / "metrics.jsonl")
    return np.array([line["step"] for line in lines]), np.array([line["entropy"] for line in lines])


def late_entropy(run):
    """Mean over layers, groups and the second half of training."""
    steps, H = entropy(run)
    return H[steps > steps[-1] / 2].mean()


COLOURS = {32: "tab:green", 64: "tab:orange", 128: "tab:red"}
fig, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey=True)
for (layer, group), axis in np.ndenumerate(axes):
    for d in WIDTHS:
        curves = [entropy(runs[f"sarsa-none-{d}-seed{seed}"]) for seed in SEEDS]
        for steps, H in curves:
            axis.plot(steps, H[:, layer, group], color=COLOURS[d], linewidth=0.7, alpha=0.6)
        mean = np.mean([H[:, layer, group] for _, H in curves], axis=0)
        axis.plot(curves[0][0], mean, color=COLOURS[d], linewidth=2.5, label=f"d_model {d}")
    axis.axhline(np.log(n), color="black", linestyle=":", label="ln n")
    axis.set(
        title=f"layer {layer + 1}, {('[VALUE]', 'other tokens')[group]}",
        ylim=(0, 3.7),
        xlabel="updates",
        ylabel="entropy (nats)",
    )
axes[0, 0].legend(loc="lower left")
fig.suptitle(f"No control: attention entropy by width ({len(SEEDS)} seeds thin, their mean thick)")
fig.savefig(PICTURES / "entropy.png", dpi=110)

# %% [markdown]
# **Claim 1.** In the mean over seeds, the widest critic's attention has clearly less entropy than
# the narrowest's, and its first layer has less than its second.

# %%
by_width = {
    d: np.array([late_entropy(runs[f"sarsa-none-{d}-seed{seed}"]) for seed in SEEDS])
    for d in WIDTHS
}
for d, H in by_width.items():
    print(
        f"d_model {d:4}: mean entropy {H.mean():.2f} nats, seeds {H.round(2)}, "
        f"exp(H) = {np.exp(H.mean()):.0f} of {n} tokens"
    )
gap = by_width[WIDTHS[0]].mean() - by_width[WIDTHS[-1]].mean()
narrow, wide = WIDTHS[0], WIDTHS[-1]
first, second = np.mean(
    [entropy(runs[f"sarsa-none-{wide}-seed{seed}"])[1][-10:].mean(axis=(0, 2)) for seed in SEEDS],
    axis=0,
)
claim(
    first < second - 0.1,
    "the widest's first layer has at least 0.1 nats less than its second (typically 0.4): "
    f"{first:.2f}, {second:.2f}",
)
claim(
    gap > 0.2,
    f"the widest has at least 0.2 nats less than the narrowest (typically 0.58): {gap:.2f}",
)

# %% [markdown]
# ## Where attention goes
#
# Rows are queries, columns are keys, and each row sums to 1. The white lines separate `[v]`, the 28
# state tokens and the 5 actions. A bright column is a token that every query looks at. The picture
# shows the narrowest and the widest critic of the first seed, as means over 32 pairs and over
# heads.

# %%
portraits = {d: load_portrait(runs[f"sarsa-none-{d}-seed0"] / "portrait.npz") for d in WIDTHS}
fig, axes = plt.subplots(2, 2, figsize=(9, 9), layout="constrained")
for row, d in enumerate((narrow, wide)):
    for layer in range(2):
        draw_map(
            axes[row, layer],
            portraits[d].mean_maps[layer],
            int(portraits[d].n_s),
            f"d_model {d}, layer {layer + 1}",
        )
fig.suptitle(f"Attention after {STEPS} updates without control (seed 0)")
fig.savefig(PICTURES / "attention.png", dpi=110)

# %% [markdown]
# ## What Q looks like
#
# The picture shows Q over two action dimensions around an action of the data, at 11 x 11 offsets in
# [-0.5, 0.5] (the paper's picture), and along one action dimension over its whole range. The
# colours are stretched to the range of each picture, which stands in its title. So look at the
# shape in the picture, and at the range in the title.

# %%
fig, axes = plt.subplots(2, 4, figsize=(15, 7), layout="constrained")
for row, d in enumerate((narrow, wide)):
    for column in range(3):
        draw_landscape(axes[row, column], portraits[d].landscapes[column], f"d_model {d}\n")
    for line in portraits[d].slices[:3, 0]:
        axes[row, 3].plot(np.linspace(-1, 1, 41), (line - line.min()) / np.ptp(line))
    axes[row, 3].set(
        title=f"d_model {d}: slices, stretched to [0, 1]", xlabel="action 1", ylabel="Q, stretched"
    )
fig.suptitle("Q around three actions of the data, without control (seed 0)")
fig.savefig(PICTURES / "landscapes.png", dpi=110)

# %% [markdown]
# Two numbers measure the "stripes and cliffs", both in `tql/analysis/landscape.py`:
#
# - *roughness* is the mean squared second difference of the landscape over its variance. A plane
#   has 0, independent noise has 6.
# - *turning points* says how often Q turns along one action dimension, at 41 points in [-1, 1]. A
#   slice that only rises or only falls has 0.
#
# Single checkpoints vary, so we average those after 500, 750 and 1000 updates.


# %%
def late(run, name):
    """One of the portrait's numbers, mean over the checkpoints of the second half of training."""
    lines = read_lines(run / "analysis.jsonl")
    return np.mean([line[name] for line in lines if line["step"] >= lines[-1]["step"] / 2])


def draw_by_width(axis, name, label):
    """Every seed a point, the mean a line."""
    values = np.array(
        [[late(runs[f"sarsa-none-{d}-seed{seed}"], name) for seed in SEEDS] for d in WIDTHS]
    )
    axis.plot(WIDTHS, values, "o", color="tab:red", alpha=0.6)
    axis.plot(WIDTHS, values.mean(axis=1), color="tab:red")
    axis.set(
        xscale="log",
        xticks=WIDTHS,
        xticklabels=WIDTHS,
        xlabel="d_model",
        ylabel=label,
        ylim=(0, None),
    )
    axis.minorticks_off()
    return values


fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
rough = draw_by_width(axes[0], "roughness", "roughness of the landscape")
turns = draw_by_width(axes[1], "turning_points", "turning points of a slice")
ranges = draw_by_width(axes[2], "q_range", "range of Q on the landscape")
fig.suptitle("No control: the wider critic is rougher (each point a seed)")
fig.savefig(PICTURES / "roughness.png", dpi=110)

# %% [markdown]
# **Claim 2.** By both measures the widest critic is rougher than the narrowest, in the mean over
# seeds.

# %%
for d, r, t, q in zip(WIDTHS, rough, turns, ranges):
    print(
        f"d_model {d:4}: roughness {r.mean():.2f} (seeds {r.round(2)}), "
        f"turning points {t.mean():.2f}, range of Q {q.mean():.3f}"
    )
rougher, more_turns = rough[-1].mean() / rough[0].mean(), turns[-1].mean() / turns[0].mean()
claim(
    rougher > 1.5,
    f"the widest is at least 1.5 times as rough as the narrowest (typically 5): {rougher:.2f} x",
)
claim(
    more_turns > 1.1,
    f"and turns at least 1.1 times as often (typically 1.4): {more_turns:.2f} times",
)

# %% [markdown]
# ## Is it the width, or the step?
#
# Adam moves every weight by about the learning rate, however wide the layer is. A sum over
# `d_model` inputs then moves by about `d_model` times that. So at one learning rate, the wider
# critic takes larger steps as a function. To see whether this matters, we give the widest critic a
# quarter of the rate, and the narrowest four times the rate. *Predict first*: which of the four
# collapse? (The answer is at the end.)

# %%
slow, fast = (
    replace(SARSA, critic_lr=SARSA.critic_lr / 4),
    replace(SARSA, critic_lr=SARSA.critic_lr * 4),
)
causes = {f"slow-none-{wide}-seed{seed}": without_control(slow, wide, seed) for seed in SEEDS}
causes |= {f"fast-none-{narrow}-seed{seed}": without_control(fast, narrow, seed) for seed in SEEDS}
runs |= complete_all(causes, FILE, STUDY)

# %% [markdown]
# ## Is it time?
#
# The narrowest critic for four times as many updates.

# %%
long = replace(
    SARSA, steps=4 * SARSA.steps, evaluate_every=4 * SARSA.steps, checkpoint_every=SARSA.steps
)
causes = {f"long-none-{narrow}-seed{seed}": without_control(long, narrow, seed) for seed in SEEDS}
runs |= complete_all(causes, FILE, STUDY)

# %% [markdown]
# ## Is it bootstrapping?
#
# Bootstrapping means that the critic learns from its own values. The paper's explanation of the
# collapse is that TD feeds the critic's own roughness back to it. The control for that is the same
# critic without any feedback: regression to the return that followed in the data,
# $y = \sum_k \gamma^k r_{t+k}$. No new code is needed: with that return as reward and $m = 0$, the
# TD target *is* the return.

# %%
returns = partial(regression_to_returns, gamma=SARSA.discount)
targets = returns(train)
lowest, highest = float(targets.r.min()), float(targets.r.max())
print(
    f"returns: mean {float(targets.r.mean()):.2f}, from {lowest:.2f} to {highest:.2f}; "
    "possible: -1/(1-gamma) = -20 to 0"
)
assert not targets.m.any() and -20 <= lowest and highest <= 0, (
    "returns lie in [-20, 0], and nothing follows them"
)
causes = {
    f"returns-none-{d}-seed{seed}": without_control(SARSA, d, seed)
    for seed in SEEDS
    for d in (narrow, wide)
}
runs |= complete_all(causes, FILE, STUDY, change=returns)

# %% [markdown]
# ## The answers at this scale

# %%
KINDS = {
    f"width {narrow}": f"sarsa-none-{narrow}",
    f"width {wide}": f"sarsa-none-{wide}",
    f"width {wide}, lr / 4": f"slow-none-{wide}",
    f"width {narrow}, lr x 4": f"fast-none-{narrow}",
    f"width {narrow}, 4 x longer": f"long-none-{narrow}",
    f"width {narrow}, no bootstrapping": f"returns-none-{narrow}",
    f"width {wide}, no bootstrapping": f"returns-none-{wide}",
}
fig, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained", sharey=True)
answers = {}
for row, (label, stem) in enumerate(KINDS.items()):
    of_seeds = [runs[f"{stem}-seed{seed}"] for seed in SEEDS]
    H, r = (
        np.array([late_entropy(run) for run in of_seeds]),
        np.array([late(run, "roughness") for run in of_seeds]),
    )
    answers[stem] = H.mean(), r.mean()
    print(
        f"{label:32} entropy {H.mean():.2f} (seeds {H.round(2)}), "
        f"roughness {r.mean():.2f} (seeds {r.round(2)})"
    )
    for axis, values in zip(axes, (H, r)):
        axis.barh(row, values.mean(), color="tab:red", alpha=0.4)
        axis.plot(values, [row] * len(values), "ko", markersize=4)
axes[0].set_yticks(range(len(KINDS)), KINDS)
axes[0].invert_yaxis()
axes[0].set(
    xlabel="entropy (nats), mean over layers, groups, second half", title="attention entropy"
)
axes[1].set(xlabel="roughness", title="roughness of the landscape")
fig.savefig(PICTURES / "causes.png", dpi=110)

# %% [markdown]
# **Claim 3.** For the mean entropy the learning rate matters as much as the width. A quarter of the
# rate gives the widest critic most of its entropy back. Four times the rate takes the narrowest, in
# the mean over seeds, about as low as the widest.
#
# **Claim 4.** Time matters, too: trained four times as long, the narrowest critic has less entropy
# than after the usual length.
#
# **Claim 5.** Bootstrapping is not *needed*. Under regression to returns, which feeds nothing back,
# the widest critic has less entropy than the narrowest, too. TD takes the widest further down.

# %%
entropy_of = {stem: H for stem, (H, _) in answers.items()}
lowest, highest = entropy_of[f"sarsa-none-{wide}"], entropy_of[f"sarsa-none-{narrow}"]
gain, loss = entropy_of[f"slow-none-{wide}"] - lowest, highest - entropy_of[f"fast-none-{narrow}"]
claim(
    gain > 0.3,
    "a quarter of the rate keeps at least 0.3 nats more at the largest width (typically 0.6): "
    f"{gain:.2f}",
)
claim(
    loss > 0.3,
    f"four times the rate costs the narrowest at least 0.3 nats (typically 0.8): {loss:.2f}",
)
longer = highest - entropy_of[f"long-none-{narrow}"]
claim(
    longer > 0.1,
    f"four times as long costs the narrowest at least 0.1 nats (typically 0.4): {longer:.2f}",
)
without = entropy_of[f"returns-none-{narrow}"] - entropy_of[f"returns-none-{wide}"]
claim(
    without > 0.15,
    "without bootstrapping the widest has at least 0.15 nats less, too (typically 0.43): "
    f"{without:.2f}",
)
stems = (f"returns-none-{wide}", f"sarsa-none-{wide}")
further = np.subtract(
    *[[late_entropy(runs[f"{stem}-seed{seed}"]) for seed in SEEDS] for stem in stems]
)
claim(
    further.mean() > 0.05,
    f"TD takes it at least 0.05 nats further (typically 0.25): {further.mean():.2f}, "
    f"by seed {further.round(2)}",
)

# %% [markdown]
# Roughness does *not* follow the entropy here: at a quarter of the rate the widest critic is still
# three times as rough as the narrowest, and the narrowest at four times the rate is not rough.
# Width matters to the shape of Q beyond what it does to the mean entropy.
#
# Why would the rate stand in for the width? A guess, which this page does not test, is that at one
# rate the step that Adam takes in function space grows with the width. And a caution: a critic at a
# quarter of the rate has also *learned* less after 1000 updates, so "less collapse" may mean
# "earlier on the same way". The paper trains all its sizes at one rate, as we do above.

# %% [markdown]
# ## With an actor
#
# The same at one width with the paper's actor: now the TD target asks the critic about actions that
# the actor chose *because* this critic likes them. We make 1500 updates, which is too short to
# solve an episode.

# %%
with_actor = {f"flow-none-64-seed{seed}": without_control(FLOW, 64, seed) for seed in SEEDS}
runs |= complete_all(with_actor, FILE, STUDY)
fig, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for seed in SEEDS:
    steps, H = entropy(runs[f"flow-none-64-seed{seed}"])
    for layer in range(2):
        axes[0].plot(
            steps,
            H[:, layer, 0],
            color=f"C{layer}",
            alpha=0.8,
            label=f"layer {layer + 1}, [VALUE]" if seed == 0 else None,
        )
    steps = [
        line["step"] for line in read_lines(runs[f"flow-none-64-seed{seed}"] / "analysis.jsonl")
    ]
    rough = [
        line["roughness"]
        for line in read_lines(runs[f"flow-none-64-seed{seed}"] / "analysis.jsonl")
    ]
    axes[1].plot(steps, rough, "o-", color="tab:red", alpha=0.7)
axes[0].axhline(np.log(n), color="black", linestyle=":", label="ln n")
axes[0].set(title="entropy of [VALUE]'s query", xlabel="updates", ylabel="nats", ylim=(0, 3.7))
axes[0].legend()
axes[1].set(title="roughness (a line a seed)", xlabel="updates", ylim=(0, None))
of_flow = load_portrait(runs["flow-none-64-seed0"] / "portrait.npz")
draw_map(axes[2], of_flow.mean_maps[0], int(of_flow.n_s), "attention, layer 1, seed 0")
fig.suptitle("With the flow actor, d_model 64, no control")
fig.savefig(PICTURES / "with_actor.png", dpi=110)

# %% [markdown]
# **Claim 6.** With the actor, too, the `[VALUE]` query of one layer falls far below ln n in every
# seed. Which layer it is differs between seeds.

# %%
late_value = [
    entropy(runs[f"flow-none-64-seed{seed}"])[1][-10:, :, 0].mean(axis=0) for seed in SEEDS
]
lowest = np.array([of_layers.min() for of_layers in late_value])
print(
    f"[VALUE], layers 1 and 2, by seed: {[layers.round(2).tolist() for layers in late_value]}; "
    f"ln n = {np.log(n):.2f}"
)
below = np.log(n) - lowest.max()
claim(
    below > 1, f"in every seed one layer is at least 1 nat below ln n (typically 1.5): {below:.2f}"
)

# %% [markdown]
# ## What this scale shows, and what it does not
#
# It shows, on real data and with three seeds each, that attention loses entropy without control,
# that at one learning rate the widest critic loses most, and that its Q is rougher over actions by
# two measures. It also shows that neither bootstrapping nor an actor is needed for this.
#
# It does not show:
#
# - that TD *causes* the collapse. The paper says so of its scale; here regression to returns
#   collapses too, if less.
# - that success falls with width. These critics do not act, and 1000 updates are too few.
# - attention on a single token. Our widest critics still look at about nine tokens, the paper's
#   widest at about one ($e^{0.27}$).
# - a trend from each width to the next. Single critics of width 64 lie above those of 32 and below
#   those of 128.
# - that roughness harms. After 1000 updates the critic hardly depends on the action: look at the
#   ranges in the titles.
#
# The last picture shows the paper's own curves, from critics of widths 128 to 1024 over a million
# updates, without control:

# %%
published = json.loads((CHECKOUT / "figures" / "published.json").read_text())
fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for size, colour in zip(published["sizes"], plt.cm.plasma(np.linspace(0, 0.8, 4))):
    curve = published["entropy_without_control"]
    axes[0].plot(
        curve["steps"],
        curve["cube-double"][size],
        "--",
        color=colour,
        label=f"{size} (d_model {published['sizes'][size]})",
    )
    success = published["success_without_control"]
    axes[1].plot(success["steps"], success[size], "--", color=colour, label=size)
axes[0].axhline(np.log(43), color="black", linestyle=":", label="ln n, n = 43")
axes[0].set(
    title="attention entropy, cube-double, no control", xlabel="updates", ylabel="nats", ylim=(0, 4)
)
axes[1].set(title="success, cube-double, no control", xlabel="updates", ylabel="% of episodes")
axes[0].legend(fontsize="small")
axes[1].legend(fontsize="small")
fig.suptitle("Published (arXiv 2602.01439), read off its figures: not our runs")
fig.savefig(PICTURES / "published.png", dpi=110)

# %% [markdown]
# ## Your turn
#
# *Predict*: does a critic with one more layer collapse in all layers, or in the first only? Write
# down one number per layer, then run it (about a minute; the answer is at the end):
#
# ```python
# deep = without_control(replace(SARSA, critic=replace(SARSA.critic, layers=3)), 64, seed=0)
# run = complete_all({"deep-none-64-seed0": deep}, FILE, STUDY)["deep-none-64-seed0"]
# print(entropy(run)[1][-1].round(2))
# ```
#
# *Swap*: walkthrough 2 has a tokenizer that keeps magnitudes. Does a critic that sees magnitudes
# from the start collapse less? Put the class, with its imports, into a file `mine.py`, and name it
# in the settings:
#
# ```python
# fourier = replace(SARSA, critic=replace(SARSA.critic, tokenizer="mine.py:Fourier"))
# members = {"fourier-none-128-seed0": without_control(fourier, 128, seed=0)}
# print(late_entropy(complete_all(members, FILE, STUDY)["fourier-none-128-seed0"]))
# ```
#
# Next: `07_controller.py` holds the entropy of these same critics, and looks again.

# %% [markdown]
# ## Answers
#
# <details><summary>Answer to the first prediction</summary>
#
# The widest critic and the narrowest at four times the rate. These are the mean entropies of the
# recorded runs (layers, groups and the second half of training; ln n = 3.53 nats) and their three
# seeds:
#
# | critic | mean | seeds |
# |---|---|---|
# | width 32 | 2.76 | 2.68, 2.60, 2.99 |
# | width 128 | 2.18 | 2.20, 2.13, 2.22 |
# | width 128, rate / 4 | 2.81 | 2.84, 2.89, 2.70 |
# | width 32, rate x 4 | 1.93 | 1.18, 2.29, 2.32 |
#
# So the rate does what the width does, though not evenly: most of the last line comes from one
# seed.
#
# </details>
#
# <details><summary>Answer to the second prediction</summary>
#
# All layers lose entropy, and the first ones lose most. The recorded runs have critics of four
# layers at this width (`depth4-none-64`, three seeds). There the `[VALUE]` query has, from the
# first layer to the last, 2.45, 1.91, 2.81 and 2.85 nats, and the other queries 2.77, 2.71, 3.04
# and 3.14, as means over the second half of training. No layer stays at ln n = 3.53. Single seeds
# vary by up to a nat: at the last update the `[VALUE]` query of the fourth layer has 3.22, 2.25 and
# 3.12 nats.
#
# </details>
