"""Variants of the critic against numbers that the reference computed: `golden/variants.npz` (n_s 7, n_a 3, d_model 64)."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import GOLDEN

from tql.attention import group_entropy
from tql.checkpoint import foreign_name
from tql.critic import Critic
from tql.sigma_reparam import with_sigma_reparam
from tql.variants import GEGLUBlock, PostNormBlock, QKNormAttention, SoftcapAttention, SwiGLUBlock, with_rms_norm

build = partial(Critic, 7, 3, d_model=64)
modern = partial(build, make_attention=QKNormAttention, make_block=partial(PostNormBlock, make_block=SwiGLUBlock))
GOLDEN_VARIANTS = {
    "plain": build,
    "qk_norm": partial(build, make_attention=QKNormAttention),
    "sigma_reparam": lambda key: with_sigma_reparam(build(key=key)),
    "rms_norm": lambda key: with_rms_norm(build(key=key)),
    "post_norm": partial(build, make_block=PostNormBlock),
    "post_norm_rms": lambda key: with_rms_norm(build(make_block=PostNormBlock, key=key)),
    "swiglu": partial(build, make_block=SwiGLUBlock),
    "geglu": partial(build, make_block=GEGLUBlock),
    "softcap": partial(build, make_attention=partial(SoftcapAttention, c=1.5)),
    "rms_swiglu": lambda key: with_rms_norm(build(make_block=SwiGLUBlock, key=key)),
    "all": lambda key: with_sigma_reparam(with_rms_norm(modern(key=key))),
}

ALL_BUT_PLAIN = [name for name in GOLDEN_VARIANTS if name != "plain"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "variants.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith("loss_")}


def golden_name(path):
    """Our path of an array as the file calls it."""
    path = jax.tree_util.keystr(path).lstrip(".").replace(".block.", ".").replace("post_attention_norm", "post_attn_norm")
    if match := re.fullmatch(r"tokenizer\.sigma_([sa])", path):
        return {"s": "state", "a": "action"}[match[1]] + "_projection/sigma"
    if match := re.fullmatch(r"blocks\[(\d)\]\.(?:attention\.)?(\w+)_norm\.(weight|bias)", path):
        kind = {"attention": "attn"}.get(match[2], match[2])
        return f"block{match[1]}/{kind}_norm/{'scale' if match[3] == 'weight' else 'bias'}"
    if match := re.fullmatch(r"blocks\[(\d)\]\.(mlp_\w+)\.(\w+)", path):
        return f"block{match[1]}/{match[2]}/{match[3].replace('weight', 'kernel')}"
    return foreign_name(path)


def in_golden_layout(name, x):
    """Kernels as (input, output), everything flat."""
    return np.asarray(x.T if name.endswith("kernel") and x.ndim == 2 else x).ravel()


def paths_of(make):
    """Path and shape of every array of the critic that `make(key=...)` builds."""
    return jax.tree_util.tree_leaves_with_path(eqx.filter_eval_shape(make, key=jr.key(0)))


def critic_of(golden, variant, dtype):
    """The variant with the file's weights, every one of which must be used."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(eqx.filter_eval_shape(GOLDEN_VARIANTS[variant], key=jr.key(0)))
    names = [golden_name(path) for path, _ in leaves]
    assert sorted(names) == sorted(golden[f"{variant}/param_names"].tolist())

    def array(name, like):
        x = golden[f"params/{name}"].astype(dtype)
        x = x.reshape(x.shape[0], -1).T if name.endswith("kernel") else x
        return jnp.asarray(x.reshape(like.shape))

    return jax.tree_util.tree_unflatten(structure, [array(name, like) for name, (_, like) in zip(names, leaves, strict=True)])


def inputs(golden, dtype):
    return [jnp.asarray(golden[f"in/{name}"].astype(dtype)) for name in ("observations", "actions")]


def whole_blocks(critic, s, a):
    """Everything that the file holds of one pair, by the plain route: every row of every block, then row 0."""
    x, out, logits = critic.tokenizer(s, a), {}, []
    for i, block in enumerate(critic.blocks):
        x, l = block(x)
        out[f"tokens_after_block{i}"] = x
        logits.append(l)
    out["value_token_final"] = critic.final_norm(x[0])
    return out | {"q": critic.read_out(x[0]), "attention": jax.nn.softmax(jnp.stack(logits))}


@eqx.filter_jit
def in_one_pass(critic, s, a):
    """Values, logits and entropies; mean(q^2) + sum(M * entropy), which reaches every weight, and its gradient; the slope of Q over a."""

    def scalars(critic, a):
        q, logits = jax.vmap(critic.with_attention)(s, a)
        entropy = jnp.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)
        mixed = jnp.mean(q**2) + jnp.sum(jnp.array([[0.3, -0.7], [0.5, 0.9]]) * entropy)
        return jnp.stack([mixed, jnp.sum(jnp.mean(q, axis=1))]), {"q": q, "logits": logits, "entropy": entropy}

    (mixed, _), pull_back, out = eqx.filter_vjp(scalars, critic, a, has_aux=True)
    grads, slopes = jax.vmap(pull_back)(jnp.eye(2))
    return out | {"mixed_scalar": mixed, "dq_dactions": slopes[1]}, jax.tree.map(lambda g: g[0], grads)


@pytest.mark.parametrize("variant", ALL_BUT_PLAIN)
def test_every_number_of_the_reference_in_float64(golden, x64, variant):
    """Forward by both routes, entropies, the slope over actions, and every weight's gradient."""
    expected = lambda name: golden[f"{variant}/f64/{name}"]
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    critic, pairs = critic_of(golden, variant, np.float64), inputs(golden, np.float64)
    whole = eqx.filter_jit(jax.vmap(partial(whole_blocks, critic)))(*pairs)
    out, grads = in_one_pass(critic, *pairs)
    for attention in (whole.pop("attention"), jax.nn.softmax(out.pop("logits"))):
        close(np.swapaxes(attention, 0, 1), expected("attention"))
    for name, x in (*whole.items(), *out.items()):
        close(x, expected(name), err_msg=name)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = golden_name(path)
        g = in_golden_layout(name, g)
        close(np.linalg.norm(g), expected(f"grad_norm/{name}"), err_msg=name)
        close(np.sum(g * np.cos(np.arange(g.size))), expected(f"grad_probe/{name}"), err_msg=name)


@pytest.mark.parametrize("variant", ALL_BUT_PLAIN)
def test_q_and_entropy_in_float32(golden, variant):
    run = eqx.filter_jit(lambda critic, s, a: jax.vmap(critic.with_attention)(s, a))
    q, logits = run(critic_of(golden, variant, np.float32), *inputs(golden, np.float32))
    entropy = np.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)
    for name, x in {"q": q, "entropy": entropy}.items():
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, golden[f"{variant}/f32/{name}"], rtol=0, atol=1e-5, err_msg=name)


def test_the_plain_critic_is_the_one_of_the_other_file(golden):
    """`test_golden_critic.py` holds it; its weights and numbers are the same in both files."""
    assert sorted(golden["plain/param_names"]) == sorted(golden_name(path) for path, _ in paths_of(GOLDEN_VARIANTS["plain"]))
    with np.load(GOLDEN / "critic.npz", allow_pickle=False) as c0:
        for name in golden["plain/param_names"]:
            np.testing.assert_array_equal(golden[f"params/{name}"], c0[f"c0/params/{name}"])
        for name in ("q", "attention", "entropy", "dq_dactions", "mixed_scalar", "value_token_final"):
            np.testing.assert_array_equal(golden[f"plain/f64/{name}"], c0[f"c0/f64/{name}"])
