"""Variants of the critic by hand and by other routes, and the seams that they use."""

import math
from dataclasses import replace
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation

from tql.attention import AbstractBlock, Block, SoftmaxAttention
from tql.checkpoint import named_arrays
from tql.config import CriticConfig, Variant
from tql.critic import Critic
from tql.linear import Linear, decayed, lecun_normal
from tql.sigma_reparam import SigmaLinear, spectral_norm, with_sigma_reparam
from tql.tokenizer import ScalarTokenizer
from tql.variants import (
    GEGLUBlock,
    PostNormBlock,
    QKNormAttention,
    SoftcapAttention,
    SwiGLUBlock,
    make_critic,
    rms_norm,
    with_rms_norm,
)

NAMES = get_args(Variant)
N_S, N_A = 3, 2
SMALL = CriticConfig(d_model=10, heads=2, layers=2, ensemble=3)


def small(variant):
    return replace(SMALL, variant=variant)


def drawn(tree, seed=0):
    """The same tree, every array from a normal distribution: nothing is 0 or 1 by its start. Scales and sigmas too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape) / math.sqrt(x.shape[-1] if x.ndim else 1)), tree)


# ---------------------------------------------------------------- the pieces, by numpy


def test_rms_norm(x64):
    """Three numbers: the mean square of (1, 2, 2) is 3. The mean is not taken away, and there is no bias."""
    norm = rms_norm(3)
    assert [x.shape for x in jax.tree.leaves(norm)] == [(3,)]
    np.testing.assert_allclose(norm(jnp.array([1.0, 2, 2])), np.array([1, 2, 2]) / math.sqrt(3), rtol=1e-6)
    norm = eqx.tree_at(lambda n: n.weight, norm, jnp.array([1.0, 10, 100]))
    np.testing.assert_allclose(norm(jnp.array([1.0, 2, 2])), np.array([1, 20, 200]) / math.sqrt(3 + 1e-6), rtol=1e-14)
    small = np.array([1e-4, -2e-4, 3e-4])  # where 1e-6 in the root matters
    np.testing.assert_allclose(norm(jnp.array(small)), [1, 10, 100] * small / math.sqrt(14e-8 / 3 + 1e-6), rtol=1e-14)


def test_with_rms_norm_leaves_no_layer_norm(getkey):
    """In all that a critic can be made of; everything else stays as it was, bit for bit."""
    critic = Critic(N_S, N_A, d_model=10, heads=2, make_block=PostNormBlock, key=getkey())
    rms = with_rms_norm(critic)
    nodes = lambda tree, kind: [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]
    assert len(nodes(critic, eqx.nn.LayerNorm)) == len(nodes(rms, eqx.nn.RMSNorm)) == 2 * 4 + 1
    assert nodes(rms, eqx.nn.LayerNorm) == []
    before, after = named_arrays(critic), named_arrays(rms)
    assert set(before) - set(after) == {name for name in before if "norm.bias" in name}
    assert all(np.array_equal(before[name], after[name]) for name in after)


def test_qk_norm(x64, getkey):
    """Queries and keys of each head over their root mean square, times a scale that heads share; then 1 / sqrt(d_head)."""
    d, heads, m, n = 6, 2, 5, 7
    attention = drawn(QKNormAttention(d, heads, key=getkey()))
    rng = np.random.default_rng(1)
    rows, x = rng.normal(size=(m, d)), rng.normal(size=(n, d))
    affine = lambda linear, row: np.asarray(linear.weight) @ row + np.asarray(linear.bias)
    unit = lambda v, g: np.asarray(g) * v / math.sqrt(np.mean(v**2) + 1e-6)
    expected = np.zeros((heads, m, n))
    for h in range(heads):
        channels = slice(3 * h, 3 * h + 3)
        for i in range(m):
            q = unit(affine(attention.query, rows[i])[channels], attention.query_norm.weight)
            for j in range(n):
                k = unit(affine(attention.key, x[j])[channels], attention.key_norm.weight)
                expected[h, i, j] = q @ k / math.sqrt(3)
    np.testing.assert_allclose(attention.logits(jnp.array(rows), jnp.array(x)), expected, rtol=1e-12, atol=1e-14)


def test_qk_norm_bounds_logits_until_its_scales_grow(getkey):
    """At scale 1 no logit is beyond sqrt(d_head), however large the weights; values are left alone."""
    attention = QKNormAttention(10, 2, key=getkey())
    large = eqx.tree_at(lambda t: (t.query.weight, t.key.weight), attention, replace_fn=lambda w: 1e4 * w)
    x = jr.normal(getkey(), (11, 10))
    assert np.abs(large.logits(x, x)).max() <= math.sqrt(5) * (1 + 1e-5)
    without = SoftmaxAttention(10, 2, key=getkey())
    assert np.abs(eqx.tree_at(lambda t: t.key.weight, without, replace_fn=lambda w: 1e4 * w).logits(x, x)).max() > 1e3
    scaled = eqx.tree_at(lambda t: t.key_norm.weight, large, jnp.full(5, 3.0))
    np.testing.assert_allclose(scaled.logits(x, x), 3 * large.logits(x, x), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(scaled.mix(jnp.zeros((2, 11, 11)), x), SoftmaxAttention.mix(attention, jnp.zeros((2, 11, 11)), x))


@pytest.mark.parametrize("c", [1.5, 50.0])
def test_softcap(x64, getkey, c):
    """c tanh(l / c) of the plain logits, by numpy."""
    key = getkey()
    plain, capped = SoftmaxAttention(6, 2, key=key), SoftcapAttention(6, 2, c=c, key=key)
    rows, x = 30 * jr.normal(getkey(), (5, 6)), jr.normal(getkey(), (7, 6))
    l = np.asarray(plain.logits(rows, x))
    assert np.abs(l).max() > 3
    np.testing.assert_allclose(capped.logits(rows, x), c * (1 - 2 / (np.exp(2 * l / c) + 1)), rtol=1e-12, atol=1e-14)
    assert SoftcapAttention(6, 2, key=key).c == 50


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_a_cap_must_be_positive(getkey, c):
    with pytest.raises(ValueError, match="logits cannot be capped at .*; c must be above 0"):
        SoftcapAttention(6, 2, c=c, key=getkey())


@pytest.mark.parametrize(("make", "of_one"), [(SwiGLUBlock, 1 / (1 + math.exp(-1))), (GEGLUBlock, 0.8411919906082768)])
def test_gated_mlp_by_hand(x64, getkey, make, of_one):
    """Every gate 1 and every `up` 10, so each of 16 hidden channels is 10 act(1); silu(1) = 1 / (1 + 1/e), gelu(1) = 0.8412."""
    block = make(SoftmaxAttention(5, 1, key=getkey()), key=getkey())
    assert block.mlp_down.weight.shape == (5, 16)
    maps = lambda b: (b.mlp_gate.weight, b.mlp_gate.bias, b.mlp_up.weight, b.mlp_up.bias, b.mlp_down.weight, b.mlp_down.bias)
    z, one = jnp.zeros((16, 5)), jnp.ones(16)
    block = eqx.tree_at(maps, block, (z, one, z, 10 * one, jnp.ones((5, 16)), jnp.full(5, 7.0)))
    np.testing.assert_allclose(block.mlp(jnp.zeros((3, 5))), np.full((3, 5), 160 * of_one + 7), rtol=1e-12)


def test_swiglu_by_numpy(x64, getkey):
    block = drawn(SwiGLUBlock(SoftmaxAttention(5, 1, key=getkey()), key=getkey()))
    x = np.random.default_rng(1).normal(size=(7, 5))
    affine = lambda linear, row: np.asarray(linear.weight) @ row + np.asarray(linear.bias)
    for row, ours in zip(x, block.mlp(jnp.array(x)), strict=True):
        h = (row - row.mean()) / math.sqrt(row.var() + 1e-6) * np.asarray(block.mlp_norm.weight) + np.asarray(block.mlp_norm.bias)
        gate = affine(block.mlp_gate, h)
        np.testing.assert_allclose(ours, affine(block.mlp_down, gate / (1 + np.exp(-gate)) * affine(block.mlp_up, h)), rtol=1e-11)


@pytest.mark.parametrize(("d_model", "hidden"), [(3, 8), (32, 88), (64, 176), (128, 344), (256, 688), (1024, 2736)])
def test_hidden_width_of_swiglu(d_model, hidden):
    """8/3 of d_model rounded up to a multiple of 8: three matrices of about the size of the plain block's two."""
    block = eqx.filter_eval_shape(lambda key: SwiGLUBlock(SoftmaxAttention(d_model, 1, key=key), key=key), jr.key(0))
    assert block.mlp_gate.weight.shape == block.mlp_up.weight.shape == block.mlp_down.weight.shape[::-1] == (hidden, d_model)


