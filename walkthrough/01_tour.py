# %% [markdown]
# # 1. What happens to one pair (s, a)?
# We take one transition from a real OGBench dataset and follow it through the whole of TQL, file by
# file: into tokens, through attention, out as Q values, into the three losses, and back as one
# update of all weights. The script prints the shape of every intermediate array and draws most of
# them.
#
# **Price**: 30 s on 2 cores (38 s of processor time), 1.8 GB of memory.
#
# **Writes**: pictures to `runs/walkthrough/01_tour/`. The first time, it also makes two episodes of
# data in `data/2-episodes/`, which takes about 15 s.
#
# You need to know what a Q value is: $Q(s, a)$ is the discounted sum of rewards to expect after
# action $a$ in state $s$. Everything else is explained where it first appears.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from tql import loop
from tql.analysis.landscape import attention_maps, head_entropies
from tql.attention import group_entropy
from tql.config import TQLConfig
from tql.flow_actor import draw_noise
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.optimise import polyak, schedule, value_and_grad
from tql.training.workspace import dataset, pictures

PICTURES = pictures("01_tour")
TASK = "cube-single-play-singletask-task2-v0"
ROW = 123  # in the first episode: the arm holds the cube and lifts it; the task is not yet solved
SEED = 0
UPDATES = 60  # on this one transition, in section 7
GROUPS = ("[VALUE]", "others")

# %% [markdown]
# ## 1. A transition (`tql/batch.py`, `tql/ogbench/dataset.py`)
# The environment has a robot arm and one cube, and the task is to bring the cube to a goal. The
# state $s$ has 28 scalars. The action $a$ has 5 scalars, each in $[-1, 1]$. A transition also has
# the reward $r$, the mask $m$ (0 where the task is solved and nothing follows, otherwise 1), the
# next state $s'$, and the action $a'$ that the dataset took there. In code it is a
# `Transition(s, a, r, m, s_next, a_next)`. With an axis in front it is a batch, and a whole dataset
# is one large batch. `row` below is a single transition.

# %%
# OGBench's order. Positions are in decimetres; "opening" is 0 for an open gripper, 3 for closed.
STATE = {
    "joint angle": 6, "joint speed": 6, "gripper pos": 3, "gripper cos yaw": 1,
    "gripper sin yaw": 1, "opening": 1, "contact": 1,
    "cube pos": 3, "cube quaternion": 4, "cube cos yaw": 1, "cube sin yaw": 1,
}  # fmt: skip
numbered = lambda name, size: [f"{name} {i + 1}" if size > 1 else name for i in range(size)]
S_NAMES = [full for name, size in STATE.items() for full in numbered(name, size)]
A_NAMES = ["dx", "dy", "dz", "d yaw", "d gripper"]
places = lambda name: np.array([j for j, full in enumerate(S_NAMES) if full.startswith(name)])
where = {name: places(name) for name in STATE}

train, validation = load_dataset(Task.parse(TASK), dataset("cube-single-play-v0", episodes=2))
row = jax.tree.map(lambda x: x[ROW], train)
s, a = row.s, row.a
n_s, n_a, n = len(s), len(a), 1 + len(s) + len(a)
print(f"dataset: s {train.s.shape}, a {train.a.shape}, r {train.r.shape}")
print(f"one row: s {s.shape}, a {a.shape}, r = {row.r:.0f}, m = {row.m:.0f}")

# %% [markdown]
# **Claim 1.** The names of the scalars are right where we can check them: in the whole dataset the
# two yaw angles satisfy $\cos^2 + \sin^2 = 1$, and the cube's quaternion has length 1. The reward
# is $-m$: every step costs 1 until the task is solved. So an agent that never solves the task has
# $Q = -1/(1-\gamma) = -100$, and all true values lie between $-100$ and $0$.

# %%
S = np.asarray(train.s)
units = {
    "gripper yaw": np.hypot(S[:, where["gripper cos yaw"]], S[:, where["gripper sin yaw"]]),
    "cube yaw": np.hypot(S[:, where["cube cos yaw"]], S[:, where["cube sin yaw"]]),
    "cube quaternion": np.linalg.norm(S[:, where["cube quaternion"]], axis=1),
}
for name, length in units.items():
    print(f"{name:15s} length in [{length.min():.6f}, {length.max():.6f}]")
    assert np.abs(length - 1).max() < 1e-4, (
        f"{name}: length is not 1 within 1e-4 (typical error 1e-7); are the names in order?"
    )
