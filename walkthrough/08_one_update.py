# %% [markdown]
# # 8. One TQL update by hand: what does one update do, and which gradient reaches what?
# Three losses, three optimisers and a moving average: everything that happens in the million updates of the paper happens in one.
# Here it is written out, taken apart, and put together again.
#
# **Price**: 75 s on 2 cores (70 s of processor time), 2.0 GB of memory.
#
# **Writes**: pictures to `runs/walkthrough/08_one_update/`; two episodes to `data/2-episodes/` if they are missing (10 s more).
#
# You need walkthroughs 3 to 5 and 7: entropy, the TD target, the flow actor, the temperatures.

# %%
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from tql import loop
from tql.config import ActorConfig, Config, CriticConfig, Task
from tql.data import load, sample
from tql.flow_actor import draw_noise
from tql.linear import decayed
from tql.workspace import dataset, pictures

PICTURES = pictures("08_one_update")
TASK = "cube-single-play-singletask-task2-v0"
CONFIG = Config(
    task=TASK,
    seed=0,
    steps=1000,  # the schedule's length; far fewer are made here
    warmup=20,
    batch_size=32,
    critic_lr=1e-3,
    actor_lr=1e-3,
    temperature_lr=1e-2,
    updates_per_call=20,
    critic=CriticConfig(d_model=32),
    actor=ActorConfig(hidden=(64, 64), alpha_bc=10.0),
    # The walkthrough takes the paper's rule for the target: 0.8 ln n, and 0.5 nats less in the last layer.
)
CHUNK = 20  # updates in one call of `train_chunk`, everywhere: one number, one compilation


def draw(agent, data):
    """Batch and noise of the agent's next update: a function of its key and of how many updates it has made."""
    k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
    noise = jax.vmap(lambda k: draw_noise(N_A, key=k))(jr.split(k_update, CONFIG.batch_size))
    return sample(data, CONFIG.batch_size, k_batch), noise


data, _ = load(Task.parse(TASK), dataset("cube-single-play-v0", episodes=2))
N_S, N_A = data.observations.shape[1], data.actions.shape[1]
start = loop.initialise(N_S, N_A, CONFIG)
# Two chunks first, so that target critic and temperatures have left their start. `train_chunk` consumes the agent that it is given.
agent = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, start)
for _ in range(2):
    agent, _ = loop.train_chunk((data, CHUNK), agent)
batch, noise = eqx.filter_jit(draw)(agent, data)
print(f"{len(data.rewards)} transitions, n_s = {N_S}, n_a = {N_A}; agent after {int(agent.step)} updates")

# %% [markdown]
# ## Three losses
# With $y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a')$, where $a' = \mathrm{clip}(\mu(s', z'))$ comes from the actor,
#
# $$\mathcal L_{critic} = \Big\langle \tfrac1K \textstyle\sum_k (Q_k(s, a) - y)^2 \Big\rangle
#   + \big\langle -\mathrm{sg}(\alpha)\,H \big\rangle, \qquad
# \mathcal L_{temperature} = \big\langle \alpha\,(\mathrm{sg}(H) - T) \big\rangle,$$
#
# $$\mathcal L_{actor} = \big\langle |v(s, x_t, t) - (x_1 - x_0)|^2 \big\rangle
#   + \alpha_{bc}\,\big\langle |\mu(s, z) - \mathrm{sg}(\mathrm{flow}(s, z))|^2 \big\rangle
#   - \big\langle \tfrac1K \textstyle\sum_k Q_k(s, \mathrm{clip}(\mu(s, z))) \big\rangle .$$
#
# In code each is a function whose *first* argument is what it moves: `eqx.filter_value_and_grad` differentiates that one alone.


# %%
def three_losses(agent, batch, noise):
    (critic_value, (H, metrics)), of_critic = eqx.filter_value_and_grad(loop.critic_loss, has_aux=True)(
        agent.critic, agent.target_critic, agent.actor, agent.controller, batch, noise, CONFIG.discount
    )
    (temperature_value, more), of_controller = eqx.filter_value_and_grad(loop.temperature_loss, has_aux=True)(agent.controller, H)
    (actor_value, most), of_actor = eqx.filter_value_and_grad(loop.actor_loss, has_aux=True)(
        agent.actor, agent.critic, batch, noise, CONFIG.actor.alpha_bc
    )
    return (critic_value, temperature_value, actor_value), (of_critic, of_controller, of_actor), metrics | more | most