def test_post_norm_normalises_the_stream(x64, getkey):
    """x <- LN(x + attention), x <- LN(x + MLP): by the inner block's own parts, and mean 0, variance 1 at the start."""
    block = PostNormBlock(SoftmaxAttention(6, 2, key=getkey()), key=getkey())
    x = 5 + 3 * jr.normal(getkey(), (7, 6))
    out, _ = block(x)
    np.testing.assert_allclose(np.mean(out, axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(out, axis=1), 1, atol=1e-4)

    block = drawn(block)
    inner = block.block
    layer_norm = lambda x, n: (x - x.mean(1)[:, None]) / np.sqrt(x.var(1)[:, None] + 1e-6) * np.asarray(n.weight) + np.asarray(n.bias)
    h = layer_norm(np.asarray(x), inner.attention_norm)
    logits = inner.attention.logits(jnp.array(h), jnp.array(h))
    y = layer_norm(np.asarray(x + inner.attention.mix(logits, jnp.array(h))), block.post_attention_norm)
    y = layer_norm(y + np.asarray(inner.mlp(jnp.array(y))), block.post_mlp_norm)
    np.testing.assert_allclose(block(x)[0], y, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- sigma-reparametrisation


def by_loops(W, rounds=5):
    """The power iteration with loops over numbers."""
    def unit(x):
        return [value / (math.sqrt(sum(v * v for v in x)) + 1e-6) for value in x]

    (d_out, d_in), u = W.shape, unit([1.0] * len(W))
    for k in range(rounds + 1):
        v = unit([sum(W[i, j] * u[i] for i in range(d_out)) for j in range(d_in)])
        if k < rounds:
            u = unit([sum(W[i, j] * v[j] for j in range(d_in)) for i in range(d_out)])
    return sum(u[i] * W[i, j] * v[j] for i in range(d_out) for j in range(d_in)), np.outer(u, v)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (11, 1), (1, 3)])
