# %% [markdown]
# # Exercise 5. What does a temperature move, and what may it not move?
# A temperature is the price of low entropy. Two losses belong to it: one in which the price stands
# still and the entropy moves, and one in which the entropy stands still and the price moves. You
# write both. Then you change what a price is asked for: the library has one temperature for each
# layer and token group, and a group is a mean over heads. That mean can stand on its target while a
# single head attends to one token. Your controller has one temperature for each *head*.
#
# **Difficulty**: medium. **Time**: 60 minutes. **You need** walkthrough 7 and
# `tql/entropy_controller.py`, where the equations are.
#
# **Writes**: a picture to `runs/walkthrough/exercise_05/`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float

from tql.attention import row_entropy
from tql.contracts.controller import check_head_controller, check_temperature_losses

# %% [markdown]
# ## The two losses
# $H$ [L, 2] are the entropies of L layers and two token groups, in nats, $T$ [L, 2] their targets,
# and $\alpha = e^{\log\alpha}$ [L, 2] the temperatures. Think before you write: which way must a
# temperature go where $H < T$, and what does a step *down* each of the losses do?


# %%
def attention_loss(log_alpha: Float[Array, "L 2"], H: Float[Array, "L 2"]) -> Float[Array, ""]:
    r"""$\langle -\mathrm{sg}(\alpha)\,H \rangle$, the mean over layers and groups, in nats.

    It moves the entropies (and the critic that they come from) and nothing else: its gradient with
    respect to log_alpha is 0.
    """
    raise NotImplementedError


def temperature_loss(
    log_alpha: Float[Array, "L 2"], H: Float[Array, "L 2"], T: Float[Array, "L 2"]
) -> Float[Array, ""]:
    r"""$\langle \alpha\,(\mathrm{sg}(H) - T) \rangle$, the mean over layers and groups, in nats.

    It moves the temperatures and nothing else: its gradient with respect to H is 0.
    """
    raise NotImplementedError


# %% [markdown]
# ## One temperature for each head
# The target stays a pair for each layer, `((T_value, T_others), ...)`, the same for all heads of
# the layer. The entropies now come as [L, heads, 2]. Declare the target as
# `eqx.field(static=True)`, because it is no weight.


# %%
class TemperaturePerHead(eqx.Module):
    r"""A learned $\alpha_{l,h,g}$, at first 1, for every layer, head and token group."""

    log_alpha: Float[Array, "L heads 2"]
    target: tuple[tuple[float, float], ...] = eqx.field(static=True)

    def __init__(self, target: tuple[tuple[float, float], ...], heads: int):
        """`target` has one pair of nats for each of the L layers. log_alpha is 0 at first."""
        raise NotImplementedError

    def alpha(self) -> Float[Array, "L heads 2"]:
        """The temperatures, all above 0."""
        raise NotImplementedError

    def attention_loss(self, H: Float[Array, "L heads 2"]) -> Float[Array, ""]:
        """As above, the mean over layers, heads and groups. It moves H only."""
        raise NotImplementedError

    def temperature_loss(self, H: Float[Array, "L heads 2"]) -> Float[Array, ""]:
        """As above, the mean over layers, heads and groups. It moves log_alpha only."""
        raise NotImplementedError


# %% Check
check_temperature_losses(attention_loss, temperature_loss)
print("The two losses are right.")
check_head_controller(TemperaturePerHead)
print("TemperaturePerHead is right.")

# %% [markdown]
# ## Picture
# Three heads of one layer, in both groups, are free logits of 13 tokens. Each wants its first
# token, with a pull $c$ of 0.5, 1 or 3: its own loss is $-c\,p_1$. Your losses hold the entropies.
#
# In the upper row one temperature holds the mean over the three heads, with your two functions. In
# the lower row your `TemperaturePerHead` holds every head. On the left is what yours does over the
# updates. On the right is where each entropy must end: a head rests where its first logit leads all
# others by $g = c / \alpha$, and $\alpha$ is such that the mean over the heads (above) or the head
# itself (below) has the target entropy.

# %% Picture
from tql.training.workspace import pictures  # noqa: E402

