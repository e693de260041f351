r"""Checks of the dual update of a temperature: the two losses, a controller per head, and any
controller.

The truth is computed here in float64 with loops over layers, groups and heads, and so are the
answers to which the usual mistakes lead. In the examples the temperatures, entropies and targets
all differ, so that no two of these answers are equal.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tql.contracts.contract import Wrong, call, close, compare, numbers, words
from tql.entropy_controller import ALPHA_MAX, AbstractEntropyController

TARGET = ((2.0, 1.7), (1.5, 1.1), (0.9, 1.2))
"""Three layers, in nats."""

N = 13
"""Tokens; ln 13 = 2.565 nats is the largest entropy."""

Array = np.ndarray


# ---- the two losses ------------------------------------------------------------------------------


def check_temperature_losses(attention_loss: Any, temperature_loss: Any) -> None:
    r"""Raises `Wrong` unless `attention_loss(log_alpha, H)` is $\langle -\mathrm{sg}(\alpha) H
    \rangle$ and `temperature_loss(log_alpha, H, T)` is $\langle \alpha (\mathrm{sg}(H) - T)
    \rangle$, all arrays [L, 2], with their gradients."""
    _check_callable(attention_loss, "attention_loss")
    _check_callable(temperature_loss, "temperature_loss")
    for log_alpha, H, T in _examples():
        _check_attention_value(attention_loss, log_alpha, H)
        _check_temperature_value(temperature_loss, log_alpha, H, T)
    for log_alpha, H, T in _examples():
        _check_attention_gradients(attention_loss, log_alpha, H)
        _check_temperature_gradients(temperature_loss, log_alpha, H, T)
    _check_extremes(attention_loss, temperature_loss)
    _check_compiled(attention_loss, temperature_loss)


def _examples() -> Iterator[tuple[Array, Array, Array]]:
    """log alpha, H and T: first one layer that can be worked out in the head (the temperatures are
    2 and 3), then three layers drawn at random, twice."""
    yield np.log([[2.0, 3.0]]), np.array([[1.0, 5.0]]), np.array([[2.0, 1.0]])
    rng = np.random.default_rng(5)
    for _ in range(2):
        shape = (3, 2)
        yield rng.normal(size=shape), rng.uniform(0.1, 2.5, shape), rng.uniform(0.5, 2.0, shape)


def _attention_truth(alpha: Array, H: Array) -> float:
    total = 0.0
    for a, h in zip(alpha.ravel(), H.ravel(), strict=True):
        total -= a * h
    return total / alpha.size


def _temperature_truth(alpha: Array, H: Array, T: Array) -> float:
    total = 0.0
    for a, h, t in zip(alpha.ravel(), H.ravel(), T.ravel(), strict=True):
        total += a * (h - t)
    return total / alpha.size


def _sums(loss: str, right: float, layers: int) -> dict[str, float]:
    """Sums where a mean should be. With one layer they cannot be told apart."""
    if layers == 1:
        return {f"the {loss} is a sum in place of a mean": 2 * right}
    factors = {"layers and groups": 2 * layers, "layers": layers, "groups": 2}
    return {
        f"the {loss} is a sum over {over} in place of a mean": factor * right
        for over, factor in factors.items()
    }


def _check_attention_value(loss: Callable, log_alpha: Array, H: Array) -> None:
    alpha = np.exp(log_alpha)
    right = _attention_truth(alpha, H)
    example = f"attention_loss(log_alpha, H) with alpha = {words(alpha)}, H = {words(H)}"
    mistakes = _sums("attention loss", right, len(H)) | {
        "the sign of the attention loss is wrong: as it is, descending it lowers the entropy, and "
        "it should raise it": -right,
        "the attention loss weighs the entropy with log alpha in place of alpha: take the "
        "exponential": _attention_truth(log_alpha, H),
        "the temperature is missing in the attention loss: alpha weighs the entropy": -np.mean(H),
        "the entropy is missing in the attention loss": -np.mean(alpha),
        "the attention loss is one number per layer and group; take their mean": -alpha * H,
        "the attention loss takes the mean of alpha and the mean of H before it multiplies: each "
        "entropy has its own temperature": -np.mean(alpha) * np.mean(H),
    }
    _compare_scalar(call(loss, *_jax(log_alpha, H), example=example), right, example, mistakes)


def _check_temperature_value(loss: Callable, log_alpha: Array, H: Array, T: Array) -> None:
    alpha = np.exp(log_alpha)
    right = _temperature_truth(alpha, H, T)
    example = (
        f"temperature_loss(log_alpha, H, T) with alpha = {words(alpha)}, H = {words(H)}, "
        f"T = {words(T)}"
    )
    mistakes = _sums("temperature loss", right, len(H)) | {
        "the sign of the temperature loss is wrong: as it is, a temperature falls where the "
        "entropy is below its target, and it should grow": -right,
        "the temperature loss weighs H - T with log alpha in place of alpha: take the "
        "exponential": _temperature_truth(log_alpha, H, T),
        "the target is missing in the temperature loss": np.mean(alpha * H),
        "the temperature is missing in the temperature loss: it should be alpha (H - T)": np.mean(
            H - T
        ),
        "the temperature loss adds the target in place of subtracting it": np.mean(alpha * (H + T)),
        "the temperature loss takes the size of H - T without its sign, so that a temperature "
        "cannot tell above from below": np.mean(alpha * np.abs(H - T)),
        "the temperature loss squares H - T, so that a temperature cannot tell above from "
        "below": np.mean(alpha * (H - T) ** 2),
        "the temperature loss counts only entropies that are below their target: above it a "
        "temperature should fall": np.mean(alpha * np.minimum(H - T, 0)),
        "the temperature loss counts only entropies that are above their target: below it a "
        "temperature should grow": np.mean(alpha * np.maximum(H - T, 0)),
        "the two groups' targets are exchanged": np.mean(alpha * (H - T[:, ::-1])),
        "the temperature loss takes means before it multiplies: each entropy has its own "
        "temperature": np.mean(alpha) * np.mean(H - T),
        "the temperature loss is one number per layer and group; take their mean": alpha * (H - T),
    }
    _compare_scalar(call(loss, *_jax(log_alpha, H, T), example=example), right, example, mistakes)


def _check_attention_gradients(loss: Callable, log_alpha: Array, H: Array) -> None:
    alpha = np.exp(log_alpha)
    right, name = -alpha / alpha.size, "the gradient of attention_loss with respect to H"
    d_log_alpha, d_H = _gradients(loss, log_alpha, H, name="attention_loss")
    example = f"{name} at alpha = {words(alpha)}"
    mistakes = {
        "the attention loss does not reach the entropy, so it cannot move the critic: stop the "
        "gradient at alpha, not at H": 0 * right
    }
    wrong = "the attention loss has the right value and a wrong gradient at H"
    compare(d_H, right, example=example, mistakes=mistakes, otherwise=wrong)
    example = "the gradient of attention_loss with respect to log_alpha"
    wrong = "the attention loss moves the temperatures: stop the gradient at alpha"
    compare(d_log_alpha, 0 * alpha, example=example, otherwise=wrong)


def _check_temperature_gradients(loss: Callable, log_alpha: Array, H: Array, T: Array) -> None:
    alpha = np.exp(log_alpha)
    right = alpha * (H - T) / alpha.size
    d_log_alpha, d_H, _ = _gradients(loss, log_alpha, H, T, name="temperature_loss")
    example = (
        f"the gradient of temperature_loss with respect to log_alpha at alpha = {words(alpha)}, "
        f"H - T = {words(H - T)}"
    )
    mistakes = {
        "the temperature loss does not reach the temperatures: stop the gradient at H, not at "
        "alpha": 0 * right
    }
    wrong = "the temperature loss has the right value and a wrong gradient at log_alpha"
    compare(d_log_alpha, right, example=example, mistakes=mistakes, otherwise=wrong)
    example = "the gradient of temperature_loss with respect to H"
    wrong = "the gradient reaches the critic through the entropy in the temperature loss: stop it"
    compare(d_H, 0 * alpha, example=example, otherwise=wrong)


def _check_extremes(attention_loss: Callable, temperature_loss: Callable) -> None:
    """A temperature that has decayed to nothing, a collapsed entropy, an entropy at its target."""
    log_alpha = np.array([[-200.0, 0.0], [-30.0, 1.0], [-1000.0, 2.0]])
    H = np.array([[0.0, 0.0], [1.5, 1.5], [0.0, 0.2]])
    T = np.array([[1.3, 0.7], [1.5, 1.5], [1.1, 0.9]])
    alpha = np.exp(log_alpha)
    at = f" at log_alpha = {words(log_alpha)}, H = {words(H)}, T = {words(T)}"
    given = _gradients(attention_loss, log_alpha, H, name="attention_loss")
    for got, right, of in zip(given, (0 * alpha, -alpha / 6), ("log_alpha", "H"), strict=True):
        example = f"the gradient of attention_loss with respect to {of}{at}"
        compare(got, right, example=example, otherwise="an extreme case is wrong")
    d_log_alpha, d_H, _ = _gradients(temperature_loss, log_alpha, H, T, name="temperature_loss")
    example = f"the gradient of temperature_loss with respect to log_alpha{at}"
    right = alpha * (H - T) / 6
    compare(d_log_alpha, right, example=example, otherwise="an extreme case is wrong")
    example = f"the gradient of temperature_loss with respect to H{at}"
    compare(d_H, 0 * alpha, example=example, otherwise="an extreme case is wrong")


def _check_compiled(attention_loss: Callable, temperature_loss: Callable) -> None:
    log_alpha, H, T = list(_examples())[1]
    alpha, arrays = np.exp(log_alpha), _jax(log_alpha, H, T)
    wrong = "the compiled function gives something else"
    example = "jax.jit(attention_loss)(log_alpha, H)"
    got = call(jax.jit(attention_loss), *arrays[:2], example=example)
    compare(got, _attention_truth(alpha, H), example=example, otherwise=wrong)
    example = "jax.jit(temperature_loss)(log_alpha, H, T)"
    got = call(jax.jit(temperature_loss), *arrays, example=example)
    compare(got, _temperature_truth(alpha, H, T), example=example, otherwise=wrong)


# ---- one temperature per head --------------------------------------------------------------------


def check_head_controller(Mine: Any) -> None:
    """Raises `Wrong` unless `Mine(target, heads)` is a controller with a temperature for every
    layer, head and group: log_alpha [L, heads, 2], alpha(), and two losses of H [L, heads, 2]."""
    _check_callable(Mine, "the controller's class")
    # With as many heads as layers, a target that is laid along the wrong axis gives no error.
    sizes = ((2, 3), (2, 2))
    for check in (_check_head_start, _check_head_values, _check_head_gradients):
        for layers, heads in sizes:
            check(Mine, TARGET[:layers], heads)


def _check_head_start(Mine: Callable[..., Any], target: tuple, heads: int) -> None:
    mine = _build(Mine, target, heads)
    log_alpha, shape = mine.log_alpha, (len(target), heads, 2)
    example = f"Mine(target, heads={heads}).log_alpha for {len(target)} layers"
    got = np.shape(log_alpha)
    if got == (len(target), 2):
        raise Wrong(
            "the heads of a group share one temperature: log_alpha needs one for every layer, head "
            f"and group. {example}: expected the shape {shape}, got {got}."
        )
    if got != shape and sorted(got) == sorted(shape):
        raise Wrong(
            f"the axes of log_alpha are in another order than layer, head, group. {example}: "
            f"expected the shape {shape}, got {got}."
        )
    numbers(log_alpha, shape, example)
    if not isinstance(log_alpha, jax.Array):
        raise Wrong(
            "log_alpha is a NumPy array, which Equinox does not train: make it with jax.numpy. "
            f"{example}: expected a JAX array, got {type(log_alpha).__name__}."
        )
    wrong = "the temperatures do not start at 1: log_alpha should be 0 at first"
    compare(log_alpha, np.zeros(shape), example=example, otherwise=wrong)


def _build(Mine: Callable[..., Any], target: tuple, heads: int) -> Any:
    example = f"Mine(target, {heads}) with target = {target}"
    mine = call(Mine, target, heads, example=example)
    if not isinstance(mine, eqx.Module):
        raise Wrong(f"the controller is no eqx.Module. {example} gave {type(mine).__name__}.")
    for name in ("log_alpha", "alpha", "attention_loss", "temperature_loss"):
        if not hasattr(mine, name):
            raise Wrong(f"the controller has no {name}. {example} has no such field or method.")
    return mine


def _head_example(Mine: Callable[..., Any], target: tuple, heads: int) -> tuple:
    """A controller with temperatures that all differ, log alpha, and entropies on both sides of
    their targets."""
    rng = np.random.default_rng(7 * heads + len(target))
    log_alpha = rng.uniform(-1, 3, (len(target), heads, 2))
    H = rng.uniform(0.1, 2.5, log_alpha.shape)
    mine = _build(Mine, target, heads)
    return eqx.tree_at(lambda m: m.log_alpha, mine, jnp.asarray(log_alpha)), log_alpha, H


def _head_target(target: tuple, heads: int) -> Array:
    """T of every layer, head and group, by loops."""
    T = np.zeros((len(target), heads, 2))
    for layer, pair in enumerate(target):
        for head in range(heads):
            for group in range(2):
                T[layer, head, group] = pair[group]
    return T


def _check_head_values(Mine: Callable[..., Any], target: tuple, heads: int) -> None:
    mine, log_alpha, H = _head_example(Mine, target, heads)
    alpha, T = np.exp(log_alpha), _head_target(target, heads)
    at = f" of {len(target)} layers and {heads} heads"
    got, example = call(mine.alpha, example=f"alpha(){at}"), f"alpha(){at}"
    mistakes = {
        "alpha() returns log alpha: take the exponential": log_alpha,
        "alpha() is a softplus, and it should be the exponential": np.log1p(np.exp(log_alpha)),
        "alpha() takes the mean over heads: every head has its own temperature": np.broadcast_to(
            alpha.mean(axis=1, keepdims=True), alpha.shape
        ),
    }
    wrong = "alpha() is not exp(log_alpha)"
    compare(got, alpha, example=example, mistakes=mistakes, otherwise=wrong)

    example = f"attention_loss(H){at}"
    right = _attention_truth(alpha, H)
    shared = np.mean(alpha.mean(axis=1) * H.mean(axis=1))
    mistakes = _of_reduction("attention loss", right, alpha.shape) | {
        "the sign of the attention loss is wrong: as it is, descending it lowers the entropy, and "
        "it should raise it": -right,
        "the attention loss takes the mean over heads before it multiplies: each head's entropy "
        "has its own temperature": -shared,
        "the attention loss weighs the entropy with log alpha in place of alpha": -np.mean(
            log_alpha * H
        ),
    }
    got = call(mine.attention_loss, jnp.asarray(H), example=example)
    _compare_scalar(got, right, example, mistakes)

    example = f"temperature_loss(H){at}"
    right = _temperature_truth(alpha, H, T)
    mistakes = _of_reduction("temperature loss", right, alpha.shape) | _head_mistakes(
        log_alpha, H, T, right
    )
    got = call(mine.temperature_loss, jnp.asarray(H), example=example)
    _compare_scalar(got, right, example, mistakes)


def _head_mistakes(log_alpha: Array, H: Array, T: Array, right: float) -> dict[str, Any]:
    """What usual mistakes make of the temperature loss."""
    alpha, mean_H = np.exp(log_alpha), H.mean(axis=1, keepdims=True)
    mistakes = {
        "the sign of the temperature loss is wrong: as it is, a temperature falls where the "
        "entropy is below its target, and it should grow": -right,
        "the heads of a group share a mean: the temperature of a head must see the entropy of that "
        "head alone": np.mean(alpha * (mean_H - T)),
        "the temperature loss weighs H - T with log alpha in place of alpha": np.mean(
            log_alpha * (H - T)
        ),
        "the temperature is missing in the temperature loss: it should be alpha (H - T)": np.mean(
            H - T
        ),
        "the target is missing in the temperature loss": np.mean(alpha * H),
        "the two groups' targets are exchanged": np.mean(alpha * (H - T[..., ::-1])),
        "the layers' targets are in reverse order": np.mean(alpha * (H - T[::-1])),
        "every layer has the target of the first": np.mean(alpha * (H - T[:1])),
    }
    if len(T) == T.shape[1]:
        along_heads = np.mean(alpha * (H - np.swapaxes(T, 0, 1)))
        said = "the target is laid along the heads, and it should be laid along the layers"
        mistakes[said] = along_heads
    return mistakes


def _of_reduction(loss: str, right: float, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Sums where a mean should be."""
    layers, heads, groups = shape
    factors = {
        "layers, heads and groups": layers * heads * groups,
        "heads and groups": heads * groups,
        "layers and heads": layers * heads,
        "layers and groups": layers * groups,
        "heads": heads,
        "layers": layers,
        "groups": groups,
    }
    return {
        f"the {loss} is a sum over {over} in place of a mean": factor * right
        for over, factor in factors.items()
        if factor > 1
    }


