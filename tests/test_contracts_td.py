"""The checker of the TD loss: right answers in several styles pass, and every wrong answer is told
what is wrong with it."""

import itertools
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tql import loop
from tql.batch import Transition
from tql.contracts.contract import Wrong
from tql.contracts.td import (
    SIZES,
    SMALL,
    SOURCES,
    check_td_loss,
    expected_loss,
    known_mistakes,
    suspect,
)
from tql.flow_actor import AbstractActor, draw_noise

HERE = Path(__file__).parent
sg = jax.lax.stop_gradient


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# ---------------------------------------------------------------- right answers


class GivenActions(AbstractActor):
    """Takes what stands in `a_next` for the next action."""

    policies = ()
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def next_action(self, s_next, a_next, z):
        return a_next

    act = losses = None


def library(critic, target_critic, next_actions, batch, gamma):
    """`tql.loop.td_loss`, which is written for one transition and an actor."""
    actor = GivenActions(critic.n_s, critic.n_a)
    noise = draw_noise(critic.n_a, key=jax.random.key(0))

    def one(s, a, r, m, s_next, a_next):
        row = Transition(s, a, r, m, s_next, a_next)
        return loop.td_loss(critic, sg(target_critic), actor, row, noise, gamma)[0]

    columns = batch.s, batch.a, batch.r, batch.m, batch.s_next, sg(next_actions)
    return jnp.mean(jax.vmap(one)(*columns))


def vmap_inside(critic, target_critic, next_actions, batch, gamma):
    Q_next = jax.vmap(target_critic)(batch.s_next, next_actions)
    y = sg(batch.r + gamma * batch.m * jnp.mean(Q_next, axis=1))
    return jnp.mean((jax.vmap(critic)(batch.s, batch.a) - y[:, None]) ** 2)


def vmap_outside(critic, target_critic, next_actions, batch, gamma):
    def one(s, a, r, m, s_next, a_next):
        y = sg(r + gamma * m * target_critic(s_next, a_next).mean())
        return ((critic(s, a) - y) ** 2).mean()

    columns = batch.s, batch.a, batch.r, batch.m, batch.s_next, next_actions
    return jax.vmap(one)(*columns).mean()


def loops(critic, target_critic, next_actions, batch, gamma):
    losses = []
    for i in range(len(batch.r)):
        Q = critic(batch.s[i], batch.a[i])
        Q_next = target_critic(batch.s_next[i], next_actions[i])
        y = batch.r[i] + gamma * batch.m[i] * sum(Q_next) / len(Q_next)
        losses += [jnp.square(Q_k - sg(y)) for Q_k in Q]
    return sum(losses) / len(losses)


def scan(critic, target_critic, next_actions, batch, gamma):
    def body(total, row):
        s, a, r, m, s_next, a_next = row
        error = critic(s, a) - sg(r + gamma * m * jnp.mean(target_critic(s_next, a_next)))
        return total + error @ error / error.size, None

    columns = batch.s, batch.a, batch.r, batch.m, batch.s_next, next_actions
    total, _ = jax.lax.scan(body, jnp.zeros((), batch.r.dtype), columns)
    return total / batch.r.shape[0]


def einsum(critic, target_critic, next_actions, batch, gamma):
    """The arguments of y are stopped one by one; where the mask is 0 a `where` leaves r."""
    target_critic, next_actions = sg((target_critic, next_actions))
    Q_next = eqx.filter_vmap(target_critic)(batch.s_next, next_actions)
    K = Q_next.shape[1]
    bootstrap = jnp.einsum("bk,k->b", Q_next, jnp.full(K, 1 / K, Q_next.dtype))
    y = jnp.where(batch.m > 0, batch.r + gamma * bootstrap, batch.r)
    E = jax.vmap(critic, out_axes=1)(batch.s, batch.a) - y
    return jnp.einsum("kb,kb->", E, E) / E.size


def with_optax(critic, target_critic, next_actions, batch, gamma):
    """Twice optax's loss, which has a factor 1/2, with y repeated for every head."""
    Q, Q_next = (
        jax.vmap(critic)(batch.s, batch.a),
        jax.vmap(target_critic)(batch.s_next, next_actions),
    )
    y = batch.r[:, None] + gamma * batch.m[:, None] * Q_next.mean(axis=-1, keepdims=True)
    return 2 * optax.l2_loss(Q, sg(jnp.repeat(y, Q.shape[1], axis=1))).mean()