N, PULLS, TARGET, UPDATES = 13, np.array([0.5, 1.0, 3.0]), ((1.8, 1.2),), 2500
ADAM, SLOWER = optax.adam(0.03), 10  # the temperatures learn at a tenth of the rate


def descend(start, losses):
    """The entropies [updates, 1, heads, 2], when logits and temperatures descend together.
    `losses` gives the attention loss and the temperature loss of temperatures and H."""
    logits = 0.1 * jax.random.normal(jax.random.key(0), (1, len(PULLS), 2, N))
    entropy = jax.vmap(jax.vmap(jax.vmap(row_entropy)))

    def total(both):
        logits, temperatures = both
        pull = -jnp.sum(jnp.asarray(PULLS)[:, None] * jax.nn.softmax(logits)[..., 0])
        hold, learn = losses(temperatures, entropy(logits))
        return pull + logits[..., 0].size * (hold + learn)

    def step(state, _):
        both, adam = state
        (of_logits, of_temperatures), adam = ADAM.update(eqx.filter_grad(total)(both), adam)
        slower = jax.tree.map(lambda change: change / SLOWER, of_temperatures)
        both_after = eqx.apply_updates(both, (of_logits, slower))
        return (both_after, adam), entropy(both[0])

    both = logits, start
    run = eqx.filter_jit(lambda both: jax.lax.scan(step, (both, ADAM.init(both)), length=UPDATES))
    return np.asarray(run(both)[1])


def of_group(log_alpha, H):
    mean = jnp.mean(H, axis=1)
    T = jnp.array(TARGET)
    return attention_loss(log_alpha, mean), temperature_loss(log_alpha, mean, T)


def of_heads(mine, H):
    return mine.attention_loss(H), mine.temperature_loss(H)


def led_entropy(g):
    """The entropy of a row whose first logit leads the 12 others by g."""
    others = (N - 1) * np.exp(-g)
    return np.log(1 + others) + g * others / (1 + others)


def ends(pulls, T):
    """Where heads end that share one temperature: their mean entropy is T."""
    low, high = 1e-3, 1e3
    for _ in range(100):
        alpha = np.sqrt(low * high)
        low, high = (alpha, high) if led_entropy(pulls / alpha).mean() < T else (low, alpha)
    return led_entropy(pulls / alpha)


heads = TemperaturePerHead(TARGET, len(PULLS))
rows = {
    "a temperature per group": (
        descend(jnp.zeros((1, 2)), of_group),
        np.stack([ends(PULLS, T) for T in TARGET[0]], axis=1),
    ),
    "a temperature per head": (
        descend(heads, of_heads),
        np.stack([np.concatenate([ends(c, T) for c in PULLS[:, None]]) for T in TARGET[0]], axis=1),
    ),
}
PICTURES = pictures("exercise_05")
fig, axes = plt.subplots(2, 2, figsize=(11, 7), sharey=True, layout="constrained")
for (title, (H, end)), (left, right) in zip(rows.items(), axes, strict=True):
    for group, style in enumerate(("-", "--")):
        for head, pull in enumerate(PULLS):
            name = f"pull {pull:g}, {('[VALUE]', 'others')[group]}"
            left.plot(H[:, 0, head, group], style, color=f"C{head}", label=name)
            right.axhline(end[head, group], ls=style, color=f"C{head}")
        for ax in (left, right):
            ax.axhline(TARGET[0][group], color="black", ls=":", lw=0.8)
    left.set(title=f"yours: {title}", ylabel="entropy (nats)", xlabel="updates", ylim=(0, 2.7))
    right.set(title="expected: where each ends (closed form)", xticks=[])
axes[1, 0].legend(fontsize=8, loc="lower right", ncols=2)
fig.suptitle("Entropy of three heads in two groups (dotted: the targets)")
fig.savefig(PICTURES / "heads.png", dpi=110)

# %% [markdown]
# ## In words
# With a temperature for each head no head can hide behind the mean. What does that cost? Think of a
# head that has learned to read one token only, because this token holds the answer, and of the
# number of entropies that a batch has to estimate.
#
# Compare the losses with `AbstractEntropyController` in `tql/entropy_controller.py`, and your class
# with `TemperaturePerGroup`. Which line there has no counterpart in yours, and when does it matter?
