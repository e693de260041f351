"""The checkers of an attention: the library's and right answers in several styles pass, and every
wrong answer is told what is wrong with it."""

import math
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.attention import AbstractAttention, SoftmaxAttention
from tql.contracts.attention import check_attention, check_dot_product_attention
from tql.contracts.contract import Wrong
from tql.layers import Linear, lecun_normal
from tql.variants.qk_norm import QKNorm
from tql.variants.softcap import Softcap

HERE = Path(__file__).parent
sg, softmax = jax.lax.stop_gradient, jax.nn.softmax


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Given(AbstractAttention):
    """The maps of the exercise; `logits` and `mix` are functions of the attention."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    logits_by: object = eqx.field(static=True)
    mix_by: object = eqx.field(static=True)

    def __init__(self, d_model, heads, logits_by, mix_by, *, key):
        keys = jr.split(key, 4)
        make = lambda key: Linear(lecun_normal, d_model, d_model, key=key)
        self.query, self.key, self.value, self.out = (make(key) for key in keys)
        self.d_model, self.heads = d_model, heads
        self.logits_by, self.mix_by = logits_by, mix_by

    def logits(self, queries, x):
        return self.logits_by(self, queries, x)

    def mix(self, logits, x):
        return self.mix_by(self, logits, x)


def split(self, rows):
    """[heads, rows, d_head]."""
    return rows.reshape(len(rows), self.heads, -1).swapaxes(0, 1)


def joined(self, of_heads):
    """[rows, d_model]."""
    return of_heads.swapaxes(0, 1).reshape(-1, self.d_model)


def logits(self, queries, x, scale=None):
    scale = scale or math.sqrt(self.d_model // self.heads)
    return split(self, self.query(queries)) @ split(self, self.key(x)).swapaxes(1, 2) / scale


def mix(self, l, x, weights=softmax):
    return self.out(joined(self, weights(l) @ split(self, self.value(x))))


def make(logits_by=logits, mix_by=mix):
    """A class as the exercise asks for it."""
    return lambda d_model, heads, *, key: Given(d_model, heads, logits_by, mix_by, key=key)


# ---------------------------------------------------------------- right answers


def logits_by_loops(self, queries, x):
    d_head = self.d_model // self.heads
    Q, K = self.query(queries), self.key(x)
    rows = [
        [jnp.stack([jnp.dot(q[c : c + d_head], k[c : c + d_head]) for k in K]) for q in Q]
        for c in range(0, self.d_model, d_head)
    ]
    return jnp.stack([jnp.stack(row) for row in rows]) / np.sqrt(d_head)


def mix_by_loops(self, l, x):
    d_head, V = self.d_model // self.heads, self.value(x)
    parts = []
    for h in range(self.heads):
        e = jnp.exp(l[h] - l[h].max(axis=1, keepdims=True))
        parts.append(e / e.sum(axis=1, keepdims=True) @ V[:, h * d_head : (h + 1) * d_head])
    return self.out(jnp.hstack(parts))


def logits_by_vmap(self, queries, x):
    one = lambda q, k: jnp.dot(q, k) / (self.d_model / self.heads) ** 0.5
    pairs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return jax.vmap(pairs)(split(self, self.query(queries)), split(self, self.key(x)))


def mix_by_vmap(self, l, x):
    V = self.value(x).reshape(len(x), self.heads, -1)
    one_query = lambda row: jnp.concatenate(jax.vmap(lambda p, v: p @ v, (0, 1))(softmax(row), V))
    return self.out(jax.vmap(one_query, in_axes=1)(l))


def logits_by_einsum(self, queries, x):
    Q = self.query(queries).reshape(-1, self.heads, self.d_model // self.heads)
    K = self.key(x).reshape(-1, self.heads, self.d_model // self.heads)
    return jnp.einsum("mhd,nhd->hmn", Q / math.sqrt(Q.shape[-1]), K)


def mix_by_einsum(self, l, x):
    V = self.value(x).reshape(len(x), self.heads, -1)
    W = self.out.weight.reshape(self.d_model, self.heads, -1)
    return jnp.einsum("hmn,nhd,ohd->mo", jnp.exp(jax.nn.log_softmax(l)), V, W) + self.out.bias


class OfEquinox(AbstractAttention):
    """With Equinox's maps, one of them without a bias."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, key):
        k_query, k_key, k_value, k_out = jr.split(key, 4)
        self.query = eqx.nn.Linear(d_model, d_model, key=k_query)
        self.key = eqx.nn.Linear(d_model, d_model, use_bias=False, key=k_key)
        self.value = eqx.nn.Linear(d_model, d_model, key=k_value)
        self.out = eqx.nn.Linear(d_model, d_model, key=k_out)
        self.d_model, self.heads = d_model, heads

    def logits(self, queries, x):
        Q, K = jax.vmap(self.query)(queries), jax.vmap(self.key)(x)
        return split(self, Q) @ split(self, K).swapaxes(1, 2) / math.sqrt(self.d_model / self.heads)

    def mix(self, logits, x):
        return jax.vmap(self.out)(
            joined(self, softmax(logits) @ split(self, jax.vmap(self.value)(x)))
        )