assert np.array_equal(train.r, -train.m), "the reward is not -1 exactly where the mask is 1"


# %%
def draw_transition(ax):
    colours = ["tab:blue"] * n_s + ["tab:orange"] * n_a
    ax.barh(np.arange(n_s + n_a), np.concatenate([s, a]), color=colours)
    ax.set_yticks(np.arange(n_s + n_a), S_NAMES + A_NAMES, fontsize=6.5)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    ax.grid(alpha=0.3, axis="x")
    ax.set(
        xlabel="value", title=f"the transition: 28 + 5 scalars, r = {row.r:.0f}, m = {row.m:.0f}"
    )


fig, ax = plt.subplots(figsize=(6, 6), layout="constrained")
draw_transition(ax)
fig.savefig(PICTURES / "transition.png", dpi=110)

# %% [markdown]
# ## 2. Tokens (`tql/tokenizer.py`)
# Every scalar becomes one vector of $d_{model}$ channels, which is called a token. A learned vector
# named `[VALUE]` stands in front of them. This gives $n = 1 + 28 + 5 = 34$ rows:
#
# $$x_0 = v, \qquad x_j = s_j\,w_s + b_s + e_s + p_j,
# \qquad x_{n_s+i} = a_i\,w_a + b_a + e_a + p_{n_s+i}$$
#
# Here $w$ and $b$ are the weights that all state scalars (or all action scalars) share, $e$ is an
# embedding that says "state" or "action", and $p_j$ is an embedding that says which of them it is.
#
# `TQL.create` makes an agent. Its default is the paper's smallest size: width 128, 2 layers, 4
# heads of 32 channels, and an ensemble of $K = 2$ Q heads. `agent.critic` is a `Learner`: a
# network, which is `agent.critic.model`, together with the state of its optimiser.

# %%
# The paper's settings, but with full learning rates from the first update.
config = TQLConfig(TASK, seed=SEED, warmup=0)
agent = loop.TQL.create(n_s, n_a, config)
critic, controller, actor = agent.critic.model, agent.controller.model, agent.actor.model
x = critic.tokenizer(s, a)
layers, heads, d_model = len(critic.blocks), critic.blocks[0].attention.heads, x.shape[1]
parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(critic, eqx.is_array)))
print(f"tokens x: {x.shape} = (1 + n_s + n_a, d_model)")
print(f"critic: {layers} layers, {heads} heads, {parameters:,} parameters")


def draw_tokens(ax):
    picture = ax.imshow(x, aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2)
    ax.axhline(0.5, color="black", linewidth=0.8)
    ax.axhline(n_s + 0.5, color="black", linewidth=0.8)
    ax.set_yticks([0, n_s / 2, n_s + n_a / 2], ["[VALUE]", "state", "action"])
    ax.set(xlabel="channel", title=f"tokens ({n}, {d_model}): row = scalar times one direction")
    return picture


fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
fig.colorbar(draw_tokens(ax), label="value")
fig.savefig(PICTURES / "tokens.png", dpi=110)

# %% [markdown]
# All rows of the state are multiples of one pattern, $w_s$, and all rows of the action are
# multiples of $w_a$. The vector `[VALUE]` and the embeddings are fifty times smaller. Walkthrough 2
# asks what this means for attention.
#
# ## 3. Attention (`tql/attention.py`)
# A block first normalises every row, $h = \mathrm{LN}(x)$, where LN is the layer norm. Then every
# row asks every row how much it matters. The asking row is called the query and the other one the
# key. In each head this gives logits $l = QK^\top/\sqrt{d_{head}}$ and weights
# $A = \mathrm{softmax}(l)$. The cell below runs both blocks by hand, for all rows.

# %%
every_logits, x_l = [], x
for number, block in enumerate(critic.blocks):
    h = jax.vmap(block.attention_norm)(x_l)
    logits = block.attention.logits(h, h)
    x_l, _ = block(x_l)
    every_logits.append(logits)
    print(
        f"layer {number + 1}: LN(x) {h.shape} -> logits {logits.shape} = (heads, query, key) "
        f"-> x {x_l.shape}"
    )
