"""The checker of the entropy of a row: right answers in several styles pass, and every wrong answer
is told what is wrong with it."""

import math
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import entr, xlogy

from tql.attention import row_entropy
from tql.contracts.contract import Wrong
from tql.contracts.entropy import check_row_entropy, entropy, gradient

HERE = Path(__file__).parent
sg, softmax, logsumexp = jax.lax.stop_gradient, jax.nn.softmax, jax.nn.logsumexp


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_truth_by_hand():
    l = np.log([1.0, 1.0, 2.0])
    assert entropy(l) == pytest.approx(1.5 * math.log(2))
    mean = math.log(2) / 2
    np.testing.assert_allclose(gradient(l), [mean / 4, mean / 4, -mean / 2])
    assert entropy(np.array([0.0, -1e4])) == 0
    np.testing.assert_array_equal(gradient(np.array([0.0, -1e4])), [0, 0])


# ---------------------------------------------------------------- right answers


def short(l):
    """The formula of the walkthrough, which loses digits at large logits."""
    return logsumexp(l) - jnp.sum(softmax(l) * l)


def loop(l):
    largest = l[0]
    for x in l[1:]:
        largest = jnp.maximum(largest, x)
    Z = 0.0
    for x in l:
        Z = Z + jnp.exp(x - largest)
    H = jnp.zeros(())
    for x in l:
        log_p = x - largest - jnp.log(Z)
        H -= jnp.exp(log_p) * log_p
    return H


def double_where(l):
    p = softmax(l)
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))


def vmap_inside(l):
    return -jnp.sum(jax.vmap(lambda log_p: jnp.exp(log_p) * log_p)(jax.nn.log_softmax(l)))


def fori_loop(l):
    """With a carry in float32, which raises in float64."""
    log_p = jax.nn.log_softmax(l)
    body = lambda j, H: H - jnp.exp(log_p[j]) * log_p[j]
    return jax.lax.fori_loop(0, len(l), body, jnp.float32(0))


def own_gradient(l):
    @jax.custom_jvp
    def H(l):
        return short(l)

    @H.defjvp
    def _(primals, tangents):
        (l,), (dl,) = primals, tangents
        p = softmax(l)
        return H(l), -jnp.sum(p * (l - jnp.sum(p * l)) * dl)

    return H(l)


RIGHT = {
    "library": row_entropy,
    "short": short,
    "einsum": lambda l: logsumexp(l) - jnp.einsum("n,n->", softmax(l), l),
    "log_softmax": lambda l: -jnp.sum(softmax(l) * jax.nn.log_softmax(l)),
    "loop": loop,
    "double where": double_where,
    "vmap inside": vmap_inside,
    "fori_loop": fori_loop,
    "own gradient": own_gradient,
    "compiled": jax.jit(row_entropy),
    "equinox": eqx.filter_jit(row_entropy),
    "always float32": lambda l: row_entropy(l.astype(jnp.float32)),
    "log p stopped, which changes nothing": lambda l: (
        -jnp.sum(softmax(l) * sg(jax.nn.log_softmax(l)))
    ),
    "any axes": lambda l: -jnp.sum(jnp.exp(jax.nn.log_softmax(l)) * jax.nn.log_softmax(l), axis=-1),
}


@pytest.mark.parametrize("mine", RIGHT.values(), ids=RIGHT)
def test_right_answers_pass(mine):
    check_row_entropy(mine)


@pytest.mark.parametrize("unit", [math.log(2), 0.1, 7.0])
def test_in_other_units(unit):
    check_row_entropy(lambda l: row_entropy(l) / unit, unit)


@pytest.mark.parametrize("name", ["library", "short", "log_softmax"])
def test_right_answers_pass_in_double_precision(x64, name):
    check_row_entropy(RIGHT[name])


@pytest.mark.parametrize("name", ["library", "log_softmax"])
def test_right_answers_pass_in_strict_numerics(name):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        check_row_entropy(RIGHT[name])


def test_the_answer_passes(tmp_path):
    above, _, _ = (HERE / "answers" / "01_entropy.py").read_text().partition("# %% Check")
    (tmp_path / "answer.py").write_text(above)
    names = runpy.run_path(str(tmp_path / "answer.py"))
    check_row_entropy(names["row_entropy"], names["UNIT"])


# ---------------------------------------------------------------- wrong answers


def textbook(l, eps=0.0):
    p = softmax(l)
    return -jnp.sum(p * jnp.log(p + eps))


def where(l):
    p = softmax(l)
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0.0))


def at_least(l, bound):
    p = softmax(l)
    return -jnp.sum(p * jnp.log(jnp.maximum(p, bound)))


def no_shift(l):
    e = jnp.exp(l)
    return jnp.log(jnp.sum(e)) - jnp.sum(e / jnp.sum(e) * l)


def first_shift(l):
    return no_shift(l - l[0])


def with_numpy(l):
    p = np.exp(l - np.max(l))
    p = p / p.sum()
    return -np.sum(p[p > 0] * np.log(p[p > 0]))


def with_if(l):
    return row_entropy(l) if jnp.max(l) < 1e9 else 0.0 * l[0]


def with_math(l):
    return jnp.log(2.0) * 0 + row_entropy(l) * math.exp(0 * l[0])


