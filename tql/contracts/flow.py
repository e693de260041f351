r"""Flow matching, the Euler integral, and the measured order of an integral.

The velocities of these examples are polynomials in s, x and t, so one definition serves JAX and the
float64 loops that know the answers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tql.contracts.contract import (
    Wrong,
    call,
    compare,
    must_be_function,
    numbers,
    words,
)

Field = Callable[[Any, Any, Any], Any]
"""A velocity v(s, x, t)."""


def strict(v: Field, n_s: int, n_a: int) -> Field:
    """`v`, which says so if it is asked about anything but one state, one point and one time."""

    def asked(s: Any, x: Any, t: Any) -> Any:
        shapes = jnp.shape(s), jnp.shape(x), jnp.shape(t)
        if shapes != ((n_s,), (n_a,), ()):
            raise ValueError(
                f"v(s, x, t) takes s of shape ({n_s},), x of shape ({n_a},) and a time of shape (),"
                f" and got {', '.join(map(str, shapes))}"
            )
        return v(s, x, jnp.asarray(t, jnp.result_type(x)))

    return asked


def array(x: Any) -> jax.Array:
    return jnp.asarray(np.asarray(x, np.float64), float)


FIELDS: dict[str, Field] = {
    "v = 0": lambda s, x, t: 0 * x,
    "v = -1": lambda s, x, t: 0 * x - 1,
    "v = 3/2": lambda s, x, t: 0 * x + 1.5,
    "v = -5": lambda s, x, t: 0 * x - 5,
    "v = x": lambda s, x, t: x,
    "v = t": lambda s, x, t: 0 * x + t,
    "v = x + t": lambda s, x, t: x + t,
    "v = 2 t x": lambda s, x, t: 2 * t * x,
    "v(s, x, t) = s_1 - s_2 x + t x_mirrored - 0.3 x^2": (
        lambda s, x, t: s[0] - s[1] * x + t * x[::-1] - 0.3 * x**2
    ),
}
GENERAL = list(FIELDS)[-1]


# ---------------------------------------------------------------- flow matching

MATCHING = (
    ("v = 0", [1.0, 2.0], [0.5, -0.75], [2.0, -0.5], 0.25),
    ("v = -1", [1.0, 2.0], [0.5, -0.75], [2.0, -0.5], 0.25),
    ("v = x", [1.0, 2.0], [0.5, -0.75], [2.0, -0.5], 0.25),
    ("v = t", [1.0, 2.0], [0.5, -0.75], [2.0, -0.5], 0.2),
    (GENERAL, [1.0, 2.0, 5.0], [0.5, -0.75, 0.1, 0.9, -1.0], [2.0, -0.5, 0.3, -1.7, 0.2], 0.7),
    (GENERAL, [0.3, -1.0], [0.6], [-1.4], 0.1),
    (GENERAL, [0.3, -1.0], [0.6, 0.1, -0.2], [-1.4, 1.1, 0.4], 0.0),
    (GENERAL, [0.3, -1.0], [0.6, 0.1, -0.2], [-1.4, 1.1, 0.4], 1.0),
)
"""Field, s, a, x_0 and t. The first four show one thing each: the target's size, its sign, the
point, and the time."""


def expected_matching(v: Field, s: Any, a: Any, x_0: Any, t: float) -> float:
    """By a loop over action dimensions."""
    s, a, x_0 = (np.array(x, float) for x in (s, a, x_0))
    velocity = v(s, (1 - t) * x_0 + t * a, t)
    return sum((velocity[i] - (a[i] - x_0[i])) ** 2 for i in range(len(a))) / len(a)


def mistaken_matchings(v: Field, s: Any, a: Any, x_0: Any, t: float) -> dict[str, float]:
    """The loss to which usual mistakes lead."""
    s, a, x_0 = (np.array(x, float) for x in (s, a, x_0))
    x_t, u = (1 - t) * x_0 + t * a, a - x_0
    error, clip = v(s, x_t, t) - u, lambda x: np.clip(x, -1, 1)
    errors = {
        "the difference is reversed: the flow goes from the noise x_0 to the action, so the target "
        "is a - x_0": v(s, x_t, t) + u,
        "the target is the action a; it is the velocity a - x_0": v(s, x_t, t) - a,
        "the target is the noise x_0; it is the velocity a - x_0": v(s, x_t, t) - x_0,
        "the target is a - x_t; it is the whole way a - x_0": v(s, x_t, t) - (a - x_t),
        "the ends of the line are exchanged: x_t is the noise x_0 at t = 0 and the action at t = 1":
            v(s, t * x_0 + (1 - t) * a, t) - u,
        "v is asked at the noise x_0, not at the point x_t": v(s, x_0, t) - u,
        "v is asked at the action a, not at the point x_t": v(s, a, t) - u,
        "the factor 1 - t of the noise is missing in x_t": v(s, x_0 + t * a, t) - u,
        "the point x_t is clipped; only an integrated action is": v(s, clip(x_t), t) - u,
        "the noise x_0 is clipped; only an integrated action is": (
            v(s, (1 - t) * clip(x_0) + t * a, t) - (a - clip(x_0))
        ),
        "the velocity is clipped; only an integrated action is": clip(v(s, x_t, t)) - u,
        "v is asked at time 1 - t, not at t": v(s, x_t, 1 - t) - u,
        "v is asked at time 0, not at t": v(s, x_t, 0) - u,
        "v is asked at time 1, not at t": v(s, x_t, 1) - u,
        "time runs backwards: t = 0 is the noise x_0, in the point and in the target": (
            v(s, t * x_0 + (1 - t) * a, t) + u
        ),
    }  # fmt: skip
    return {
        "the squares are summed over action dimensions; take their mean": np.sum(error**2),
        "the square has a factor 1/2 that the equation has not": np.mean(error**2) / 2,
        "the error is not squared": np.mean(np.abs(error)),
        "the error is averaged before it is squared": np.mean(error) ** 2,
        "a square root is taken": np.sqrt(np.mean(error**2)),
        "a square root is taken of the sum of squares": np.sqrt(np.sum(error**2)),
    } | {said: np.mean(e**2) for said, e in errors.items()}


def check_flow_matching(mine: Any) -> None:
    r"""Checks `flow_matching(v, s, a, x_0, t)`: with $x_1 = a$ and $x_t = (1-t)\,x_0 + t\,x_1$, the
    mean over action dimensions of $(v(s, x_t, t) - (x_1 - x_0))^2$."""
    must_be_function(mine, "flow_matching")
    _check_written(mine, "flow_matching(v, s, a, x_0, t)", *_arguments(*MATCHING[0]))
    for name, *values in MATCHING:
        example = _matching_words(name, *values)
        got = numbers(call(mine, *_arguments(name, *values), example=example), (), example)
        known = mistaken_matchings(FIELDS[name], *values)
        expected = expected_matching(FIELDS[name], *values)
        compare(got, expected, example=example, mistakes=known)
    _check_matching_gradient(mine)
    _check_matching_batch(mine)


def _check_written(mine: Any, example: str, *arguments: Any) -> None:
    call(mine, *arguments, example=example)


def _arguments(name: str, s: Any, a: Any, x_0: Any, t: float) -> tuple:
    return strict(FIELDS[name], len(s), len(a)), array(s), array(a), array(x_0), array(t)


def _matching_words(name: str, s: Any, a: Any, x_0: Any, t: float) -> str:
    of_s = f"s = {words(s)}, " if name == GENERAL else ""
    return f"flow_matching with {name}, {of_s}a = {words(a)}, x_0 = {words(x_0)}, t = {t:g}"


def _check_matching_gradient(mine: Any) -> None:
    """With v = theta x the loss is a parabola in theta. Its gradient is known, also at the theta
    that fits, where the gradient of a norm is not finite."""
    a, x_0, t = np.array([0.5, -0.25]), np.array([1.5, -0.75]), 0.25
    x_t = (1 - t) * x_0 + t * a  # (1.25, -0.625), so the velocity (-1, 0.5) is -0.8 x_t.
    for theta in (0.3, -0.8):
        example = f"the gradient of flow_matching with respect to theta = {theta}, with v = theta x"
        example += f", a = {words(a)}, x_0 = {words(x_0)}, t = {t}"

        def loss(theta):
            v = strict(lambda s, x, t: theta * x, 1, 2)
            return mine(v, array([0.0]), array(a), array(x_0), array(t))

        got = numbers(call(jax.grad(loss), array(theta), example=example), (), example)
        if not np.isfinite(got):
            raise Wrong(f"the gradient is not finite where v fits. {example}: got {words(got)}.")
        expected = np.mean(2 * (theta * x_t - (a - x_0)) * x_t)
        nothing = {"no gradient reaches the velocity v: it must not be stopped": 0.0}
        wrong = "the value is right, but its gradient is wrong"
        compare(got, expected, example=example, mistakes=nothing, otherwise=wrong)


def _check_matching_batch(mine: Any) -> None:
    """Every row gets its own time, under vmap and jit."""
    rng = np.random.default_rng(0)
    s, a, x_0, t = rng.normal(size=(7, 2)), *rng.normal(size=(2, 7, 3)), rng.uniform(size=7)
    v = strict(FIELDS[GENERAL], 2, 3)
    example = "flow_matching under jax.vmap and jax.jit, for 7 rows with n_s = 2 and n_a = 3"
    batched = jax.jit(jax.vmap(lambda s, a, x_0, t: mine(v, s, a, x_0, t)))
    got = call(batched, *map(array, (s, a, x_0, t)), example=example)
    expected = [expected_matching(FIELDS[GENERAL], *row) for row in zip(s, a, x_0, t)]
    compare(got, expected, example=example)


# ---------------------------------------------------------------- the Euler integral

EULER = (
    ("v = 0", [1.0, 2.0], [0.25, -0.5], 4),
    ("v = -1", [1.0, 2.0], [0.75, 0.125], 4),
    ("v = -1", [1.0, 2.0], [0.75, 0.125], 10),
    ("v = x + t", [1.0, 2.0], [0.125, -0.25], 3),
    ("v = 2 t x", [1.0, 2.0], [0.25, -0.375], 5),
    ("v = 0", [1.0, 2.0], [3.0, -0.5, -1.5], 4),
    ("v = 3/2", [1.0, 2.0], [-0.75, 0.25, -2.0], 4),
    ("v = -5", [1.0, 2.0], [5.5, 4.25, 1.0], 4),
    (GENERAL, [1.0, 0.5, 5.0], [0.25, -0.5, 0.1, -1.7, -0.2], 7),
    (GENERAL, [0.3, 0.5], [-0.6], 1),
    (GENERAL, [0.3, 0.5], [-0.6, 0.2], 3),
    ("v = -1", [1.0, 2.0], [0.75], 12),
    ("v = -1", [1.0, 2.0], [0.75], 49),
    ("v = 2 t x", [1.0, 2.0], [0.25], 100),
)
"""Field, s, z and N. One thing after the other: the start, the step, its number, the times, the
points, and the clip. For N = 12 and 49 counting with floats is off by one; 100 is large."""


def integral(
    v: Field, s: Any, z: Any, N: int, *, times: Any = None, step: float | None = None,
    way: Callable = lambda x: x, at: Callable = lambda x, z: x
) -> np.ndarray:  # fmt: skip
    """Euler's rule in float64, before the last clip. For the mistakes: other times, another step,
    something that is done to every point, and another point at which v is asked."""
    s, z = np.array(s, float), np.array(z, float)
    x = z
    for t in [k / N for k in range(N)] if times is None else times:
        x = way(x + v(s, at(x, z), t) * (1 / N if step is None else step))
    return x


def expected_euler(v: Field, s: Any, z: Any, N: int) -> np.ndarray:
    return np.clip(integral(v, s, z, N), -1, 1)


def midpoint(v: Field, s: Any, x: Any, N: int) -> Any:
    """The midpoint rule, of order two."""
    for k in range(N):
        half = x + v(s, x, k / N) / (2 * N)
        x = x + v(s, half, (k + 0.5) / N) / N
    return x


def mistaken_integrals(v: Field, s: Any, z: Any, N: int) -> dict[str, np.ndarray]:
    """The actions to which usual mistakes lead."""
    of = lambda **mistake: integral(v, s, z, N, **mistake)
    z, clip, grid = np.array(z, float), lambda x: np.clip(x, -1, 1), np.arange(N) / N
    right = of()
    unclipped = {
        "the step is not divided by N": of(step=1),
        "there is one single step; there are N": of(times=[0.0], step=1),
        "there is one step too few: N - 1 steps of 1/N": of(times=grid[:-1]),
        "there is one step too many: N + 1 steps of 1/N": of(times=np.arange(N + 1) / N),
        "the velocity is subtracted; time runs from the noise at 0 to the action at 1": of(
            step=-1 / N
        ),
        "v is asked at the end of every step; Euler's rule asks at its beginning, k/N": of(
            times=grid + 1 / N
        ),
        "v is asked in the middle of every step; Euler's rule asks at its beginning, k/N": of(
            times=grid + 0.5 / N
        ),
        "the times are spread over 0 to 1 with both ends (linspace); they are k/N, without 1": of(
            times=np.linspace(0, 1, N)
        ),
        "time runs backwards, from 1 to 0": of(times=1 - grid),
        "time runs backwards, from 1 - 1/N to 0": of(times=grid[::-1]),
        "time stands still at 0": of(times=0 * grid),
        "v gets the number of the step, k, in place of the time k/N": of(times=np.arange(N)),
        "v is asked at the start z in every step, not at the point that was reached": of(
            at=lambda x, z: z
        ),
        "the start z is missing: the integral begins at x = z": integral(v, s, 0 * z, N),
        "this is a rule of second order, such as the midpoint rule or Heun's": midpoint(
            v, np.array(s, float), z, N
        ),
        "the start z is clipped; only the result is": integral(v, s, clip(z), N),
        "the points on the way are clipped; only the result is": of(way=clip),
        "z and the points on the way are clipped; only the result is": integral(
            v, s, clip(z), N, way=clip
        ),
    }
    known = {said: clip(x) for said, x in unclipped.items()}
    known["the result is not clipped to [-1, 1]"] = right
    known["the result is squashed by tanh; clip it to [-1, 1]"] = np.tanh(right)
    return known


def check_euler(mine: Any) -> None:
    r"""Checks `euler(v, s, z, N)`: from $x = z$ the N steps $x \leftarrow x + v(s, x, t) / N$ at
    $t = 0, 1/N, \dots, (N - 1)/N$, of which only the result is clipped to [-1, 1]."""
    must_be_function(mine, "euler")
    for name, s, z, N in EULER:
        v = strict(FIELDS[name], len(s), len(z))
        if (name, s, z, N) == EULER[0]:
            _check_written(mine, "euler(v, s, z, N)", v, array(s), array(z), N)
        of_s = f"s = {words(s)}, " if name == GENERAL else ""
        example = f"euler with {name}, {of_s}z = {words(z)}, N = {N}"
        got = call(mine, v, array(s), array(z), N, example=example)
        known = mistaken_integrals(FIELDS[name], s, z, N)
        compare(got, expected_euler(FIELDS[name], s, z, N), example=example, mistakes=known)
    _check_euler_gradient(mine)
    _check_euler_batch(mine)


def _check_euler_gradient(mine: Any) -> None:
    """With v = theta x the end is z (1 + theta / N)^N; where it is clipped, nothing moves it."""
    theta, N = -0.75, 5
    for z, slope in ((0.5, 0.5 * (1 + theta / N) ** (N - 1)), (9.0, 0.0)):
        example = f"the gradient of euler with respect to theta = {theta}, with v = theta x, "
        example += f"z = {z} and N = {N}"

        def end(theta):
            v = strict(lambda s, x, t: theta * x, 1, 1)
            return mine(v, array([0.0]), array([z]), N)[0]

        # Forwards, because the steps may be counted by a loop that has no reverse.
        slope_of = lambda theta: jax.jvp(end, (theta,), (array(1.0),))[1]
        got = call(slope_of, array(theta), example=example)
        mistakes = {"no gradient passes through the steps: none of them may be stopped": 0.0}
        wrong = "the result is right, but its gradient is wrong"
        compare(got, slope, example=example, mistakes=mistakes, otherwise=wrong)


def _check_euler_batch(mine: Any) -> None:
    rng = np.random.default_rng(0)
    s, z, N, v = rng.normal(size=(5, 2)), rng.normal(size=(5, 3)), 6, strict(FIELDS[GENERAL], 2, 3)
    example = f"euler under jax.vmap and jax.jit, for 5 rows with n_s = 2, n_a = 3 and N = {N}"
    got = call(
        jax.jit(jax.vmap(lambda s, z: mine(v, s, z, N))), array(s), array(z), example=example
    )
    expected = [expected_euler(FIELDS[GENERAL], *row, N) for row in zip(s, z)]
    compare(got, expected, example=example)


# ---------------------------------------------------------------- the order of an integral


def euler_rule(v: Field, s: Any, x: Any, N: int) -> Any:
    for k in range(N):
        x = x + v(s, x, k / N) / N
    return x


def heun(v: Field, s: Any, x: Any, N: int) -> Any:
    """Heun's rule, of order two: the mean of the velocities at both ends of a step."""
    for k in range(N):
        first = v(s, x, k / N)
        second = v(s, x + first / N, (k + 1) / N)
        x = x + (first + second) / (2 * N)
    return x