def test_spectral_norm_and_its_gradient(x64, shape):
    """Five rounds from ones, not four or six, and not yet the true norm; the gradient is u v^T, with u and v held."""
    W = np.random.default_rng(3).normal(size=shape)
    s, gradient = jax.value_and_grad(spectral_norm)(jnp.array(W))
    expected, outer = by_loops(W)
    np.testing.assert_allclose(s, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, outer, rtol=1e-12, atol=1e-14)
    true = np.linalg.norm(W, 2)
    if min(shape) == 1:
        np.testing.assert_allclose(s, true, rtol=1e-5)
    else:
        assert all(abs(by_loops(W, rounds)[0] / s - 1) > 1e-6 for rounds in (4, 6))
        assert 0.8 * true < s < true


def test_spectral_norm_where_it_is_known():
    """A diagonal whose largest entry leads by far, and matrices of zeros, of which the floor and its gradient are finite."""
    np.testing.assert_allclose(spectral_norm(jnp.diag(jnp.array([0.1, -3.0, 0.2]))), 3, rtol=1e-5)
    zero = jnp.zeros((3, 5))
    np.testing.assert_allclose(spectral_norm(zero), 1e-6)
    linear = SigmaLinear(eqx.tree_at(lambda m: m.weight, Linear(lecun_normal, 5, 3, key=jr.key(0)), zero))
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(5))))(linear)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_sigma_linear_by_hand():
    """W = 3 in one direction: its norm is 3, so sigma 2 makes it 2, whatever the 3; the bias is added after."""
    linear = Linear(lecun_normal, 2, 2, key=jr.key(0))
    for size in (3.0, 300.0):
        W = jnp.array([[size, 0], [0, 0]])
        sigma = SigmaLinear(eqx.tree_at(lambda m: (m.weight, m.bias), linear, (W, jnp.array([0.0, 7]))))
        np.testing.assert_allclose(sigma(jnp.array([[5.0, 11]])), [[5, 7]], rtol=1e-5)
        doubled = eqx.tree_at(lambda m: m.sigma, sigma, jnp.array(2.0))
        np.testing.assert_allclose(doubled(jnp.array([5.0, 11])), [10, 7], rtol=1e-5)


