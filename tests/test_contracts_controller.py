"""The checks of temperatures and controllers: right answers in several styles pass, and each wrong
one fails with the words that name its mistake."""

import math
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tql.contracts.contract import Wrong
from tql.contracts.controller import (
    check_controller,
    check_head_controller,
    check_temperature_losses,
)
from tql.entropy_controller import (
    CONTROLLERS,
    AbstractEntropyController,
    TemperaturePerGroup,
)

sg = jax.lax.stop_gradient


def attention_loss(log_alpha, H):
    return -jnp.mean(sg(jnp.exp(log_alpha)) * H)


def temperature_loss(log_alpha, H, T):
    return jnp.mean(jnp.exp(log_alpha) * (sg(H) - T))


def fails(words, check, *mine):
    with pytest.raises(Wrong, match=re.escape(words)):
        check(*mine)


# ---- the two losses ------------------------------------------------------------------------------


def attention_by_loops(log_alpha, H):
    total = 0.0
    for layer in range(H.shape[0]):
        for group in range(2):
            total = total - jnp.exp(sg(log_alpha[layer, group])) * H[layer, group]
    return total / H.size


def temperature_by_loops(log_alpha, H, T):
    still = sg(H)
    terms = [jnp.exp(l) * (h - t) for row in zip(log_alpha, still, T) for l, h, t in zip(*row)]
    return sum(terms) / len(terms)


def attention_by_einsum(log_alpha, H):
    return -jnp.einsum("lg,lg->", sg(jnp.exp(log_alpha)), H) / H.size


def temperature_by_vmap(log_alpha, H, T):
    one = lambda l, h, t: jnp.exp(l) * (sg(h) - t)
    return jax.vmap(jax.vmap(one))(log_alpha, H, T).mean()


def by_library(log_alpha, target=((1.0, 1.0),)):
    """The library's controller at these temperatures."""
    like = TemperaturePerGroup(target, 100)
    return eqx.tree_at(lambda controller: controller.log_alpha, like, log_alpha)


def library_attention(log_alpha, H):
    return by_library(log_alpha, ((1.0, 1.0),) * len(H)).attention_loss(H)


RIGHT = {
    "plain": (attention_loss, temperature_loss),
    "loops": (attention_by_loops, temperature_by_loops),
    "einsum and vmap": (attention_by_einsum, temperature_by_vmap),
    "compiled": (jax.jit(attention_loss), jax.jit(temperature_loss)),
    "library": (library_attention, temperature_loss),
}


@pytest.mark.parametrize("style", RIGHT)
def test_right_losses_pass_in_any_style(style):
    check_temperature_losses(*RIGHT[style])


def test_right_losses_pass_in_float64(x64):
    check_temperature_losses(attention_loss, temperature_loss)


def not_written(*_):
    raise NotImplementedError