RIGHT = {
    "library": SoftmaxAttention,
    "matmul": make(),
    "loops": make(logits_by_loops, mix_by_loops),
    "vmap": make(logits_by_vmap, mix_by_vmap),
    "einsum": make(logits_by_einsum, mix_by_einsum),
    "equinox": OfEquinox,
}


@pytest.mark.parametrize("Mine", RIGHT.values(), ids=RIGHT)
def test_right_answers_pass(Mine):
    check_attention(Mine)
    check_dot_product_attention(Mine)


@pytest.mark.parametrize("name", ["library", "einsum"])
def test_right_answers_pass_in_double_precision(x64, name):
    check_attention(RIGHT[name])
    check_dot_product_attention(RIGHT[name])


def test_the_library_passes_in_strict_numerics():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        check_attention(SoftmaxAttention)
        check_dot_product_attention(SoftmaxAttention)


def test_the_answer_passes(tmp_path):
    above, _, _ = (HERE / "answers" / "02_attention.py").read_text().partition("# %% Check")
    (tmp_path / "answer.py").write_text(above)
    Mine = runpy.run_path(str(tmp_path / "answer.py"))["Attention"]
    check_attention(Mine)
    check_dot_product_attention(Mine)


# Other attentions than scaled dot products.


class Mean(AbstractAttention):
    """Every token reads the plain mean of all."""

    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, key):
        self.d_model, self.heads = d_model, heads

    def logits(self, queries, x):
        return jnp.zeros((self.heads, len(queries), len(x)))

    def mix(self, logits, x):
        return jnp.broadcast_to(jnp.mean(x, axis=0), (logits.shape[1], self.d_model))


def sigmoid(self, l, x):
    return mix(self, l, x, weights=lambda l: jax.nn.sigmoid(l - jnp.log(l.shape[-1])))


VARIANTS = {
    "qk-norm": QKNorm,
    "softcap": Softcap,
    "softcap+qk-norm": lambda *sizes, key: Softcap(*sizes, inner=QKNorm, key=key),
    "mean": Mean,
    "sigmoid": make(mix_by=sigmoid),
    "log softmax": make(lambda *arguments: jax.nn.log_softmax(logits(*arguments))),
    "distance": make(
        lambda self, q, x: (
            -jnp.sum(
                (split(self, self.query(q))[:, :, None] - split(self, self.key(x))[:, None]) ** 2,
                -1,
            )
        )
    ),
}


@pytest.mark.parametrize("Mine", VARIANTS.values(), ids=VARIANTS)
def test_any_attention_fits_the_seam(Mine):
    check_attention(Mine)


@pytest.mark.parametrize("name", ["qk-norm", "mean", "distance"])
def test_they_are_no_scaled_dot_products(name):
    with pytest.raises(Wrong, match="no map `query`|the logits are wrong"):
        check_dot_product_attention(VARIANTS[name])


# ---------------------------------------------------------------- what does not fit the seam


class NoAttention:
    def __init__(self, d_model, heads, *, key):
        self.d_model, self.heads = d_model, heads


class OtherBuilt(SoftmaxAttention):
    def __init__(self, width):
        pass


def not_written(*arguments):
    raise NotImplementedError