def fine_euler(v: Field, s: Any, x: Any, N: int) -> Any:
    """Euler's rule with three times as many steps: a smaller error of the same order."""
    return euler_rule(v, s, x, 3 * N)


def between(v: Field, s: Any, x: Any, N: int) -> Any:
    """The end and an error of order 3/2, which no usual rule has."""
    return midpoint(v, s, x, 8 * N) + 0.25 * N**-1.5


INTEGRATORS = (
    ("Euler's rule", euler_rule, 1),
    ("the midpoint rule", midpoint, 2),
    ("Heun's rule", heun, 2),
    ("Euler's rule with 3 N steps", fine_euler, 1),
    ("a rule whose error falls as N^(-3/2)", between, 1.5),
)
HINT = (
    "Take a field that depends on x (v = -x, for example), an end inside [-1, 1] because the "
    "result is clipped there, the known end as the truth, and N between about 4 and 64: with more "
    "steps the error is that of rounding"
)


def check_order(mine: Any) -> None:
    """Checks `order(integrate)`, the measured order of an `integrate(v, s, z, N)`: about 1 for
    Euler's rule, about 2 for the midpoint rule and for Heun's, within 0.2, and 1.5 between them."""
    must_be_function(mine, "order")
    found: list[float] = []
    for name, rule, order in INTEGRATORS:
        example = "order(integrate)" if not found else f"order of {name}"
        got = numbers(call(mine, _clipped(rule), example=example), (), f"order of {name}")
        if not abs(got - order) < 0.2:
            said = _order_suspect(float(got), found)
            raise Wrong(f"{said}. order of {name}: expected about {order}, got {words(got)}.")
        found.append(float(got))


