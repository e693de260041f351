"""The checkers of a tokenizer: the library's and right answers in several styles pass, and every
wrong answer is told what is wrong with it."""

import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.contracts.contract import Wrong
from tql.contracts.tokenizer import check_keeps_magnitude, check_tokenizer
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class By(AbstractTokenizer):
    """Scalars and drawn vectors, made to tokens by the function `rows`."""

    w_s: jax.Array
    w_a: jax.Array
    p: jax.Array
    v: jax.Array
    rows: object = eqx.field(static=True)

    def __init__(self, n_s, n_a, d_model, rows, size, *, key):
        k_s, k_a, k_p, k_v = jr.split(key, 4)
        self.w_s, self.w_a = jr.normal(k_s, (8, d_model)), jr.normal(k_a, (8, d_model))
        self.p, self.v = size * jr.normal(k_p, (n_s + n_a, d_model)), jr.normal(k_v, (d_model,))
        self.rows = rows

    def __call__(self, s, a):
        return self.rows(self, s, a)


def make(rows, size=0.02):
    """A class; the vectors of places have this size."""
    return lambda *sizes, key: By(*sizes, rows, size, key=key)


def features(f, size=0.02):
    """A class whose tokens are maps of the features `f(z)` [number] of each scalar z."""

    def rows(self, s, a):
        F_s, F_a = (jnp.stack(f(z), axis=1) for z in (s, a))
        k = F_s.shape[1]
        x = jnp.concatenate([F_s @ self.w_s[:k], F_a @ self.w_a[:k]])
        return jnp.concatenate([self.v[None], x + self.p])

    return make(rows, size)


# ---------------------------------------------------------------- right answers

WAVES = np.pi / 4 * np.array([1.0, 2.0, 4.0, 8.0])


def by_loops(self, s, a):
    """Powers of a scalar, one token after the other."""
    power = lambda w, z: w[0] + z * w[1] + z**2 * w[2] + z**3 * w[3]
    rows = [self.v]
    for j in range(len(s)):
        rows.append(power(self.w_s, s[j]) + self.p[j])
    for i in range(len(a)):
        rows.append(power(self.w_a, a[i]) + self.p[len(s) + i])
    return jnp.stack(rows)


def by_vmap(self, s, a):
    one = lambda z, p: jnp.concatenate([jnp.cos(z * WAVES), jnp.sin(z * WAVES)]) @ self.w_s + p
    return jnp.concatenate([self.v[None], jax.vmap(one)(jnp.concatenate([s, a]), self.p)])


def halves(self, s, a):
    """Half of the channels are sines and half are cosines; the place is added."""
    half = len(self.v) // 2
    wave = jnp.exp(-jnp.arange(half) / half * 3)
    angle = jnp.outer(jnp.concatenate([s, a]), wave)
    return jnp.concatenate(
        [self.v[None], jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1) + 5 * self.p]
    )


def bins(self, s, a):
    """Each token is a mixture of eight vectors."""
    near = lambda z, c: jax.nn.softmax(-4 * ((z[:, None] - c) / (c[1] - c[0])) ** 2)
    x_s = near(s, jnp.linspace(-3.5, 3.5, 8)) @ self.w_s
    x_a = near(a, jnp.linspace(-1, 1, 8)) @ self.w_a
    return jnp.concatenate([self.v[None], jnp.concatenate([x_s, x_a]) + self.p])


RIGHT = {
    "waves": features(lambda z: [f(z * w) for w in WAVES for f in (jnp.sin, jnp.cos)]),
    "wide places": features(lambda z: [z], size=1.0),
    "a second vector": features(lambda z: [z, jnp.ones_like(z)]),
    "powers by loops": make(by_loops),
    "waves by vmap, one map for all": make(by_vmap),
    "half sines, half cosines": make(halves),
    "bins": make(bins),
    "normed itself": make(lambda self, s, a: jax.nn.standardize(by_loops(self, s, a), axis=1)),
}


@pytest.mark.parametrize("Mine", RIGHT.values(), ids=RIGHT)
def test_right_answers_pass(Mine):
    check_tokenizer(Mine)
    check_keeps_magnitude(Mine)


@pytest.mark.parametrize("name", ["waves", "powers by loops"])
def test_right_answers_pass_in_double_precision(x64, name):
    check_tokenizer(RIGHT[name])
    check_keeps_magnitude(RIGHT[name])


def test_the_papers_tokenizer_fits_the_seam_and_loses_magnitudes():
    check_tokenizer(ScalarTokenizer)
    with pytest.raises(Wrong, match="size of the scalar lies in the length.*s_1.*0.5 and 1"):
        check_keeps_magnitude(ScalarTokenizer)


