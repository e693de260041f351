"""A run's directory: settings, metrics and checkpoints, written so that a kill at any moment loses nothing that was said to be saved.

    runs/<name>/config.json         every setting, the dataset and its checksum, versions, device
    runs/<name>/metrics.jsonl       one line per `log_every` updates; steps strictly increase, also after a kill and a resume
    runs/<name>/evaluation.jsonl    one line per episode (`evaluate.py`)
    runs/<name>/step-*.checkpoint   the whole state of training, the newest two
"""

import json
import platform
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from beartype.roar import BeartypeException

from tql import checkpoint
from tql.agent import AbstractAgent, method_class
from tql.config import TrainingConfig
from tql.evaluate import recorded
from tql.validate import sha256
from tql.whole_file import whole_file, whole_lines

KEPT_CHECKPOINTS = 2


class RunError(RuntimeError):
    """A run that cannot be started, continued or used; the message says why and what to do."""


class Diverged(RunError):
    """A loss or a weight became NaN or Inf; the message says which, at which update."""


def check_empty(run: Path) -> None:
    """Raises `RunError` for a directory with something in it."""
    if run.exists() and any(not path.name.startswith(".") for path in run.iterdir()):
        raise RunError(f"{run}: exists and is not empty; continue it with --resume or choose another directory with --out.")


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
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    } | agent.about()
    with whole_file(run / "config.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on, as installed now."""
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
            {name: content["versions"][name] for name in versions()},
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


def checkpoint_steps(run: Path) -> list[int]:
    """After how many updates the checkpoints are, newest first."""
    return [int(path.stem.removeprefix("step-")) for path in checkpoints(run)]


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
        last = last_checkpoint(run)
        raise Diverged(f"NaN or Inf in {', '.join(bad[:3])} after {int(agent.step)} updates; the last good checkpoint is {last}.")
    checkpoint.save(run / checkpoint_name(int(agent.step)), agent)
    for old in checkpoints(run)[KEPT_CHECKPOINTS:]:
        old.unlink()


def checkpoint_name(step: int) -> str:
    return f"step-{step:09d}.checkpoint"


def last_checkpoint(run: Path) -> str:
    return next((str(path) for path in checkpoints(run)), "none yet")


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl`; a last line torn by a kill is left out."""
    try:
        return whole_lines(run / "metrics.jsonl", ("step", "time"), "is no line of metrics")
    except ValueError as error:
        raise RunError(str(error)) from None


def forget_after(run: Path, step: int) -> None:
    """Clears the way for updates that the resumed run makes again: their metrics, episodes, refused checkpoints, halves of files."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    with whole_file(run / "metrics.jsonl") as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
    rows = recorded(run / "evaluation.jsonl")
    if any(row["step"] > step for row in rows):
        with whole_file(run / "evaluation.jsonl") as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows if row["step"] <= step)
    for path in checkpoints(run):
        if path.name > checkpoint_name(step):
            path.rename(path.with_suffix(".refused"))
    for path in run.glob(".*.tmp"):
        path.unlink()


def trained_agent(run: Path) -> AbstractAgent:
    """The newest whole checkpoint of a run. Raises `RunError` if there is none."""
    agent = newest_agent(run, read_settings(run).config)
    if agent is None:
        raise RunError(f"{run}: has no usable checkpoint; train it first.")
    return agent


def agent_at(run: Path, step: int) -> AbstractAgent:
    """The checkpoint after `step` updates. Raises `RunError` if it is not there, and `checkpoint.CheckpointError` if it is damaged."""
    path = run / checkpoint_name(step)
    if not path.exists():
        there = ", ".join(map(str, checkpoint_steps(run))) or "none"
        raise RunError(f"{run}: has no checkpoint after {step} updates; there are: {there}.")
    return checkpoint.load(path, read_settings(run).config)
