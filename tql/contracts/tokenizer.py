"""Checks a tokenizer: what the critic asks of any, and whether it keeps the size of a scalar."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tql.contracts.contract import Wrong, call, compare, finite, must_be_function, numbers
from tql.tokenizer import AbstractTokenizer

STATES = (0.5, 1.0, 2.0, 3.0)
"""Sizes of state scalars, which lie in about -3.4 to 3.4 in our data."""

ACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Sizes of action scalars, which lie in -1 to 1."""

APART = 0.04
"""How far apart two normalised tokens must be: the root mean square over the channels of their
difference, where a token itself has 1. It is an angle of 2 degrees."""


def check_tokenizer(Mine: Any) -> None:
    """What the critic asks of any tokenizer that is built by `Mine(n_s, n_a, d_model, key=key)`:
    one row for each token; `[VALUE]`, states, actions in this order; each token with its own scalar
    alone; tokens that differ between places; finite gradients.

    Raises `Wrong` for the first mistake. Widths are multiples of 32."""
    must_be_function(Mine, "the tokenizer")
    for sizes in ((5, 3, 32), (2, 7, 64)):
        tokenizer = _built(Mine, *sizes)
        _check_shape(tokenizer, *sizes)
        _check_value(tokenizer, *sizes)
        for j in range(sum(sizes[:2])):
            _check_own_scalar(tokenizer, j, *sizes)
        _check_places(tokenizer, *sizes)
    _check_finite(tokenizer, 2, 7)
    _check_compiled(tokenizer, 2, 7)


def check_keeps_magnitude(Mine: Any) -> None:
    """After the normalisation of a block, a new tokenizer must still tell apart state scalars of
    .5, 1, 2 and 3 and action scalars of .25, .5, .75 and 1, of both signs: at every place, any two
    normalised tokens differ by .04 per channel (root mean square).

    Raises `Wrong` for the first mistake. Widths are multiples of 32."""
    must_be_function(Mine, "the tokenizer")
    for n_s, n_a, d_model in ((5, 3, 32), (3, 2, 64)):
        tokenizer = _built(Mine, n_s, n_a, d_model)
        tokens = eqx.filter_jit(lambda t, scalars: jax.vmap(t)(*scalars))
        for j in range(n_s + n_a):
            sizes = STATES if j < n_s else ACTIONS
            values = np.array([sign * size for size in sizes for sign in (1, -1)])
            scalars = np.tile(_scalars(1, n_s + n_a), (len(values), 1))
            scalars[:, j] = values
            pair = _split(scalars, n_s)
            example = f"the tokens of {_name(j, n_s)}, d_model {d_model}"
            x = call(tokens, tokenizer, pair, example=example)
            x = numbers(x, (len(values), 1 + n_s + n_a, d_model), example)[:, 1 + j]
            _check_apart(x, values, example)


def _built(Mine: Callable[..., Any], n_s: int, n_a: int, d_model: int) -> Any:
    name = getattr(Mine, "__name__", "Tokenizer")
    example = f"{name}({n_s}, {n_a}, {d_model}, key=key)"
    tokenizer = call(lambda: Mine(n_s, n_a, d_model, key=jr.key(d_model)), example=example)
    if not isinstance(tokenizer, AbstractTokenizer):
        raise Wrong(f"{example} is no tokenizer: the class must inherit from AbstractTokenizer.")
    return tokenizer


def _scalars(seed: int, n: int) -> np.ndarray:
    """All scalars of a pair, states first."""
    return np.random.default_rng(seed).uniform(-1, 1, n)


def _split(scalars: Any, n_s: int) -> tuple[jax.Array, jax.Array]:
    """State and action."""
    scalars = jnp.asarray(scalars, float)
    return scalars[..., :n_s], scalars[..., n_s:]


def _name(j: int, n_s: int) -> str:
    return f"s_{j + 1}" if j < n_s else f"a_{j - n_s + 1}"


