"""What the benchmark's pictures share: its recorded runs, scores by method and task, names and colours, the sentence on the scale.

A run is a folder `data/benchmark/PRESET/TASK/LABEL-seedK/` with config.json, metrics.jsonl and evaluation.jsonl. LABEL is a method or
METHOD@SIZE: runs with a size belong to the comparison of sizes alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from records import FIGURES, datasets_of, listed, read_config

from tql import statistics
from tql.config import Task
from tql.evaluate import recorded

METHODS = {
    **{"bc": "BC", "iql": "IQL", "rebrac": "ReBRAC", "fbrac": "FBRAC", "ifql": "IFQL", "fql": "FQL", "floq": "floq"},
    **{"q-transformer": "Q-T", "pac": "PAC", "tql": "TQL"},
}
"""The columns of the paper's table, in its order, and their names there."""
RIVALS = tuple(method for method in METHODS if method != "tql")
NAMES = METHODS | {"tql-none": "no control", "q-transformer-bound": "Q-T, bound"}
COLOURS = {
    **{"bc": "#868e96", "iql": "#9c5b1f", "rebrac": "#e8963d", "fbrac": "#c9b400", "ifql": "#86b817", "fql": "#1f8a5b", "floq": "#12b0c4"},
    **{"q-transformer": "#8f4fd1", "pac": "#e667a8", "tql": "#1c5fb0", "tql-none": "#c92a2a"},
    "q-transformer-bound": "#c3a5e8",
}
STYLE = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Options:
    """Draw one preset of the benchmark from its recorded runs."""

    preset: str = "pocket"
    """Whose records are drawn."""
    out: Path | None = None
    """The picture; beside the script unless given, with the preset in its name unless that is pocket."""
    data: Path = field(default=FIGURES / "data" / "benchmark")
    """Folder of the records, one folder per preset in it."""
    last: int = 1
    """A run's success is the mean of this many last evaluations: 1, or 3 for less noise."""


@dataclass(frozen=True)
class Run:
    """One recorded run of one method."""

    folder: Path
    settings: dict
    evaluation: list[dict]

    @staticmethod
    def read(folder: Path) -> "Run":
        if not re.fullmatch(r"[^@]+(@[^@]+)?-seed\d+", folder.name):
            raise SystemExit(f"{folder} is no name of a run; METHOD-seed0 or METHOD@SIZE-seed0 is expected. Rename or remove it.")
        return Run(folder, read_config(folder), recorded(folder / "evaluation.jsonl"))

    @property
    def label(self) -> str:
        return self.folder.name.rsplit("-seed", 1)[0]

    @property
    def method(self) -> str:
        return self.label.split("@")[0]

    @property
    def size(self) -> str:
        """What follows the @, or nothing."""
        return self.label.partition("@")[2]

    @property
    def seed(self) -> int:
        return self.settings["config"]["seed"]

    @property
    def task(self) -> str:
        return self.settings["config"]["task"]

    @property
    def updates(self) -> int:
        return self.settings["config"]["steps"]

    @property
    def device(self) -> str:
        return self.settings["device"]

    @property
    def critic_parameters(self) -> int | None:
        """Of what scales: floq's value flow rather than the critic distilled from it."""
        counted = self.settings.get("parameters", {})
        return counted.get("psi", counted.get("critic"))

    @cached_property
    def curve(self) -> dict[int, float]:
        """Success of every evaluation, by updates."""
        return statistics.success_by_step(self.evaluation)

    @property
    def is_whole(self) -> bool:
        """Whether it was evaluated at its end. A run that was cut off shows nothing about the method."""
        return self.updates in self.curve

    @property
    def last_episodes(self) -> list[bool]:
        """Whether each episode of the last evaluation was solved."""
        return [row["success"] for row in self.evaluation if (row["policy"], row["step"]) == ("policy", self.updates)]

    def minutes(self, step: int) -> float:
        """Wall time of this many updates: the whole time, in proportion."""
        return self.settings["training_seconds"] / 60 * step / self.updates


@dataclass(frozen=True)
class Benchmark:
    """The runs of one preset: whole ones, and the names of those cut off."""

    preset: str
    runs: list[Run]
    cut_off: list[str]
    last: int

    @property
    def plain(self) -> list[Run]:
        """Those that belong to the comparison of methods."""
        return [run for run in self.runs if not run.size]

    @property
    def tasks(self) -> list[str]:
        return sorted({run.task for run in self.plain})

    def of(self, **wanted) -> list[Run]:
        """Whole runs with these values: `of(label="tql@64", task=task)`."""
        return [run for run in self.runs if all(getattr(run, name) == value for name, value in wanted.items())]

    def methods(self) -> list[str]:
        """The table's ten methods, recorded or not, and whatever else was recorded."""
        others = {run.method for run in self.plain} - METHODS.keys()
        return [*METHODS, *sorted(others, key=lambda method: (method != "tql-none", method))]

    def scores(self, label: str, tasks: Sequence[str]) -> Float[np.ndarray, "seeds tasks"]:
        """Success of every run; NaN where there is none."""
        runs = {(run.seed, run.task): run for run in self.of(label=label)}
        seeds = sorted({seed for seed, _ in runs}) or [0]
        there = [[runs.get((seed, task)) for task in tasks] for seed in seeds]
        return np.array([[statistics.run_success(run.evaluation, last=self.last) if run else np.nan for run in row] for row in there])