WRONG_ATTENTION = {
    "sign": (lambda l, H: jnp.mean(sg(jnp.exp(l)) * H), "the sign of the attention loss"),
    "not stopped": (
        lambda l, H: -jnp.mean(jnp.exp(l) * H),
        "the attention loss moves the temperatures: stop the gradient at alpha",
    ),
    "stopped at H": (
        lambda l, H: -jnp.mean(sg(jnp.exp(l)) * sg(H)),
        "the attention loss does not reach the entropy",
    ),
    "log alpha": (lambda l, H: -jnp.mean(sg(l) * H), "log alpha in place of alpha"),
    "sum": (lambda l, H: -jnp.sum(sg(jnp.exp(l)) * H), "a sum in place of a mean"),
    "sum over layers": (
        lambda l, H: -jnp.sum(jnp.mean(sg(jnp.exp(l)) * H, axis=1)),
        "a sum over layers in place of a mean",
    ),
    "no reduction": (lambda l, H: -sg(jnp.exp(l)) * H, "one number per layer and group"),
    "no temperature": (lambda l, H: -jnp.mean(H) + 0 * l[0, 0], "the temperature is missing"),
    "mean of means": (
        lambda l, H: -jnp.mean(sg(jnp.exp(l))) * jnp.mean(H),
        "takes the mean of alpha and the mean of H before it multiplies",
    ),
    "numpy": (lambda l, H: -np.mean(np.exp(l) * H), "turns a JAX array into a NumPy array"),
    "branch": (
        lambda l, H: -jnp.mean(sg(jnp.exp(l)) * H) if jnp.all(H >= 0) else jnp.zeros(()),
        "branches on the value",
    ),
    "NaN gradient": (
        lambda l, H: -jnp.mean(sg(jnp.exp(l)) * jnp.sqrt(H) ** 2),
        "the result is not finite",
    ),
    "right at one layer": (
        lambda l, H: -jnp.mean(sg(jnp.exp(l[:1])) * H),
        "the loss is wrong",
    ),
    "python": (lambda l, H: None, "gave NoneType"),
    "integer": (lambda l, H: jnp.zeros((), int), "expected floats"),
    "stub": (not_written, "is not written yet"),
}
WRONG_TEMPERATURE = {
    "sign": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * (T - sg(H))),
        "the sign of the temperature loss is wrong",
    ),
    "not stopped": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * (H - T)),
        "the gradient reaches the critic through the entropy in the temperature loss: stop it",
    ),
    "stopped at alpha": (
        lambda l, H, T: jnp.mean(sg(jnp.exp(l)) * (sg(H) - T)),
        "the temperature loss does not reach the temperatures",
    ),
    "log alpha": (lambda l, H, T: jnp.mean(l * (sg(H) - T)), "log alpha in place of alpha"),
    "log alpha's gradient": (
        lambda l, H, T: jnp.mean((sg(jnp.exp(l) - l) + l) * (sg(H) - T)),
        "a wrong gradient at log_alpha",
    ),
    "no target": (lambda l, H, T: jnp.mean(jnp.exp(l) * sg(H)), "the target is missing"),
    "sum": (
        lambda l, H, T: jnp.sum(jnp.exp(l) * (sg(H) - T)),
        "the temperature loss is a sum in place",
    ),
    "sum over layers": (
        lambda l, H, T: jnp.sum(jnp.mean(jnp.exp(l) * (sg(H) - T), axis=1)),
        "a sum over layers in place of a mean",
    ),
    "size": (lambda l, H, T: jnp.mean(jnp.exp(l) * jnp.abs(sg(H) - T)), "without its sign"),
    "square": (lambda l, H, T: jnp.mean(jnp.exp(l) * (sg(H) - T) ** 2), "squares H - T"),
    "floor": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * jnp.minimum(sg(H) - T, 0)),
        "counts only entropies that are below",
    ),
    "groups exchanged": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * (sg(H) - T[:, ::-1])),
        "the two groups' targets are exchanged",
    ),
    "mean of means": (
        lambda l, H, T: jnp.mean(jnp.exp(l)) * jnp.mean(sg(H) - T),
        "takes means before it multiplies",
    ),
    "first target": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * (sg(H) - T[:1])),
        "the loss is wrong",
    ),
    "NaN gradient": (
        lambda l, H, T: jnp.mean(jnp.exp(l) * (sg(H) - T) + 0 * jnp.log(jnp.exp(l))),
        "the result is not finite",
    ),
    "stub": (not_written, "is not written yet"),
}


@pytest.mark.parametrize("name", WRONG_ATTENTION)
def test_a_wrong_attention_loss_is_named(name):
    loss, words = WRONG_ATTENTION[name]
    fails(words, check_temperature_losses, loss, temperature_loss)


@pytest.mark.parametrize("name", WRONG_TEMPERATURE)
def test_a_wrong_temperature_loss_is_named(name):
    loss, words = WRONG_TEMPERATURE[name]
    fails(words, check_temperature_losses, attention_loss, loss)


def test_what_is_no_function_is_named():
    fails("attention_loss cannot be called; it is float", check_temperature_losses, 1.0, 2.0)


# ---- one temperature per head --------------------------------------------------------------------


