r"""Holding the attention entropy: six controllers behind one seam (paper section 5.2; the rule is SAC's for its policy).

$H_{l,g}$ is the entropy, in nats, of layer $l$ and group $g$ (`[VALUE]`'s query, all other queries), $T_{l,g}$ its target and
$\alpha_{l,g} = e^{\log\alpha_{l,g}} > 0$ a temperature. With means over the $2L$ entries and $\mathrm{sg}$ for stop-gradient:

$$\text{attention loss (moves the critic)} = \langle -\mathrm{sg}(\alpha)\,H \rangle, \qquad
\text{temperature loss (moves } \log\alpha) = \langle \alpha\,(\mathrm{sg}(H) - T) \rangle$$

Below its target an entropy makes its temperature grow, which pushes the entropy up; above it the temperature decays to 0 and the
critic may sharpen. As $\alpha > 0$, control only ever pushes entropy up (`SignedTemperature` pushes both ways).
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ALPHA_MAX = 100.0
"""Of the reference's configuration; out of reach unless a target cannot be met."""

Target = tuple[tuple[float, float], ...]
"""One pair (`[VALUE]`, others) per layer, in nats."""


def default_target(n_s: int, n_a: int, layers: int) -> Target:
    r"""The paper's first guess: $0.8 \ln n$ in every layer, 0.5 nats lower in the last; $n = 1 + n_s + n_a$."""
    high = 0.8 * math.log(1 + n_s + n_a)
    return ((high, high),) * (layers - 1) + ((high - 0.5, high - 0.5),)


def check_target(target: Target, n: int) -> None:
    """Raises `ValueError` unless every layer has a pair of targets in (0, ln n): `n` tokens cannot have more entropy."""
    if not target:
        raise ValueError("the entropy target is empty; give one pair ([VALUE], others) per layer.")
    for layer, pair in enumerate(target):
        if len(pair) != 2:
            raise ValueError(f"the entropy target of layer {layer} is {pair}; give a pair ([VALUE], others).")
        if not all(0 < t < math.log(n) for t in pair):
            raise ValueError(
                f"the entropy target {pair} of layer {layer} is not between 0 and ln(n) = {math.log(n):.3f} nats (n = {n} tokens): "
                "no attention could reach it and its temperature would run away; choose a smaller one."
            )


class AbstractEntropyController(eqx.Module):
    """The seam: a target per layer and group, and the temperatures in force; both losses follow from them.

    Raises `ValueError` at construction if `target` does not fit (see `check_target`).
    """

    target: eqx.AbstractVar[Target]
    n: eqx.AbstractVar[int]

    def __check_init__(self):
        check_target(self.target, self.n)

    @abc.abstractmethod
    def alpha(self) -> Float[Array, "layers 2"]:
        """Temperature of every layer and group."""
        raise NotImplementedError

    def limits(self) -> tuple[float, float]:
        """Least and largest temperature of the attention loss. As in the reference, the temperature loss knows no limit."""
        return -ALPHA_MAX, ALPHA_MAX

    def attention_loss(self, H: Float[Array, "layers 2"]) -> Float[Array, ""]:
        r"""$\langle -\mathrm{sg}(\alpha)\,H \rangle$, $\alpha$ within `limits`: what the critic descends besides its TD loss."""
        alpha = jnp.clip(self.alpha(), *self.limits())
        return jnp.mean(-jax.lax.stop_gradient(alpha) * H)

    def temperature_loss(self, H: Float[Array, "layers 2"]) -> Float[Array, ""]:
        r"""$\langle \alpha\,(\mathrm{sg}(H) - T) \rangle$: what the temperatures descend."""
        T = jnp.array(self.target)
        return jnp.mean(self.alpha() * (jax.lax.stop_gradient(H) - T))


class NoControl(AbstractEntropyController):
    r"""The plain transformer critic: $\alpha = 0$. The target is kept only to be plotted against."""

    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self) -> Float[Array, "layers 2"]:
        return jnp.zeros((len(self.target), 2))


class FixedPenalty(AbstractEntropyController):
    r"""The paper's ablation: $\alpha$ is a constant, so entropy is simply maximised and no target is held."""

    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)
    coefficient: float = eqx.field(static=True, default=1.0)

    def alpha(self) -> Float[Array, "layers 2"]:
        return jnp.full((len(self.target), 2), self.coefficient)


class SingleTemperature(AbstractEntropyController):
    r"""The paper's ablation: one learned $\alpha$, starting at 1, for all layers and groups."""

    log_alpha: Float[Array, ""]
    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: Target, n: int):
        self.log_alpha, self.target, self.n = jnp.zeros(()), target, n

    def alpha(self) -> Float[Array, "layers 2"]:
        return jnp.broadcast_to(jnp.exp(self.log_alpha), (len(self.target), 2))


class TemperaturePerGroup(AbstractEntropyController):
    r"""TQL: a learned $\alpha_{l,g}$, starting at 1, for every layer and token group."""

    log_alpha: Float[Array, "layers 2"]
    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: Target, n: int):
        self.log_alpha, self.target, self.n = jnp.zeros((len(target), 2)), target, n

    def alpha(self) -> Float[Array, "layers 2"]:
        return jnp.exp(self.log_alpha)


class ClippedTemperature(TemperaturePerGroup):
    r"""TQL with narrow limits: the critic feels $\mathrm{clip}(\alpha, low, high)$, while $\alpha$ itself learns on beyond them.

    With low = high it is a fixed penalty whose temperatures are trained and change nothing.
    """

    clip: tuple[float, float] = eqx.field(static=True)

    def __init__(self, target: Target, n: int, clip: tuple[float, float]):
        super().__init__(target, n)
        self.clip = clip

    def limits(self) -> tuple[float, float]:
        return self.clip


class SignedTemperature(AbstractEntropyController):
    r"""$\alpha_{l,g} = \mathrm{sign}(r_{l,g})\,(e^{|r_{l,g}|} - 1)$, starting at 1: above its target an entropy is pushed down.

    So the target is held from both sides, an equation in place of a lower bound.
    """

    r: Float[Array, "layers 2"]
    target: Target = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(self, target: Target, n: int):
        self.r, self.target, self.n = jnp.full((len(target), 2), math.log(2.0)), target, n

    def alpha(self) -> Float[Array, "layers 2"]:
        # Not written with sign(r) and |r|: they have gradient 0 at r = 0, where alpha would stay for ever.
        return jnp.where(self.r < 0, -jnp.expm1(-self.r), jnp.expm1(self.r))
