"""One run on several devices: the same update, with its batch shared out among them.

    batch                      a part of its transitions on each device
    networks, targets, data    whole on every device
    optimiser state            a part of every large matrix on each device, the rest whole

Where its arrays lie is all that distinguishes such a run. `spread` puts them there, `mesh_of` finds
the devices again when the chunk is compiled, and two constraints inside the chunk keep the layout;
XLA adds the sums over devices (`jax.sharding`). On one device every function here returns what it
was given, and the compiled program is the one without this file.
"""

import contextlib
import os

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from tql.agent import AbstractAgent
from tql.batch import Rows
from tql.training.machines import join

AXIS = "batch"
LARGE = 2**16
"""Numbers in a matrix from which on its optimiser state is shared out: below, it would save less
than the exchange costs."""


def ask_for_devices(number: int, batch_size: int) -> None:
    """Finds out, before any work, whether `number` devices can share such a batch. Raises
    `ValueError` if not.

    On a machine without an accelerator JAX makes that many virtual devices of its CPU, if it has
    not started yet. They share its cores, so nothing becomes faster; they are there to try it out.
    """
    if number == 1 and "JAX_NUM_PROCESSES" not in os.environ:
        return
    if number < 1 or batch_size % number:
        raise ValueError(
            f"--devices {number}: the batch of {batch_size} transitions is shared out evenly, so "
            f"the number of devices must divide {batch_size}."
        )
    processes = join()
    # RuntimeError: JAX has started, or XLA_FLAGS has made virtual devices already.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(1, number // processes))
    there = jax.devices()
    if number > len(there) or (processes > 1 and number < len(there)):
        raise ValueError(
            f"--devices {number}: there are {len(there)} ({there[0].device_kind}) of {processes} "
            "processes; one process may ask for less, several have to ask for all."
        )


def spread(agent: AbstractAgent, data: Rows, number: int) -> tuple[AbstractAgent, Rows]:
    """The agent and its data, laid out over the first `number` devices."""
    if number == 1:
        return agent, data
    mesh = jax.make_mesh((number,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:number])
    arrays, static = eqx.partition(agent, eqx.is_array)

    def place(x: jax.Array, spec: P) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(place(jr.key_data(x), spec))
        # By way of the host, because other machines' devices take part of it or all.
        return jax.device_put(np.asarray(x), NamedSharding(mesh, spec))

    arrays = jax.tree.map(place, arrays, layout(arrays, number))
    return eqx.combine(arrays, static), jax.tree.map(lambda x: place(x, P()), data)


def layout(arrays: PyTree, number: int) -> PyTree[P]:
    """How each array of an agent, or its shape, lies on `number` devices. Of the optimiser state, a
    matrix of at least `LARGE` numbers is cut along its first axis that `number` divides."""

    def spec(path: tuple, x: jax.Array | jax.ShapeDtypeStruct) -> P:
        of_optimiser = any(getattr(key, "name", "") == "optimiser_state" for key in path)
        axes = [i for i, size in enumerate(x.shape) if size % number == 0]
        if of_optimiser and x.ndim > 1 and x.size >= LARGE and axes:
            return P(*[None] * axes[0], AXIS)
        return P()

    return jax.tree_util.tree_map_with_path(spec, arrays)


def mesh_of(agent: AbstractAgent) -> contextlib.AbstractContextManager:
    """A context in which programs are compiled for the devices on which the agent lies."""
    sharding = agent.step.sharding
    on_several = isinstance(sharding, NamedSharding)
    return jax.set_mesh(sharding.mesh) if on_several else contextlib.nullcontext()


def share_out(batch: Rows) -> Rows:
    """Inside a compiled chunk: a batch of which every device has a part."""
    if jax.sharding.get_abstract_mesh().empty:
        return batch
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P(AXIS)), batch)


def keep_layout(arrays: PyTree) -> PyTree:
    """Inside a compiled chunk: arrays of an agent, and metrics, which lie as `layout` says."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return arrays
    return jax.tree.map(jax.lax.with_sharding_constraint, arrays, layout(arrays, mesh.size))


def on_one_device(agent: AbstractAgent) -> AbstractAgent:
    """The agent to act with: what is whole on every device, taken from the first of them. It
    shares their memory, so it is gone once the next chunk has begun."""
    first = lambda x: x.addressable_data(0) if eqx.is_array(x) and x.is_fully_replicated else x
    return jax.tree.map(first, agent) if isinstance(agent.step.sharding, NamedSharding) else agent
