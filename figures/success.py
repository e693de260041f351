"""Draws `success.png`: success of every method while it learns, one panel a method.

python figures/success.py
"""

from draw import METHODS, canvas, curves, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """updates, in thousands; cube-single-noisy, thin: seeds 0, 1, 2
most methods still improve when the updates end"""

TASKS = {
    "cube-single-noisy-singletask-task2-v0": ("task 2", "#e69500"),
    "cube-single-noisy-singletask-task3-v0": ("task 3", "#1c5fb0"),
}


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 5.8, CAPTION)
    axes = figure.subplots(3, 4, sharex=True, sharey=True)
    for axis, (method, name) in zip(axes.flat, METHODS.items(), strict=True):
        for task, (label, colour) in TASKS.items():
            found = [run.success() for run in pick(records, label=method, task=task)]
            runs = [([s / 1000 for s in of], [100 * x for x in of.values()]) for of in found]
            curves(axis, runs, colour, label)
        axis.set(title=name, ylim=(-4, 104), xticks=(6, 12, 18), yticks=(0, 50, 100))
    axes[0, 0].legend(loc="upper left", handlelength=1)
    figure.supylabel("episodes solved, %", fontsize=12)
    return figure


if __name__ == "__main__":
    save(draw(read("pocket")), "success")
