r"""The TD loss: its error, what the target is made of, and what its gradient reaches.

The critics of these examples are linear in the numbers of a pair, $Q_k(s, a) = w_k \cdot \phi(s,
a)$, so that values and gradients are known on paper. They are computed here in float64.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tql.batch import Transition
from tql.contracts.contract import (
    Wrong,
    call,
    close,
    compare,
    must_be_function,
    numbers,
    words,
)
from tql.critic import AbstractCritic


class LinearCritic(AbstractCritic):
    r"""$Q_k(s, a) = w_k \cdot \phi$ with $\phi = (s, a, \sum s \sum a)$. It has no attention, so
    its logits are 0."""

    w: Float[Array, "ensemble features"]
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(self, w, n_s: int, n_a: int):
        self.w, self.n_s, self.n_a, self.ensemble = w, n_s, n_a, len(w)

    def __call__(self, s: Any, a: Any) -> Any:
        if jnp.shape(s) != (self.n_s,) or jnp.shape(a) != (self.n_a,):
            raise ValueError(
                f"critic(s, a) takes one pair, s of shape ({self.n_s},) and a of shape "
                f"({self.n_a},), and got {jnp.shape(s)} and {jnp.shape(a)}; put jax.vmap around it"
            )
        return self.w @ jnp.concatenate([s, a, (jnp.sum(s) * jnp.sum(a))[None]])

    def with_attention(self, s: Any, a: Any) -> Any:
        return self(s, a), jnp.zeros((1, 1, 1 + self.n_s + self.n_a, 1 + self.n_s + self.n_a))


@dataclass(frozen=True)
class Example:
    """A batch, two linear critics (`w`, and `w_bar` of the target), next actions and a discount, in
    float64."""

    w: np.ndarray
    w_bar: np.ndarray
    s: np.ndarray
    a: np.ndarray
    r: np.ndarray
    m: np.ndarray
    s_next: np.ndarray
    next_actions: np.ndarray
    a_next: np.ndarray  # What the dataset did next. It is no part of this loss.
    gamma: float

    def batch(self) -> Transition:
        columns = (self.s, self.a, self.r, self.m, self.s_next, self.a_next)
        return Transition(*(jnp.asarray(column, float) for column in columns))

    def critic(self, w: Any) -> LinearCritic:
        return LinearCritic(jnp.asarray(w, float), self.s.shape[1], self.a.shape[1])

    def arguments(self) -> tuple:
        """What `td_loss` is called with."""
        next_actions = jnp.asarray(self.next_actions, float)
        both = self.critic(self.w), self.critic(self.w_bar)
        return *both, next_actions, self.batch(), self.gamma

    def words(self) -> str:
        """The example in a line: the whole of it if it is small."""
        if len(self.r) > 2 or self.s.shape[1] > 1:
            (B, n_s), n_a, K = self.s.shape, self.a.shape[1], len(self.w)
            return f"td_loss of {B} transitions (n_s = {n_s}, n_a = {n_a}, K = {K})"
        of = "one transition" if len(self.r) == 1 else "two transitions"
        return (
            f"td_loss of {of} with Q(s, a) = {_rows(values(self.w, self.s, self.a))}, "
            f"r = {_rows(self.r)}, m = {_rows(self.m)}, gamma = {self.gamma:g}, target critic "
            f"Q(s', a') = {_rows(values(self.w_bar, self.s_next, self.next_actions))}"
        )


def _rows(x: np.ndarray) -> str:
    return " and ".join(words(row) for row in x)


def features(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """phi of every row."""
    product = s.sum(axis=1, keepdims=True) * a.sum(axis=1, keepdims=True)
    return np.concatenate([s, a, product], axis=1)


def values(w: np.ndarray, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Q of every row and head."""
    return features(s, a) @ w.T


def simple(Q: Any, r: Any, m: Any, Q_next: Any, gamma: float = 0.8) -> Example:
    """An example with these values: `Q` and `Q_next` have a row for each transition and a column
    for each head. The states are the rows of an identity matrix, so they look the values up."""
    Q, Q_next = np.array(Q, float), np.array(Q_next, float)
    nothing, of_s = np.zeros((len(Q), 1)), np.array([[1.0], [2.0]])[: len(Q)]
    # One number is the state. It is 1 in the first row and 2 in the second, and the product with
    # the action (0 and 1) gives the second row a value of its own.
    a = np.array([[0.0], [1.0]])[: len(Q)]
    solve = lambda Q: np.linalg.lstsq(features(of_s, a), Q, rcond=None)[0].T
    r, m = np.array(r, float), np.array(m, float)
    return Example(solve(Q), solve(Q_next), of_s, a, r, m, of_s, a, nothing, gamma)


