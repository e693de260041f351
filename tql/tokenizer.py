r"""Every scalar of the state and of the action becomes one token (paper section 4; Flax reference: `critic` input stage).

With $n_s$ state scalars and $n_a$ action scalars the sequence has $n = 1 + n_s + n_a$ rows: `[VALUE]`, the states, the actions.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from tql.linear import lecun_normal


class AbstractTokenizer(eqx.Module):
    """Turns one pair (s, a) into `n` tokens, of which row 0 is `[VALUE]`; `n_s` and `n_a` may be any sizes that make `n`."""

    n: eqx.AbstractVar[int]
    d_model: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, "{self.n} {self.d_model}"]:
        raise NotImplementedError


class ScalarTokenizer(AbstractTokenizer):
    r"""The paper's tokenizer.

    $$x_0 = v, \qquad x_j = s_j\,w_s + b_s + e_s + p_j, \qquad x_{n_s+i} = a_i\,w_a + b_a + e_a + p_{n_s+i}$$

    One map $(w_s, b_s)$ is shared by all state scalars, another $(w_a, b_a)$ by all action scalars; $e$ is the modality embedding
    and $p$ the positional one. `[VALUE]`, the bare vector $v$, gets neither. Embeddings and $v$ start as $N(0, 0.02^2)$, the maps
    LeCun-normal with fan-in 1, that is with standard deviation 1: at the start the scalars drown the embeddings.
    """

    w_s: Float[Array, " d_model"]
    b_s: Float[Array, " d_model"]
    e_s: Float[Array, " d_model"]
    w_a: Float[Array, " d_model"]
    b_a: Float[Array, " d_model"]
    e_a: Float[Array, " d_model"]
    p: Float[Array, "n-1 d_model"]
    v: Float[Array, " d_model"]
    n: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, d_model: int, *, key: PRNGKeyArray):
        k_ws, k_wa, k_es, k_ea, k_p, k_v = jr.split(key, 6)
        self.w_s = lecun_normal(k_ws, (d_model, 1), float)[:, 0]
        self.w_a = lecun_normal(k_wa, (d_model, 1), float)[:, 0]
        self.b_s = jnp.zeros(d_model)
        self.b_a = jnp.zeros(d_model)
        self.e_s = 0.02 * jr.normal(k_es, (d_model,))
        self.e_a = 0.02 * jr.normal(k_ea, (d_model,))
        self.p = 0.02 * jr.normal(k_p, (n_s + n_a, d_model))
        self.v = 0.02 * jr.normal(k_v, (d_model,))
        self.n, self.d_model = 1 + n_s + n_a, d_model

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, "{self.n} {self.d_model}"]:
        states = jnp.outer(s, self.w_s) + (self.b_s + self.e_s)[None]
        actions = jnp.outer(a, self.w_a) + (self.b_a + self.e_a)[None]
        tokens = jnp.concatenate([states, actions]) + self.p
        return jnp.concatenate([self.v[None], tokens])
