"""What all checkers share: calls, comparisons, and the words of a message."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tql.contracts.contract import Wrong, call, close, compare, finite, numbers, words

# ---------------------------------------------------------------- calls


def test_a_call_returns_what_the_function_returns():
    assert call(lambda x, y: x + y, 2, 3, example="add(2, 3)") == 5


def not_written(x):
    raise NotImplementedError


def wrong_shape(x):
    return x @ jnp.ones(7)


CALLS = {
    "not written": (not_written, "f(x) is not written yet"),
    "another error": (wrong_shape, "f(x) raised TypeError: dot_general requires"),
    "too many arguments": (lambda: 1.0, "f(x) raised TypeError: "),
    "numpy": (jax.grad(lambda x: np.sum(np.asarray(x))), "NumPy array; use jax.numpy"),
    "if": (jax.jit(lambda x: x[0] if x[0] > 0 else x[1]), "use jnp.where in place of if"),
    "while": (jax.jit(lambda x: min(x[0], x[1])), "use jnp.where in place of if"),
    "float": (jax.jit(lambda x: float(x[0])), "turns a JAX array into a Python number"),
    "math": (jax.grad(lambda x: math.log(x[0])), "turns a JAX array into a Python number"),
    "item": (jax.jit(lambda x: x[0].item()), "turns a JAX array into a Python number"),
}


@pytest.mark.parametrize(("mine", "said"), CALLS.values(), ids=CALLS)
def test_an_error_becomes_one_sentence(mine, said):
    with pytest.raises(Wrong) as wrong:
        call(mine, jnp.ones(3), example="f(x)")
    message = str(wrong.value)
    assert said in message and "f(x)" in message and "\n" not in message and len(message) < 300


def test_what_stops_the_program_is_no_mistake():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted, example="f()")


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "got",
    [1.5, np.float32(1.5), np.float64(1.5), np.array(1.5), jnp.array(1.5), np.array(1.5, "<f2")],
)
def test_numbers_of_any_kind(got):
    result = numbers(got, (), "f(x)")
    assert result == 1.5 and result.dtype == np.float64


NUMBERS = {
    "nothing": (None, "f(x) gave NoneType; expected an array of shape (2,)"),
    "a list": ([1.0, 2.0], "f(x) gave list"),
    "an integer": (3, "f(x) gave int"),
    "one number": (1.0, "wrong shape: expected (2,), got ()"),
    "an axis too many": (jnp.ones((2, 1)), "wrong shape: expected (2,), got (2, 1)"),
    "integers": (jnp.ones(2, int), "wrong type: expected floats, got int32"),
    "truth values": (np.ones(2, bool), "wrong type: expected floats, got bool"),
    "complex": (np.ones(2, complex), "wrong type: expected floats, got complex128"),
    "bfloat16": (np.ones(2, ml_dtypes.bfloat16), "wrong type: expected floats, got bfloat16"),
}


@pytest.mark.parametrize(("got", "said"), NUMBERS.values(), ids=NUMBERS)
def test_what_is_no_array_of_floats_of_this_shape(got, said):
    with pytest.raises(Wrong) as wrong:
        numbers(got, (2,), "f(x)")
    assert said in str(wrong.value)


# ---------------------------------------------------------------- comparisons


def test_close_is_relative_and_absolute():
    assert close(1000.05, 1000.0) and close(5e-5, 0.0) and close([1.0, 2.0], [1.0, 2.00001])
    assert not close(1000.5, 1000.0) and not close(5e-4, 0.0)
    assert not close(np.nan, np.nan) and not close(np.inf, 1.0)


def test_what_is_right_is_passed_over():
    compare(jnp.ones(3), np.ones(3), example="f(x)", mistakes={"never": np.ones(3)})
    compare(1.00001, 1.0, example="f(x)")


MISTAKES = {"the sign is wrong": np.array([-1.0, -2.0]), "it is squared": np.array([1.0, 4.0])}
COMPARED = {
    "known": ([-1, -2], "the sign is wrong. f(x): expected [1, 2], got [-1, -2]."),
    "the other": ([1, 4], "it is squared. f(x): expected [1, 2], got [1, 4]."),
    "unknown": ([3, 2], "the values are wrong. f(x): expected [1, 2], got [3, 2]."),
    "half known": ([-1, 2], "the values are wrong. f(x): expected [1, 2], got [-1, 2]."),
    "NaN": ([np.nan, 2], "the result is not finite. f(x): expected [1, 2], got [nan, 2]."),
    "infinite": ([1, np.inf], "the result is not finite. f(x): expected [1, 2], got [1, inf]."),
}


@pytest.mark.parametrize(("got", "said"), COMPARED.values(), ids=COMPARED)
def test_the_message_names_the_suspect_and_shows_both(got, said):
    with pytest.raises(Wrong) as wrong:
        compare(jnp.array(got, float), [1.0, 2.0], example="f(x)", mistakes=MISTAKES)
    assert str(wrong.value) == said


def test_a_mistake_of_another_shape_is_no_suspect():
    mistakes = {"the mean is taken": 2.0, "it is a column": np.full((2, 1), 2.0)}
    with pytest.raises(Wrong, match=r"^my words\. f\(x\): expected \[1, 3\], got \[2, 2\]\.$"):
        compare(2 * jnp.ones(2), [1, 3], example="f(x)", mistakes=mistakes, otherwise="my words")


def test_a_shape_that_broadcasts_is_wrong():
    with pytest.raises(Wrong, match=r"expected \(2, 2\), got \(2,\)"):
        compare(jnp.ones(2), np.ones((2, 2)), example="f(x)")


def test_of_many_numbers_the_message_shows_where_they_differ_most():
    expected = np.zeros((2, 5))
    got = expected.copy()
    got[0, 1], got[1, 3] = 1.0, -2.0
    with pytest.raises(Wrong, match=r"expected 0, got -2 at \[1, 3\]\.$"):
        compare(got, expected, example="f(x)")
    got[0, 4] = np.nan
    with pytest.raises(Wrong, match=r"not finite\. f\(x\): expected 0, got nan at \[0, 4\]\.$"):
        compare(got, expected, example="f(x)")


def test_the_tolerance_can_be_chosen():
    compare(1.05, 1.0, example="f(x)", tolerance=0.1)
    with pytest.raises(Wrong):
        compare(1.00001, 1.0, example="f(x)", tolerance=1e-6)


def test_finite():
    finite(jnp.ones(2), (2,), example="f(x)", suspect="exp overflows")
    with pytest.raises(Wrong, match=r"exp overflows. f\(x\): expected finite numbers, got inf"):
        finite(np.array([1.0, np.inf]), (2,), example="f(x)", suspect="exp overflows")
    with pytest.raises(Wrong, match="wrong shape"):
        finite(jnp.ones(2), (), example="f(x)", suspect="exp overflows")


def test_words():
    assert words(1 / 3) == "0.3333" and words(np.array([1.0, 2e-7])) == "[1, 2e-07]"
    assert words(np.zeros((3, 3))) == "[0, 0, 0, 0, 0, 0, ...]"
