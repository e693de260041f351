"""Variants of the critic by hand and by other routes, and the seams that they use."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax_names import path_of

from tql.attention import AbstractBlock, Block, SoftmaxAttention
from tql.batch import Transition
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.critic import Critic
from tql.layers import Linear, decayed, lecun_normal
from tql.loop import TQL, make_critic
from tql.tokenizer import ScalarTokenizer
from tql.training.checkpoint import load_checkpoint, save_checkpoint
from tql.training.chunk import train_chunk
from tql.variants.gated import GEGLU, SwiGLU
from tql.variants.qk_norm import NormedPerHead, QKNorm
from tql.variants.rms_norm import rms_norm, with_rms_norm
from tql.variants.sandwich import Sandwich
from tql.variants.sigma_reparam import SigmaLinear, spectral_norm, with_sigma_reparam
from tql.variants.softcap import Softcap

N_S, N_A = 3, 2
SMALL = CriticConfig(d_model=10, heads=2, layers=2, ensemble=3)
MODERN = dict(attention="qk-norm", block="sandwich+swiglu", changes=("rms-norm",))
VARIANTS = {
    "plain": {},
    "qk-norm": dict(attention="qk-norm"),
    "softcap": dict(attention="softcap"),
    "softcap+qk-norm": dict(attention="softcap+qk-norm"),
    "swiglu": dict(block="swiglu"),
    "geglu": dict(block="geglu"),
    "sandwich": dict(block="sandwich"),
    "rms-norm": dict(changes=("rms-norm",)),
    "sigma-reparam": dict(changes=("sigma-reparam",)),
    "modern": MODERN,
    "all": MODERN | dict(changes=("rms-norm", "sigma-reparam")),
}
"""`modern` is the paper's name for RMSNorm, QK-norm, SwiGLU and norms after additions, at once."""


def small(variant, **changes):
    return make_critic(N_S, N_A, replace(SMALL, **VARIANTS[variant], **changes), key=jr.key(0))


