"""Training a run: started, continued, interrupted, evaluated. What lies on the disk is `run_directory.py`'s."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from tqdm import tqdm

from tql.agent import AbstractAgent, initialise, seed_keys
from tql.config import Task, TrainingConfig
from tql.data import Batch, load, statistics
from tql.environment import WorkerError
from tql.evaluate import Episode, Policy, as_policy, episodes_of, record, recorded, run_episodes
from tql.loop import train_chunk
from tql.run_directory import (
    Diverged,
    RunError,
    check_empty,
    checkpoints,
    differences,
    forget_after,
    last_checkpoint,
    newest_agent,
    read_settings,
    save,
    versions,
    write_settings,
)
from tql.validate import sha256


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the state is saved."""


# ---- training --------------------------------------------------------------------------------------------------------------


def start(config: TrainingConfig, dataset: Path, run: Path, data: Batch | None = None) -> tuple[AbstractAgent, Batch]:
    """A fresh agent and its data; makes the run directory. Raises `RunError` if there is something in it.

    `data` is the training part of `dataset` where the caller has loaded it already.
    """
    check_empty(run)
    if data is None:
        data, _ = load(Task.parse(config.task), dataset)
    agent = fresh(config, data)
    prepared = agent.prepare(data, config)
    run.mkdir(parents=True, exist_ok=True)
    write_settings(run, agent, dataset)
    return agent, prepared


def fresh(config: TrainingConfig, data: Batch) -> AbstractAgent:
    """The agent of these settings after no update."""
    return initialise(data.observations.shape[1], data.actions.shape[1], config, statistics(data))


def resume(
    run: Path, task: Task, asked: TrainingConfig | None, dataset: Path | None = None, data: Batch | None = None
) -> tuple[AbstractAgent, Batch]:
    """The agent of the newest whole checkpoint, or a fresh one if none was written, and the data it was trained on.

    `dataset` is where the dataset is now, if it was moved, and `data` its training part, if the caller has loaded it already.
    Warns if the run began with other versions, which may round otherwise. Raises `RunError` if the dataset is not the same file any
    more, if `task` or `asked` (both from the command line) differ, or if there are checkpoints and none can be used: starting over
    would throw the run away.
    """
    settings = read_settings(run)
    if task.name != settings.config.task:
        raise RunError(f"{run}: was started on {settings.config.task}, not on {task.name}; give its own task to resume.")
    if asked is not None and (found := differences(asked, settings.config)):
        raise RunError(f"{run}: was started with other settings ({'; '.join(found)}); leave them out to resume, or start another run.")
    dataset = dataset or settings.dataset
    if not dataset.exists() or sha256(dataset) != settings.dataset_sha256:
        raise RunError(
            f"{dataset}: is not the file that {run} was trained on (missing, or another SHA-256); put it back, or give it with --data."
        )
    if changed := [f"{name} {was} (now {versions()[name]})" for name, was in settings.versions.items() if versions()[name] != was]:
        print(f"{run}: began with {', '.join(changed)}; what follows need not be bitwise what it would have been.", file=sys.stderr)
    if data is None:
        data, _ = load(task, dataset)
    agent = newest_agent(run, settings.config)
    if agent is None and checkpoints(run):
        raise RunError(f"{run}: none of its checkpoints can be used; move them away to train it again from update 0.")
    if agent is None:
        agent = fresh(settings.config, data)
    forget_after(run, int(agent.step))
    return agent, agent.prepare(data, settings.config)


def start_or_resume(config: TrainingConfig, dataset: Path, run: Path, data: Batch | None = None) -> tuple[AbstractAgent, Batch]:
    """`resume` where there is a run, `start` where there is none. Raises what they raise."""
    if (run / "config.json").exists():
        return resume(run, Task.parse(config.task), config, dataset, data)
    return start(config, dataset, run, data)


def train(
    agent: AbstractAgent,
    data: Batch,
    run: Path,
    *,
    workers: int,
    until: int | None = None,
    look: Callable[[AbstractAgent], None] | None = None,
) -> AbstractAgent:
    """Trains to `config.steps` updates, with metrics, checkpoints and evaluations on the way.

    `until`, a multiple of `checkpoint_every`, ends it earlier, on the same schedule. `look(agent)` is called once a checkpoint is on
    the disk; it must not keep the agent, which the next chunk consumes.

    Raises `Diverged`, and `Interrupted` after SIGTERM or Ctrl-C once the state is saved. A signal is obeyed at the end of a
    compiled chunk of `updates_per_call` updates; before the first chunk there is nothing to save and it ends the process at once.
    """
    config, step = agent.config, int(agent.step)
    inputs = data, config.updates_per_call
    # Compiled ahead, so that signals are caught only once it is done; with jit switched off there is nothing to compile.
    compiled = step < config.steps and not jax.config.jax_disable_jit
    chunk = train_chunk.lower(inputs, agent).compile() if compiled else train_chunk
    with stop_signals() as stop, _bar(agent) as bar, open(run / "metrics.jsonl", "a") as log:
        while True:
            # Before the next chunk rather than after the last one, so that a resume makes up for an evaluation that was cut off.
            if evaluation_due(agent, step):
                bar.clear()
                evaluate(agent, run, episodes=config.episodes, workers=workers, stop=stop)
            if step in (config.steps, until):
                return agent
            agent, metrics = chunk(inputs, agent)
            metrics = jax.tree.map(np.asarray, metrics)
            check_finite(run, step, metrics)
            step += config.updates_per_call
            bar.update(config.updates_per_call)
            if step % config.log_every == 0:
                bar.set_postfix_str(agent.progress(write_line(log, step, metrics, time.time())))
            if checkpoint_due(config, step) or stop:
                os.fsync(log.fileno())
                save(run, agent)
                if look:
                    look(agent)
            if stop:
                raise Interrupted(f"stopped by {stop[0]} at update {step}; saved. Go on with --resume.")


