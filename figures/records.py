"""The recorded runs of a preset: one file, `data/PRESET.jsonl`, with one line of JSON per run.

`run.py` makes a line from a finished run's directory (`record_of`) and puts it into the file
(`write`); every picture reads the file through `read`. The dataclass `Record` says what is in a
line."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from tql.agent import AbstractAgent
from tql.analysis.portrait import load_portrait
from tql.analysis.study import read_lines
from tql.ogbench.evaluate import recorded_episodes
from tql.optimise import Learner
from tql.training.methods import as_json
from tql.training.online_config import span
from tql.training.run_directory import (
    DatasetFile,
    Settings,
    read_metrics,
    read_settings,
    trained_agent,
)
from tql.training.whole_file import read_json, typed, whole_file

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one policy after so many updates, in their order. Episode i began from
    `episode_seed(config.seed, i)` of `tql/ogbench/evaluate.py`. Those of the policy `learning` are
    the episodes of an online phase that ended since its checkpoint before."""

    policy: str
    step: int
    successes: tuple[bool, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def __post_init__(self):
        if not len(self.successes) == len(self.returns) == len(self.lengths) > 0:
            raise ValueError("successes, returns and lengths must be as many, and at least one")


@dataclass(frozen=True)
class Seen:
    """What pictures draw of a critic's portrait at its last checkpoint."""

    n_s: int
    landscapes: tuple[tuple[tuple[float, ...], ...], ...]
    """Q over two action dimensions, for four pairs (s, a)."""
    map: tuple[tuple[float, ...], ...]
    """The attention of layer 1, head 1 for the first pair."""


@dataclass(frozen=True)
class Record:
    """One recorded run; the fields are those of its line."""

    name: str
    """Its name in the preset, such as `sarsa-none-32-seed0` or `TASK/iql-seed0`."""
    config: dict
    """Every setting, by the names of today's dataclasses; those of an online phase are in it under
    `online`."""
    dataset: DatasetFile
    """The training data; without the folder in which they were."""
    versions: dict[str, str]
    device: str
    training_seconds: float
    """Wall time of the updates, without evaluations and pauses."""
    target: tuple[tuple[float, float], ...] | None
    """TQL's entropy target in nats, a pair ([VALUE], others) per layer; null for rivals."""
    parameters: dict[str, int]
    """How many numbers each network learns; empty for runs in which it was not counted."""
    metrics: dict
    """By column: `step`, and for each step the mean over a chunk of updates."""
    analysis: dict
    """By column: `step`, and for each step the numbers of the critic's portrait; may be empty."""
    evaluation: tuple[Evaluation, ...]
    portrait: Seen | None
    q_error: dict[str, float] | None = None
    """`q_correlation` and `q_bias` of `tql/analysis/q_error.py` after the last update; null for
    runs that do not act, for rivals, and for runs in which it was not measured."""

    def __post_init__(self):
        """Raises `ValueError`, with the name of the field, for what no run can have."""
        for name, kind in (("task", str), ("method", str), ("seed", int), ("steps", int)):
            typed(self.config.get(name), kind, f"config.{name}")
        if "-seed" not in self.name or not self.metrics.get("step"):
            raise ValueError("its name must end in -seedK, and metrics.step must not be empty")
        for field in ("metrics", "analysis"):
            columns = getattr(self, field)
            for name, column in columns.items():
                if _rows(column) != len(columns.get("step", ())):
                    raise ValueError(f"{field}.{name} must have one number, or list, per step")

    @property
    def label(self) -> str:
        """The name without its task and its seed: `iql`, `tql@64`, `sarsa-none-32`."""
        return self.name.rpartition("/")[2].rpartition("-seed")[0]

    @property
    def method(self) -> str:
        """The label without its size: `tql-none` of `tql-none@64`."""
        return self.label.partition("@")[0]

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def entropy(self) -> Float[np.ndarray, "lines layers 2"]:
        """Attention entropy in nats, per layer and group ([VALUE], other tokens)."""
        return np.array(self.metrics["entropy"])

    @property
    def late_entropy(self) -> Float[np.ndarray, "layers 2"]:
        """The entropy, mean over the second half of the updates."""
        return self.entropy[self._late(self.metrics)].mean(axis=0)

    def late(self, name: str) -> float:
        """A number of the analysis, mean over the checkpoints of the second half of the updates."""
        return float(np.array(self.analysis[name])[self._late(self.analysis)].mean())

    def _late(self, columns: dict) -> np.ndarray:
        return np.array(columns["step"]) >= self.metrics["step"][-1] / 2

    def success(self, policy: str = "policy") -> dict[int, float]:
        """By updates: the share of episodes that were solved."""
        of = {x.step: float(np.mean(x.successes)) for x in self.evaluation if x.policy == policy}
        return dict(sorted(of.items()))

    def last_success(self, policy: str = "policy") -> float:
        """The share of episodes solved in the last evaluation."""
        return list(self.success(policy).values())[-1]


def _rows(column) -> int | None:
    """How many numbers, or equal lists of numbers, are in a column; None if it holds others."""
    try:
        return len(np.array(column, float))
    except (ValueError, TypeError):
        return None


# ---- reading and writing -------------------------------------------------------------------------


def read(preset: str, folder: Path = DATA) -> list[Record]:
    """All records of a preset, by name. Ends the program with one line for people, which names
    file, line and field, where there are none or where one is damaged."""
    path, records = folder / f"{preset}.jsonl", []
    if not path.exists():
        raise SystemExit(
            f"{path} does not exist; make its runs with: python figures/run.py {preset}"
        )
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            records.append(typed(json.loads(line), Record, "the run"))
        except ValueError as error:
            raise SystemExit(
                f"{path}, line {number}: {error}. Restore the file from git, or remove that line "
                "and make the run again."
            ) from None
    return sorted(records, key=lambda record: record.name)


def pick(records: Sequence[Record], **wanted) -> list[Record]:
    """The records with these values, as in `pick(records, label="iql", seed=0)`. Ends the program
    if there are none."""
    has = lambda record: all(getattr(record, name) == value for name, value in wanted.items())
    found = [record for record in records if has(record)]
    if not found:
        said = " and ".join(f"{name} {value}" for name, value in wanted.items())
        raise SystemExit(f"no run with {said} is recorded yet; figures/run.py makes it.")
    return found


def write(records: Sequence[Record], preset: str, folder: Path = DATA) -> None:
    """Puts these records into the preset's file, in place of those with the same names."""
    path = folder / f"{preset}.jsonl"
    named = {record.name: record for record in read(preset, folder)} if path.exists() else {}
    named |= {record.name: record for record in records}
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        for name in sorted(named):
            line = json.dumps(asdict(named[name]), separators=(",", ":"))
            file.write(line.encode() + b"\n")


# ---- from a run's directory ----------------------------------------------------------------------


def record_of(run: Path, name: str, *, whole: bool) -> Record:
    """The record of a finished run: without local paths, numbers to 6 digits. Unless `whole`, every
    fifth line of its metrics is kept, and of its portrait nothing."""
    settings, lines = read_settings(run), read_metrics(run)
    kept = [line for i, line in enumerate(lines, 1) if whole or i % 5 == 0 or i == len(lines)]
    of: dict[tuple[str, int], list[dict]] = {}
    for row in recorded_episodes(run / "evaluation.jsonl") + learnt_from(run, settings):
        of.setdefault((row["policy"], row["step"]), []).append(row)
    columns = lambda rows, names: {n: tuple(_rounded(row[n]) for row in rows) for n in names}
    names = ("success", "return", "length")
    return Record(
        name=name,
        config=as_json(settings.config) | as_online(settings),
        dataset=DatasetFile(Path(settings.dataset.file).name, settings.dataset.sha256),
        versions=settings.versions,
        device=settings.device,
        training_seconds=round(_seconds(lines, span(settings.whole)[0]), 1),
        target=settings.target,
        parameters=_parameters(trained_agent(run)),
        metrics=columns(kept, [key for key in kept[0] if key != "time"]),
        analysis=columns(looked := read_lines(run / "analysis.jsonl"), looked[0] if looked else ()),
        evaluation=tuple(
            Evaluation(*at, *columns(rows, names).values()) for at, rows in of.items()
        ),
        portrait=_seen(run / "portrait.npz") if whole and looked else None,
        q_error=_q_error(run / "q_error.json"),
    )


def as_online(settings: Settings) -> dict:
    """The settings of an online phase, if there is one, under their own name."""
    return {"online": asdict(settings.online)} if settings.online else {}


def learnt_from(run: Path, settings: Settings) -> list[dict]:
    """The episodes that an online phase learnt from, as those of the policy `learning`: each at the
    step of the next checkpoint."""
    if not settings.online:
        return []
    first, _, _ = span(settings.whole)
    every = settings.online.checkpoint_every * settings.online.updates_per_step
    up = lambda step: first + math.ceil((step - first) / every) * every
    rows = recorded_episodes(run / "episodes.jsonl")
    return [row | {"policy": "learning", "step": up(row["step"])} for row in rows]


def _rounded(value, digits: int = 6):
    """Numbers to so many digits, also in nested lists, which become tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(_rounded(x, digits) for x in value)
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _q_error(file: Path) -> dict[str, float] | None:
    if not file.exists():
        return None
    return {name: _rounded(value) for name, value in read_json(file).items()}


def _seconds(lines: list[dict], first: int) -> float:
    """Seconds of all updates after the `first` at the median speed between two lines of metrics, so
    that a pause or a busy minute of the machine does not count."""
    steps, times = (np.array([line[name] for line in lines]) for name in ("step", "time"))
    if len(lines) < 2:
        return 0.0
    return float((steps[-1] - first) / np.median(np.diff(steps) / np.diff(times)))


def _parameters(agent: AbstractAgent) -> dict[str, int]:
    """How many numbers every network of the method learns; targets and optimiser states aside."""
    networks = {name: x.model for name, x in vars(agent).items() if isinstance(x, Learner)}
    size = lambda model: sum(
        x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    )
    return {name: size(model) for name, model in networks.items()}


def _seen(file: Path) -> Seen:
    portrait = load_portrait(file)
    landscapes = _rounded(portrait.landscapes.tolist())
    return Seen(int(portrait.n_s), landscapes, _rounded(portrait.maps[0, 0].tolist(), digits=4))
