"""A run's directory: settings, metrics and checkpoints, written so that a kill at any moment loses
nothing that was said to be saved.

    config.json                  every setting, the dataset and its checksum, versions, device
    metrics.jsonl                one line per `log_every` updates; the steps strictly increase
    evaluation.jsonl             one line per episode (`tql/ogbench/evaluate.py`)
    episodes.jsonl               in an online phase, one line per episode that the agent learnt from
    step-000000200.checkpoint    the whole state of training after 200 updates, the newest two
    .lock                        held while a process writes here

Only these names, with nine digits in a checkpoint's, belong to the run. No other file is touched.
Steps count gradient updates, in an online phase from the first update of the training before it.
"""

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from tql.agent import AbstractAgent
from tql.config import AbstractConfig
from tql.ogbench.evaluate import recorded_episodes
from tql.ogbench.tasks import Task
from tql.ogbench.validate import sha256
from tql.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    named_arrays,
    save_checkpoint,
    settings_in,
)
from tql.training.methods import (
    as_json,
    checksums,
    component_files,
    config_from_dict,
    method_class,
    method_in,
)
from tql.training.online_config import AnyConfig, Finetuning, OnlineConfig, span
from tql.training.snapshot import AnyState, Snapshot
from tql.training.whole_file import MISSING, read_json, typed, whole_file, whole_lines

KEPT_CHECKPOINTS = 2

CHECKPOINT = re.compile(r"step-(\d{9})\.checkpoint")

HALF_FILE = re.compile(
    r"\.(config\.json|(metrics|evaluation|episodes)\.jsonl|step-\d{9}\.checkpoint)\.\d+\.tmp"
)
"""What a kill leaves of a file that `whole_file` was writing."""


class RunError(RuntimeError):
    """A run that cannot be started, continued or used; the message says why and what to do."""


class Diverged(RunError):
    """A loss or a weight became NaN or Inf; the message says which, and at which update."""


# ---- the directory as a whole --------------------------------------------------------------------