every_logits = jnp.stack(every_logits)
A = jax.nn.softmax(every_logits)
Q = critic.read_out(x_l[0])
print(f"logits in [{every_logits.min():.2f}, {every_logits.max():.2f}]")
print(f"[VALUE] row {x_l[0].shape} -> {Q.shape[0]} heads -> Q = {Q}")

# %% [markdown]
# **Claim 2.** Every row of $A$ sums to 1. Running whole blocks by hand gives the same Q as
# `critic(s, a)`, although the critic computes the output of its last block for the `[VALUE]` row
# alone.

# %%
rows = jnp.sum(A, axis=-1)
print(f"rows of A sum to 1 within {jnp.max(jnp.abs(rows - 1)):.1e}")
assert jnp.allclose(rows, 1, atol=1e-5), "attention rows must sum to 1 within 1e-5 (typical 2e-7)"
largest = lambda x: jnp.max(jnp.abs(x))
Q_short, (Q_with, logits_with) = critic(s, a), critic.with_attention(s, a)
gap = max(largest(Q_short - Q), largest(Q_with - Q), largest(logits_with - every_logits))
other_row = jnp.max(jnp.abs(critic.read_out(x_l[1]) - Q))
print(f"critic(s, a) against whole blocks: {gap:.1e}")
print(f"reading row 1 instead of row 0 would be off by {other_row:.2f}")
assert gap < 1e-4, f"the critic is {gap:.1e} from whole blocks; at most 1e-4 (typical 1e-6)"
assert jnp.allclose(attention_maps(critic, s, a), A, atol=1e-5), "attention_maps must agree"


# %%
def draw_attention(ax, layer, head):
    picture = ax.imshow(A[layer, head], cmap="magma", vmin=0, vmax=0.2)
    for edge in (0.5, n_s + 0.5):
        ax.axhline(edge, color="white", linewidth=0.5)
        ax.axvline(edge, color="white", linewidth=0.5)
    ticks = [0, n_s / 2, n_s + n_a / 2 + 0.5]
    ax.set_xticks(ticks, ["[v]", "state", "action"], fontsize=7)
    ax.set_yticks(ticks, ["[v]", "state", "action"], fontsize=7)
    ax.set_title(
        f"layer {layer + 1}, head {head + 1}: largest {A[layer, head].max():.2f}", fontsize=9
    )
    return picture


fig, axes = plt.subplots(layers, heads, figsize=(11, 5.8), layout="constrained")
for (layer, head), ax in np.ndenumerate(axes):
    picture = draw_attention(ax, layer, head)
fig.supxlabel("key")
fig.supylabel("query")
fig.suptitle(f"attention weights (layers, heads, n, n) = {A.shape}; 1/n = {1 / n:.3f}")
fig.colorbar(picture, ax=axes, label="weight (palest: 0.2 and above)")
fig.savefig(PICTURES / "attention.png", dpi=110)

# %% [markdown]
# ## 4. Entropy of the rows (`tql/attention.py`; the target is in `tql/entropy_controller.py`)
# One row $p$ of $A$ has the entropy $H = -\sum_j p_j \ln p_j$, measured in nats. It is
# $\ln n = 3.53$ if the row looks at all 34 tokens evenly, and 0 if it looks at a single one. TQL
# takes the mean over heads and keeps two groups per layer: the query of `[VALUE]`, and the mean
# over all other queries. That gives an array of shape $(2, 2)$. Each of its four numbers has a
# target $T$: $0.8 \ln n$ in the first layer, and 0.5 nats less in the last.
#
# **Claim 3.** Before any training, attention is spread widely: all four entropies lie between
# $0.8 \ln n$ and $\ln n$, so they are above their targets.

# %%
H = jax.vmap(group_entropy)(every_logits)
T = jnp.array(controller.target)
p = np.asarray(A, np.float64)
textbook = -np.sum(p * np.log(p), axis=-1)
by_group = np.stack([textbook[:, :, 0].mean(1), textbook[:, :, 1:].mean((1, 2))], axis=1)
print(f"rows: {textbook.shape}, groups: H {H.shape}, ln n = {np.log(n):.3f}")
print(f"H =\n{H}\nT =\n{T}")
assert np.allclose(H, by_group, atol=1e-4), "group_entropy differs from the textbook form (1e-4)"
assert np.all(by_group < np.log(n)), "no entropy can exceed ln n"
assert np.all(by_group > 0.8 * np.log(n)), (
    f"H should start above 0.8 ln n (typical 3.0 to 3.4): {H}"
)