def _check_head_gradients(Mine: Callable[..., Any], target: tuple, heads: int) -> None:
    mine, log_alpha, H = _head_example(Mine, target, heads)
    alpha, T = np.exp(log_alpha), _head_target(target, heads)
    for name in ("attention_loss", "temperature_loss"):
        loss = eqx.filter_jit(lambda mine_and_H: getattr(mine_and_H[0], name)(mine_and_H[1]))
        example = f"the gradient of {name}(H)"
        of_mine, d_H = call(eqx.filter_grad(loss), (mine, jnp.asarray(H)), example=example)
        d_log_alpha = of_mine.log_alpha
        by_H, by_alpha = f"{example} with respect to H", f"{example} with respect to log_alpha"
        if name == "attention_loss":
            _check_pair(
                (d_H, -alpha / alpha.size, by_H, "the attention loss does not reach the entropy, "
                 "so it cannot move the critic: stop the gradient at alpha, not at H"),
                (d_log_alpha, by_alpha, "the attention loss moves the temperatures: stop the "
                 "gradient at alpha"),
            )  # fmt: skip
        else:
            _check_pair(
                (d_log_alpha, alpha * (H - T) / alpha.size, by_alpha, "the temperature loss does "
                 "not reach the temperatures: stop the gradient at H, not at alpha"),
                (d_H, by_H, "the gradient reaches the critic through the entropy in the "
                 "temperature loss: stop it"),
            )  # fmt: skip
        others = eqx.tree_at(lambda m: m.log_alpha, of_mine, None)
        if any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(others)):
            raise Wrong(
                f"{name} moves something besides log_alpha, perhaps the target: declare it as "
                "eqx.field(static=True). Every other part of the controller should have no "
                "gradient."
            )


