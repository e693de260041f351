"""Rebuilds the table of methods, `figures/table.png`, `.md` and `.csv`: success by task, ours and published. `python figures/table.py`."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import tyro
from benchmark_records import (
    METHODS,
    RIVALS,
    RULE,
    STYLE,
    Benchmark,
    Options,
    decide,
    domain_of,
    interval,
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
from records import CITED, PUBLISHED, canvas, listed

from tql import statistics
from tql.evaluate import wilson

TABLE = PUBLISHED["table"]
POINTS = 5
"""Percentage points by which two published overall averages must differ for their order to be asked about."""
BOLD = 0.95
"""Bold, as in the paper: at least this part of the row's best."""


@dataclass(frozen=True)
class Cell:
    """Success in percent: mean and deviation over seeds; the deviation is NaN for a single seed."""

    mean: float
    deviation: float
    seeds: int | None
    """None for a published number."""


@dataclass(frozen=True)
class Row:
    """One line of the table. A method without a cell is missing."""

    kind: str
    """task, domain, overall, or the same with `published ` before it."""
    title: str
    cells: Mapping[str, Cell]
    tasks: tuple[str, ...]

    @property
    def is_published(self) -> bool:
        return self.kind.startswith("published")

    def is_bold(self, method: str) -> bool:
        """At least 95 % of the row's best; nothing is bold where nothing was solved."""
        best = max(cell.mean for cell in self.cells.values())
        return best > 0 and self.cells[method].mean >= BOLD * best - 1e-9


def ours(benchmark: Benchmark, kind: str, title: str, tasks: Sequence[str]) -> Row:
    """Averages over these tasks, for the methods that were run on all of them."""
    cells = {}
    for method in benchmark.methods():
        x = benchmark.scores(method, tasks)
        if not np.isnan(x).all(axis=0).any():
            mean, deviation = 100 * statistics.mean_score(x), 100 * statistics.mean_deviation(x)
            cells[method] = Cell(float(mean), deviation, int(statistics.counts(x).min()))
    return Row(kind, title, cells, tuple(tasks))


def published(kind: str, title: str, numbers: Sequence[Sequence[float]]) -> Row:
    return Row(f"published {kind}", title, {method: Cell(*pair, None) for method, pair in zip(TABLE["methods"], numbers)}, ())


def rows_of(benchmark: Benchmark) -> list[Row]:
    """Tasks by domain, the average of each domain, the overall average; under each of them what is published of the same tasks."""
    tasks, rows = benchmark.tasks, []
    for domain in dict.fromkeys(map(domain_of, tasks)):
        of_domain = [task for task in tasks if domain_of(task) == domain]
        for task in of_domain:
            rows.append(ours(benchmark, "task", short(task), [task]))
            if task in TABLE["tasks"]:
                rows.append(published("task", "published, same task", TABLE["tasks"][task]))
        if len(of_domain) > 1:
            rows.append(ours(benchmark, "domain", f"{domain}, average of {len(of_domain)}", of_domain))
            if domain in TABLE["domains"] and {task for task in TABLE["tasks"] if domain_of(task) == domain} == {*of_domain}:
                rows.append(published("domain", "published, same 5 tasks", TABLE["domains"][domain]))
    if len({domain_of(task) for task in tasks}) > 1:
        rows.append(ours(benchmark, "overall", f"average of {len(tasks)} tasks", tasks))
    same = {*tasks} & TABLE["tasks"].keys()
    which = "25 OTHER tasks" if not same else "same 25 tasks" if len(same) == len(tasks) == 25 else f"25 tasks, {len(same)} of ours"
    return [*rows, published("overall", f"published, {which}", TABLE["overall"])]


# ---- what the numbers say --------------------------------------------------------------------------------------------------------