values, (of_critic, of_controller, of_actor), metrics = eqx.filter_jit(three_losses)(agent, batch, noise)
H, alpha, T = metrics["entropy"], metrics["alpha"], jnp.array(agent.controller.target)
for name, value in zip(("critic", "temperature", "actor"), values):
    print(f"{name:11} loss {float(value):8.4f}")
print(f"H = {np.round(np.ravel(H), 3)}, T = {np.round(np.ravel(T), 3)} nats, alpha = {np.round(np.ravel(alpha), 3)}")

# %% [markdown]
# Three of these gradients are short enough for paper: a head's last bias $b_k$, a temperature, and the flow's last bias $c$.
#
# $$\frac{\partial \mathcal L_{critic}}{\partial b_k} = \frac2K \langle Q_k - y \rangle, \qquad
# \frac{\partial \mathcal L_{temperature}}{\partial \log\alpha_{l,g}} = \frac{\alpha_{l,g}\,(H_{l,g} - T_{l,g})}{2L}, \qquad
# \frac{\partial \mathcal L_{actor}}{\partial c} = \frac{2}{n_a} \langle v - (x_1 - x_0) \rangle$$
#
# **Claim 1.** Autodiff gives these. There is no trace of $\partial y$ in the first: the target is a number to this loss.

# %%
@eqx.filter_jit
def gradients_on_paper(agent, row, noise, H):
    a_next = jax.vmap(agent.actor.act)(row.next_observations, noise.next_action)
    Q_next = jax.vmap(agent.target_critic)(row.next_observations, a_next)
    y = row.rewards + CONFIG.discount * row.masks * jnp.mean(Q_next, axis=1)
    Q = jax.vmap(agent.critic)(row.observations, row.actions)
    t, x_0, x_1 = noise.t[:, None], noise.x_0, row.actions
    v = jax.vmap(agent.actor.velocity)(row.observations, (1 - t) * x_0 + t * x_1, noise.t)
    alpha, T = agent.controller.alpha(), jnp.array(agent.controller.target)
    return {
        "b_k": 2 / CONFIG.critic.ensemble * jnp.mean(Q - y[:, None], axis=0),
        "log alpha": alpha * (H - T) / alpha.size,
        "c": 2 / N_A * jnp.mean(v - (x_1 - x_0), axis=0),
    }


on_paper = gradients_on_paper(agent, batch, noise, H)
by_autodiff = {
    "b_k": jnp.concatenate([head.out.bias for head in of_critic.q_heads]),
    "log alpha": of_controller.log_alpha,
    "c": of_actor.flow.layers[-1].bias,
}
for name, expected in on_paper.items():
    error = float(jnp.max(jnp.abs(by_autodiff[name] - expected)) / jnp.max(jnp.abs(expected)))
    print(f"{name:9} {np.round(np.ravel(by_autodiff[name]), 4)}, relative difference to paper {error:.1e}")
    assert error < 1e-3, f"the gradient of {name} differs from the one on paper by {error:.1e} (typical 1e-6, at most 1e-3)"

# %% [markdown]
# ## Which gradient reaches what
# Now differentiate every part of the losses with respect to *everything*, and look where it is exactly 0. There are two ways to
# hold something still. A **stop-gradient** (sg) makes the derivative 0. The **choice of the argument** leaves it non-zero, but never
# computes it. And some derivatives are 0 because the loss does not contain the parameter at all.


# %%
def td(parts):
    critic, target_critic, actor, _ = parts
    row_loss = lambda row, z: loop.td_loss(critic, target_critic, actor, CONFIG.discount, row, z)[0]
    return jnp.mean(jax.vmap(row_loss)(batch, noise))


def entropies(parts):
    return loop.critic_loss(*parts, batch, noise, CONFIG.discount)[1][0]


def actor_part(name):
    def part(parts):
        critic, _, actor, _ = parts
        losses = jax.vmap(lambda row, z: actor.losses(critic, row.observations, row.actions, z))(batch, noise)
        return jnp.mean(getattr(losses, name))

    return part


