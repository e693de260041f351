"""Runs that belong to one question: each trained to its end, and TQL's critic looked at on the way.

A run of a study is a run like any other (`tql/training/run_directory.py`). If its critic attends,
it has two more files:

    analysis.jsonl   one line per checkpoint: the numbers of `portrait.portrait_numbers`
    portrait.npz     the critic at its newest checkpoint: landscapes, slices, attention maps

If it has a policy that is evaluated, it has a third once it has made all its updates:

    q_error.json     the error of Q against the returns of the policy's own episodes
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.queues import Queue
from pathlib import Path

import jax
from tqdm import tqdm

from tql.analysis.portrait import portrait_numbers, probe_pairs, save_portrait, take_portrait
from tql.analysis.q_error import own_returns, q_error
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.loop import TQL
from tql.ogbench.dataset import load_dataset
from tql.ogbench.evaluate import episodes_of, recorded_episodes
from tql.ogbench.tasks import Task
from tql.ogbench.workers import bare_children
from tql.training.methods import differences, method_class, with_absolute_paths
from tql.training.run import checkpoint_due, start_or_resume, train
from tql.training.run_directory import (
    RunError,
    checkpoint_steps,
    read_settings,
)
from tql.training.whole_file import whole_file, whole_lines

Change = Callable[[Transition], Transition]


def unchanged(data: Transition) -> Transition:
    """The data as they are."""
    return data


def complete(
    config: AbstractConfig,
    dataset: Path,
    run: Path,
    *,
    workers: int = 2,
    until: int | None = None,
    change: Change = unchanged,
) -> Path:
    """Trains a run to its end, from the start or from where it stopped, and looks at TQL's critic
    at every checkpoint; at the end it compares Q with the returns of the policy's own episodes. A
    run that is done is left as it is. Returns `run`.

    `until` ends it earlier, after that many updates. `change` alters the training data before
    they are used, their rewards for example. No file records it, so give such a run a directory
    of its own. Raises `RunError` if the directory holds a run of other settings, and whatever
    `train` raises."""
    if is_complete(run, config, until):
        return run
    data, validation = _loaded(config.task, dataset)
    agent, data = start_or_resume(config, dataset, run, change(data))
    seen = (lambda agent: look(agent, validation, run)) if attends(config) else None
    if seen and int(agent.step) > 0:
        seen(agent)  # makes up for a stop between a checkpoint and its portrait
    agent = train(agent, data, run, workers=workers, until=until, look=seen)
    if q_error_due(config, agent.policies, int(agent.step)):
        measure_q_error(agent, run, workers)
    return run


@lru_cache(maxsize=2)
def _loaded(task: str, dataset: Path) -> tuple[Transition, Transition]:
    return load_dataset(Task.parse(task), dataset)


def attends(config: AbstractConfig) -> bool:
    """Whether these are settings of TQL, whose critic has attention to look at."""
    return method_class(config.method) is TQL


def look(agent: TQL, validation: Transition, run: Path) -> None:
    """Takes the critic's portrait and adds its numbers to `analysis.jsonl`, once for every planned
    checkpoint.

    A checkpoint that only a signal asked for is passed over, so that a run that was stopped has the
    lines of one that was not.
    """
    step = int(agent.step)
    if not checkpoint_due(agent.config, step):
        return
    portrait = take_portrait(agent.critic.model, *probe_pairs(validation))
    save_portrait(run / "portrait.npz", portrait)
    before = [line for line in read_lines(run / "analysis.jsonl") if line["step"] < step]
    lines = [*before, {"step": step} | portrait_numbers(portrait)]
    with whole_file(run / "analysis.jsonl") as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in lines)


def q_error_due(config: AbstractConfig, policies: tuple[str, ...], step: int) -> bool:
    """Whether Q is compared with the policy's returns after so many updates: only after the last
    one, in a run of TQL that is evaluated."""
    return step == config.steps and attends(config) and bool(config.episodes and policies)


def measure_q_error(agent: TQL, run: Path, workers: int) -> None:
    """Writes `q_error.json`."""
    config = agent.config
    steps = own_returns(agent, Task.parse(config.task), seed=config.seed, workers=workers)
    found = q_error(agent.critic.model, *steps)
    with whole_file(run / "q_error.json") as file:
        file.write(json.dumps(found).encode() + b"\n")


def read_lines(path: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl` or `analysis.jsonl`; none if there is no file."""
    return whole_lines(path, {"step": int})


def is_complete(run: Path, config: AbstractConfig, until: int | None = None) -> bool:
    """Whether a run has made `until` updates (all, unless given), and neither the last portrait nor
    an episode nor the error of Q is missing. Raises `RunError` if the directory holds a run of
    other settings."""
    if not (run / "config.json").exists():
        return False
    settings = read_settings(run)
    if found := differences(with_absolute_paths(config), settings.config):
        raise RunError(
            f"{run}: holds a run of other settings ({'; '.join(found)}); move it away, or choose "
            "another directory."
        )
    end = until or config.steps
    looked_at = [line["step"] for line in read_lines(run / "analysis.jsonl")]
    steps = looked_at if attends(config) else checkpoint_steps(run)
    due = end == config.steps or end % config.evaluate_every == 0
    rows = recorded_episodes(run / "evaluation.jsonl")
    acted = [len(episodes_of(rows, end, policy)) for policy in settings.policies]
    # A signal can end a run between its last checkpoint and its last episode.
    evaluated = not due or all(n >= config.episodes for n in acted)
    asked = q_error_due(config, settings.policies, end)
    compared = not asked or (run / "q_error.json").exists()
    return evaluated and compared and any(step >= end for step in steps)


# ---- several at a time ---------------------------------------------------------------------------


def complete_all(
    members: dict[str, AbstractConfig],
    dataset: Path,
    folder: Path,
    *,
    change: Change = unchanged,
    processes: int = 2,
) -> dict[str, Path]:
    """`complete` for every member, several at a time, each on one core of its own; returns the
    directories `folder / NAME`.

    A `change` has to be a function of a module, which other processes can import.
    """
    runs = {name: folder / name for name in members}
    missing = [name for name, config in members.items() if not is_complete(runs[name], config)]
    if not missing:
        return runs
    with one_core_each(min(processes, len(missing)), folder.parent / "compiled") as pool:
        begin = lambda name: submit(pool, members[name], dataset, runs[name], change=change)
        jobs = [begin(name) for name in missing]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc=folder.name, unit="run"):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return runs


@contextmanager
def one_core_each(processes: int, compiled: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes for `submit`, each bound to one core where the system can.

    Small critics use one core well and two badly, and on one core a run's numbers do not depend
    on how many there are. On a GPU, take one process. Runs that differ by their seed share the
    compiled programs in the folder `compiled`."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for number in range(processes):
        cores.put(number)
    with ProcessPoolExecutor(processes, context, _on_one_core, (cores, compiled)) as pool:
        yield pool


def submit(pool: ProcessPoolExecutor, *arguments, work: Callable = complete, **options):
    """`work(*arguments, workers=1, **options)` in one of the pool's processes; its future."""
    with bare_children({"TQDM_DISABLE": "1", "MUJOCO_GL": "disable"}):
        return pool.submit(work, *arguments, workers=1, **options)


def _on_one_core(cores: Queue, compiled: Path) -> None:
    """Binds a process to one core before JAX counts them."""
    number = cores.get()
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    # Between two runs there is nothing to save; while one trains, `train` obeys the signal.
    signal.signal(signal.SIGTERM, lambda *_: None)
    jax.config.update("jax_compilation_cache_dir", str(compiled))