# %%
def draw_entropy(ax):
    of_heads = np.asarray(head_entropies(critic, s, a))
    for k in range(2 * layers):
        layer, group = divmod(k, 2)
        ax.bar(k, H[layer, group], color=("tab:purple", "tab:gray")[group], width=0.6)
        label = {"target": "target T", "heads": "single heads"} if k == 0 else {}
        ax.plot([k - 0.4, k + 0.4], [T[layer, group]] * 2, color="black", label=label.get("target"))
        points = of_heads[layer, :, group]
        ax.plot([k] * heads, points, "o", color="white", mec="black", label=label.get("heads"))
    ax.axhline(np.log(n), color="tab:red", linestyle="--", label="ln n: looks at everything")
    names = [f"layer {k // 2 + 1}\n{GROUPS[k % 2]}" for k in range(2 * layers)]
    ax.set_xticks(range(2 * layers), names, fontsize=8)
    ax.set(ylabel="entropy H (nats)", ylim=(0, 4.9))
    ax.set_title(f"entropy {H.shape}: all above their targets")
    ax.legend(fontsize=7, loc="upper center", ncols=3)


fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
draw_entropy(ax)
fig.savefig(PICTURES / "entropy.png", dpi=110)

# %% [markdown]
# ## 5. The TD target (`td_loss` in `tql/loop.py`)
# TD stands for temporal difference: the critic learns from its own value of the next state. In $s'$
# the actor's one-step policy $\mu$ turns normal noise $z'$ into an action,
# $a' = \mathrm{clip}(\mu(s', z'))$. The target critic $\bar Q$ is a slowly moving copy of the
# critic, and before the first update the two are equal. It values $a'$, and all K heads of the
# critic are drawn to one number $y$:
#
# $$y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a'),
# \qquad \text{TD loss} = \frac1K\sum_k (Q_k(s, a) - y)^2$$
#
# All randomness of an update is drawn before it, as a `Noise`.
#
# **Claim 4.** The two lines for `y` and `td` below are `loop.td_loss`.

# %%
noise = draw_noise(n_a, key=jr.key(SEED))
s_next, gamma = row.s_next, config.discount
a_next = actor.next_action(s_next, row.a_next, noise.next_action)
Q_next = agent.target_critic(s_next, a_next)
y = row.r + gamma * row.m * jnp.mean(Q_next)
td = jnp.mean((Q - y) ** 2)
print(f"noise {noise.next_action.shape} -> a' {a_next.shape} -> target Q' {Q_next}")
print(f"y = {y:.3f}, TD loss {td:.4f}")
of_module, (_, y_of_module, H_of_module) = loop.td_loss(
    critic, agent.target_critic, actor, row, noise, gamma
)
assert jnp.allclose(td, of_module, atol=1e-4), "td_loss by hand differs by more than 1e-4"
assert jnp.allclose(y, y_of_module, atol=1e-4), "y by hand differs by more than 1e-4"
assert jnp.allclose(H_of_module, H, atol=1e-5), "td_loss returns the entropies of this very pair"


# %%
def draw_values(ax):
    ax.axhline(y, color="tab:red", label=f"y = r + gamma mean Q' = {y:.2f}")
    ax.bar([0, 1], Q, width=0.5, color="tab:purple", label="Q_k(s, a)")
    ax.bar([2.5, 3.5], Q_next, width=0.5, color="tab:gray", label="target critic's Q_k(s', a')")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_xticks([0, 1, 2.5, 3.5], ["head 1", "head 2"] * 2)
    ax.set(
        ylabel="discounted reward",
        title=f"[VALUE] row ({d_model},) to K = 2 values and their target",
    )
    ax.margins(y=0.45)
    ax.legend(fontsize=7)


