# %% [markdown]
# # Exercise 7. Do your parts make an agent?
# Five exercises have given you the entropy of a row, an attention, the TD loss, the losses of the
# temperatures, and the flow. Here they become one update of a whole agent. Every part may be right
# and the update still wrong: what is computed first, at which critic, and which of them moves?
#
# **Difficulty**: hard. **Time**: 90 minutes. **You need** walkthrough 8, `tql/optimise.py`, the
# class `TQL` in `tql/loop.py` up to `create`, and your answers to exercises 1, 2, 4, 5 and 6.
#
# **Writes**: a picture to `runs/walkthrough/exercise_07/`, in about a minute.

# %%
from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import AbstractAttention
from tql.batch import Transition
from tql.contracts.update import CONFIG, N_A, N_S, check_update, with_attention
from tql.flow_actor import Noise, draw_noise
from tql.layers import Linear, lecun_normal
from tql.loop import TQL, optimisers
from tql.optimise import polyak
from tql.training.workspace import pictures

# %% [markdown]
# ## Your five parts
# Replace each stub by your answer.

# %% Part 1: row_entropy, from 01_entropy.py
UNIT = 1.0  # nats in one unit of your row_entropy


def row_entropy(l: Float[Array, " n"]) -> Float[Array, ""]:
    r"""The entropy of one attention row, from its logits, in units of UNIT nats:

    $$H = -\frac{1}{\mathrm{UNIT}} \sum_j p_j \ln p_j, \qquad p_j = e^{l_j} / \sum_k e^{l_k}.$$

    It lies between 0 and ln(n) / UNIT; a term with p = 0 counts as 0. The row may have any length
    n, also 1. Value and gradient are finite and right for logits of any size: also where
    probabilities underflow to 0, as for the logits (0, -1000), and where exp overflows, as for
    (1000, 0) or (10000, 10000). Do not add a small number to the probabilities, and do not bound
    them from below: for rows in float64 the result must be right in float64.
    """
    log_p = jax.nn.log_softmax(l)
    return -jnp.sum(jnp.exp(log_p) * log_p) / UNIT


