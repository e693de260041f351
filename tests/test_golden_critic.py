"""The critic against numbers that the reference computed: `golden/critic.npz` (n_s 7, n_a 3,
d_model 64)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax_names import critic_from_arrays, foreign_name, path_of

from tql.attention import group_entropy

HEADS, N_S = 2, 7


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "critic.npz", allow_pickle=False) as file:
        return {name.removeprefix("c0/"): file[name] for name in file.files}


def parameters(golden, dtype):
    return {name: x.astype(dtype) for name, x in below(golden, "params/").items()}


def below(golden, prefix):
    return {name.removeprefix(prefix): x for name, x in golden.items() if name.startswith(prefix)}


def inputs(golden, dtype):
    return [jnp.asarray(golden[f"in/{x}"].astype(dtype)) for x in ("observations", "actions")]


def forward(critic, s, a):
    """Everything that the golden file holds of the forward pass, by the plain route of whole
    blocks."""

    def one(s, a):
        x = critic.tokenizer(s, a)
        out = {}
        for i, block in enumerate(critic.blocks):
            x, _ = block(x)
            out[f"tokens_after_block{i}"] = x
        out["value_token_final"] = critic.final_norm(x[0])
        out["q"], logits = critic.with_attention(s, a)
        out["attention"] = jax.nn.softmax(logits)
        out["entropy"] = jax.vmap(group_entropy)(logits)
        return out

    out = jax.vmap(one)(s, a)
    out["attention"] = jnp.swapaxes(out["attention"], 0, 1)
    out["entropy"] = jnp.mean(out["entropy"], axis=0)
    out["q_fast"] = jax.vmap(critic)(s, a)
    out["dq_dactions"] = jax.grad(lambda a: jnp.sum(jnp.mean(jax.vmap(critic)(s, a), axis=1)))(a)
    return out


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
def test_forward_and_action_gradient(golden, bits, tolerance):
    with jax.enable_x64(bits == 64):
        dtype = np.dtype(f"float{bits}")
        critic = critic_from_arrays(parameters(golden, dtype), HEADS, N_S)
        out = eqx.filter_jit(forward)(critic, *inputs(golden, dtype))
        expected = below(golden, f"f{bits}/")
        expected["q_fast"] = expected["q"]
        for name in out:
            assert out[name].dtype == dtype
            np.testing.assert_allclose(
                out[name], expected[name], rtol=0, atol=tolerance, err_msg=name
            )


def mixed_scalar(critic, s, a):
    """mean(q^2) + sum(M * entropy): reaches every parameter, through values and through
    attention."""
    q, logits = jax.vmap(critic.with_attention)(s, a)
    entropy = jnp.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)
    return jnp.mean(q**2) + jnp.sum(jnp.array([[0.3, -0.7], [0.5, 0.9]]) * entropy)


def test_parameter_gradients(golden, x64):
    critic = critic_from_arrays(parameters(golden, np.float64), HEADS, N_S)
    loss = eqx.filter_jit(eqx.filter_value_and_grad(mixed_scalar))
    value, grads = loss(critic, *inputs(golden, np.float64))
    np.testing.assert_allclose(value, golden["f64/mixed_scalar"], rtol=0, atol=1e-12)
    expected = below(golden, "f64/grad/")
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = foreign_name(path_of(path))
        g = g.reshape(g.shape[0], -1).T if name.endswith("kernel") else g
        theirs = expected.pop(name)
        close = dict(rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(g.reshape(theirs.shape), theirs, **close)
    assert not expected


MISTAKES = [("epsilon", 5e-5), ("gelu", 1e-4), ("scale", 0.1)]


@pytest.mark.parametrize(("mistake", "at_least"), MISTAKES)
def test_the_bar_of_1e_5_sees_the_usual_mistakes(golden, monkeypatch, mistake, at_least):
    """Mutants: Equinox's epsilon, the erf GELU, logits scaled by the width."""
    critic = critic_from_arrays(parameters(golden, np.float32), HEADS, N_S)
    if mistake == "epsilon":
        is_norm = lambda node: isinstance(node, eqx.nn.LayerNorm)
        arrays = lambda n: (n.weight, n.bias)
        other = lambda n: eqx.tree_at(arrays, eqx.nn.LayerNorm(64, eps=1e-5), arrays(n))
        replace = lambda n: other(n) if is_norm(n) else n
        critic = jax.tree.map(replace, critic, is_leaf=is_norm)
    if mistake == "gelu":
        gelu = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))
    if mistake == "scale":
        queries = lambda c: [b.attention.query for b in c.blocks]
        smaller = lambda x: x / np.float32(np.sqrt(2))
        critic = eqx.tree_at(queries, critic, jax.tree.map(smaller, queries(critic)))
    q = jax.vmap(critic)(*inputs(golden, np.float32))
    assert np.max(np.abs(q - golden["f32/q"])) > at_least