class PerHead(eqx.Module):
    log_alpha: jax.Array
    target: tuple = eqx.field(static=True)

    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.zeros((len(target), heads, 2)), target

    @property
    def T(self):
        return jnp.array(self.target)[:, None]

    def alpha(self):
        return jnp.exp(self.log_alpha)

    def attention_loss(self, H):
        return -jnp.mean(sg(self.alpha()) * H)

    def temperature_loss(self, H):
        return jnp.mean(self.alpha() * (sg(H) - self.T))


class ByLoops(PerHead):
    def attention_loss(self, H):
        layers, heads, _ = H.shape
        each = [(l, h, g) for l in range(layers) for h in range(heads) for g in range(2)]
        return -sum(sg(jnp.exp(self.log_alpha[at])) * H[at] for at in each) / len(each)

    def temperature_loss(self, H):
        total = 0.0
        for l, pair in enumerate(self.target):
            for h in range(H.shape[1]):
                for g in range(2):
                    total += jnp.exp(self.log_alpha[l, h, g]) * (sg(H[l, h, g]) - pair[g])
        return total / H.size


class ByVmap(PerHead):
    def temperature_loss(self, H):
        one = lambda alpha, H, T: jnp.mean(alpha * (sg(H) - T))
        heads = jax.vmap(one, in_axes=(0, 0, None))
        return jax.vmap(heads)(self.alpha(), H, jnp.array(self.target)).mean()


class TargetAsArray(PerHead):
    """Its target is a leaf of the PyTree, and no gradient reaches it."""

    target: jax.Array

    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.zeros((len(target), heads, 2)), jnp.array(target)

    def temperature_loss(self, H):
        return jnp.mean(self.alpha() * sg(H - self.target[:, None]))


@pytest.mark.parametrize("Mine", [PerHead, ByLoops, ByVmap, TargetAsArray])
def test_a_right_head_controller_passes_in_any_style(Mine):
    check_head_controller(Mine)


def test_a_right_head_controller_passes_in_float64(x64):
    check_head_controller(PerHead)


def wrong_head(**methods):
    return type("Mine", (PerHead,), methods)


class PerGroup(PerHead):
    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.zeros((len(target), 2)), target


class OtherAxes(PerHead):
    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.zeros((heads, len(target), 2)), target


class NumpyWeights(PerHead):
    def __init__(self, target, heads):
        self.log_alpha, self.target = np.zeros((len(target), heads, 2), np.float32), target


class StartsAtOne(PerHead):
    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.ones((len(target), heads, 2)), target


class TrainedTarget(PerHead):
    target: jax.Array

    def __init__(self, target, heads):
        self.log_alpha, self.target = jnp.zeros((len(target), heads, 2)), jnp.array(target)


class Stub(PerHead):
    def __init__(self, target, heads):
        raise NotImplementedError


class NoModule:
    def __init__(self, target, heads):
        self.log_alpha = jnp.zeros((len(target), heads, 2))


def mean_over_heads(self, H):
    mean = jnp.mean(sg(H), axis=1, keepdims=True)
    return jnp.mean(self.alpha() * (mean - self.T))


