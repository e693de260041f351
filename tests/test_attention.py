"""Attention by hand, the entropy of its rows from uniform to exact collapse, and what the block
checks of an attention or an MLP of one's own."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tql.attention import AbstractAttention, Block, SoftmaxAttention, group_entropy, row_entropy
from tql.critic import Critic


def by_hand(getkey, query, key, value, out, biases):
    """Square weights and biases of one number each."""
    d, heads = len(key), 2 if len(key) == 2 else 1
    attention = SoftmaxAttention(d, heads, key=getkey())
    maps = lambda t: (t.query, t.key, t.value, t.out)
    weights = tuple(jnp.array(w, float) for w in (query, key, value, out))
    attention = eqx.tree_at(lambda t: [m.weight for m in maps(t)], attention, weights)
    return eqx.tree_at(
        lambda t: [m.bias for m in maps(t)], attention, [jnp.full(d, b) for b in biases]
    )


def test_two_heads_by_hand(getkey):
    """Every query is (1, 1), keys are the tokens, values the tokens with their two channels
    exchanged, one channel per head.

    Head 0 has logits 0, ln 2, ln 5, so weights 1/8, 2/8, 5/8. Head 1 has 0, ln 3, 0, so 1/5, 3/5,
    1/5.
    """
    identity, zero, swap = np.eye(2), np.zeros((2, 2)), np.eye(2)[::-1]
    attention = by_hand(getkey, zero, identity, swap, identity, (1.0, 0.0, 0.0, 0.0))
    x = jnp.array([[0, 0], [math.log(2), math.log(3)], [math.log(5), 0]])
    logits = attention.logits(x, x)
    assert logits.shape == (2, 3, 3)
    for query in range(3):
        np.testing.assert_allclose(logits[0, query], [0, math.log(2), math.log(5)], rtol=1e-6)
        np.testing.assert_allclose(logits[1, query], [0, math.log(3), 0], rtol=1e-6)
    weights = [[0.125, 0.25, 0.625], [0.2, 0.6, 0.2]]
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 0], weights, rtol=1e-6)
    read = [math.log(3) / 4, 0.6 * math.log(2) + 0.2 * math.log(5)]
    np.testing.assert_allclose(attention.mix(logits, x), [read] * 3, rtol=1e-6)


def test_logits_are_scaled_by_the_root_of_a_heads_channels(getkey):
    """One head of 4 channels: q k = 4 * 3 * 5 = 60, over sqrt(4)."""
    biases = (0.0, 5.0, 0.0, 0.0)
    attention = by_hand(getkey, np.eye(4), np.zeros((4, 4)), np.eye(4), np.eye(4), biases)
    logits = attention.logits(jnp.full((1, 4), 3.0), jnp.zeros((7, 4)))
    np.testing.assert_allclose(logits, np.full((1, 1, 7), 30.0))


def test_rows_sum_to_one(getkey):
    """Where all values are the same (weight 0, bias 3), every mean of them is 3, whatever the
    logits."""
    biases = (0.0, 0.0, 3.0, 10.0)
    attention = by_hand(getkey, np.eye(2), np.eye(2), np.zeros((2, 2)), np.eye(2), biases)
    out = attention.mix(30 * jr.normal(getkey(), (2, 5, 11)), jr.normal(getkey(), (11, 2)))
    np.testing.assert_allclose(out, np.full((5, 2), 13.0), rtol=1e-6)


def test_heads_must_share_the_width(getkey):
    with pytest.raises(ValueError, match="d_model 7 is not a multiple of the number of heads 2"):
        SoftmaxAttention(7, 2, key=getkey())


def test_wrong_shapes_fail_at_the_door(getkey):
    attention = SoftmaxAttention(6, 2, key=getkey())
    with pytest.raises(TypeCheckError, match=r"(?s)'queries'.*f32\[3,5\].*\{self.d_model\}"):
        attention.logits(jnp.zeros((3, 5)), jnp.zeros((11, 6)))
    with pytest.raises(TypeCheckError, match=r"(?s)'x'.*f32\[11,6\].*n=7"):
        attention.mix(jnp.zeros((2, 3, 7)), jnp.zeros((11, 6)))


# ---------------------------------------------------------------- entropy of a row

N = 7
LOGITS = st.lists(st.floats(-30, 30), min_size=N, max_size=N)


@jax.jit
def entropy_and_gradient(l):
    return jax.value_and_grad(row_entropy)(l)


@given(LOGITS, st.floats(-1e4, 1e4))
@settings(max_examples=100, deadline=None)
def test_entropy_is_the_textbooks(row, shift):
    """In float64: -sum p log p, within [0, ln n], the same for logits moved together; gradient
    -p (l - <l>)."""
    with jax.enable_x64(True):
        H, gradient = map(np.asarray, entropy_and_gradient(jnp.array(row, jnp.float64)))
        shifted = np.asarray(entropy_and_gradient(jnp.array(row, jnp.float64) + shift)[0])
    p = ref.softmax(np.array(row))
    assert H == pytest.approx(ref.entropy_of_weights(p), abs=1e-12)
    assert -1e-12 <= H <= math.log(N) + 1e-12
    assert shifted == pytest.approx(H, abs=1e-9)
    np.testing.assert_allclose(gradient, -p * (np.array(row) - p @ np.array(row)), atol=1e-11)


@given(LOGITS)
@settings(max_examples=100, deadline=None)
def test_entropy_in_float32(row):
    H, _ = entropy_and_gradient(jnp.array(row, jnp.float32))
    assert H == pytest.approx(ref.entropy_of_weights(ref.softmax(np.array(row))), abs=3e-6)


def textbook(l):
    p = jax.nn.softmax(l)
    return -jnp.sum(p * jnp.log(p))


@pytest.mark.parametrize(
    "row", [[0, 1e4, 0, -1e4, 3, 0, 0], [0, -200, 0, 0, 0, 3, 0], [-1e30] * 6 + [0], [1e4] * 7]
)
def test_entropy_under_collapse(row):
    """Finite and right, with finite gradients, in float32."""
    H, gradient = entropy_and_gradient(jnp.array(row, jnp.float32))
    assert H == pytest.approx(ref.entropy_of_logits(np.array(row, float)), abs=1e-6)
    assert np.isfinite(gradient).all()
    p = ref.softmax(np.array(row, float))
    np.testing.assert_allclose(gradient, -p * (np.array(row) - p @ np.array(row)), atol=1e-5)


def test_the_textbook_form_fails_under_collapse():
    """The reason for the other one: as soon as one probability underflows it is 0 log 0, and so is
    its gradient."""
    row = jnp.array([0, -200, 0, 0, 0, 3, 0], jnp.float32)
    H, gradient = jax.value_and_grad(textbook)(row)
    assert np.isnan(H) and np.isnan(gradient).any()
    mild = jnp.array([0, -2, 0, 0, 0, 3, 0], jnp.float32)
    np.testing.assert_allclose(textbook(mild), row_entropy(mild), rtol=1e-5)


def test_entropy_of_groups_by_hand():
    """[VALUE] uniform in one head and collapsed in the other; of the other four queries, one looks
    at two tokens evenly."""
    logits = np.full((2, 5, 5), -1e4)
    logits[:, np.arange(5), np.arange(5)] = 0
    logits[0, 0] = 0
    logits[1, 3, 1] = 0
    expected = [math.log(5) / 2, math.log(2) / 8]
    np.testing.assert_allclose(group_entropy(jnp.array(logits, jnp.float32)), expected, rtol=1e-6)


# ---------------------------------------------------------------- the seam


class Mean(AbstractAttention):
    """Attention of one's own: every token reads the plain mean of all."""

    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def logits(self, queries, x):
        return jnp.zeros((self.heads, queries.shape[0], x.shape[0]))

    def mix(self, logits, x):
        return jnp.broadcast_to(jnp.mean(x, axis=0), (logits.shape[1], self.d_model))