def not_written(l):
    raise NotImplementedError


def last_missing(l):
    p = softmax(l)
    return -jnp.sum(p[:3] * jax.nn.log_softmax(l)[:3])


def rounded(l):
    return jnp.round(row_entropy(l) * 1e5) / 1e5


WRONG = {
    "not written": (not_written, "not written yet"),
    "no function": (3.0, "must be a function"),
    "a row": (lambda l: -softmax(l) * jax.nn.log_softmax(l), r"wrong shape: expected \(\)"),
    "an axis kept": (lambda l: row_entropy(l)[None], r"wrong shape: expected \(\), got \(1,\)"),
    "integers": (lambda l: row_entropy(l).astype(int), "wrong type"),
    "half precision": (lambda l: row_entropy(l).astype(jnp.float16), "half the digits"),
    "sign": (lambda l: -row_entropy(l), "sign is wrong"),
    "mean": (lambda l: row_entropy(l) / len(l), "mean over the keys"),
    "bits": (lambda l: row_entropy(l) / jnp.log(2), "base 2"),
    "over ln n": (lambda l: row_entropy(l) / jnp.log(len(l)), "divided by ln n"),
    "e^H": (lambda l: jnp.exp(row_entropy(l)), "effective number of tokens"),
    "ln Z": (logsumexp, "ln Z alone"),
    "no ln Z": (lambda l: -jnp.sum(softmax(l) * l), "ln Z is missing"),
    "plus": (lambda l: logsumexp(l) + jnp.sum(softmax(l) * l), "mean of the logits.*wrong sign"),
    "equal weights": (lambda l: logsumexp(l) - jnp.mean(l), "weighted equally"),
    "no softmax": (lambda l: -jnp.sum(l * jnp.log(l)), "softmax is missing"),
    "softmax twice": (lambda l: row_entropy(softmax(l)), "softmax is taken twice"),
    "sigmoid": (lambda l: jnp.sum(entr(jax.nn.sigmoid(l))), "sigmoid"),
    "to uniform": (lambda l: jnp.log(len(l)) - row_entropy(l), "distance to the uniform"),
    "another entropy": (lambda l: -jnp.log(jnp.sum(softmax(l) ** 2)), "another entropy"),
    "right for three keys": (last_missing, "right for three keys"),
    "textbook": (textbook, "0 log 0 is NaN"),
    "where": (where, "gradient is NaN under collapse"),
    "xlogy": (lambda l: -jnp.sum(xlogy(softmax(l), softmax(l))), "NaN under collapse"),
    "entr": (lambda l: jnp.sum(entr(softmax(l))), "NaN under collapse"),
    "nan_to_num": (lambda l: jnp.nan_to_num(textbook(l)), "a probability underflows"),
    "no shift": (no_shift, "exp overflows or underflows"),
    "another shift": (first_shift, "exp overflows or underflows"),
    "clipped": (lambda l: short(jnp.clip(l, -20, 20)), "move by the same amount"),
    "clipped widely": (lambda l: short(jnp.clip(l, -90, 90)), "move by the same amount"),
    "p stopped": (lambda l: logsumexp(l) - jnp.sum(sg(softmax(l)) * l), "gradient is 0"),
    "all stopped": (lambda l: sg(row_entropy(l)), "gradient is 0"),
    "rounded": (rounded, "gradient is 0"),
    "half stopped": (lambda l: logsumexp(l) - sg(jnp.sum(softmax(l) * l)), "that of ln Z alone"),
    "ln Z stopped": (lambda l: sg(logsumexp(l)) - jnp.sum(softmax(l) * l), "through ln Z"),
    "epsilon": (lambda l: textbook(l, 1e-5), "values are wrong|epsilon|small number"),
    "small epsilon": (lambda l: textbook(l, 1e-8), "leave the epsilon out"),
    "smaller epsilon": (lambda l: textbook(l, 1e-12), "leave the epsilon out"),
    "bounded": (lambda l: at_least(l, 1e-9), "bounded from below"),
    "logits bounded": (lambda l: short(jnp.maximum(l - jnp.max(l), -30)), "bounded from below"),
    "numpy": (with_numpy, "NumPy array; use jax.numpy"),
    "if": (with_if, "branches on the value"),
    "math": (with_math, "Python number"),
    "float": (lambda l: float(row_entropy(l)), "Python number"),
}


@pytest.mark.parametrize(("mine", "words"), WRONG.values(), ids=WRONG)
def test_wrong_answers_are_told_why(mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_row_entropy(mine)


UNITS = {
    "nats": (row_entropy, "in nats: divide it by UNIT"),
    "multiplied": (lambda l: row_entropy(l) * math.log(2), "multiplied by UNIT"),
    "sign": (lambda l: -row_entropy(l) / math.log(2), "sign is wrong"),
    "sign and nats": (lambda l: -row_entropy(l), r"sign is wrong.*not in UNIT"),
    "last year's": (lambda l: row_entropy(l) / 0.5, "values are wrong"),
}


@pytest.mark.parametrize(("mine", "words"), UNITS.values(), ids=UNITS)
def test_wrong_units(mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_row_entropy(mine, math.log(2))
