"""The checker of one whole update: right updates pass, and of a wrong one the part and the suspect
are named.

Wrong updates run operation by operation here: compiling each of them would take far longer."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from tql import loop
from tql.attention import AbstractAttention, SoftmaxAttention, group_entropy
from tql.contracts.contract import Wrong
from tql.contracts.update import check_update, without_the_answer
from tql.flow_actor import actor_loss, euler, flow_matching
from tql.layers import Linear
from tql.loop import TQL
from tql.optimise import Learner, polyak, value_and_grad

HERE = Path(__file__).parent
sg = jax.lax.stop_gradient
clip = lambda x: jnp.clip(x, -1, 1)
check = partial(check_update, op_by_op=True)


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def answer():
    """The names that the answer of the book defines above its check."""
    above, _, _ = (HERE / "answers" / "07_one_update.py").read_text().partition("# %% Check")
    namespace = {}
    exec(compile(above, "07_one_update.py", "exec"), namespace)
    return SimpleNamespace(**namespace)


# ---------------------------------------------------------------- an update that can be made wrong


def updating(
    *,
    # The critic.
    next_actions=lambda o: jax.vmap(o.actor.act)(o.batch.s_next, o.noise.next_action),
    target=lambda o: o.agent.target_critic,
    y=lambda o, Q: o.batch.r + o.config.discount * o.batch.m * jnp.mean(Q, axis=1),
    stop=sg,
    td=lambda Q, y: jnp.mean((Q - y[:, None]) ** 2),
    alpha=lambda o: jnp.exp(o.log_alpha),
    attention=lambda alpha, H: -jnp.mean(alpha * H),
    H_of=lambda o, critic: entropies(critic, o.batch.s, o.batch.a),
    # The temperatures.
    H=lambda o: entropies(o.critic, o.batch.s, o.batch.a),
    temperature=lambda log_alpha, H, T: jnp.mean(jnp.exp(log_alpha) * (H - T)),
    # The actor.
    judge=lambda o: o.critic,
    noise=lambda noise: noise,
    teach=sg,
    of_q=clip,
    student=lambda mu: mu,
    weights=lambda o: (1.0, o.config.actor.alpha_bc, -1.0),
    # What is made of the gradients.
    descend=lambda learner, gradient, optimiser: learner.descend(gradient, optimiser),
    optimisers=lambda config: loop.optimisers(config),
    follow=lambda o, tau: polyak(o.critic, o.agent.target_critic, tau),
    finish=lambda o, agent: agent,
    remember=(),
):
    """`remember` names losses that are right, whose gradients are computed once for all tests."""

    def update(agent, batch, noise_):
        o = SimpleNamespace(agent=agent, batch=batch, noise=noise_, config=agent.config)
        o.critic, o.actor = agent.critic.model, agent.actor.model
        o.log_alpha, o.T = (
            agent.controller.model.log_alpha,
            jnp.array(agent.controller.model.target),
        )
        o.later = lambda: RIGHT(agent, batch, noise_)

        def of_critic(critic):
            Q_next = target(o, critic) if target is online else target(o)
            Q_next = jax.vmap(Q_next)(batch.s_next, next_actions(o))
            Q = jax.vmap(critic)(batch.s, batch.a)
            return td(Q, stop(y(o, Q_next))) + attention(sg(alpha(o)), H_of(o, critic))

        def of_controller(controller):
            return temperature(controller.log_alpha, sg(H(o)), o.T)

        def of_actor(actor):
            def one(s, a, noise):
                mu = actor.mu(s, noise.z)
                teacher = teach(euler(actor.flow, s, noise.z, actor.flow_steps))
                q = jnp.mean(judge(o)(s, of_q(mu)))
                matching = flow_matching(actor.flow, s, a, noise.x_0, noise.t)
                return jnp.stack([matching, jnp.mean((student(mu) - teacher) ** 2), q])

            parts = jnp.mean(jax.vmap(one)(batch.s, batch.a, noise(noise_)), axis=0)
            return sum(weight * part for weight, part in zip(weights(o), parts))

        learners = agent.critic, agent.controller, agent.actor
        losses = dict(critic=of_critic, controller=of_controller, actor=of_actor)
        gradients = []
        for (name, loss), learner in zip(losses.items(), learners):
            gradient = partial(eqx.filter_grad(loss), learner.model)
            if name in remember and not isinstance(batch.r, jax.core.Tracer):
                if (name, id(batch)) not in GRADIENTS:
                    GRADIENTS[name, id(batch)] = gradient()
                gradients.append(GRADIENTS[name, id(batch)])
            else:
                gradients.append(gradient())
        critic, controller, actor = map(descend, learners, gradients, optimisers(agent.config))
        new = replace(
            agent, critic=critic, controller=controller, actor=actor,
            target_critic=follow(o, agent.config.tau), step=agent.step + 1,
        )  # fmt: skip
        return finish(o, new)

    return update


def entropies(critic, s, a):
    _, logits = jax.vmap(critic.with_attention)(s, a)
    return jnp.mean(jax.vmap(jax.vmap(group_entropy))(logits), axis=0)


def online(o, critic):
    return critic


GRADIENTS = {}
"""By loss and batch, of the agents that right updates lead to."""
CRITIC = {"next_actions", "target", "y", "stop", "td", "alpha", "attention", "H_of"}
CONTROLLER = {"H", "temperature"}
ACTOR = {"judge", "noise", "teach", "of_q", "student", "weights"}


def wrong_update(changes):
    """An update with these changes, which computes the gradients that they concern."""
    concerned = dict(critic=CRITIC, controller=CONTROLLER, actor=ACTOR)
    right = [loss for loss, names in concerned.items() if not names & set(changes)]
    return updating(**changes, remember=right)


RIGHT = wrong_update({})


# ---------------------------------------------------------------- right updates


def test_the_answer_of_the_book_passes(answer):
    """With its own attention, compiled."""
    said = check_update(answer.update, answer.Attention)
    assert said.startswith("update is right: it equals the library's")


def test_the_same_operations_agree_in_every_bit():
    """As the library computes it, only that the losses are written out."""
    said = check(by_hand)
    assert said == "update is right: it equals the library's bit for bit, over 3 updates."


def by_hand(agent, batch, noise):
    config, target_critic = agent.config, agent.target_critic
    critic, controller, actor = agent.critic.model, agent.controller.model, agent.actor.model
    optimisers = loop.optimisers(config)

    def one_td(critic, row, noise):
        a_next = actor.next_action(row.s_next, row.a_next, noise.next_action)
        y = row.r + config.discount * row.m * jnp.mean(target_critic(row.s_next, a_next))
        Q, logits = critic.with_attention(row.s, row.a)
        return jnp.mean((Q - y) ** 2), jnp.stack([group_entropy(l) for l in logits])

    def of_critic(critic):
        td, H = jax.vmap(lambda row, noise: one_td(critic, row, noise))(batch, noise)
        H = jnp.mean(H, axis=0)
        return jnp.mean(td) + controller.attention_loss(H), H

    def of_actor(actor):
        def one(row, noise):
            mu, flow = actor.mu(row.s, noise.z), actor.flow
            teacher = sg(actor.behaviour(row.s, noise.z))
            matching = flow_matching(flow, row.s, row.a, noise.x_0, noise.t)
            return matching, jnp.mean((mu - teacher) ** 2), jnp.mean(critic(row.s, clip(mu)))

        matching, distillation, q = map(jnp.mean, jax.vmap(one)(batch, noise))
        return matching + config.actor.alpha_bc * distillation - q

    (_, H), critic_gradient = value_and_grad(of_critic)(critic)
    controller_gradient = eqx.filter_grad(lambda c: c.temperature_loss(H))(controller)
    actor_gradient = eqx.filter_grad(of_actor)(actor)
    return eqx.tree_at(
        lambda a: (a.critic, a.target_critic, a.controller, a.actor, a.step),
        agent,
        (
            agent.critic.descend(critic_gradient, optimisers[0]),
            polyak(critic, target_critic, config.tau),
            agent.controller.descend(controller_gradient, optimisers[1]),
            agent.actor.descend(actor_gradient, optimisers[2]),
            agent.step + 1,
        ),
    )


def with_optax(learner, gradient, optimiser):
    """The step by hand."""
    parameters, static = eqx.partition(learner.model, eqx.is_inexact_array)
    step, state = optimiser.update(gradient, learner.optimiser_state, parameters)
    return Learner(eqx.combine(optax.apply_updates(parameters, step), static), state)


@pytest.mark.parametrize(
    "right",
    [
        RIGHT,
        wrong_update(dict(descend=with_optax)),
        updating(td=lambda Q, y: sum(jnp.mean((q - y) ** 2) for q in Q.T) / Q.shape[1]),
    ],
    ids=["plain", "optax", "another order"],
)
def test_updates_in_other_styles_pass(right):
    assert "is right" in check(right)


def test_a_compiled_update_passes():
    assert "is right" in check_update(eqx.filter_jit(RIGHT))


# ---------------------------------------------------------------- wrong updates


def others_with_value(o, critic):
    _, logits = jax.vmap(critic.with_attention)(o.batch.s, o.batch.a)
    h = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
    return jnp.stack([jnp.mean(h[..., 0], axis=(0, 2)), jnp.mean(h, axis=(0, 2, 3))], axis=1)


def base_two(o, critic):
    return entropies(critic, o.batch.s, o.batch.a) / jnp.log(2)


def forgets_state(learner, gradient, optimiser):
    return Learner(learner.descend(gradient, optimiser).model, learner.optimiser_state)


def fresh_state(learner, gradient, optimiser):
    return Learner.start(learner.model, optimiser).descend(gradient, optimiser)


def sgd(learner, gradient, optimiser):
    down = jax.tree.map(lambda g: -0.01 * g, gradient)
    state = learner.descend(gradient, optimiser).optimiser_state
    return Learner(eqx.apply_updates(learner.model, down), state)


def uphill(learner, gradient, optimiser):
    new = learner.descend(gradient, optimiser)
    back = jax.tree.map(
        lambda x, y: 2 * x - y if eqx.is_inexact_array(x) else x, learner.model, new.model
    )
    return Learner(back, new.optimiser_state)


def no_decay(config):
    return loop.optimisers(replace(config, weight_decay=0.0))


def the_rate_of_another(config):
    of_critic, of_temperatures, _ = loop.optimisers(config)
    return of_critic, of_temperatures, of_critic


def skip(*names):
    return lambda o, agent: replace(agent, **{name: getattr(o.agent, name) for name in names})


def y_with(**changes):
    """y with another mask or discount."""

    def y(o, Q):
        m, gamma = o.batch.m, o.config.discount
        m, gamma = changes.get("m", lambda m: m)(m), changes.get("gamma", gamma)
        return o.batch.r + gamma * m * jnp.mean(Q, axis=1)

    return y


def y_minimum(o, Q):
    return o.batch.r + o.config.discount * o.batch.m * jnp.min(Q, axis=1)


noise_for = lambda **names: (
    lambda noise: replace(noise, **{name: getattr(noise, other) for name, other in names.items()})
)
policy = lambda noise, s="s_next": (
    lambda o: jax.vmap(o.actor.act)(getattr(o.batch, s), getattr(o.noise, noise))
)

WRONG = {
    # the critic
    "gradient through y": (dict(target=online, stop=lambda y: y), "critic:.*through y: stop it"),
    "no target critic": (dict(target=online), "critic: the critic itself makes the target"),
    "target critic after": (
        dict(target=lambda o: o.later().target_critic), "takes a critic after its update"
    ),
    "actor first": (
        dict(next_actions=lambda o: jax.vmap(o.later().actor.model.act)(
            o.batch.s_next, o.noise.next_action
        )),
        "critic: the next actions come from the actor after its update",
    ),
    "temperatures first": (
        dict(alpha=lambda o: jnp.exp(o.later().controller.model.log_alpha)),
        "critic: the attention loss takes the temperatures after their update",
    ),
    "noise z": (dict(next_actions=policy("z")), "take the noise z"),
    "policy in s": (dict(next_actions=policy("next_action", "s")), "those of the policy in s"),
    "next actions of the batch": (dict(next_actions=lambda o: o.batch.a_next), "of the batch"),
    "next actions not clipped": (
        dict(next_actions=lambda o: jax.vmap(o.actor.mu)(o.batch.s_next, o.noise.next_action)),
        "next actions are not clipped",
    ),
    "no mask": (dict(y=y_with(m=lambda m: 1 + 0 * m)), "mask m is ignored"),
    "done flag": (dict(y=y_with(m=lambda m: 1 - m)), "done flag"),
    "no discount": (dict(y=y_with(gamma=1)), "discount is missing"),
    "minimum": (dict(y=y_minimum), "minimum over the heads"),
    "sum over the batch": (
        dict(td=lambda Q, y: jnp.sum(jnp.mean((Q - y[:, None]) ** 2, axis=1))), "counts 5 times"
    ),
    "mean of heads first": (
        dict(td=lambda Q, y: jnp.mean((Q.mean(axis=1) - y) ** 2)), "critic: the gradient.*td_loss"
    ),
    "no attention loss": (dict(attention=lambda alpha, H: 0.0), "attention loss is missing"),
    "no TD loss": (dict(td=lambda Q, y: 0.0), "TD loss is missing"),
    "attention loss up": (
        dict(attention=lambda alpha, H: jnp.mean(alpha * H)), "attention loss has the wrong sign"
    ),
    "attention loss summed": (
        dict(attention=lambda alpha, H: -jnp.sum(alpha * H)), "attention loss counts 4 times"
    ),
    "log alpha": (dict(alpha=lambda o: o.log_alpha), "takes log alpha, not alpha"),
    "no alpha": (dict(alpha=lambda o: jnp.ones((2, 2))), "takes no alpha"),
    "VALUE among others": (dict(H_of=others_with_value), r"contains \[VALUE\] too"),
    "bits": (dict(H_of=base_two), "attention loss counts 1.443 times"),
    "first layer twice": (
        dict(H_of=lambda o, c: entropies(c, o.batch.s, o.batch.a)[jnp.array([0, 0])]),
        "entropies count",
    ),
    # the temperatures
    "entropies after": (
        dict(H=lambda o: entropies(o.later().critic.model, o.batch.s, o.batch.a)),
        "temperatures: the entropies are those of the critic after its update",
    ),
    "entropies of the target": (
        dict(H=lambda o: entropies(o.agent.target_critic, o.batch.s, o.batch.a)),
        "temperatures: the entropies are those of the target critic",
    ),
    "temperatures up": (
        dict(temperature=lambda l, H, T: jnp.mean(jnp.exp(l) * (T - H))),
        "temperatures: the temperature loss has the wrong sign",
    ),
    "no target entropy": (
        dict(temperature=lambda l, H, T: jnp.mean(jnp.exp(l) * H)), "target T is missing"
    ),
    "SAC's other loss": (
        dict(temperature=lambda l, H, T: jnp.mean(l * (H - T))), "log alpha stands"
    ),
    "attention loss again": (
        dict(temperature=lambda l, H, T: -jnp.mean(jnp.exp(l) * H)), "which is the critic's"
    ),
    "temperatures still": (dict(finish=skip("controller")), "temperatures: .* did not move"),
    # the actor
    "critic first": (
        dict(judge=lambda o: o.later().critic.model),
        "actor: Q is that of the critic after its update",
    ),
    "judged by the target": (dict(judge=lambda o: o.agent.target_critic), "of the target critic"),
    "teacher learns": (dict(teach=lambda x: x), "reaches the flow: stop it at the teacher"),
    "Q before the clip": (dict(of_q=lambda mu: mu), "before the clip"),
    "student clipped": (dict(student=clip), "after the clip"),
    "no alpha_bc": (dict(weights=lambda o: (1, 1, -1)), "distillation counts 1 times.* 3 times"),
    "Q down": (dict(weights=lambda o: (1, 3.0, 1)), "mean of Q has the wrong sign"),
    "no flow": (dict(weights=lambda o: (0, 3.0, -1)), "flow matching is missing"),
    "noise exchanged": (dict(noise=noise_for(x_0="z")), "flow matching starts from the noise z"),
    "noise of the next actions": (dict(noise=noise_for(z="next_action")), "of the next actions"),
    # what is made of the gradients
    "state not kept": (dict(descend=forgets_state), "critic: .*state of the .* is not kept"),
    "state anew": (dict(descend=fresh_state), "critic: .*started anew"),
    "plain descent": (dict(descend=sgd), "critic: the gradient is right, but not the step"),
    "up": (dict(descend=uphill), "critic: the step goes up"),
    "no decay": (dict(optimisers=no_decay), "critic: the gradient is right, but not the step"),
    "rate of the critic": (
        dict(optimisers=the_rate_of_another), "actor: the gradient is right, but not the step"
    ),
    # target critic, step, key
    "target after": (
        dict(follow=lambda o, tau: polyak(o.later().critic.model, o.agent.target_critic, tau)),
        "target critic: it moved towards the critic AFTER its update",
    ),
    "1 - tau": (
        dict(follow=lambda o, tau: polyak(o.critic, o.agent.target_critic, 1 - tau)),
        "tau and 1 - tau are exchanged",
    ),
    "target copied": (dict(follow=lambda o, tau: o.critic), "target critic: it is the critic"),
    "target still": (dict(finish=skip("target_critic")), "target critic: it did not move"),
    "step still": (dict(finish=skip("step")), "step: it is not advanced"),
    "nothing": (dict(finish=lambda o, agent: o.agent), "critic: .*did not move.*Also wrong"),
    "not finite": (dict(weights=lambda o: (1, jnp.nan, -1)), "actor: .*not finite"),
    "own optimisers": (
        dict(
            optimisers=lambda config: (optax.adam(0.01),) * 3,
            descend=lambda learner, gradient, optimiser: (
                Learner.start(learner.model, optimiser).descend(gradient, optimiser)
            ),
        ),
        r"critic: .*not built as before; use Learner.descend with loop.optimisers",
    ),
    "another key": (
        dict(finish=lambda o, agent: replace(agent, key=jax.random.key(7))), "key: .*must stay"
    ),
    "a tuple": (dict(finish=lambda o, agent: (agent, {})), "returned a tuple"),
    "None": (dict(finish=lambda o, agent: None), "returned NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_of_wrong_updates_the_part_is_named(name):
    changes, said = WRONG[name]
    with pytest.raises(Wrong, match=f"(?s){said}"):
        check(wrong_update(changes))


def test_a_part_that_is_wrong_leaves_the_others_right():
    with pytest.raises(
        Wrong, match="After update 1, agent.step: expected 2, got 1.*Right: the critic"
    ):
        check(wrong_update(dict(finish=skip("step"))))


def test_an_update_that_remembers_is_wrong_from_the_second_on():
    seen, plain = [], updating()

    def update(agent, batch, noise):
        seen.append(batch)
        return plain(agent, seen[0], noise)

    with pytest.raises(Wrong, match="After update 2"):
        check(update)


# ---------------------------------------------------------------- the library's answer


def borrowed_losses(agent, batch, noise):
    critic, controller, actor = agent.critic.model, agent.controller.model, agent.actor.model
    of_critic = value_and_grad(loop.critic_loss)
    of_critic(critic, agent.target_critic, actor, controller, batch, noise, agent.config.discount)


@pytest.mark.parametrize(
    ("borrowed", "name"),
    [
        (lambda agent, batch, noise: agent.update_with_noise(batch, noise)[0], "TQL.update_with"),
        (lambda agent, batch, noise: TQL.update(agent, batch, agent.key)[0], "TQL.update"),
        (borrowed_losses, "critic_loss"),
        (
            lambda agent, batch, noise: actor_loss(
                agent.actor.model, agent.critic.model, batch, noise, 3.0
            ),
            "actor_loss",
        ),
    ],
)
def test_the_library_is_no_answer(borrowed, name):
    with pytest.raises(Wrong, match=f"calls the library's answer, {name}"):
        check(borrowed)
    with pytest.raises(Wrong, match=f"calls the library's answer, {name}"):
        check_update(borrowed)


def test_the_library_is_whole_again():
    before = loop.td_loss.__wrapped__.__code__
    with without_the_answer():
        assert loop.td_loss.__wrapped__.__code__ is not before
    assert loop.td_loss.__wrapped__.__code__ is before


# ---------------------------------------------------------------- the student's attention


class Halved(AbstractAttention):
    """An attention with the same maps, whose logits are half as large."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, key):
        inner = SoftmaxAttention(d_model, heads, key=key)
        self.query, self.key, self.value, self.out = inner.query, inner.key, inner.value, inner.out
        self.d_model, self.heads = d_model, heads

    def logits(self, queries, x):
        return SoftmaxAttention.logits(self, queries, x) / 2

    def mix(self, logits, x):
        return SoftmaxAttention.mix(self, logits, x)

    _split = SoftmaxAttention._split


class NoMaps(AbstractAttention):
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, key):
        self.d_model, self.heads = d_model, heads

    logits = mix = None


def test_a_wrong_attention_is_seen_in_the_critic():
    with pytest.raises(Wrong, match="critic: the gradient of the critic's loss is wrong"):
        check(updating(), Halved)


def test_an_attention_without_its_maps():
    with pytest.raises(Wrong, match="needs the maps query, key, value and out"):
        check(RIGHT, NoMaps)


def test_a_stub_is_told_that_it_is_one():
    file = HERE.parent / "walkthrough" / "exercises" / "07_one_update.py"
    with pytest.raises(Wrong, match="update.*not written yet"):
        runpy.run_path(str(file))


def test_no_function():
    with pytest.raises(Wrong, match="must be a function"):
        check(None)