def test_the_papers_tokenizer_passes_in_strict_numerics():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        check_tokenizer(ScalarTokenizer)


def test_the_answer_passes(tmp_path):
    above, _, _ = (HERE / "answers" / "03_tokenizer.py").read_text().partition("# %% Check")
    (tmp_path / "answer.py").write_text(above)
    Mine = runpy.run_path(str(tmp_path / "answer.py"))["Tokenizer"]
    check_tokenizer(Mine)
    check_keeps_magnitude(Mine)


# ---------------------------------------------------------------- what does not fit the seam


class NoTokenizer:
    def __init__(self, n_s, n_a, d_model, *, key):
        pass


class NotWritten(AbstractTokenizer):
    def __init__(self, n_s, n_a, d_model, *, key):
        raise NotImplementedError

    def __call__(self, s, a):
        raise NotImplementedError


class NotCallable(AbstractTokenizer):
    def __init__(self, n_s, n_a, d_model, *, key):
        pass


def after(change):
    """What comes of the right tokens."""
    return make(lambda self, s, a: change(by_loops(self, s, a), s, a))


def before(change):
    """The right tokens of other scalars."""
    return make(lambda self, s, a: by_loops(self, *change(s, a)))


def value_last(self, s, a):
    x = by_loops(self, s, a)
    return jnp.concatenate([x[1:], x[:1]])


def actions_first(self, s, a):
    x = by_loops(self, s, a)
    return jnp.concatenate([x[:1], x[1 + len(s) :], x[1 : 1 + len(s)]])


def no_places(self, s, a):
    return by_loops(eqx.tree_at(lambda t: t.p, self, 0 * self.p), s, a)


def place_in_the_mean(self, s, a):
    x = no_places(self, s, a)
    return x.at[1:].add(jnp.arange(len(x) - 1.0)[:, None])


def same_kinds(self, s, a):
    """The first state and the first action have one place."""
    p = self.p.at[len(s)].set(self.p[0])
    return by_loops(eqx.tree_at(lambda t: (t.p, t.w_a), self, (p, self.w_s)), s, a)


def noisy(self, s, a):
    return by_loops(self, s, a) + np.random.default_rng().normal()


def logarithm(self, s, a):
    return by_loops(self, jnp.log(jnp.abs(s)), a)


def root(self, s, a):
    return by_loops(self, jnp.sign(s) * jnp.sqrt(jnp.abs(s)), a)


def centred(s, a):
    return s - jnp.mean(s), a


def unit_length(s, a):
    return s, a / (jnp.linalg.norm(a) + 1e-3)


def bounded_length(s, a):
    """Changes nothing for scalars up to 3."""
    return s / jnp.maximum(jnp.max(jnp.abs(s)) / 3, 1), a


def up_to_here(s, a):
    return jnp.cumsum(s), a


def with_numpy(self, s, a):
    return by_loops(self, jnp.asarray(np.tanh(np.asarray(s))), a)


MISFITS = {
    "no class": (3.0, "must be a function"),
    "no tokenizer": (NoTokenizer, "must inherit from AbstractTokenizer"),
    "not written": (NotWritten, r"NotWritten\(5, 3, 32, key=key\) is not written yet"),
    "no call": (NotCallable, "abstract method"),
    "no [VALUE]": (after(lambda x, s, a: x[1:]), r"\[VALUE\] is missing"),
    "columns": (after(lambda x, s, a: x.T), "tokens must be rows"),
    "numbers": (after(lambda x, s, a: x[:, 0]), "must have d_model channels"),
    "a batch": (after(lambda x, s, a: x[None]), "axis for a batch"),
    "integers": (after(lambda x, s, a: x.astype(int)), "wrong type"),
    "random": (make(noisy), "the tokens are random"),
    "[VALUE] last": (make(value_last), r"\[VALUE\] must stand first"),
    "[VALUE] reads": (after(lambda x, s, a: x.at[0].add(s[1])), "row 0.*depends on s or a"),
    "[VALUE] reads a": (after(lambda x, s, a: x.at[0].add(jnp.sum(a))), "row 0.*depends on"),
    "actions first": (make(actions_first), "the order is.*s_1 is in row 4, not 1"),
    "reversed": (before(lambda s, a: (s[::-1], a)), "the order is.*s_1 is in row 5, not 1"),
    "centred": (before(centred), "s_1 also moves row"),
    "unit length": (before(unit_length), "a_1 also moves row"),
    "bounded length": (before(bounded_length), "s_1 also moves row"),
    "cumulative": (before(up_to_here), "s_1 also moves row 2, 3, 4, 5"),
    "normed over tokens": (after(lambda x, s, a: x.at[1:].add(-x[1:].mean(0))), "also moves row"),
    "a unused": (before(lambda s, a: (s, 0 * a)), "no token depends on a_1"),
    "last state unused": (before(lambda s, a: (s.at[-1].set(0), a)), "no token depends on s_5"),
    "no places": (make(no_places), "s_1 and s_2 cannot be told apart: "),
    "place in the mean": (make(place_in_the_mean), "cannot be told apart after the LayerNorm"),
    "kinds alike": (make(same_kinds), "s_1 and a_1 cannot be told apart"),
    "logarithm": (make(logarithm), "a token is not finite"),
    "root": (make(root), "tokens are finite, but a gradient is not"),
    "numpy": (make(with_numpy), "NumPy array; use jax.numpy"),
    "if": (
        make(lambda self, s, a: by_loops(self, jnp.where(s > 0, s, 2 * s), a if s[0] < 99 else s)),
        "branches on the value",
    ),
    "right for five states": (
        make(lambda self, s, a: by_loops(self, s[:5] if len(s) == 5 else s[::-1], a)),
        "n_s = 2",
    ),
}


