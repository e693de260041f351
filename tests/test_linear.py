"""The affine map, its initialisation, and what weight decay touches."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref
from jaxtyping import TypeCheckError

from tql.linear import Linear, decayed, glorot_uniform, lecun_normal

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


@pytest.mark.parametrize(
    ("initialise", "std", "limit"),
    [
        (lecun_normal, ref.lecun_normal_std(D_IN), ref.lecun_normal_limit(D_IN)),
        (glorot_uniform, ref.glorot_uniform_std(D_IN, D_OUT), math.sqrt(3) * ref.glorot_uniform_std(D_IN, D_OUT)),
    ],
)
def test_initial_spread(getkey, initialise, std, limit):
    """Within 4 standard errors; with fan-in and fan-out swapped LeCun's would be half as wide."""
    linear = Linear(initialise, D_IN, D_OUT, key=getkey())
    w = np.asarray(linear.weight)
    assert w.shape == (D_OUT, D_IN) and w.dtype == np.float32
    assert w.mean() == pytest.approx(0, abs=4 * std / math.sqrt(w.size))
    assert w.std() == pytest.approx(std, rel=4 / math.sqrt(2 * w.size))
    assert 0.97 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
    assert not linear.bias.any()


def test_decay_moves_only_matrices_of_linears(getkey, optax_promotion):
    """A step with zero gradients: AdamW then does nothing but decay. A matrix outside a `Linear` keeps its size too."""

    def tree(linear):
        return {"maps": [linear, linear], "embedding": jnp.ones((3, 5)), "norm": eqx.nn.LayerNorm(5), "temperature": jnp.ones(())}

    linear = eqx.tree_at(lambda m: m.bias, Linear(lecun_normal, 2, 3, key=getkey()), jnp.ones(3))
    model = tree(linear)
    mask = decayed(model)
    optimiser = optax.adamw(0.1, weight_decay=0.5, mask=decayed)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, _ = jax.jit(lambda p: optimiser.update(jax.tree.map(jnp.zeros_like, p), optimiser.init(p), p))(params)
    moved = eqx.apply_updates(model, updates)
    expected = tree(eqx.tree_at(lambda m: m.weight, linear, 0.95 * linear.weight))
    for new, right in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(new, right, rtol=1e-6)
    assert sum(flag is True for flag in jax.tree.leaves(mask)) == 2
