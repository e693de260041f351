r"""Checks the entropy of an attention row: its values, its gradient, and both under collapse."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tql.contracts.contract import Wrong, call, compare, finite, must_be_function, numbers

SMALL = np.log([2.0, 3.0, 7.0])
"""The logits of most examples; their softmax is 1/6, 1/4, 7/12."""

ROWS = {
    "the values are right for three keys and wrong for five": np.array([0.3, -1.0, 2.1, 0.0, -0.7]),
    "a row of one key has entropy 0, whatever its logit": np.array([0.4]),
    "equal logits give ln n": np.zeros(5),
    "the values are right for few keys and wrong for 11": 4 * np.sin(np.arange(11.0)),
}
"""Rows of other sizes, by what a wrong value says."""

UNDERFLOW = ([0.0, 0.0, -110.0, 0.0, 0.0], [0.0, -200.0, 3.0, 0.0, -500.0], [0.0, -1000.0, -1000.0])
"""Rows in which probabilities are 0 in float32."""

OVERFLOW = (
    *([0.0, 1000.0, 0.0], [-1000.0, 0.0, -1000.0], [0.0, 3.0, -1e4, 1e4, 0.0]),
    *([1e4] * 5, [-1e4] * 5, list(SMALL + 100), list(SMALL - 200)),
)
"""Rows that are right only if the largest logit is taken off before exp."""


def check_row_entropy(mine: Any, unit: float = 1.0) -> None:
    """`mine(l)` must be the entropy of softmax(l) for the logits `l [n]` of one row, in units of
    `unit` nats, to rounding and with its gradient, for any n and for any size of the logits.

    Raises `Wrong` for the first mistake."""
    must_be_function(mine, "row_entropy")
    with jax.default_matmul_precision("highest"):
        _check_example(mine, unit)
        for suspect, l in ROWS.items():
            compare(_value(mine, l), entropy(l) / unit, example=_said(l), otherwise=suspect)
        _check_large_logits(mine, unit)
        slope = jax.jit(jax.grad(mine))  # compiled once for all rows of one length
        _check_gradient(slope, unit)
        _check_gradient_under_collapse(slope, unit)
        _check_transformations(mine, unit)
        _check_double_precision(mine, unit)


# ---------------------------------------------------------------- the truth, in float64


def softmax(l: Any) -> np.ndarray:
    l = np.asarray(l, np.float64)
    e = np.exp(l - l.max())
    return e / e.sum()


def entropy(l: Any) -> float:
    r"""$-\sum_j p_j \ln p_j$ in nats; a term with p = 0 is 0."""
    return -sum(p * math.log(p) for p in softmax(l) if p > 0)


def gradient(l: Any) -> np.ndarray:
    r"""$\partial H / \partial l_j = -p_j (l_j - \sum_k p_k l_k)$ in nats."""
    p, l = softmax(l), np.asarray(l, np.float64)
    l = l - l.max()
    return -p * (l - p @ l)


# ---------------------------------------------------------------- values


def _said(l: Any, function: str = "row_entropy") -> str:
    """A call in words."""
    shown = ", ".join(f"{value:.4g}" for value in l[:4])
    return f"{function}([{shown}])" if len(l) <= 4 else f"{function}([{shown}, ...]), n = {len(l)}"


def _value(mine: Callable[..., Any], l: Any) -> Any:
    return call(mine, jnp.asarray(l, jnp.float32), example=_said(l))


def _check_example(mine: Callable[..., Any], unit: float) -> None:
    """Type, shape and values of the smallest example."""
    got, example = _value(mine, SMALL), _said(SMALL)
    numbers(got, (), example)
    if np.asarray(got).dtype.itemsize < 4:
        raise Wrong(f"{example} has only half the digits: expected float32, got {got.dtype}.")
    nats, H = _wrong_answers(), entropy(SMALL)
    mistakes = {words: answer / unit for words, answer in nats.items()}
    if unit != 1:
        mistakes["the entropy is in nats: divide it by UNIT"] = H
        mistakes["the entropy is multiplied by UNIT: divide it"] = H * unit
        mistakes |= {f"{words} (and it is not in UNIT)": answer for words, answer in nats.items()}
    compare(got, H / unit, example=example, mistakes=mistakes)


def _wrong_answers() -> dict[str, float]:
    """In nats, for the smallest example."""
    l, p, H, n = SMALL, softmax(SMALL), entropy(SMALL), len(SMALL)
    log_Z, sigmoid = math.log(np.exp(l).sum()), 1 / (1 + np.exp(-l))
    return {
        "the sign is wrong, because entropy is never negative": -H,
        "this is the mean over the keys; entropy is the sum": H / n,
        "the logarithm has base 2, so this is in bits": H / math.log(2),
        "the logarithm has base 10": H / math.log(10),
        "this is divided by ln n": H / math.log(n),
        "this is e^H, the effective number of tokens": math.exp(H),
        "this is ln n - H, the distance to the uniform row": math.log(n) - H,
        "this is ln Z alone; the mean of the logits under p is missing": log_Z,
        "this is the mean of the logits under p; ln Z is missing": p @ l,
        "ln Z is missing: the logits are not the logarithms of p": -p @ l,
        "the mean of the logits under p has the wrong sign": log_Z + p @ l,
        "the logits are weighted equally; their mean must be that under p": log_Z - l.mean(),
        "the logits are summed without their probabilities": log_Z - l.sum(),
        "softmax is missing: the logits are taken for probabilities": -l @ np.log(l),
        "exp is not divided by its sum": -np.exp(l) @ l,
        "softmax is taken twice": entropy(p),
        "the probabilities come from a sigmoid; a row needs softmax": -sigmoid @ np.log(sigmoid),
        "the probabilities are missing: this is the sum of -ln p": -np.log(p).sum(),
        "this is the mean of -ln p with equal weights": -np.log(p).mean(),
        "this is -ln of the largest probability": -math.log(p.max()),
        "this is -ln of the sum of p^2, another entropy": -math.log(p @ p),
        "this is 1 - the sum of p^2, which is no entropy in nats": 1 - p @ p,
    }


def _check_large_logits(mine: Callable[..., Any], unit: float) -> None:
    zero = (
        "a probability is 0 here in float32, and 0 log 0 is NaN: take ln p from the logits, with "
        "the largest logit taken off before exp"
    )
    large = "exp overflows or underflows here: take the largest logit off first"
    for suspect, rows in ((zero, UNDERFLOW), (large, OVERFLOW)):
        for l in rows:
            got = _value(mine, l)
            finite(got, (), example=_said(l), suspect=suspect)
            _near(got, entropy(l) / unit, l, _said(l), unit)


def _near(got: Any, expected: Any, l: Any, example: str, unit: float) -> None:
    """Without asking for more digits than float32 has left at logits of this size."""
    tolerance = 1e-4 + 2e-6 * np.max(np.abs(l)) * max(1, 1 / unit)
    otherwise = "the result is wrong as soon as a probability underflows to 0"
    if np.ptp(l) < 2:
        otherwise = "the result must stay as it is when all logits move by the same amount"
    compare(got, expected, example=example, otherwise=otherwise, tolerance=tolerance)


# ---------------------------------------------------------------- the gradient


def _gradient(slope: Callable[..., Any], l: Any) -> Any:
    return call(slope, jnp.asarray(l, jnp.float32), example=_said(l, "grad(row_entropy)"))


def _check_gradient(slope: Callable[..., Any], unit: float) -> None:
    p, true = softmax(SMALL), gradient(SMALL)
    mistakes = {
        "the values are right, but the gradient is 0: something stops it": 0 * true,
        "the values are right, but the gradient has the wrong sign": -true,
        "the values are right, but the gradient is that of ln Z alone": p,
        "the values are right, but the gradient does not pass through ln Z": true - p,
    }
    mistakes = {words: answer / unit for words, answer in mistakes.items()}
    otherwise = "the values are right, but the gradient is wrong"
    nan = "the values are right, but the gradient is NaN"
    rows = [SMALL, *ROWS.values()]
    for l in rows:
        example = _said(l, "grad(row_entropy)")
        got = _gradient(slope, l)
        finite(got, np.shape(l), example=example, suspect=nan)
        known = mistakes if len(l) == 3 else {}
        expected = gradient(l) / unit
        compare(got, expected, example=example, mistakes=known, otherwise=otherwise)


def _check_gradient_under_collapse(slope: Callable[..., Any], unit: float) -> None:
    nan = (
        "the value is right, but its gradient is NaN under collapse: the derivative of p log p is "
        "infinite at p = 0, and jnp.where does not hide it"
    )
    for l in (*UNDERFLOW, *OVERFLOW):
        example = _said(l, "grad(row_entropy)")
        got = _gradient(slope, l)
        finite(got, np.shape(l), example=example, suspect=nan)
        _near(got, gradient(l) / unit, l, example, unit)


# ---------------------------------------------------------------- inside other programs


def _check_transformations(mine: Callable[..., Any], unit: float) -> None:
    rows = np.array([SMALL, 2 * SMALL[::-1], [0.0, -1000.0, 0.0]])
    H = [entropy(l) / unit for l in rows]
    slope = [gradient(l) / unit for l in rows]
    for transformed, argument, expected, name in (
        (jax.jit(mine), rows[0], H[0], "jit(row_entropy)"),
        (jax.vmap(mine), rows, H, "vmap(row_entropy)"),
        (jax.jit(jax.vmap(jax.grad(mine))), rows, slope, "jit(vmap(grad(row_entropy)))"),
    ):
        example = f"{name} of {'three rows' if argument.ndim == 2 else 'one row'} with n = 3"
        got = call(transformed, jnp.asarray(argument, jnp.float32), example=example)
        compare(got, expected, example=example, otherwise="the result is right only without it")


def _check_double_precision(mine: Callable[..., Any], unit: float) -> None:
    """In float64 an epsilon shows. A function that computes in float32 all the same is let go."""
    for others in (-19.5, -22.0, -40.0):
        l = np.r_[0.0, np.full(306, others)]
        with jax.enable_x64(True):
            try:
                got = np.asarray(mine(jnp.asarray(l, jnp.float64)))
            except Exception:
                return
        expected = entropy(l) / unit
        if got.dtype == np.float64 and not abs(got - expected) < 1e-12 / unit + 1e-6 * expected:
            raise Wrong(
                "something is added to the probabilities, or they are bounded from below, and this "
                f"moves the result: leave the epsilon out. {_said(l)} in float64: expected "
                f"{expected:.8g}, got {got:.8g}."
            )
