"""Checks an attention: what the critic asks of any, and the values of scaled dot products.

The truth is computed in float64, by loops over heads, queries and keys.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tql.attention import AbstractAttention
from tql.contracts.contract import (
    Wrong,
    call,
    close,
    compare,
    finite,
    must_be_function,
    numbers,
    words,
)

MAPS = ("query", "key", "value", "out")
ORDER = np.array([3, 0, 6, 1, 5, 2, 4])
"""A permutation of seven rows that leaves none in its place."""


def check_attention(Mine: Any) -> None:
    """What the critic asks of any attention that is built by `Mine(d_model, heads, key=key)`:
    the shapes of `logits` and `mix` for any number of queries, the same result for a query row
    alone as among others, no order of the tokens, and finite gradients.

    Raises `Wrong` for the first mistake."""
    must_be_function(Mine, "the attention")
    with jax.default_matmul_precision("highest"):
        attention, x = _built(Mine, 15, 3), _draw(1, 7, 15)
        for m in (7, 2, 1):
            _check_shapes(attention, m, 7)
        _check_rows_alone(attention, x)
        _check_permutation(attention, x)
        _check_finite(attention, x)
        _check_compiled(attention, x)
        _check_shapes(_built(Mine, 22, 2), 1, 5)


def _built(Mine: Callable[..., Any], d_model: int, heads: int) -> Any:
    """A new attention, which says what it was built with."""
    name = getattr(Mine, "__name__", "Attention")
    example = f"{name}({d_model}, {heads}, key=key)"
    attention = call(lambda: Mine(d_model, heads, key=jr.key(d_model)), example=example)
    if not isinstance(attention, AbstractAttention):
        raise Wrong(f"{example} is no attention: the class must inherit from AbstractAttention.")
    if (attention.d_model, attention.heads) != (d_model, heads):
        raise Wrong(f"{example} must have the fields d_model = {d_model} and heads = {heads}.")
    return attention


def _draw(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), float)


def _logits(attention: Any, queries: Any, x: Any) -> Any:
    """`attention.logits(queries, x)`, its shape checked."""
    m, (n, d), heads = queries.shape[0], x.shape, attention.heads
    example = f"logits(queries, x) for queries [{m}, {d}], x [{n}, {d}] and {heads} heads"
    got = call(attention.logits, queries, x, example=example)
    hints = {
        (m, heads, n): "the head must be the first axis",
        (heads, n, m): "queries and keys are exchanged: queries first, then keys",
        (heads, n, n): "all rows of x are taken as queries, instead of `queries`",
        (heads, m, m): "`queries` are taken as keys, instead of the rows of x",
        (m, n): "the heads are missing",
        (1, heads, m, n): "there is an axis for a batch; write it for one example",
    }
    _check_shape(got, (heads, m, n), hints, example)
    return got


def _mix(attention: Any, logits: Any, x: Any) -> Any:
    """`attention.mix(logits, x)`, its shape checked."""
    (heads, m, n), d = logits.shape, attention.d_model
    example = f"mix(logits, x) for logits [{heads}, {m}, {n}] and x [{n}, {d}]"
    got = call(attention.mix, logits, x, example=example)
    hints = {
        (n, d): "there must be one row for each query, not for each row of x",
        (d,): "one query row must give an array of one row, not a vector",
        (heads, m, d // heads): "the heads must be joined and go through the map `out`",
        (m, heads, d // heads): "the heads must be joined and go through the map `out`",
        (m, d // heads): "the heads must be put side by side, not added",
    }
    _check_shape(got, (m, d), hints, example)
    return got


def _check_shape(got: Any, shape: tuple[int, ...], hints: dict, example: str) -> None:
    had = getattr(got, "shape", None)
    if had != shape and had in hints:
        raise Wrong(f"{hints[had]}. {example}: expected shape {shape}, got {had}.")
    numbers(got, shape, example)


# ---------------------------------------------------------------- any attention


def _check_shapes(attention: Any, m: int, n: int) -> None:
    x = _draw(n, n, attention.d_model)
    l = _logits(attention, x[:m], x)
    if not np.isfinite(np.asarray(l)).all():
        raise Wrong(
            f"the logits are not finite, as under a mask; this attention has none. logits(x, x) "
            f"for x [{n}, {attention.d_model}] at weights that were drawn: got {words(l)}."
        )
    _mix(attention, l, x)


def _check_rows_alone(attention: Any, x: Any) -> None:
    whole = _logits(attention, x, x)
    out = _mix(attention, whole, x)
    for i in (0, 4):
        row = slice(i, i + 1)
        compare(
            _logits(attention, x[row], x),
            whole[:, row],
            example=f"logits(x[{i}:{i + 1}], x) against logits(x, x)[:, {i}:{i + 1}]",
            mistakes={"the first row of x is taken as query, instead of `queries`": whole[:, :1]},
            otherwise=_masked(whole) or "a query row alone has other logits than among others",
        )
        compare(
            _mix(attention, whole[:, row], x),
            out[row],
            example=f"mix(l[:, {i}:{i + 1}], x) against mix(l, x)[{i}:{i + 1}], l = logits(x, x)",
            otherwise=_mixed_with_mask(attention, x)
            or "a query row alone reads otherwise than among others: is the softmax over the "
            "queries? It belongs over the keys",
        )


def _check_permutation(attention: Any, x: Any) -> None:
    l, y = _logits(attention, x, x), x[ORDER]
    moved = l[:, ORDER][:, :, ORDER]
    compare(
        _logits(attention, y, y),
        moved,
        example=f"logits(y, y) for the rows of x in another order, y = x[{ORDER.tolist()}]",
        otherwise=_masked(l) or "the logits depend on the order of the rows",
    )
    compare(
        _mix(attention, moved, y),
        _mix(attention, l, x)[ORDER],
        example=f"mix(l, y) for rows and logits in another order, y = x[{ORDER.tolist()}]",
        otherwise=_mixed_with_mask(attention, x)
        or "what a row reads depends on the order of the rows",
    )


MASK = "there is a causal mask: a row does not see the rows after it. TQL's transformer has none"


def _masked(l: Any) -> str:
    """The suspicion that all logits above the diagonal are cut off, or nothing."""
    above = np.triu(np.ones(l.shape[1:], bool), 1)
    return MASK if np.max(np.asarray(l)[:, above]) < -100 else ""


def _mixed_with_mask(attention: Any, x: Any) -> str:
    """The suspicion that the rows before the last do not read the last, or nothing."""
    l = jnp.zeros((attention.heads, len(x), len(x)))
    change = np.asarray(attention.mix(l, x.at[-1].add(1.0)) - attention.mix(l, x))
    before, last = np.abs(change[:-1]).max(), np.abs(change[-1]).max()
    return MASK if before < 1e-6 < last else ""


def _total(attention: Any, queries: Any, x: Any) -> Any:
    """A number that depends on all that the rows read."""
    out = attention.mix(attention.logits(queries, x), x)
    return jnp.sum(out * jnp.sin(1.0 + jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def _check_finite(attention: Any, x: Any) -> None:
    """Also where the attention of all rows has collapsed."""
    for scale in (1.0, 300.0):
        example = f"mix(logits(x, x), x) for rows of size {scale:g}"
        out = _mix(attention, _logits(attention, scale * x, scale * x), scale * x)
        finite(out, out.shape, example=example, suspect=OVERFLOW)
        gradient = call(_gradients, attention, scale * x, scale * x, example=example)
        if not all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradient)):
            raise Wrong(f"the values are finite, but a gradient is not. The gradient of {example}.")


OVERFLOW = "the result is not finite: exp overflows for large logits, so take off the largest first"


@eqx.filter_jit
def _gradients(attention: Any, queries: Any, x: Any) -> Any:
    return eqx.filter_grad(lambda of: _total(*of))((attention, queries, x))


def _check_compiled(attention: Any, x: Any) -> None:
    """In a compiled program and over a batch."""
    batch = jnp.stack([x, x[ORDER], -x])
    whole = lambda x: attention.mix(attention.logits(x, x), x)
    example = "jit(vmap(...)) of mix(logits(x, x), x) over a batch of three"
    got = call(jax.jit(jax.vmap(whole)), batch, example=example)
    expected = np.stack([whole(x) for x in batch])
    compare(got, expected, example=example, otherwise="compiled, the result is another")


# ---------------------------------------------------------------- scaled dot products


def check_dot_product_attention(Mine: Any) -> None:
    r"""Scaled dot-product attention with the maps `query`, `key`, `value` and `out`: the values of
    `logits` and `mix` for any number of queries, and their gradients.

    $$l^h = Q^h {K^h}^\top / \sqrt{d_{head}}, \qquad
    \mathrm{out} = [A^1 V^1, \dots, A^H V^H]\, W_O + b_O, \quad A^h = \mathrm{softmax}(l^h)$$

    Head h has the channels from $h\,d_{head}$ on. Raises `Wrong` for the first mistake."""
    must_be_function(Mine, "the attention")
    with jax.default_matmul_precision("highest"):
        sizes = ((6, 2, 2, 3), (10, 2, 7, 7), (15, 3, 1, 7), (5, 5, 3, 4), (14, 1, 5, 5))
        attentions = [_with_biases(_built(Mine, d_model, heads)) for d_model, heads, *_ in sizes]
        for attention, (d_model, _, m, n) in zip(attentions, sizes):
            _check_logits(attention, _draw(m, m, d_model), _draw(10 + n, n, d_model))
        for attention, (_, _, m, n) in zip(attentions, sizes):
            _check_mix(attention, m, n)
        _check_large_logits(attentions[0])
        _check_gradients(attentions[0])


def _with_biases(attention: Any) -> Any:
    """The attention with biases that were drawn: those of a new one are 0, so nobody would see
    whether they are used."""
    for name in MAPS:
        if not hasattr(getattr(attention, name, None), "weight"):
            raise Wrong(f"the attention has no map `{name}` with a matrix `weight`.")
    biased = [name for name in MAPS if getattr(attention, name).bias is not None]
    biases = [_draw(20 + MAPS.index(name), attention.d_model, scale=0.7) for name in biased]
    return eqx.tree_at(lambda a: [getattr(a, name).bias for name in biased], attention, biases)


Maps = dict[str, tuple[np.ndarray, np.ndarray]]


def _maps(attention: Any) -> Maps:
    """Matrix and bias of every map, in float64."""
    maps = {name: getattr(attention, name) for name in MAPS}
    none = np.zeros(attention.d_model)
    bias = lambda map_: none if map_.bias is None else np.asarray(map_.bias, np.float64)
    return {name: (np.asarray(m.weight, np.float64), bias(m)) for name, m in maps.items()}


def _affine(map_: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
    W, b = map_
    return np.array([[W[i] @ row + b[i] for i in range(len(b))] for row in rows])


Channels = list[np.ndarray]


def _neighbours(d_model: int, heads: int) -> Channels:
    """The channels of every head."""
    return np.split(np.arange(d_model), heads)


def _every(d_model: int, heads: int) -> Channels:
    """The channels of every head if they are cut in the wrong axis."""
    return [np.arange(d_model)[h::heads] for h in range(heads)]


def _products(Q: np.ndarray, K: np.ndarray, channels: Channels) -> np.ndarray:
    """q k of every head, query and key."""
    return np.array([[[q[c] @ k[c] for k in K] for q in Q] for c in channels])


def _softmax(l: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    e = np.exp(l - l.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _read(A: np.ndarray, V: np.ndarray, channels: Channels) -> np.ndarray:
    """The rows $[A^1 V^1, ..., A^H V^H]$."""
    out = np.zeros((A.shape[1], V.shape[1]))
    for h, c in enumerate(channels):
        for i in range(A.shape[1]):
            for j in range(len(V)):
                out[i, c] += A[h, i, j] * V[j, c]
    return out


def _check_logits(attention: Any, queries: Any, x: Any) -> None:
    got = _logits(attention, queries, x)
    (m, d), n, heads = queries.shape, len(x), attention.heads
    q, k, maps = np.asarray(queries, np.float64), np.asarray(x, np.float64), _maps(attention)
    channels, root = _neighbours(d, heads), math.sqrt(d // heads)
    right = _products(_affine(maps["query"], q), _affine(maps["key"], k), channels) / root
    if m == n and np.max(np.asarray(got)[:, np.triu(np.ones((m, n), bool), 1)]) < -100:
        raise Wrong(f"{MASK}. logits(queries, x) for m = n = {n}: got {words(got[0, 0])} in row 0.")
    compare(
        got,
        right,
        example=f"logits(queries, x) of {m} queries and {n} rows, d_model {d}, {heads} heads",
        mistakes=_wrong_scales(right, d, heads, n) | _wrong_products(maps, q, k, heads),
        otherwise="the logits are wrong",
    )


def _wrong_scales(l: np.ndarray, d: int, heads: int, n: int) -> dict[str, np.ndarray]:
    d_head = d // heads
    product = l * math.sqrt(d_head)
    e = np.exp(l)
    return {
        "the logits are not divided by the root of d_head": product,
        "the logits are divided by the root of d_model; take that of d_head": product / d**0.5,
        "the logits are divided by d_head; it must be its root": product / d_head,
        "the logits are divided by d_model; it must be the root of d_head": product / d,
        "the logits are multiplied by the root of d_head; divide by it": l * d_head,
        "the logits are divided by the root of the number of heads": product / heads**0.5,
        "the logits are divided by the root of the number of rows": product / n**0.5,
        "the logits are divided by the root of 32; it must be that of d_head": product / 32**0.5,
        "the logits have the wrong sign": -l,
        "the softmax is taken already; `logits` must return what goes into it": _softmax(l),
        "the softmax is taken already, and over the queries": _softmax(l, 1),
        "the logarithm of the softmax is returned; `logits` must return what goes into it": (
            l - np.log(e.sum(axis=-1, keepdims=True))
        ),
        "the largest logit of a row is taken off; leave that to the softmax": (
            l - l.max(axis=-1, keepdims=True)
        ),
        "the exponential is taken already": e,
        "the mean over the heads is taken": np.broadcast_to(l.mean(0), l.shape),
    }


def _wrong_products(maps: Maps, q: np.ndarray, x: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    d = q.shape[1]
    root, channels = math.sqrt(d // heads), _neighbours(d, heads)
    of = {(name, rows): _affine(maps[name], y) for name in MAPS for rows, y in (("q", q), ("x", x))}
    linear = {name: (W, 0 * b) for name, (W, b) in maps.items()}
    transposed = {name: (W.T, b) for name, (W, b) in maps.items()}
    dot = lambda Q, K, c=channels: _products(Q, K, c) / root
    Q, K = of["query", "q"], of["key", "x"]
    pair = lambda maps: (_affine(maps["query"], q), _affine(maps["key"], x))
    whole = [np.arange(d)] * heads
    cut_badly = lambda y: y.reshape(heads, -1, d // heads)
    mixed_up = cut_badly(Q) @ cut_badly(K).swapaxes(1, 2) / root
    return {
        "the maps query and key are exchanged": dot(of["key", "q"], of["query", "x"]),
        "the keys are made by the map query": dot(Q, of["query", "x"]),
        "the queries are made by the map key": dot(of["key", "q"], K),
        "the keys are made by the map value": dot(Q, of["value", "x"]),
        "the queries are made by the map value": dot(of["value", "q"], K),
        "the maps query and key are left out": dot(q, x),
        "the map query is left out": dot(q, K),
        "the map key is left out": dot(Q, x),
        "the biases of the maps are left out": dot(*pair(linear)),
        "the bias of the map query is left out": dot(_affine(linear["query"], q), K),
        "the bias of the map key is left out": dot(Q, _affine(linear["key"], x)),
        "the matrices are transposed: a map is W x + b": dot(*pair(transposed)),
        "the heads are cut in the wrong axis: a head has d_head neighbouring channels": dot(
            Q, K, _every(d, heads)
        ),
        "the heads are not cut: every head has the product of all channels": dot(Q, K, whole),
        "the heads are not cut, and the scale is that of d_model": (
            _products(Q, K, whole) / math.sqrt(d)
        ),
        "reshape mixes up rows and heads: cut the channels, then move the heads to the front": (
            mixed_up
        ),
        "the rows of `queries` are taken as keys, too": dot(Q, of["key", "q"]),
        "the rows of x are taken as queries, instead of `queries`": dot(of["query", "x"], K),
        "queries and keys are exchanged: axis 1 is the query": dot(Q, K).swapaxes(1, 2),
        "queries and x are exchanged": dot(of["query", "x"], of["key", "q"]),
    }


def _check_mix(attention: Any, m: int, n: int) -> None:
    d, heads = attention.d_model, attention.heads
    logits, x = _draw(30 + m, heads, m, n, scale=1.5), _draw(40 + n, n, d)
    l, rows, maps = np.asarray(logits, np.float64), np.asarray(x, np.float64), _maps(attention)
    read = _read(_softmax(l), _affine(maps["value"], rows), _neighbours(d, heads))
    compare(
        _mix(attention, logits, x),
        _affine(maps["out"], read),
        example=f"mix(logits, x) of {m} queries and {n} rows, d_model {d}, {heads} heads",
        mistakes=_wrong_weights(l, maps, rows) | _wrong_reads(l, maps, rows),
        otherwise="what the queries read is wrong",
    )


def _wrong_weights(l: np.ndarray, maps: Maps, x: np.ndarray) -> dict[str, np.ndarray]:
    heads, m, n = l.shape
    d = x.shape[1]
    V, channels = _affine(maps["value"], x), _neighbours(d, heads)
    out = lambda A: _affine(maps["out"], _read(A, V, channels))
    e = np.exp(l)
    below = np.tril(np.ones((m, n)))
    masked = below * e
    return {
        "the softmax is missing: the logits are taken as weights": out(l),
        "the softmax is over the queries; it belongs over the keys, the last axis": (
            out(_softmax(l, 1))
        ),
        "the softmax is over the heads; it belongs over the keys, the last axis": (
            out(_softmax(l, 0))
        ),
        "the softmax is over all numbers at once; it belongs over the keys, the last axis": (
            out(_softmax(l, (0, 1, 2)))
        ),
        "the softmax is over queries and keys; it belongs over the keys alone": (
            out(_softmax(l, (1, 2)))
        ),
        "the softmax is taken twice": out(_softmax(_softmax(l))),
        "the logits are divided by the root of d_head once more": (
            out(_softmax(l / math.sqrt(d // heads)))
        ),
        "the exponentials are not divided by their sum": out(e),
        "the weights come from a sigmoid; they must come from a softmax": out(1 / (1 + 1 / e)),
        MASK: out(masked / masked.sum(axis=-1, keepdims=True)),
        "only the key with the largest logit is read": out(
            1.0 * (l == l.max(axis=-1, keepdims=True))
        ),
        "all keys are read evenly; the logits are not used": out(np.ones_like(l) / n),
        "all heads have the same weights": out(np.broadcast_to(_softmax(l).mean(0), l.shape)),
        "all heads have the weights of the first": out(np.broadcast_to(_softmax(l)[0], l.shape)),
    }


def _wrong_reads(l: np.ndarray, maps: Maps, x: np.ndarray) -> dict[str, np.ndarray]:
    heads, m, _ = l.shape
    d = x.shape[1]
    A, V, channels = _softmax(l), _affine(maps["value"], x), _neighbours(d, heads)
    (W_v, b_v), (W_o, b_o) = maps["value"], maps["out"]
    out = lambda read: _affine(maps["out"], read)
    by = lambda name: _read(A, _affine(maps[name], x), channels)
    read = by("value")
    of_heads = np.array([read[:, c] for c in channels])
    whole = np.array([A[h] @ V for h in range(heads)])
    v_heads = V.reshape(heads, -1, d // heads)
    mistakes = {
        "the map out is left out": read,
        "the bias of the map out is left out": read @ W_o.T,
        "the bias of the map value is left out": out(_read(A, V - b_v, channels)),
        "the map value is left out": out(_read(A, x, channels)),
        "the map value is left out, and the map out too": _read(A, x, channels),
        "the values are made by the map key": out(by("key")),
        "the values are made by the map query": out(by("query")),
        "the map value stands where the map out belongs": _affine(maps["value"], read),
        "the matrix of the map value is transposed": out(_read(A, x @ W_v + b_v, channels)),
        "the matrix of the map out is transposed": read @ W_o + b_o,
        "both matrices are transposed": _read(A, x @ W_v + b_v, channels) @ W_o + b_o,
        "the heads of the values are cut in the wrong axis: a head has d_head neighbouring "
        "channels": out(_read(A, V, _every(d, heads))),
        "the heads are put together in the wrong order: move the head behind the query before "
        "reshape": out(of_heads.reshape(m, d)),
        "the channels of the heads are interleaved; put the heads side by side": out(
            of_heads.transpose(1, 2, 0).reshape(m, d)
        ),
        "reshape mixes up rows and heads of the values": out(
            (A @ v_heads).swapaxes(0, 1).reshape(m, d)
        ),
        "every head reads all channels, and their mean is taken": out(whole.mean(0)),
        "every head reads all channels, and their sum is taken": out(whole.sum(0)),
    }
    if m == len(x):
        mistakes["x is added; the block does that"] = x + out(read)
    return mistakes


def _check_large_logits(attention: Any) -> None:
    """Every query reads one row."""
    example = "mix(l, x) where one logit of every row is 1000 and the others are 0"
    chosen, x = np.array([[2, 0], [1, 2]]), _draw(50, 3, 6)
    l = 1000.0 * np.eye(3)[chosen]
    got = _mix(attention, jnp.asarray(l, x.dtype), x)
    finite(got, (2, 6), example=example, suspect=OVERFLOW)
    maps = _maps(attention)
    V = _affine(maps["value"], np.asarray(x, np.float64))
    right = _affine(maps["out"], _read(_softmax(l), V, _neighbours(6, 2)))
    compare(got, right, example=example, otherwise="large logits must not be cut")


def _check_gradients(attention: Any) -> None:
    """Along one direction for each map, for the queries and for the rows."""
    queries, x = _draw(60, 2, 6), _draw(61, 3, 6)
    example = "the gradient of a sum of mix(logits(queries, x), x)"
    got = call(_gradients, attention, queries, x, example=example)
    gradient = _maps(got[0]) | {"queries": (got[1],), "x": (got[2],)}
    point = _maps(attention) | {"queries": (queries,), "x": (x,)}
    point = {name: tuple(np.asarray(p, np.float64) for p in of) for name, of in point.items()}
    for seed, name in enumerate(point):
        way = tuple(np.random.default_rng(70 + seed).normal(size=p.shape) for p in point[name])
        at = lambda h: {**point, name: tuple(p + h * w for p, w in zip(point[name], way))}
        right = (_true_total(at(1e-5), 2) - _true_total(at(-1e-5), 2)) / 2e-5
        slope = sum(np.sum(np.asarray(g, np.float64) * w) for g, w in zip(gradient[name], way))
        what = f"`{name}`" if name in ("queries", "x") else f"the map `{name}`"
        suspect = f"the values are right, but the gradient of {what} is wrong"
        if close(slope, 0.0):
            suspect = f"the values are right, but no gradient reaches {what}: something stops it"
        along = f"{example} along one direction of {what}"
        compare(slope, right, example=along, otherwise=suspect, tolerance=1e-3)


def _true_total(point: dict[str, tuple[np.ndarray, ...]], heads: int) -> float:
    """What `_total` gives at these weights and rows."""
    maps, (queries,), (x,) = point, point["queries"], point["x"]
    d = x.shape[1]
    channels = _neighbours(d, heads)
    products = _products(_affine(maps["query"], queries), _affine(maps["key"], x), channels)
    A = _softmax(products / math.sqrt(d // heads))
    out = _affine(maps["out"], _read(A, _affine(maps["value"], x), channels))
    return float(np.sum(out * np.sin(1.0 + np.arange(out.size)).reshape(out.shape)))