def arrays_of(tree):
    """Every array by its path; what wraps a part is left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    plain = lambda path: path_of(path).replace(".linear", "").replace(".tokenizer.", ".")
    return {plain(path).removeprefix("tokenizer."): x for path, x in leaves}


def drawn(tree, seed=0):
    """The same tree, every array from a normal distribution: nothing is 0 or 1 by its start. Scales
    and sigmas too."""
    rng = np.random.default_rng(seed)
    scale = lambda x: math.sqrt(x.shape[-1] if x.ndim else 1)
    return jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape) / scale(x)), tree)


# ---------------------------------------------------------------- the pieces, by numpy


def test_rms_norm(x64):
    """Three numbers: the mean square of (1, 2, 2) is 3. The mean is not taken away, and there is no
    bias."""
    norm = rms_norm(3)
    assert [x.shape for x in jax.tree.leaves(norm)] == [(3,)]
    np.testing.assert_allclose(
        norm(jnp.array([1.0, 2, 2])), np.array([1, 2, 2]) / math.sqrt(3), rtol=1e-6
    )
    norm = eqx.tree_at(lambda n: n.weight, norm, jnp.array([1.0, 10, 100]))
    expected = np.array([1, 20, 200]) / math.sqrt(3 + 1e-6)
    np.testing.assert_allclose(norm(jnp.array([1.0, 2, 2])), expected, rtol=1e-14)
    tiny = np.array([1e-4, -2e-4, 3e-4])  # where 1e-6 in the root matters
    expected = [1, 10, 100] * tiny / math.sqrt(14e-8 / 3 + 1e-6)
    np.testing.assert_allclose(norm(jnp.array(tiny)), expected, rtol=1e-14)


def test_with_rms_norm_leaves_no_layer_norm(getkey):
    """In all that a critic can be made of; everything else stays as it was, bit for bit."""
    critic = Critic(N_S, N_A, d_model=10, heads=2, make_block=Sandwich, key=getkey())
    rms = with_rms_norm(critic)

    def nodes(tree, kind):
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
        return [x for x in leaves if isinstance(x, kind)]

    assert len(nodes(critic, eqx.nn.LayerNorm)) == len(nodes(rms, eqx.nn.RMSNorm)) == 2 * 4 + 1
    assert nodes(rms, eqx.nn.LayerNorm) == []
    before, after = arrays_of(critic), arrays_of(rms)
    assert set(before) - set(after) == {name for name in before if "norm.bias" in name}
    assert all(np.array_equal(before[name], after[name]) for name in after)


def test_qk_norm(x64, getkey):
    """Queries and keys of each head over their root mean square, times a scale that heads share;
    then 1 / sqrt(d_head)."""
    d, heads, m, n = 6, 2, 5, 7
    attention = drawn(QKNorm(d, heads, key=getkey()))
    query, key = attention.inner.query, attention.inner.key
    assert type(query) is type(key) is NormedPerHead
    rng = np.random.default_rng(1)
    rows, x = rng.normal(size=(m, d)), rng.normal(size=(n, d))
    affine = lambda linear, row: np.asarray(linear.weight) @ row + np.asarray(linear.bias)
    unit = lambda v, g: np.asarray(g) * v / math.sqrt(np.mean(v**2) + 1e-6)
    expected = np.zeros((heads, m, n))
    for h in range(heads):
        channels = slice(3 * h, 3 * h + 3)
        for i in range(m):
            q = unit(affine(query.inner, rows[i])[channels], query.norm.weight)
            for j in range(n):
                k = unit(affine(key.inner, x[j])[channels], key.norm.weight)
                expected[h, i, j] = q @ k / math.sqrt(3)
    logits = attention.logits(jnp.array(rows), jnp.array(x))
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


def test_qk_norm_bounds_logits_until_its_scales_grow(getkey):
    """At scale 1 no logit is beyond sqrt(d_head), however large the weights; values are left
    alone."""
    key, x = getkey(), jr.normal(getkey(), (11, 10))
    normed, without = QKNorm(10, 2, key=key), SoftmaxAttention(10, 2, key=key)
    larger = lambda tree, where: eqx.tree_at(where, tree, replace_fn=lambda w: 1e4 * w)
    large = larger(normed, lambda t: (t.inner.query.inner.weight, t.inner.key.inner.weight))
    assert np.abs(large.logits(x, x)).max() <= math.sqrt(5) * (1 + 1e-5)
    assert np.abs(larger(without, lambda t: t.key.weight).logits(x, x)).max() > 1e3
    scaled = eqx.tree_at(lambda t: t.inner.key.norm.weight, large, jnp.full(5, 3.0))
    np.testing.assert_allclose(scaled.logits(x, x), 3 * large.logits(x, x), rtol=0, atol=1e-5)
    l = jnp.zeros((2, 11, 11))
    np.testing.assert_allclose(scaled.mix(l, x), without.mix(l, x), rtol=1e-6)


def test_qk_norm_of_an_attention_without_the_maps(getkey):
    with pytest.raises(ValueError, match="Softcap has no maps `query` and `key`.*qk-norm after"):
        QKNorm(6, 2, inner=Softcap, key=getkey())


@pytest.mark.parametrize("c", [1.5, 50.0])
def test_softcap(x64, getkey, c):
    """c tanh(l / c) of the plain logits, by numpy."""
    key = getkey()
    plain, capped = SoftmaxAttention(6, 2, key=key), Softcap(6, 2, c=c, key=key)
    rows, x = 30 * jr.normal(getkey(), (5, 6)), jr.normal(getkey(), (7, 6))
    l = np.asarray(plain.logits(rows, x))
    assert np.abs(l).max() > 3
    expected = c * (1 - 2 / (np.exp(2 * l / c) + 1))
    np.testing.assert_allclose(capped.logits(rows, x), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(capped.mix(jnp.array(l), x), plain.mix(jnp.array(l), x), rtol=1e-12)
    assert Softcap(6, 2, key=key).c == 50


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_a_cap_must_be_positive(getkey, c):
    with pytest.raises(ValueError, match="logits cannot be capped at .*; c must be above 0"):
        Softcap(6, 2, c=c, key=getkey())


def test_softcap_of_qk_norm(getkey):
    """Wrappers combine: the cap is on the normed logits."""
    key, x = getkey(), jr.normal(getkey(), (7, 6))
    both = Softcap(6, 2, inner=QKNorm, c=0.5, key=key)
    l = QKNorm(6, 2, key=key).logits(x, x)
    np.testing.assert_allclose(both.logits(x, x), 0.5 * np.tanh(np.asarray(l) / 0.5), rtol=1e-5)


OF_ONE = [(SwiGLU, 1 / (1 + math.exp(-1))), (GEGLU, 0.8411919906082768)]


@pytest.mark.parametrize(("make", "of_one"), OF_ONE)
def test_gated_mlp_by_hand(x64, getkey, make, of_one):
    """Every gate 1 and every `up` 10, so each of 16 hidden channels is 10 act(1), where silu(1) is
    1 / (1 + 1/e) and gelu(1) 0.8412."""
    block = make(SoftmaxAttention(5, 1, key=getkey()), key=getkey())
    assert block.mlp_down.weight.shape == (5, 16)
    arrays = lambda b: [x for m in (b.mlp_gate, b.mlp_up, b.mlp_down) for x in (m.weight, m.bias)]
    z, one = jnp.zeros((16, 5)), jnp.ones(16)
    block = eqx.tree_at(arrays, block, [z, one, z, 10 * one, jnp.ones((5, 16)), jnp.full(5, 7.0)])
    expected = np.full((3, 5), 160 * of_one + 7)
    np.testing.assert_allclose(block.mlp(jnp.zeros((3, 5))), expected, rtol=1e-12)


def test_swiglu_by_numpy(x64, getkey):
    block = drawn(SwiGLU(SoftmaxAttention(5, 1, key=getkey()), key=getkey()))
    x = np.random.default_rng(1).normal(size=(7, 5))
    affine = lambda linear, row: np.asarray(linear.weight) @ row + np.asarray(linear.bias)
    for row, ours in zip(x, block.mlp(jnp.array(x)), strict=True):
        h = layer_norm(row[None], block.mlp_norm)[0]
        gate = affine(block.mlp_gate, h)
        hidden = gate / (1 + np.exp(-gate)) * affine(block.mlp_up, h)
        np.testing.assert_allclose(ours, affine(block.mlp_down, hidden), rtol=1e-11)


def layer_norm(x, norm):
    """By numpy, of every row."""
    x = (x - x.mean(1)[:, None]) / np.sqrt(x.var(1)[:, None] + 1e-6)
    return x * np.asarray(norm.weight) + np.asarray(norm.bias)


@pytest.mark.parametrize(("d_model", "hidden"), [(3, 8), (32, 88), (128, 344), (1024, 2736)])
def test_hidden_width_of_swiglu(d_model, hidden):
    """8/3 of d_model rounded up to a multiple of 8: three matrices of about the size of the plain
    block's two."""
    make = lambda key: SwiGLU(SoftmaxAttention(d_model, 1, key=key), key=key)
    block = eqx.filter_eval_shape(make, jr.key(0))
    assert block.mlp_gate.weight.shape == block.mlp_up.weight.shape == (hidden, d_model)
    assert block.mlp_down.weight.shape == (d_model, hidden)


