"""A component by its name or from a reader's own file, and the one line that each mistake gets."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.attention import ATTENTIONS, BLOCKS, AbstractAttention, AbstractBlock, SoftmaxAttention
from tql.components import build, checked, find_class
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.loop import TQL, make_actor, make_controller, make_critic
from tql.tokenizer import TOKENIZERS, AbstractTokenizer, ScalarTokenizer
from tql.variants.qk_norm import QKNorm
from tql.variants.softcap import Softcap

MINE = """
import equinox as eqx
import jax
import jax.numpy as jnp

from tql.attention import AbstractAttention, SoftmaxAttention
from tql.entropy_controller import AbstractEntropyController
from tql.flow_actor import AbstractActor, ActorLosses
from tql.tokenizer import AbstractTokenizer, ScalarTokenizer


class Twice(AbstractTokenizer):
    inner: ScalarTokenizer

    def __init__(self, n_s, n_a, d_model, *, key):
        self.inner = ScalarTokenizer(n_s, n_a, d_model, key=key)

    def __call__(self, s, a):
        return 2 * self.inner(s, a)


class Hotter(AbstractAttention):
    inner: AbstractAttention
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, inner=SoftmaxAttention, key):
        self.inner = inner(d_model, heads, key=key)
        self.d_model, self.heads = d_model, heads

    def logits(self, queries, x):
        return 3 * self.inner.logits(queries, x)

    def mix(self, logits, x):
        return self.inner.mix(logits, x)


class Annealed(AbstractEntropyController):
    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self):
        return jnp.full((len(self.target), 2), 0.5)


class Lazy(AbstractActor):
    policies = ("policy",)
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(self, n_s, n_a, *, hidden, flow_steps, key):
        self.n_s, self.n_a = n_s, n_a

    def act(self, s, z):
        return jnp.zeros_like(z)

    def next_action(self, s_next, a_next, z):
        return a_next

    def losses(self, critic, s, a, noise):
        return ActorLosses(*jnp.zeros(3))


class WithoutKey(Twice.__bases__[0]):
    def __init__(self, n_s, n_a):
        pass

    def __call__(self, s, a):
        return s


class Forgetful(AbstractTokenizer):
    def __init__(self, n_s, n_a, d_model, *, key):
        pass


class Stranger:
    pass
"""
SMALL = dict(d_model=8, heads=2, layers=1)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return lambda name: f"{tmp_path}/mine.py:{name}"


def critic(**settings):
    return make_critic(5, 3, CriticConfig(**SMALL | settings), key=jr.key(0))


# ---------------------------------------------------------------- what is found


def test_short_names():
    assert find_class("softmax", ATTENTIONS, AbstractAttention) is SoftmaxAttention
    assert find_class("qk-norm", ATTENTIONS, AbstractAttention) is QKNorm
    for known, seam in ((ATTENTIONS, AbstractAttention), (BLOCKS, AbstractBlock)):
        assert all(issubclass(find_class(name, known, seam), seam) for name in known)


def test_wrappers_combine_the_outermost_first():
    attention = critic(attention="softcap+qk-norm").blocks[0].attention
    assert type(attention) is Softcap and type(attention.inner) is QKNorm
    assert type(attention.inner.inner) is SoftmaxAttention


def test_a_readers_own_file(mine):
    """Every component, a wrapper around one of ours, and an agent made of them. The file is loaded
    once, so that a class is itself wherever it is found."""
    s, a = jnp.ones(5), jnp.ones(3)
    paper, own = critic(), critic(tokenizer=mine("Twice"), attention=mine("Hotter") + "+qk-norm")
    np.testing.assert_allclose(own.tokenizer(s, a), 2 * paper.tokenizer(s, a))
    assert type(own.blocks[0].attention.inner) is QKNorm
    again = critic(attention=mine("Hotter"))
    assert type(again.blocks[0].attention) is type(own.blocks[0].attention)

    config = TQLConfig(
        task="scene-play-v0",
        critic=CriticConfig(**SMALL, tokenizer=mine("Twice")),
        control=ControlConfig(kind=mine("Annealed")),
        actor=ActorConfig(kind=mine("Lazy"), hidden=(7,)),
    )
    assert make_controller(5, 3, config).alpha().tolist() == [[0.5, 0.5]]
    assert make_actor(5, 3, config, key=jr.key(0)).policies == ("policy",)
    assert TQL.create(5, 3, config).policy("policy")(s, jr.key(1)).tolist() == [0, 0, 0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("skalar", "no AbstractTokenizer named 'skalar'; choose scalar, or a class in your own"),
        ("", "no AbstractTokenizer named ''"),
        ("pathlib:Path", "no AbstractTokenizer named 'pathlib:Path'"),
        ("nowhere.py:Mine", r"nowhere.py: there is no such file \(looked for /.*nowhere.py\)"),
        ("scalar+scalar", "'scalar' does not take `inner`, so it cannot wrap 'scalar'"),
    ],
)
def test_a_name_that_there_is_not(name, words):
    with pytest.raises(ValueError, match=words):
        find_class(name, TOKENIZERS, AbstractTokenizer)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Fourier", "mine.py has no class Fourier; the settings ask for '.*mine.py:Fourier'"),
        ("Stranger", "Stranger' is not a subclass of AbstractTokenizer; let it inherit from it"),
        ("Annealed", "Annealed' is not a subclass of AbstractTokenizer"),
        ("MINE", "mine.py has no class MINE"),
        ("jnp", "jnp' is not a subclass of AbstractTokenizer"),
        ("Forgetful", "Forgetful' does not define __call__, as AbstractTokenizer demands"),
    ],
)
def test_a_file_without_the_class(mine, name, words):
    with pytest.raises(ValueError, match=words):
        find_class(mine(name), TOKENIZERS, AbstractTokenizer)


def test_a_file_that_breaks_while_it_is_loaded(tmp_path):
    """Its own error is shown, and the repaired file is loaded afresh."""
    file = tmp_path / "broken.py"
    for content, error in (("1 / 0", ZeroDivisionError), ("x = 1", ValueError)):
        file.write_text(content)
        with pytest.raises(error):
            find_class(f"{file}:Mine", TOKENIZERS, AbstractTokenizer)


def test_a_constructor_with_other_arguments(mine):
    """The message has the constructor's own signature and the call that it must take."""
    words = r"WithoutKey\(n_s, n_a\).* is built as WithoutKey\(5, 3, 8, key=\.\.\.\) but too many"
    with pytest.raises(ValueError, match=words):
        critic(tokenizer=mine("WithoutKey"))
    with pytest.raises(ValueError, match="unexpected keyword argument 'size'"):
        build(ScalarTokenizer, 5, 3, 8, size=1, key=jr.key(0))


def test_an_error_inside_a_constructor_is_not_hidden():
    """Only the arguments are judged."""

    def make(x):
        raise TypeError("a mistake of its own")

    with pytest.raises(TypeError, match="a mistake of its own"):
        build(make, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            jnp.zeros((3, 2)),
            r"f\(x\) returned shape \(3, 2\); it must be an array of shape \(2, 3\)",
        ),
        (jnp.zeros(()), r"returned shape \(\)"),
        (None, r"returned type NoneType"),
        ((jnp.zeros((2, 3)),), r"returned type tuple"),
        (3.0, r"returned type float"),
    ],
)
def test_an_output_of_the_wrong_shape(value, words):
    with pytest.raises(ValueError, match=words):
        checked(value, (2, 3), "f(x)")
    assert checked(jnp.ones((2, 3)), (2, 3), "f(x)").shape == (2, 3)
