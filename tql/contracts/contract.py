"""What all checkers share: how an object is called, how its answer is compared, and what is said.

A checker returns None for a right object and raises `Wrong` for the first mistake that it finds.
It knows the true answer from a route of its own (loops in float64, or a closed form), and the
answers that usual mistakes give. So its message can name the mistake.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

TOLERANCE = 1e-4
"""Relative and absolute: float32 has seven digits, and a long sum loses two or three of them."""


class Wrong(AssertionError):
    """The first thing that is wrong with the object that was checked. The message names the
    suspect and gives a small example with what was expected and what came."""


def call(mine: Callable[..., Any], *arguments: Any, example: str) -> Any:
    """`mine(*arguments)`. Raises `Wrong` if that raises; `example` is the call in words."""
    try:
        return mine(*arguments)
    except NotImplementedError:
        raise Wrong(f"{example} is not written yet: it raises NotImplementedError.") from None
    except jax.errors.TracerArrayConversionError:
        raise Wrong(
            f"{example} cannot be differentiated or compiled, because it turns a JAX array into a "
            "NumPy array; use jax.numpy in place of numpy."
        ) from None
    except jax.errors.TracerBoolConversionError:
        raise Wrong(
            f"{example} cannot be differentiated or compiled, because it branches on the value of "
            "an array; use jnp.where in place of if."
        ) from None
    except jax.errors.ConcretizationTypeError:
        raise Wrong(
            f"{example} cannot be differentiated or compiled, because it turns a JAX array into a "
            "Python number (by float, int, .item or the module math); use jax.numpy."
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise Wrong(f"{example} raised {type(error).__name__}: {reason}") from error


def numbers(got: Any, shape: tuple[int, ...], example: str) -> np.ndarray:
    """`got` in float64. Raises `Wrong` unless it is an array of floats of this shape."""
    if isinstance(got, float):
        got = np.asarray(got)
    if not isinstance(got, jax.Array | np.ndarray | np.generic):
        raise Wrong(f"{example} gave {type(got).__name__}; expected an array of shape {shape}.")
    if got.shape != shape:
        raise Wrong(f"{example} has the wrong shape: expected {shape}, got {got.shape}.")
    if not np.issubdtype(got.dtype, np.floating):
        raise Wrong(f"{example} has the wrong type: expected floats, got {got.dtype}.")
    return np.asarray(got, np.float64)


def close(got: Any, expected: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether all numbers agree to the tolerance; NaN agrees with nothing."""
    return np.allclose(got, expected, rtol=tolerance, atol=tolerance)


def compare(
    got: Any,
    expected: Any,
    *,
    example: str,
    mistakes: Mapping[str, Any] = {},
    otherwise: str = "the values are wrong",
    tolerance: float = TOLERANCE,
) -> None:
    """Raises `Wrong` unless `got` has the shape of `expected`, its values, and floats.

    `mistakes` gives, by the sentence that names it, the answer to which a usual mistake leads. The
    first whose answer is `got` is the suspect; if none is, the message begins with `otherwise`."""
    expected = np.asarray(expected, np.float64)
    got = numbers(got, expected.shape, example)
    if close(got, expected, tolerance):
        return
    if not np.isfinite(got).all():
        otherwise = "the result is not finite"
    said = (words for words, answer in mistakes.items() if _is(got, answer, tolerance))
    suspect = next(said, otherwise)
    where, (shown_expected, shown_got) = _shown(expected, got)
    raise Wrong(f"{suspect}. {example}: expected {shown_expected}, got {shown_got}{where}.")


def _is(got: np.ndarray, answer: Any, tolerance: float) -> bool:
    return np.shape(answer) == got.shape and close(got, answer, tolerance)


def _shown(expected: np.ndarray, got: np.ndarray) -> tuple[str, tuple[str, str]]:
    """What the message shows of both: all of a few numbers, and of many numbers the one where they
    are farthest apart, with its place."""
    if expected.size <= 6:
        return "", (words(expected), words(got))
    distance = np.where(np.isfinite(got), np.abs(got - expected), np.inf)
    place = np.unravel_index(np.argmax(distance), expected.shape)
    index = ", ".join(str(i) for i in place)
    return f" at [{index}]", (words(expected[place]), words(got[place]))


def words(x: Any) -> str:
    """A few numbers in a line."""
    flat = np.ravel(np.asarray(x, np.float64))
    shown = ", ".join(f"{value:.4g}" for value in flat[:6])
    more = ", ..." if len(flat) > 6 else ""
    return shown if np.ndim(x) == 0 else f"[{shown}{more}]"


def must_be_function(mine: Any, name: str) -> None:
    """Raises `Wrong` unless `mine` can be called."""
    if not callable(mine):
        raise Wrong(f"{name} is a {type(mine).__name__}; it must be a function (or a callable).")


def finite(got: Any, shape: tuple[int, ...], *, example: str, suspect: str) -> None:
    """Raises `Wrong`, with the suspect in front, if a number of `got` is NaN or infinite."""
    got = numbers(got, shape, example)
    if not np.isfinite(got).all():
        raise Wrong(f"{suspect}. {example}: expected finite numbers, got {words(_first_bad(got))}.")


def _first_bad(got: np.ndarray) -> float:
    return float(got[~np.isfinite(got)][0])