def test_sandwich_normalises_the_stream(x64, getkey):
    """x <- LN(x + attention), x <- LN(x + MLP): by the inner block's own parts, and mean 0,
    variance 1 at the start."""
    block = Sandwich(SoftmaxAttention(6, 2, key=getkey()), key=getkey())
    x = 5 + 3 * jr.normal(getkey(), (7, 6))
    out, _ = block(x)
    np.testing.assert_allclose(np.mean(out, axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(out, axis=1), 1, atol=1e-4)

    block = drawn(block)
    inner, x = block.inner, np.asarray(x)
    h = jnp.array(layer_norm(x, inner.attention_norm))
    read = np.asarray(inner.attention.mix(inner.attention.logits(h, h), h))
    y = layer_norm(x + read, block.post_attention_norm)
    y = layer_norm(y + np.asarray(inner.mlp(jnp.array(y))), block.post_mlp_norm)
    np.testing.assert_allclose(block(jnp.array(x))[0], y, rtol=0, atol=1e-12)


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
    s = sum(u[i] * W[i, j] * v[j] for i in range(d_out) for j in range(d_in))
    return s, np.outer(u, v)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (11, 1), (1, 3)])
def test_spectral_norm_and_its_gradient(x64, shape):
    """Five rounds from ones, not four or six, and not yet the true norm; the gradient is u v^T,
    with u and v held."""
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
    """A diagonal whose largest entry leads by far, and matrices of zeros, of which the floor and
    its gradient are finite."""
    diagonal = jnp.diag(jnp.array([0.1, -3.0, 0.2]))
    np.testing.assert_allclose(spectral_norm(diagonal), 3, rtol=1e-5)
    zero = jnp.zeros((3, 5))
    np.testing.assert_allclose(spectral_norm(zero), 1e-6)
    linear = eqx.tree_at(lambda m: m.weight, Linear(lecun_normal, 5, 3, key=jr.key(0)), zero)
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(5))))(SigmaLinear(linear))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_sigma_linear_by_hand():
    """W = 3 in one direction: its norm is 3, so sigma 2 makes it 2, whatever the 3; the bias is
    added after."""
    linear = Linear(lecun_normal, 2, 2, key=jr.key(0))
    for size in (3.0, 300.0):
        arrays = jnp.array([[size, 0], [0, 0]]), jnp.array([0.0, 7])
        sigma = SigmaLinear(eqx.tree_at(lambda m: (m.weight, m.bias), linear, arrays))
        np.testing.assert_allclose(sigma(jnp.array([[5.0, 11]])), [[5, 7]], rtol=1e-5)
        doubled = eqx.tree_at(lambda m: m.sigma, sigma, jnp.array(2.0))
        np.testing.assert_allclose(doubled(jnp.array([5.0, 11])), [10, 7], rtol=1e-5)