def draw_actions(ax):
    actions = {
        "a of the dataset": a,
        "next a of the dataset": row.a_next,
        "a' of the policy": a_next,
    }
    for offset, (name, action) in zip((-0.25, 0, 0.25), actions.items()):
        ax.bar(np.arange(n_a) + offset, action, width=0.22, label=name)
    ax.set_xticks(range(n_a), A_NAMES, fontsize=8)
    ax.set(
        ylim=(-1.05, 1.8),
        yticks=(-1, 0, 1),
        ylabel="action",
        title="an untrained policy acts unlike the dataset",
    )
    ax.legend(fontsize=7)


fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
draw_actions(axes[0])
draw_values(axes[1])
fig.savefig(PICTURES / "td.png", dpi=110)

# %% [markdown]
# ## 6. Three losses (`tql/loop.py`), for this one transition
# - The **critic loss** moves the critic: TD loss $+\ \langle -\mathrm{sg}(\alpha) H \rangle$.
# - The **temperature loss** moves $\log\alpha$, which has one entry per layer and group and starts
#   at 0, so that $\alpha = 1$: $\langle \alpha (\mathrm{sg}(H) - T) \rangle$.
# - The **actor loss** moves the flow and the one-step policy: flow matching
#   $+\ \alpha_{bc}\,$distillation $-\ Q(s, \mathrm{clip}\,\mu(s, z))$.
#
# The brackets $\langle\cdot\rangle$ are the mean over the four entries. The symbol sg is the
# stop-gradient: its argument is treated as a constant. The temperature $\alpha$ is the weight of
# the entropy in the critic's loss. Walkthrough 5 explains the parts of the actor's loss.
#
# **Claim 5.** Since $\alpha = 1$ everywhere, the attention loss is minus the mean entropy, and the
# temperature loss is the mean of $H - T$.

# %%
batch, noises = jax.tree.map(lambda leaf: leaf[None], (row, noise))  # a batch of one
still = (agent.target_critic, actor, controller, batch, noises, gamma)  # what is held still
loss_and_grad = eqx.filter_jit(value_and_grad(loop.critic_loss))
(of_critic, (H_batch, metrics)), grads = loss_and_grad(critic, *still)
of_temperature, _ = loop.temperature_loss(controller, H_batch)
alpha_bc = config.actor.alpha_bc
of_actor, parts = eqx.filter_jit(loop.actor_loss)(actor, critic, batch, noises, alpha_bc)
flow, distillation, q = parts["flow_loss"], parts["distillation_loss"], parts["actor_q"]
of_td, of_attention = metrics["td_loss"], metrics["attention_loss"]
print(f"critic      {of_critic:8.3f} = TD {of_td:.3f} + attention {of_attention:.3f}")
print(f"temperature {of_temperature:8.3f}")
print(
    f"actor       {of_actor:8.3f} = flow {flow:.3f} + {alpha_bc:.0f} x distillation "
    f"{distillation:.3f} - Q {q:.3f}"
)
assert jnp.allclose(of_attention, -jnp.mean(H), atol=1e-4), "attention loss is not -mean H"
assert jnp.allclose(of_temperature, jnp.mean(H - T), atol=1e-4), "it is not mean(H - T)"

# %% [markdown]
# ## 7. One update (`TQL.update_with_noise` in `tql/loop.py`)
# All three losses are taken at the agent before the update. Then every network makes its step of
# AdamW (the temperatures make a step of Adam), and the target critic moves by $\tau = 0.005$
# towards the critic. Adam's first step $\Delta$ moves every parameter by the learning rate
# $\eta = 10^{-4}$ against the sign of its gradient $g$. To first order, 1 % of that step should
# therefore lower the critic's loss by $0.01\,\eta \sum |g|$.
#
# **Claim 6.** It does so to within 10 %. The whole step lowers the loss too, but by less than this
# straight line promises. Every $\log\alpha$ falls by $\eta$, because every $H$ is above its target.

