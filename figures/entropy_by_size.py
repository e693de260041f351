"""Draws `entropy_by_size.png`: attention entropy of three widths, without control and with TQL.

python figures/entropy_by_size.py
"""

import numpy as np
from draw import COLOURS, CONTROLS, PUBLISHED, WIDTH_COLOURS, canvas, dots, entropy_curves, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """first 4,000 updates on cube-single, seeds 0, 1, 2; dotted: mean of targets
with TQL no width collapses; of TQL the paper draws width 1024 only"""

WIDTHS = (32, 64, 128)


def draw_by_width(axis: Axes, records: list[Record]) -> None:
    """Entropy over the second half of the updates; the paper's at its end, thin and dashed."""
    for control in ("none", "tql"):
        for width in WIDTHS:
            runs = pick(records, label=f"agent-{control}-{width}")
            values = [run.late_entropy.mean() for run in runs]
            label = CONTROLS[control] if width == WIDTHS[0] else ""
            dots(axis, np.log2(width), values, COLOURS[control], label)
    published, widths = PUBLISHED["entropy_without_control"], PUBLISHED["sizes"].values()
    ends = [published["cube-double"][size][-1] for size in PUBLISHED["sizes"]]
    axis.plot(np.log2([*widths]), ends, ".--", color=COLOURS["none"], linewidth=1.2, label="paper")
    axis.plot(10, PUBLISHED["entropy_26M"]["tql"][-1], ".", color=COLOURS["tql"])
    axis.set_xticks(range(5, 11), [2**x for x in range(5, 11)])
    axis.set(xlabel="width of the critic", ylabel="nats", ylim=(0, 3.8))
    axis.set_title("Entropy in the end, by width")
    axis.legend(loc="lower left", ncols=3, columnspacing=1)


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 5.6, CAPTION)
    axes = figure.subplot_mosaic([["none", "tql"], ["late", "late"]])
    for control in ("none", "tql"):
        for width in WIDTHS:
            runs = pick(records, label=f"agent-{control}-{width}")
            entropy_curves(axes[control], runs, WIDTH_COLOURS[width], f"width {width}")
        axes[control].set(title=CONTROLS[control], xlabel="updates", ylim=(0, 3.8))
    axes["tql"].axhline(np.mean(runs[0].target), color="black", linestyle=":", linewidth=1.6)
    axes["none"].set_ylabel("entropy, nats")
    axes["none"].legend(loc="lower left")
    draw_by_width(axes["late"], records)
    return figure


if __name__ == "__main__":
    save(draw(read("collapse")), "entropy_by_size")