def test_with_sigma_reparam_takes_every_map(getkey):
    """Tokenizer, attention, MLP and Q heads: 2 + layers x (4 + 2) + ensemble x 2. The drawn arrays
    stay as they were, and their size no longer matters."""
    critic = Critic(N_S, N_A, d_model=10, heads=2, layers=2, ensemble=3, key=getkey())
    before, after = arrays_of(critic), arrays_of(with_sigma_reparam(critic))
    assert (
        len([name for name in after if "sigma" in name])
        == 2 + 2 * 6 + 3 * 2
        == len(after) - len(before)
    )
    assert all(np.array_equal(before[name], after[name]) for name in before)
    for name in after:
        assert ("sigma" in name) <= (after[name].shape == () and after[name] == 1)
    sigma = with_sigma_reparam(critic)
    scaled = jax.tree.map(lambda x, wide: 7 * x if wide else x, sigma, decayed(sigma))
    maps = lambda c: (c.tokenizer.tokenizer.w_s, c.tokenizer.tokenizer.w_a)
    scaled = eqx.tree_at(maps, scaled, replace_fn=lambda w: 9 * w)
    s, a = jr.normal(getkey(), (N_S,)), jr.normal(getkey(), (N_A,))
    values = eqx.filter_jit(lambda critic: critic(s, a))
    np.testing.assert_allclose(values(scaled), values(sigma), rtol=1e-4, atol=1e-5)


def test_a_tokenizer_of_ones_own_keeps_its_call(getkey):
    """Sigma replaces what it knows: a subclass with another equation stays as it is."""

    class Twice(ScalarTokenizer):
        def __call__(self, s, a):
            return 2 * super().__call__(s, a)

    critic = Critic(N_S, N_A, d_model=10, heads=2, make_tokenizer=Twice, key=getkey())
    critic = with_sigma_reparam(critic)
    assert type(critic.tokenizer) is Twice and isinstance(critic.q_heads[0].out, SigmaLinear)


