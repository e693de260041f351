r"""What every method does with a loss: gradient, one step of an optimiser, the learning rate's schedule, the target's moving average."""

from collections.abc import Callable

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PyTree

from tql.config import ScheduledConfig
from tql.linear import decayed


def schedule(peak: float, config: ScheduledConfig) -> optax.Schedule:
    """Learning rate by update: from 1 % of `peak` up to it in `warmup` updates, then a cosine down to 10 %.

    As in the reference, the cosine ends one warm-up before the last update (990,000 of 1,000,000), and the rate stays flat.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.01 * peak,
        peak_value=peak,
        warmup_steps=config.warmup,
        decay_steps=config.steps - config.warmup,
        end_value=0.1 * peak,
    )


def adamw(peak: float, config: ScheduledConfig) -> optax.GradientTransformation:
    """AdamW under that schedule; only the matrices of `Linear` are decayed."""
    return optax.adamw(schedule(peak, config), weight_decay=config.weight_decay, mask=decayed)


def value_and_grad(loss: Callable) -> Callable:
    """`(value, extra), gradient` of a loss that returns a value and something beside it, such as what to log. The gradient is with
    respect to the first argument. A loss that returns its value alone takes `eqx.filter_value_and_grad`.
    """
    return eqx.filter_value_and_grad(loss, has_aux=True)


def start(optimiser: optax.GradientTransformation, model: PyTree) -> optax.OptState:
    """The optimiser's state before its first step."""
    return optimiser.init(eqx.filter(model, eqx.is_inexact_array))


def descend(
    optimiser: optax.GradientTransformation, model: PyTree, grads: PyTree, state: optax.OptState
) -> tuple[PyTree, optax.OptState]:
    """One step of the optimiser."""
    updates, state = optimiser.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state


def copy(model: PyTree) -> PyTree:
    """A target network at its start. Its arrays are copies, since a donated array must have one owner."""
    return jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, model)


def polyak(online: PyTree, target: PyTree, tau: float | Float[Array, ""]) -> PyTree:
    r"""$\bar\theta \leftarrow \tau\,\theta + (1 - \tau)\,\bar\theta$."""
    theta, _ = eqx.partition(online, eqx.is_inexact_array)
    theta_bar, rest = eqx.partition(target, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda new, old: tau * new + (1 - tau) * old, theta, theta_bar), rest)
