r"""Several seeds of one method in one process: their agents stacked, and one `vmap` of the chunk that trains a single one.

Meant for a GPU that one small network leaves nearly idle; how much it gains was not measured. Every seed has a run directory like any
other, to be evaluated, resumed and recorded alone; the clock of its metrics runs at its share of the process. `vmap` may sum in another
order, so what repeats bitwise is the same seeds together; `config.json` names them.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tql import run as runs
from tql.agent import AbstractAgent, Metrics
from tql.config import Task, TrainingConfig
from tql.data import Batch, load
from tql.loop import train_chunk
from tql.run_directory import KEPT_CHECKPOINTS, RunError, agent_at, checkpoint_steps, forget_after, save
from tql.whole_file import whole_file


@eqx.filter_jit(donate="all-except-first")
def train_chunks(dataset_and_updates: tuple[Batch, int], agents: AbstractAgent) -> tuple[AbstractAgent, Metrics]:
    """`train_chunk` of every agent of a stack, each from its own key. The stack passed in is consumed."""
    return eqx.filter_vmap(train_chunk, in_axes=(None, eqx.if_array(0)))(dataset_and_updates, agents)


def stack(agents: Sequence[AbstractAgent]) -> AbstractAgent:
    """One PyTree whose every array has the agents along its first axis. They may differ by their seed alone."""
    same = [replace(agent, config=agents[0].config) for agent in agents]
    arrays, static = zip(*(eqx.partition(agent, eqx.is_array) for agent in same))
    return eqx.combine(jax.tree.map(lambda *x: jnp.stack(x), *arrays), static[0])


def unstack(agents: AbstractAgent, configs: Sequence[TrainingConfig]) -> list[AbstractAgent]:
    """The inverse of `stack`; every agent gets its own settings back."""
    arrays, static = eqx.partition(agents, eqx.is_array)
    each = [jax.tree.map(lambda x: x[i], arrays) for i in range(len(configs))]
    return [replace(eqx.combine(mine, static), config=config) for mine, config in zip(each, configs)]


def begin(configs: Sequence[TrainingConfig], dataset: Path, directories: Sequence[Path]) -> tuple[list[AbstractAgent], Batch]:
    """All agents after the same number of updates, fresh or from checkpoints, and their data.

    A process killed between two saves leaves some seeds one checkpoint ahead; they go back to it. Raises `ValueError` for settings that
    differ by more than the seed, `RunError` for runs without a `common_step`, and what `run.start` and `run.resume` raise.
    """
    if {replace(config, seed=0) for config in configs} != {replace(configs[0], seed=0)}:
        raise ValueError("runs that are trained together may differ by their seed alone.")
    loaded, _ = load(Task.parse(configs[0].task), dataset)
    agents = []
    for config, run in zip(configs, directories, strict=True):
        agent, data = runs.start_or_resume(config, dataset, run, loaded)
        agents.append(agent)
    step = common_step(directories)
    if step is None:
        raise RunError(f"{directories[0]} and the others have no checkpoint after the same number of updates; train them one by one.")
    for i, run in enumerate(directories):
        if int(agents[i].step) > step:
            agents[i] = agent_at(run, step) if step else runs.fresh(configs[i], loaded)
            forget_after(run, step)
        name_seeds(run, [config.seed for config in configs])
    return agents, data


def common_step(directories: Sequence[Path]) -> int | None:
    """The last number of updates from which all runs can go on: all have that checkpoint, or (0) none has had to drop one yet. None if
    they are further apart.
    """
    found = [(steps, [0] if len(steps) < KEPT_CHECKPOINTS else []) for steps in map(checkpoint_steps, directories)]
    return max(set.intersection(*({*steps, *start} for steps, start in found)), default=None)


def name_seeds(run: Path, seeds: list[int]) -> None:
    """Says in `config.json` which seeds were trained together."""
    content = json.loads((run / "config.json").read_text()) | {"seeds_together": seeds}
    with whole_file(run / "config.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def train(configs: Sequence[TrainingConfig], dataset: Path, directories: Sequence[Path], *, workers: int) -> None:
    """Trains runs that differ by their seed, from their start or from where they stopped, and evaluates each.

    Raises as `run.train` does; one seed that diverges ends all, each at its last checkpoint.
    """
    agents, data = begin(configs, dataset, directories)
    config, step, each = agents[0].config, int(agents[0].step), agents[0]
    inputs, many = (data, config.updates_per_call), stack(agents)
    compiled = step < config.steps and not jax.config.jax_disable_jit  # ahead, as in `run.train`
    chunks = train_chunks.lower(inputs, many).compile() if compiled else train_chunks
    began = time.time()
    with runs.stop_signals() as stop, contextlib.ExitStack() as files:
        logs = [files.enter_context(open(run / "metrics.jsonl", "a")) for run in directories]
        while True:
            if runs.evaluation_due(each, step):
                for agent, run in zip(unstack(many, configs), directories):
                    runs.evaluate(agent, run, episodes=config.episodes, workers=workers, stop=stop)
            if step == config.steps:
                return
            many, metrics = chunks(inputs, many)
            metrics = jax.tree.map(np.asarray, metrics)
            of_each = [{name: x[i] for name, x in metrics.items()} for i in range(len(configs))]
            for run, mine in zip(directories, of_each):
                runs.check_finite(run, step, mine)
            step += config.updates_per_call
            if step % config.log_every == 0:
                now = began + (time.time() - began) / len(configs)
                for log, mine in zip(logs, of_each):
                    runs.write_line(log, step, mine, now)
            if runs.checkpoint_due(config, step) or stop:
                for agent, run, log in zip(unstack(many, configs), directories, logs):
                    os.fsync(log.fileno())
                    save(run, agent)
            if stop:
                raise runs.Interrupted(f"stopped by {stop[0]} at update {step}; saved. Go on with --resume.")
