"""One whole update of TQL: three updates are compared with the library's own, from an agent that
both get, and the part that differs is named.

All is computed in float64. So two updates that make the same operations agree in every bit, and
two that sum in another order agree to 1e-12.

What a wrong part did is read off its optimiser: Adam's first moment is m <- 0.9 m + 0.1 g, which
gives away the gradient g that was descended.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tql import flow_actor, loop
from tql.attention import SoftmaxAttention
from tql.batch import Transition
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.contracts.contract import Wrong, call, must_be_function, words
from tql.flow_actor import Noise
from tql.loop import TQL
from tql.optimise import copy

N_S, N_A, BATCH, UPDATES = 3, 2, 5, 3
CONFIG = TQLConfig(
    task="cube-single-play-singletask-task1-v0",
    steps=40,
    warmup=1,
    batch_size=BATCH,
    discount=0.8,
    tau=0.1,
    weight_decay=0.3,
    critic_lr=0.02,
    actor_lr=0.01,
    temperature_lr=0.03,
    updates_per_call=1,
    critic=CriticConfig(d_model=6, heads=2, layers=2, ensemble=3),
    actor=ActorConfig(hidden=(7,), flow_steps=3, alpha_bc=3.0),
    control=ControlConfig(target=((1.0, 1.2), (0.8, 0.9))),
)
"""Large rates and a large decay, so that each of them is seen in one update."""

RELATIVE, ABSOLUTE = 1e-5, 1e-9
BETA = 0.9  # of Adam's first moment

Leaves = dict[str, np.ndarray]
"""The arrays of a tree by their place in it: `.critic.model.q_heads[0].out.bias`."""


class Trial(NamedTuple):
    """One update: what goes in, and what the library makes of it."""

    before: TQL
    batch: Transition
    noise: Noise
    after: TQL


def compiled(function: Callable) -> Callable:
    """Compiled without the optimisations of a long run, which would take longer than they save."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return eqx.filter_jit(function, compiler_options=options)


def check_update(mine: Any, Attention: Any = SoftmaxAttention, *, op_by_op: bool = False) -> str:
    """Checks `update(agent, batch, noise)`, which returns the agent after one update, against the
    library's over three updates. `Attention` is the class that the agent's critic is built with:
    the library's, or that of exercise 2. Both updates are compiled, or run operation by operation,
    which takes several times as long. Returns a sentence that says how well they agree."""
    must_be_function(mine, "update")
    must_be_function(Attention, "Attention")
    with jax.enable_x64(True):
        trials, update = _trials(op_by_op), mine if op_by_op else compiled(mine)
        agent, largest = with_attention(copy(trials[0].before), Attention), 0.0
        for k, trial in enumerate(trials, start=1):
            agent = _updated(update, agent, trial)
            largest = max(largest, _check(agent, trial, k))
    close = f"within a relative difference of {largest:.0e}" if largest else "bit for bit"
    return f"update is right: it equals the library's {close}, over {UPDATES} updates."


# ---------------------------------------------------------------- the agent, and the truth


def _numbers(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


def _batch(k: int) -> tuple[Transition, Noise]:
    """Batch and noise of update k."""
    draw = lambda i, *shape: _numbers(BATCH, *shape, seed=10 * k + i)
    m = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0])
    batch = Transition(
        draw(0, N_S), jnp.tanh(draw(1, N_A)), draw(2), m, draw(3, N_S), jnp.tanh(draw(4, N_A))
    )
    time = jax.nn.sigmoid(draw(5))
    return batch, Noise(2 * draw(6, N_A), draw(7, N_A), time, draw(8, N_A))


@functools.cache
def _trials(op_by_op: bool) -> tuple[Trial, ...]:
    """The library's updates. One update comes before them, so that the optimisers remember
    something. The temperatures differ, and the target critic is not the critic."""
    library = TQL.update_with_noise if op_by_op else compiled(TQL.update_with_noise)
    agent = compiled(TQL.create)(N_S, N_A, CONFIG)
    wave = lambda x: x + 0.1 * np.sin(1.0 + np.arange(x.size).reshape(x.shape))
    moved = lambda x: jnp.asarray(wave(np.asarray(x)), x.dtype) if eqx.is_inexact_array(x) else x
    agent = eqx.tree_at(
        lambda agent: (agent.controller.model.log_alpha, agent.target_critic),
        agent,
        (
            jnp.asarray([[0.3, -0.4], [-0.2, 0.5]], float),
            jax.tree.map(moved, agent.target_critic),
        ),
    )
    agent, _ = library(agent, *_batch(9))
    trials = []
    for k in range(UPDATES):
        batch, noise = _batch(k)
        before, (agent, _) = agent, library(agent, batch, noise)
        trials.append(Trial(before, batch, noise, agent))
    return tuple(trials)