def causal(cut):
    def masked(self, queries, x):
        l = logits(self, queries, x)
        return jnp.where(jnp.tril(jnp.ones(l.shape[1:], bool)), l, cut)

    return masked


def causal_mix(self, l, x):
    return mix(self, jnp.where(jnp.tril(jnp.ones(l.shape[1:], bool)), l, -1e9), x)


def first_rows(self, queries, x):
    """Right for m = n and for the first row."""
    return logits(self, x[: len(queries)], x)


def positions(self, queries, x):
    return logits(self, queries, x) + 0.3 * jnp.arange(len(x))


def naive(l):
    return jnp.exp(l) / jnp.sum(jnp.exp(l), -1, keepdims=True)


def over_queries(l):
    return softmax(l, axis=1)


def normed(self, queries, x):
    """The root of a sum of squares has no derivative at 0."""
    zero = jnp.linalg.norm(0.0 * queries, axis=1)
    return logits(self, queries, x) + zero[None, :, None]


def mean_over_queries(self, l, x):
    return mix(self, l - jnp.mean(l, axis=1, keepdims=True), x)


def only_whole(self, l, x):
    """Right for m = n alone."""
    return mix(self, l, x) if l.shape[1] == l.shape[2] else self.out(jnp.mean(x, 0)[None])


def with_if(self, queries, x):
    return logits(self, queries, x) * (1.0 if jnp.max(x) < 1e9 else 0.0)