# %% Part 2: Attention, from 02_attention.py
class Attention(AbstractAttention):
    r"""Scaled dot-product attention without a mask, whose logits can be seen:

    $$l^h = Q^h {K^h}^\top / \sqrt{d_{head}}, \qquad A^h = \mathrm{softmax}(l^h), \qquad
    \mathrm{out} = [A^0 V^0, \dots, A^{H-1} V^{H-1}]\, W_O + b_O$$
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        keys = jr.split(key, 4)
        make = lambda key: Linear(lecun_normal, d_model, d_model, key=key)
        self.query, self.key, self.value, self.out = (make(key) for key in keys)
        self.d_model, self.heads = d_model, heads

    def logits(
        self, queries: Float[Array, "m d_model"], x: Float[Array, "n d_model"]
    ) -> Float[Array, "heads m n"]:
        """How much each of the m rows `queries` wants each of the n rows `x`, for every head.

        Q comes from `queries` and K from `x`. It is what goes into the softmax. In the critic the
        queries are all rows of x (m = n), or its first row alone (m = 1).
        """
        d_head = self.d_model // self.heads
        Q = self.query(queries).reshape(-1, self.heads, d_head)
        K = self.key(x).reshape(-1, self.heads, d_head)
        return jnp.einsum("mhd,nhd->hmn", Q, K) / d_head**0.5

    def mix(
        self, logits: Float[Array, "heads m n"], x: Float[Array, "n d_model"]
    ) -> Float[Array, "m d_model"]:
        """What each of the m queries reads from the n rows `x`, with these logits.

        V comes from `x`. The softmax is over the keys, and it must not overflow for large logits.
        """
        V = jnp.split(self.value(x), self.heads, axis=1)
        A = jax.nn.softmax(logits, axis=-1)
        return self.out(jnp.concatenate([A[h] @ V[h] for h in range(self.heads)], axis=1))


# %% Part 3: td_loss, from 04_td_loss.py
def td_loss(
    critic, target_critic, next_actions: Float[Array, "B n_a"], batch: Transition, gamma: float
) -> Float[Array, ""]:
    r"""The mean, over the B transitions and the K heads, of $(Q_k(s, a) - y)^2$, with the target

    $$y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a').$$

    `critic(s, a)` gives the K values $Q_k$ of one pair, and `target_critic(s, a)` the values
    $\bar Q_k$, in units of discounted reward. `batch` has the fields `s` [B, n_s], `a` [B, n_a],
    `r` [B], `m` [B] (0 where the episode has ended, else 1) and `s_next` [B, n_s]. The next actions
    a' are `next_actions`; `batch.a_next` is not used. `gamma` is the discount per step.

    No gradient flows through y: not to the target critic, not to the critic where it is the target
    critic too, and not to the next actions.
    """
    Q_next = jax.vmap(target_critic)(batch.s_next, next_actions)
    y = jax.lax.stop_gradient(batch.r + gamma * batch.m * jnp.mean(Q_next, axis=1))
    Q = jax.vmap(critic)(batch.s, batch.a)
    return jnp.mean((Q - y[:, None]) ** 2)


# %% Part 4: the losses of the temperatures, from 05_temperatures.py
def attention_loss(log_alpha: Float[Array, "L 2"], H: Float[Array, "L 2"]) -> Float[Array, ""]:
    r"""$\langle -\mathrm{sg}(\alpha)\,H \rangle$, the mean over layers and groups, in nats.

    It moves the entropies (and the critic that they come from) and nothing else: its gradient with
    respect to log_alpha is 0.
    """
    return -jnp.mean(jax.lax.stop_gradient(jnp.exp(log_alpha)) * H)


def temperature_loss(
    log_alpha: Float[Array, "L 2"], H: Float[Array, "L 2"], T: Float[Array, "L 2"]
) -> Float[Array, ""]:
    r"""$\langle \alpha\,(\mathrm{sg}(H) - T) \rangle$, the mean over layers and groups, in nats.

    It moves the temperatures and nothing else: its gradient with respect to H is 0.
    """
    return jnp.mean(jnp.exp(log_alpha) * (jax.lax.stop_gradient(H) - T))


# %% Part 5: the flow, from 06_flow.py
def flow_matching(
    v: Callable, s: Float[Array, " n_s"], a: Float[Array, " n_a"], x_0: Float[Array, " n_a"],
    t: Float[Array, ""]
) -> Float[Array, ""]:  # fmt: skip
    r"""The mean, over the action dimensions, of $(v(s, x_t, t) - (x_1 - x_0))^2$, where $x_0$ is
    the noise, $x_1 = a$ is the action, and $x_t = (1 - t)\,x_0 + t\,x_1$. Nothing is clipped."""
    x_t = (1 - t) * x_0 + t * a
    return jnp.mean((v(s, x_t, t) - (a - x_0)) ** 2)


def euler(
    v: Callable, s: Float[Array, " n_s"], z: Float[Array, " n_a"], N: int
) -> Float[Array, " n_a"]:
    r"""The action from the noise z by N steps of Euler's rule: from $x = z$,
    $x \leftarrow x + v(s, x, t) / N$ at $t = 0, 1/N, \dots, (N - 1)/N$.

    Only the result is clipped to [-1, 1], neither z nor the points on the way.
    """
    x = z
    for k in range(N):
        x = x + v(s, x, k / N) / N
    return jnp.clip(x, -1, 1)


# %% [markdown]
# ## Your update
# The flow of the actor is a network of one array. This makes of it the `v(s, x, t)` of exercise 6.


# %%
def flow_of(actor) -> Callable:
    return lambda s, x, t: actor.flow(jnp.concatenate([s, x, jnp.asarray(t, x.dtype)[None]]))


# %% [markdown]
# These are the pieces of the agent. Your attention is inside its critic already.
#
# - `agent.critic`, `agent.controller` and `agent.actor` are three `Learner`s. The network is
#   `.model`, and `.descend(gradient, optimiser)` gives the `Learner` after one step.
# - `optimisers(agent.config)` are their optimisers, in this order: critic, temperatures, actor.
# - `agent.target_critic` has no optimiser; `polyak(critic, target_critic, tau)` moves it.
# - `critic(s, a)` gives the K values of one pair, and `critic.with_attention(s, a)` the same and
#   the logits [L, heads, n, n] of every layer, which come from your attention.
# - `controller.log_alpha` is an array [L, 2], and `controller.target` a tuple of L pairs, in nats.
# - `actor.act(s, z)` is the one-step policy's action for the noise z, clipped to [-1, 1], and
#   `actor.mu(s, z)` is the same without the clip.
# - `actor.flow_steps` is the number N of the flow's Euler steps.
# - `agent.config` has the settings `discount`, `tau` and `actor.alpha_bc`.
#
# `eqx.filter_grad(loss)(model)` is the gradient of a loss with respect to its first argument, and
# `dataclasses.replace(agent, critic=..., ...)` is an agent with new parts.


# %%
def update(agent: TQL, batch: Transition, noise: Noise) -> TQL:
    r"""The agent after one update, from a batch of B transitions and their noise. All gradients are
    taken at the agent before the update, and then everything moves.

    1. The critic descends $\mathrm{td\_loss} + \mathrm{attention\_loss}$. The next actions are the
       policy's in s', with the noise `noise.next_action`. The entropies H [L, 2], in nats, are
       those of the critic at (s, a): of `[VALUE]`, which is query 0, and the mean of all other
       queries. Both are means over the heads and the batch.
    2. The temperatures descend $\mathrm{temperature\_loss}$ at these entropies.
    3. The actor descends the mean over the batch of

       $$\mathrm{flow\_matching} + \alpha_{bc}\,\Big\langle (\mu(s, z) - \mathrm{sg}(\mathrm{flow}(
       s, z)))^2 \Big\rangle - \frac1K \sum_k Q_k(s, \mathrm{clip}(\mu(s, z))),$$

       where the flow matching of action a takes `noise.x_0` and `noise.t`, z is `noise.z`, the
       brackets are a mean over action dimensions, and flow(s, z) is the end of the Euler integral.
    4. The target critic follows the critic from *before* this update, with the rate tau. (So does
       the authors' code.) `agent.step` grows by 1.

    Use your five parts, and not the losses or updates of `tql.loop` and `tql.flow_actor`.
    """
    config, s, a = agent.config, batch.s, batch.a
    of_critic, of_temperatures, of_actor = optimisers(config)
    old, target_critic = agent.critic.model, agent.target_critic
    log_alpha, T = agent.controller.model.log_alpha, jnp.array(agent.controller.model.target)
    next_actions = jax.vmap(agent.actor.model.act)(batch.s_next, noise.next_action)

    def entropies(critic):
        _, logits = jax.vmap(critic.with_attention)(s, a)  # [B, L, heads, n, n]
        h = UNIT * jnp.vectorize(row_entropy, signature="(n)->()")(logits)
        of_value, of_others = jnp.mean(h[..., 0], (0, 2)), jnp.mean(h[..., 1:], (0, 2, 3))
        return jnp.stack([of_value, of_others], axis=1)

    def critic_loss(critic):
        td = td_loss(critic, target_critic, next_actions, batch, config.discount)
        return td + attention_loss(log_alpha, entropies(critic))

    def controller_loss(controller, H):
        return temperature_loss(controller.log_alpha, H, T)

    def actor_loss(actor):
        def one(s, a, x_0, t, z):
            v, mu = flow_of(actor), actor.mu(s, z)
            teacher = jax.lax.stop_gradient(euler(v, s, z, actor.flow_steps))
            distillation = jnp.mean((mu - teacher) ** 2)
            q = jnp.mean(old(s, jnp.clip(mu, -1, 1)))
            return flow_matching(v, s, a, x_0, t) + config.actor.alpha_bc * distillation - q

        return jnp.mean(jax.vmap(one)(s, a, noise.x_0, noise.t, noise.z))

    of_loss = eqx.filter_grad(critic_loss)(old)
    of_controller_loss = eqx.filter_grad(controller_loss)(agent.controller.model, entropies(old))
    of_actor_loss = eqx.filter_grad(actor_loss)(agent.actor.model)
    return replace(
        agent,
        critic=agent.critic.descend(of_loss, of_critic),
        target_critic=polyak(old, target_critic, config.tau),
        controller=agent.controller.descend(of_controller_loss, of_temperatures),
        actor=agent.actor.descend(of_actor_loss, of_actor),
        step=agent.step + 1,
    )


# %% [markdown]
# The check compiles your update and makes three updates of a small agent with it, in float64. That
# takes some seconds. With `op_by_op=True` it compiles nothing, so that `print` shows numbers, and
# takes four times as long. If it finds the gradient of a loss wrong, check that part alone first,
# with the checker of its own exercise.

# %% Check
print(check_update(update, Attention))

# %% [markdown]
# ## Picture
# On the left are the entropies of the agent's attention over 60 of your updates, on random
# transitions, and on the right over 60 of the library's. The dotted lines are the targets.

# %% Picture
UPDATES, ROWS = 60, 16


def transitions(key):
    keys = jr.split(key, 6)
    s, s_next = jr.normal(keys[0], (ROWS, N_S)), jr.normal(keys[1], (ROWS, N_S))
    a, a_next = jr.uniform(keys[2], (2, ROWS, N_A), minval=-1, maxval=1)
    return Transition(s, a, s[:, 0], jr.bernoulli(keys[3], 0.8, (ROWS,)) + 0.0, s_next, a_next)


def entropy_of(l):
    p = jax.nn.softmax(l)
    return -jnp.sum(p * jax.nn.log_softmax(l), axis=-1)


@eqx.filter_jit
def entropies(agent, batch):
    _, logits = jax.vmap(agent.critic.model.with_attention)(batch.s, batch.a)
    h = entropy_of(logits)
    return jnp.stack([jnp.mean(h[..., 0], axis=(0, 2)), jnp.mean(h[..., 1:], axis=(0, 2, 3))], 1)


def run(update, agent):
    history, update = [], eqx.filter_jit(update)
    for key in jr.split(jr.key(1), UPDATES):
        batch = transitions(key)
        noise = jax.vmap(lambda k: draw_noise(N_A, key=k))(jr.split(key, ROWS))
        history.append(np.asarray(entropies(agent, batch)))
        agent = update(agent, batch, noise)
    return np.stack(history)


start = TQL.create(N_S, N_A, replace(CONFIG, steps=2 * UPDATES))
yours = run(update, with_attention(start, Attention))
library = run(lambda *given: TQL.update_with_noise(*given)[0], start)

PICTURES = pictures("exercise_07")
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, title, H in zip(axes, ("your update", "expected: the library's"), (yours, library)):
    for layer, group in np.ndindex(2, 2):
        colour, name = f"C{2 * layer + group}", ("[VALUE]", "others")[group]
        ax.plot(H[:, layer, group], color=colour, label=f"layer {layer}, {name}")
        ax.axhline(CONFIG.control.target[layer][group], color=colour, lw=0.8, ls=":")
    ax.set(title=title, xlabel="update")
axes[0].set_ylabel("entropy, nats")
axes[0].legend(fontsize=8)
fig.savefig(PICTURES / "one_update.png", dpi=110)

# %% [markdown]
# ## In words
# Take the actor's gradient at the critic *after* its update, and say what that changes: after one
# update, and after a million. Which of the orders that are possible would you call wrong, and which
# are merely others?
#
# Compare with `TQL.update_with_noise` in `tql/loop.py`.
