# %% [markdown]
# # 3. Attention and its entropy: how many tokens does a query look at?
# The paper measures the collapse of a critic by one number, the entropy of its attention rows. What
# is this number? How is it computed so that it can be differentiated? What makes it small, and what
# happens to $Q$ when it is?
#
# **Price**: 50 s on 2 cores (50 s of processor time), 1.7 GB of memory.
#
# **Writes**: pictures to `runs/walkthrough/03_attention_and_entropy/`.
#
# You need walkthrough 2 for the tokens. No data are used here: states are drawn from a normal
# distribution and actions uniformly from $[-1, 1]$.

# %%
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from tql.analysis.landscape import (
    SLICE,
    effective_tokens,
    landscape,
    q_slice,
    roughness,
    turning_points,
)
from tql.attention import SoftmaxAttention, group_entropy, row_entropy
from tql.critic import Critic
from tql.training.workspace import pictures

PICTURES = pictures("03_attention_and_entropy")
SEED = 0
N_S, N_A = 37, 5  # cube-double, the paper's first domain
N = 1 + N_S + N_A
D_MODEL = 64  # of the critics that are collapsed by hand
WIDTHS = (D_MODEL, 128, 256)  # of the critics at initialisation; the paper has 128 to 1024
CRITICS, PAIRS = 6, 8  # critics, and pairs (s, a) for each: roughness varies much between them
# The entropy of every row, with any leading axes.
rows_of = jax.jit(jnp.vectorize(row_entropy, signature="(n)->()"))
k_rows, k_width, k_critic, k_s, k_a = jr.split(jr.key(SEED), 5)

# %% [markdown]
# ## From one token to all of them
# One attention row is a distribution over the $n$ tokens, $p = \mathrm{softmax}(l)$. Its entropy,
# in nats, is
#
# $$H = -\sum_j p_j \log p_j, \qquad 0 \le H \le \ln n.$$
#
# It is easier to read as $e^H$, the *effective number of tokens*.
#
# **Claim 1.** A row that is spread evenly over $m$ of $n$ tokens has $e^H = m$. So $e^H$ is 1 for a
# row that looks at one token and $n$ for a uniform row.

# %%
m = jnp.array([1, 2, 5, 20, N])
evenly = jnp.where(jnp.arange(N) < m[:, None], 0.0, -100.0)  # logits; at -100, p is 0
counts = effective_tokens(rows_of(evenly))
print(f"effective tokens {np.round(counts, 4)}, ln n = {math.log(N):.3f} nats for n = {N}")
error = float(jnp.max(jnp.abs(counts / m - 1)))
assert error < 1e-5, (
    f"e^H of evenly spread rows is off by {error:.1e} of its value (typical 5e-7, at most 1e-5)"
)

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharex=True)
leaning = jnp.linspace(3, -3, N)
for ax, l, name in zip(
    axes, (evenly[-1], leaning, 20 * leaning), ("uniform", "in between", "nearly one-hot")
):
    H = row_entropy(l)
    ax.bar(np.arange(N), jax.nn.softmax(l), color="tab:blue")
    ax.set(title=f"{name}\nH = {H:.2f} nats, {effective_tokens(H):.1f} effective tokens")
    ax.set(xlabel="key (token)")
axes[0].set(ylabel="attention p", ylim=(0, 0.04))
fig.savefig(PICTURES / "rows.png", dpi=110)

# %% [markdown]
# ## From the logits
# The network has logits $l$, and $\log p_j = l_j - \log\sum_k e^{l_k}$ is known before any
# probability is computed. We put that in:
#
# $$H = -\sum_j p_j \Big(l_j - \log\sum_k e^{l_k}\Big) = \log\sum_j e^{l_j} - \sum_j p_j\,l_j .$$
#
# No logarithm of a probability is left.


# %%
def entropy_from_logits(l):
    p = jax.nn.softmax(l)
    return jax.nn.logsumexp(l) - jnp.sum(p * l)


