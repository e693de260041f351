"""Rebuilds `figures/success.png`: success of every method against updates and against wall time. `python figures/success.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from benchmark_records import COLOURS, Benchmark, Options, Run, left_out, name, save, scale_of, short
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from records import canvas, legend_below, listed

MARKERS = dict(zip(COLOURS, "osD^v<>PXooP", strict=True))


def mean_and_range(runs: Sequence[Run]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Updates at which every run was evaluated; mean, lowest and highest success over the runs, in percent."""
    steps = sorted(set.intersection(*({*run.curve} for run in runs)))
    values = 100 * np.array([[run.curve[step] for step in steps] for run in runs])
    return steps, values.mean(axis=0).tolist(), values.min(axis=0).tolist(), values.max(axis=0).tolist()


def draw_method(axes: Sequence[Axes], label: str, runs: Sequence[Run]) -> None:
    """Against updates, and against the runs' mean wall time after that many updates."""
    steps, means, low, high = mean_and_range(runs)
    minutes = [float(np.mean([run.minutes(step) for run in runs])) for step in steps]
    colour, thick = COLOURS.get(label, "black"), label.startswith("tql")
    line = dict(color=colour, marker=MARKERS.get(label, "o"), markersize=4, linewidth=2.4 if thick else 1.3, zorder=3 if thick else 2)
    for axis, x in zip(axes, (steps, minutes)):
        axis.plot(x, means, label=name(label), **line)
        axis.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)


def fastest_and_slowest(benchmark: Benchmark) -> str:
    """Seconds per 1,000 updates, mean over the runs of a method, from least to most."""
    of: dict[str, list[float]] = {}
    for run in benchmark.plain:
        of.setdefault(run.label, []).append(1000 * run.settings["training_seconds"] / run.updates)
    costs = {label: float(np.mean(seconds)) for label, seconds in of.items()}
    return listed(f"{name(label)} {costs[label]:.1f}" for label in sorted(costs, key=costs.get))


def draw(benchmark: Benchmark) -> Figure:
    tasks = benchmark.tasks
    if not tasks:
        raise SystemExit(f"preset {benchmark.preset} has no finished run without a size.{left_out(benchmark)}")
    caption = [
        "Lines: mean over seeds at the evaluations that all runs of a method have; bands: from the lowest seed to the highest. Wall time: "
        "that of the updates, without evaluations, in proportion to them; mean over seeds. The machine was shared with other work, so "
        "times are upper bounds, and a difference of a third between two of them is nothing.",
        f"Seconds per 1,000 updates: {fastest_and_slowest(benchmark)}.",
        scale_of(benchmark, benchmark.plain),
    ]
    figure, body = canvas(11, 0.9 + 3.4 * len(tasks), f"Success while learning, reduced scale, preset {benchmark.preset}", caption)
    axes = body.subplots(len(tasks), 2, squeeze=False, sharex="col", sharey=True)
    for row, task in zip(axes, tasks):
        for label in (method for method in benchmark.methods() if benchmark.of(label=method, task=task)):
            draw_method(row, label, benchmark.of(label=label, task=task))
        row[0].set(title=short(task), ylabel="success, %", xlabel="updates", ylim=(-3, 103))
        row[1].set(title=f"{short(task)}, wall time", xlabel="minutes of training (logarithmic)", xscale="log")
        row[1].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        row[1].xaxis.set_minor_formatter(NullFormatter())
        row[1].xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g}"))
        missing = [name(method) for method in benchmark.methods() if not benchmark.of(label=method, task=task)]
        if missing:
            row[0].text(0.02, 0.97, f"missing: {listed(missing)}", transform=row[0].transAxes, va="top", fontsize=8.5, color="#b3261e")
    legend_below(body, columns=6)
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "success")
