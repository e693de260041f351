"""Scalars to tokens: the order of the sequence, what the embeddings are for, and another tokenizer
through the seam."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError

from tql.critic import Critic
from tql.layers import Linear, lecun_normal
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer

N_S, N_A, D_MODEL = 5, 3, 7


@pytest.fixture
def tokenizer(getkey):
    """Embeddings and biases are drawn with standard deviation 1, so that each can be seen."""
    drawn = ScalarTokenizer(N_S, N_A, D_MODEL, key=getkey())
    return jax.tree.map(lambda x: jr.normal(getkey(), x.shape), drawn)


@pytest.fixture
def s(getkey):
    return jr.normal(getkey(), (N_S,))


@pytest.fixture
def a(getkey):
    return jr.normal(getkey(), (N_A,))


def test_sequence_by_hand(getkey):
    """[VALUE], then states, then actions. Every part is a power of ten, so that each digit of a
    token names what went in."""
    tokenizer = ScalarTokenizer(2, 3, 1, key=getkey())
    parts = {"w_s": 1, "b_s": 10, "e_s": 20, "w_a": 100, "b_a": 1000, "e_a": 2000, "v": 7}
    where = lambda t: [getattr(t, name) for name in parts] + [t.p]
    p = 10_000.0 * jnp.arange(1, 6)[:, None].astype(float)
    values = [jnp.array([x], float) for x in parts.values()]
    tokenizer = eqx.tree_at(where, tokenizer, [*values, p])
    x = tokenizer(jnp.array([3.0, 4]), jnp.array([5.0, 6, 8]))
    np.testing.assert_array_equal(x[:, 0], [7, 10_033, 20_034, 33_500, 43_600, 53_800])


@pytest.mark.parametrize(
    ("s", "a"), [((N_S - 1,), (N_A,)), ((N_S,), (N_A + 1,)), ((2, N_S), (2, N_A)), ((), ())]
)
def test_wrong_shapes_fail_at_the_door(tokenizer, s, a):
    with pytest.raises(TypeCheckError) as error:
        tokenizer(jnp.zeros(s), jnp.zeros(a))
    message = str(error.value)
    assert "ScalarTokenizer.__call__" in message
    assert all(f"f32[{','.join(map(str, shape))}]" in message for shape in (s, a))


def test_state_and_action_exchanged(tokenizer, s, a):
    """Both are scalars and their sizes add up to the same n, but the tokenizer knows the split."""
    with pytest.raises(TypeCheckError, match=r"f32\[3\]"):
        tokenizer(a, s)


def without_positions(tokenizer):
    return eqx.tree_at(lambda t: t.p, tokenizer, jnp.zeros_like(tokenizer.p))


def one_modality(tokenizer):
    """Actions get what states get."""
    states = lambda t: (t.w_s, t.b_s, t.e_s)
    return eqx.tree_at(lambda t: (t.w_a, t.b_a, t.e_a), tokenizer, states(tokenizer))


def test_positions_break_the_symmetry_of_states(tokenizer, s, a):
    """Without them, permuting the states permutes their tokens: which scalar is which is lost."""
    order = jnp.array([2, 0, 1, 4, 3])
    rows = jnp.concatenate([jnp.array([0]), 1 + order, jnp.array([6, 7, 8])])
    blind = without_positions(tokenizer)
    np.testing.assert_allclose(blind(s[order], a), blind(s, a)[rows], rtol=0, atol=1e-6)
    assert np.abs(tokenizer(s[order], a) - tokenizer(s, a)[rows]).max() > 0.1


def test_modality_breaks_the_symmetry_of_states_and_actions(tokenizer, s, a):
    """Without it (and positions), a state and an action scalar could change places."""
    s_swapped, a_swapped = s.at[1].set(a[2]), a.at[2].set(s[1])
    rows = jnp.array([0, 1, 8, 3, 4, 5, 6, 7, 2])
    blind = one_modality(without_positions(tokenizer))
    np.testing.assert_allclose(blind(s_swapped, a_swapped), blind(s, a)[rows], rtol=0, atol=1e-6)
    seeing = without_positions(tokenizer)
    assert np.abs(seeing(s_swapped, a_swapped) - seeing(s, a)[rows]).max() > 0.1


def test_q_of_permuted_states(x64, getkey):
    """The same for a whole critic: attention has no order of its own, so Q sees one only through
    the positions."""
    s, a = jr.normal(getkey(), (N_S,)), jr.normal(getkey(), (N_A,))
    order = jnp.array([2, 0, 1, 4, 3])
    critic = Critic(N_S, N_A, d_model=12, heads=3, layers=1, key=getkey())
    critic = eqx.tree_at(lambda c: c.tokenizer.p, critic, jr.normal(getkey(), (N_S + N_A, 12)))
    blind = eqx.tree_at(lambda c: c.tokenizer, critic, without_positions(critic.tokenizer))
    q = eqx.filter_jit(lambda critic, s, a: critic(s, a))
    np.testing.assert_allclose(q(blind, s[order], a), q(blind, s, a), rtol=0, atol=1e-13)
    assert np.abs(q(critic, s[order], a) - q(critic, s, a)).max() > 1e-2


class Waves(AbstractTokenizer):
    """A tokenizer of one's own: one map for all scalars, of their sines at growing frequencies."""

    embed: Linear
    v: Float[Array, " d_model"]

    def __init__(self, n_s, n_a, d_model, *, key):
        k_embed, k_v = jr.split(key)
        self.embed = Linear(lecun_normal, 4, d_model, key=k_embed)
        self.v = jr.normal(k_v, (d_model,))

    def __call__(self, s, a):
        x = jnp.concatenate([s, a])[:, None]
        return jnp.concatenate([self.v[None], self.embed(jnp.sin(x * jnp.array([[1.0, 2, 4, 8]])))])


