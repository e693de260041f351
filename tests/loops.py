"""Networks once more, for the tests of the rivals: float64 NumPy and loops, on the arrays of the package's modules."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from reference import ADAM_B1, ADAM_B2, ADAM_EPS, gelu, softmax

from tql.data import Batch

EPS = 1e-6


def random_batch(rng: np.random.Generator, rows: int, n_s: int, n_a: int, rewards=(-3.0, -1.0, 0.0)) -> Batch:
    """Rows that nothing connects; a third of the masks are 0."""
    f = lambda x: jnp.asarray(x, float)
    s, s_next = rng.normal(size=(2, rows, n_s))
    a, a_next = rng.uniform(-1, 1, (2, rows, n_a))
    return Batch(f(s), f(a), f(rng.choice(rewards, rows)), f(np.arange(rows) % 3 != 1), f(s_next), f(a_next))


def moved(model, rng: np.random.Generator, size: float = 0.3):
    """The same model with every array moved, biases and norms too: no zero and no one hides a mistake."""
    move = lambda x: x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype) if eqx.is_inexact_array(x) else x
    return jax.tree.map(move, model)


def weights(model) -> list[np.ndarray]:
    """Every floating-point array."""
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))]


def same(one, other) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(weights(one), weights(other), strict=True))


def affine(linear, x: np.ndarray) -> np.ndarray:
    return np.asarray(linear.weight, np.float64) @ x + np.asarray(linear.bias)


def layer_norm(norm, x: np.ndarray) -> np.ndarray:
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / math.sqrt(variance + EPS) * np.asarray(norm.weight) + np.asarray(norm.bias)


def rms_norm(norm, x: np.ndarray) -> np.ndarray:
    return x / math.sqrt(sum(x**2) / len(x) + EPS) * np.asarray(norm.weight)


def mlp(net, *inputs, norms: bool) -> np.ndarray:
    """Affine, GELU, LayerNorm where there are norms, ..., affine."""
    x = np.concatenate([np.asarray(i, np.float64) for i in inputs])
    for i, layer in enumerate(net.layers[:-1]):
        x = gelu(affine(layer, x))
        if norms:
            x = layer_norm(net.norms[i], x)
    return affine(net.layers[-1], x)


def attend(attention, rows: list, context: list, heads: int, sees=lambda i, j: True, qk_norm: bool = False) -> list[np.ndarray]:
    """What every row reads from the context; row i sees row j where `sees` says so."""
    maps = ((attention.query, rows), (attention.key, context), (attention.value, context))
    q, k, v = ([affine(part, x) for x in xs] for part, xs in maps)
    d = len(q[0]) // heads
    out = []
    for i in range(len(rows)):
        read = []
        for h in range(heads):
            cut = slice(h * d, (h + 1) * d)
            query, keys = q[i][cut], [x[cut] for x in k]
            if qk_norm:
                query, keys = rms_norm(attention.query_norm, query), [rms_norm(attention.key_norm, x) for x in keys]
            seen = [j for j in range(len(context)) if sees(i, j)]
            p = softmax(np.array([query @ keys[j] / math.sqrt(d) for j in seen]))
            read.append(sum(p_j * v[j][cut] for p_j, j in zip(p, seen, strict=True)))
        out.append(affine(attention.out, np.concatenate(read)))
    return out


def feed_forward(block, y: list) -> list[np.ndarray]:
    return [x + affine(block.mlp_out, gelu(affine(block.mlp_in, layer_norm(block.mlp_norm, x)))) for x in y]


def self_block(block, x: list, heads: int, **how) -> list[np.ndarray]:
    """y = x + attention of LN1(x), then y + W2 gelu(W1 LN3(y))."""
    h = [layer_norm(block.attention_norm, row) for row in x]
    return feed_forward(block, [row + read for row, read in zip(x, attend(block.attention, h, h, heads, **how), strict=True)])


def clip1(a: np.ndarray) -> np.ndarray:
    return np.array([min(max(x, -1.0), 1.0) for x in a])


def mu(actor, s, z) -> np.ndarray:
    """The one-step policy, not clipped."""
    return mlp(actor.one_step, s, z, norms=bool(weights(actor.one_step.norms)))


def first_adam_step(w: np.ndarray, g: np.ndarray, rate: float, decay: float = 0.0) -> np.ndarray:
    m_hat, v_hat = (1 - ADAM_B1) * g / (1 - ADAM_B1), (1 - ADAM_B2) * g**2 / (1 - ADAM_B2)
    return w - rate * (m_hat / (np.sqrt(v_hat) + ADAM_EPS) + decay * w)