def with_attention(agent: TQL, Attention: Any) -> TQL:
    """The agent with another class of attention in its critics and in their optimiser's memory, and
    with the same weights."""
    if Attention is SoftmaxAttention:
        return agent
    known = agent.critic.model.blocks[0].attention
    sizes = known.d_model, known.heads
    example = f"Attention(d_model={sizes[0]}, heads={sizes[1]}, key=key)"
    made = call(functools.partial(Attention, *sizes, key=jr.key(0)), example=example)
    try:
        of_maps = [made.query, made.key, made.value, made.out]
    except AttributeError as error:
        raise Wrong(f"Attention needs the maps query, key, value and out: {error}.") from None
    if len(leaves(made)) != len(leaves(of_maps)):
        raise Wrong("Attention has weights besides its maps query, key, value and out.")
    maps = lambda attention: (attention.query, attention.key, attention.value, attention.out)
    is_attention = lambda node: isinstance(node, SoftmaxAttention)
    swap = lambda node: eqx.tree_at(maps, made, maps(node)) if is_attention(node) else node
    return jax.tree.map(swap, agent, is_leaf=is_attention)


def leaves(tree: Any, prefix: str = "") -> Leaves:
    """All arrays of a tree. The bias of the keys moves nothing, so its gradient is 0 but for
    rounding, which Adam makes steps of; it is left out."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array)):
        name = jax.tree_util.keystr(path)
        if name.startswith(prefix) and not name.endswith("attention.key.bias"):
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            found[name.removeprefix(prefix)] = np.asarray(jr.key_data(x) if is_key else x)
    return found


def distance(got: Leaves, expected: Leaves) -> tuple[float, str]:
    """The largest difference, relative to the largest number of its array, and where it is. It is
    infinite where an array is missing, or not finite, or of another shape."""
    apart = {}
    for name in {**expected, **got}:
        x, y = got.get(name), expected.get(name)
        if x is None or y is None or x.shape != y.shape or not np.isfinite(x).all():
            apart[name] = np.inf
            continue
        difference = np.max(np.abs(x.astype(float) - y.astype(float)), initial=0)
        size = np.max(np.abs(y), initial=0)
        apart[name] = difference / max(size, ABSOLUTE) if difference > ABSOLUTE else 0.0
    return max(((float(x), name) for name, x in apart.items()), default=(0.0, ""))


def alike(got: Leaves, expected: Leaves, tolerance: float = RELATIVE) -> bool:
    return bool(distance(got, expected)[0] <= tolerance)


# ---------------------------------------------------------------- running the student's update

WHOLE = (
    loop.td_loss, loop.critic_loss, loop.temperature_loss, TQL.update, TQL.update_with_noise,
    flow_actor.actor_loss, flow_actor.FlowActor.losses,
)  # fmt: skip
"""Functions of the library that are (most of) the answer."""


def _lent(*arguments, **options):
    raise RuntimeError("lent")


@contextlib.contextmanager
def without_the_answer() -> Iterator[None]:
    """In here the functions of `WHOLE` raise, by whatever name they are called. (Their code is
    exchanged: to watch all calls instead, by `sys.settrace`, takes longer than the whole check.)"""
    functions = [inspect.unwrap(function) for function in WHOLE]
    lent = inspect.unwrap(_lent).__code__
    before = [function.__code__ for function in functions]
    for function in functions:
        said = f"{LENT}{function.__qualname__}"
        consts = tuple(said if x == "lent" else x for x in lent.co_consts)
        function.__code__ = lent.replace(co_consts=consts)
    try:
        yield
    finally:
        for function, code in zip(functions, before):
            function.__code__ = code


LENT = "this is the library's answer: "


def _updated(mine: Callable, agent: TQL, trial: Trial) -> TQL:
    """The student's agent after one update."""
    try:
        with without_the_answer():
            new = call(mine, agent, trial.batch, trial.noise, example="update(agent, batch, noise)")
    except Wrong as error:
        if LENT in str(error):
            name = str(error).partition(LENT)[2]
            raise Wrong(
                f"update calls the library's answer, {name}; put it together from your own parts."
            ) from None
        raise
    if isinstance(new, tuple):
        raise Wrong("update returned a tuple; it must return the agent alone, without metrics.")
    if not isinstance(new, TQL):
        raise Wrong(f"update returned {type(new).__name__}; expected the new agent, a TQL.")
    return new