def percent(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "[no interval: a single seed]"
    return f"[{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]" if ends[0] < ends[1] else "[no interval: runs without spread]"


NARROW = "Intervals in brackets are bootstrap intervals, seeds resampled within each task: with 3 seeds too narrow."


def about_iqm(benchmark: Benchmark) -> str:
    """Interquartile mean of every method that was run on all tasks, the highest first."""
    of = {method: benchmark.scores(method, benchmark.tasks) for method in benchmark.methods()}
    of = {method: x for method, x in of.items() if not np.isnan(x).all(axis=0).any()}
    means = {method: float(statistics.iqm(x)) for method, x in of.items()}
    if all(statistics.counts(x).sum() < 4 for x in of.values()):
        return "Interquartile mean over seeds and tasks: of fewer than 4 runs it is the plain mean, in the cells above."
    order = sorted(means, key=means.get, reverse=True)
    ends = {method: interval(statistics.iqm, of[method]) for method in order}
    without = [name(method) for method in benchmark.methods() if method not in of]
    missing = f" Missing on some task: {listed(without)}." if without else ""
    if not any(ends.values()):
        parts = [f"{name(method)} {100 * means[method]:.0f}" for method in order]
        return f"Interquartile mean over all seeds and tasks, %; no intervals, for some task has a single seed: {listed(parts)}.{missing}"
    parts = [f"{name(method)} {100 * means[method]:.0f} {percent(ends[method])}" for method in order]
    return f"Interquartile mean over all seeds and tasks, % with 95 % interval: {listed(parts) or 'none'}. {NARROW}{missing}"


def strongest_rival(benchmark: Benchmark) -> str | None:
    """The rival with the highest mean over TQL's tasks, of those that were run on all of them."""
    tasks = [task for task in benchmark.tasks if benchmark.of(label="tql", task=task)]
    of = {method: benchmark.scores(method, tasks) for method in RIVALS} if tasks else {}
    means = {method: statistics.mean_score(x) for method, x in of.items() if not np.isnan(x).all(axis=0).any()}
    return max(means, key=means.get) if means else None


def improvement_over(benchmark: Benchmark, other: str) -> str:
    """`one of PAC, mean over 1 task: 28 % [0, 78]`; empty if TQL and the other were not run on a common task."""
    x, y = recorded_both(*(benchmark.scores(method, benchmark.tasks) for method in ("tql", other)))
    if not x.shape[1]:
        return ""
    ends = interval(statistics.improvement, x, y)
    tasks = f"{x.shape[1]} task{'s' * (x.shape[1] > 1)}"
    return f"one of {name(other)}, mean over {tasks}: {100 * statistics.improvement(x, y):.0f} % {percent(ends)}"


def about_improvement(benchmark: Benchmark) -> str:
    rival = strongest_rival(benchmark)
    if rival is None:
        return "Probability of improvement: TQL and a rival have not been run on the same tasks yet."
    without = improvement_over(benchmark, "tql-none")
    return (
        f"Probability that a run of TQL beats {improvement_over(benchmark, rival)}. {name(rival)} is the rival with the highest mean in "
        f"these same data: choosing it there favours it.{' That it beats ' + without + '.' if without else ''}"
    )


def rankings(benchmark: Benchmark) -> dict[str, list[tuple[str, str]]]:
    """Pairs (higher, lower) of the published overall averages more than `POINTS` apart, by what our runs say of them."""
    found = {"reproduced": [], "contradicted": [], "undecided": [], "not recorded": []}
    average = dict(zip(TABLE["methods"], (mean for mean, _ in TABLE["overall"])))
    for pair in combinations(METHODS, 2):
        high, low = sorted(pair, key=average.get, reverse=True)
        if average[high] - average[low] > POINTS:
            x, y = recorded_both(*(benchmark.scores(method, benchmark.tasks) for method in (high, low)))
            said = decide(x, y, 1) if x.shape[1] else "not recorded"
            found[said].append((high, low))
    return {said: sorted(pairs, key=lambda pair: -average[pair[0]]) for said, pairs in found.items()}


def grouped(pairs: Sequence[tuple[str, str]]) -> str:
    """`TQL > BC, IQL; FQL > BC`."""
    below: dict[str, list[str]] = {}
    for high, low in pairs:
        below.setdefault(name(high), []).append(name(low))
    return "; ".join(f"{high} > {listed(lows)}" for high, lows in below.items())


def about_rankings(benchmark: Benchmark) -> str:
    found = rankings(benchmark)
    counted = ", ".join(f"{len(pairs)} {said}" for said, pairs in found.items())
    parts = [f"{said.capitalize()}: {grouped(pairs) or 'none'}." for said, pairs in found.items() if pairs or said == "contradicted"]
    return (
        f"The paper's order of methods, for the {sum(map(len, found.values()))} pairs whose overall averages lie more than {POINTS} points "
        f"apart there: {counted}. {' '.join(parts)} Rule: {RULE}, with the paper's sign or with the other, on the tasks that both were run "
        "on (one with a single seed is left out, unless there is no other); else undecided. Of pairs of equal methods it decides at most "
        "one in twenty, and none with 3 seeds on one task, where p is at least .1; there is no correction for the number of pairs. "
        "Updates, sizes and most tasks are not the paper's: a contradiction is one at this scale."
    )


def about_cells(benchmark: Benchmark) -> str:
    seeds = most_seeds(benchmark)
    return (
        f"Cells: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)} (divided by n - 1), in percent; averages: means of means "
        "and of deviations, as in the paper. (n): n seeds only. missing: no finished run, or not on all tasks of an average. Bold: at "
        f"least 95 % of the row's best. Grey: {CITED}, after 1,000,000 updates, TQL with 26 M parameters; BC to FQL there are very "
        "probably other papers' runs. 'no control': TQL's transformer without control of its entropy. 'Q-T, bound': the Q-Transformer "
        "without the published code's flaw (its lower bound takes cuts in time for success). PAC and TQL have the stronger form of FQL's "
        "actor (layer norm, AdamW, a schedule), FQL and floq the plain one: part of a difference between them may be the actor's."
    )


def most_seeds(benchmark: Benchmark) -> int:
    return len({run.seed for run in benchmark.plain})


def paragraphs(benchmark: Benchmark) -> list[str]:
    return [
        about_rankings(benchmark),
        about_improvement(benchmark),
        about_iqm(benchmark),
        scale_of(benchmark, benchmark.plain),
        about_cells(benchmark),
    ]


# ---- the three forms -------------------------------------------------------------------------------------------------------------


def text_of(cell: Cell | None, most: int) -> str:
    """`72 ± 5`, `72 (1)` for one seed of several, `missing`."""
    if cell is None:
        return "missing"
    deviation = "" if np.isnan(cell.deviation) else f" ± {cell.deviation:.0f}"
    fewer = f" ({cell.seeds})" if cell.seeds is not None and cell.seeds < most else ""
    return f"{cell.mean:.0f}{deviation}{fewer}"


def columns(row: Row, benchmark: Benchmark) -> list[tuple[str, bool]]:
    """Text of every method's cell, and whether it is bold. What is not published at all stays empty."""
    texts = []
    for method in benchmark.methods():
        cell = row.cells.get(method)
        empty = row.is_published and cell is None
        texts.append(("" if empty else text_of(cell, most_seeds(benchmark)), cell is not None and row.is_bold(method)))
    return texts


def markdown(benchmark: Benchmark) -> str:
    methods = benchmark.methods()
    lines = ["| success, % | " + " | ".join(map(name, methods)) + " |", "|---" + "|---:" * len(methods) + "|"]
    for row in rows_of(benchmark):
        cells = [f"**{text}**" if bold else text for text, bold in columns(row, benchmark)]
        title = f"*{row.title}*" if row.is_published else row.title
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{paragraph}\n" for paragraph in paragraphs(benchmark))])


HEADER = (
    *("kind", "title", "method", "seeds", "mean_percent", "deviation_percent", "bold"),
    *("solved", "episodes", "wilson_low_percent", "wilson_high_percent"),
)


def csv_text(benchmark: Benchmark) -> str:
    """One line per row and method; empty numbers where a run is missing. Wilson's interval takes all seeds' last episodes as one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for row in rows_of(benchmark):
        for method in METHODS if row.is_published else benchmark.methods():
            cell = row.cells.get(method)
            if cell is None:
                writer.writerow([row.kind, row.title, method, 0, *[""] * (len(HEADER) - 4)])
                continue
            deviation = "" if np.isnan(cell.deviation) else f"{cell.deviation:.2f}"
            numbers = [row.kind, row.title, method, cell.seeds or "", f"{cell.mean:.2f}", deviation, int(row.is_bold(method))]
            writer.writerow(numbers + pooled(benchmark, row, method))
    return out.getvalue()


def pooled(benchmark: Benchmark, row: Row, method: str) -> list:
    """Solved and all episodes of the last evaluations of a task, with Wilson's interval; empty for averages, also those of several
    evaluations: a policy's episodes at three updates are no independent draws."""
    if row.kind != "task" or benchmark.last > 1:
        return [""] * 4
    solved = [success for run in benchmark.of(label=method, task=row.tasks[0]) for success in run.last_episodes]
    low, high = wilson(sum(solved), len(solved))
    return [sum(solved), len(solved), f"{100 * low:.2f}", f"{100 * high:.2f}"]


def draw_rows(axis: Axes, rows: Sequence[Row], benchmark: Benchmark) -> None:
    """Every cell a text; averages on a shaded line."""
    methods = benchmark.methods()
    axis.set(xlim=(-2.9, len(methods) - 0.45), ylim=(len(rows) - 0.4, -1.6))
    axis.set_axis_off()
    for column, method in enumerate(methods):
        axis.text(column, -1, name(method), ha="center", va="center", fontsize=9.5, weight="bold" if method == "tql" else "normal")
    axis.axhline(-0.5, color="black", linewidth=0.9)
    for y, row in enumerate(rows):
        colour = "#7a7a7a" if row.is_published else "black"
        if row.kind in ("domain", "overall"):
            axis.axhspan(y - 0.5, y + 0.5, color="#e9eef5", linewidth=0)
        if y and not row.is_published:
            axis.axhline(y - 0.5, color="#c9c9c9", linewidth=0.6)
        axis.text(-2.85, y, row.title, va="center", fontsize=9, color=colour, style="italic" if row.is_published else "normal")
        for column, (text, bold) in enumerate(columns(row, benchmark)):
            faint = text == "missing"
            style = dict(color="#b3261e" if faint else colour, weight="bold" if bold else "normal", style="italic" if faint else "normal")
            axis.text(column, y, text, ha="center", va="center", fontsize=8 if faint else 9, **style)
    axis.axhline(len(rows) - 0.5, color="black", linewidth=0.9)


def draw(benchmark: Benchmark) -> Figure:
    rows = rows_of(benchmark)
    title = f"Success of {len(benchmark.methods())} methods at reduced scale, preset {benchmark.preset}, %"
    figure, body = canvas(13, 0.9 + 0.27 * (len(rows) + 2), title, paragraphs(benchmark))
    draw_rows(body.subplots(), rows, benchmark)
    return figure


def write(options: Options) -> Path:
    """The picture, and beside it the same as Markdown and as comma-separated values; prints and returns the picture's path."""
    benchmark = read(options)
    if not benchmark.plain:
        raise SystemExit(f"preset {benchmark.preset} has no finished run without a size.")
    out = picture_path(options, "table")
    with rc_context(STYLE):
        draw(benchmark).savefig(out, dpi=150)
    out.with_suffix(".md").write_text(markdown(benchmark))
    out.with_suffix(".csv").write_text(csv_text(benchmark))
    print(out)
    return out


if __name__ == "__main__":
    write(tyro.cli(Options, description=__doc__))