@pytest.mark.parametrize(("Mine", "words"), MISFITS.values(), ids=MISFITS)
def test_misfits_are_told_why(Mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_tokenizer(Mine)


# ---------------------------------------------------------------- what loses magnitudes


def for_states_alone(self, s, a):
    x = by_loops(self, s, a)
    return x.at[1 + len(s) :].set(jnp.outer(a, self.w_a[0]) + self.p[len(s) :])


def in_the_mean(self, s, a):
    """The size is added to all channels."""
    z = jnp.concatenate([s, a])
    x = jnp.outer(jnp.sign(z), self.w_s[0]) + 3 * z[:, None] + self.p
    return jnp.concatenate([self.v[None], x])


def unit_tokens(self, s, a):
    """Tokens of one length, which the norm would give them anyway."""
    z = jnp.concatenate([s, a])
    x = jnp.outer(z, self.w_s[0]) + self.p
    return jnp.concatenate([self.v[None], x / jnp.linalg.norm(x, axis=1, keepdims=True)])


def only_large(self, s, a):
    """Bins for scalars beyond 1 alone."""
    return by_loops(self, jnp.where(jnp.abs(s) < 1.5, jnp.sign(s), s), a)


LOST = {
    "not written": (NotWritten, "not written yet"),
    "logarithmic length": (
        features(lambda z: [jnp.sign(z) * jnp.log1p(jnp.abs(z))]),
        "size of the scalar lies in the length or in the mean",
    ),
    "larger length": (features(lambda z: [100 * z]), "in the length or in the mean"),
    "in the mean": (make(in_the_mean), "in the length or in the mean"),
    "one length": (make(unit_tokens), "same token|in the length or in the mean"),
    "small places": (features(lambda z: [z], size=0.1), "in the length or in the mean"),
    "absolute": (features(lambda z: [jnp.abs(z), jnp.ones_like(z)]), "the sign .* is lost"),
    "squared": (features(lambda z: [z**2, jnp.ones_like(z)]), "the sign .* is lost"),
    "cosines alone": (features(lambda z: [jnp.cos(z * w) for w in WAVES]), "the sign .* is lost"),
    "clipped": (
        features(lambda z: [jnp.clip(z, -1, 1), jnp.ones_like(z)]),
        "clipped, squashed or periodic.*s_1.* for 1 and 2|clipped.*2 and 3",
    ),
    "squashed": (features(lambda z: [jnp.tanh(2 * z), jnp.ones_like(z)]), "clipped, squashed"),
    "periodic": (
        features(lambda z: [f(np.pi * z * w) for w in (1, 2, 4) for f in (jnp.sin, jnp.cos)]),
        "clipped, squashed or periodic",
    ),
    "sign": (features(lambda z: [jnp.sign(z), jnp.ones_like(z)]), "clipped, squashed"),
    "large ones alone": (make(only_large), "clipped.*0.5 and 1"),
    "states alone": (make(for_states_alone), "in the length.*of a_1"),
    "NaN": (make(lambda self, s, a: by_loops(self, jnp.log(s), a)), "not finite"),
}


@pytest.mark.parametrize(("Mine", "words"), LOST.values(), ids=LOST)
def test_tokenizers_that_lose_magnitudes_are_told_why(Mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_keeps_magnitude(Mine)