# ---------------------------------------------------------------- what differs

PLACES = {
    "critic": ".critic",
    "temperatures": ".controller",
    "actor": ".actor",
    "target critic": ".target_critic",
    "step": ".step",
    "key": ".key",
}
"""The parts of an agent, in the order in which they are named."""


def _check(agent: TQL, trial: Trial, k: int) -> float:
    """The largest relative difference. Raises `Wrong` if it is too large."""
    new, known = leaves(agent), leaves(trial.after)
    apart = {}
    for part, place in PLACES.items():
        at = lambda all: {name: x for name, x in all.items() if _belongs(name, place)}
        apart[part] = distance(at(new), at(known))
    wrong = [part for part, (x, _) in apart.items() if x > RELATIVE]
    if not wrong:
        return max(x for x, _ in apart.values())
    part = wrong[0]
    suspect = SUSPECTS[part](new, trial)
    right = [part for part in PLACES if part not in wrong]
    others = f" Right: {_listed(right)}." if right else ""
    also = f" Also wrong: {_listed(wrong[1:])}." if wrong[1:] else ""
    where = _example(new, known, apart[part][1])
    raise Wrong(f"{part}: {suspect}. After update {k}, {where}.{also}{others}")


def _belongs(name: str, place: str) -> bool:
    return name == place or name.startswith((f"{place}.", f"{place}["))


def _listed(parts: list[str]) -> str:
    *first, last = [f"the {part}" for part in parts]
    return f"{', '.join(first)} and {last}" if first else last


def _example(new: Leaves, known: Leaves, name: str) -> str:
    """The number at which the two are farthest apart."""
    if name not in new or name not in known:
        return f"agent{name} is {'missing' if name in known else 'there and should not be'}"
    x, y = new[name], known[name]
    if x.shape != y.shape:
        return f"agent{name} has the shape {x.shape}; expected {y.shape}"
    at = np.unravel_index(np.argmax(np.abs(x.astype(float) - y.astype(float))), y.shape)
    index = f"[{', '.join(map(str, at))}]" if at else ""
    got, expected = float(x[at]), float(y[at])
    show = words if abs(got - expected) > 1e-3 * abs(expected) else "{:.8g}".format
    return f"agent{name}{index}: expected {show(expected)}, got {show(got)}"


# ---------------------------------------------------------------- the suspects: three learners


def _learner_suspect(
    of: str, model: str, optimiser: int, of_gradient: Callable, new: Leaves, trial: Trial
) -> str:
    """What is wrong with a learner; `of_gradient` knows it of a gradient."""
    place = f".{model}"
    before, after = leaves(trial.before, place), leaves(trial.after, place)
    mine = {name.removeprefix(place): x for name, x in new.items() if _belongs(name, place)}
    if alike(mine, before, 0):
        return f"the {of} did not move: neither the network nor its optimiser's state is new"
    moment = lambda all: _below(all, ".optimiser_state[0].mu")
    if {name: x.shape for name, x in mine.items()} != {name: x.shape for name, x in after.items()}:
        return (
            "network or optimiser state are not built as before; use Learner.descend with "
            f"loop.optimisers(agent.config)[{optimiser}]"
        )
    old, right, got = moment(before), moment(after), moment(mine)
    if not all(np.isfinite(x).all() for x in mine.values()):
        return "it has numbers that are not finite"
    if alike(got, right):
        return _step_suspect(of, optimiser, mine, before, after)
    if alike(got, old):
        return f"the state of the {of}'s optimiser is not kept: a Learner holds both, so replace it"
    gradient = {name: (got[name] - BETA * old[name]) / (1 - BETA) for name in got}
    truth = {name: (right[name] - BETA * old[name]) / (1 - BETA) for name in got}
    if alike({name: x / (1 - BETA) for name, x in got.items()}, truth):
        return f"the state of the {of}'s optimiser is started anew; take the one of the agent"
    return of_gradient(gradient, trial)


