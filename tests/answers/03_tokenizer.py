# %% [markdown]
# # Exercise 3. How large was that number?
# The paper's tokenizer multiplies a scalar by a vector and adds small embeddings. The block that
# reads the token first takes its mean and its length away, and with them goes nearly everything but
# the sign of the scalar: walkthrough 2 measures that 0.2 and 0.8 look the same. You write a
# tokenizer whose tokens still say how large the scalar was.
#
# **Difficulty**: medium. **Time**: 45 minutes. **You need** walkthrough 2 and `tql/tokenizer.py`.
# Walkthrough 2 shows one answer, with sines and cosines. Find one without them.
#
# **Writes**: a picture to `runs/walkthrough/exercise_03/`.

# %%
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tql.contracts.tokenizer import check_keeps_magnitude, check_tokenizer
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer
from tql.training.workspace import pictures

# %% [markdown]
# ## Your class
# What every tokenizer of the critic must do:
#
# - It returns n = 1 + n_s + n_a rows: `[VALUE]`, then the states, then the actions. There may be
#   more actions than states. The width d_model is a multiple of 32.
# - `[VALUE]` depends on neither s nor a. Every other row depends on its own scalar and on no other.
# - Two rows with the same scalar differ, also after the LayerNorm of a block, or attention could
#   not say which scalar is which.
# - Tokens and their gradients are finite, also where scalars are 0.
#
# What yours must do, too: normalise each row to mean 0 and variance 1, as a block does. For a state
# scalar of 0.5, 1, 2 or 3, and for an action scalar of 0.25, 0.5, 0.75 or 1, of both signs, any two
# rows must then differ by at least 0.04, as the root mean square over the channels. The
# largest possible distance is 2. It is measured on new tokenizers, before any training.


# %%
class Tokenizer(AbstractTokenizer):
    """Soft bins: each of 17 centres has a vector, and a token is the mean of the nearest ones."""

    centres: Float[Array, "kinds 17 d_model"]
    place: Float[Array, "n-1 d_model"]
    value: Float[Array, " d_model"]

    def __init__(self, n_s: int, n_a: int, d_model: int, *, key: PRNGKeyArray):
        """Draws the weights for n_s state scalars, n_a action scalars and d_model channels."""
        k_centres, k_place, k_value = jr.split(key, 3)
        self.centres = jr.normal(k_centres, (2, 17, d_model))
        self.place = 0.02 * jr.normal(k_place, (n_s + n_a, d_model))
        self.value = 0.02 * jr.normal(k_value, (d_model,))

    def __call__(
        self, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
    ) -> Float[Array, "1+n_s+n_a d_model"]:
        """The tokens of one pair (s, a), each a row. States are standardised, about -3.4 to 3.4,
        and actions lie in [-1, 1]; neither has a unit."""
        where_s, where_a = jnp.linspace(-4, 4, 17), jnp.linspace(-1, 1, 17)
        bins = lambda z, where: (z[:, None] - where) / (where[1] - where[0])
        x_s = jax.nn.softmax(-(bins(s, where_s) ** 2)) @ self.centres[0]
        x_a = jax.nn.softmax(-(bins(a, where_a) ** 2)) @ self.centres[1]
        return jnp.concatenate([self.value[None], jnp.concatenate([x_s, x_a]) + self.place])


# %% Check
check_tokenizer(Tokenizer)
check_keeps_magnitude(Tokenizer)
print("Tokenizer is right.")

# %% [markdown]
# ## Picture
# The cosine between the normalised token of a scalar 0.5 and that of every other value. On the left
# is the first state of five of your tokenizers, and the paper's beside them. On the right are three
# formulas of walkthrough 2: what the paper's tokenizer keeps, and what two others keep. Yours may
# look like neither of the two, but it must fall on both sides of 0.5.

# %% Picture
VALUES, AT = np.linspace(-3, 3, 241), 0.5
N_S, N_A, D_MODEL = 5, 3, 256


def cosines(tokenizer):
    """Of the first state's normalised tokens with that of the scalar AT."""
    token = lambda value: tokenizer(jnp.zeros(N_S).at[0].set(value), jnp.zeros(N_A))[1]
    x = jax.jit(jax.vmap(token))(jnp.asarray(np.append(VALUES, AT), jnp.float32))
    h = x - jnp.mean(x, axis=1, keepdims=True)
    h = h / jnp.linalg.norm(h, axis=1, keepdims=True)
    return h[:-1] @ h[-1]


def angle(sd):
    """What is left of s w + u, where w has standard deviation 1 and u has `sd`."""
    return np.cos(np.arctan(VALUES / sd) - np.arctan(AT / sd))


waves = np.pi / 4 * np.array([1.0, 2.0, 4.0, 8.0])
formulas = {
    "the paper's: s w + u, u of size 0.028": angle(0.02 * np.sqrt(2)),
    "s w + u, u of size 1": angle(1.0),
    "four waves": np.mean(np.cos(np.outer(VALUES - AT, waves)), axis=1),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
for make, colour, name in ((ScalarTokenizer, "tab:red", "the paper's"), (Tokenizer, "C0", "yours")):
    for seed in range(5):
        curve = cosines(make(N_S, N_A, D_MODEL, key=jr.key(seed)))
        left.plot(VALUES, curve, color=colour, lw=0.8, label=None if seed else name)
for (name, curve), colour in zip(formulas.items(), ("tab:red", "tab:green", "tab:purple")):
    right.plot(VALUES, curve, color=colour, label=name)
left.set(title="Measured, five seeds each", ylabel=f"cosine with the token of s = {AT}")
right.set(title="Expected: red keeps the sign alone, the others the size")
for ax in (left, right):
    ax.axvline(AT, color="black", lw=0.6, ls=":")
    ax.set(xlabel="s", ylim=(-1.1, 1.1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
fig.savefig(pictures("exercise_03") / "cosines.png", dpi=110)

# %% [markdown]
# ## In words
# Walkthrough 2 finds that a tokenizer that sees magnitudes learns a target made of signs more
# slowly. Why? Which scalars of a robot's state are signs at heart, and which are magnitudes? Would
# you give all of them the same tokenizer?
#
# Compare afterwards with `ScalarTokenizer` in `tql/tokenizer.py` and with section 5 of walkthrough
# 2. An open project goes on from here: a better tokenizer, trained
# (`walkthrough/exercises/09_projects.md`).
