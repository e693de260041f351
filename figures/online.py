"""Draws `online.png`: success and entropy of agents that go on in the environment, with resets and
without.

python figures/online.py
"""

from collections.abc import Callable, Sequence

import numpy as np
from draw import COLOURS, CONTROLS, canvas, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """thousands of environment steps; cube-single-noisy task 3, thin: runs
dashed: the critic is reset where the dotted lines are"""

RATIOS = {1: "1 update a step", 4: "4 updates a step"}
RESETS = {"never": "-", "critic": "--"}

Curve = Callable[[Record], tuple[Sequence[float], Sequence[float]]]


def thousands(record: Record, step: Sequence[int]) -> list[float]:
    """Environment steps, in thousands, after so many gradient updates."""
    per_step = record.config["online"]["updates_per_step"]
    return [(x - record.config["steps"]) / per_step / 1000 for x in step]


def solved(record: Record) -> tuple[list[float], list[float]]:
    """The share of the episodes that it learnt from, in per cent, by thousand environment steps."""
    found = record.success("learning")
    return thousands(record, found), [100 * x for x in found.values()]


def entropy(record: Record) -> tuple[list[float], list[float]]:
    """The attention's entropy, mean over layers and token groups."""
    return thousands(record, record.metrics["step"]), record.entropy.mean(axis=(1, 2)).tolist()


def panel(axis: Axes, records: list[Record], curve: Curve, ratio: int) -> None:
    """Both controls with resets and without, at one update ratio."""
    for control in ("none", "tql"):
        for reset, line in RESETS.items():
            runs = pick(records, label=f"online-{control}-x{ratio}-{reset}")
            curves = [curve(run) for run in runs]
            style = dict(color=COLOURS[control], linestyle=line)
            for x, y in curves:
                axis.plot(x, y, linewidth=0.7, alpha=0.4, **style)
            label = CONTROLS[control] if reset == "never" else None
            x, mean = curves[0][0], np.mean([y for _, y in curves], axis=0)
            axis.plot(x, mean, label=label, **style)
    online = runs[0].config["online"]
    for t in range(online["reset_every"], online["environment_steps"], online["reset_every"]):
        axis.axvline(t / 1000, color="#888888", linestyle=":", linewidth=1)


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 5.4, CAPTION)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (ratio, title) in zip(axes.T, RATIOS.items()):
        panel(column[0], records, solved, ratio)
        panel(column[1], records, entropy, ratio)
        column[0].set(title=title, ylim=(-3, 103))
    axes[0, 0].set(ylabel="solved while learning, %")
    axes[1, 0].set(ylabel="entropy, nats")
    axes[0, 0].legend(loc="lower right", handlelength=1)
    return figure


if __name__ == "__main__":
    save(draw(read("online")), "online")