# ---------------------------------------------------------------- seams


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_0_alone_is_row_0_of_the_whole_block(x64, variant):
    block = drawn(small(variant)).blocks[0]
    x = jnp.array(np.random.default_rng(2).normal(size=(7, 10)))
    routes = lambda block: (block(x), block.first_row_all_logits(x), block.first_row(x))
    (rows, logits), (row, all_logits), alone = eqx.filter_jit(routes)(block)
    assert rows.shape == (7, 10) and logits.shape == (2, 7, 7)
    for first in (row, alone):
        np.testing.assert_allclose(first, rows[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(all_logits, logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "modern"])
def test_four_layers(x64, variant):
    """Depth is a number: `critic.layers`. The critic, its logits too, is the plain stack of whole
    blocks."""
    critic = drawn(small(variant, layers=4))
    s, a = jnp.array([0.3, -0.2, 0.9]), jnp.array([0.5, -0.7])
    x, logits = critic.tokenizer(s, a), []
    for block in critic.blocks:
        x, l = block(x)
        logits.append(l)
    Q, seen = eqx.filter_jit(critic.with_attention)(s, a)
    assert seen.shape == (4, 2, 6, 6) and len(critic.blocks) == 4
    np.testing.assert_allclose(Q, critic.read_out(x[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(eqx.filter_jit(critic)(s, a), Q, rtol=0, atol=1e-12)
    np.testing.assert_allclose(seen, jnp.stack(logits), rtol=0, atol=1e-12)


class Parallel(AbstractBlock):
    """A block of one's own, as a student would write it: attention and MLP side by side, no
    norm."""

    attention: SoftmaxAttention
    wide: Linear
    d_model: int = eqx.field(static=True)

    def __init__(self, attention, *, key):
        self.attention, self.d_model = attention, attention.d_model
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
        read = block.attention.mix(block.attention.logits(x, x), x)
        x = x + read + jnp.tanh(x @ block.wide.weight.T + block.wide.bias[None])
    np.testing.assert_allclose(critic(s, a), critic.read_out(x[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(critic.with_attention(s, a)[0], critic(s, a), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- by name


def test_the_plain_variant_is_the_critic_itself():
    plain = Critic(N_S, N_A, d_model=10, heads=2, ensemble=3, key=jr.key(0))
    assert type(plain.blocks[0]) is Block and eqx.tree_equal(plain, small("plain"))


def test_modern_is_four_changes_at_once():
    """RMSNorm, norms after the additions, QK-norm, SwiGLU; no sigma."""
    critic = small("modern")
    block = critic.blocks[1]
    assert (type(block), type(block.inner), type(block.attention)) == (Sandwich, SwiGLU, QKNorm)
    norms = (critic.final_norm, block.post_attention_norm, block.post_mlp_norm)
    norms = (*norms, block.inner.attention_norm, block.inner.mlp_norm)
    assert {type(norm) for norm in norms} == {eqx.nn.RMSNorm}
    assert not any("sigma" in name for name in arrays_of(critic))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decay_touches_matrices_of_blocks_and_heads_alone(variant):
    """No sigma, no scale, no embedding, no input map: of a critic's arrays, the matrices outside
    the tokenizer."""
    critic = small(variant)
    marked = {name for name, flag in arrays_of(decayed(critic)).items() if flag}
    of_blocks_and_heads = {name: x for name, x in arrays_of(critic).items() if "[" in name}
    assert marked == {name for name, x in of_blocks_and_heads.items() if x.ndim == 2}
    of_mlp = 3 if variant in ("swiglu", "geglu", "modern", "all") else 2
    assert len(marked) == 2 * (4 + of_mlp) + 3 * 2


def test_a_change_that_there_is_not():
    with pytest.raises(
        ValueError, match="no change of a critic named 'rms'; choose rms-norm, sigma"
    ):
        make_critic(N_S, N_A, replace(SMALL, changes=("rms",)), key=jr.key(0))


# ---------------------------------------------------------------- in training

TOGETHER = {
    "all": VARIANTS["all"],
    "the others": dict(attention="softcap+qk-norm", block="sandwich+geglu"),
}


@pytest.mark.parametrize("variant", TOGETHER)
def test_all_parts_are_trained_and_come_back_from_disk(variant, tmp_path, optax_promotion):
    """Two updates move every array of the critic, and a checkpoint gives them back."""
    sizes = dict(d_model=10, heads=2, layers=1, ensemble=1)
    config = TQLConfig(
        task="cube-single-play-singletask-task1-v0",
        steps=40,
        warmup=3,
        batch_size=5,
        updates_per_call=2,
        critic_lr=1e-2,
        critic=CriticConfig(**sizes, **TOGETHER[variant]),
        actor=ActorConfig(kind="dataset"),
        control=ControlConfig(target=((1.0, 1.2),)),
    )
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    s, a, r = draw(13, N_S), draw(13, N_A), draw(13)
    data = Transition(s, a, r, jnp.ones(13), draw(13, N_S), draw(13, N_A))
    before = jax.tree.map(np.array, TQL.create(N_S, N_A, config).critic.model)
    agent, metrics = train_chunk((data, 2), TQL.create(N_S, N_A, config))
    assert np.isfinite(metrics["td_loss"]).all() and int(agent.step) == 2
    after = agent.critic.model
    still = jax.tree.map(np.array_equal, before, after)
    assert not any(jax.tree.leaves(still)), still

    save_checkpoint(tmp_path / "saved", agent)
    again = load_checkpoint(tmp_path / "saved", config)
    assert eqx.tree_equal(again.critic.model, after)