def test_an_attention_of_ones_own(getkey):
    """Its entropy is ln n everywhere, and its critic reads the tokens all the same."""
    make = lambda d_model, heads, *, key: Mean(d_model, heads)
    critic = Critic(3, 2, d_model=4, heads=2, make_attention=make, key=getkey())
    q, logits = eqx.filter_jit(lambda c: c.with_attention(jnp.ones(3), jnp.ones(2)))(critic)
    H = jax.vmap(group_entropy)(logits)
    np.testing.assert_allclose(H, np.full((2, 2), math.log(6)), rtol=1e-6)
    moved = eqx.filter_jit(lambda c: c(jnp.ones(3), -jnp.ones(2)))(critic)
    assert np.abs(moved - q).max() > 1e-3


class Wrong(AbstractAttention):
    """The mean again, and then a mistake in one of the two methods."""

    mistake: str = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def logits(self, queries, x):
        l = jnp.zeros((self.heads, queries.shape[0], x.shape[0]))
        return {"one head": l[:1], "transposed": jnp.swapaxes(l, 0, 1)}.get(self.mistake, l)

    def mix(self, logits, x):
        out = jnp.broadcast_to(jnp.mean(x, axis=0), (logits.shape[1], self.d_model))
        return {"one row": out[:1], "one vector": out[0]}.get(self.mistake, out)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("one head", r"attention.logits\(queries, x\) returned shape \(1, 5, 5\).*\(2, 5, 5\)"),
        ("transposed", r"attention.logits\(queries, x\) returned shape \(5, 2, 5\).*\(2, 5, 5\)"),
        ("one row", r"attention.mix\(logits, x\) returned shape \(1, 6\).*\(5, 6\)"),
        ("one vector", r"attention.mix\(logits, x\) returned shape \(6,\).*\(5, 6\)"),
    ],
)
def test_what_an_attention_returns_is_checked(getkey, mistake, words):
    """By the block, which calls it. One row would be added to all rows in silence."""
    block = Block(Wrong(mistake, 6, 2), key=getkey())
    with pytest.raises(ValueError, match=words):
        block(jnp.zeros((5, 6)))