LOSSES = {
    "TD": td,
    "attention": lambda parts: parts[3].attention_loss(entropies(parts)),
    "temperature": lambda parts: loop.temperature_loss(parts[3], entropies(parts))[0],
    "flow matching": actor_part("flow_matching"),
    "distillation": actor_part("distillation"),
    "-Q": lambda parts: -actor_part("q")(parts),
}
GROUPS = {
    "critic:\ntokenizer": lambda g: g[0].tokenizer,
    "critic:\nblocks": lambda g: g[0].blocks,
    "critic:\nQ heads": lambda g: g[0].q_heads,
    "target\ncritic": lambda g: g[1],
    "flow": lambda g: g[2].flow,
    "one-step\npolicy": lambda g: g[2].one_step,
    "log alpha": lambda g: g[3].log_alpha,
}


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))))


@eqx.filter_jit
def gradient_norms(parts):
    """One row a loss, one column a group of parameters."""
    gradients = [eqx.filter_grad(loss)(parts) for loss in LOSSES.values()]
    return jnp.array([[norm(group(g)) for group in GROUPS.values()] for g in gradients])


parts = (agent.critic, agent.target_critic, agent.actor, agent.controller)
norms = np.asarray(gradient_norms(parts))

# %% [markdown]
# **Claim 2.** This is the map, `x` where a gradient arrives and is used, `o` where it would arrive and is left out by the choice of the
# argument, `.` where it is exactly 0. These zeros are stop-gradients:
# - the attention loss does not see $\log\alpha$, or it would lower the loss by raising every $\alpha$ for ever;
# - the temperature loss does not see the critic, or it would push entropy *down* with weight $\alpha$, which cancels the attention loss;
# - distillation does not see its teacher, the flow, which answers to the data alone.
#
# And two circles are easy to get wrong: TD would also move the target critic and the policy (towards making $y$ easy to predict), and
# $-Q$ would raise the critic itself instead of finding better actions.

# %%
REACHES = {  # tokenizer, blocks, Q heads, target critic, flow, one-step policy, log alpha
    "TD": "xxxo.o.",
    "attention": "xx.....",
    "temperature": "......x",
    "flow matching": "....x..",
    "distillation": ".....x.",
    "-Q": "ooo..x.",
}
for (name, marks), row in zip(REACHES.items(), norms):
    print(f"{name:14} {marks}   " + " ".join(f"{x:8.1e}" if x else "       0" for x in row))
    for mark, group, x in zip(marks, GROUPS, row):
        assert (x == 0) == (mark == "."), f"{name} on {group!r}: gradient norm {x}, expected {'0' if mark == '.' else 'not 0'}"

# %%
fig, ax = plt.subplots(figsize=(9, 4.6), layout="constrained")
ax.imshow(np.log10(np.where(norms > 0, norms, np.nan)), cmap="Blues", vmin=-2, vmax=2, aspect="auto")
for i, marks in enumerate(REACHES.values()):
    for j, mark in enumerate(marks):
        text = {"x": f"{norms[i, j]:.2g}", "o": f"({norms[i, j]:.2g})", ".": "0"}[mark]
        ax.text(j, i, text, ha="center", va="center", color="grey" if mark == "." else "black")
        if mark == "o":
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor="white", lw=0))
ax.set_xticks(range(len(GROUPS)), GROUPS)
ax.set_yticks(range(len(LOSSES)), LOSSES)
ax.set(title="Norm of each loss's gradient (row) at each group of parameters (column)\n0: exactly; hatched: exists, is not taken")
fig.savefig(PICTURES / "gradients.png", dpi=110)

# %% [markdown]
# One more zero hides inside $-Q$: it sees the policy through $\mathrm{clip}(\mu, -1, 1)$.
#
# **Claim 3.** Where $\mu$ lies outside $[-1, 1]$, the critic's opinion of that component is exactly 0, even when it would lead back inside.
# Distillation still sees it, and that is what brings it back.


# %%
@eqx.filter_jit
def pushed_out(agent, s, z):
    """For one state: the action pushed out in its first component, and what -Q and distillation say of it."""
    mu = agent.actor.mu(s, z).at[0].add(5.0)
    dQ = jax.grad(lambda mu: jnp.mean(agent.critic(s, jnp.clip(mu, -1, 1))))(mu)
    return mu, dQ, 2 / N_A * (mu - agent.actor.behaviour(s, z))


