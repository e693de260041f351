r"""The affine map $y = Wx + b$, initialised as Flax does, and the rule for weight decay that hangs on its type."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

# W is stored as (out, in), as in Equinox; the fan-in is the last axis.
lecun_normal = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
glorot_uniform = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)


class Linear(eqx.Module):
    """The rows of `x`, each mapped to $Wx + b$.

    Flax's start: b = 0 and W LeCun-normal (transformers) or Glorot-uniform (MLPs), where `eqx.nn.Linear` draws both from
    $U(\\pm 1/\\sqrt{d_{in}})$. It takes all rows at once because `vmap` of `eqx.nn.Linear` over tokens and batch made the
    backward pass of an MLP three times slower on a CPU (jax 0.10.2: 22.6 against 7.2 ms, 64 x 43 tokens, width 64).
    """

    weight: Float[Array, "d_out d_in"]
    bias: Float[Array, " d_out"]
    d_in: int = eqx.field(static=True)
    d_out: int = eqx.field(static=True)

    def __init__(self, initialise: jax.nn.initializers.Initializer, d_in: int, d_out: int, *, key: PRNGKeyArray):
        self.weight = initialise(key, (d_out, d_in), float)
        self.bias = jnp.zeros(d_out)
        self.d_in, self.d_out = d_in, d_out

    def __call__(self, x: Float[Array, "*rows {self.d_in}"]) -> Float[Array, "*rows {self.d_out}"]:
        # Rows are made explicit: broadcasting over ranks is what hides a [batch, 1] that should be [batch].
        bias = jnp.broadcast_to(self.bias, (*x.shape[:-1], self.d_out))
        return x @ self.weight.T + bias


def decayed(model: PyTree) -> PyTree[bool]:
    """True at the matrix of every `Linear`, False at all other leaves: what AdamW decays (paper section 5).

    Biases, norms, embeddings, `[VALUE]` and the tokenizer's two input maps are no `Linear` matrices, so they keep their size.
    """

    def mark(node: PyTree) -> PyTree[bool]:
        nothing = jax.tree.map(lambda _: False, node)
        if isinstance(node, Linear):
            return eqx.tree_at(lambda m: m.weight, nothing, True)
        return nothing

    return jax.tree.map(mark, model, is_leaf=lambda node: isinstance(node, Linear))
