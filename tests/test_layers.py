"""The affine map, the MLP, their initial weights, and what weight decay touches."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref
from jaxtyping import TypeCheckError

from tql.layers import MLP, Linear, decayed, glorot_uniform, lecun_normal

D_IN, D_OUT = 53, 211


def test_affine_by_hand(getkey):
    linear = Linear(lecun_normal, 2, 3, key=getkey())
    weight, bias = jnp.array([[1.0, 2], [3, 4], [5, 6]]), jnp.array([100.0, 200, 300])
    linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (weight, bias))
    np.testing.assert_array_equal(linear(jnp.array([1.0, 10])), [121, 243, 365])
    rows = linear(jnp.array([[[1.0, 10]], [[0, 0]]]))
    np.testing.assert_array_equal(rows, [[[121, 243, 365]], [[100, 200, 300]]])


def test_wrong_width_names_both_shapes(getkey):
    with pytest.raises(TypeCheckError, match=r"(?s)f32\[7,3\].*\*rows \{self.d_in\}"):
        Linear(lecun_normal, 2, 5, key=getkey())(jnp.zeros((7, 3)))


LECUN = ref.lecun_normal_std(D_IN), ref.lecun_normal_limit(D_IN)
GLOROT = ref.glorot_uniform_std(D_IN, D_OUT)


@pytest.mark.parametrize(
    ("initial", "std", "limit"),
    [(lecun_normal, *LECUN), (glorot_uniform, GLOROT, math.sqrt(3) * GLOROT)],
)
def test_initial_spread(getkey, initial, std, limit):
    """Within 4 standard errors. With fan-in and fan-out swapped LeCun's would be half as wide."""
    linear = Linear(initial, D_IN, D_OUT, key=getkey())
    w = np.asarray(linear.weight)
    assert w.shape == (D_OUT, D_IN) and w.dtype == np.float32
    assert w.mean() == pytest.approx(0, abs=4 * std / math.sqrt(w.size))
    assert w.std() == pytest.approx(std, rel=4 / math.sqrt(2 * w.size))
    assert 0.97 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
    assert not linear.bias.any()


def test_mlp_without_norms_and_with_another_last_matrix(getkey):
    """`test_parity.py` holds the MLP with norms; here its two options, by hand."""
    zeros = jax.nn.initializers.zeros
    mlp = MLP(3, 2, (5, 7), layer_norm=False, last=zeros, key=getkey())
    assert not mlp.layers[-1].weight.any() and mlp.layers[1].weight.any()
    mlp = eqx.tree_at(lambda m: m.layers[-1].weight, mlp, jnp.ones((2, 7)))
    h = np.ones(3)
    for layer in mlp.layers[:-1]:
        h = ref.gelu(np.asarray(layer.weight) @ h)
    np.testing.assert_allclose(mlp(jnp.ones(3)), [h.sum()] * 2, rtol=1e-5)


def test_decay_moves_only_matrices_of_linears(getkey, optax_promotion):
    """A step with zero gradients: AdamW then does nothing but decay. A matrix outside a `Linear`
    keeps its size too."""

    def tree(linear):
        embedding, norm = jnp.ones((3, 5)), eqx.nn.LayerNorm(5)
        return {"maps": [linear, linear], "e": embedding, "norm": norm, "alpha": jnp.ones(())}

    linear = eqx.tree_at(lambda m: m.bias, Linear(lecun_normal, 2, 3, key=getkey()), jnp.ones(3))
    model = tree(linear)
    optimiser = optax.adamw(0.1, weight_decay=0.5, mask=decayed)
    parameters = eqx.filter(model, eqx.is_inexact_array)
    nothing = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimiser.update(nothing, optimiser.init(parameters), parameters)
    moved = eqx.apply_updates(model, updates)
    expected = tree(eqx.tree_at(lambda m: m.weight, linear, 0.95 * linear.weight))
    for new, right in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(new, right, rtol=1e-6)
    assert sum(flag is True for flag in jax.tree.leaves(decayed(model))) == 2