def _check_pair(moved: tuple, still: tuple) -> None:
    """One gradient that should be there, and one that should be 0."""
    got, right, example, zero = moved
    wrong = f"{example.split()[3]} has the right value and a wrong gradient"
    compare(got, right, example=example, mistakes={zero: 0 * right}, otherwise=wrong)
    got, example, wrong = still
    compare(got, np.zeros(np.shape(right)), example=example, otherwise=wrong)


# ---- any controller ------------------------------------------------------------------------------


def check_controller(Mine: Any) -> None:
    """Raises `Wrong` unless `Mine(target, n)` keeps to the seam of `AbstractEntropyController`: it
    refuses targets that n tokens cannot have, gives one temperature per layer and group, pushes the
    entropies with them, and learns in the right direction (or not at all)."""
    _check_callable(Mine, "the controller's class")
    for layers in (3, 2):
        target = TARGET[:layers]
        mine = _controller(Mine, target)
        alpha = _alpha(mine, f"alpha() of {layers} layers", layers)
        _check_push(mine, alpha, target)
        _check_direction(mine, alpha, target)
        moved = _after_a_step(mine, target)
        _check_push(moved, _alpha(moved, "alpha() after one step", layers), target)
    _check_refusals(Mine)


def _controller(Mine: Callable[..., Any], target: tuple) -> AbstractEntropyController:
    example = f"Mine(target, {N}) with target = {target}"
    mine = call(Mine, target, N, example=example)
    if not isinstance(mine, AbstractEntropyController):
        raise Wrong(
            "the class does not inherit from tql.entropy_controller.AbstractEntropyController. "
            f"{example} gave {type(mine).__name__}."
        )
    if mine.n != N or not close(mine.target, target):
        raise Wrong(
            f"the controller does not keep its target and n. {example}: got target = "
            f"{mine.target} and n = {mine.n}."
        )
    return mine