def evaluation_due(agent: AbstractAgent, step: int) -> bool:
    """Whether the agent acts after so many updates."""
    config = agent.config
    due = step == config.steps or (step > 0 and step % config.evaluate_every == 0)
    return bool(due and config.episodes and agent.policies)


def checkpoint_due(config: TrainingConfig, step: int) -> bool:
    """Whether so many updates are saved; before an evaluation too: it is long, and a signal may end it."""
    return step % config.checkpoint_every == 0 or step % config.evaluate_every == 0 or step == config.steps


def write_line(log: TextIO, step: int, metrics: dict[str, np.ndarray], now: float) -> dict:
    """Appends a line of metrics, each the mean over a chunk of updates, and the time in seconds; returns it without the time."""
    line = {"step": step} | {name: x.mean(axis=0).tolist() for name, x in metrics.items()}
    log.write(json.dumps(line | {"time": now}) + "\n")
    log.flush()
    return line


def check_finite(run: Path, first: int, metrics: dict[str, np.ndarray]) -> None:
    """Raises `Diverged` for what is NaN or Inf in the first bad update of a chunk that began at update `first`, losses first."""
    bad = {name: ~np.isfinite(values.reshape(len(values), -1)).all(axis=1) for name, values in metrics.items()}
    rows = np.flatnonzero(np.any(list(bad.values()), axis=0))
    if len(rows):
        row = int(rows[0])
        names = sorted((name for name in bad if bad[name][row]), key=lambda name: ("loss" not in name, name))
        raise Diverged(
            f"{' and '.join(names)} became {' and '.join(str(metrics[name][row]) for name in names)} at update {first + row}; "
            f"training stopped, the last good checkpoint is {last_checkpoint(run)}. A smaller learning rate is the usual remedy."
        )


def _bar(agent: AbstractAgent) -> tqdm:
    done, total = int(agent.step), agent.config.steps
    return tqdm(desc="train", total=total, initial=done, unit="update", dynamic_ncols=True, smoothing=0.05)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """The names of the signals that asked for an end, empty until then."""
    arrived: list[str] = []
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, lambda n, _: arrived.append(signal.Signals(n).name)) for number in numbers]
    try:
        yield arrived
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


# ---- acting ----------------------------------------------------------------------------------------------------------------


def wave_policy(agent: AbstractAgent, name: str) -> Policy:
    """The policy of that name for waves of episodes. Raises `RunError` for an agent without one."""
    _check_can_act(agent)
    if name not in agent.policies:
        raise RunError(f"there is no policy '{name}'; choose one of {', '.join(agent.policies)}.")
    return as_policy(agent.policy(name), seed_keys(agent.config.seed).evaluation)


def _check_can_act(agent: AbstractAgent) -> None:
    if not agent.policies:
        raise RunError("this run trained a critic only (actor.kind = dataset): it has no policy to act with.")


def evaluate(
    agent: AbstractAgent, run: Path, *, episodes: int, workers: int, stop: Sequence[str] = ()
) -> dict[str, list[Episode]]:
    """Episodes of every policy in the real environment, appended to `evaluation.jsonl`; those already there are not run again.

    Raises `RunError` if the agent has no policy, and `Interrupted` between two environment steps once `stop` is not empty.
    """
    _check_can_act(agent)
    config, step, file = agent.config, int(agent.step), run / "evaluation.jsonl"
    results = {}
    for name in agent.policies:
        policy = _interruptible(wave_policy(agent, name), stop)
        if len(episodes_of(recorded(file), step, name)) < episodes:
            task = Task.parse(config.task)
            try:
                found = run_episodes(policy, task, episodes=episodes, seed=config.seed, workers=workers)
            except WorkerError as error:
                if stop:  # the signal went to the whole process group, the simulators too
                    raise _interrupted(stop) from error
                raise
            record(file, step, name, found)
        results[name] = episodes_of(recorded(file), step, name)[:episodes]
    return results


def _interruptible(policy: Policy, stop: Sequence[str]) -> Policy:
    def checked(*wave):
        if stop:
            raise _interrupted(stop)
        return policy(*wave)

    return checked


def _interrupted(stop: Sequence[str]) -> Interrupted:
    return Interrupted(f"stopped by {stop[0]} during an evaluation; the state was saved before it. Go on with --resume.")
