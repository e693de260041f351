"""A run on disk: its settings, metrics, checkpoints and episodes; started, continued, interrupted, evaluated.

    runs/<name>/config.json         every setting, the dataset and its checksum, versions, device
    runs/<name>/metrics.jsonl       one line per `log_every` updates; steps strictly increase, also after a kill and a resume
    runs/<name>/evaluation.jsonl    one line per episode
    runs/<name>/step-*.checkpoint   the whole state of training, the newest two
"""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from beartype.roar import BeartypeException
from tqdm import tqdm

from tql import checkpoint
from tql.agent import AbstractAgent, initialise, method_class, seed_keys
from tql.config import Task, TrainingConfig
from tql.data import Batch, load, statistics
from tql.environment import WorkerError
from tql.evaluate import Episode, Policy, as_policy, record, recorded, run_episodes
from tql.loop import train_chunk
from tql.validate import sha256
from tql.whole_file import whole_file

KEPT_CHECKPOINTS = 2


class RunError(RuntimeError):
    """A run that cannot be started, continued or used; the message says why and what to do."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the state is saved."""


class Diverged(RunError):
    """A loss or a weight became NaN or Inf; the message says which, at which update."""


# ---- the directory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What `config.json` says of a run."""

    config: TrainingConfig
    dataset: Path
    dataset_sha256: str
    target: tuple[tuple[float, float], ...] | None
    """TQL's entropy target in force, in nats, also where the configuration leaves it to the default; no other method has one."""
    policies: tuple[str, ...]
    """What the agent can act with; empty if nothing."""
    versions: dict[str, str]