def _alpha(mine: AbstractEntropyController, example: str, layers: int) -> Array:
    alpha = numbers(call(mine.alpha, example=example), (layers, 2), example)
    if not np.isfinite(alpha).all():
        raise Wrong(f"a temperature is not finite. {example}: got {words(alpha)}.")
    return alpha


def _check_push(mine: AbstractEntropyController, alpha: Array, target: tuple) -> None:
    """The attention loss: its value and its gradient at H, and none at the parameters."""
    H = np.random.default_rng(3).uniform(0.1, 2.5, alpha.shape)
    right = -np.mean(np.clip(alpha, -ALPHA_MAX, ALPHA_MAX) * H)
    example = f"attention_loss(H) with alpha() = {words(alpha)}, H = {words(H)}"
    mistakes = {
        "the sign of the attention loss is wrong: as it is, descending it lowers the "
        "entropy": -right,
        "the attention loss is a sum over layers and groups in place of a mean": alpha.size * right,
    }
    wrong = "the attention loss is not the mean of -alpha() H"
    got = call(mine.attention_loss, jnp.asarray(H), example=example)
    _compare_scalar(got, right, example, mistakes, wrong)
    loss = eqx.filter_jit(lambda mine_and_H: mine_and_H[0].attention_loss(mine_and_H[1]))
    example = "the gradient of attention_loss(H)"
    of_mine, d_H = call(eqx.filter_grad(loss), (mine, jnp.asarray(H)), example=example)
    right = -np.clip(alpha, -ALPHA_MAX, ALPHA_MAX) / alpha.size
    wrong = "the attention loss pushes the entropies with other weights than alpha()"
    compare(d_H, right, example=f"{example} with respect to H", otherwise=wrong)
    if any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(of_mine)):
        raise Wrong(
            "the attention loss moves the temperatures: stop the gradient at alpha. "
            f"{example} with respect to the controller: expected 0, got another number."
        )