def draw(B: int, K: int, n_s: int, n_a: int, gamma: float, seed: int, scale: float = 1) -> Example:
    """A random example of this size."""
    rng = np.random.default_rng(seed)
    w, w_bar = scale * rng.normal(size=(2, K, n_s + n_a + 1))
    s, s_next = rng.normal(size=(2, B, n_s))
    a, next_actions, a_next = rng.uniform(-1, 1, (3, B, n_a))
    r, m = scale * rng.normal(size=B), np.arange(B) % 3 != 1
    return Example(w, w_bar, s, a, r, m.astype(float), s_next, next_actions, a_next, gamma)


# ---------------------------------------------------------------- the truth, and usual mistakes


def expected_loss(example: Example) -> float:
    """The loss, by loops over rows and heads."""
    x, total = example, 0.0
    Q, Q_next = values(x.w, x.s, x.a), values(x.w_bar, x.s_next, x.next_actions)
    B, K = Q.shape
    for i in range(B):
        y = x.r[i] + x.gamma * x.m[i] * sum(Q_next[i]) / K
        for k in range(K):
            total += (Q[i, k] - y) ** 2
    return total / (B * K)


def mistaken_errors(x: Example) -> dict[str, float]:
    """The loss if the error Q - y is taken, squared or averaged in a wrong way."""
    Q, y = values(x.w, x.s, x.a), _target(x)[:, None]
    E = Q - y
    found = {
        "the error is not squared, or a root is taken of the squares": np.mean(np.abs(E)),
        "the square has a factor 1/2 that the equation has not": np.mean(E**2) / 2,
        "the target is added to Q, not subtracted": np.mean((Q + y) ** 2),
        "the squares are summed over the heads; take their mean": np.mean(np.sum(E**2, axis=1)),
        "the heads are averaged before the square; square the error of every head": np.mean(
            E.mean(axis=1) ** 2
        ),
        "only one head is trained; the loss is a mean over all of them": np.mean(E[:, 0] ** 2),
        "the squares are summed over the batch; take their mean": np.sum(np.mean(E**2, axis=1)),
        "the squares are summed over batch and heads; take their mean": np.sum(E**2),
    }
    return found


BROADCAST = (
    "rows of the batch are mixed: somewhere an array of shape [batch, 1] or [batch, K] meets one "
    "of shape [batch], and broadcasting makes a table [batch, batch] of them"
)


def broadcast(x: Example) -> list[tuple[str, float]]:
    """The loss if arrays of shape [batch] and [batch, 1] meet, in one of several places."""
    Q = values(x.w, x.s, x.a)
    mean, (B, K) = values(x.w_bar, x.s_next, x.next_actions).mean(axis=1), Q.shape
    y, gamma = _target(x), x.gamma
    table = x.r[None] + gamma * x.m[None] * mean[:, None]  # Row i, and r and m of row j.
    all_pairs = [Q[:, :1] - y[None], table - Q[:, :1], table - Q[:, 0][None]]
    all_pairs += [Q.mean(axis=1)[:, None] - y[None]]
    all_pairs += [Q[:, :, None] - y[None, None], Q[:, :, None] - table[:, None]]
    mixed = x.r[:, None] + gamma * x.m[None] * mean[:, None]
    all_pairs += [mixed - Q[:, :1], mixed - Q[:, 0][None]]
    all_pairs += [Q - y[None]] if B == K else []
    return [(BROADCAST, np.mean(E**2)) for E in all_pairs]


def mistaken_targets(x: Example) -> dict[str, float]:
    """The loss if y is computed in a wrong way."""
    Q_next = values(x.w_bar, x.s_next, x.next_actions)
    mean, r, m, gamma = Q_next.mean(axis=1), x.r, x.m, x.gamma
    per_head = r[:, None] + gamma * m[:, None] * Q_next
    targets = {
        "the target y has no bootstrap: gamma m Q(s', a') is missing": r,
        "the target y has no reward": gamma * m * mean,
        "the bootstrap is subtracted from the reward, not added": r - gamma * m * mean,
        "the discount gamma is left out": r + m * mean,
        "the discount gamma is applied twice": r + gamma**2 * m * mean,
        "the discount gamma multiplies the reward too": gamma * (r + m * mean),
        "the mask m is ignored: where m = 0 the episode has ended, and y = r": r + gamma * mean,
        "the mask m is used as a done flag: it is 0 where the episode ends, so multiply by m": (
            r + gamma * (1 - m) * mean
        ),
        "the mask m multiplies the reward too": m * (r + gamma * mean),
        "every head has a target of its own; y takes the mean over the heads": per_head,
        "y takes the minimum over the heads, not their mean": r + gamma * m * Q_next.min(axis=1),
        "y takes the maximum over the heads, not their mean": r + gamma * m * Q_next.max(axis=1),
        "y takes the sum over the heads, not their mean": r + gamma * m * Q_next.sum(axis=1),
        "y takes a single head, not the mean over the heads": r + gamma * m * Q_next[:, 0],
        "y takes the mean of the target critic over the whole batch; each row has its own": (
            r + gamma * m * mean.mean()
        ),
    }
    return {said: _loss_at(x, y) for said, y in targets.items()}