def test_with_sigma_reparam_takes_every_map(getkey):
    """Tokenizer, attention, MLP and Q heads: 2 + layers x (4 + 2) + ensemble x 2. The drawn arrays stay, bit for bit."""
    critic = Critic(N_S, N_A, d_model=10, heads=2, layers=2, ensemble=3, key=getkey())
    before, after = named_arrays(critic), named_arrays(with_sigma_reparam(critic))
    assert len([name for name in after if "sigma" in name]) == 2 + 2 * 6 + 3 * 2 == len(after) - len(before)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    for name in after:
        assert ("sigma" in name) <= (after[name].shape == () and after[name] == 1)
    sigma = with_sigma_reparam(critic)
    scaled = jax.tree.map(lambda x, wide: 7 * x if wide else x, sigma, decayed(sigma))
    scaled = eqx.tree_at(lambda c: (c.tokenizer.w_s, c.tokenizer.w_a), scaled, replace_fn=lambda w: 9 * w)
    s, a = jr.normal(getkey(), (N_S,)), jr.normal(getkey(), (N_A,))
    values = eqx.filter_jit(lambda critic: critic(s, a))
    np.testing.assert_allclose(values(scaled), values(sigma), rtol=1e-4, atol=1e-5)


def test_a_tokenizer_of_ones_own_keeps_its_call(getkey):
    """Sigma replaces what it knows: a subclass with another equation stays as it is."""

    class Twice(ScalarTokenizer):
        def __call__(self, s, a):
            return 2 * super().__call__(s, a)

    critic = with_sigma_reparam(Critic(N_S, N_A, d_model=10, heads=2, make_tokenizer=Twice, key=getkey()))
    assert type(critic.tokenizer) is Twice and isinstance(critic.q_heads[0].out, SigmaLinear)


# ---------------------------------------------------------------- seams