one_agent = eqx.filter_vmap(pushed_out, in_axes=(None, 0, 0))
far, dQ, d_distillation = one_agent(agent, batch.observations, noise.z)
outside = jnp.abs(far) > 1
print(f"outside: {jnp.mean(outside[:, 0]):.0%} of the first components, {jnp.mean(outside[:, 1:]):.0%} of the others")
print(f"largest |dQ/dmu| outside {jnp.max(jnp.abs(dQ[outside])):.1e}, inside {jnp.max(jnp.abs(dQ[~outside])):.1e}")
assert jnp.all(outside[:, 0]), "adding 5 should push every first component out"
assert jnp.all(dQ[outside] == 0) and jnp.all(dQ[~outside] != 0), "dQ/dmu should be 0 exactly outside [-1, 1]"
assert jnp.all(d_distillation[:, 0] > 0), "distillation should pull every one of them back (gradient above 0)"

# %% [markdown]
# ## The update by hand
# Everything below is taken at the agent *before* the update: the losses, and the critic that the target follows (so it lags by one
# update; the authors' code does the same). Weight decay acts on the matrices that `decayed` marks.


# %%
@eqx.filter_jit
def update_by_hand(agent, batch, noise):
    _, gradients, metrics = three_losses(agent, batch, noise)
    models = (agent.critic, agent.controller, agent.actor)
    states = (agent.critic_state, agent.controller_state, agent.actor_state)
    new = []
    for optimiser, model, gradient, state in zip(loop.optimisers(CONFIG), models, gradients, states):
        steps, _ = optimiser.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        new.append(eqx.apply_updates(model, steps))
    critic, controller, actor = new
    theta, theta_bar = (eqx.filter(c, eqx.is_inexact_array) for c in (agent.critic, agent.target_critic))
    average = jax.tree.map(lambda new, old: CONFIG.tau * new + (1 - CONFIG.tau) * old, theta, theta_bar)
    target_critic = eqx.combine(average, agent.target_critic)
    return (critic, target_critic, actor, controller), metrics


# %% [markdown]
# **Claim 4.** This is `tql.loop.update_with_noise`, within 1e-6 (two programs that are written differently are fused differently by
# the compiler, so the last bits may differ); and the target follows the critic from before, not the one from after.


# %%
@eqx.filter_jit
def step(agent, data):
    return loop.update_with_noise(agent, *draw(agent, data))


after, _ = step(agent, data)
by_hand, _ = update_by_hand(agent, batch, noise)


def largest_difference(one, other):
    leaves = (jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)) for tree in (one, other))
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(*leaves, strict=True))


for name, mine in zip(("critic", "target_critic", "actor", "controller"), by_hand):
    difference = largest_difference(mine, getattr(after, name))
    moved = largest_difference(mine, getattr(agent, name))
    print(f"{name:13} moved by up to {moved:.1e}; differs from the module by {difference:.1e}")
    assert difference < 1e-6 < moved, f"{name} by hand should be the module's within 1e-6 (typical 1e-8; it moved by {moved:.1e})"
lagging = largest_difference(loop.polyak(agent.critic, agent.target_critic, CONFIG.tau), after.target_critic)
leading = largest_difference(loop.polyak(after.critic, agent.target_critic, CONFIG.tau), after.target_critic)
print(f"target from the critic before: off by {lagging:.1e}; from the critic after: off by {leading:.1e}")
assert lagging < 1e-6 < leading, "the target should follow the critic from before the update (typical 1e-7 and 5e-6)"

# %% [markdown]
# ## The optimisers
# Temperatures are moved by Adam, whose first step is the learning rate times the sign of the gradient.
#
# **Claim 5.** So the first step of $\log\alpha$ is $+\eta$ where $H < T$ and $-\eta$ where $H > T$, however far away the target is.
#
# **Claim 6.** Without any gradient, AdamW shrinks the matrices of blocks and heads by $\eta \cdot 0.01$ of their size and leaves every
# other number (biases, norms, embeddings, `[VALUE]`, the tokenizer's maps) as it is, bit for bit.

# %%
_, of_temperature, _ = loop.optimisers(CONFIG)
eta = float(loop.schedule(CONFIG.temperature_lr, CONFIG)(0))
H_by_hand = T + jnp.array([[0.5, -0.5], [0.01, -2.0]])
_, gradient = eqx.filter_value_and_grad(loop.temperature_loss, has_aux=True)(start.controller, H_by_hand)
stepped, _ = loop.descend(of_temperature, start.controller, gradient, start.controller_state)
print(f"H - T = {np.ravel(H_by_hand - T)} nats: log alpha moves by {np.ravel(stepped.log_alpha)}; eta = {eta:.0e}")
assert np.allclose(stepped.log_alpha, -eta * jnp.sign(H_by_hand - T), rtol=1e-3), "below target alpha must rise, above it fall, by eta"