def mistaken_sources(x: Example) -> dict[str, float]:
    """The loss if a critic is asked about the wrong pair, or the wrong critic is asked."""
    bootstraps = {
        "y takes the critic, not the target critic": (x.w, x.s_next, x.next_actions),
        "y takes the values in the state s, not in the next state s'": (x.w_bar, x.s, x.a),
        "y takes the state s, not the next state s'": (x.w_bar, x.s, x.next_actions),
        "y takes the action a, not the next actions": (x.w_bar, x.s_next, x.a),
        "y takes batch.a_next, not the next actions that it is given": (
            x.w_bar, x.s_next, x.a_next
        ),
        "y is the critic's own value of (s, a), not the target critic's of the next pair": (
            x.w, x.s, x.a
        ),
    }  # fmt: skip
    found = {}
    for said, pair in bootstraps.items():
        y = x.r + x.gamma * x.m * values(*pair).mean(axis=1)
        found[said] = _loss_at(x, y)
    predictions = {
        "the critic is asked about the next pair (s', a'), not about (s, a)": (
            x.w, x.s_next, x.next_actions
        ),
        "Q(s, a) comes from the target critic, not from the critic": (x.w_bar, x.s, x.a),
        "the critic is asked about the next actions in s; Q is that of the action a": (
            x.w, x.s, x.next_actions
        ),
        "critic and target critic are exchanged": (x.w_bar, x.s, x.a),
    }  # fmt: skip
    for said, pair in predictions.items():
        found[said] = np.mean((values(*pair) - _target(x)[:, None]) ** 2)
    swapped = x.r + x.gamma * x.m * values(x.w, x.s_next, x.next_actions).mean(axis=1)
    exchanged = np.mean((values(x.w_bar, x.s, x.a) - swapped[:, None]) ** 2)
    return found | {"critic and target critic are exchanged": exchanged}


def suspect(x: Example, got: np.ndarray) -> str:
    """The usual mistake that gives this loss."""
    known = [*known_mistakes(x).items(), *broadcast(x)]
    return next((said for said, loss in known if close(got, loss)), "the values are wrong")


def known_mistakes(x: Example) -> dict[str, float]:
    return mistaken_errors(x) | mistaken_targets(x) | mistaken_sources(x)


def _target(x: Example) -> np.ndarray:
    mean = values(x.w_bar, x.s_next, x.next_actions).mean(axis=1)
    return x.r + x.gamma * x.m * mean


def _loss_at(x: Example, y: np.ndarray) -> float:
    Q = values(x.w, x.s, x.a)
    return float(np.mean((Q - (y if y.ndim == 2 else y[:, None])) ** 2))


def gradients(x: Example) -> tuple[np.ndarray, np.ndarray]:
    """The gradient with respect to the weights through Q, and with respect to the weights of the
    critic that makes y, through y."""
    E = values(x.w, x.s, x.a) - _target(x)[:, None]
    B, K = E.shape
    through_Q = 2 / (B * K) * E.T @ features(x.s, x.a)
    of_row = -2 / (B * K) * E.sum(axis=1) * x.gamma * x.m / K
    through_y = of_row @ features(x.s_next, x.next_actions)
    return through_Q, np.broadcast_to(through_y, through_Q.shape)


# ---------------------------------------------------------------- the checker

SMALL = (
    simple([[5]], [2], [1], [[0]]),
    simple([[1, 7]], [2], [1], [[0, 0]]),
    simple([[5], [9]], [2, 3], [1, 1], [[0], [0]]),
    simple([[10], [7]], [2, 3], [1, 0], [[5], [30]]),
    simple([[10, 13, 18]], [2], [1], [[5, 4, 12]]),
    simple([[10, 13, 18], [7, 8, 16]], [2, 3], [1, 0], [[5, 4, 12], [20, 30, 55]]),
)
"""One mechanism after the other: the error; heads; rows; the target; its mask; its heads; all."""

SOURCES = draw(5, 3, 2, 1, gamma=0.9, seed=0)
SIZES = (
    draw(7, 5, 3, 2, gamma=0.8, seed=1),
    draw(1, 3, 2, 1, gamma=0.9, seed=2),
    draw(11, 1, 2, 3, gamma=0.5, seed=3),
    draw(3, 3, 3, 3, gamma=0.99, seed=4),
    draw(2, 5, 1, 7, gamma=0.9, seed=5, scale=30),
)