WRONG_HEADS = {
    "per group": (PerGroup, "the heads of a group share one temperature"),
    "other axes": (OtherAxes, "in another order than layer, head, group"),
    "numpy": (NumpyWeights, "log_alpha is a NumPy array"),
    "start": (StartsAtOne, "the temperatures do not start at 1"),
    "trained target": (TrainedTarget, "moves something besides log_alpha, perhaps the target"),
    "stub": (Stub, "is not written yet"),
    "no module": (NoModule, "the controller is no eqx.Module"),
    "alpha": (wrong_head(alpha=lambda self: self.log_alpha), "alpha() returns log alpha"),
    "softplus": (
        wrong_head(alpha=lambda self: jax.nn.softplus(self.log_alpha)),
        "alpha() is a softplus",
    ),
    "shared entropy": (
        wrong_head(temperature_loss=mean_over_heads),
        "the heads of a group share a mean",
    ),
    "shared temperature": (
        wrong_head(
            temperature_loss=lambda self, H: jnp.mean(
                self.alpha().mean(axis=1, keepdims=True) * (sg(H) - self.T)
            )
        ),
        "the heads of a group share a mean",
    ),
    "along the heads": (
        wrong_head(
            temperature_loss=lambda self, H: jnp.mean(
                self.alpha()
                * (sg(H) - (jnp.array(self.target)[None] if H.shape[0] == H.shape[1] else self.T))
            )
        ),
        "the target is laid along the heads",
    ),
    "sign": (
        wrong_head(temperature_loss=lambda self, H: jnp.mean(self.alpha() * (self.T - sg(H)))),
        "the sign of the temperature loss is wrong",
    ),
    "attention's sign": (
        wrong_head(attention_loss=lambda self, H: jnp.mean(sg(self.alpha()) * H)),
        "the sign of the attention loss is wrong",
    ),
    "attention not stopped": (
        wrong_head(attention_loss=lambda self, H: -jnp.mean(self.alpha() * H)),
        "the attention loss moves the temperatures: stop the gradient at alpha",
    ),
    "entropy not stopped": (
        wrong_head(temperature_loss=lambda self, H: jnp.mean(self.alpha() * (H - self.T))),
        "the gradient reaches the critic through the entropy in the temperature loss",
    ),
    "sum over heads": (
        wrong_head(attention_loss=lambda self, H: -jnp.mean(jnp.sum(sg(self.alpha()) * H, axis=1))),
        "the attention loss is a sum over heads in place of a mean",
    ),
    "groups exchanged": (
        wrong_head(
            temperature_loss=lambda self, H: jnp.mean(self.alpha() * (sg(H) - self.T[..., ::-1]))
        ),
        "the two groups' targets are exchanged",
    ),
    "off by one layer": (
        wrong_head(
            temperature_loss=lambda self, H: jnp.mean(
                self.alpha() * (sg(H) - jnp.roll(self.T, 1, axis=0))
            )
        ),
        "the layers' targets are in reverse order",
    ),
}


@pytest.mark.parametrize("name", WRONG_HEADS)
def test_a_wrong_head_controller_is_named(name):
    Mine, words = WRONG_HEADS[name]
    fails(words, check_head_controller, Mine)


def test_a_target_along_the_heads_raises_at_other_sizes():
    """What the student sees then is the error of the shapes, and the call at which it came."""
    method = lambda self, H: jnp.mean(self.alpha() * (sg(H) - jnp.array(self.target)))
    fails("temperature_loss(H) of 2 layers and 3 heads raised", check_head_controller,
          wrong_head(temperature_loss=method))  # fmt: skip


# ---- any controller ------------------------------------------------------------------------------


class PerLayer(AbstractEntropyController):
    """The example of tql/README.md."""

    log_alpha: jax.Array
    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target, n):
        self.log_alpha, self.target, self.n = jnp.zeros(len(target)), target, n

    def alpha(self):
        return jnp.repeat(jnp.exp(self.log_alpha)[:, None], 2, axis=1)


class Softplus(TemperaturePerGroup):
    """Another way to keep a temperature above 0."""

    def alpha(self):
        return jax.nn.softplus(self.log_alpha)


class ByLogAlpha(TemperaturePerGroup):
    """As in some versions of SAC: it descends log alpha (H - T), with the same directions."""

    def temperature_loss(self, H):
        return jnp.sum(self.log_alpha * (sg(H) - jnp.array(self.target)))


@pytest.mark.parametrize("Mine", [*CONTROLLERS.values(), PerLayer, Softplus, ByLogAlpha])
def test_the_librarys_controllers_and_others_pass(Mine):
    check_controller(Mine)


def wrong_controller(**methods):
    return type("Mine", (TemperaturePerGroup,), methods)