def _below(all: Leaves, prefix: str) -> Leaves:
    return {
        name.removeprefix(prefix): x for name, x in all.items() if name.startswith(f"{prefix}.")
    }


def _step_suspect(of: str, optimiser: int, mine: Leaves, before: Leaves, after: Leaves) -> str:
    """The gradient is right, and what was made of it is not."""
    use = f"use loop.optimisers(agent.config)[{optimiser}]"
    network = lambda all: _below(all, ".model")
    if alike(network(mine), network(after)):
        return f"the network is right, but the state of the {of}'s optimiser is wrong; {use}"
    if alike(network(mine), network(before), 0):
        return "the optimiser's state has moved on, but the network is the one from before"
    back = {name: 2 * x - network(after)[name] for name, x in network(before).items()}
    if alike(network(mine), back, 1e-3):
        return "the step goes up the gradient, not down"
    return (
        f"the gradient is right, but not the step that is made of it: {use} (its learning rate "
        "follows the agent's schedule, and AdamW needs the parameters, for their decay)"
    )


def _weights(gradient: Leaves, columns: list[Leaves]) -> np.ndarray | None:
    """The weights with which the columns add up to the gradient, if there are such."""
    flat = lambda all: np.concatenate([np.ravel(all[name]) for name in sorted(gradient)])
    matrix, y = np.stack([flat(column) for column in columns], axis=1), flat(gradient)
    weights, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    error = np.linalg.norm(matrix @ weights - y)
    return weights if error < 1e-5 * np.linalg.norm(y) + 1e-12 else None


def _weight_words(part: str, right: float, weight: float) -> str:
    if abs(weight) < 1e-4 * abs(right):
        return f"the {part} is missing, or its gradient does not arrive"
    if abs(weight + right) < 1e-3 * abs(right):
        return f"the {part} has the wrong sign"
    return f"the {part} counts {weight:.4g} times in the loss; it must count {right:.4g} times"