def textbook_64(l):
    """In numpy's double precision; p does not underflow for logits as far apart as 700."""
    l = np.asarray(l, np.float64)
    p = np.exp(l - l.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return -np.sum(p * np.log(p), axis=-1)


# %% [markdown]
# **Claim 2.** This formula gives the entropy at every scale of the logits, and so does
# `tql.attention.row_entropy`. The module's version first moves the largest logit to 0. On paper
# that changes nothing; in float32 it keeps the digits when all logits are large.

# %%
scales = jnp.array([0.1, 1.0, 10.0])[:, None, None]
rows = (scales * jr.normal(k_rows, (3, 1000, N))).reshape(-1, N)
ours, module = jax.vmap(entropy_from_logits)(rows), rows_of(rows)
error_ours, error_module = (float(np.max(np.abs(H - textbook_64(rows)))) for H in (ours, module))
far = rows + 10_000.0
far_ours = float(np.max(np.abs(jax.vmap(entropy_from_logits)(far) - textbook_64(far))))
far_module = float(np.max(np.abs(rows_of(far) - textbook_64(far))))
print(f"largest error in nats: by hand {error_ours:.1e}, module {error_module:.1e}")
print(f"with 10,000 added to all logits: by hand {far_ours:.1e}, module {far_module:.1e}")
assert max(error_ours, error_module) < 3e-5, (
    "H differs from float64 by more than 3e-5 nats (typical 5e-6)"
)
assert far_module < 3e-5 < far_ours, (
    "the module should keep 3e-5 nats where the short form does not (typical 4e-6, 6e-3)"
)

# %% [markdown]
# ## Which way its gradient points
# $$\frac{\partial H}{\partial l_j} = -p_j\,(\log p_j + H)$$
#
# A step up in entropy lowers the logit of a token exactly if the token has more than its share,
# $p_j > e^{-H}$, and raises it if the token has less.
#
# **Claim 3.** So a step *up* in entropy always lowers the largest logit.

# %%
gradient = jax.vmap(jax.grad(row_entropy))(rows)
p = jax.nn.softmax(rows)
formula = -p * (jax.nn.log_softmax(rows) + module[:, None])
largest = jnp.take_along_axis(gradient, jnp.argmax(rows, axis=1)[:, None], axis=1)[:, 0]
share = float(jnp.mean(largest < 0))
visible = jnp.abs(formula) > 1e-4  # where rounding cannot turn the sign
as_told = float(jnp.mean(((gradient < 0) == (p > jnp.exp(-module)[:, None]))[visible]))
print(
    f"largest logit pushed down in {share:.1%} of {len(rows)} rows; "
    f"sign as told for {as_told:.1%} of tokens"
)
print(f"largest difference to the formula {jnp.max(jnp.abs(gradient - formula)):.1e}")
assert jnp.max(jnp.abs(gradient - formula)) < 1e-5, (
    "autodiff and the formula differ by more than 1e-5 (typical 1e-6)"
)
assert share == 1 and as_told == 1, (
    "the gradient of H must push every over-weighted token down and every other up"
)

# %% [markdown]
# Let one logit lead all others by $g$ nats. Then the leader has $p = e^g / (e^g + n - 1)$, and its
# gradient is $-p\,(1-p)\,g$.
#
# **Claim 4.** This pull is strongest when the row is about to tip over, and it fades like
# $g\,e^{-g}$ once the row has tipped. So a row that has collapsed hardly feels that its entropy
# should rise, and whoever wants to hold the entropy must do it earlier.

# %%
gaps = jnp.linspace(0.0, 25.0, 251)
leading = jnp.zeros((251, N)).at[:, 0].set(gaps)
H_gap, pull = jax.vmap(jax.value_and_grad(row_entropy))(leading)
lead = gaps - math.log(N - 1)
# -p (1 - p) g, where 1 - p = sigmoid(-lead) keeps all digits.
closed = -jax.nn.sigmoid(lead) * jax.nn.sigmoid(-lead) * gaps
peak = float(gaps[jnp.argmin(pull[:, 0])])
left = float(pull[200, 0] / jnp.min(pull[:, 0]))
print(
    f"strongest at a gap of {peak:.1f} nats (ln n = {math.log(N):.1f}); "
    f"at 20 nats {left:.1e} of that is left"
)
assert jnp.allclose(pull[:, 0], closed, rtol=1e-3, atol=1e-7), (
    "the leader's gradient should be -p (1 - p) g within 0.1 %"
)
assert math.log(N) < peak < math.log(N) + 2, (
    "the pull should be strongest up to 2 nats above ln n (typical 0.5 above)"
)
assert left < 1e-4, (
    "at a gap of 20 nats less than 1e-4 of the strongest pull should be left (typical 1.7e-6)"
)

# %%
fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
l = 1.2 * jr.normal(k_rows, (N,))
order = jnp.argsort(-l)
l, g_row = l[order], jax.grad(row_entropy)(l[order])
colours = np.where(g_row < 0, "tab:red", "tab:blue")
left_ax.bar(np.arange(N), jax.nn.softmax(l), color=colours)
left_ax.axhline(jnp.exp(-row_entropy(l)), color="k", lw=1, label="share $e^{-H}$")
left_ax.set(
    title="Raising H pushes red tokens down, blue ones up",
    xlabel="tokens, sorted",
    ylabel="attention p",
)
left_ax.legend()
right_ax.plot(gaps, H_gap, label="H (nats)")
right_ax.plot(gaps, -pull[:, 0], label="pull on the leader, p (1 - p) g")
right_ax.set(
    title="The pull fades once the row has collapsed", xlabel="gap g of the leading logit (nats)"
)
right_ax.legend()
fig.savefig(PICTURES / "gradient.png", dpi=110)

# %% [markdown]
# ## The textbook form fails exactly under collapse
# In float32, $p_j$ is 0 once its logit lies about 87 nats or more below the largest (up to 104 nats
# where the processor keeps the smallest numbers). Then $p_j \log p_j = 0 \cdot (-\infty)$, which is
# NaN ("not a number"). The function `jax.scipy.special.entr` knows that the *value* is 0, but the
# chain rule still multiplies $0$ by $\infty$. Clipping $p$ inside the logarithm, as the authors'
# code does at $10^{-9}$, gives finite numbers, though not the gradient: below the clip the
# derivative of $\log p_j$ is lost. The form $p \log p$ with `log_softmax` is nearly ours.


# %%
def textbook(l):
    p = jax.nn.softmax(l)
    return -jnp.sum(p * jnp.log(p))


def with_entr(l):
    return jnp.sum(jax.scipy.special.entr(jax.nn.softmax(l)))


def with_clip(l):
    p = jax.nn.softmax(l)
    return -jnp.sum(p * jnp.log(jnp.clip(p, 1e-9)))


def with_log_softmax(l):
    log_p = jax.nn.log_softmax(l)
    return -jnp.sum(jnp.exp(log_p) * log_p)


def in_float64(l):
    """Value and gradient by numpy. The gradient is from its formula, because finite differences
    would lose these digits."""
    l = np.asarray(l, np.float64)
    log_p = l - l.max() - np.log(np.sum(np.exp(l - l.max())))
    H = -np.sum(np.exp(log_p) * log_p)
    return H, -np.exp(log_p) * (log_p + H)


# %% [markdown]
# **Claim 5.** With one underflow, the textbook form has NaN for its value and for its gradient, and
# `entr` has the right value with a NaN gradient. Clipping gives a gradient that is finite and
# wrong: at a gap of 50 nats it is less than half of what it should be. Ours is right. (The error of
# clipping is small in absolute terms, since $p_j$ is small. The NaN is not small: one step with it
# turns every parameter of the critic into NaN.)

# %%
forms = {f.__name__: f for f in (textbook, with_entr, with_clip, with_log_softmax, row_entropy)}
for logits in ([0.0, -200.0, 3.0], [0.0, -50.0, -50.0]):
    print(f"l = {logits}")
    for name, form in forms.items():
        H, dH = jax.value_and_grad(form)(jnp.array(logits))
        print(f"  {name:17} H = {H:9.2e}   dH/dl = {np.array2string(np.asarray(dH), precision=2)}")
    H, dH = in_float64(logits)
    print(f"  {'float64':17} H = {H:9.2e}   dH/dl = {np.array2string(dH, precision=2)}")

underflow, shallow = jnp.array([0.0, -200.0, 3.0]), jnp.array([0.0, -50.0, -50.0])
assert jnp.isnan(textbook(underflow)) and jnp.isnan(jax.grad(textbook)(underflow)).all(), (
    "the textbook form should be NaN"
)
assert jnp.isfinite(with_entr(underflow)) and jnp.isnan(jax.grad(with_entr)(underflow)).all(), (
    "entr: a value, no gradient"
)
assert np.allclose(jax.grad(row_entropy)(underflow), in_float64(underflow)[1], atol=1e-6), (
    "ours should be right (1e-6)"
)
kept = float(jax.grad(with_clip)(shallow)[1] / in_float64(shallow)[1][1])
ours_kept = float(jax.grad(row_entropy)(shallow)[1] / in_float64(shallow)[1][1])
assert 0.3 < kept < 0.5, (
    f"clipping keeps {kept:.2f} of this gradient (0.42 expected: 20.7 nats of 50, at most 0.5)"
)
assert abs(ours_kept - 1) < 1e-3, f"ours keeps {ours_kept:.4f} of this gradient (1 within 0.1 %)"

# %%
depth = np.linspace(1, 110, 73)
low_rows = np.stack([0 * depth, -depth, -depth], axis=1)
true = np.array([in_float64(row)[1][1] for row in low_rows])
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for (name, form), style in zip(forms.items(), ("x", "+", "C2-", "C3--", "k-")):
    ratio = jax.vmap(jax.grad(form))(jnp.array(low_rows))[:, 1] / true
    # Beyond 87 nats the true gradient, below 1e-36, underflows too.
    ax.plot(depth, np.where(depth < 87, ratio, np.nan), style, ms=5, label=name)
ax.axvspan(87.3, 110, color="tab:red", alpha=0.12, label="textbook, entr: NaN; others: 0")
ax.set(
    title="Gradient at the two low logits of [0, -d, -d], over the true one",
    xlabel="depth d (nats)",
    ylabel="ratio",
)
ax.legend(fontsize=8, loc="lower left")
fig.savefig(PICTURES / "textbook.png", dpi=110)

# %% [markdown]
# ## What makes entropy small: the scale of the logits
# Multiply all logits by $\beta$, which plays the part of an inverse temperature in physics. Then
#
# $$\frac{dH}{d\beta} = -\beta\,\mathrm{Var}_p(l),$$
#
# so $H$ falls all the way as $\beta$ grows. For Gaussian logits of standard deviation $\sigma$ it
# falls, while $\sigma$ is small, like
#
# $$\ln n - H \approx \frac{n-1}{n}\,\frac{\sigma^2}{2} .$$
#
# **Claim 6.** Both hold: the first formula in every row, the second within 3 % up to
# $\sigma = 0.5$, on average over 4000 rows.


# %%
def steepness(l, beta):
    return jax.grad(lambda beta: row_entropy(beta * l))(beta)


def variance_formula(l, beta):
    p = jax.nn.softmax(beta * l)
    return -beta * jnp.sum(p * (l - jnp.sum(p * l)) ** 2)


@jax.jit
def mean_entropy(sd, key, rows):
    return jnp.mean(rows_of(sd * jr.normal(key, rows.shape)))


unit = jr.normal(k_rows, (1000, N))
slopes = {beta: jax.vmap(steepness, (0, None))(unit, beta) for beta in (0.5, 1.0, 4.0)}
errors = [
    jnp.max(jnp.abs(slope - jax.vmap(variance_formula, (0, None))(unit, beta)))
    for beta, slope in slopes.items()
]
print(
    f"dH/dbeta: largest difference to the formula {max(errors):.1e}, "
    f"largest slope {max(map(jnp.max, slopes.values())):.1e}"
)
assert max(errors) < 1e-4, "dH/dbeta should be -beta Var_p(l) within 1e-4 nats (typical 2e-6)"
assert all(jnp.all(slope < 0) for slope in slopes.values()), "H must fall with beta in every row"
for sd in (0.1, 0.25, 0.5):
    gap = math.log(N) - float(mean_entropy(sd, k_rows, jnp.zeros((4000, N))))
    ratio = gap / ((N - 1) / N * sd**2 / 2)
    print(f"sigma {sd:4.2f}: ln n - H = {gap:.4f} nats, over the law {ratio:.3f}")
    assert abs(ratio - 1) < 0.03, "the small-sigma law should hold within 3 % (typical 0.5 %)"

# %%
sds = np.geomspace(0.1, 16, 40)
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for tokens, colour in ((10, "tab:green"), (N, "tab:blue"), (1000, "tab:purple")):
    H_sd = [mean_entropy(sd, k_rows, jnp.zeros((500, tokens))) for sd in sds]
    ax.plot(sds, H_sd, color=colour, label=f"n = {tokens}")
    law = np.log(tokens) - (tokens - 1) / tokens * sds**2 / 2
    ax.plot(sds[law > 0], law[law > 0], ":", color=colour)
ax.set(
    title="Entropy of random logits (dotted: the small-sigma law)", xscale="log", ylabel="H (nats)"
)
ax.set(xlabel="standard deviation of the logits in a row")
ax.axhline(0, color="grey", lw=0.5)
ax.legend()
fig.savefig(PICTURES / "scale.png", dpi=110)

# %% [markdown]
# ## Why the logits are divided by the root of $d_{head}$
# At initialisation each component of a query $q$ and of a key $k$ has variance 1 if the input has
# variance 1; LeCun's initialisation is made for that. So $q \cdot k$ is a sum of $d_{head}$ terms
# and has standard deviation $\sqrt{d_{head}}$. The division brings it back to 1.
#
# **Claim 7.** With the division, the entropy of random rows does not depend on $d_{head}$. Without
# it, the entropy falls as $d_{head}$ grows. The paper keeps $d_{head} = 32$ at all widths, so this
# is *not* how its critics collapse with width.

# %%
head_sizes = (8, 32, 128)
entropies = {}
for d_head in head_sizes:
    attention = SoftmaxAttention(d_head, heads=1, key=jr.fold_in(k_width, d_head))
    x = jr.normal(jr.fold_in(k_rows, d_head), (20, N, d_head))
    logits = jax.vmap(attention.logits)(x, x)
    entropies[d_head] = [float(jnp.mean(rows_of(f * logits))) for f in (1, d_head**0.5)]
    print(
        f"d_head {d_head:3}: H with the division {entropies[d_head][0]:.2f} nats, "
        f"without {entropies[d_head][1]:.2f}"
    )
with_division, without = np.array(list(entropies.values())).T
assert np.ptp(with_division) < 0.4, (
    "with the division H should stay within 0.4 nats over d_head (typical 0.1)"
)
assert (np.diff(without) < -0.2).all(), (
    "without it H should fall by more than 0.2 nats each time (typical 1.2 and 0.5)"
)

# %% [markdown]
# ## The two groups, and critics of several widths
# For its control the paper averages the entropy of a layer in two groups: the row of `[VALUE]`, and
# all other rows (then it averages over heads and the batch). Only `[VALUE]` is read out in the end,
# and in a mean over all 43 rows it would count for just one of them.
#
# **Claim 8.** If we collapse only `[VALUE]`'s query, by multiplying its logits by 30, the mean over
# all rows hardly changes, but `[VALUE]`'s group does.
#
# **Claim 9.** At initialisation width hardly matters: critics of all three widths start near
# $\ln n$. Whatever makes wide critics collapse happens in training.


# %%
@eqx.filter_jit
def draw_critics(keys, d_model):
    return eqx.filter_vmap(lambda key: Critic(N_S, N_A, d_model=d_model, key=key))(keys)


@eqx.filter_jit
def all_logits(critics, s, a):
    """Of every critic and pair: [critic, pair, layer, head, query, key]."""
    one = lambda critic: jax.vmap(lambda s, a: critic.with_attention(s, a)[1])(s, a)
    return eqx.filter_vmap(one)(critics)


groups_of = jax.jit(jnp.vectorize(group_entropy, signature="(h,n,n)->(g)"))  # any leading axes


s = jr.normal(k_s, (PAIRS, N_S))
a = jr.uniform(k_a, (PAIRS, N_A), minval=-1.0)
critics = draw_critics(jr.split(k_critic, CRITICS), D_MODEL)
logits = all_logits(critics, s, a)
layer = logits[0, 0, 0]  # [head, query, key] of one critic, one pair, the first layer
sharp = layer.at[:, 0].multiply(30.0)
mean_of_all = [float(jnp.mean(rows_of(l))) for l in (layer, sharp)]
groups = np.array([groups_of(l) for l in (layer, sharp)])
by_numpy = [textbook_64(layer[:, 0]).mean(), textbook_64(layer[:, 1:]).mean()]
print(f"mean over all rows {mean_of_all[0]:.2f} -> {mean_of_all[1]:.2f} nats")
print(
    f"[VALUE] {groups[0, 0]:.2f} -> {groups[1, 0]:.2f}, "
    f"others {groups[0, 1]:.2f} -> {groups[1, 1]:.2f} nats"
)
assert np.allclose(groups[0], by_numpy, atol=1e-4), (
    "the groups should be the means over row 0 and over rows 1 to n - 1"
)
assert mean_of_all[0] - mean_of_all[1] < 0.09, (
    "the mean over all rows should move by at most ln(n) / n = 0.09 nats"
)
assert groups[0, 0] - groups[1, 0] > 0.5, (
    "the [VALUE] group should fall by more than 0.5 nats (typical 2)"
)
assert groups[0, 1] == groups[1, 1], "the other rows were not touched"

# %%
by_width = {}
for d_model in WIDTHS:
    drawn = critics if d_model == D_MODEL else draw_critics(jr.split(k_width, CRITICS), d_model)
    by_width[d_model] = np.mean(groups_of(all_logits(drawn, s, a)), axis=1)  # over pairs
    centre, spread = by_width[d_model].mean(), by_width[d_model].mean(axis=(1, 2)).std()
    print(
        f"d_model {d_model:3}: H = {centre:.2f} nats, "
        f"standard deviation {spread:.2f} over {CRITICS} critics"
    )
means = [H.mean() for H in by_width.values()]
assert min(means) > 0.85 * math.log(N), (
    "every width should start above 0.85 ln n = 3.20 nats (typical 3.45)"
)
assert np.ptp(means) < 0.25, "the widths should start within 0.25 nats of each other (typical 0.05)"

# %%
fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
left_ax.plot(head_sizes, with_division, "o-", label=r"$q \cdot k \,/\, \sqrt{d_{head}}$")
left_ax.plot(head_sizes, without, "o-", label=r"$q \cdot k$")
left_ax.set(
    title="Random rows, one head",
    xlabel="d_head (channels)",
    ylabel="H (nats)",
    xscale="log",
    ylim=(0, 4),
)
for column, (i, g) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
    label = f"layer {i + 1}, {('[VALUE]', 'others')[g]}"
    x = np.repeat(np.array(WIDTHS) * 1.08 ** (column - 1.5), CRITICS)
    right_ax.plot(x, np.concatenate([H[:, i, g] for H in by_width.values()]), ".", label=label)
right_ax.set(
    title=f"Whole critics at initialisation ({CRITICS} a width)",
    xlabel="d_model (channels)",
    xscale="log",
)
for ax, ticks in ((left_ax, head_sizes), (right_ax, WIDTHS)):
    ax.axhline(math.log(N), color="k", ls=":", lw=1, label="ln n")
    ax.set_xticks(ticks, ticks, minor=False)
    ax.minorticks_off()
    ax.legend(fontsize=8)
fig.savefig(PICTURES / "width.png", dpi=110)

# %% [markdown]
# ## A collapse by hand
# We multiply $W_Q$ and $W_K$ of every block by a factor $f$ and change nothing else. The biases are
# still 0, so the logits of the first layer grow by $f^2$. This critic is random and was made sharp
# by hand; it is not a trained one. So it shows what sharp attention alone does to $Q$.
#
# **Claim 10.** The logits of the first layer are $f^2$ times what they were, and all four entropies
# fall. The textbook form loses rows on the way: its gradient is NaN in none of them at $f = 1$ and
# in most of them at $f = 8$.

# %%
FACTORS = (1.0, 2.0, 4.0, 8.0)


def sharpened(critic, f):
    queries_and_keys = lambda c: [
        m.weight for b in c.blocks for m in (b.attention.query, b.attention.key)
    ]
    return eqx.tree_at(queries_and_keys, critic, replace_fn=lambda W: f * W)


def has_nan(form):
    """Of every row, whether this form's gradient has a NaN in it."""
    return jax.jit(jnp.vectorize(lambda l: jnp.isnan(jax.grad(form)(l)).any(), signature="(n)->()"))


has_nan_textbook, has_nan_ours = has_nan(textbook), has_nan(row_entropy)
sharp_logits = {f: all_logits(sharpened(critics, f), s, a) for f in FACTORS}
for f, l in sharp_logits.items():
    H = np.mean(np.array(groups_of(l), float), axis=(0, 1))
    lost_rows = float(jnp.mean(has_nan_textbook(l)))
    error = float(
        jnp.max(jnp.abs(l[:, :, 0] - f**2 * logits[:, :, 0])) / jnp.max(jnp.abs(l[:, :, 0]))
    )
    print(
        f"f = {f:.0f}: H layer 1 {np.round(H[0], 2)}, layer 2 {np.round(H[1], 2)} nats; "
        f"rows lost to NaN {lost_rows:.1%}"
    )
    assert error < 1e-5, (
        f"the first layer's logits should be f^2 times as large (off by {error:.1e}, at most 1e-5)"
    )
    assert not has_nan_ours(l).any(), "our gradient is never NaN"
    assert f > 1 or lost_rows == 0, "without collapse the textbook form is fine"
assert lost_rows > 0.1, (
    "at f = 8 the textbook form should lose more than a tenth of the rows (typical 90 %)"
)
assert H.max() < 1.5 < 3 < np.mean(groups_of(logits), axis=(0, 1)).min(), (
    "H: from above 3 to below 1.5 nats (typical 0.7)"
)

# %%
fig, axes = plt.subplots(1, len(FACTORS), figsize=(12, 3.4), layout="constrained", sharey=True)
for ax, f in zip(axes, FACTORS):
    head = sharp_logits[f][0, 0, 0, 0]
    image = ax.imshow(jax.nn.softmax(head), vmin=0, vmax=1, cmap="magma_r")
    for edge in (0.5, N_S + 0.5):
        ax.axhline(edge, color="grey", lw=0.5)
        ax.axvline(edge, color="grey", lw=0.5)
    ax.set(title=f"f = {f:.0f}: {jnp.mean(rows_of(head)):.2f} nats", xlabel="key")
    ax.set_xticks([0, 19, 40], ["[v]", "states", "actions"])
    ax.set_yticks([0, 19, 40], ["[v]", "states", "actions"])
axes[0].set(ylabel="query")
fig.colorbar(image, ax=axes, label="attention p")
fig.suptitle("One head of the first layer: spread evenly, then a few columns hold everything")
fig.savefig(PICTURES / "maps.png", dpi=110)

# %% [markdown]
# ## What it does to $Q$
# The paper's picture is $\bar Q$ over 11 x 11 offsets of two action dimensions, called the
# landscape. Beside it we put two numbers. The *roughness* (`tql.analysis.landscape.roughness`) is
# the mean squared second difference over the variance, and it has no unit. The number of *turning
# points* says how often $Q$ turns from rising to falling, or back, along one action dimension.
#
# **Claim 11.** On average over 6 critics and 8 pairs, $Q$ is rougher and turns more often at
# $f = 4$ than at $f = 1$.
#
# The picture shows one of these 48 landscapes. Most of them have a step already at $f = 1$, because
# a scalar that changes its sign turns its token round, as we saw in walkthrough 2. To see what
# sharpness adds, we draw the one that is smoothest at $f = 1$.


# %%
@eqx.filter_jit
def look(critics, s, a):
    """Landscape, its roughness, a slice and its turning points: [critic, pair, ...] each."""

    def one(critic, s, a):
        grid = landscape(critic, s, a, 0, 1)
        line = q_slice(critic, s, a, 0)
        return grid, roughness(grid), line, turning_points(line)

    # `lax.map` over pairs is `vmap` one after another: an eighth of the memory.
    return eqx.filter_vmap(lambda critic: jax.lax.map(lambda pair: one(critic, *pair), (s, a)))(
        critics
    )


looks = {f: look(sharpened(critics, f), s, a) for f in FACTORS}
mean_rough = {f: float(jnp.mean(rough)) for f, (_, rough, _, _) in looks.items()}
mean_turns = {f: float(jnp.mean(turns)) for f, (_, _, _, turns) in looks.items()}
for f in FACTORS:
    print(
        f"f = {f:.0f}: roughness {mean_rough[f]:.2f}, "
        f"turning points along a slice {mean_turns[f]:.1f}"
    )
assert mean_rough[4.0] > 1.3 * mean_rough[1.0], (
    "roughness should rise by more than 30 % (typical: it doubles or more)"
)
assert mean_turns[4.0] > 1.1 * mean_turns[1.0], (
    "turning points should rise by more than 10 % (typical 35 to 130 %)"
)

# %%
_, rough_at_1, _, _ = looks[1.0]
smoothest = np.unravel_index(np.argmin(rough_at_1), rough_at_1.shape)  # critic and pair
fig, axes = plt.subplots(2, len(FACTORS), figsize=(12, 6), layout="constrained", sharey="row")
for (grids, rough, lines, turns), f, above, below in zip(looks.values(), FACTORS, *axes):
    grid = grids[smoothest]
    above.imshow(grid, extent=(-0.5, 0.5, -0.5, 0.5), origin="lower", cmap="viridis")
    above.set_title(
        f"f = {f:.0f}: roughness {rough[smoothest]:.2f}\n"
        f"Q from {jnp.min(grid):.2f} to {jnp.max(grid):.2f}"
    )
    above.set(xlabel="offset of $a_2$")
    below.plot(SLICE, lines[smoothest], color="tab:blue")
    below.set(title=f"{turns[smoothest]} turns", xlabel="$a_1$")
axes[0, 0].set(ylabel="offset of $a_1$")
axes[1, 0].set(ylabel="Q along $a_1$")
fig.suptitle(f"Of {CRITICS * PAIRS} landscapes, the smoothest one at f = 1, sharpened by hand")
fig.savefig(PICTURES / "landscapes.png", dpi=110)

# %% [markdown]
# What this shows: low entropy means that few tokens are read. A critic that reads few tokens, and
# that switches abruptly between them, is rough. What it does not show is that training leads there.
# That is walkthrough 6.
#
# ## Your turn
# **Predict**: keep $W_Q$ and $W_K$ as they are ($f = 1$) and multiply the `[VALUE]` vector of the
# tokenizer by 100. Does `[VALUE]`'s row in the first layer become sharper, more even, or neither?
# Think of what stands between the tokenizer and the queries. (The answers are at the end.)
#
# **Swap**: an attention that cannot collapse in this way, because it squashes the logits into
# $\pm 2$. It is a wrapper: it holds another attention and changes only its logits.
#
# ```python
# from tql.attention import AbstractAttention
#
# class Softcap(AbstractAttention):
#     inner: AbstractAttention
#     d_model: int = eqx.field(static=True)
#     heads: int = eqx.field(static=True)
#
#     def logits(self, queries, x):
#         return 2 * jnp.tanh(self.inner.logits(queries, x) / 2)
#
#     def mix(self, logits, x):
#         return self.inner.mix(logits, x)
#
# sharp = sharpened(Critic(N_S, N_A, d_model=D_MODEL, key=k_critic), 8.0)
# wrap = lambda attention: Softcap(attention, attention.d_model, attention.heads)
# capped = eqx.tree_at(lambda c: [b.attention for b in c.blocks], sharp, replace_fn=wrap)
# print(jax.vmap(group_entropy)(capped.with_attention(s[0], a[0])[1]))
# ```
#
# How low can the entropy of 43 logits in $\pm 2$ be? Work it out, then look at the landscape. The
# project has this wrapper in `tql/variants/softcap.py`, and
# `tql train TASK --critic.attention softcap` trains with it. For an attention of your own, write
# the class in a file `mine.py` with the constructor `(d_model, heads, *, key)` and pass
# `--critic.attention mine.py:YourClass`.
#
# Next: walkthrough 4, where a critic learns values that are known in closed form.

# %% [markdown]
# ## Answers
#
# <details><summary>Answer to the prediction</summary>
#
# Neither. Between the tokenizer and the queries stands a layer norm, and in the first layer the row
# of `[VALUE]` is the vector $v$ alone. A factor on all its channels is divided out again. Measured
# on 8 pairs with the critic of `k_critic`: the entropy of `[VALUE]` in the first layer is 3.4555
# nats before and 3.4550 nats after. What is left comes from the $\epsilon = 10^{-6}$ in the layer
# norm, which is not quite nothing beside the variance 0.0004 of $v$: no logit of that row moves by
# more than 0.002, and the largest is 1.5.
#
# The second layer is another matter. The block *adds* what `[VALUE]` has read to $v$, and beside
# 100 $v$ that is little. So its second query, and in the end Q, hardly depends on (s, a) any more:
# the standard deviation of Q over the 8 pairs falls from 0.082 to 0.013.
#
# </details>
#
# <details><summary>Answer to the question of the swap</summary>
#
# With logits in $\pm 2$ entropy is lowest if $k$ of the 43 logits are at $+2$ and the others at
# $-2$. Among all $k$ the lowest is $k = 3$, with 2.10 nats, that is 8 effective tokens. (One token
# at $+2$ gives more, because the 42 others together then hold almost half of the row.)
#
# </details>
