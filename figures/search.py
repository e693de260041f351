"""Rebuilds `figures/search.png`: how success depends on the one weight that ties a method to the dataset. `python figures/search.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import tyro
from benchmark_records import COLOURS, Benchmark, Options, Run, name, save, scale_of, short
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import canvas, listed

from tql.benchmark_presets import POCKET_TASKS, SEARCHED, settings
from tql.evaluate import wilson

COLUMNS = 4


def used(method: str) -> float:
    """The value of the `pocket` settings."""
    value = settings(method, "pocket", POCKET_TASKS[0], 0)
    for part in SEARCHED[method][0].split("."):
        value = getattr(value, part)
    return value


def draw_method(axis: Axes, method: str, runs: Sequence[Run]) -> None:
    """Solved episodes of the last evaluation, one run per value, with Wilson's interval; a line at the value that `pocket` uses."""
    for run in sorted(runs, key=lambda run: float(run.size)):
        solved, n = sum(run.last_episodes), len(run.last_episodes)
        low, high = wilson(solved, n)
        axis.plot([float(run.size)] * 2, [100 * low, 100 * high], color=COLOURS[method], linewidth=1)
        axis.plot(float(run.size), 100 * solved / n, "o", color=COLOURS[method], markersize=6)
    values = SEARCHED[method][1]
    axis.axvline(used(method), color="black", linewidth=0.8, linestyle=":")
    axis.set(title=name(method), xscale="log", xlabel=SEARCHED[method][0], ylim=(-3, 103), xlim=(values[0] / 2, values[-1] * 2))
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()


def not_recorded(of: Mapping[str, Sequence[Run]]) -> str:
    """` Not recorded: FQL 3, 30.`, or nothing."""
    there = {method: {run.size for run in runs} for method, runs in of.items()}
    missing = {method: [f"{x:g}" for x in SEARCHED[method][1] if f"{x:g}" not in sizes] for method, sizes in there.items()}
    rows = [f"{name(method)} {listed(values)}" for method, values in missing.items() if values]
    return f" Not recorded: {'; '.join(rows)}." if rows else ""


def draw(benchmark: Benchmark) -> Figure:
    of = {method: [run for run in benchmark.runs if run.method == method] for method in SEARCHED}
    caption = [
        "Points: one run each; bars: 95 % intervals of its episodes (not over seeds). Dotted: the value that pocket uses. The "
        "rule: the value set at first is kept unless another solves at least 10 episodes of 50 more. BC has no such weight; that of the "
        "Q-Transformer is a constant." + not_recorded(of),
        scale_of(benchmark, benchmark.runs),
    ]
    title = f"Success against the weight that holds a method to the dataset, {short(POCKET_TASKS[0])}"
    rows = -(-len(SEARCHED) // COLUMNS)
    figure, body = canvas(11, 0.5 + 2.6 * rows, title, caption)
    axes = body.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axis, method in zip(axes.flat, SEARCHED, strict=True):
        draw_method(axis, method, of[method])
    for row in axes:
        row[0].set_ylabel("success, %")
    return figure


if __name__ == "__main__":
    save(draw, replace(tyro.cli(Options, description=__doc__), preset="search"), "search")
