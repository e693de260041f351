# %% [markdown]
# # Exercise 6. How does noise become an action?
# A flow learns a velocity: in which direction, and how fast, does a point move on its way from
# noise to an action? To learn it is a regression on straight lines. To act is to integrate it.
# Between the two stands a question that every integral asks: how wrong is it with N steps?
#
# **Difficulty**: medium. **Time**: 45 minutes. **You need** walkthrough 5 and `tql/flow_actor.py`
# up to `draw_noise`.
#
# **Writes**: a picture to `runs/walkthrough/exercise_06/`, in about 20 s.

# %%
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float

from tql.contracts.flow import check_euler, check_flow_matching, check_order
from tql.layers import MLP
from tql.training.workspace import pictures

# %% [markdown]
# ## Your functions
# A velocity `v(s, x, t)` is any function of one state s [n_s], one point x [n_a] and one time t
# (a single number, 0 at the noise and 1 at the action). It returns an array [n_a]. All three
# functions are written for one row. `jax.vmap` outside makes them take a batch.


# %%
def flow_matching(
    v: Callable, s: Float[Array, " n_s"], a: Float[Array, " n_a"], x_0: Float[Array, " n_a"],
    t: Float[Array, ""]
) -> Float[Array, ""]:  # fmt: skip
    r"""The mean, over the action dimensions, of $(v(s, x_t, t) - (x_1 - x_0))^2$, where $x_0$ is
    the noise, $x_1 = a$ is the action, and $x_t = (1 - t)\,x_0 + t\,x_1$. Nothing is clipped."""
    raise NotImplementedError


def euler(
    v: Callable, s: Float[Array, " n_s"], z: Float[Array, " n_a"], N: int
) -> Float[Array, " n_a"]:
    r"""The action from the noise z by N steps of Euler's rule: from $x = z$,
    $x \leftarrow x + v(s, x, t) / N$ at $t = 0, 1/N, \dots, (N - 1)/N$.

    Only the result is clipped to [-1, 1], neither z nor the points on the way.
    """
    raise NotImplementedError


# %% [markdown]
# ## The order of an integral
# An integral is of order p if its error is proportional to $N^{-p}$ for large N: with twice as
# many steps the error falls by the factor $2^p$. To measure p, take a velocity whose true end is
# known, look at the errors for several N, and draw the line through them on a log-log plot.
#
# `integrate` is any function with the arguments of `euler`, and it clips its result too. So choose
# a velocity and a start whose true end lies inside [-1, 1]. The numbers are float32, so an error of
# 1e-7 is one of rounding.


# %%
def order(integrate: Callable) -> float:
    """The measured order p of `integrate(v, s, z, N)`, to within 0.2."""
    raise NotImplementedError


# %% Check
check_flow_matching(flow_matching)
check_euler(euler)
check_order(order)
print(f"All three are right. The order of your euler is {order(euler):.2f}.")

# %% [markdown]
# ## Picture
# The actions of a dataset lie at $\pm\tfrac12$, with a standard deviation of 0.08. On the left your
# loss trains a small network on them, and your integral turns noise into actions with it. In the
# middle is the density of the data. On the right are the errors of your integral for $v = -x$ from
# $z = 1$, and the errors on paper: N steps of Euler's rule end at $(1 - 1/N)^N$, and the true end
# is $e^{-1}$.

# %% Picture
HUMP, WIDTH, UPDATES, BATCH, STEPS = 0.5, 0.08, 1000, 256, 50
nothing = jnp.zeros(1)  # the one state that there is


def field(mlp):
    return lambda s, x, t: mlp(jnp.concatenate([x, jnp.asarray(t, float)[None]]))


def loss(mlp, key):
    k_side, k_width, k_noise, k_time = jr.split(key, 4)
    a = HUMP * jr.rademacher(k_side, (BATCH, 1), float) + WIDTH * jr.normal(k_width, (BATCH, 1))
    one = lambda a, x_0, t: flow_matching(field(mlp), nothing, a, x_0, t)
    return jnp.mean(jax.vmap(one)(a, jr.normal(k_noise, (BATCH, 1)), jr.uniform(k_time, (BATCH,))))


@eqx.filter_jit
def train(mlp):
    adam = optax.adam(3e-3)
    arrays, static = eqx.partition(mlp, eqx.is_inexact_array)

    def body(carry, key):
        arrays, state = carry
        gradient = jax.grad(lambda arrays: loss(eqx.combine(arrays, static), key))(arrays)
        step, state = adam.update(gradient, state)
        return (eqx.apply_updates(arrays, step), state), None

    keys = jr.split(jr.key(1), UPDATES)
    (arrays, _), _ = jax.lax.scan(body, (arrays, adam.init(arrays)), keys)
    return eqx.combine(arrays, static)


mlp = train(MLP(2, 1, (64, 64), key=jr.key(0)))
act = eqx.filter_jit(jax.vmap(lambda z: euler(field(mlp), nothing, z, STEPS)))
actions = act(jr.normal(jr.key(2), (4000, 1)))

PICTURES = pictures("exercise_06")
fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
x, bins = np.linspace(-1, 1, 401), np.linspace(-1, 1, 61)
hump = lambda m: np.exp(-(((x - m) / WIDTH) ** 2) / 2) / (WIDTH * np.sqrt(2 * np.pi)) / 2
axes[0].hist(np.asarray(actions)[:, 0], bins, density=True)
axes[1].fill_between(x, hump(HUMP) + hump(-HUMP))
axes[0].set(title="actions of your flow", xlabel="action", ylabel="density")
axes[1].set(title="expected: the data", xlabel="action")
for ax in axes[:2]:
    ax.set(xlim=(-1, 1), ylim=(0, 4))

N = np.array([4, 8, 16, 32, 64])
ends = np.array([euler(lambda s, x, t: -x, nothing, jnp.ones(1), int(n))[0] for n in N])
axes[2].loglog(N, np.abs(ends - np.exp(-1)), "o", label=f"yours, order {order(euler):.2f}")
axes[2].loglog(N, np.abs((1 - 1 / N) ** N - np.exp(-1)), "k-", lw=1, label="on paper")
axes[2].set(title="error for v = -x", xlabel="steps N", ylabel="error")
axes[2].set_xticks(N, N)
axes[2].minorticks_off()
axes[2].legend()
fig.savefig(PICTURES / "flow.png", dpi=110)

# %% [markdown]
# ## In words
# The training lines from noise to actions are straight, so a point that follows one of them needs a
# single step. Why does the learned flow need more than one, and where would a single step send all
# of the noise?
#
# Compare with `flow_matching` and `euler` in `tql/flow_actor.py`, and with claim 3 of
# walkthrough 5.
