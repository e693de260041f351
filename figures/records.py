"""What the pictures of this folder share: reading what `run.py` recorded, means over seeds, published numbers, colours, the caption."""

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from tql.config import Task, paper
from tql.portrait import Portrait, load
from tql.study import read_lines

FIGURES = Path(__file__).parent
PUBLISHED = json.loads((FIGURES / "data" / "published.json").read_text())
CITED = "published (arXiv 2602.01439)"
REFERENCE = "cube-double"
"""The paper's domain that stands beside ours where ours is none of the paper's."""

WIDTH_COLOURS = {32: "#2bb5c4", 64: "#4c9a2a", 128: "#e69500", 256: "#d9480f", 512: "#a61e6c", 1024: "#3d1a5b"}
CONTROLS = {"none": "no control", "fixed": "fixed penalty", "single": "one temperature", "tql": "TQL"}
CONTROL_COLOURS = {"none": "#c92a2a", "fixed": "#e69500", "single": "#2a9d6f", "tql": "#1c5fb0"}
COMPARES_WIDTHS = re.compile(r"sarsa|.+-task\d")
"""Studies that differ in width, control and seed alone; the cpu preset has others beside them."""


@dataclass(frozen=True)
class Options:
    """Rebuild one picture from the recorded runs."""

    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    """Whose records are drawn."""
    out: Path | None = None
    """The picture; beside the script unless given, with the preset in its name unless that is cpu."""
    data: Path = field(default=FIGURES / "data")
    """Folder of the records, one folder per preset in it."""


def read_config(folder: Path) -> dict:
    """The settings of a recorded run. Ends the program, naming the file, if it is damaged."""
    try:
        return json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise SystemExit(f"{folder / 'config.json'}: is damaged ({error}); restore it from git, or remove that run's folder.") from None


@dataclass(frozen=True)
class Record:
    """One recorded run. `study` is what its name starts with: which kind of run, or which task."""

    folder: Path
    settings: dict
    metrics: list[dict]
    analysis: list[dict]
    evaluation: list[dict]

    @staticmethod
    def read(folder: Path) -> "Record":
        lines = [read_lines(folder / f"{name}.jsonl") for name in ("metrics", "analysis", "evaluation")]
        return Record(folder, read_config(folder), *lines)

    @property
    def control(self) -> str:
        return self.settings["config"]["control"]["kind"]

    @property
    def width(self) -> int:
        return self.settings["config"]["critic"]["d_model"]

    @property
    def seed(self) -> int:
        return self.settings["config"]["seed"]

    @property
    def study(self) -> str:
        return self.folder.name.removesuffix(f"-{self.control}-{self.width}-seed{self.seed}")

    @property
    def domain(self) -> str:
        return Task.parse(self.settings["config"]["task"]).domain

    @property
    def updates(self) -> int:
        return self.metrics[-1]["step"]

    @property
    def target(self) -> Float[np.ndarray, "layers 2"]:
        return np.array(self.settings["target"])

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.metrics]

    @cached_property
    def entropy(self) -> Float[np.ndarray, "lines layers 2"]:
        """In nats, per layer and group ([VALUE], other tokens)."""
        return np.array([line["entropy"] for line in self.metrics])

    @property
    def late_entropy(self) -> Float[np.ndarray, "layers 2"]:
        """Mean over the second half of the updates."""
        return self.entropy[[step >= self.updates / 2 for step in self.steps]].mean(axis=0)

    def late(self, name: str) -> float:
        """A number of `portrait.numbers`, mean over the checkpoints of the second half of the updates, both ends included."""
        return float(np.mean([line[name] for line in self.analysis if line["step"] >= self.updates / 2]))

    def success(self, policy: str = "policy") -> tuple[list[int], list[float]]:
        """Updates of every evaluation, and the share of its episodes that were solved."""
        rows = [line for line in self.evaluation if line["policy"] == policy]
        steps = sorted({line["step"] for line in rows})
        return steps, [float(np.mean([line["success"] for line in rows if line["step"] == step])) for step in steps]

    @cached_property
    def portrait(self) -> Portrait:
        return load(self.folder / "portrait.npz")