def read(options: Options) -> Benchmark:
    """The records of a preset. Ends the program, saying what is there, if it has none."""
    presets = sorted(folder.name for folder in options.data.glob("*") if any(folder.glob("*/*/config.json")))
    if options.preset not in presets:
        there = f"records of {listed(presets)} and none of {options.preset}; choose one with --preset" if presets else "no records yet"
        raise SystemExit(f"{options.data} holds {there}.")
    runs = [Run.read(config.parent) for config in sorted((options.data / options.preset).glob("*/*/config.json"))]
    cut_off = [f"{run.task}/{run.folder.name}" for run in runs if not run.is_whole]
    return Benchmark(options.preset, [run for run in runs if run.is_whole], cut_off, options.last)


def name(label: str) -> str:
    method, at, size = label.partition("@")
    return NAMES.get(method, method) + at + size


def interval(statistic: statistics.Statistic, *scores: Float[np.ndarray, "_ tasks"]) -> tuple[float, float] | None:
    """The bootstrap interval; None where a task has a single seed, which has no spread."""
    if any(statistics.counts(x).min() < 2 for x in scores):
        return None
    return statistics.stratified_bootstrap(statistic, *scores)


def decide(x: Float[np.ndarray, "seeds tasks"], y: Float[np.ndarray, "others tasks"], sign: int) -> str:
    """The rule about a published difference of this sign: `reproduced` where ours is not chance and has it, `contradicted` where it is not
    chance and has the other, else `undecided`."""
    if statistics.permutation_p(x, y) > LEVEL:
        return "undecided"
    return "reproduced" if (statistics.difference(x, y) > 0) == (sign > 0) else "contradicted"


LEVEL = 0.05
RULE = f"a permutation test (the runs of a task change sides at random; two-sided, exact with few runs) with p at most {LEVEL:g}"


def recorded_both(x: Float[np.ndarray, "seeds tasks"], y: Float[np.ndarray, "others tasks"]) -> list[np.ndarray]:
    """Both, on the tasks that both were run on; without those of a single seed, which has no spread, where there are others."""
    seeds = np.minimum((~np.isnan(x)).sum(axis=0), (~np.isnan(y)).sum(axis=0))
    both = seeds >= min(2, seeds.max(initial=1))
    return [x[:, both], y[:, both]]


def short(task: str) -> str:
    """`cube-single-noisy task 3`."""
    parsed = Task.parse(task)
    return f"{domain_of(task)} task {parsed.task_id}" if parsed.task_id else f"{domain_of(task)} default task"


def domain_of(task: str) -> str:
    """`cube-single-noisy`; plain `cube-double` where the kind is play, as in the paper."""
    return Task.parse(task).dataset_name.removesuffix("-v0").removesuffix("-play")


def scale_of(benchmark: Benchmark, runs: Sequence[Run]) -> str:
    """Preset, updates, seeds, device, episodes per task, what is left out: in a few sentences."""
    by_updates: dict[int, set[str]] = {}
    for run in runs:
        by_updates.setdefault(run.updates, set()).add(name(run.label))
    updates = [f"{n:,}" + (f" ({listed(sorted(by_updates[n]))})" if len(by_updates) > 1 else "") for n in sorted(by_updates)]
    seeds = listed(sorted({run.seed for run in runs}))
    episodes = {short(run.task): sorted({len(other.last_episodes) for other in runs if other.task == run.task}) for run in runs}
    rows = [f"{task}: {' or '.join(map(str, n))}" for task, n in episodes.items()]
    device = listed(sorted({run.device for run in runs}))
    success = "the last evaluation" if benchmark.last == 1 else f"the mean of the last {benchmark.last} evaluations"
    hours = sum(run.settings["training_seconds"] for run in runs) / 3600
    return (
        f"Reduced scale: preset {benchmark.preset}, {len(runs)} runs of {' and '.join(updates)} updates (paper 1,000,000); seeds {seeds}"
        f"{fewer_seeds(runs)}; device: {device}, {hours:.1f} hours of training in all. Success: share of solved episodes in "
        f"{success}; episodes of an evaluation: {listed(rows)}.{datasets_of(runs)}" + left_out(benchmark)
    )


def fewer_seeds(runs: Sequence[Run]) -> str:
    """`(PAC: 2; Q-T: 1)`: the methods that have fewer of them than others, on the task where they have most."""
    of: dict[str, dict[str, set[int]]] = {}
    for run in runs:
        of.setdefault(run.label, {}).setdefault(run.task, set()).add(run.seed)
    most = {label: max(map(len, tasks.values())) for label, tasks in of.items()}
    fewer = [f"{name(label)}: {n}" for label, n in most.items() if n < max(most.values())]
    return f" (how many, where fewer: {'; '.join(fewer)})" if fewer else ""


def left_out(benchmark: Benchmark) -> str:
    return f" Left out, because they were cut off before their end: {listed(benchmark.cut_off)}." if benchmark.cut_off else ""


def picture_path(options: Options, stem: str) -> Path:
    return options.out or FIGURES / f"{stem}{'' if options.preset == 'pocket' else '-' + options.preset}.png"


def save(draw: Callable[[Benchmark], Figure], options: Options, stem: str) -> Path:
    """Draws the preset's records and writes the picture; prints and returns its path."""
    benchmark = read(options)
    out = picture_path(options, stem)
    with rc_context(STYLE):
        draw(benchmark).savefig(out, dpi=150)
    print(out)
    return out
