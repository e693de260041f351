# %% [markdown]
# # Exercise 2. Which rows does a query read?
# Attention libraries return what was read. We want to see how it was chosen: the *logits*, from
# which the entropy is computed. So attention has two halves here. `logits` says how much each query
# wants each row, and `mix` turns logits into what is read. The last block of the critic needs one
# query row alone, that of `[VALUE]`, and the same code must serve for that.
#
# **Difficulty**: medium. **Time**: 45 minutes. **You need** walkthroughs 2 and 3, and the class
# `Linear` in `tql/layers.py`. Do not look into `tql/attention.py` beyond `AbstractAttention`.
#
# **Writes**: a picture to `runs/walkthrough/exercise_02/`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tql.attention import AbstractAttention
from tql.contracts.attention import check_attention, check_dot_product_attention
from tql.layers import Linear, lecun_normal
from tql.training.workspace import pictures

# %% [markdown]
# ## Your class
# The four maps are given. Each of them is $y = W x + b$ and takes all rows at once: `self.query(x)`
# has the shape of `x`. Head $h$ of $H$ owns the $d_{head}$ = d_model / H neighbouring channels
# $h\,d_{head}, \dots, (h+1)\,d_{head} - 1$ of queries, keys and values, where $h$ counts from 0.


# %%
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
        raise NotImplementedError

    def mix(
        self, logits: Float[Array, "heads m n"], x: Float[Array, "n d_model"]
    ) -> Float[Array, "m d_model"]:
        """What each of the m queries reads from the n rows `x`, with these logits.

        V comes from `x`. The softmax is over the keys, and it must not overflow for large logits.
        """
        raise NotImplementedError


# %% Check
check_attention(Attention)
check_dot_product_attention(Attention)
print("Attention is right.")

# %% [markdown]
# ## Picture
# Twelve rows stand on a circle, at the angles $\theta_i$. The two channels of head 0 hold
# $2\,(\cos\theta_i, \sin\theta_i)$, and those of head 1 hold
# $2\,(\cos 2\theta_i, \sin 2\theta_i)$. The matrices are set to 1 on the diagonal and 0 elsewhere,
# so each row looks for rows in its own direction, and the logits of head $h$ have a closed form:
# $4\cos((h+1)(\theta_i - \theta_j)) / \sqrt2$. Each small picture is the softmax of one head, with
# a row for each query and a column for each key.

# %% Picture
N, HEADS = 12, 2
theta = 2 * np.pi * np.arange(N) / N
circles = [2 * f((head + 1) * theta) for head in range(HEADS) for f in (np.cos, np.sin)]
x = jnp.asarray(np.stack(circles, axis=1), jnp.float32)
maps = lambda attention: (attention.query, attention.key, attention.value, attention.out)
attention = eqx.tree_at(
    lambda attention: [map_.weight for map_ in maps(attention)],
    Attention(2 * HEADS, HEADS, key=jr.key(0)),
    [jnp.eye(2 * HEADS)] * 4,
)
turn = np.arange(1, HEADS + 1)[:, None, None] * (theta[:, None] - theta)
expected = np.exp(4 * np.cos(turn) / np.sqrt(2))
expected = expected / expected.sum(axis=2, keepdims=True)


def draw(axes, weights, title):
    for head, ax in enumerate(axes):
        image = ax.imshow(weights[head], vmin=0, vmax=0.4, cmap="magma_r")
        ax.set(title=f"{title}, head {head}", xlabel="key", xticks=(0, 6, 11))
    axes[0].set(ylabel="query")
    return image


logits = attention.logits(x, x)
fig, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
draw(axes[:2], jax.nn.softmax(logits), "Yours")
image = draw(axes[2:], expected, "Expected")
fig.colorbar(image, ax=axes, label="attention weight")
fig.savefig(pictures("exercise_02") / "attention.png", dpi=110)
gap = jnp.abs(attention.mix(logits[:, :1], x) - attention.mix(logits, x)[:1])
print(f"row 0 alone against row 0 among all: at most {jnp.max(gap):.1e} apart")

# %% [markdown]
# ## In words
# The bias of the map `key` adds the same number to all logits of a row. What does it do to what is
# read, and to the entropy? How large is its gradient, then? And is the same true for the bias of
# the map `query`?
#
# Compare afterwards with `SoftmaxAttention` in `tql/attention.py`. Your class can train an agent:
# copy it with its imports into a file `mine.py`, and say `--critic.attention mine.py:Attention`.