def _same(x: Any, y: Any) -> bool:
    return np.allclose(x, y, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- the critic's gradient


class CriticParts(NamedTuple):
    """What the critic's gradient is a sum of, at pairs (s, a) with targets y [batch, K]."""

    td: Leaves
    """Of the TD loss."""
    of_H: list[Leaves]
    """Of each of the 2 L entropies."""
    Q: np.ndarray
    H: np.ndarray


@functools.cache
def _critic_program() -> Callable:
    def td(critic, s, a, y):
        return jnp.mean((jax.vmap(critic)(s, a) - y) ** 2)

    def entropies(critic, s, a):
        _, logits = jax.vmap(critic.with_attention)(s, a)
        h = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
        others = jnp.mean(h[..., 1:], axis=(0, 2, 3))
        return jnp.stack([jnp.mean(h[..., 0], axis=(0, 2)), others], axis=1)

    @compiled
    def parts(critic, s, a, y):
        H, of_H = eqx.filter_vjp(lambda critic: entropies(critic, s, a), critic)
        each = jnp.eye(H.size).reshape(H.size, *H.shape)
        of_each = jax.vmap(lambda one: of_H(one)[0])(each)
        return eqx.filter_grad(td)(critic, s, a, y), of_each, jax.vmap(critic)(s, a), H

    return parts


def _critic_parts(critic: Any, s: Any, a: Any, y: Any = 0.0) -> CriticParts:
    y = np.broadcast_to(y, (BATCH, CONFIG.critic.ensemble))
    td, of_H, Q, H = _critic_program()(critic, s, a, jnp.asarray(y, float))
    of_H = leaves(of_H)
    each = [{name: x[i] for name, x in of_H.items()} for i in range(H.size)]
    return CriticParts(leaves(td), each, np.asarray(Q), np.asarray(H))


def _next_actions(trial: Trial) -> dict[str, Any]:
    """The next actions, and what is often taken for them."""
    actor, noise, batch = trial.before.actor.model, trial.noise, trial.batch
    of = lambda act, s, z: jax.vmap(act)(s, z)
    before = "all losses are taken at the agent before the update"
    return {
        "": of(actor.act, batch.s_next, noise.next_action),
        f"the next actions come from the actor after its update; {before}": of(
            trial.after.actor.model.act, batch.s_next, noise.next_action
        ),
        "the next actions take the noise z; theirs is noise.next_action": of(
            actor.act, batch.s_next, noise.z
        ),
        "the next actions take the noise x_0; theirs is noise.next_action": of(
            actor.act, batch.s_next, noise.x_0
        ),
        "the next actions are those of the batch; the policy makes them": batch.a_next,
        "the next actions are the actions of the batch; the policy makes them": batch.a,
        "the next actions are not clipped to [-1, 1]": of(
            actor.mu, batch.s_next, noise.next_action
        ),
        "the next actions come from the behaviour flow; the policy makes them": of(
            actor.behaviour, batch.s_next, noise.next_action
        ),
        "the next actions are those of the policy in s; they are its in s'": of(
            actor.act, batch.s, noise.next_action
        ),
    }


def _targets(trial: Trial) -> Iterator[tuple[str, np.ndarray]]:
    """y, and what is often taken for it, [batch] or [batch, K]."""
    batch, gamma, bar = trial.batch, trial.before.config.discount, trial.before.target_critic
    r, m = np.asarray(batch.r), np.asarray(batch.m)
    Q = lambda critic, a, s=batch.s_next: _critic_parts(critic, s, a).Q
    y = lambda Q, r=r, m=m, gamma=gamma: r + gamma * m * Q.mean(axis=1)
    known = _next_actions(trial)
    a = known.pop("")
    right = Q(bar, a)
    yield "", y(right)
    yield (
        "the critic itself makes the target y; the target critic makes it",
        y(Q(trial.before.critic.model, a)),
    )
    for critic in (trial.after.target_critic, trial.after.critic.model):
        yield (
            "the target y takes a critic after its update; all losses are taken at the agent before"
            " the update, and the target critic makes y",
            y(Q(critic, a)),
        )
    for said, other in known.items():
        yield said, y(Q(bar, other))
    yield "the target y takes the state s, not the next state", y(Q(bar, a, batch.s))
    yield "the mask m is ignored in y", y(right, m=1)
    yield "the mask m is used as a done flag in y", y(right, m=1 - m)
    yield "the discount is missing in y", y(right, gamma=1)
    yield "the discount counts twice in y", y(right, gamma=gamma**2)
    yield "every head has a target of its own", r[:, None] + gamma * m[:, None] * right
    for name, of_heads in (("minimum", np.min), ("maximum", np.max), ("sum", np.sum)):
        yield (
            f"y takes the {name} over the heads, not their mean",
            r + gamma * m * of_heads(right, axis=1),
        )


def _critic_gradient_suspect(gradient: Leaves, trial: Trial) -> str:
    critic, s, a = trial.before.critic.model, trial.batch.s, trial.batch.a
    for said, y in _targets(trial):
        parts = _critic_parts(critic, s, a, y if y.ndim == 2 else y[:, None])
        weights = _weights(gradient, [parts.td, *parts.of_H])
        if weights is not None:
            return said or _critic_weights_suspect(weights, trial)
        through = said.startswith("the critic itself") and _through_y(critic, parts, y, trial)
        if through and _weights(gradient, [through, *parts.of_H]) is not None:
            return (
                "the gradient reaches the critic through y: stop it, and let the target critic "
                "make y"
            )
    return (
        "the gradient of the critic's loss is wrong; check td_loss, row_entropy, attention_loss "
        "and Attention alone"
    )


def _through_y(critic: Any, parts: CriticParts, y: np.ndarray, trial: Trial) -> Leaves:
    """The gradient of the TD loss if the critic makes y and y is not stopped."""
    batch = trial.batch
    a_next = _next_actions(trial)[""]
    error = (parts.Q - y[:, None]).mean(axis=1)
    pull = -error * trial.before.config.discount * np.asarray(batch.m)
    at_next = _critic_parts(critic, batch.s_next, a_next)
    at_next = _critic_parts(critic, batch.s_next, a_next, at_next.Q - pull[:, None])
    return {name: parts.td[name] + at_next.td[name] for name in parts.td}


def _critic_weights_suspect(weights: np.ndarray, trial: Trial) -> str:
    """The target is right, and TD loss or entropies count as they should not."""
    td, of_H = weights[0], weights[1:].reshape(-1, 2)
    if not _same(td, 1):
        return _weight_words("TD loss", 1.0, td)
    L, n = len(of_H), 1 + N_S + N_A
    log_alpha = np.asarray(trial.before.controller.model.log_alpha)
    later = -np.exp(np.asarray(trial.after.controller.model.log_alpha)) / (2 * L)
    right = -np.exp(log_alpha) / (2 * L)
    with_value = np.stack([right[:, 0] + right[:, 1] / n, right[:, 1] * (n - 1) / n], axis=1)
    known = {
        "the attention loss takes the temperatures after their update; all losses are taken at the "
        "agent before the update": later,
        "the attention loss takes log alpha, not alpha": -log_alpha / (2 * L),
        "the attention loss takes no alpha": 0 * right - 1 / (2 * L),
        "the group of the other tokens contains [VALUE] too; its entropy is the mean of all other "
        "queries": with_value,
        "the attention loss exchanges the two groups": right[:, ::-1],
        "the attention loss exchanges the layers": right[::-1],
    }
    if found := [said for said, other in known.items() if _same(of_H, other)]:
        return found[0]
    if _same(of_H / right, (of_H / right).flat[0]):
        return _weight_words("attention loss", 1.0, (of_H / right).flat[0])
    wrong = f"the entropies count {words(of_H)} times in the loss; they must count {words(right)}"
    return f"{wrong} times (layer by layer, [VALUE] and others)"


# ---------------------------------------------------------------- the gradient of the temperatures


def _temperature_gradient_suspect(gradient: Leaves, trial: Trial) -> str:
    got, controller = gradient[".log_alpha"], trial.before.controller.model
    s, a = trial.batch.s, trial.batch.a
    H = lambda critic, s=s, a=a: _critic_parts(critic, s, a).H
    log_alpha, T = np.asarray(controller.log_alpha), np.array(controller.target)
    alpha, H_before, size = np.exp(log_alpha), H(trial.before.critic.model), log_alpha.size
    right = alpha * (H_before - T) / size
    if _same(got / right, (got / right).flat[0]):
        return _weight_words("temperature loss", 1.0, (got / right).flat[0])
    known = {
        "the entropies are those of the critic after its update; they are taken before it": (
            alpha * (H(trial.after.critic.model) - T)
        ),
        "the entropies are those of the target critic; they are the critic's": (
            alpha * (H(trial.before.target_critic) - T)
        ),
        "the entropies are those in the next states; they are the critic's at (s, a)": (
            alpha * (H(trial.before.critic.model, trial.batch.s_next, _next_actions(trial)[""]) - T)
        ),
        "the target T is missing in the temperature loss": alpha * H_before,
        "log alpha stands in the temperature loss in place of alpha": H_before - T,
        "the temperatures descend the attention loss, which is the critic's": -alpha * H_before,
        "the target's groups are exchanged": alpha * (H_before - T[:, ::-1]),
        "the target's layers are exchanged": alpha * (H_before - T[::-1]),
    }
    said = (said for said, other in known.items() if _same(got, other / size))
    return next(said, "the gradient of the temperature loss is wrong; check temperature_loss alone")


# ---------------------------------------------------------------- the actor's gradient


ACTOR_PARTS = ("flow matching", "distillation", "mean of Q")


@functools.cache
def _actor_program() -> Callable:
    """The gradients of six losses: the three of the actor; the distillation as the teacher would
    feel it; Q before the clip; and the distillation after the clip."""

    def losses(actor, critic, batch, noise):
        s, z = batch.s, noise.z
        student, teacher = jax.vmap(actor.mu)(s, z), jax.vmap(actor.behaviour)(s, z)
        clipped, stop = jnp.clip(student, -1, 1), jax.lax.stop_gradient
        x_t = (1 - noise.t[:, None]) * noise.x_0 + noise.t[:, None] * batch.a
        velocity = jax.vmap(actor.flow)(jnp.concatenate([s, x_t, noise.t[:, None]], axis=1))
        square = lambda x: jnp.mean(x**2)
        Q = jax.vmap(critic)
        return jnp.stack(
            [
                square(velocity - (batch.a - noise.x_0)),
                square(student - stop(teacher)),
                jnp.mean(Q(s, clipped)),
                square(stop(student) - teacher),
                jnp.mean(Q(s, student)),
                square(clipped - stop(teacher)),
            ]
        )

    @compiled
    def parts(actor, critic, batch, noise):
        _, pull = eqx.filter_vjp(lambda actor: losses(actor, critic, batch, noise), actor)
        return jax.vmap(lambda one: pull(one)[0])(jnp.eye(6))

    return parts


def _actor_columns(trial: Trial, critic: Any = None, noise: Noise | None = None) -> list[Leaves]:
    critic = trial.before.critic.model if critic is None else critic
    noise = trial.noise if noise is None else noise
    found = leaves(_actor_program()(trial.before.actor.model, critic, trial.batch, noise))
    return [{name: x[i] for name, x in found.items()} for i in range(6)]


def _actor_gradient_suspect(gradient: Leaves, trial: Trial) -> str:
    columns, right = _actor_columns(trial), (1.0, CONFIG.actor.alpha_bc, -1.0)
    weights = _weights(gradient, columns[:3])
    if weights is not None:
        for part, good, weight in zip(ACTOR_PARTS, right, weights):
            if not _same(weight, good):
                return _weight_words(part, good, weight)
    for said, at in {
        "the gradient of the distillation reaches the flow: stop it at the teacher": (0, 1, 2, 3),
        "Q is asked about the policy's action before the clip": (0, 1, 4),
        "the distillation takes the policy's action after the clip": (0, 5, 2),
    }.items():
        if _weights(gradient, [columns[i] for i in at]) is not None:
            return said
    for said, other in _other_actor_arguments(trial).items():
        if _weights(gradient, _actor_columns(trial, **other)[:3]) is not None:
            return said
    return (
        "the gradient of the actor's loss is wrong; check flow_matching and euler alone, and the "
        "noise, the clip and the mean in each of the three parts"
    )


def _other_actor_arguments(trial: Trial) -> dict[str, dict[str, Any]]:
    with_noise = lambda **other: dict(noise=replace(trial.noise, **other))
    noise = trial.noise
    return {
        "Q is that of the critic after its update; all losses are taken at the agent before the "
        "update": dict(critic=trial.after.critic.model),
        "Q is that of the target critic; it is the critic's": dict(
            critic=trial.before.target_critic
        ),
        "flow matching starts from the noise z; it starts from noise.x_0": with_noise(x_0=noise.z),
        "the policy takes the noise x_0; policy and teacher take noise.z": with_noise(z=noise.x_0),
        "the policy takes the noise of the next actions; policy and teacher take noise.z": (
            with_noise(z=noise.next_action)
        ),
        "flow matching takes the time 1 - t": with_noise(t=1 - noise.t),
    }


# ---------------------------------------------------------------- the suspects: target, step, key


def _target_suspect(new: Leaves, trial: Trial) -> str:
    place = ".target_critic"
    mine = {name.removeprefix(place): x for name, x in new.items() if _belongs(name, place)}
    bar, theta = leaves(trial.before.target_critic), leaves(trial.before.critic.model)
    theta_new, tau = leaves(trial.after.critic.model), CONFIG.tau
    towards = lambda theta, tau: {name: tau * theta[name] + (1 - tau) * bar[name] for name in bar}
    known = {
        "it did not move": bar,
        "it moved towards the critic AFTER its update; the reference uses the critic before it": (
            towards(theta_new, tau)
        ),
        "tau and 1 - tau are exchanged": towards(theta, 1 - tau),
        "tau and 1 - tau are exchanged, and it moved towards the critic after its update": (
            towards(theta_new, 1 - tau)
        ),
        "it is the critic; it must follow it slowly": theta,
        "it is the critic after its update; it must follow it slowly": theta_new,
        "it moved away from the critic": towards(theta, -tau),
    }
    if mine.keys() != bar.keys():
        return "it is not built as before"
    return next((said for said, x in known.items() if alike(mine, x)), "it is wrong")


def _step_number_suspect(new: Leaves, trial: Trial) -> str:
    got, before = new.get(".step"), int(trial.before.step)
    if got is not None and got.shape == () and int(got) == before:
        return "it is not advanced by 1"
    return "it must be the number of updates so far"


def _learner(of: str, model: str, optimiser: int, of_gradient: Callable) -> Callable:
    return functools.partial(_learner_suspect, of, model, optimiser, of_gradient)


SUSPECTS: dict[str, Callable[[Leaves, Trial], str]] = {
    "critic": _learner("critic", "critic", 0, _critic_gradient_suspect),
    "temperatures": _learner("temperatures", "controller", 1, _temperature_gradient_suspect),
    "actor": _learner("actor", "actor", 2, _actor_gradient_suspect),
    "target critic": _target_suspect,
    "step": _step_number_suspect,
    "key": lambda new, trial: "the agent's key must stay as it is",
}
