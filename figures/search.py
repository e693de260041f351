"""Rebuilds `figures/search.png`: success by the one setting that says how far a method may leave the data. `python figures/search.py`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path

import tyro
from benchmark_records import COLOURS, STYLE, Benchmark, Run, name, read, short
from benchmark_records import Options as PresetOptions
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import FIGURES, canvas, datasets_of, listed

from tql.benchmark_presets import POCKET_TASKS, SEARCHED, settings
from tql.evaluate import wilson

COLUMNS = 4
LARGER_IS_FURTHER = ("iql", "ifql")
"""From the dataset. Their axes are turned round."""
ASIDE = 0.06
"""Between runs of one value, as a share of it, or they would hide each other."""


@dataclass(frozen=True)
class Options:
    """Draw what the search tried beside what the pocket benchmark uses, from recorded runs."""

    out: Path = FIGURES / "search.png"
    """The picture."""
    data: Path = field(default=FIGURES / "data" / "benchmark")
    """Folder of the records, with search and pocket in it."""


def value_of(config: dict, method: str) -> float:
    """The setting's value in recorded settings."""
    return reduce(dict.__getitem__, SEARCHED[method][0].split("."), config)


def used(method: str) -> float:
    """The value of the `pocket` settings."""
    return value_of(asdict(settings(method, "pocket", POCKET_TASKS[0], 0)), method)


def in_use(pocket: Benchmark, method: str) -> list[Run]:
    """The benchmark's runs on that task, without those of a value that it used before."""
    return [run for run in pocket.of(label=method, task=POCKET_TASKS[0]) if value_of(run.settings["config"], method) == used(method)]


def draw_run(axis: Axes, run: Run, x: float, colour: str, face: str) -> None:
    """Solved episodes of the last evaluation, with Wilson's interval."""
    solved, n = sum(run.last_episodes), len(run.last_episodes)
    low, high = wilson(solved, n)
    axis.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=1)
    axis.plot(x, 100 * solved / n, "o", color=colour, markerfacecolor=face, markersize=5)


def draw_method(axis: Axes, method: str, tried: Sequence[Run], rings: Sequence[Run]) -> None:
    """Discs for what was tried, rings for the benchmark's own runs, a line at the value in use."""
    colour, values = COLOURS[method], SEARCHED[method][1]
    for value in values:
        there = [(run, face) for runs, face in ((tried, colour), (rings, "white")) for run in runs]
        there = [(run, face) for run, face in there if value_of(run.settings["config"], method) == value]
        for number, (run, face) in enumerate(there):
            draw_run(axis, run, value * (1 + ASIDE) ** (number - (len(there) - 1) / 2), colour, face)
    axis.axvline(used(method), color="#adb5bd", linewidth=5, alpha=0.5, zorder=0)
    axis.set(title=name(method), xscale="log", xlabel=SEARCHED[method][0], ylim=(-3, 103), xlim=(values[0] / 2, values[-1] * 2))
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
    if method in LARGER_IS_FURTHER:
        axis.invert_xaxis()


def not_recorded(tried: Benchmark, pocket: Benchmark) -> str:
    """` Not recorded: FQL 3, 30.`, or nothing."""
    rows = []
    for method, (_, values) in SEARCHED.items():
        runs = [run for run in tried.runs if run.method == method] + in_use(pocket, method)
        there = {value_of(run.settings["config"], method) for run in runs}
        if missing := [f"{value:g}" for value in values if value not in there]:
            rows.append(f"{name(method)} {listed(missing)}")
    return f" Not recorded: {'; '.join(rows)}." if rows else ""


def scale(runs: Sequence[Run]) -> str:
    updates = listed(f"{n:,}" for n in sorted({run.updates for run in runs}))
    episodes = listed(sorted({len(run.last_episodes) for run in runs}))
    return f"Reduced scale: {len(runs)} runs of {updates} updates (paper 1,000,000), {episodes} episodes each.{datasets_of(runs)}"


def draw(tried: Benchmark, pocket: Benchmark) -> Figure:
    rings = {method: in_use(pocket, method) for method in SEARCHED}
    caption = [
        "To the right a method stays closer to the dataset. Discs: runs with seed 10, and with the seeds 0, 1, 2 that the benchmark had "
        "before; rings: the benchmark's present runs, seeds 0, 1, 2; grey: the value that it uses. Bars: 95 % intervals of a run's "
        "episodes, not over seeds. IFQL's candidates act in the policy alone: its discs are one trained agent. BC has no such setting; the "
        "Q-Transformer's weight is fixed at .5 in its loss." + not_recorded(tried, pocket),
        scale([*tried.runs, *sum(rings.values(), [])]),
    ]
    rows = -(-len(SEARCHED) // COLUMNS)
    title = f"Success by the one setting that says how far a method may leave the dataset, {short(POCKET_TASKS[0])}"
    figure, body = canvas(11, 0.5 + 2.6 * rows, title, caption)
    axes = body.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axis, method in zip(axes.flat, SEARCHED, strict=True):
        draw_method(axis, method, [run for run in tried.runs if run.method == method], rings[method])
    for row in axes:
        row[0].set_ylabel("success, %")
    return figure


def write(options: Options) -> None:
    tried, pocket = (read(PresetOptions(preset=preset, data=options.data)) for preset in ("search", "pocket"))
    with rc_context(STYLE):
        draw(tried, pocket).savefig(options.out, dpi=150)
    print(options.out)


if __name__ == "__main__":
    write(tyro.cli(Options, description=__doc__))