def _tokens(tokenizer: Any, scalars: np.ndarray, sizes: tuple[int, int, int]) -> np.ndarray:
    n_s, n_a, d_model = sizes
    example = f"tokenizer(s, a) for {n_s} states, {n_a} actions and d_model {d_model}"
    x = call(tokenizer, *_split(scalars, n_s), example=example)
    return numbers(x, (1 + n_s + n_a, d_model), example)


def _moved(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows that differ between two arrays of tokens."""
    return np.flatnonzero(np.abs(x - y).max(axis=1) > 1e-5 * (1 + np.abs(x).max()))


# ---------------------------------------------------------------- any tokenizer


def _check_shape(tokenizer: Any, n_s: int, n_a: int, d_model: int) -> None:
    n, example = 1 + n_s + n_a, f"tokenizer(s, a) for n_s = {n_s}, n_a = {n_a}"
    x = call(tokenizer, *_split(_scalars(0, n - 1), n_s), example=example)
    hints = {
        (n - 1, d_model): "the token [VALUE] is missing",
        (n, d_model - 1): "a token has one channel too few",
        (n + 1, d_model): "there is one token too many",
        (d_model, n): "tokens must be rows",
        (n,): "tokens must have d_model channels",
        (1, n, d_model): "there is an axis for a batch; write it for one pair",
    }
    shape = getattr(x, "shape", None)
    if shape != (n, d_model) and shape in hints:
        raise Wrong(f"{hints[shape]}. {example}: expected shape {(n, d_model)}, got {shape}.")
    x = numbers(x, (n, d_model), example)
    again = _tokens(tokenizer, _scalars(0, n - 1), (n_s, n_a, d_model))
    compare(again, x, example=f"{example}, the second time", otherwise="the tokens are random")


def _check_value(tokenizer: Any, *sizes: int) -> None:
    """Row 0 depends on no scalar."""
    n_s, n_a, _ = sizes
    x, y = (_tokens(tokenizer, _scalars(seed, n_s + n_a), sizes) for seed in (1, 2))
    moved = _moved(x, y)
    if 0 not in moved:
        return
    fixed = sorted({*range(1 + n_s + n_a)} - {*moved})
    suspect = "row 0, [VALUE], depends on s or a; it must be the same for every pair"
    if fixed:
        suspect = f"[VALUE] must stand first; here row {fixed[0]} is the one without a scalar"
    raise Wrong(f"{suspect}. tokenizer(s, a) for two pairs: row 0 differs.")


def _check_own_scalar(tokenizer: Any, j: int, *sizes: int) -> None:
    """If one scalar moves, its row moves and no other."""
    n_s, n_a, _ = sizes
    scalars, row, name = _scalars(3, n_s + n_a), 1 + j, _name(j, n_s)
    moved: set[int] = set()
    for values in ((-0.9, 0.8), (0.15, 0.6), (-0.5, 3.3) if j < n_s else (-1.0, 1.0)):
        pair = np.tile(scalars, (2, 1))
        pair[:, j] = values
        moved |= {*_moved(*(_tokens(tokenizer, one, sizes) for one in pair)).tolist()}
    if moved == {row}:
        return
    other = ", ".join(str(i) for i in sorted(moved - {row}))
    suspect = f"a token must depend on its own scalar alone; {name} also moves row {other}"
    if not moved:
        suspect = f"no token depends on {name}"
    elif row not in moved:
        suspect = f"the order is [VALUE], states, actions; {name} is in row {other}, not {row}"
    raise Wrong(
        f"{suspect}. tokenizer(s, a) with n_s = {n_s}, n_a = {n_a}, and {name} moved: expected a "
        f"change of row {row}, got one of {sorted(moved)}."
    )


def _check_places(tokenizer: Any, *sizes: int) -> None:
    """The same scalar at two places gives two tokens, also after the norm of a block."""
    n_s, n_a, _ = sizes
    xs = [_tokens(tokenizer, np.full(n_s + n_a, value), sizes) for value in (0.7, -0.4)]
    hs = np.array([_normalised(x) for x in xs])
    n, names = 1 + n_s + n_a, ["[VALUE]"] + [_name(j, n_s) for j in range(n_s + n_a)]
    for i in range(n):
        for j in range(i):
            if np.abs(hs[:, i] - hs[:, j]).max() < 1e-3:
                same = max(np.abs(x[i] - x[j]).max() for x in xs) < 1e-3
                after = "" if same else " after the LayerNorm, which takes mean and length away"
                raise Wrong(
                    f"{names[j]} and {names[i]} cannot be told apart{after}: a token must say "
                    f"which scalar it is. tokenizer(s, a) with all scalars .7: rows {j} and {i} "
                    "are the same."
                )


def _check_finite(tokenizer: Any, n_s: int, n_a: int) -> None:
    """Tokens and their derivatives, by scalars and by weights."""
    slope = eqx.filter_jit(eqx.filter_grad(lambda of: jnp.sum(jnp.sin(of[0](*of[1:])))))
    for value in (0.0, 1.0, -1.0, 50.0):
        pair = _split(np.full(n_s + n_a, value), n_s)
        example = f"tokenizer(s, a) with all scalars {value:g}"
        x = call(tokenizer, *pair, example=example)
        finite(x, x.shape, example=example, suspect="a token is not finite")
        gradient = call(slope, (tokenizer, *pair), example=f"the gradient of {example}")
        if not all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradient)):
            raise Wrong(f"the tokens are finite, but a gradient is not. {example}.")


def _check_compiled(tokenizer: Any, n_s: int, n_a: int) -> None:
    """In a compiled program and over a batch."""
    batch = np.array([_scalars(seed, n_s + n_a) for seed in range(3)])
    example = "jit(vmap(tokenizer)) over a batch of three pairs"
    got = call(jax.jit(jax.vmap(tokenizer)), *_split(batch, n_s), example=example)
    expected = np.stack([tokenizer(*_split(one, n_s)) for one in batch])
    compare(got, expected, example=example, otherwise="compiled, the tokens are others")


# ---------------------------------------------------------------- the size of a scalar


def _normalised(x: np.ndarray) -> np.ndarray:
    """Every row with mean 0 and variance 1, as a block of the critic reads it at first."""
    h = x - x.mean(axis=-1, keepdims=True)
    return h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((x - y) ** 2).mean()))


def _check_apart(x: np.ndarray, values: np.ndarray, example: str) -> None:
    """The tokens `x` of one scalar at these values."""
    if not np.isfinite(x).all():
        raise Wrong(f"a token is not finite. {example}.")
    h = _normalised(x)
    pairs = [(i, j) for i in range(len(values)) for j in range(i)]
    # First those of opposite sign: who loses the sign also loses other things.
    for i, j in sorted(pairs, key=lambda pair: values[pair[0]] != -values[pair[1]]):
        apart = _distance(h[i], h[j])
        if apart < APART:
            raise Wrong(
                f"{_suspect(x, values, i, j)}. {example} for {values[j]:g} and {values[i]:g}, "
                f"normalised: expected a distance of at least {APART} per channel, "
                f"got {apart:.2g}."
            )


def _suspect(x: np.ndarray, values: np.ndarray, i: int, j: int) -> str:
    """Why the normalised tokens of two values are the same."""
    size = np.sqrt((x**2).mean())
    mirrored = [(k, l) for k, u in enumerate(values) for l, v in enumerate(values) if u == -v]
    if all(_distance(x[k], x[l]) < APART * size for k, l in mirrored):
        return "the sign of the scalar is lost"
    if _distance(x[i], x[j]) > APART * size:
        return (
            "the size of the scalar lies in the length or in the mean of the token, and the "
            "LayerNorm takes both away: let it turn the direction of the token"
        )
    return "two scalars give the same token: is a scalar clipped, squashed or periodic?"
