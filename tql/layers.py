r"""Affine maps, multi-layer perceptrons, their initial weights, and what weight decay shrinks."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

# A matrix W is stored as (out, in), as in Equinox, so its fan-in is the last axis.
lecun_normal = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
glorot_uniform = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)

NORM_EPS = 1e-6  # As in Flax's LayerNorm. Equinox has 1e-5, and the difference moves Q by 1e-4.

Norm = eqx.nn.LayerNorm | eqx.nn.RMSNorm  # What normalises one row; RMSNorm only in a variant.


class AbstractMap(eqx.Module):
    """The seam for what maps rows from `d_in` to `d_out` channels."""

    d_in: eqx.AbstractVar[int]
    d_out: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        """Every row of `x`, mapped by itself."""


class Linear(AbstractMap):
    r"""The affine map $y = Wx + b$ of every row.

    It starts as in Flax: b is 0, and W is LeCun-normal in transformers and Glorot-uniform in MLPs.
    It takes all rows at once, because `vmap` of `eqx.nn.Linear` over tokens and batch made the
    backward pass three times slower on a CPU (jax 0.10.2: 22.6 against 7.2 ms at width 64).
    """

    weight: Float[Array, "d_out d_in"]
    bias: Float[Array, " d_out"]
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(self, initial: Initializer, d_in: int, d_out: int, *, key: PRNGKeyArray):
        self.weight = initial(key, (d_out, d_in), float)
        self.bias = jnp.zeros(d_out)
        self.d_in, self.d_out = d_in, d_out

    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        # Explicit rows: broadcasting over ranks would hide a [batch, 1] that should be a [batch].
        b = jnp.broadcast_to(self.bias, (*x.shape[:-1], self.d_out))
        return x @ self.weight.T + b


class MLP(eqx.Module):
    r"""A multi-layer perceptron: hidden layers $x \leftarrow \mathrm{LN}(\mathrm{gelu}(Wx + b))$,
    or $x \leftarrow \mathrm{gelu}(Wx + b)$ without `layer_norm`, then an affine map."""

    layers: tuple[Linear, ...]
    norms: tuple[eqx.Module, ...]
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(
        self, d_in: int, d_out: int, hidden: tuple[int, ...], *, layer_norm: bool = True,
        last: Initializer = glorot_uniform, key: PRNGKeyArray
    ):
        """`hidden` are the widths of the hidden layers; `last` initialises the last matrix."""
        *keys, k_last = jr.split(key, len(hidden) + 1)
        widths = (d_in, *hidden)
        self.layers = (
            *(Linear(glorot_uniform, d, e, key=k) for d, e, k in zip(widths, hidden, keys)),
            Linear(last, widths[-1], d_out, key=k_last),
        )
        make_norm = lambda d: eqx.nn.LayerNorm(d, eps=NORM_EPS) if layer_norm else eqx.nn.Identity()
        self.norms = tuple(make_norm(d) for d in hidden)
        self.d_in, self.d_out = d_in, d_out

    def __call__(self, x: Float[Array, " {self.d_in}"]) -> Float[Array, " {self.d_out}"]:
        for layer, norm in zip(self.layers[:-1], self.norms):
            x = norm(jax.nn.gelu(layer(x), approximate=True))
        return self.layers[-1](x)


def decayed(model: PyTree) -> PyTree[bool]:
    """True at the matrix of every `Linear`, which AdamW decays, and False at all other leaves:
    biases, norms, embeddings, `[VALUE]` and the tokenizer's two input maps (paper section 5)."""

    def mark(node: PyTree) -> PyTree[bool]:
        nothing = jax.tree.map(lambda _: False, node)
        if isinstance(node, Linear):
            return eqx.tree_at(lambda linear: linear.weight, nothing, True)
        return nothing

    return jax.tree.map(mark, model, is_leaf=lambda node: isinstance(node, Linear))