def check_empty(run: Path) -> None:
    """Raises `RunError` for a directory with something in it."""
    if run.exists() and any(not path.name.startswith(".") for path in run.iterdir()):
        raise RunError(
            f"{run}: exists and is not empty; continue it with --resume or choose another "
            "directory with --out."
        )


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """While the block runs, no other process writes in this directory. Raises `RunError` if one
    does already."""
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"{run}: another process is writing in this run; wait until it ends, or stop it, or "
            "choose another directory with --out."
        ) from None
    except OSError as error:
        raise RunError(
            f"{run}: cannot be written ({error.strerror}). The run is as it was; allow writing "
            "there, or choose another place with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_can_write(file: Path) -> None:
    """Finds out, before any work, whether `file` can be written. Raises `RunError` if not."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            open(file, "ab").close()
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".probe-") as probe:
            probe.write(bytes(100_000))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise RunError(
            f"{file}: cannot be written in the folder {file.parent} ({error.strerror}); nothing "
            "was computed yet, and the run is as it was. Make room there or allow writing, or "
            "choose another place with --out."
        ) from error


@contextmanager
def saying_what_is_safe(run: Path) -> Iterator[None]:
    """Turns what the disk refuses while a run writes into a `RunError` that says how to go on."""
    try:
        yield
    except OSError as error:
        file = error.filename or run
        if (run / "config.json").exists():
            on = f"make room there or allow writing, and go on with --resume --out {run}."
        else:
            on = "make room there or allow writing, or choose another directory with --out."
        raise RunError(
            f"{file}: cannot be written in the folder {run} ({error.strerror}). Safe is the last "
            f"checkpoint: {last_checkpoint(run)}; {on}"
        ) from error


# ---- config.json ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetFile:
    """Where the dataset was, and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Settings:
    """What `config.json` says of a run."""

    config: AbstractConfig
    dataset: DatasetFile
    policies: tuple[str, ...]
    """What the agent can act with; empty if nothing."""
    metrics: dict[str, tuple[int, ...]]
    """The shape of every metric."""
    files: dict[str, str]
    """The reader's own files that the settings name, and their SHA-256."""
    versions: dict[str, str]
    device: str
    target: tuple[tuple[float, float], ...] | None = None
    """TQL's entropy target in force, in nats, also where the settings leave it to the default; no
    other method has one."""
    online: OnlineConfig | None = None
    """How the agent goes on in the environment, if this is an online phase."""

    @property
    def whole(self) -> AnyConfig:
        """The settings that the run's checkpoints have."""
        return Finetuning(self.config, self.online) if self.online else self.config


def write_settings(
    run: Path,
    agent: AbstractAgent,
    dataset: Path,
    metrics: dict[str, tuple[int, ...]],
    more: dict[str, Any] = {},
) -> None:
    """Writes `config.json`: everything that determines the run, and what it ran on."""
    content = {
        "config": as_json(agent.config),
        "policies": agent.policies,
        "dataset": {"file": str(dataset.resolve()), "sha256": sha256(dataset)},
        "metrics": metrics,
        "files": checksums(agent.config),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }
    content |= agent.about() | more
    with whole_file(run / "config.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, as installed now."""
    packages = ("jax", "jaxlib", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def read_settings(run: Path) -> Settings:
    """What `config.json` says. Raises `RunError` if `run` is no run directory, if a field is
    missing or wrong, or if the method is in a file that is missing or has changed since."""
    file = run / "config.json"
    with _named(file):
        content = typed(read_json(file), dict, "the file")
        files = typed(content.get("files", MISSING), dict[str, str], "files")
        method = method_in(content.get("config", MISSING))
    check_files(run, files, method)
    # Outside of `_named`, because what a reader's own file raises is not about `config.json`.
    method_class(method)
    with _named(file):
        config = config_from_dict(content["config"])
        Task.parse(config.task)
        kinds = Settings.__annotations__ | {"config": dict}
        rest = {name: content.get(name, MISSING) for name in kinds}
        rest |= {name: content.get(name) for name in ("target", "online")}
        rest = {name: typed(value, kinds[name], name) for name, value in rest.items()}
        for name in versions():
            typed(rest["versions"].get(name, MISSING), str, f"versions.{name}")
        return Settings(**rest | {"config": config})


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Gives errors in the content of `config.json` the file's name."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{file.parent}: holds no run of tql (no config.json); give the directory that train "
            "wrote with --out."
        ) from None
    except ValueError as error:
        words = str(error).removeprefix(f"{file}: ").rstrip(".")
        raise RunError(f"{file}: is damaged or of another version of tql: {words}.") from error


def check_files(run: Path, recorded: dict[str, str], settings: Any) -> None:
    """Raises `RunError` if one of the reader's own files that the settings name is missing, or is
    not what it was when the run began."""
    for path in component_files(settings):
        if not path.is_file():
            raise RunError(f"{path}: is missing, and {run} was trained with it; put it back.")
        if sha256(path) != recorded.get(str(path)):
            raise RunError(
                f"{path}: has changed since {run} was trained with it (another SHA-256); put it "
                "back as it was, or train again."
            )


# ---- checkpoints ---------------------------------------------------------------------------------


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after so many updates."""
    return f"step-{step:09d}.checkpoint"


def step_of(path: Path) -> int:
    """The number of updates in a checkpoint's name."""
    return int(CHECKPOINT.fullmatch(path.name)[1])


def checkpoints(run: Path) -> list[Path]:
    """The files whose name is `step-`, nine digits and `.checkpoint`, newest first."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if CHECKPOINT.fullmatch(path.name) and path.is_file()]
    return sorted(found, reverse=True)


def checkpoint_steps(run: Path) -> list[int]:
    """After how many updates the checkpoints are, newest first."""
    return [step_of(path) for path in checkpoints(run)]


def last_checkpoint(run: Path) -> str:
    """The newest checkpoint, for messages."""
    return next((str(path) for path in checkpoints(run)), "none yet")


def wrote(path: Path, config: AnyConfig) -> bool:
    """Whether a run of these settings wrote this file: its name and its first lines say so."""
    return settings_in(path) == (step_of(path), as_json(config))


def save(run: Path, agent: AnyState, log: FileIO | None = None) -> None:
    """Writes a checkpoint, once the metrics file `log` is on the disk, and deletes the older ones
    of this run but the newest. Raises `Diverged` rather than save what is not finite, and
    `RunError` where the disk refuses."""
    arrays, step = named_arrays(agent), int(agent.step)
    if bad := [name for name, array in arrays.items() if not np.all(np.isfinite(array))]:
        raise Diverged(
            f"NaN or Inf in {', '.join(bad[:3])} after {step} updates; the last good checkpoint is "
            f"{last_checkpoint(run)}. {REPEATS}"
        )
    with saying_what_is_safe(run):
        if log is not None:
            os.fsync(log.fileno())
        save_checkpoint(run / checkpoint_name(step), agent)
        ours = [x for x in checkpoints(run) if step_of(x) <= step and wrote(x, agent.config)]
        for old in ours[KEPT_CHECKPOINTS:]:
            old.unlink()


REPEATS = (
    "Resuming would repeat it, because a run is deterministic: change a setting and start another "
    "run."
)


def newest_state(run: Path, config: AnyConfig) -> AnyState | None:
    """What is in the newest checkpoint that can be used; one that cannot is named on stderr and
    passed over. None if there is no checkpoint. Raises `RunError`, with the reason, if none can be
    used."""
    reasons = []
    for path in checkpoints(run):
        try:
            state = _state_in(path, config)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            print(f"refused: {reason}", file=sys.stderr)
        return state
    if reasons:
        raise RunError(f"{run}: has no usable checkpoint. {reasons[0]}")
    return None


def _state_in(path: Path, config: AnyConfig) -> AnyState:
    state, (first, last, unit) = load_checkpoint(path, config), span(config)
    step = int(state.step)
    if step != step_of(path):
        raise CheckpointError(
            f"{path}: holds the state after {step} updates, not that of its name."
        )
    if not first <= step <= last or (step - first) % unit:
        raise CheckpointError(
            f"{path}: holds the state after {step} updates, and a run of {last} steps in "
            f"chunks of {unit} never has it."
        )
    return state


def trained_agent(run: Path) -> AbstractAgent:
    """The agent of a run's newest usable checkpoint. Raises `RunError` if there is none."""
    settings = read_settings(run)
    check_files(run, settings.files, settings.config)
    state = newest_state(run, settings.whole)
    if state is None:
        raise RunError(f"{run}: has no checkpoint yet; train it first.")
    return _agent_of(state)


def _agent_of(state: AnyState) -> AbstractAgent:
    return state.agent if isinstance(state, Snapshot) else state


def agent_at(run: Path, step: int) -> AbstractAgent:
    """The agent of the checkpoint after `step` updates. Raises `RunError` if it is not there, and
    `CheckpointError` if it cannot be used."""
    settings = read_settings(run)
    check_files(run, settings.files, settings.config)
    path = run / checkpoint_name(step)
    if not path.exists():
        there = ", ".join(map(str, checkpoint_steps(run))) or "none"
        raise RunError(f"{run}: has no checkpoint after {step} updates; there are: {there}.")
    return _agent_of(_state_in(path, settings.whole))


# ---- metrics -------------------------------------------------------------------------------------


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl`; a last line torn by a kill is left out. Raises
    `RunError`, with line and field, for a line that this run cannot have written."""
    settings, file = read_settings(run), run / "metrics.jsonl"
    kinds = {name: _array_type(shape) for name, shape in settings.metrics.items()}
    try:
        lines = whole_lines(file, {"step": int, "time": float} | kinds)
    except ValueError as error:
        raise RunError(str(error)) from None
    before, last, _ = span(settings.whole)
    for number, line in enumerate(lines, start=1):
        if not before < line["step"] <= last:
            raise RunError(
                f"{file}, line {number}: step is {line['step']}; it must lie above the step of the "
                f"line before, {before}, and be at most {last}. Mend or remove "
                "that line."
            )
        before = line["step"]
    return lines


def _array_type(shape: tuple[int, ...]) -> Any:
    """The type of nested lists of numbers of this shape."""
    kind: Any = float
    for size in reversed(shape):
        kind = tuple[(kind,) * size]
    return kind


def forget_after(run: Path, config: AnyConfig, step: int) -> None:
    """Clears the way for updates that the resumed run makes again: their metrics, their episodes
    and refused checkpoints of this run, and halves of files.

    Raises `RunError` for a file that is not this run's under a name that it is going to write.
    """
    _, last, _ = span(config)
    beyond = [path for path in checkpoints(run) if step < step_of(path) <= last]
    for path in beyond:
        if not wrote(path, config):
            raise RunError(
                f"{path}: is damaged, or was not written by this run, which is going to write "
                "under that name; move it away to resume."
            )
    files = {x: recorded_episodes(run / x) for x in ("evaluation.jsonl", "episodes.jsonl")}
    files["metrics.jsonl"] = read_metrics(run)
    with saying_what_is_safe(run):
        for name, all_lines in files.items():
            kept = [json.dumps(line).encode() + b"\n" for line in all_lines if line["step"] <= step]
            if (run / name).exists() and (run / name).read_bytes() != b"".join(kept):
                with whole_file(run / name) as file:
                    file.writelines(kept)
        for path in beyond:
            path.rename(path.with_suffix(".refused"))
        for path in run.iterdir():
            if HALF_FILE.fullmatch(path.name):
                path.unlink()
