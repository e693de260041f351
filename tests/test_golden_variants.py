"""Variants of the critic against numbers that the reference computed: `golden/variants.npz` (n_s 7,
n_a 3, d_model 64)."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import GOLDEN
from flax_names import foreign_name, path_of

from tql.attention import group_entropy
from tql.config import CriticConfig
from tql.critic import Critic
from tql.loop import make_critic
from tql.variants.softcap import Softcap


def by_name(**settings):
    config = CriticConfig(d_model=64, **settings)
    return lambda key: make_critic(7, 3, config, key=key)


modern = dict(attention="qk-norm", block="sandwich+swiglu")
GOLDEN_VARIANTS = {
    "plain": by_name(),
    "qk_norm": by_name(attention="qk-norm"),
    "sigma_reparam": by_name(changes=("sigma-reparam",)),
    "rms_norm": by_name(changes=("rms-norm",)),
    "post_norm": by_name(block="sandwich"),
    "post_norm_rms": by_name(block="sandwich", changes=("rms-norm",)),
    "swiglu": by_name(block="swiglu"),
    "geglu": by_name(block="geglu"),
    "softcap": partial(Critic, 7, 3, d_model=64, make_attention=partial(Softcap, c=1.5)),
    "rms_swiglu": by_name(block="swiglu", changes=("rms-norm",)),
    "all": by_name(**modern, changes=("rms-norm", "sigma-reparam")),
}

ALL_BUT_PLAIN = [name for name in GOLDEN_VARIANTS if name != "plain"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "variants.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith("loss_")}


def golden_name(path):
    """Our path of an array as the file calls it. What wraps a part is not in the file's names."""
    path = re.sub(r"\.(inner|linear)\b", "", path_of(path)).replace(
        "tokenizer.tokenizer", "tokenizer"
    )
    if match := re.fullmatch(r"tokenizer\.sigma_([sa])", path):
        return {"s": "state", "a": "action"}[match[1]] + "_projection/sigma"
    if match := re.fullmatch(r"blocks\[(\d)\]\.attention\.(query|key)\.norm\.weight", path):
        return f"block{match[1]}/{match[2]}_norm/scale"
    if match := re.fullmatch(r"blocks\[(\d)\]\.post_(attention|mlp)_norm\.(weight|bias)", path):
        kind = {"attention": "attn", "mlp": "mlp"}[match[2]]
        return f"block{match[1]}/post_{kind}_norm/{match[3].replace('weight', 'scale')}"
    return foreign_name(path)


def in_golden_layout(name, x):
    """Kernels as (input, output), everything flat."""
    return np.asarray(x.T if name.endswith("kernel") and x.ndim == 2 else x).ravel()


def critic_of(golden, variant, dtype):
    """The variant with the file's weights, every one of which must be used."""
    shapes = eqx.filter_eval_shape(GOLDEN_VARIANTS[variant], key=jr.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [golden_name(path) for path, _ in leaves]
    assert sorted(names) == sorted(golden[f"{variant}/param_names"].tolist())

    def array(name, like):
        x = golden[f"params/{name}"].astype(dtype)
        x = x.reshape(x.shape[0], -1).T if name.endswith("kernel") else x
        return jnp.asarray(x.reshape(like.shape))

    arrays = [array(name, like) for name, (_, like) in zip(names, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(structure, arrays)


def inputs(golden, dtype):
    return [jnp.asarray(golden[f"in/{name}"].astype(dtype)) for name in ("observations", "actions")]


def whole_blocks(critic, s, a):
    """Everything that the file holds of one pair, by the plain route: every row of every block,
    then row 0."""
    x, out, logits = critic.tokenizer(s, a), {}, []
    for i, block in enumerate(critic.blocks):
        x, l = block(x)
        out[f"tokens_after_block{i}"] = x
        logits.append(l)
    out["value_token_final"] = critic.final_norm(x[0])
    return out | {"q": critic.read_out(x[0]), "attention": jax.nn.softmax(jnp.stack(logits))}


@eqx.filter_jit
def in_one_pass(critic, s, a):
    """Values, logits and entropies; mean(q^2) + sum(M * entropy), which reaches every weight, and
    its gradient; the slope of Q over a."""

    def scalars(critic, a):
        q, logits = jax.vmap(critic.with_attention)(s, a)
        entropy = jnp.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)
        mixed = jnp.mean(q**2) + jnp.sum(jnp.array([[0.3, -0.7], [0.5, 0.9]]) * entropy)
        out = {"q": q, "logits": logits, "entropy": entropy}
        return jnp.stack([mixed, jnp.sum(jnp.mean(q, axis=1))]), out

    (mixed, _), pull_back, out = eqx.filter_vjp(scalars, critic, a, has_aux=True)
    grads, slopes = jax.vmap(pull_back)(jnp.eye(2))
    return out | {"mixed_scalar": mixed, "dq_dactions": slopes[1]}, jax.tree.map(
        lambda g: g[0], grads
    )


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
        np.testing.assert_allclose(
            x, golden[f"{variant}/f32/{name}"], rtol=0, atol=1e-5, err_msg=name
        )


def test_the_plain_critic_is_the_one_of_the_other_file(golden):
    """`test_golden_critic.py` holds it; its weights and numbers are the same in both files."""
    with np.load(GOLDEN / "critic.npz", allow_pickle=False) as c0:
        for name in golden["plain/param_names"]:
            np.testing.assert_array_equal(golden[f"params/{name}"], c0[f"c0/params/{name}"])
        for name in ("q", "attention", "entropy", "dq_dactions", "mixed_scalar"):
            np.testing.assert_array_equal(golden[f"plain/f64/{name}"], c0[f"c0/f64/{name}"])