def small(make_tokenizer, key):
    return Critic(N_S, N_A, d_model=4, heads=2, layers=1, make_tokenizer=make_tokenizer, key=key)


def test_a_tokenizer_of_ones_own(getkey, s, a):
    """Through the seam alone: its weights get gradients, and Q is what its tokens give."""
    critic = small(Waves, getkey())
    grads = eqx.filter_jit(eqx.filter_grad(lambda c: jnp.sum(c(s, a))))(critic)
    assert np.abs(grads.tokenizer.embed.weight).max() > 0 and np.abs(grads.tokenizer.v).max() > 0
    q = eqx.filter_jit(lambda c, s, a: c(s, a))
    # A whole turn of every sine: nothing that goes through such a tokenizer can tell them apart.
    turned = q(critic, s + 2 * np.float32(np.pi), a)
    np.testing.assert_allclose(turned, q(critic, s, a), atol=1e-4)
    assert np.abs(q(critic, s + 1, a) - q(critic, s, a)).max() > 1e-2


class Wrapping(AbstractTokenizer):
    """The paper's tokenizer, and then a mistake."""

    inner: ScalarTokenizer
    mistake: str = eqx.field(static=True)

    def __call__(self, s, a):
        return {
            "forgets [VALUE]": lambda: self.inner(s, a)[1:],
            "one token too many": lambda: jnp.concatenate([self.inner(s, a)] * 2)[:10],
            "too narrow": lambda: self.inner(s, a)[:, :2],
            "two arrays": lambda: (self.inner(s, a), s),
        }[self.mistake]()


@pytest.mark.parametrize(
    ("mistake", "returned"),
    [
        ("forgets [VALUE]", r"shape \(8, 4\)"),
        ("one token too many", r"shape \(10, 4\)"),
        ("too narrow", r"shape \(9, 2\)"),
        ("two arrays", "type tuple"),
    ],
)
def test_what_a_tokenizer_returns_is_checked(getkey, s, a, mistake, returned):
    make = lambda *sizes, key: Wrapping(ScalarTokenizer(*sizes, key=key), mistake)
    critic = small(make, getkey())
    for call in (critic, critic.with_attention):
        with pytest.raises(ValueError, match=rf"tokenizer\(s, a\) returned .*{returned}.*\(9, 4\)"):
            call(s, a)
