"""Draws `table.png`, success of every method with every run visible, and writes `table.md`.

python figures/table.py
"""

from itertools import combinations
from pathlib import Path

import numpy as np
from draw import FIGURES, METHODS, PUBLISHED, canvas, save
from matplotlib.figure import Figure
from records import Record, pick, read
from success import TASKS
from success_statistics import (
    Scores,
    adjusted,
    difference,
    interval,
    iqm,
    mean_deviation,
    mean_score,
    permutation_p,
)

CAPTION = """cube-single-noisy, 18,000 updates, a dot a run; bars: means
ReBRAC's setting is badly tuned, see README.md"""

AVERAGES = {m: x for m, (x, _) in zip(PUBLISHED["table"]["methods"], PUBLISHED["table"]["overall"])}
"""By method, the paper's average over its 25 tasks, in percent."""
POINTS = 5
"""Two methods are compared if their published averages differ by more percentage points."""
LEVEL = 0.05


def scores(records: list[Record], method: str) -> Scores:
    """The success of every run in its last evaluation, one array per task."""
    of = lambda task: pick(records, label=method, task=task)
    return [np.array([run.last_success() for run in of(task)]) for task in TASKS]


def pairs(records: list[Record]) -> list[tuple[str, str, float, float, float]]:
    """Pairs that differ in the paper: the higher there, the lower, our difference in points, its p
    value, and that corrected for the number of pairs."""
    found = []
    for two in combinations(AVERAGES, 2):
        low, high = sorted(two, key=AVERAGES.get)
        if AVERAGES[high] - AVERAGES[low] > POINTS:
            x, y = scores(records, high), scores(records, low)
            found.append((high, low, float(100 * difference(x, y)), permutation_p(x, y)))
    corrected = adjusted([p for *_, p in found]).tolist()
    return [(*pair, q) for pair, q in zip(found, corrected)]


def markdown(records: list[Record]) -> str:
    """Every run, and every pair whose difference is not chance."""
    heads = "| method | " + " | ".join(f"{name}, every run" for name, _ in TASKS.values())
    lines = [heads + " | mean ± deviation | IQM, 95 % interval over runs |", "|---|" + "---|" * 4]
    for method, name in METHODS.items():
        x = scores(records, method)
        runs = " | ".join(", ".join(f"{100 * v:.0f}" for v in sorted(of, reverse=True)) for of in x)
        low, high = interval(iqm, x)
        mean = f"{100 * mean_score(x):.0f} ± {100 * mean_deviation(x):.0f}"
        middle = f"{100 * iqm(x):.0f}, {100 * low:.0f} to {100 * high:.0f}"
        lines.append(f"| {name} | {runs} | {mean} | {middle} |")
    lines += [
        "",
        "| higher in the paper | lower | ours, points | p | corrected p |",
        "|---|---|---|---|---|",
    ]
    for high, low, points, p, q in sorted(pairs(records), key=lambda pair: pair[-1]):
        if q <= LEVEL:
            lines.append(
                f"| {METHODS[high]} | {METHODS[low]} | {points:+.0f} | {p:.3f} | {q:.3f} |"
            )
    return "\n".join(lines) + "\n"


def draw(records: list[Record]) -> Figure:
    of = {method: scores(records, method) for method in METHODS}
    order = sorted(of, key=lambda method: mean_score(of[method]))
    figure = canvas(6.4, 5.2, CAPTION)
    axis = figure.subplots()
    for y, method in enumerate(order):
        mean = 100 * mean_score(of[method])
        axis.barh(y, mean, 0.7, color="#dee2e6")
        axis.text(108, y, f"{mean:.0f}", va="center", ha="right")
        for shift, (task, colour), values in zip((0.15, -0.15), TASKS.values(), of[method]):
            axis.plot(
                100 * values,
                [y + shift] * len(values),
                "o",
                color=colour,
                label=task if not y else "",
            )
        if method in AVERAGES:
            axis.plot(
                AVERAGES[method], y, "k|", markersize=14, label="" if y else "paper, 25 tasks"
            )
    axis.set_yticks(range(len(order)), [METHODS[method] for method in order])
    axis.set(title="Episodes solved, %", xlim=(-2, 109), xticks=range(0, 101, 20))
    axis.legend(loc="lower right", bbox_to_anchor=(0.93, 0), frameon=True)
    return figure


def write(records: list[Record], folder: Path = FIGURES) -> None:
    """The picture and the table."""
    save(draw(records), "table", folder)
    (folder / "table.md").write_text(markdown(records))


if __name__ == "__main__":
    write(read("pocket"))