# %%
update = eqx.filter_jit(lambda agent, batch, noise: agent.update_with_noise(batch, noise))
agent_1, _ = update(agent, batch, noises)
critic_1, controller_1 = agent_1.critic.model, agent_1.controller.model
eta = schedule(config.critic_lr, config)(0)
promised = eta * sum(jnp.sum(jnp.abs(g)) for g in jax.tree.leaves(grads))
nudged = polyak(critic_1, critic, 0.01)  # theta + 0.01 (theta_1 - theta)
fell_nudged = of_critic - loss_and_grad(nudged, *still)[0][0]
(loss_1, (H_1, metrics_1)), _ = loss_and_grad(critic_1, *still)
d_log_alpha = controller_1.log_alpha - controller.log_alpha
part = fell_nudged / promised
print(
    f"1 % of the step: loss falls by {fell_nudged:.5f}, promised {0.01 * promised:.5f} ({part:.2%})"
)
print(f"whole step: loss falls by {of_critic - loss_1:.3f}, promised {promised:.3f}")
print(f"mean Q {metrics['q_mean']:.3f} -> {metrics_1['q_mean']:.3f}")
print(f"mean H {jnp.mean(H):.3f} -> {jnp.mean(H_1):.3f}")
print(f"log alpha moves by {d_log_alpha.ravel()}, eta = {eta:.1e}")
assert 0.009 < part < 0.011, (
    "1 % of the step must give 1 % of eta sum|g| within 10 % (typical 0.99 %)"
)
assert 0 < of_critic - loss_1 < promised, (
    "the whole step must lower the loss, by less than promised (typical 20 to 85 % of it)"
)
assert jnp.allclose(d_log_alpha, -eta, rtol=1e-3), (
    f"every log alpha must fall by {eta:.1e}, as H > T"
)

# %% [markdown]
# Now the same transition with the same noise, again and again. Q meets its target, and the target
# itself creeps along as the target critic and the policy follow. The entropy rises although it is
# above its target already: $\alpha$ has hardly decayed from 1, and a positive $\alpha$ can only
# push entropy up. At this learning rate it takes ten thousand updates until $\alpha$ has fallen to
# a third. This run memorises one transition and says nothing yet about learning from many.

# %%
repeated, history = agent, []
for _ in range(UPDATES):
    repeated, metrics_k = update(repeated, batch, noises)
    history.append(metrics_k)  # of the agent before the update
history = {name: np.stack([metrics_k[name] for metrics_k in history]) for name in history[0]}
td_first, td_last = history["td_loss"][0], np.mean(history["td_loss"][-10:])
H_first, H_last = np.mean(history["entropy"][0]), np.mean(history["entropy"][-1])
print(f"TD loss {td_first:.3f} -> {td_last:.1e} (last ten updates)")
print(f"mean H {H_first:.3f} -> {H_last:.3f}; alpha {history['alpha'][-1].ravel()}")
assert H_last > H_first, "the mean entropy must rise: alpha is near 1 and pushes up"
assert td_last < 0.1 * td_first, f"{UPDATES} updates must leave below 0.1 of it (typical 0.01)"

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
q_mean, q_std = history["q_mean"], history["q_std"]
axes[0].plot(q_mean, color="tab:purple", label="Q(s, a), mean of 2 heads; band: their sd")
axes[0].fill_between(range(UPDATES), q_mean - q_std, q_mean + q_std, color="tab:purple", alpha=0.2)
axes[0].plot(history["target_mean"], "--", color="tab:red", label="y")
axes[0].set(title="Q meets its target", ylabel="discounted reward")
labels = [f"layer {k // 2 + 1}, {GROUPS[k % 2]}" for k in range(4)]
axes[1].plot(history["entropy"].reshape(-1, 4), label=labels)
axes[1].axhline(np.log(n), color="tab:red", linestyle="--", label="ln n")
axes[1].set(title="entropy still rises (targets 2.8 and 2.3)", ylabel="H (nats)")
axes[2].plot(history["alpha"].reshape(-1, 4), label=labels)
axes[2].plot(np.exp(-eta * np.arange(UPDATES)), "k:", label=r"$e^{-\eta k}$")
axes[2].set(title="temperatures decay, as H > T", ylabel="alpha")
for ax in axes:
    ax.set_xlabel("updates k on this one transition")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
fig.savefig(PICTURES / "update.png", dpi=110)

# %% [markdown]
# ## The map
# The whole way in one picture. The title of each panel names the file that computes what it shows.

