r"""Holding the attention entropy at a target (paper section 5.2; the rule is SAC's for its policy).

$H_{l,g}$ is the entropy, in nats, of layer $l$ and group $g$ (the query of `[VALUE]`, all other
queries), $T_{l,g}$ its target and $\alpha_{l,g} = e^{\log\alpha_{l,g}} > 0$ a temperature. With
means over the $2L$ entries, and sg for stop-gradient:

$$\text{attention loss (moves the critic)} = \langle -\mathrm{sg}(\alpha)\,H \rangle$$
$$\text{temperature loss (moves } \log\alpha) = \langle \alpha\,(\mathrm{sg}(H) - T) \rangle$$

Where an entropy is below its target its temperature grows, which pushes the entropy up. Above the
target the temperature decays to 0, and the critic may sharpen its attention. As $\alpha > 0$,
control only ever pushes entropy up.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tql.components import checked

Groups = Float[Array, "{len(self.target)} 2"]
"""One number per layer and token group; `self` is the controller."""

Target = tuple[tuple[float, float], ...]
"""One pair (`[VALUE]`, others) per layer, in nats."""

ALPHA_MAX = 100.0
"""The reference's bound of alpha in the attention loss; only a target out of reach leads there."""


def default_target(n: int, layers: int) -> Target:
    r"""The paper's first guess for n tokens: $0.8 \ln n$ nats, and 0.5 less in the last layer."""
    high = 0.8 * math.log(n)
    return ((high, high),) * (layers - 1) + ((high - 0.5, high - 0.5),)


class AbstractEntropyController(eqx.Module):
    """The seam for other controllers: a target per layer and group, and the temperatures in force.
    Both losses follow from them. One is built by `Mine(target, n)`, which raises `ValueError` for a
    target that n tokens cannot have."""

    target: eqx.AbstractVar[Target]
    n: eqx.AbstractVar[int]

    def __check_init__(self):
        target, most = self.target, math.log(self.n)
        if not target or any(len(pair) != 2 for pair in target):
            raise ValueError(f"the entropy target {target} needs a pair ([VALUE], others) a layer.")
        if not all(0 < T < most for pair in target for T in pair):
            raise ValueError(
                f"the entropy target {target} must lie between 0 and ln(n) = {most:.3f} nats (n = "
                f"{self.n} tokens); no attention has more, and a temperature would run away."
            )

    @abc.abstractmethod
    def alpha(self) -> Groups:
        """The temperature of every layer and group."""

    def attention_loss(self, H: Groups) -> Float[Array, ""]:
        r"""$\langle -\mathrm{sg}(\alpha)\,H \rangle$, which the critic descends too."""
        alpha = jnp.clip(self._checked_alpha(), -ALPHA_MAX, ALPHA_MAX)
        return jnp.mean(-jax.lax.stop_gradient(alpha) * H)

    def temperature_loss(self, H: Groups) -> Float[Array, ""]:
        r"""$\langle \alpha\,(\mathrm{sg}(H) - T) \rangle$: what the temperatures descend."""
        alpha, T = self._checked_alpha(), jnp.array(self.target)
        return jnp.mean(alpha * (jax.lax.stop_gradient(H) - T))

    def _checked_alpha(self) -> Groups:
        return checked(self.alpha(), (len(self.target), 2), "controller.alpha()")


class NoControl(AbstractEntropyController):
    r"""The plain transformer critic: $\alpha = 0$. The target is only kept to be plotted."""

    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self) -> Groups:
        return jnp.zeros((len(self.target), 2))


class FixedPenalty(AbstractEntropyController):
    r"""The paper's ablation with $\alpha = 1$: entropy is maximised, and no target is held."""

    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self) -> Groups:
        return jnp.ones((len(self.target), 2))


class SingleTemperature(AbstractEntropyController):
    r"""The paper's ablation with one learned $\alpha$, at first 1, for all layers and groups."""

    log_alpha: Float[Array, ""]
    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: Target, n: int):
        self.log_alpha, self.target, self.n = jnp.zeros(()), target, n

    def alpha(self) -> Groups:
        return jnp.broadcast_to(jnp.exp(self.log_alpha), (len(self.target), 2))


class TemperaturePerGroup(AbstractEntropyController):
    r"""TQL: a learned $\alpha_{l,g}$, at first 1, for every layer and token group."""

    log_alpha: Groups
    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: Target, n: int):
        self.log_alpha, self.target, self.n = jnp.zeros((len(target), 2)), target, n

    def alpha(self) -> Groups:
        return jnp.exp(self.log_alpha)


CONTROLLERS = {
    "none": NoControl, "fixed": FixedPenalty, "single": SingleTemperature,
    "tql": TemperaturePerGroup,
}
"""Controllers by the short names that settings may use."""