fast = replace(CONFIG, critic_lr=10.0)  # a rate at which float32 can tell the decay of one step from its last digit
eta = float(loop.schedule(fast.critic_lr, fast)(0))
nothing = jax.tree.map(jnp.zeros_like, eqx.filter(start.critic, eqx.is_inexact_array))
shrunk, _ = loop.descend(loop.optimisers(fast)[0], start.critic, nothing, start.critic_state)
marked, unmarked = [], []
leaves = (jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)) for tree in (start.critic, shrunk))
for is_marked, old, new in zip(jax.tree.leaves(decayed(eqx.filter(start.critic, eqx.is_inexact_array))), *leaves):
    (marked if is_marked else unmarked).append((old, new))
rate = [float(jnp.linalg.norm(old - new) / jnp.linalg.norm(old)) for old, new in marked]
print(f"{len(marked)} matrices shrank by {min(rate):.4e} to {max(rate):.4e} of their size; eta * 0.01 = {eta * 0.01:.1e}")
print(f"{len(unmarked)} other arrays stayed")
assert np.allclose(rate, eta * CONFIG.weight_decay, rtol=0.01), "decay should be eta times 0.01, within 1 %"
assert all(jnp.array_equal(old, new) for old, new in unmarked), "nothing but marked matrices may decay"

# %% [markdown]
# All rates follow one schedule: up from 1 % to the peak during warm-up, a cosine down to 10 %, and flat for the last stretch, as long as
# the warm-up was (a slip of the reference, kept). With the paper's numbers: peak after 10,000 updates, 10 % from 990,000 on.
#
# The target critic follows by $\bar\theta \leftarrow \tau\theta + (1 - \tau)\bar\theta$.
#
# **Claim 7.** Towards a critic that stands still, it covers $1 - (1 - \tau)^k$ of the way in $k$ updates: half of it in 138 at
# $\tau = 0.005$.

# %%
PAPER = Config(task=TASK)
k = np.arange(0, PAPER.steps + 1, 1000)
rates = np.asarray(loop.schedule(PAPER.critic_lr, PAPER)(k))
rise = np.minimum(0.01 + 0.99 * k / PAPER.warmup, 1)
phase = np.clip((k - PAPER.warmup) / (PAPER.steps - 2 * PAPER.warmup), 0, 1)
expected = PAPER.critic_lr * np.where(k < PAPER.warmup, rise, 0.1 + 0.9 * (1 + np.cos(np.pi * phase)) / 2)
assert np.allclose(rates, expected, rtol=1e-3), "the schedule should be the one of the text within 0.1 % (typical 1e-6)"

still = loop.initialise(N_S, N_A, replace(CONFIG, seed=CONFIG.seed + 1)).critic
follow = eqx.filter_jit(lambda target: loop.polyak(still, target, CONFIG.tau))


@eqx.filter_jit
def distance(one, other):
    one, other = (eqx.filter(tree, eqx.is_inexact_array) for tree in (one, other))
    return norm(jax.tree.map(lambda x, y: x - y, one, other))


target, way = start.critic, [0.0]
for _ in range(400):
    target = follow(target)
    way.append(float(distance(target, start.critic) / distance(still, start.critic)))
closed = 1 - (1 - CONFIG.tau) ** np.arange(401)
print(f"way covered after 138 and 400 updates: {way[138]:.4f}, {way[400]:.4f}; closed form {closed[138]:.4f}, {closed[400]:.4f}")
assert np.allclose(way, closed, atol=1e-4), "the moving average should cover 1 - (1 - tau)^k within 1e-4 (typical 1e-6)"

# %%
fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left_ax.plot(k, rates)
for x in (PAPER.warmup, PAPER.steps - PAPER.warmup):
    left_ax.axvline(x, color="grey", ls=":", lw=1)
left_ax.set(title="The paper's learning rate of the critic", xlabel="update", ylabel="learning rate")
right_ax.plot(way, lw=4, alpha=0.4, label="measured")
right_ax.plot(closed, "k--", lw=1, label=r"$1 - (1 - \tau)^k$")
right_ax.axvline(np.log(2) / CONFIG.tau, color="grey", ls=":", lw=1)
right_ax.set(title="The target's way to a critic that stands still", xlabel="update k", ylabel="share of the way", ylim=(0, 1))
right_ax.legend()
fig.savefig(PICTURES / "schedules.png", dpi=110)

