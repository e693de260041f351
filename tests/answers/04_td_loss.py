# %% [markdown]
# # Exercise 4. What does the critic learn from?
# The critic moves its values towards a target that another network, the target critic, helps to
# make. Almost every bug of a learner of this kind sits in these few lines: a target through which a
# gradient flows, a mask that is forgotten, an axis that is averaged at the wrong time. None of them
# raises an error, and with most of them the loss still falls.
#
# **Difficulty**: easy. **Time**: 30 minutes. **You need** walkthrough 4 and `tql/batch.py`.
#
# **Writes**: a picture to `runs/walkthrough/exercise_04/`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float

from tql.batch import Transition
from tql.contracts.td import check_td_loss
from tql.training.workspace import pictures

# %% [markdown]
# ## Your function
# Write `td_loss`. A critic takes *one* pair, so put `jax.vmap` around it. The number of transitions
# (B) and of heads (K) may be anything, also 1. Use `jax.numpy`, and no `if` on a number of the
# batch, because training compiles the function.


# %%
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


# %% Check
check_td_loss(td_loss)
print("td_loss is right.")

# %% [markdown]
# ## Picture
# Three states stand in a row, and every action leads to the next one. The last state pays 1 and
# ends the episode, so with $\gamma$ = 0.8 the values are 0.64, 0.8 and 1. The critic is a table
# with two heads, which start apart, and the target critic follows it. On the left your loss trains
# the table. On the right is the same training with every gradient worked out on paper.

# %% Picture
GAMMA, RATE, TAU, UPDATES = 0.8, 0.6, 0.1, 120
START = np.array([[1.2, 0.1, 0.6], [0.4, -0.3, 0.2]])  # Q of head k in state s
column = lambda *x: jnp.array(x)[:, None]
rows = Transition(
    s=column(0.0, 1.0, 2.0),
    a=column(0.0, 0.0, 0.0),
    r=jnp.array([0.0, 0.0, 1.0]),
    m=jnp.array([1.0, 1.0, 0.0]),
    s_next=column(1.0, 2.0, 2.0),
    a_next=column(0.0, 0.0, 0.0),
)


class Table(eqx.Module):
    Q: Float[Array, "K states"]

    def __call__(self, s, a):
        return self.Q @ (s[0] == jnp.arange(3)).astype(float)


@jax.jit
def update(Q, Q_bar):
    loss = lambda Q: td_loss(Table(Q), Table(Q_bar), rows.a, rows, GAMMA)
    return Q - RATE * jax.grad(loss)(Q), TAU * Q + (1 - TAU) * Q_bar


def on_paper(Q, Q_bar):
    y = np.array([0, 0, 1]) + GAMMA * np.array([1, 1, 0]) * Q_bar.mean(axis=0)[[1, 2, 2]]
    return Q - RATE * 2 / 6 * (Q - y), TAU * Q + (1 - TAU) * Q_bar


def train(update, Q):
    history, pair = [], (Q, Q)
    for _ in range(UPDATES):
        history.append(np.asarray(pair[0]))
        pair = update(*pair)
    return np.stack(history)


PICTURES = pictures("exercise_04")
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
curves = train(update, jnp.array(START)), train(on_paper, START)
for ax, title, Q in zip(axes, ("your loss", "expected"), curves):
    for state, value in enumerate((GAMMA**2, GAMMA, 1)):
        ax.axhline(value, color="0.6", lw=0.8)
        for head, style in enumerate(("-", "--")):
            label = f"state {state}" if head == 0 else None
            ax.plot(Q[:, head, state], style, color=f"C{state}", label=label)
    ax.set(title=title, xlabel="update")
axes[0].set_ylabel("Q, discounted reward")
axes[0].legend()
fig.suptitle("Two heads (line, dashes) of three states; grey: the true values")
fig.savefig(PICTURES / "td_loss.png", dpi=110)

# %% [markdown]
# ## In words
# Let the gradient flow through y, and take the critic itself as the target critic. Both sides of
# the error then move. For the three states above, in which direction does each state's value move
# first, and why does the result not have to be the true Q when the next state is random?
#
# Compare with `td_loss` in `tql/loop.py`. It is written for one transition; what does that make
# impossible?