def numpy_softmax(l):
    e = np.exp(np.asarray(l) - np.max(l, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


MISFITS = {
    "no class": (3.0, "must be a function"),
    "no attention": (NoAttention, "must inherit from AbstractAttention"),
    "other arguments": (OtherBuilt, r"OtherBuilt\(15, 3, key=key\) raised TypeError"),
    "logits not written": (make(not_written), r"logits\(.* is not written yet"),
    "mix not written": (make(mix_by=not_written), r"mix\(.* is not written yet"),
    "no heads": (make(lambda *a: logits(*a)[0]), "the heads are missing"),
    "heads second": (make(lambda *a: logits(*a).swapaxes(0, 1)), "head must be the first axis"),
    "keys first": (make(lambda *a: logits(*a).swapaxes(1, 2)), "queries and keys are exchanged"),
    "queries unused": (make(lambda self, q, x: logits(self, x, x)), "all rows of x are taken"),
    "x unused": (make(lambda self, q, x: logits(self, q, q)), "`queries` are taken as keys"),
    "first rows": (make(first_rows), "first row of x is taken as query"),
    "heads not joined": (
        make(mix_by=lambda self, l, x: (softmax(l) @ split(self, self.value(x))).swapaxes(0, 1)),
        "must be joined",
    ),
    "a vector": (
        make(mix_by=lambda *a: mix(*a)[0] if a[1].shape[1] == 1 else mix(*a)),
        "not a vector",
    ),
    "cut by -inf": (make(causal(-jnp.inf)), "not finite, as under a mask"),
    "cut by -1e9": (make(causal(-1e9)), "causal mask"),
    "cut in mix": (make(mix_by=causal_mix), "causal mask"),
    "positions": (make(positions), "depend on the order of the rows"),
    "over queries": (make(mix_by=lambda *a: mix(*a, weights=over_queries)), "over the queries"),
    "centred": (make(mix_by=mean_over_queries), "a query row alone reads otherwise"),
    "right for m = n": (make(mix_by=only_whole), r"wrong shape|reads otherwise"),
    "naive softmax": (make(mix_by=lambda *a: mix(*a, weights=naive)), "exp overflows"),
    "NaN gradient": (make(normed), "a gradient is not"),
    "if": (make(with_if), "branches on the value"),
    "numpy": (make(mix_by=lambda *a: mix(*a, weights=numpy_softmax)), "NumPy array"),
    "integers": (make(lambda *a: logits(*a).astype(int)), "wrong type"),
}


@pytest.mark.parametrize(("Mine", "words"), MISFITS.values(), ids=MISFITS)
def test_misfits_are_told_why(Mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_attention(Mine)


# ---------------------------------------------------------------- wrong values


def scaled(scale):
    return make(lambda self, q, x: logits(self, q, x, scale(self.d_model, self.heads)))


def logits_of(Q, K):
    """Logits of other queries and keys."""

    def other(self, q, x):
        root = math.sqrt(self.d_model // self.heads)
        return split(self, Q(self, q, x)) @ split(self, K(self, q, x)).swapaxes(1, 2) / root

    return make(other)


Q, K = (lambda self, q, x: self.query(q)), (lambda self, q, x: self.key(x))


def interleaved(self, q, x):
    cut = lambda rows: rows.reshape(len(rows), -1, self.heads).transpose(2, 0, 1)
    root = math.sqrt(self.d_model // self.heads)
    return cut(self.query(q)) @ cut(self.key(x)).swapaxes(1, 2) / root


def scrambled(self, q, x):
    cut = lambda rows: rows.reshape(self.heads, len(rows), -1)
    root = math.sqrt(self.d_model // self.heads)
    return cut(self.query(q)) @ cut(self.key(x)).swapaxes(1, 2) / root


def not_cut(self, q, x):
    l = self.query(q) @ self.key(x).T / math.sqrt(self.d_model // self.heads)
    return jnp.broadcast_to(l, (self.heads, *l.shape))


WRONG_LOGITS = {
    "no scale": (scaled(lambda d, heads: 1.0), "not divided by the root of d_head"),
    "root of d_model": (scaled(lambda d, heads: math.sqrt(d)), "divided by the root of d_model"),
    "d_head": (scaled(lambda d, heads: d // heads), "divided by d_head; it must be its root"),
    "times the root": (scaled(lambda d, heads: (d / heads) ** -0.5), "multiplied by the root"),
    "root of heads": (scaled(lambda d, heads: heads**0.5), "the number of heads"),
    "root of 32": (scaled(lambda d, heads: 32**0.5), "root of 32"),
    "right for d_head 3": (scaled(lambda d, heads: 3**0.5), "logits are wrong"),
    "sign": (scaled(lambda d, heads: -math.sqrt(d // heads)), "wrong sign"),
    "softmax": (make(lambda *a: softmax(logits(*a))), "softmax is taken already"),
    "over queries": (make(lambda *a: softmax(logits(*a), 1)), "already, and over the queries"),
    "log softmax": (make(lambda *a: jax.nn.log_softmax(logits(*a))), "logarithm of the softmax"),
    "exchanged": (
        logits_of(lambda self, q, x: self.key(q), lambda self, q, x: self.query(x)),
        "query and key are exchanged",
    ),
    "one map": (logits_of(Q, lambda self, q, x: self.query(x)), "keys are made by the map query"),
    "value as key": (logits_of(Q, lambda self, q, x: self.value(x)), "keys are made by the map v"),
    "no key": (logits_of(Q, lambda self, q, x: x), "the map key is left out"),
    "no maps": (logits_of(lambda self, q, x: q, lambda self, q, x: x), "are left out"),
    "no bias": (
        logits_of(
            lambda self, q, x: q @ self.query.weight.T, lambda self, q, x: x @ self.key.weight.T
        ),
        "biases of the maps are left out",
    ),
    "transposed": (
        logits_of(
            lambda self, q, x: q @ self.query.weight + self.query.bias,
            lambda self, q, x: x @ self.key.weight + self.key.bias,
        ),
        "matrices are transposed",
    ),
    "interleaved": (make(interleaved), "heads are cut in the wrong axis"),
    "scrambled": (make(scrambled), "reshape mixes up rows and heads"),
    "not cut": (make(not_cut), "the heads are not cut"),
    "query stopped": (logits_of(lambda *a: sg(Q(*a)), K), "no gradient reaches the map `query`"),
    "key stopped": (logits_of(Q, lambda *a: sg(K(*a))), "no gradient reaches the map `key`"),
    "weights stopped": (make(lambda *a: sg(logits(*a))), "no gradient reaches the map `query`"),
    "x stopped": (
        logits_of(Q, lambda self, q, x: self.key(sg(x))),
        "the gradient of `x` is wrong",
    ),
}


def weighted(weights):
    return make(mix_by=lambda *a: mix(*a, weights=weights))


def mix_values(V, out=lambda self, read: self.out(read)):
    """What is read if values or the output are others."""
    return make(
        mix_by=lambda self, l, x: out(self, joined(self, softmax(l) @ split(self, V(self, x))))
    )


V = lambda self, x: self.value(x)


def joined_badly(self, l, x):
    """Right for one query, and for one head."""
    return self.out((softmax(l) @ split(self, self.value(x))).reshape(-1, self.d_model))


def joined_interleaved(self, l, x):
    read = softmax(l) @ split(self, self.value(x))
    return self.out(read.transpose(1, 2, 0).reshape(-1, self.d_model))


def values_interleaved(self, l, x):
    V = self.value(x).reshape(len(x), -1, self.heads).transpose(2, 0, 1)
    return self.out((softmax(l) @ V).transpose(1, 2, 0).reshape(-1, self.d_model))


def residual(self, l, x):
    return mix(self, l, x) + (x if l.shape[1] == len(x) else 0)


def hardened(l):
    return jax.nn.one_hot(jnp.argmax(l, axis=-1), l.shape[-1])


WRONG_READS = {
    "no softmax": (weighted(lambda l: l), "softmax is missing"),
    "over queries": (weighted(over_queries), "softmax is over the queries"),
    "over heads": (weighted(lambda l: softmax(l, axis=0)), "softmax is over the heads"),
    "over all": (weighted(lambda l: softmax(l, axis=(0, 1, 2))), "over all numbers at once"),
    "over both": (weighted(lambda l: softmax(l, axis=(1, 2))), "over queries and keys"),
    "twice": (weighted(lambda l: softmax(softmax(l))), "softmax is taken twice"),
    "exp alone": (weighted(jnp.exp), "not divided by their sum"),
    "sigmoid": (weighted(jax.nn.sigmoid), "come from a sigmoid"),
    "hard": (weighted(hardened), "only the key with the largest logit"),
    "uniform": (weighted(lambda l: jnp.ones_like(l) / l.shape[-1]), "all keys are read evenly"),
    "scaled twice": (
        make(mix_by=lambda self, l, x: mix(self, l / math.sqrt(self.d_model // self.heads), x)),
        "once more",
    ),
    "one head": (weighted(lambda l: softmax(l[:1])), "the weights of the first"),
    "heads averaged": (weighted(lambda l: softmax(l).mean(0, keepdims=True)), "same weights"),
    "causal": (make(mix_by=causal_mix), "causal mask"),
    "clipped": (weighted(lambda l: softmax(jnp.clip(l, -6, 6))), "must not be cut"),
    "naive": (weighted(naive), "exp overflows"),
    "no out": (mix_values(V, lambda self, read: read), "map out is left out"),
    "no bias of out": (mix_values(V, lambda self, r: r @ self.out.weight.T), "bias of the map out"),
    "out transposed": (
        mix_values(V, lambda self, r: r @ self.out.weight + self.out.bias),
        "matrix of the map out is transposed",
    ),
    "no value": (mix_values(lambda self, x: x), "map value is left out"),
    "key as value": (mix_values(lambda self, x: self.key(x)), "made by the map key"),
    "no bias of value": (mix_values(lambda self, x: x @ self.value.weight.T), "of the map value"),
    "value for out": (mix_values(V, lambda self, r: self.value(r)), "where the map out belongs"),
    "joined badly": (make(mix_by=joined_badly), "put together in the wrong order"),
    "joined interleaved": (make(mix_by=joined_interleaved), "heads are interleaved"),
    "values interleaved": (make(mix_by=values_interleaved), "values are cut in the wrong axis"),
    "residual": (make(mix_by=residual), "x is added; the block does that"),
    "out stopped": (mix_values(V, lambda self, r: sg(self.out)(r)), "reaches the map `out`"),
    "value stopped": (mix_values(lambda self, x: sg(V(self, x))), "reaches the map `value`"),
    "softmax stopped": (weighted(lambda l: sg(softmax(l))), "reaches the map `query`"),
}
WRONG = {f"logits {name}": pair for name, pair in WRONG_LOGITS.items()}
WRONG |= {f"mix {name}": pair for name, pair in WRONG_READS.items()}


@pytest.mark.parametrize(("Mine", "words"), WRONG.values(), ids=WRONG)
def test_wrong_values_are_told_why(Mine, words):
    with pytest.raises(Wrong, match=f"(?s){words}"):
        check_dot_product_attention(Mine)