def _clipped(rule: Callable) -> Callable:
    def integrate(v: Field, s: Any, z: Any, N: int) -> Any:
        x = rule(v, s, z, N)
        return (jnp.clip if isinstance(x, jax.Array) else np.clip)(x, -1, 1)

    return integrate


def _order_suspect(got: float, found: list[float]) -> str:
    """What may be wrong with a measured order, given those of the rules before it."""
    if not np.isfinite(got):
        return (
            "the result is not finite, as if an error was 0: Euler's rule is exact for a constant "
            f"field, and the midpoint rule for v = t, so nothing is measured there. {HINT}"
        )
    if not found and abs(got + 1) < 0.2:
        return "the sign is wrong: the error falls as N to the power of minus the order"
    if not found and (abs(got - 2) < 0.2 or abs(got - 0.5) < 0.1):
        return (
            "this is one too many, or else the factor by which the error falls when N doubles, of "
            "which the order is the log2"
        )
    if not found and abs(got - np.log(2)) < 0.1:
        return "this is the natural logarithm of the factor; divide it by that of the ratio of Ns"
    if not found and abs(got) < 0.2:
        return f"the error does not fall with N. {HINT}"
    if found and abs(got - found[0]) < 0.2:
        return (
            "the order does not depend on the integrator that is given: measure its errors with "
            "two or more N"
        )
    return f"the order is wrong. {HINT}"