# %%
fig = plt.figure(figsize=(17, 10), layout="constrained")
places = [["s", "x", "A1", "H"], ["s", "x", "A2", "Q"], ["s", "a", "L", "L"]]
panels = fig.subplot_mosaic(places, width_ratios=(1.1, 1.2, 0.9, 1.2))
draw_transition(panels["s"])
draw_tokens(panels["x"])
draw_attention(panels["A1"], 0, 0)
draw_attention(panels["A2"], 1, 0)
draw_entropy(panels["H"])
draw_values(panels["Q"])
draw_actions(panels["a"])
values = {
    "TD": of_td,
    "attention": of_attention,
    "temperature": of_temperature,
    "flow": flow,
    f"{alpha_bc:.0f} x distillation": alpha_bc * distillation,
    "-Q": -q,
}
colours = ["tab:purple"] * 2 + ["tab:gray"] + ["tab:orange"] * 3
bars = panels["L"].barh(list(values), list(values.values()), color=colours)
panels["L"].bar_label(bars, fmt="%.2f", padding=3)
panels["L"].set_title("three losses: critic (purple), temperature (grey), actor (orange)")
panels["L"].set_xscale("symlog")
panels["L"].invert_yaxis()
panels["L"].margins(x=0.15)
FILES = {
    "s": "1 batch.py",
    "x": "2 tokenizer.py",
    "A1": "3 attention.py",
    "A2": "3 attention.py",
    "H": "4 entropy_controller.py",
    "Q": "5 critic.py",
    "a": "5 flow_actor.py",
    "L": "6, 7 loop.py",
}
for name, file in FILES.items():
    panels[name].set_title(f"{file}\n{panels[name].get_title()}", fontsize=10)
fig.suptitle("One transition through TQL, in the order of the numbers; files are in tql/")
fig.savefig(PICTURES / "map.png", dpi=110)

# %% [markdown]
# | step | file | what to read there |
# |---|---|---|
# | 1 | `tql/batch.py` | `Transition`, `draw_batch` |
# | 2 | `tql/tokenizer.py` | `ScalarTokenizer` |
# | 3, 4 | `tql/attention.py` | `SoftmaxAttention`, `Block`, `row_entropy`, `group_entropy` |
# | 4, 6 | `tql/entropy_controller.py` | `default_target`, the two losses, `TemperaturePerGroup` |
# | 5 | `tql/critic.py` | `Critic.__call__`, `with_attention`, `read_out` |
# | 5, 6 | `tql/flow_actor.py` | `next_action`, `losses`, `draw_noise` |
# | 5 to 7 | `tql/loop.py` | `td_loss`, the three losses, `TQL.update_with_noise` |
#
# Three more files complete the paper: `config.py` holds every setting, `layers.py` the affine map
# and its initial weights, `optimise.py` the optimiser and the moving average. Around the paper,
# `tql/training/` repeats the update and keeps a run on disk, `tql/ogbench/` has data and
# environments, and `tql/analysis/` looks at a trained critic.
#
# ## Your turn
# **Predict**: take a transition in which the task is solved, `ROW = int(jnp.argmin(train.m))`. What
# is $y$ there, for which noise, and for which actor? Then set `ROW` after the data are loaded and
# look at the picture of step 5. (The answer is at the end.)
#
# **Swap**: use the behaviour flow instead of the one-step policy in the TD target. How far apart
# are the two before any training?
#
# ```python
# a_flow = actor.behaviour(s_next, noise.next_action)
# y_flow = row.r + gamma * row.m * jnp.mean(agent.target_critic(s_next, a_flow))
# print(a_flow, a_next, y_flow, y)
# ```
#
# Next: `02_tokens.py`, which asks what the critic can and cannot see of a scalar.

# %% [markdown]
# ## Answers
#
# <details><summary>Answer to the prediction</summary>
#
# It is $y = r = 0$, for every noise and for every actor. With $m = 0$ the whole second term of
# $y = r + \gamma\,m\,\bar Q(s', a')$ is gone, and with it the next action, the actor that chose it
# and the target critic. The reward of a step in which the task is solved is 0 (claim 1: $r = -m$).
# In the two episodes that this page makes this holds in 63 of the 2000 rows, and `ROW` is 66. This
# is the only kind of row in which the critic is told a value without asking itself, and from there
# value spreads to all others.
#
# </details>
