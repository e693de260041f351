"""Many updates in one compiled program."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PyTree

from tql.agent import AbstractAgent, Metrics
from tql.batch import Rows, draw_batch
from tql.components import checked
from tql.training.devices import keep_layout, share_out


def next_update(
    agent: AbstractAgent, dataset: PyTree, draw: Callable[..., Rows] = draw_batch
) -> tuple[AbstractAgent, Metrics]:
    """The update after `step` others, on the batch `draw(dataset, batch_size, key)`, all with keys
    from `fold_in(key, step)`. Raises `ValueError` for a method whose update returns something
    else."""
    k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
    batch = share_out(draw(dataset, agent.config.batch_size, k_batch))
    result = agent.update(batch, k_update)
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], type(agent))
    if not (pair and isinstance(result[1], dict)):
        raise ValueError(
            f"{type(agent).__name__}.update(batch, key) must return the pair (agent, metrics), "
            "the metrics as a dictionary of arrays by name."
        )
    return result


@eqx.filter_jit(donate="all-except-first")
def train_chunk(
    dataset_and_updates: tuple[Rows, int], agent: AbstractAgent
) -> tuple[AbstractAgent, Metrics]:
    """A number of updates in one `scan`; every metric is stacked over them. The agent that is
    passed in is consumed, because its memory is reused (donated).

    Batches are drawn inside, uniformly with replacement, so nothing goes to the host within a
    chunk. Dataset and number come as one argument because donation spares the first argument
    only."""
    dataset, updates = dataset_and_updates
    return many_updates(agent, dataset, updates)


def many_updates(
    agent: AbstractAgent, dataset: PyTree, updates: int, draw: Callable[..., Rows] = draw_batch
) -> tuple[AbstractAgent, Metrics]:
    """A number of updates in one `scan`, and their metrics."""
    arrays, static = eqx.partition(agent, eqx.is_array)

    def body(arrays: PyTree, _: None) -> tuple[PyTree, Metrics]:
        agent, metrics = next_update(eqx.combine(keep_layout(arrays), static), dataset, draw)
        return keep_layout(eqx.filter(agent, eqx.is_array)), metrics

    arrays, metrics = keep_layout(jax.lax.scan(body, arrays, None, length=updates))
    return eqx.combine(arrays, static), metrics


def trace_update(agent: AbstractAgent, dataset: Rows) -> dict[str, tuple[int, ...]]:
    """The shape of every metric of one update.

    The update and every policy are traced with shapes alone, in a second or two and before anything
    is on the disk. Raises `ValueError` where a method or a component returns something else than
    training, evaluation and checkpoints need.
    """
    name = type(agent).__name__
    updated, metrics = eqx.filter_eval_shape(next_update, agent, dataset)
    before, after = _shapes(agent), _shapes(updated)
    for leaf in sorted(before.keys() | after.keys()):
        if before.get(leaf) != after.get(leaf):
            raise ValueError(
                f"{name}.update(batch, key) returned an agent whose '{leaf}' is "
                f"{after.get(leaf, 'missing')}; before the update it was "
                f"{before.get(leaf, 'missing')}, and it must stay so."
            )
    if taken := {"step", "time"} & set(metrics):
        raise ValueError(f"a metric of {name} is called {taken.pop()}, a name that is taken.")
    for metric, x in metrics.items():
        if not isinstance(x, jax.ShapeDtypeStruct):
            raise ValueError(f"the metric '{metric}' of {name} is {x!r}; it must be a JAX array.")
    for policy in agent.policies:
        _trace_policy(agent, policy)
    return {metric: x.shape for metric, x in metrics.items()}


def _trace_policy(agent: AbstractAgent, name: str) -> None:
    """Raises `ValueError` unless the policy of that name gives n_a numbers."""
    call = f"{type(agent).__name__}.policy('{name}')(s, key)"
    act = lambda policy, s, key: checked(policy(s, key), (agent.n_a,), call)
    s = jax.ShapeDtypeStruct((agent.n_s,), float)
    eqx.filter_eval_shape(act, agent.policy(name), s, jr.key(0))


def _shapes(tree: PyTree) -> dict[str, str]:
    """Type and shape of every array of a tree, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    is_array = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)
    return {
        jax.tree_util.keystr(path).lstrip("."): f"{x.dtype}{list(x.shape)}"
        for path, x in leaves
        if is_array(x)
    }