RIGHT = (library, vmap_inside, vmap_outside, loops, scan, einsum, with_optax)


@pytest.mark.parametrize("right", RIGHT)
def test_right_answers_pass(right):
    check_td_loss(right)


@pytest.mark.parametrize("right", [vmap_inside, loops, scan])
def test_right_answers_pass_in_float64(x64, right):
    check_td_loss(right)


def test_the_library_passes_under_strict_numerics():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        check_td_loss(library)


def test_a_compiled_answer_passes():
    check_td_loss(eqx.filter_jit(vmap_inside))


def test_the_answer_of_the_book_passes():
    above, _, _ = (HERE / "answers" / "04_td_loss.py").read_text().partition("# %% Check")
    namespace = {}
    exec(compile(above, "04_td_loss.py", "exec"), namespace)
    check_td_loss(namespace["td_loss"])


# ---------------------------------------------------------------- wrong answers


def answer(
    *, mean=lambda Q: jnp.mean(Q, axis=1), y=lambda r, g, m, q: r + g * m * q, stop=sg,
    loss=lambda Q, y: jnp.mean((Q - y[:, None]) ** 2), pair="next", of=lambda c, t: (c, t)
):  # fmt: skip
    """A right answer with one place that can be made wrong."""

    def td_loss(critic, target_critic, next_actions, batch, gamma):
        critic, target_critic = of(critic, target_critic)
        pairs = {
            "next": (batch.s_next, next_actions),
            "s": (batch.s, next_actions),
            "a": (batch.s_next, batch.a),
            "a_next": (batch.s_next, batch.a_next),
            "now": (batch.s, batch.a),
        }
        Q, Q_next = jax.vmap(critic)(batch.s, batch.a), jax.vmap(target_critic)(*pairs[pair])
        return loss(Q, stop(y(batch.r, gamma, batch.m, mean(Q_next))))

    return td_loss


def per_head(critic, target_critic, next_actions, batch, gamma):
    Q, Q_next = (
        jax.vmap(critic)(batch.s, batch.a),
        jax.vmap(target_critic)(batch.s_next, next_actions),
    )
    y = sg(batch.r[:, None] + gamma * batch.m[:, None] * Q_next)
    return jnp.mean((Q - y) ** 2)


def predicts_the_next_pair(critic, target_critic, next_actions, batch, gamma):
    y = batch.r + gamma * batch.m * jax.vmap(target_critic)(batch.s_next, next_actions).mean(axis=1)
    return jnp.mean((jax.vmap(critic)(batch.s_next, next_actions) - sg(y)[:, None]) ** 2)


def stopped_only_if_it_is_the_critic(critic, target_critic, next_actions, batch, gamma):
    frozen = sg(critic) if target_critic is critic else target_critic
    return answer(stop=lambda y: y)(critic, frozen, sg(next_actions), batch, gamma)


def stopped_unless_it_is_the_critic(critic, target_critic, next_actions, batch, gamma):
    frozen = target_critic if target_critic is critic else sg(target_critic)
    return answer(stop=lambda y: y)(critic, frozen, sg(next_actions), batch, gamma)


def stopped_at_the_weights(critic, target_critic, next_actions, batch, gamma):
    return answer(stop=lambda y: y)(critic, sg(target_critic), next_actions, batch, gamma)


def whole_batch_at_once(critic, target_critic, next_actions, batch, gamma):
    y = batch.r + gamma * batch.m * target_critic(batch.s_next, next_actions).mean(axis=-1)
    return jnp.mean((critic(batch.s, batch.a) - sg(y)) ** 2)


def first_row(critic, target_critic, next_actions, batch, gamma):
    """Right for a batch of one."""
    y = batch.r[0] + gamma * batch.m[0] * target_critic(batch.s_next[0], next_actions[0]).mean()
    return jnp.mean((critic(batch.s[0], batch.a[0]) - sg(y)) ** 2)


def two_heads(critic, target_critic, next_actions, batch, gamma):
    """Right for two heads."""
    of_two = lambda Q: (Q[:, 0] + Q[:, -1]) / 2
    return answer(mean=of_two)(critic, target_critic, next_actions, batch, gamma)


