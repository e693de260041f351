"""Rebuilds `figures/search.png`: how success depends on the one weight that ties a method to the dataset. `python figures/search.py`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import reduce

import tyro
from benchmark_records import COLOURS, STYLE, Benchmark, Options, Run, name, read, short
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import FIGURES, canvas, datasets_of, listed

from tql.benchmark_presets import POCKET_TASKS, SEARCHED, settings
from tql.evaluate import wilson

COLUMNS = 4


def value_in(config: dict, method: str) -> float:
    """The weight's value in a run's recorded settings."""
    return reduce(dict.__getitem__, SEARCHED[method][0].split("."), config)


def used(method: str) -> float:
    """The value of the `pocket` settings."""
    return value_in(asdict(settings(method, "pocket", POCKET_TASKS[0], 0)), method)


def draw_run(axis: Axes, value: float, run: Run, colour: str, face: str) -> None:
    """Solved episodes of the last evaluation, with Wilson's interval."""
    solved, n = sum(run.last_episodes), len(run.last_episodes)
    low, high = wilson(solved, n)
    axis.plot([value] * 2, [100 * low, 100 * high], color=colour, linewidth=1)
    axis.plot(value, 100 * solved / n, "o", color=colour, markerfacecolor=face, markersize=6)


def draw_method(axis: Axes, method: str, tried: Sequence[Run], in_use: Sequence[Run]) -> None:
    """Every run that was tried; at the value that `pocket` uses, the benchmark's own as rings."""
    for run in tried:
        draw_run(axis, float(run.size), run, COLOURS[method], COLOURS[method])
    for run in in_use:
        draw_run(axis, used(method), run, COLOURS[method], "white")
    values = SEARCHED[method][1]
    axis.axvline(used(method), color="black", linewidth=0.8, linestyle=":")
    axis.set(title=name(method), xscale="log", xlabel=SEARCHED[method][0], ylim=(-3, 103), xlim=(values[0] / 2, values[-1] * 2))
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()


def not_recorded(tried: Benchmark, pocket: Benchmark) -> str:
    """` Not recorded: FQL 3, 30.`, or nothing."""
    there = {method: {run.size for run in tried.runs if run.method == method} for method in SEARCHED}
    there = {method: sizes | ({f"{used(method):g}"} if in_use(pocket, method) else set()) for method, sizes in there.items()}
    missing = {method: [f"{x:g}" for x in SEARCHED[method][1] if f"{x:g}" not in sizes] for method, sizes in there.items()}
    rows = [f"{name(method)} {listed(values)}" for method, values in missing.items() if values]
    return f" Not recorded: {'; '.join(rows)}." if rows else ""


def in_use(pocket: Benchmark, method: str) -> list[Run]:
    """The benchmark's runs on that task, without those of a value that it used before."""
    return [run for run in pocket.of(label=method, task=POCKET_TASKS[0]) if value_in(run.settings["config"], method) == used(method)]


def scale(tried: Benchmark) -> str:
    updates, seeds = (listed(sorted({getattr(run, of) for run in tried.runs})) for of in ("updates", "seed"))
    episodes = listed(sorted({len(run.last_episodes) for run in tried.runs}))
    return f"Reduced scale: {len(tried.runs)} runs of {updates} updates, seeds {seeds}, {episodes} episodes each.{datasets_of(tried.runs)}"


def draw(tried: Benchmark, pocket: Benchmark) -> Figure:
    caption = [
        "Discs: one run each of other seeds than the benchmark's, and of settings no longer used; rings at the dotted line: its own "
        "runs. Bars: 95 % intervals of a run's episodes (not over seeds). The rule: the first value is kept unless another solves at "
        "least 10 episodes of 50 more than its runs on average. BC has no such weight; that of the Q-Transformer is a constant."
        + not_recorded(tried, pocket),
        scale(tried),
    ]
    title = f"Success against the weight that holds a method to the dataset, {short(POCKET_TASKS[0])}"
    rows = -(-len(SEARCHED) // COLUMNS)
    figure, body = canvas(11, 0.5 + 2.6 * rows, title, caption)
    axes = body.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axis, method in zip(axes.flat, SEARCHED, strict=True):
        draw_method(axis, method, [run for run in tried.runs if run.method == method], in_use(pocket, method))
    for row in axes:
        row[0].set_ylabel("success, %")
    return figure


def write(options: Options) -> None:
    """From the records of two presets: what was tried, and what is in use."""
    tried, pocket = read(replace(options, preset="search")), read(replace(options, preset="pocket"))
    out = options.out or FIGURES / "search.png"
    with rc_context(STYLE):
        draw(tried, pocket).savefig(out, dpi=150)
    print(out)


if __name__ == "__main__":
    write(tyro.cli(Options, description=__doc__))