def _after_a_step(mine: AbstractEntropyController, target: tuple) -> AbstractEntropyController:
    """The controller after one step of gradient descent, so that its temperatures differ."""
    H = jnp.asarray(np.array(target) + np.linspace(-0.7, 0.4, 2 * len(target)).reshape(-1, 2))
    gradient = eqx.filter_grad(lambda mine: mine.temperature_loss(H))(mine)
    return eqx.apply_updates(mine, jax.tree.map(lambda g: -g, gradient))


def _check_direction(mine: AbstractEntropyController, alpha: Array, target: tuple) -> None:
    """What one small step of plain gradient descent does to the temperatures, a little below all
    targets, a little above, and far below. A controller without parameters may stay as it is."""
    learns = bool(jax.tree.leaves(eqx.filter(mine, eqx.is_inexact_array)))
    loss = eqx.filter_jit(lambda mine_and_H: mine_and_H[0].temperature_loss(mine_and_H[1]))
    for shift, side in ((-0.05, "below"), (0.05, "above"), (-0.5, "below")):
        H = jnp.asarray(np.array(target) + shift)
        example = f"temperature_loss(H) with every H {abs(shift)} nats {side} its target"
        numbers(call(mine.temperature_loss, H, example=example), (), example)
        of_mine, d_H = call(eqx.filter_grad(loss), (mine, H), example=f"the gradient of {example}")
        if np.any(np.asarray(d_H) != 0):
            raise Wrong(
                "the gradient reaches the critic through the entropy in the temperature loss: stop "
                f"it. The gradient of {example} with respect to H: expected 0, got {words(d_H)}."
            )
        step = jax.tree.map(lambda g: -g, of_mine)
        after = _alpha(eqx.apply_updates(mine, step), "alpha() after one step", len(alpha))
        change = after - alpha
        wanted = "grow" if side == "below" else "fall"
        if np.any(change * np.sign(shift) > 1e-6):
            raise Wrong(
                f"the temperatures move the wrong way: {side} the target a temperature should "
                f"{wanted}. One step down {example}: alpha changes by {words(change)}."
            )
        if learns and not np.any(np.abs(change) > 1e-6):
            raise Wrong(
                "nothing moves the temperatures: the temperature loss does not reach the "
                f"parameters. One step down {example}: alpha stays {words(alpha)}."
            )


