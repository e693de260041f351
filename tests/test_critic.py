"""The critic against the plain stack of whole blocks, and its doors."""

import math
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tql.attention import group_entropy
from tql.critic import AbstractCritic, Critic

N_S, N_A = 5, 3


def make(getkey, **settings):
    return Critic(N_S, N_A, **({"d_model": 6, "heads": 2, "ensemble": 3} | settings), key=getkey())


def plain(critic, s, a):
    """Every row of every block computed; then row 0 read."""
    x, logits = critic.tokenizer(s, a), []
    for block in critic.blocks:
        x, l = block(x)
        logits.append(l)
    return critic.read_out(x[0]), jnp.stack(logits)


@pytest.mark.parametrize("layers", [1, 2])
def test_last_block_for_the_value_row_alone(x64, getkey, layers):
    """Values, logits, and the gradient of both to every weight and to (s, a)."""
    rng = np.random.default_rng(layers)
    draw = lambda x: jnp.array(rng.normal(size=x.shape) / math.sqrt(x.shape[-1]))
    critic = jax.tree.map(draw, make(getkey, layers=layers))
    s, a, weights = (jnp.array(rng.normal(size=shape)) for shape in (N_S, N_A, (layers, 2)))

    def scalar(arguments, route):
        critic, s, a = arguments
        q, logits = route(critic, s, a)
        return jnp.sum(q**2) + jnp.sum(weights * jax.vmap(group_entropy)(logits)), (q, logits)

    def run(route):
        return eqx.filter_value_and_grad(scalar, has_aux=True)((critic, s, a), route)

    three = lambda: (run(Critic.with_attention), run(plain), critic(s, a))
    ours, whole, alone = eqx.filter_jit(three)()
    for fast, slow in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-12)
    (_, (q, logits)), (grads, _, _) = ours
    seen = (grads.tokenizer.v, grads.blocks[-1].attention.query.weight)
    assert min(np.abs(g).max() for g in seen) > 1e-3
    np.testing.assert_allclose(alone, q, rtol=0, atol=1e-12)
    assert q.shape == (3,) and logits.shape == (layers, 2, 9, 9)


def test_members_of_the_ensemble_differ(getkey):
    """They share the transformer and start from different heads."""
    q = make(getkey, d_model=32, layers=1)(jnp.ones(N_S), jnp.ones(N_A))
    assert len(set(q.tolist())) == 3


@pytest.mark.parametrize(
    ("s", "a", "named"),
    [
        ((4,), (3,), "s"),
        ((5,), (4,), "a"),
        ((3,), (5,), "s"),
        ((2, 5), (2, 3), "s"),
        ((), (3,), "s"),
        ((5,), (3, 1), "a"),
    ],
)
def test_wrong_shapes_fail_at_the_door(getkey, s, a, named):
    """State and action exchanged, though their sizes add up; and a batch, because the critic is for
    one (s, a)."""
    critic = make(getkey, layers=1)
    for call in (critic.__call__, critic.with_attention):
        with pytest.raises(TypeCheckError) as error:
            call(jnp.zeros(s), jnp.zeros(a))
        message = str(error.value)
        assert "tql.critic.Critic." in message and f"parameter '{named}'" in message
        for shape in (s, a):
            assert f"f32[{','.join(map(str, shape))}]" in message


def test_integers_are_no_actions(getkey):
    with pytest.raises(TypeCheckError, match=r"i32\[3\]"):
        make(getkey, layers=1)(jnp.zeros(N_S), jnp.zeros(N_A, int))


@pytest.mark.parametrize(("disable", "outcome"), [("1", "went through"), ("0", "stopped")])
def test_jaxtyping_disable(disable, outcome):
    """With the checks off the two rows of a batch are taken for one row."""
    code = """
import jax.numpy as jnp
from tql.attention import row_entropy
try:
    row_entropy(jnp.zeros((2, 3)))
    print("went through")
except Exception as error:
    assert "f32[2,3]" in str(error)
    print("stopped")
"""
    environment = os.environ | {"JAXTYPING_DISABLE": disable, "JAX_PLATFORMS": "cpu"}
    how = dict(env=environment, capture_output=True, text=True, check=True)
    assert subprocess.run([sys.executable, "-c", code], **how).stdout.strip() == outcome


def test_heads(getkey):
    """32 channels per head unless given."""
    shapes = lambda **settings: eqx.filter_eval_shape(lambda: make(getkey, **settings))
    assert shapes(d_model=64, heads=None).blocks[0].attention.heads == 2
    assert shapes(d_model=12, heads=4).blocks[0].attention.heads == 4
    with pytest.raises(ValueError, match="d_model 6 is not a multiple of the number of heads 4"):
        make(getkey, heads=4)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"ensemble": 0}, {"d_model": 48, "heads": None}])
def test_sizes_that_do_not_fit(getkey, wrong):
    with pytest.raises(ValueError, match="needs a layer, a Q head, and a d_model") as error:
        make(getkey, **wrong)
    assert all(f"{name} {x}" in str(error.value) for name, x in wrong.items() if x is not None)


def test_a_whole_critic_is_not_a_factory(getkey):
    """The message says what a factory gets."""
    with pytest.raises(ValueError, match=r"Critic\(n_s.*is built as Critic\(5, 3, 6, key=\.\.\.\)"):
        make(getkey, make_tokenizer=Critic)


def test_the_seam_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        AbstractCritic()