def read(options: Options) -> list[Record]:
    """All records of a preset, by name. Ends the program, saying what to do, if there are none."""
    records = [Record.read(config.parent) for config in sorted((options.data / options.preset).glob("*/config.json"))]
    if not records:
        raise SystemExit(f"{options.data / options.preset} holds no records; train them with: python figures/run.py {options.preset}")
    return records


def pick(records: Sequence[Record], **wanted) -> list[Record]:
    """Those with these values, for example `pick(records, control="none", width=32)`; a tuple stands for any of its values."""
    of = {name: value if isinstance(value, tuple) else (value,) for name, value in wanted.items()}
    return [record for record in records if all(getattr(record, name) in values for name, values in of.items())]


def need(records: list[Record], what: str) -> list[Record]:
    """The records, or the end of the program with a word on which are missing."""
    if not records:
        raise SystemExit(f"there are no records {what} yet; figures/run.py makes them.")
    return records


def sizes_study(records: Sequence[Record]) -> list[Record]:
    """The runs that compare widths, without those beside."""
    return need([record for record in records if COMPARES_WIDTHS.fullmatch(record.study)], "of critics of several widths")


def values_of(records: Sequence[Record], name: str) -> list:
    """Which values occur, in order: `values_of(records, "width")`."""
    return sorted({getattr(record, name) for record in records})


def mean_entropy(record: Record) -> float:
    """Late entropy, mean over the 2L entries of layer and group."""
    return float(record.late_entropy.mean())


# ---- drawing -------------------------------------------------------------------------------------------------------------------


def draw_seeds(axis: Axes, curves: Sequence[tuple[Sequence, Sequence]], colour: str, label: str) -> None:
    """Every run thin, their mean over the steps that all have thick."""
    if not curves:
        return
    for steps, values in curves:
        axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.55)
    common = sorted(set.intersection(*({*steps} for steps, _ in curves)))
    at = [dict(zip(steps, values)) for steps, values in curves]
    axis.plot(common, [np.mean([values[step] for values in at]) for step in common], color=colour, linewidth=2.6, label=label)


def draw_published(axis: Axes, steps: Sequence, values: Sequence, colour: str, name: str = "", style: str = "--") -> None:
    """A published curve: thin, dashed, with small marks, and its name at its right end."""
    axis.plot(steps, values, color=colour, linestyle=style, linewidth=1.1, marker=".", markersize=4, label=None)
    if name:
        axis.annotate(name, (steps[-1], values[-1]), xytext=(4, 0), textcoords="offset points", color=colour, va="center", fontsize=8.5)


def published_label(axis: Axes) -> None:
    """One entry of the legend for all published curves."""
    axis.plot([], [], color="black", linestyle="--", linewidth=1.1, marker=".", markersize=4, label=CITED)


def legend_below(figure: SubFigure, columns: int | None = None) -> None:
    """One legend for all axes, under them, where it hides nothing; in one line unless a number of columns is given."""
    entries = {}
    for axis in figure.axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    published = {CITED: entries.pop(CITED)} if CITED in entries else {}
    entries |= published
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns or len(entries), fontsize=9, frameon=False)


