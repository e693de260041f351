# %% [markdown]
# # Exercise 1. How many tokens does a row look at?
# The entropy of an attention row is the number on which this whole project turns: it is measured
# in every update, and a gradient goes through it into the critic. The formula of the textbook is
# right on paper. On a computer its gradient is NaN as soon as a row looks at one token alone, and
# rows do that when a critic collapses. You write an entropy that is right there, too.
#
# **Difficulty**: easy. **Time**: 30 minutes. **You need** walkthrough 3, up to its section "From
# the logits". Do not look into `tql/attention.py` yet.
#
# **Writes**: a picture to `runs/walkthrough/exercise_01/`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float

from tql.contracts.entropy import check_row_entropy
from tql.training.workspace import pictures

UNIT = 1.0  # nats in one unit of entropy

# %% [markdown]
# ## Your function
# It takes *one* row; `jax.vmap` makes it work for many. Use `jax.numpy`, and no `if` on the value
# of a logit, because training compiles the function and differentiates it.


# %%
def row_entropy(l: Float[Array, " n"]) -> Float[Array, ""]:
    r"""The entropy of one attention row, from its logits, in units of UNIT nats:

    $$H = -\frac{1}{\mathrm{UNIT}} \sum_j p_j \ln p_j, \qquad p_j = e^{l_j} / \sum_k e^{l_k}.$$

    It lies between 0 and ln(n) / UNIT; a term with p = 0 counts as 0. The row may have any length
    n, also 1. Value and gradient are finite and right for logits of any size: also where
    probabilities underflow to 0, as for the logits (0, -1000), and where exp overflows, as for
    (1000, 0) or (10000, 10000). Do not add a small number to the probabilities, and do not bound
    them from below: for rows in float64 the result must be right in float64.
    """
    raise NotImplementedError


# %% Check
check_row_entropy(row_entropy, UNIT)
print("row_entropy is right.")

# %% [markdown]
# ## Picture
# One row of seven logits is made sharper and sharper: all of them are multiplied by $\beta$. On the
# left are your entropy and the length of its gradient. On the right is what double precision says,
# with $\partial H / \partial l_j = -p_j\,(l_j - \sum_k p_k\,l_k)$. Beyond $\beta = 130$
# all probabilities but one are 0 in single precision.

# %% Picture
ROW = np.array([0.3, -1.1, 2.0, 0.7, -0.4, 1.2, -2.3])
BETAS = np.geomspace(0.01, 1e4, 200)


def expected(l):
    """Entropy and gradient in nats, in double precision."""
    e = np.exp(l - l.max())
    p, l = e / e.sum(), l - l.max()
    return -sum(q * np.log(q) for q in p if q > 0), -p * (l - p @ l)


def draw(ax, H, slopes, title):
    ax.plot(BETAS, H, color="tab:blue", label=f"H (unit: {UNIT:g} nat)")
    ax.plot(BETAS, slopes, color="tab:orange", label="length of the gradient")
    ax.set(title=title, xscale="log", xlabel=r"$\beta$", ylim=(-0.1, 2.1 / UNIT))
    ax.grid(alpha=0.3)
    ax.legend()


rows = jnp.asarray(BETAS[:, None] * ROW, jnp.float32)
H_mine, slope_mine = jax.jit(jax.vmap(jax.value_and_grad(row_entropy)))(rows)
H_true, slope_true = zip(*(expected(beta * ROW) for beta in BETAS))
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
draw(left, H_mine, np.linalg.norm(slope_mine, axis=1), "Yours, in single precision")
lengths = np.linalg.norm(slope_true, axis=1) / UNIT
draw(right, np.array(H_true) / UNIT, lengths, "Expected, in double precision")
fig.savefig(pictures("exercise_01") / "entropy.png", dpi=110)

# %% [markdown]
# ## In words
# The right end of the picture shows a row that has collapsed. Its entropy is too low, and the loss
# of the controller asks for more. What does the gradient do about it there? What does this say
# about *when* a controller has to act?
#
# Compare afterwards with `row_entropy` in `tql/attention.py`, and explain why it moves the largest
# logit to 0 before anything else.
