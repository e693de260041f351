"""Draws `search.png`: success by the one setting that says how far a method may leave the dataset.

python figures/search.py
"""

from functools import reduce

from draw import METHODS, canvas, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from presets import POCKET_TASKS, SEARCHED
from records import Record, pick, read

CAPTION = """task 3, 50 episodes a run; discs: search, seed 10 (or 0, 1, 2)
rings on grey: the benchmark's runs; ReBRAC works at .04 to .07 only"""


def value_of(record: Record) -> float:
    """The searched setting of a run's method."""
    return reduce(dict.__getitem__, SEARCHED[record.method][0].split("."), record.config)


def draw_method(axis: Axes, method: str, tried: list[Record], used: list[Record]) -> None:
    """Discs for the runs of the search, rings for those of the benchmark."""
    for runs, face, aside in ((tried, "#1c5fb0", 0.94), (used, "white", 1.06)):
        solved = [100 * run.last_success() for run in runs]
        values = [aside * value_of(run) for run in runs]
        axis.plot(values, solved, "o", color="#1c5fb0", markerfacecolor=face)
    axis.axvline(value_of(used[0]), color="#ced4da", linewidth=7, zorder=0)
    setting, values = SEARCHED[method]
    axis.set(xscale="log", ylim=(-6, 106), xlim=(min(values) / 1.8, max(values) * 1.8))
    axis.set_title(f"{METHODS[method]}: {setting.removeprefix('actor.')}")
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()


def draw(search: list[Record], pocket: list[Record]) -> Figure:
    figure = canvas(6.4, 8, CAPTION)
    axes = figure.subplots(4, 2, sharey=True)
    for axis, method in zip(axes.flat, SEARCHED, strict=True):
        used = pick(pocket, label=method, task=POCKET_TASKS[0])
        draw_method(axis, method, pick(search, method=method), used)
    figure.supylabel("episodes solved, %", fontsize=12)
    return figure


if __name__ == "__main__":
    save(draw(read("search"), read("pocket")), "search")