class Accepts(AbstractEntropyController):
    """It moves a target that cannot be reached to where it can be."""

    log_alpha: jax.Array
    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target, n):
        self.log_alpha, self.n = jnp.zeros((len(target), 2)), n
        self.target = tuple(tuple(min(max(T, 0.1), 0.99 * math.log(n)) for T in p) for p in target)

    def alpha(self):
        return jnp.exp(self.log_alpha)


class Forgets(PerLayer):
    def __init__(self, target, n):
        self.log_alpha, self.n = jnp.zeros(len(target)), n
        self.target = ((1.0, 1.0),) * len(target)


T = lambda self: jnp.array(self.target)
WRONG_CONTROLLERS = {
    "sign": (
        wrong_controller(
            temperature_loss=lambda self, H: jnp.mean(self.alpha() * (T(self) - sg(H)))
        ),
        "the temperatures move the wrong way: below the target a temperature should grow",
    ),
    "groups exchanged": (
        wrong_controller(
            temperature_loss=lambda self, H: jnp.mean(self.alpha() * (sg(H) - T(self)[:, ::-1]))
        ),
        "the temperatures move the wrong way",
    ),
    "not stopped": (
        wrong_controller(temperature_loss=lambda self, H: jnp.mean(self.alpha() * (H - T(self)))),
        "the gradient reaches the critic through the entropy in the temperature loss: stop it",
    ),
    "stopped everywhere": (
        wrong_controller(
            temperature_loss=lambda self, H: jnp.mean(sg(self.alpha() * (H - T(self))))
        ),
        "nothing moves the temperatures",
    ),
    "attention's sign": (
        wrong_controller(attention_loss=lambda self, H: jnp.mean(sg(self.alpha()) * H)),
        "the sign of the attention loss is wrong",
    ),
    "attention not stopped": (
        wrong_controller(attention_loss=lambda self, H: -jnp.mean(self.alpha() * H)),
        "the attention loss moves the temperatures",
    ),
    "attention's sum": (
        wrong_controller(attention_loss=lambda self, H: -jnp.sum(sg(self.alpha()) * H)),
        "the attention loss is a sum",
    ),
    "attention by hand": (
        wrong_controller(attention_loss=lambda self, H: -jnp.mean(H) + 0 * self.log_alpha[0, 0]),
        "the attention loss is not the mean of -alpha() H",
    ),
    "shape": (wrong_controller(alpha=lambda self: jnp.exp(self.log_alpha[0])), "wrong shape"),
    "not finite": (
        wrong_controller(alpha=lambda self: jnp.exp(self.log_alpha) / self.log_alpha),
        "a temperature is not finite",
    ),
    "accepts any target": (Accepts, "should be refused with ValueError; it was accepted"),
    "forgets its target": (Forgets, "does not keep its target and n"),
    "another class": (PerHead, "does not inherit"),
    "stub": (wrong_controller(alpha=not_written), "is not written yet"),
}


@pytest.mark.parametrize("name", WRONG_CONTROLLERS)
def test_a_wrong_controller_is_named(name):
    Mine, words = WRONG_CONTROLLERS[name]
    fails(words, check_controller, Mine)


# ---- the exercise's own files --------------------------------------------------------------------

REPOSITORY = Path(__file__).parents[1]


def above_the_check(file):
    """What the grader runs of a file: the cells above the check."""
    namespace = {"__name__": "submission"}
    text = (REPOSITORY / file).read_text().partition("# %% Check")[0]
    exec(compile(text, file, "exec"), namespace)
    return namespace


def test_the_answer_file_passes():
    answer = above_the_check("tests/answers/05_temperatures.py")
    check_temperature_losses(answer["attention_loss"], answer["temperature_loss"])
    check_head_controller(answer["TemperaturePerHead"])


def test_the_stub_says_that_it_is_not_written():
    stub = above_the_check("walkthrough/exercises/05_temperatures.py")
    losses = stub["attention_loss"], stub["temperature_loss"]
    fails("is not written yet", check_temperature_losses, *losses)
    fails("is not written yet", check_head_controller, stub["TemperaturePerHead"])