def check_td_loss(mine: Any) -> None:
    r"""Checks `td_loss(critic, target_critic, next_actions, batch, gamma)`: the mean over batch and
    heads of $(Q_k(s, a) - y)^2$ with $y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a')$, and no
    gradient through y."""
    must_be_function(mine, "td_loss")
    first = SMALL[0]
    written = "td_loss(critic, target_critic, next_actions, batch, gamma)"
    call(mine, *first.arguments(), example=written)
    _check_value(mine, first)
    compiled = jax.jit(mine, static_argnums=4)
    for example in (*SMALL, SOURCES):
        _check_value(compiled, example)
    for example in (SOURCES, *SIZES):
        _check_value(compiled, example)
        _check_gradients(mine, example)
    _check_gradient_without_error(mine)


def _check_value(mine: Any, x: Example) -> None:
    got = numbers(call(mine, *x.arguments(), example=x.words()), (), x.words())
    compare(got, expected_loss(x), example=x.words(), otherwise=suspect(x, got))


def _check_gradients(mine: Any, x: Example) -> None:
    of = f"the gradient of {x.words()}"
    got = call(jax.jit(lambda: _gradients_of(mine, x)), example=of)
    got = {words: numbers(gradient, gradient.shape, of) for words, gradient in got.items()}
    through_Q, through_y = gradients(x)
    compare(
        got["critic"],
        through_Q,
        example=f"{of} with respect to the critic",
        mistakes={"no gradient reaches the critic: Q(s, a) must not be stopped": 0 * through_Q},
        otherwise="the value is right, but its gradient with respect to the critic is wrong",
    )
    through_Q, through_y = gradients(replace(x, w_bar=x.w))
    for what in ("is", "is a copy of"):
        compare(
            got[what],
            through_Q,
            example=f"{of} where the target critic {what} the critic",
            mistakes={THROUGH_SHARED: through_Q + through_y, STOPPED_SHARED: 0 * through_Q},
            otherwise="the gradient is wrong where the target critic is the critic: stop it at y",
        )
    for what, said in (("target critic", THROUGH_TARGET), ("next actions", THROUGH_ACTIONS)):
        example, tiny = f"{of} with respect to the {what}", 1e-9
        compare(got[what], 0 * got[what], example=example, otherwise=said, tolerance=tiny)


THROUGH_SHARED = (
    "the gradient reaches the critic through y where the target critic is the critic: stop it at y"
)
STOPPED_SHARED = (
    "no gradient reaches the critic where it is the target critic too: stop the gradient at y, not "
    "at the critic"
)
THROUGH_TARGET = "the gradient reaches the target critic through y: stop it (jax.lax.stop_gradient)"
THROUGH_ACTIONS = (
    "the gradient reaches the next actions, and the actor that they come from, through y: stop it "
    "at y as a whole, not only in the weights of the target critic"
)


def _gradients_of(mine: Any, x: Example) -> dict[str, Any]:
    """The gradients of `mine`, with respect to everything that could move."""
    critic, target_critic, next_actions, batch, gamma = x.arguments()

    def shared(copy):
        def loss(w):
            critic = x.critic(w)
            return mine(critic, copy(critic), next_actions, batch, gamma)

        return jax.grad(loss)(critic.w)

    of = lambda loss, at: jax.grad(loss)(at)
    return {
        "critic": of(
            lambda w: mine(x.critic(w), target_critic, next_actions, batch, gamma), critic.w
        ),
        "target critic": of(
            lambda w: mine(critic, x.critic(w), next_actions, batch, gamma), target_critic.w
        ),
        "next actions": of(lambda a: mine(critic, target_critic, a, batch, gamma), next_actions),
        "is": shared(lambda critic: critic),
        "is a copy of": shared(lambda critic: jax.tree.map(lambda w: 1 * w, critic)),
    }


def _check_gradient_without_error(mine: Any) -> None:
    """Where Q is y everywhere, the gradient is 0. A root of a sum of squares has none there."""
    x = simple([[5, 5], [4, 4]], [2, 4], [1, 0], [[3.75, 3.75], [1, 1]])
    of = f"the gradient of {x.words()} (so every error is 0)"
    _, *others = x.arguments()
    got = call(jax.jit(jax.grad(lambda w: mine(x.critic(w), *others))), x.w, example=of)
    got = numbers(got, x.w.shape, of)
    if not np.isfinite(got).all():
        raise Wrong(f"the gradient is not finite where Q = y. {of}: expected 0, got {words(got)}.")
    compare(got, 0 * got, example=of)
