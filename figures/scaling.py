"""Rebuilds `figures/scaling.png`: success of growing critics, published and ours. `python figures/scaling.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from benchmark_records import (
    COLOURS,
    RULE,
    STYLE,
    Benchmark,
    Options,
    Run,
    decide,
    name,
    picture_path,
    read,
    recorded_both,
    scale_of,
    short,
)
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import CITED, PUBLISHED, canvas, draw_points, legend_below, listed

from tql import statistics

SUCCESS, CHANGES = PUBLISHED["success_by_size"], PUBLISHED["success_change_by_size"]
KEYS = {"tql": "tql", "tql-none": "none", "fql": "fql", "floq": "floq", "pac": "pac"}
"""The methods of the paper's comparison of sizes, and their names in published.json."""
MILLIONS = [float(size.removesuffix("M")) for size in PUBLISHED["sizes"]]


def sized(benchmark: Benchmark | None, method: str) -> list[Run]:
    """Runs of a method at given sizes, the folders METHOD@SIZE; with them those of its usual size, where records count parameters."""
    runs = [run for run in benchmark.runs if run.method == method] if benchmark else []
    given = [run for run in runs if run.size]
    return given + [run for run in runs if given and not run.size and run.critic_parameters]


def place(runs: Sequence[Run]) -> float:
    """Millions of critic parameters, mean over the runs of a size; the number of the size where a record does not count them."""
    parameters = [run.critic_parameters for run in runs]
    return float(np.mean(parameters)) / 1e6 if all(parameters) else float(runs[0].size)


def labels_by_size(benchmark: Benchmark | None, method: str) -> list[str]:
    """`tql@32`, `tql@64`, ... from the smallest critic to the largest."""
    labels = {run.label for run in sized(benchmark, method)}
    return sorted(labels, key=lambda label: place(benchmark.of(label=label)))


def tasks_of(benchmark: Benchmark, labels: Sequence[str]) -> list[str]:
    """Those on which every size was run: only they can be compared."""
    return sorted(set.intersection(*({run.task for run in benchmark.of(label=label)} for label in labels))) if labels else []


def compared(benchmark: Benchmark | None, method: str) -> list[Run]:
    """The runs of a method that are drawn: those on the tasks on which every size was run."""
    tasks = tasks_of(benchmark, labels_by_size(benchmark, method))
    return [run for run in sized(benchmark, method) if run.task in tasks]


def relative_change(first: float, last: float) -> str:
    return f"{100 * (last / first - 1):+.1f} %" if first > 0 else "no relative change from 0 %"


def judge_method(benchmark: Benchmark, method: str) -> str:
    """Smallest against largest: `TQL 40 % to 60 % (+50.0 %, reproduced)`."""
    labels = labels_by_size(benchmark, method)
    if len(labels) < 2:
        return f"{name(method)} {'at one size only' if labels else 'not recorded at several sizes'}"
    tasks = tasks_of(benchmark, labels)
    if not tasks:
        return f"{name(method)} not recorded at several sizes on one task"
    small, large = recorded_both(*(benchmark.scores(label, tasks) for label in (labels[0], labels[-1])))
    first, last = 100 * statistics.mean_score(small), 100 * statistics.mean_score(large)
    sign = 1 if SUCCESS["relative_change_percent"][KEYS[method]] > 0 else -1
    said = decide(large, small, sign)
    return f"{name(method)} {first:.0f} % to {last:.0f} % ({relative_change(first, last)}: {said})"


def judge(benchmark: Benchmark | None) -> str:
    if not any(len(labels_by_size(benchmark, method)) > 1 for method in KEYS):
        return "Ours is NOT RECORDED: no method was run at several sizes. Nothing here agrees with the paper or differs from it."
    return (
        f"Ours, from the smallest critic to the largest: {'; '.join(judge_method(benchmark, method) for method in KEYS)}. Rule: reproduced "
        f"means {RULE} for largest minus smallest, with the sign of the published change; contradicted, with the other sign. 3 "
        "runs against 3 of a single task cannot get below p = .1, whatever they are."
    )


