"""Training a run: started, continued, interrupted, evaluated. What lies on the disk is the business
of `run_directory.py`."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from tql.agent import AbstractAgent, seed_keys
from tql.batch import Rows, Transition
from tql.config import AbstractConfig
from tql.ogbench.dataset import load_dataset
from tql.ogbench.evaluate import (
    Episode,
    as_policy,
    episodes_of,
    record_episodes,
    recorded_episodes,
    run_episodes,
)
from tql.ogbench.tasks import Task
from tql.ogbench.validate import sha256
from tql.ogbench.workers import WorkerError
from tql.training.chunk import trace_update, train_chunk
from tql.training.devices import mesh_of, on_one_device
from tql.training.machines import anyones
from tql.training.methods import differences, new_agent, with_absolute_paths
from tql.training.online_config import span
from tql.training.run_directory import (
    REPEATS,
    Diverged,
    RunError,
    Settings,
    check_can_write,
    check_empty,
    check_files,
    checkpoints,
    forget_after,
    last_checkpoint,
    newest_state,
    read_settings,
    run_lock,
    save,
    saying_what_is_safe,
    step_of,
    versions,
    write_settings,
    wrote,
)
from tql.training.snapshot import AnyState

EpisodesOf = dict[str, list[Episode]]
"""Episodes by the name of the policy."""


class Interrupted(Exception):
    """SIGTERM, SIGHUP or Ctrl-C arrived; the state is saved."""


# ---- starting and continuing ---------------------------------------------------------------------


def start_run(
    config: AbstractConfig, dataset: Path, run: Path, data: Transition | None = None
) -> tuple[AbstractAgent, Rows]:
    """A fresh agent and its data; makes the run directory.

    `data` is the training part of `dataset` where the caller has loaded it already. Raises
    `RunError` if there is something in the directory, and `ValueError` for settings, data or
    components that cannot be trained; then there is no directory yet."""
    config = with_absolute_paths(config)
    check_empty(run)
    if data is None:
        data, _ = load_dataset(Task.parse(config.task), dataset)
    agent, data = _fresh(config, data)
    metrics = trace_update(agent, data)
    with saying_what_is_safe(run):
        run.mkdir(parents=True, exist_ok=True)
        with run_lock(run):
            check_empty(run)
            write_settings(run, agent, dataset, metrics)
    return agent, data


def _fresh(config: AbstractConfig, data: Transition) -> tuple[AbstractAgent, Rows]:
    """The agent of these settings after no update, and what it makes of the data."""
    return new_agent(data.s.shape[1], data.a.shape[1], config).prepare(data)


def resume_run(
    run: Path,
    asked: AbstractConfig | None = None,
    dataset: Path | None = None,
    data: Transition | None = None,
) -> tuple[AbstractAgent, Rows]:
    """The agent of the newest usable checkpoint, or a fresh one if none was written, and its data.

    `asked` are the settings that the caller believes the run to have, `dataset` is where the
    dataset is now, if it was moved, and `data` its training part, if the caller has loaded it
    already. Warns if the run began with other versions, which may round otherwise. Raises
    `RunError` if the settings differ from those asked for or from the checkpoint's, if the dataset
    or a component's file is not the same file any more, and if there are checkpoints and none can
    be used."""
    settings = read_settings(run)
    config = settings.config
    if asked is not None and (found := differences(with_absolute_paths(asked), config)):
        raise RunError(
            f"{run}: was started with other settings ({'; '.join(found)}); leave them out to "
            "resume, or start another run."
        )
    if settings.online:
        raise RunError(
            f"{run}: is an online phase; go on with: tql finetune RUN --resume --out {run}"
        )
    check_files(run, settings.files, config)
    dataset = dataset_of(run, settings, dataset)
    warn_of_versions(run, settings.versions)
    if data is None:
        data, _ = load_dataset(Task.parse(config.task), dataset)
    with run_lock(run):
        agent = newest_state(run, config)
        if agent is None:
            agent, data = _fresh(config, data)
        else:
            _, data = agent.prepare(data)
        forget_after(run, config, int(agent.step))
    return agent, data


def dataset_of(run: Path, settings: Settings, dataset: Path | None) -> Path:
    """The file of the run's dataset: `dataset`, if it was moved there. Raises `RunError` if it is
    not the same file any more."""
    dataset = dataset or Path(settings.dataset.file)
    if not dataset.is_file() or sha256(dataset) != settings.dataset.sha256:
        raise RunError(
            f"{dataset}: is not the file that {run} was trained on (missing, or another SHA-256); "
            "put it back, or give it with --data."
        )
    return dataset


def warn_of_versions(run: Path, began_with: dict[str, str]) -> None:
    """Says on stderr which versions differ from those that the run began with."""
    now = versions()
    changed = [f"{x} {began_with[x]} (now {now[x]})" for x in now if began_with[x] != now[x]]
    if changed:
        print(
            f"{run}: began with {', '.join(changed)}; what follows need not be bitwise what it "
            "would have been.",
            file=sys.stderr,
        )


def start_or_resume(
    config: AbstractConfig, dataset: Path, run: Path, data: Transition | None = None
) -> tuple[AbstractAgent, Rows]:
    """`resume_run` where there is a run, `start_run` where there is none. Raises what they
    raise."""
    if (run / "config.json").exists():
        return resume_run(run, config, dataset, data)
    return start_run(config, dataset, run, data)


def follow(run: Path, dataset: Path | None = None) -> tuple[AbstractAgent, Rows]:
    """The agent and the data of a run that the first of several processes has started or resumed,
    for another of them, which only reads. This agent never acts."""
    settings = read_settings(run)
    config = settings.config
    data, _ = load_dataset(Task.parse(config.task), dataset or Path(settings.dataset.file))
    agent = newest_state(run, config)
    if agent is None:
        agent, data = _fresh(config, data)
    else:
        _, data = agent.prepare(data)
    return replace(agent, config=replace(config, episodes=0)), data


# ---- training ------------------------------------------------------------------------------------


def train(
    agent: AbstractAgent,
    data: Rows,
    run: Path,
    *,
    workers: int,
    until: int | None = None,
    look: Callable[[AbstractAgent], None] | None = None,
) -> AbstractAgent:
    """Trains to `config.steps` updates, with metrics, checkpoints and evaluations on the way.

    `until`, a multiple of `checkpoint_every`, ends it earlier, on the same schedule. `look(agent)`
    is called once a checkpoint is on the disk; it must not keep the agent, which the next chunk
    consumes.

    Raises `Diverged`, `RunError` where the disk refuses or another process trains this run, and
    `Interrupted` after SIGTERM, SIGHUP or Ctrl-C once the state is saved. A signal is obeyed at the
    end of a compiled chunk of `updates_per_call` updates; before the first chunk there is nothing
    to save and it ends the process at once."""
    config, step = agent.config, int(agent.step)
    end = min(config.steps, until or config.steps)
    inputs = data, config.updates_per_call
    with run_lock(run):
        check_start(agent, run)
        # Compiled ahead, so that signals are caught only once it is done. With jit switched off
        # there is nothing to compile.
        ahead = step < end and not jax.config.jax_disable_jit
        with mesh_of(agent):
            chunk = train_chunk.lower(inputs, agent).compile() if ahead else train_chunk
        with stop_signals() as stop, _bar(agent) as bar, metrics_log(run) as log:
            while True:
                # Before the next chunk rather than after the last one, so that a resume makes up
                # for an evaluation that was cut off.
                if evaluation_due(agent, step):
                    bar.clear()
                    file, episodes = run / "evaluation.jsonl", config.episodes
                    acts = on_one_device(agent)
                    evaluate_to(acts, file, episodes=episodes, workers=workers, stop=stop)
                if step >= end:
                    return agent
                agent, metrics = chunk(inputs, agent)
                metrics = jax.tree.map(np.asarray, metrics)
                check_finite(run, step, metrics)
                step += config.updates_per_call
                check_count(agent, step)
                if step % config.log_every == 0:
                    line = write_line(log, run, step, metrics, time.time())
                    bar.set_postfix_str(progress(agent, line), refresh=False)
                asked = anyones(stop)
                if checkpoint_due(config, step) or asked:
                    save(run, agent, log)
                    if look:
                        look(agent)
                if asked:
                    saved = f"stopped by {asked} at update {step}; saved."
                    raise Interrupted(f"{saved} Go on with --resume.")
                bar.update(config.updates_per_call)


def check_start(agent: AnyState, run: Path) -> None:
    """Raises `RunError` for an agent beyond the end, and where the run on the disk is further."""
    step, config = int(agent.step), agent.config
    _, last, _ = span(config)
    if step > last:
        raise RunError(
            f"{run}: the agent has made {step} updates, which is beyond the {last} steps "
            "of its settings; there is nothing left to train."
        )
    further = max((step_of(x) for x in checkpoints(run) if wrote(x, config)), default=0)
    if further > step:
        raise RunError(
            f"{run}: its newest checkpoint has {further} updates and this agent {step}: another "
            "process has trained the run since; resume it."
        )


def check_count(agent: AbstractAgent, step: int) -> None:
    """Raises `RunError` if the agent has counted its updates otherwise than the loop."""
    if int(agent.step) != step:
        name = type(agent).__name__
        raise RunError(
            f"after {step} updates {name}.step is {int(agent.step)}: {name}.update must return an "
            "agent with step + 1, or every update draws the same batch."
        )


def evaluation_due(agent: AbstractAgent, step: int) -> bool:
    """Whether the agent acts after so many updates."""
    config = agent.config
    due = step == config.steps or (step > 0 and step % config.evaluate_every == 0)
    return bool(due and config.episodes and agent.policies)


def checkpoint_due(config: AbstractConfig, step: int) -> bool:
    """Whether there is a checkpoint after so many updates; before an evaluation too, which is long
    and may be ended by a signal."""
    planned = (config.checkpoint_every, config.evaluate_every)
    return step == config.steps or any(step % every == 0 for every in planned)


@contextmanager
def metrics_log(run: Path) -> Iterator[FileIO]:
    """`metrics.jsonl`, without a buffer, so that a full disk is known at the line that it
    refuses."""
    with saying_what_is_safe(run):
        log = open(run / "metrics.jsonl", "ab", buffering=0)
    with log:
        yield log


def write_line(
    log: FileIO, run: Path, step: int, metrics: dict[str, np.ndarray], now: float
) -> dict:
    """Appends a line of metrics, each the mean over a chunk of updates, and the time in seconds.
    Returns it without the time. Raises `RunError` where the disk refuses."""
    line = {"step": step} | {name: x.mean(axis=0).tolist() for name, x in metrics.items()}
    content = json.dumps(line | {"time": now}).encode() + b"\n"
    with saying_what_is_safe(run):
        try:
            whole = log.write(content) == len(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, log.name) from error
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), log.name)
    return line


def check_finite(run: Path, first: int, metrics: dict[str, np.ndarray]) -> None:
    """Raises `Diverged` for what is NaN or Inf in the first bad update of a chunk that began at
    update `first`, losses first."""
    finite = {
        name: np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        for name, values in metrics.items()
    }
    rows = np.flatnonzero(~np.all(list(finite.values()), axis=0))
    if not len(rows):
        return
    row = int(rows[0])
    bad = [name for name in finite if not finite[name][row]]
    names = sorted(bad, key=lambda name: ("loss" not in name, name))
    became = " and ".join(" ".join(str(metrics[name][row]).split()) for name in names)
    words = f"{' and '.join(names)} became {became} at update {first + row}; training stopped, "
    words += f"the last good checkpoint is {last_checkpoint(run)}. "
    if first + row == 0:
        words += (
            "At the first update the cause is in the arithmetic or in the data, such as a division "
            "by 0, and hardly the learning rate. To find the line, run the same command in a new "
            "directory with JAX_DEBUG_NANS=1 JAX_DISABLE_JIT=1 JAXTYPING_DISABLE=1 before it."
        )
    else:
        words += f"{REPEATS} A smaller learning rate is the usual remedy."
    raise Diverged(words)


def progress(agent: AbstractAgent, line: dict) -> str:
    """What the progress bar says of a line of metrics: the losses, and of a critic that attends
    every entropy beside its target."""
    losses = {name.removesuffix("_loss"): x for name, x in line.items() if name.endswith("_loss")}
    words = ", ".join(f"{name} {x:.3g}" for name, x in losses.items())
    target = agent.about().get("target")
    if target is None:
        return words
    pairs = zip(np.ravel(line["entropy"]), np.ravel(target))
    return f"TD loss {losses['td']:.3g}, entropy/target " + " ".join(
        f"{h:.2f}/{t:.2f}" for h, t in pairs
    )


def _bar(agent: AbstractAgent) -> tqdm:
    options = dict(total=agent.config.steps, initial=int(agent.step), unit="update")
    return tqdm(desc="train", **options, dynamic_ncols=True, smoothing=0.05)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """The names of the signals that asked for an end, empty until then. A signal that is ignored,
    as SIGHUP is under `nohup`, stays ignored."""
    arrived: list[str] = []
    before = {}
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            add = lambda n, _: arrived.append(signal.Signals(n).name)
            before[number] = signal.signal(number, add)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- acting --------------------------------------------------------------------------------------


def wave_policy(agent: AbstractAgent, name: str):
    """The policy of that name for waves of episodes. Raises `RunError` for an agent without it."""
    _check_can_act(agent)
    if name not in agent.policies:
        known = ", ".join(agent.policies)
        raise RunError(f"there is no policy '{name}'; choose one of {known}.")
    return as_policy(agent.policy(name), seed_keys(agent.config.seed).evaluation)


def _check_can_act(agent: AbstractAgent) -> None:
    if not agent.policies:
        raise RunError(
            "this run trained a critic only (actor.kind = dataset): it has no policy to act with."
        )


def evaluate_run(
    agent: AbstractAgent,
    run: Path,
    *,
    episodes: int,
    workers: int,
    out: Path | None = None,
    tell: Callable[[str, list[Episode]], None] = lambda policy, episodes: None,
) -> EpisodesOf:
    """Episodes of every policy in the real environment, appended to `RUN/evaluation.jsonl` or to
    the file `out`; those already there are not run again.

    `tell(policy, episodes)` is called once a policy has acted, before its episodes are written.
    Raises `RunError` if the agent has no policy, and if the file cannot be written, which is found
    out first."""
    options = dict(episodes=episodes, workers=workers, tell=tell)
    if out is not None:
        return evaluate_to(agent, out, **options)
    with run_lock(run):
        return evaluate_to(agent, run / "evaluation.jsonl", **options)


def evaluate_to(
    agent: AbstractAgent,
    file: Path,
    *,
    episodes: int,
    workers: int,
    stop: Sequence[str] = (),
    tell: Callable[[str, list[Episode]], None] = lambda policy, episodes: None,
) -> EpisodesOf:
    """`evaluate_run`, also within a training, whose `stop` ends it between two environment steps
    (`Interrupted`)."""
    _check_can_act(agent)
    check_can_write(file)
    config, step = agent.config, int(agent.step)
    results = {}
    for name in agent.policies:
        found = episodes_of(recorded_episodes(file), step, name)
        new = len(found) < episodes
        if new:
            policy, task = _interruptible(wave_policy(agent, name), stop), Task.parse(config.task)
            try:
                found = run_episodes(
                    policy, task, episodes=episodes, seed=config.seed, workers=workers
                )
            except WorkerError as error:
                if stop:  # the signal went to the whole process group, the simulators too
                    raise _interrupted(stop) from error
                raise
        results[name] = found[:episodes]
        tell(name, results[name])
        if new:
            record(file, step, name, found)
    return results


def record(file: Path, step: int, name: str, episodes: list[Episode], first: int = 0) -> None:
    """Appends the episodes, from number `first` on, to the file. Raises `RunError` where the disk
    refuses."""
    try:
        record_episodes(file, step, name, episodes, first)
    except OSError as error:
        raise RunError(
            f"{file}: cannot be written in the folder {file.parent} ({error.strerror}). The "
            "checkpoints are as they were; make room there or allow writing, and give the same "
            "command again (to train on: with --resume)."
        ) from error


def _interruptible(policy: Callable, stop: Sequence[str]) -> Callable:
    def act(*wave):
        if stop:
            raise _interrupted(stop)
        return policy(*wave)

    return act


def _interrupted(stop: Sequence[str]) -> Interrupted:
    return Interrupted(
        f"stopped by {stop[0]} during an evaluation; the state was saved before it. Go on with "
        "--resume."
    )