def with_numpy(critic, target_critic, next_actions, batch, gamma):
    Q_next = np.asarray(jax.vmap(target_critic)(batch.s_next, next_actions))
    y = np.asarray(batch.r) + gamma * np.asarray(batch.m) * Q_next.mean(axis=1)
    return jnp.mean((jax.vmap(critic)(batch.s, batch.a) - y[:, None]) ** 2)


def branches(critic, target_critic, next_actions, batch, gamma):
    y = []
    for i in range(len(batch.r)):
        Q_next = target_critic(batch.s_next[i], next_actions[i])
        y.append(batch.r[i] + (gamma * Q_next.mean() if batch.m[i] > 0 else 0))
    return jnp.mean((jax.vmap(critic)(batch.s, batch.a) - sg(jnp.stack(y))[:, None]) ** 2)


def not_written(critic, target_critic, next_actions, batch, gamma):
    raise NotImplementedError


def norm(Q, y):
    return jnp.linalg.norm(Q - y[:, None]) ** 2 / Q.size


def huber(Q, y):
    return 2 * jnp.mean(optax.huber_loss(Q, y[:, None]))


keep = lambda Q: jnp.mean(Q, axis=1, keepdims=True)
column = lambda Q, y: jnp.mean((Q - y) ** 2)

WRONG = {
    # ordinary
    "not a function": (3, "must be a function"),
    "not written": (not_written, "not written yet"),
    "one per row": (answer(loss=lambda Q, y: jnp.mean((Q - y[:, None]) ** 2, 1)), "wrong shape"),
    "half": (answer(loss=lambda Q, y: jnp.mean((Q - y[:, None]) ** 2) / 2), "factor 1/2"),
    "absolute": (answer(loss=lambda Q, y: jnp.mean(jnp.abs(Q - y[:, None]))), "not squared"),
    "root": (answer(loss=lambda Q, y: jnp.sqrt(jnp.mean((Q - y[:, None]) ** 2))), "not squared"),
    "sum": (answer(loss=lambda Q, y: jnp.sum((Q - y[:, None]) ** 2)), "summed over the heads"),
    "sum over rows": (
        answer(loss=lambda Q, y: jnp.sum(jnp.mean((Q - y[:, None]) ** 2, 1))),
        "summed over the batch",
    ),
    "heads averaged first": (
        answer(loss=lambda Q, y: jnp.mean((Q.mean(axis=1) - y) ** 2)),
        "averaged before the square",
    ),
    "one head trained": (
        answer(loss=lambda Q, y: jnp.mean((Q[:, 0] - y) ** 2)), "only one head is trained"
    ),
    "sign of the error": (answer(loss=lambda Q, y: jnp.mean((Q + y[:, None]) ** 2)), "subtracted"),
    "huber": (answer(loss=huber), "the values are wrong"),
    "no bootstrap": (answer(y=lambda r, g, m, q: r), "no bootstrap"),
    "no reward": (answer(y=lambda r, g, m, q: g * m * q), "no reward"),
    "no discount": (answer(y=lambda r, g, m, q: r + m * q), "gamma is left out"),
    "discount twice": (answer(y=lambda r, g, m, q: r + g**2 * m * q), "applied twice"),
    "discounted reward": (answer(y=lambda r, g, m, q: g * (r + m * q)), "multiplies the reward"),
    "a discount of its own": (answer(y=lambda r, g, m, q: r + 0.99 * m * q), "values are wrong"),
    "bootstrap subtracted": (answer(y=lambda r, g, m, q: r - g * m * q), "bootstrap is subtracted"),
    "no mask": (answer(y=lambda r, g, m, q: r + g * q), "mask m is ignored"),
    "done flag": (answer(y=lambda r, g, m, q: r + g * (1 - m) * q), "done flag"),
    "masked reward": (answer(y=lambda r, g, m, q: m * (r + g * q)), "mask m multiplies the reward"),
    "minimum": (answer(mean=lambda Q: Q.min(axis=1)), "minimum over the heads"),
    "maximum": (answer(mean=lambda Q: Q.max(axis=1)), "maximum over the heads"),
    "sum of heads": (answer(mean=lambda Q: Q.sum(axis=1)), "sum over the heads"),
    "first head": (answer(mean=lambda Q: Q[:, 0]), "single head"),
    "y per head": (per_head, "every head has a target of its own"),
    "online target": (answer(of=lambda c, t: (c, c)), "takes the critic, not the target critic"),
    "exchanged": (answer(of=lambda c, t: (t, c)), "critic"),
    "s for s'": (answer(pair="s"), "state s, not the next state"),
    "a for a'": (answer(pair="a"), "takes the action a, not"),
    "a_next": (answer(pair="a_next"), "batch.a_next"),
    "values now": (answer(pair="now"), "in the state s, not in the next state"),
    "next pair predicted": (predicts_the_next_pair, "asked about the next pair"),
    # broadcasting
    "[batch, 1] of heads": (answer(mean=keep, loss=column), "rows of the batch are mixed"),
    "[batch] y": (answer(loss=column), "rows of the batch are mixed"),
    "row for column": (answer(loss=lambda Q, y: column(Q, y[None])), "rows of the batch are mixed"),
    "mean over the batch": (answer(mean=lambda Q: Q.mean()), "over the whole batch"),
    "wrong axis": (answer(mean=lambda Q: Q.mean(axis=0)), "over the whole batch"),
    # gradients
    "not stopped": (answer(stop=lambda y: y), "reaches the critic through y|reaches the target"),
    "all stopped": (answer(loss=lambda Q, y: column(sg(Q), y[:, None])), "no gradient reaches the"),
    "stopped if it is the critic": (stopped_only_if_it_is_the_critic, "through y"),
    "stopped unless it is": (stopped_unless_it_is_the_critic, "target critic is the critic"),
    "stopped at the weights": (stopped_at_the_weights, "reaches the next actions"),
    "gradient NaN without error": (answer(loss=norm), "not finite where Q = y"),
    # sly
    "whole batch at once": (whole_batch_at_once, "takes one pair.*jax.vmap"),
    "first row only": (first_row, "values are wrong"),
    "right for two heads": (two_heads, "values are wrong|sum over|single head"),
    "numpy": (with_numpy, "use jax.numpy"),
    "branches on the mask": (branches, "jnp.where"),
    "integer": (
        lambda *x: vmap_inside(*x).astype(int), "expected floats"
    ),
    "returns a pair": (lambda *x: (vmap_inside(*x), None), "gave tuple"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_what_is_wrong(name):
    wrong, said = WRONG[name]
    with pytest.raises(Wrong, match=f"(?s){said}"):
        check_td_loss(wrong)


def test_a_stub_is_told_that_it_is_one():
    file = HERE.parent / "walkthrough" / "exercises" / "04_td_loss.py"
    with pytest.raises(Wrong, match="td_loss.*not written yet"):
        runpy.run_path(str(file))


def test_the_expected_losses_are_those_on_paper():
    """With the discount 0.8. In the last two y = 2 + 0.8 * 7 = 7.6; where m = 0 it is 3."""
    heads, last = [2.4**2, 5.4**2, 10.4**2], [4**2, 5**2, 13**2]
    by_hand = [9, 13, (9 + 36) / 2, (16 + 16) / 2, np.mean(heads), np.mean(heads + last)]
    np.testing.assert_allclose([expected_loss(x) for x in SMALL], by_hand)


def test_an_unusual_loss_has_no_suspect():
    for example in (*SMALL, SOURCES, *SIZES):
        assert suspect(example, np.asarray(1234.567)) == "the values are wrong"


def test_no_two_mistakes_are_confused():
    """Where a mistake is first seen, no other one gives the same loss."""
    seen, confused = set(), []
    for x in (*SMALL, SOURCES):
        losses, right = known_mistakes(x), expected_loss(x)
        fresh = {said: loss for said, loss in losses.items() if said not in seen}
        wrong = {said: loss for said, loss in fresh.items() if not np.isclose(loss, right)}
        for one, other in itertools.combinations(wrong, 2):
            if np.isclose(wrong[one], wrong[other]):
                confused.append({one[:25], other[:25]})
        seen |= set(wrong)
    assert confused == [
        {"y takes the critic, not t", "y is the critic's own val"},
        {"the squares are summed ov"},
    ]