def draw_published(axis: Axes) -> None:
    """Averages over 25 tasks with their relative change at the right, moved apart where they would touch."""
    ends = {method: SUCCESS[key][-1][0] for method, key in KEYS.items()}
    heights, below = {}, -np.inf
    for method in sorted(ends, key=ends.get):
        heights[method] = below = max(ends[method], below + 1.3)
    for method, key in KEYS.items():
        means, colour = [mean for mean, _ in SUCCESS[key]], COLOURS[method]
        axis.plot(MILLIONS, means, "--", marker="o", markersize=4, color=colour, linewidth=1.6)
        change = SUCCESS["relative_change_percent"][key]
        axis.text(MILLIONS[-1] * 1.2, heights[method], f"{name(method)} {change:+.1f} %", color=colour, va="center", fontsize=9)
    axis.set(title=f"{CITED}: 25 tasks, 1,000,000 updates", ylabel="success, %", xlabel="critic parameters, millions", xscale="log")
    axis.set_xticks(MILLIONS, [f"{size:g}" for size in MILLIONS])
    axis.set_xlim(0.3, 180)
    axis.set_ylim(15, 45)
    axis.minorticks_off()


def of_seeds(benchmark: Benchmark, label: str, tasks: Sequence[str]) -> list[float]:
    """Success of every seed, in percent, mean over those of these tasks that it was run on."""
    x = benchmark.scores(label, tasks)
    return (100 * np.nanmean(x[~np.isnan(x).all(axis=1)], axis=1)).tolist()


def draw_ours(axis: Axes, benchmark: Benchmark | None) -> None:
    tasks_drawn = sorted({short(run.task) for method in KEYS for run in compared(benchmark, method)})
    said = listed(tasks_drawn) if len(tasks_drawn) < 3 else f"{len(tasks_drawn)} tasks"
    axis.set(title=f"ours, reduced scale\n{said}".strip(), ylabel="success, %", ylim=(-3, 103))
    places: list[float] = []
    for method in KEYS:
        labels = labels_by_size(benchmark, method)
        if tasks := tasks_of(benchmark, labels):
            x = [place(benchmark.of(label=label)) for label in labels]
            draw_points(axis, x, [of_seeds(benchmark, label, tasks) for label in labels], COLOURS[method], name(method))
            places += x
    if places:
        counted = all(run.critic_parameters for method in KEYS for run in sized(benchmark, method))
        axis.set(xscale="log", xlabel="critic parameters, millions" if counted else "size, the number in the run's name")
        ticks = [m * 10.0**e for e in range(-3, 5) for m in (1, 3) if min(places) / 1.2 < m * 10.0**e < 1.2 * max(places)]
        axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
        axis.minorticks_off()
    else:
        axis.set_xticks([])
        axis.text(0.5, 0.5, "not recorded:\nno runs at several sizes", transform=axis.transAxes, ha="center", va="center", fontsize=12)


def about_ours(benchmark: Benchmark | None) -> list[str]:
    """Scale and tasks of the runs that are drawn, if there are any."""
    runs = [run for method in KEYS for run in compared(benchmark, method)]
    points = (
        " Points: every seed, mean over the tasks on which all sizes of its method were run; lines: their mean. Parameters of ours are "
        "those of all members of a critic together (two of FQL and of floq, two heads of TQL)."
    )
    return [scale_of(benchmark, runs) + points] if runs else []


def about_published() -> str:
    """Averages hide that domains differ."""
    ends = {domain: [CHANGES[domain][method][-1] for method in ("none", "tql")] for domain in ("cube-double", "puzzle-4x4")}
    parts = [f"on {domain} {none:+.0f} without control, {tql:+.0f} with TQL" for domain, (none, tql) in ends.items()]
    return (
        "Published: averages at 0.4, 1, 7 and 26 million parameters of one critic (FQL and floq train two), with the relative change from "
        f"the smallest to the largest. Domains differ, in points from 0.4 M to 26 M: {'; '.join(parts)}."
    )


def draw(benchmark: Benchmark | None) -> Figure:
    caption = [judge(benchmark), about_published(), *about_ours(benchmark)]
    figure, body = canvas(11, 4.6, "Success of growing critics, published and at reduced scale", caption)
    axes = body.subplots(1, 2)
    draw_published(axes[0])
    draw_ours(axes[1], benchmark)
    if axes[1].lines:
        legend_below(body)
    return figure


def write(options: Options) -> None:
    """Unlike the others, this picture has something to show, and to say, without any record."""
    there = any(options.data.rglob("config.json"))
    benchmark = read(options) if there else None
    out = picture_path(options, "scaling")
    with rc_context(STYLE):
        draw(benchmark).savefig(out, dpi=150)
    print(out)


if __name__ == "__main__":
    write(tyro.cli(Options, description=__doc__))