# %% [markdown]
# ## Many updates
# `train_chunk` is a `lax.scan` over updates: one compiled program, nothing sent to the host in between. Batch and noise of update $k$
# are drawn with `fold_in(key, k)`, so they depend on the seed and on $k$, and on nothing else.
#
# **Claim 8.** A chunk equals a Python loop over `step`, bitwise. And one seed determines everything: two runs are bitwise
# equal, another seed shares no weight matrix. (Bitwise on one machine and with one jax; between machines sums may round differently.)

# %%
looped = start
for _ in range(2 * CHUNK):
    looped, _ = step(looped, data)
again = loop.initialise(N_S, N_A, CONFIG)
for _ in range(2):
    again, _ = loop.train_chunk((data, CHUNK), again)


def moving(agent):
    return (agent.critic, agent.target_critic, agent.actor, agent.controller, agent.critic_state, agent.actor_state)


matrices = lambda critic: [x for x in jax.tree.leaves(eqx.filter(critic, eqx.is_array)) if x.ndim == 2]
shared = [bool(jnp.any(x == y)) for x, y in zip(matrices(still), matrices(start.critic))]
print(f"chunk against loop, largest difference {largest_difference(moving(agent), moving(looped)):.1e}")
print(f"the same seed again {largest_difference(moving(agent), moving(again)):.1e}; matrices shared with another seed: {sum(shared)}")
assert largest_difference(moving(agent), moving(looped)) == 0, "scan and loop should agree bit for bit"
assert largest_difference(moving(agent), moving(again)) == 0, "one seed should give one run, bit for bit"
assert not any(shared), "another seed should give other weights"

# %%
running, travelled, alphas = agent, [[0.0] * 6], []
for _ in range(8):
    copy = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, running)
    running, metrics_of_chunk = loop.train_chunk((data, CHUNK), copy)
    alphas.append(metrics_of_chunk["alpha"])
    then, now = ((x.critic, x.target_critic, x.actor) for x in (agent, running))
    groups = list(GROUPS.values())[:-1]
    travelled.append([float(distance(group(now), group(then)) / norm(group(then))) for group in groups])

updates = int(agent.step) + CHUNK * np.arange(9)
fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for name, line in zip(GROUPS, np.transpose(travelled)):
    left_ax.plot(updates, line, ".-", label=name.replace("\n", " "))
left_ax.set(title="How far each group has moved", xlabel="update", ylabel="distance over norm (no unit)")
left_ax.legend(fontsize=8)
for i, g in ((0, 0), (0, 1), (1, 0), (1, 1)):
    label = f"layer {i + 1}, {('[VALUE]', 'others')[g]}"
    right_ax.plot(np.arange(updates[0], updates[-1]), np.concatenate(alphas)[:, i, g], label=label)
right_ax.set(title="Temperatures fall while H is above T", xlabel="update", ylabel=r"$\alpha$")
right_ax.legend(fontsize=8)
fig.savefig(PICTURES / "movement.png", dpi=110)

# %% [markdown]
# What this does not show: that the agent learns to solve anything. That takes thousands of updates, and is walkthrough 9.
#
# ## Your turn
# **Predict**: if every transition ended its episode (all masks 0), which entries of the map would change, and to what? Then check:
# `batch = eqx.tree_at(lambda b: b.masks, batch, jnp.zeros_like(batch.masks))`, and run the cells from `def td` to Claim 2 again.
#
# **Swap**: an actor whose teacher is not held still. Which entry of the row `distillation` changes, and why would it hurt the flow?
# ```python
# from tql.flow_actor import FlowActor
#
# class Leaky(FlowActor):
#     def losses(self, critic, s, a, noise):
#         parts = super().losses(critic, s, a, noise)
#         leaky = jnp.mean((self.mu(s, noise.z) - self.behaviour(s, noise.z)) ** 2)
#         return eqx.tree_at(lambda parts: parts.distillation, parts, leaky)
#
# leaky = Leaky(N_S, N_A, hidden=CONFIG.actor.hidden, key=jr.key(0))
# print(gradient_norms((agent.critic, agent.target_critic, leaky, agent.controller))[4])
# ```
# Next: walkthrough 9, the whole agent.