def draw_points(axis: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """One point per run at each x, and a line through their means."""
    for at, values in zip(x, seeds):
        axis.plot([at] * len(values), values, "o", color=colour, markersize=4.5, alpha=0.6, markeredgewidth=0)
    axis.plot(x, [np.mean(values) for values in seeds], color=colour, linewidth=2.4, marker="_", markersize=14, label=label)


def width_axis(axis: Axes, widths: Sequence[int], room: float = 1.35) -> None:
    """Widths on a logarithmic axis, with room for names at the right."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xlim(min(widths) / 1.35, max(widths) * room)
    axis.minorticks_off()
    axis.set_xlabel("width d_model")


# ---- words ---------------------------------------------------------------------------------------------------------------------


def listed(values: Sequence) -> str:
    return ", ".join(str(value) for value in values)


def seeds_of(records: Sequence[Record]) -> str:
    """`seeds 0, 1, 2`, or how many each curve has where they differ."""
    groups: dict[tuple, set] = {}
    for record in records:
        groups.setdefault((record.study, record.control, record.width), set()).add(record.seed)
    if len({frozenset(seeds) for seeds in groups.values()}) == 1:
        seeds = values_of(records, "seed")
        return f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}"
    counts = sorted({len(seeds) for seeds in groups.values()})
    return f"{counts[0]} to {counts[-1]} seeds per curve" if counts[0] < counts[-1] else f"{counts[0]} seeds per curve, not the same"


PAPERS = {"critic_lr": "learning rate", "temperature_lr": "temperature rate", "discount": "discount", "tau": "tau", "batch_size": "batch"}
"""Settings whose departure from the paper the caption names."""


def departures(records: Sequence[Record]) -> str:
    """` with learning rate 0.001 (paper 0.0001), ...`; empty for the paper's own settings."""
    config = records[0].settings["config"]
    theirs = paper(config["task"], "0.4M")
    found = [
        f"{words} {config[name]:g} (paper {getattr(theirs, name):g})"
        for name, words in PAPERS.items()
        if config[name] != getattr(theirs, name)
    ]
    return f" with {listed(found)}" if found else ""


def scale_of(records: Sequence[Record]) -> str:
    """Task, sizes, updates, seeds and device of these runs, in one sentence."""
    tasks = sorted({record.settings["config"]["task"] for record in records})
    of_tasks = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks of {listed(values_of(records, 'domain'))}"
    updates = " or ".join(f"{n:,}" for n in values_of(records, "updates"))
    minutes = sum(record.settings.get("training_seconds", 0) for record in records) / 60
    layers = sorted({record.settings["config"]["critic"]["layers"] for record in records})
    actor = {record.settings["config"]["actor"]["kind"] for record in records}
    kind = "critics on the dataset's next actions (no policy)" if actor == {"dataset"} else "critics with the flow actor"
    return (
        f"Scale: {of_tasks}, {kind}, {listed(layers)} layers, d_model "
        f"{listed(values_of(records, 'width'))}; {updates} updates{departures(records)}; {seeds_of(records)}; "
        f"device: {listed(sorted({record.settings['device'] for record in records}))}, {minutes:.0f} minutes of training in all."
        f"{datasets_of(records)}"
    )


def datasets_of(records: Sequence) -> str:
    """A sentence where one dataset was made more than once and did not come out the same; of whatever has `settings`."""
    made: dict[str, set[str]] = {}
    for record in records:
        dataset = record.settings["dataset"]
        made.setdefault(dataset["file"], set()).add(dataset["sha256"])
    most = max(map(len, made.values()))
    if most == 1:
        return ""
    return f" The dataset was made on {most} machines, by the same script, seed and number of episodes, and is not the same bit for bit."


def success_missing(records: Sequence[Record]) -> str:
    """A sentence where no run was evaluated."""
    if any(record.evaluation for record in records):
        return ""
    return "These critics were not trained, or not for long enough, to act: success is the published one only."


def verdict(agrees: bool | None, claim: str, measured: str) -> str:
    """The sentence about the paper. None: there are too few records to say anything."""
    if agrees is None:
        return f"Neither agrees nor differs yet: {measured}"
    return f"{'AGREES with' if agrees else 'DIFFERS from'} the paper: {claim}. Measured: {measured}"


def canvas(width: float, height: float, title: str, caption: Sequence[str]) -> tuple[Figure, SubFigure]:
    """A figure with the caption, one paragraph per entry, under a body of this size in inches; returns figure and body."""
    lines = [line for paragraph in caption for line in textwrap.wrap(paragraph, int(13.8 * width))]
    below = 0.165 * len(lines) + 0.1
    figure = Figure(figsize=(width, height + below), layout="constrained")
    body, words = figure.subfigures(2, 1, height_ratios=[height, below])
    body.suptitle(title, fontsize=13)
    words.text(0.012, 1, "\n".join(lines), fontsize=9, va="top", linespacing=1.3)
    return figure, body


def save(draw: Callable[[list[Record]], Figure], options: Options, name: str) -> Path:
    """Draws the preset's records and writes the picture; prints and returns its path."""
    out = options.out or FIGURES / f"{name}{'' if options.preset == 'cpu' else '-' + options.preset}.png"
    with rc_context({"font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}):
        draw(read(options)).savefig(out, dpi=150)
    print(out)
    return out
