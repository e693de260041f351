r"""Every scalar of the state and of the action becomes one token (paper section 4).

With $n_s$ state scalars and $n_a$ action scalars the sequence has $n = 1 + n_s + n_a$ tokens:
`[VALUE]`, then the states, then the actions.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.layers import lecun_normal


class AbstractTokenizer(eqx.Module):
    """The seam for other tokenizers. One is built by `Mine(n_s, n_a, d_model, key=key)`."""

    @abc.abstractmethod
    def __call__(
        self, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
    ) -> Float[Array, "n d_model"]:
        """The n = 1 + n_s + n_a tokens of one pair (s, a), each a row; row 0 is `[VALUE]`."""


class ScalarTokenizer(AbstractTokenizer):
    r"""The paper's tokenizer:

    $$x_0 = v, \qquad x_j = s_j\,w_s + b_s + e_s + p_j, \qquad
    x_{n_s+i} = a_i\,w_a + b_a + e_a + p_{n_s+i}$$

    One map $(w_s, b_s)$ is shared by all state scalars and another, $(w_a, b_a)$, by all action
    scalars. $e$ is the modality embedding and $p$ the positional embedding. `[VALUE]`, the bare
    vector $v$, gets neither of them. Embeddings and $v$ start as $N(0, 0.02^2)$ and the maps with
    standard deviation 1 (LeCun-normal with fan-in 1), so at the start the scalars drown the
    embeddings.
    """

    w_s: Float[Array, " d_model"]
    b_s: Float[Array, " d_model"]
    e_s: Float[Array, " d_model"]
    w_a: Float[Array, " d_model"]
    b_a: Float[Array, " d_model"]
    e_a: Float[Array, " d_model"]
    p: Float[Array, "n-1 d_model"]
    v: Float[Array, " d_model"]
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, d_model: int, *, key: PRNGKeyArray):
        k_ws, k_wa, k_es, k_ea, k_p, k_v = jr.split(key, 6)
        self.w_s = lecun_normal(k_ws, (d_model, 1), float)[:, 0]
        self.w_a = lecun_normal(k_wa, (d_model, 1), float)[:, 0]
        self.b_s, self.b_a = jnp.zeros(d_model), jnp.zeros(d_model)
        self.e_s = 0.02 * jr.normal(k_es, (d_model,))
        self.e_a = 0.02 * jr.normal(k_ea, (d_model,))
        self.p = 0.02 * jr.normal(k_p, (n_s + n_a, d_model))
        self.v = 0.02 * jr.normal(k_v, (d_model,))
        self.n_s, self.n_a, self.d_model = n_s, n_a, d_model

    def __call__(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"]
    ) -> Float[Array, "1+{self.n_s}+{self.n_a} {self.d_model}"]:
        x_s = jnp.outer(s, self.w_s) + (self.b_s + self.e_s)[None]
        x_a = jnp.outer(a, self.w_a) + (self.b_a + self.e_a)[None]
        x = jnp.concatenate([x_s, x_a]) + self.p
        return jnp.concatenate([self.v[None], x])


TOKENIZERS = {"scalar": ScalarTokenizer}
"""Tokenizers by the short names that settings may use; `file.py:Class` names one of your own."""
