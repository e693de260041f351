r"""What every method does with a gradient: a step of an optimiser, and a moving target network."""

from collections.abc import Callable

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PyTree

from tql.config import AbstractScheduledConfig
from tql.layers import decayed


def schedule(peak: float, config: AbstractScheduledConfig) -> optax.Schedule:
    """The learning rate by update: from 1 % of `peak` up to `peak` in `warmup` updates, then a
    cosine down to 10 %. As in the reference, the cosine ends one warm-up before the last update (at
    990,000 of 1,000,000), and the rate stays flat from there."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.01 * peak,
        peak_value=peak,
        warmup_steps=config.warmup,
        decay_steps=config.steps - config.warmup,
        end_value=0.1 * peak,
    )


def adamw(peak: float, config: AbstractScheduledConfig) -> optax.GradientTransformation:
    """AdamW under that schedule. Only the matrices of `Linear` are decayed."""
    rate = schedule(peak, config)
    return optax.adamw(rate, weight_decay=config.weight_decay, mask=decayed)


class Learner(eqx.Module):
    """A network and the state of its optimiser, which travel together."""

    model: PyTree
    optimiser_state: optax.OptState

    @staticmethod
    def start(model: PyTree, optimiser: optax.GradientTransformation) -> "Learner":
        """The network before its first step."""
        return Learner(model, optimiser.init(eqx.filter(model, eqx.is_inexact_array)))

    def descend(self, gradient: PyTree, optimiser: optax.GradientTransformation) -> "Learner":
        """The network after one step of the optimiser along its gradient."""
        if not jax.sharding.get_abstract_mesh().empty:  # Several devices: the sum of their parts.
            gradient = jax.lax.with_sharding_constraint(gradient, jax.P())
        parameters = eqx.filter(self.model, eqx.is_inexact_array)
        step, state = optimiser.update(gradient, self.optimiser_state, parameters)
        return Learner(eqx.apply_updates(self.model, step), state)


def value_and_grad(loss: Callable) -> Callable:
    """`(value, extra), gradient` of a loss that returns the pair, by its first argument alone."""
    return eqx.filter_value_and_grad(loss, has_aux=True)


def copy(model: PyTree) -> PyTree:
    """A target network at its start: a copy, because training reuses the memory of its arrays."""
    return jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, model)


def polyak(online: PyTree, target: PyTree, tau: float | Float[Array, ""]) -> PyTree:
    r"""The moving average $\bar\theta \leftarrow \tau\,\theta + (1 - \tau)\,\bar\theta$."""
    theta, _ = eqx.partition(online, eqx.is_inexact_array)
    theta_bar, rest = eqx.partition(target, eqx.is_inexact_array)
    average = jax.tree.map(lambda new, old: tau * new + (1 - tau) * old, theta, theta_bar)
    return eqx.combine(average, rest)
