"""The critic against numbers that the reference computed: `golden/critic.npz` (configuration c0: n_s 7, n_a 3, d_model 64)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from tql.attention import group_entropy
from tql.checkpoint import CheckpointError, critic_from_arrays, foreign_name

LAYERS = 2
HEADS = 2


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "critic.npz", allow_pickle=False) as file:
        return {name.removeprefix("c0/"): file[name] for name in file.files}


def parameters(golden, dtype):
    return {name.removeprefix("params/"): x.astype(dtype) for name, x in golden.items() if name.startswith("params/")}


def forward(critic, s, a):
    """Everything that the golden file holds of the forward pass, by the plain route of whole blocks."""
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
    out["dq_dactions"] = jax.grad(lambda a: jnp.sum(jnp.mean(jax.vmap(critic)(s, a), axis=1)))(a)
    return out


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
def test_forward_and_action_gradient(golden, bits, tolerance):
    with jax.enable_x64(bits == 64):
        dtype = np.dtype(f"float{bits}")
        critic = critic_from_arrays(parameters(golden, dtype), HEADS)
        s, a = (jnp.asarray(golden[f"in/{x}"].astype(dtype)) for x in ("observations", "actions"))
        out = jax.jit(lambda s, a: forward(critic, s, a))(s, a)
        out["q_fast"] = jax.vmap(critic)(s, a)
        expected = {name.removeprefix(f"f{bits}/"): x for name, x in golden.items() if name.startswith(f"f{bits}/")}
        expected["q_fast"] = expected["q"]
        for name in out:
            assert out[name].dtype == dtype
            np.testing.assert_allclose(out[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


def mixed_scalar(critic, s, a):
    """mean(q^2) + sum(M * entropy): reaches every parameter, through values and through attention."""
    q, logits = jax.vmap(critic.with_attention)(s, a)
    entropy = jnp.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)
    return jnp.mean(q**2) + jnp.sum(jnp.array([[0.3, -0.7], [0.5, 0.9]]) * entropy)


def plain_gradients(grads, heads):
    """Gradients under the golden names and layout."""
    out = {}
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = foreign_name(jax.tree_util.keystr(path).lstrip("."))
        if name.endswith("kernel"):
            g = g.reshape(g.shape[0], -1).T
        out[name] = np.asarray(g)
    return out


def test_parameter_gradients(golden, x64):
    critic = critic_from_arrays(parameters(golden, np.float64), HEADS)
    s, a = (jnp.asarray(golden[f"in/{x}"].astype(np.float64)) for x in ("observations", "actions"))
    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(mixed_scalar))(critic, s, a)
    np.testing.assert_allclose(value, golden["f64/mixed_scalar"], rtol=0, atol=1e-12)
    grads = plain_gradients(grads, HEADS)
    names = {name.removeprefix("f64/grad/") for name in golden if name.startswith("f64/grad/")}
    assert set(grads) == names
    for name in names:
        expected = golden[f"f64/grad/{name}"]
        np.testing.assert_allclose(grads[name].reshape(expected.shape), expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("mistake", "at_least"), [("epsilon", 5e-5), ("gelu", 1e-4), ("scale", 0.1)]
)
def test_the_bar_of_1e_5_sees_the_usual_mistakes(golden, monkeypatch, mistake, at_least):
    """Mutants: Equinox's epsilon, the erf GELU, logits scaled by the width."""
    critic = critic_from_arrays(parameters(golden, np.float32), HEADS)
    s, a = (jnp.asarray(golden[f"in/{x}"]) for x in ("observations", "actions"))
    if mistake == "epsilon":
        norms = lambda c: [n for b in c.blocks for n in (b.attention_norm, b.mlp_norm)] + [c.final_norm]
        replaced = [eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.LayerNorm(64, eps=1e-5), (n.weight, n.bias)) for n in norms(critic)]
        critic = eqx.tree_at(norms, critic, replaced)
    if mistake == "gelu":
        gelu = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))
    if mistake == "scale":
        queries = lambda c: [b.attention.query for b in c.blocks]
        critic = eqx.tree_at(queries, critic, [jax.tree.map(lambda x: x / np.float32(np.sqrt(2)), q) for q in queries(critic)])
    error = np.max(np.abs(jax.vmap(critic)(s, a) - golden["f32/q"]))
    assert error > at_least


def test_critic_from_arrays_names_what_is_wrong(golden):
    good = parameters(golden, np.float32)
    for broken, words in [
        ({k: v for k, v in good.items() if k != "block1/mlp_in/bias"}, "missing arrays: ['block1/mlp_in/bias']"),
        (good | {"block0/query_norm/scale": np.ones(32)}, "unknown arrays: ['block0/query_norm/scale']"),
        ({k: v for k, v in good.items() if k != "value_token"}, "need 'value_token' [d_model]"),
        (good | {"block300/foo": np.ones(3)}, "unknown arrays: ['block300/foo']"),
        (good | {"value_token": np.float32(1.0)}, "'value_token': []"),
        (good | {"head0/out/kernel": np.ones((31, 1))}, "'head0/out/kernel' is float64[31, 1], but must be float[32, 1]"),
        (good | {"block0/query/kernel": good["block0/query/kernel"].reshape(64, 64)}, "must be float[64, 2, 32]"),
        (good | {"final_norm/bias": np.full(64, np.nan, np.float32)}, "'final_norm/bias' holds NaN or Inf"),
        (good | {"final_norm/bias": np.array([None] * 64)}, "'final_norm/bias' is object"),
    ]:
        with pytest.raises(CheckpointError) as error:
            critic_from_arrays(broken, HEADS)
        assert words in str(error.value)
    for heads in (3, 0):
        with pytest.raises(CheckpointError, match=f"not a multiple of heads {heads}"):
            critic_from_arrays(good, heads)