def write_settings(run: Path, agent: AbstractAgent, dataset: Path) -> None:
    """Everything that determines the run, and what it ran on."""
    content = {
        "method": agent.config.method,
        "config": asdict(agent.config),
        "policies": agent.policies,
        "dataset": {"file": str(dataset.resolve()), "sha256": sha256(dataset)},
        "versions": _versions(),
        "device": jax.devices()[0].device_kind,
    } | agent.about()
    with whole_file(run / "config.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def read_settings(run: Path) -> Settings:
    """Raises `RunError` if `run` is no run directory."""
    try:
        content = json.loads((run / "config.json").read_text())
        return Settings(
            config_from_dict(content["config"], content.get("method", "tql")),
            Path(content["dataset"]["file"]),
            content["dataset"]["sha256"],
            _as_tuples(content.get("target")),
            tuple(content.get("policies", ("policy",))),
            {name: content["versions"][name] for name in _versions()},
        )
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{run}: holds no run of tql (no config.json); give the directory that train wrote with --out.") from None
    except (ValueError, KeyError, TypeError, BeartypeException) as error:
        raise RunError(f"{run / 'config.json'}: is damaged or of another version of tql ({error}).") from error


def config_from_dict(content: dict, method: str = "tql") -> TrainingConfig:
    """The inverse of `dataclasses.asdict` after a trip through JSON, for the settings of that method."""
    return _from_dict(method_class(method).Config, content)


def _from_dict(settings: type, content: dict):
    inner = {field.name: field.type for field in fields(settings) if is_dataclass(field.type)}
    return settings(**{name: _from_dict(inner[name], x) if name in inner else _as_tuples(x) for name, x in content.items()})


def _as_tuples(value):
    """JSON's lists as the tuples that they were."""
    return tuple(_as_tuples(x) for x in value) if isinstance(value, list) else value


def differences(ours, theirs) -> list[str]:
    """Settings (of one dataclass) that differ, as `name: ours instead of theirs`."""
    if type(ours) is not type(theirs):
        return [f"method: {ours.method} instead of {theirs.method}"]
    found = []
    for field in fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if is_dataclass(a):
            found += [f"{field.name}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{field.name}: {a} instead of {b}")
    return found


def checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    return sorted(run.glob("step-*.checkpoint"), reverse=True)


def newest_agent(run: Path, config: TrainingConfig) -> AbstractAgent | None:
    """From the newest checkpoint that is whole; a damaged one is named on stderr and passed over. None if there is none."""
    for path in checkpoints(run):
        try:
            return checkpoint.load(path, config)
        except checkpoint.CheckpointError as error:
            print(f"refused: {error}", file=sys.stderr)
    return None


def save(run: Path, agent: AbstractAgent) -> None:
    """A checkpoint, and the oldest away. Raises `Diverged` rather than save what is not finite."""
    bad = [name for name, array in checkpoint.named_arrays(agent).items() if not np.all(np.isfinite(array))]
    if bad:
        raise Diverged(f"NaN or Inf in {', '.join(bad[:3])} after {int(agent.step)} updates; the last good checkpoint is {_last(run)}.")
    checkpoint.save(run / _checkpoint_name(int(agent.step)), agent)
    for old in checkpoints(run)[KEPT_CHECKPOINTS:]:
        old.unlink()


def _checkpoint_name(step: int) -> str:
    return f"step-{step:09d}.checkpoint"


def _last(run: Path) -> str:
    return next((str(path) for path in checkpoints(run)), "none yet")


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl`; a last line torn by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"], row["time"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}, line {number}: is no line of metrics. Mend or remove that line.") from None
        rows.append(row)
    return rows


def forget_after(run: Path, step: int) -> None:
    """Clears the way for updates that the resumed run makes again: their metrics, refused checkpoints, halves of files."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    with whole_file(run / "metrics.jsonl") as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
    for path in checkpoints(run):
        if path.name > _checkpoint_name(step):
            path.rename(path.with_suffix(".refused"))
    for path in run.glob(".*.tmp"):
        path.unlink()


# ---- training --------------------------------------------------------------------------------------------------------------


def start(config: TrainingConfig, dataset: Path, run: Path, data: Batch | None = None) -> tuple[AbstractAgent, Batch]:
    """A fresh agent and its data; makes the run directory. Raises `RunError` if there is something in it.

    `data` is the training part of `dataset` where the caller has loaded it already.
    """
    check_empty(run)
    if data is None:
        data, _ = load(Task.parse(config.task), dataset)
    agent = _fresh(config, data)
    prepared = agent.prepare(data, config)
    run.mkdir(parents=True, exist_ok=True)
    write_settings(run, agent, dataset)
    return agent, prepared


def check_empty(run: Path) -> None:
    """Raises `RunError` for a directory with something in it."""
    if run.exists() and any(not path.name.startswith(".") for path in run.iterdir()):
        raise RunError(f"{run}: exists and is not empty; continue it with --resume or choose another directory with --out.")


def _fresh(config: TrainingConfig, data: Batch) -> AbstractAgent:
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
    if changed := [f"{name} {was} (now {_versions()[name]})" for name, was in settings.versions.items() if _versions()[name] != was]:
        print(f"{run}: began with {', '.join(changed)}; what follows need not be bitwise what it would have been.", file=sys.stderr)
    if data is None:
        data, _ = load(task, dataset)
    agent = newest_agent(run, settings.config)
    if agent is None and checkpoints(run):
        raise RunError(f"{run}: none of its checkpoints can be used; move them away to train it again from update 0.")
    if agent is None:
        agent = _fresh(settings.config, data)
    forget_after(run, int(agent.step))
    return agent, agent.prepare(data, settings.config)


def start_or_resume(config: TrainingConfig, dataset: Path, run: Path, data: Batch | None = None) -> tuple[AbstractAgent, Batch]:
    """`resume` where there is a run, `start` where there is none. Raises what they raise."""
    if (run / "config.json").exists():
        return resume(run, Task.parse(config.task), config, dataset, data)
    return start(config, dataset, run, data)


def trained_agent(run: Path) -> AbstractAgent:
    """The newest whole checkpoint of a run. Raises `RunError` if there is none."""
    agent = newest_agent(run, read_settings(run).config)
    if agent is None:
        raise RunError(f"{run}: has no usable checkpoint; train it first.")
    return agent


def agent_at(run: Path, step: int) -> AbstractAgent:
    """The checkpoint after `step` updates. Raises `RunError` if it is not there, and `checkpoint.CheckpointError` if it is damaged."""
    path = run / _checkpoint_name(step)
    if not path.exists():
        there = ", ".join(str(int(path.stem.removeprefix("step-"))) for path in checkpoints(run)) or "none"
        raise RunError(f"{run}: has no checkpoint after {step} updates; there are: {there}.")
    return checkpoint.load(path, read_settings(run).config)


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
                bar.set_postfix_str(agent.progress(write_line(log, step, metrics)))
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


def write_line(log: TextIO, step: int, metrics: dict[str, np.ndarray]) -> dict:
    """Appends a line of metrics, each the mean over a chunk of updates; returns it without the time."""
    line = {"step": step} | {name: x.mean(axis=0).tolist() for name, x in metrics.items()}
    log.write(json.dumps(line | {"time": time.time()}) + "\n")
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
            f"training stopped, the last good checkpoint is {_last(run)}. A smaller learning rate is the usual remedy."
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


def episodes_of(rows: list[dict], step: int, policy: str) -> list[Episode]:
    """The recorded episodes of one policy after `step` updates."""
    mine = [row for row in rows if row["step"] == step and row["policy"] == policy]
    return [Episode(row["seed"], row["return"], row["length"], row["success"]) for row in mine]


def _interruptible(policy: Policy, stop: Sequence[str]) -> Policy:
    def checked(*wave):
        if stop:
            raise _interrupted(stop)
        return policy(*wave)

    return checked


def _interrupted(stop: Sequence[str]) -> Interrupted:
    return Interrupted(f"stopped by {stop[0]} during an evaluation; the state was saved before it. Go on with --resume.")