@pytest.mark.parametrize("variant", NAMES)
def test_row_0_alone_is_row_0_of_the_whole_block(x64, variant):
    block = drawn(make_critic(N_S, N_A, small(variant), key=jr.key(0))).blocks[0]
    x = jnp.array(np.random.default_rng(2).normal(size=(7, 10)))
    routes = eqx.filter_jit(lambda block: (block(x), block.first_row_all_logits(x), block.first_row(x)))
    (rows, logits), (row, all_logits), alone = routes(block)
    assert rows.shape == (7, 10) and logits.shape == (2, 7, 7)
    for first in (row, alone):
        np.testing.assert_allclose(first, rows[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(all_logits, logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "modern"])
def test_four_layers(x64, variant):
    """Depth is a number: `critic.layers`. The critic, its logits too, is the plain stack of whole blocks."""
    critic = drawn(make_critic(N_S, N_A, replace(SMALL, variant=variant, layers=4), key=jr.key(0)))
    s, a = jnp.array([0.3, -0.2, 0.9]), jnp.array([0.5, -0.7])
    x, logits = critic.tokenizer(s, a), []
    for block in critic.blocks:
        x, l = block(x)
        logits.append(l)
    Q, seen = eqx.filter_jit(critic.with_attention)(s, a)
    assert seen.shape == (4, 2, 6, 6) and len(critic.blocks) == 4
    np.testing.assert_allclose(Q, critic.read_out(x[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(critic(s, a), Q, rtol=0, atol=1e-12)
    np.testing.assert_allclose(seen, jnp.stack(logits), rtol=0, atol=1e-12)


class Parallel(AbstractBlock):
    """A block of one's own, as a student would write it: attention and MLP side by side, no norm."""

    attention: SoftmaxAttention
    wide: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, attention, *, key):
        self.attention, self.d_model, self.heads = attention, attention.d_model, attention.heads
        self.wide = Linear(lecun_normal, self.d_model, self.d_model, key=key)

    def attention_input(self, x):
        return x

    def mlp(self, x):
        return jnp.tanh(self.wide(x))

    def join(self, x, read):
        return x + read + self.mlp(x)


def test_a_block_of_ones_own_takes_one_line(x64, getkey):
    critic = Critic(N_S, N_A, d_model=10, heads=2, make_block=Parallel, key=getkey())
    s, a = jr.normal(getkey(), (N_S,)), jr.normal(getkey(), (N_A,))
    x = critic.tokenizer(s, a)
    for block in critic.blocks:
        x = x + block.attention.mix(block.attention.logits(x, x), x) + jnp.tanh(x @ block.wide.weight.T + block.wide.bias[None])
    np.testing.assert_allclose(critic(s, a), critic.read_out(x[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(critic.with_attention(s, a)[0], critic(s, a), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- by name


def test_the_plain_variant_is_the_critic_itself():
    plain, by_name = Critic(N_S, N_A, d_model=10, heads=2, ensemble=3, key=jr.key(5)), make_critic(N_S, N_A, SMALL, key=jr.key(5))
    assert type(plain.blocks[0]) is Block and jax.tree.structure(plain) == jax.tree.structure(by_name)
    assert all(map(np.array_equal, jax.tree.leaves(plain), jax.tree.leaves(by_name)))


def test_modern_is_four_changes_at_once():
    """RMSNorm, post-norm, QK-norm, SwiGLU; no sigma."""
    critic = make_critic(N_S, N_A, small("modern"), key=jr.key(0))
    block = critic.blocks[1]
    assert (type(block), type(block.block), type(block.attention)) == (PostNormBlock, SwiGLUBlock, QKNormAttention)
    norms = (critic.final_norm, block.post_attention_norm, block.post_mlp_norm, block.block.attention_norm, block.block.mlp_norm)
    assert {type(norm) for norm in norms} == {eqx.nn.RMSNorm}
    assert not any("sigma" in name for name in named_arrays(critic))


@pytest.mark.parametrize("variant", NAMES)
def test_decay_touches_matrices_of_blocks_and_heads_alone(variant):
    """No sigma, no scale, no embedding, no input map: of a critic's arrays, the matrices outside the tokenizer."""
    critic = make_critic(N_S, N_A, small(variant), key=jr.key(0))
    marked = {name for name, flag in named_flags(decayed(critic)).items() if flag}
    arrays = named_arrays(critic)
    assert marked == {name for name, x in arrays.items() if x.ndim == 2 and not name.startswith("tokenizer")}
    assert len(marked) == 2 * (4 + (3 if variant in ("swiglu", "geglu", "modern", "all") else 2)) + 3 * 2


def named_flags(tree):
    return {jax.tree_util.keystr(path).lstrip("."): flag for path, flag in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_wrong_name_is_named_with_the_right_ones():
    """By the type first; with the checks off, where the critic is made."""
    with pytest.raises(BeartypeCallHintParamViolation, match="variant='qknorm'.*'qk-norm', 'sigma-reparam'"):
        CriticConfig(variant="qknorm")
    wrong = replace(SMALL)
    object.__setattr__(wrong, "variant", "qknorm")
    with pytest.raises(ValueError, match="no critic variant 'qknorm'; critic.variant is one of plain, qk-norm, sigma-reparam, .*, modern"):
        make_critic(N_S, N_A, wrong, key=jr.key(0))
