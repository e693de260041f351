r"""What training needs, by count and before anything is compiled: memory and operations.

Bytes of weights, targets and optimiser states are those of the arrays that the settings make, found
by tracing with shapes alone. What the forward passes keep for the backward passes is counted for
TQL's own critic, with $n$ tokens, width $d$, $h$ heads, $L$ layers and batch $B$, in numbers of 4
bytes:

$$B \, [(L - 1)(63\,n\,d + 7\,h\,n^2) + 11\,n\,d + 3\,h\,n^2]$$

So many arrays of these sizes does JAX keep for the critic's loss and for the actor's, which goes
through the critic too: 36 + 27 of a whole block, where the four times wider inside of the MLP
counts four times, and 7 + 4 of the last block, which computes one row after its attention. The rule
takes both losses to be in memory at once and nothing to be computed twice. XLA for CPUs plans 1.2
times as much temporary memory as these and the gradients; for a GPU it may plan less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from tql.agent import AbstractAgent
from tql.batch import Transition
from tql.config import AbstractConfig, CriticConfig, TQLConfig
from tql.critic import D_HEAD
from tql.training.devices import layout
from tql.training.methods import new_agent


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on each of its devices."""

    weights: int
    """Of everything that the agent holds and the next two do not."""
    targets: int
    """Of target networks."""
    optimiser_state: int
    """Of AdamW: two numbers for each weight."""
    gradients: int
    """As many as the weights that an optimiser moves."""
    dataset: int
    """Of all transitions; they are whole on every device."""
    activations: int | None
    """Kept for the backward passes, by the rule above; None for other parts than the paper's."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) or 0 for field in fields(self))


def agent_of(n_s: int, n_a: int, config: AbstractConfig) -> AbstractAgent:
    """The agent of these settings with shapes in the place of arrays."""
    return eqx.filter_eval_shape(new_agent, n_s, n_a, config)


def transitions_of(n_s: int, n_a: int, rows: int) -> Transition:
    """So many transitions, with shapes in the place of arrays."""
    x = lambda *sizes: jnp.zeros((rows, *sizes))
    return jax.eval_shape(lambda: Transition(x(n_s), x(n_a), x(), x(), x(n_s), x(n_a)))


def memory(agent: AbstractAgent, dataset: PyTree, devices: int = 1) -> Memory:
    """What this agent needs on each of so many devices; arrays or shapes will do."""
    arrays = eqx.filter(agent, lambda x: hasattr(x, "shape"))
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    specs = jax.tree.leaves(layout(arrays, devices), is_leaf=lambda x: isinstance(x, jax.P))
    parts = dict.fromkeys(("weights", "targets", "optimiser_state", "gradients"), 0)
    for (path, leaf), spec in zip(leaves, specs, strict=True):
        names, size = [getattr(key, "name", "") for key in path], bytes_of(leaf)
        if "optimiser_state" in names:
            parts["optimiser_state"] += size // (devices if any(spec) else 1)
        elif names[0].startswith("target"):
            parts["targets"] += size
        else:
            parts["weights"] += size
            parts["gradients"] += size if "model" in names else 0
    kept = activations(agent.config, 1 + agent.n_s + agent.n_a)
    kept = kept and kept // devices
    return Memory(**parts, dataset=sum(map(bytes_of, jax.tree.leaves(dataset))), activations=kept)


def bytes_of(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Of one array. A random key, whose type has no size, is two numbers of 4 bytes."""
    return x.size * (x.dtype.itemsize if jax.dtypes.issubdtype(x.dtype, jnp.number) else 8)


def activations(config: AbstractConfig, n: int) -> int | None:
    """Bytes by the rule above, of a whole batch; None where the rule does not hold."""
    if not isinstance(config, TQLConfig):
        return None
    critic, paper = config.critic, CriticConfig()
    parts = lambda x: (x.tokenizer, x.attention, x.block, x.changes)
    if parts(critic) != parts(paper) or config.actor.kind != "flow":
        return None
    d, h = critic.d_model, critic.heads or critic.d_model // D_HEAD
    whole_block, last_block = 63 * n * d + 7 * h * n**2, 11 * n * d + 3 * h * n**2
    return 4 * config.batch_size * ((critic.layers - 1) * whole_block + last_block)


# ---- operations ----------------------------------------------------------------------------------


def update_flops(agent: AbstractAgent, data: PyTree) -> float:
    """Floating-point operations of the matrix products of one update; arrays or shapes will do."""
    B = agent.config.batch_size
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((B, *x.shape[1:]), x.dtype), data)
    return matmul_flops(lambda agent, batch: agent.update(batch, jr.key(0)), agent, batch)


def matmul_flops(function: Callable[..., PyTree], *arguments: PyTree) -> float:
    """Of all matrix products that the call runs: 2 per multiply-add, loops counted in full."""
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*arguments)
    return _flops(jaxpr.jaxpr)


def _flops(jaxpr: jex.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), (lhs, _) = equation.params["dimension_numbers"], equation.invars
            inner = math.prod(lhs.aval.shape[i] for i in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        is_program = lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)
        for inner in filter(is_program, jax.tree.leaves(equation.params, is_leaf=is_program)):
            total += times * _flops(getattr(inner, "jaxpr", inner))
    return total


# ---- for people ----------------------------------------------------------------------------------


def in_words(agent: AbstractAgent, dataset: PyTree, devices: int = 1) -> str:
    """What training needs, in two sentences."""
    need = memory(agent, dataset, devices)
    sizes = {field.name.replace("_", " "): getattr(need, field.name) for field in fields(need)}
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items() if size)
    on = f" on each of {devices} devices" if devices > 1 else ""
    flops = update_flops(agent, dataset)
    return (
        f"By count, training needs {need.total / 1e9:.2f} GB{on}: {parts}. An update is "
        f"{flops / 1e12:.3g} TFLOP of matrix products, and all {agent.config.steps:,} updates are "
        f"{flops * agent.config.steps / 1e18:.3g} EFLOP."
    )