def _check_refusals(Mine: Callable[..., Any]) -> None:
    """Targets at the bounds, where a temperature would run away."""
    unreachable = {
        f"at ln {N}, which only uniform attention has": ((1.0, math.log(N)),),
        "of 0 nats, which only a one-hot row has": ((0.0, 1.0),),
    }
    for words_of, target in unreachable.items():
        try:
            Mine(target, N)
        except ValueError:
            continue
        except Exception as error:
            raise Wrong(
                f"a target {words_of} should be refused with ValueError; Mine({target}, {N}) "
                f"raised {type(error).__name__}."
            ) from error
        raise Wrong(f"a target {words_of} should be refused with ValueError; it was accepted.")


# ---- shared --------------------------------------------------------------------------------------


def _check_callable(mine: Any, name: str) -> None:
    if not callable(mine):
        raise Wrong(f"{name} cannot be called; it is {type(mine).__name__}.")


def _jax(*arrays: Array) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.asarray, arrays))


def _compare_scalar(
    got: Any,
    right: float,
    example: str,
    mistakes: dict[str, Any],
    otherwise: str = "the loss is wrong",
) -> None:
    """`compare` for a loss. An answer of another shape may be one of the mistakes, too."""
    for said, answer in mistakes.items():
        if np.ndim(answer) and np.shape(got) == np.shape(answer) and close(got, answer):
            raise Wrong(f"{said}. {example}: expected {words(right)}, got {words(got)}.")
    compare(got, right, example=example, mistakes=mistakes, otherwise=otherwise)


def _gradients(loss: Callable, *arrays: Array, name: str) -> tuple[jax.Array, ...]:
    numbers_of = tuple(range(len(arrays)))
    gradient = jax.grad(loss, argnums=numbers_of)
    return call(gradient, *_jax(*arrays), example=f"the gradient of {name}")
