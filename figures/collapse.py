"""Draws `collapse.png`: without control, wider critics attend to fewer tokens.

python figures/collapse.py
"""

from draw import (
    PUBLISHED,
    WIDTH_COLOURS,
    attention,
    canvas,
    clearest_pair,
    entropy_curves,
    landscape,
    save,
)
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """first 4,000 updates on cube-single, seeds 0, 1, 2; pictures: seed 0
as in the paper: the wider the critic, the less entropy"""

WIDTHS = (32, 64, 128)


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 5, CAPTION)
    rows = [["ours"] * 8 + ["paper"] * 4, sum([[c] * 3 for c in "abcd"], [])]
    axes = figure.subplot_mosaic(rows, height_ratios=[1.35, 1])

    runs = {width: pick(records, label=f"agent-none-{width}") for width in WIDTHS}
    for width, of in runs.items():
        entropy_curves(axes["ours"], of, WIDTH_COLOURS[width], f"width {width}")
    axes["ours"].set(title="Attention entropy, no control", xlabel="updates", ylabel="nats")
    axes["ours"].set_ylim(0, 3.8)
    axes["ours"].legend(loc="lower left")

    published = PUBLISHED["entropy_without_control"]
    for size, width in PUBLISHED["sizes"].items():
        millions = [step / 1e6 for step in published["steps"]]
        values = published["cube-double"][size]
        axes["paper"].plot(millions, values, "--", color=WIDTH_COLOURS[width], linewidth=1.2)
        axes["paper"].text(
            1.03, values[-1], width, color=WIDTH_COLOURS[width], va="center", fontsize=10
        )
    axes["paper"].set(title="paper, cube-double", xlabel="million updates")
    axes["paper"].set(xlim=(0, 1.35), ylim=(0, 3.8), xticks=(0, 0.5, 1))

    pair = clearest_pair(sum(runs.values(), []))
    for width, places in ((32, "ab"), (128, "cd")):
        run = runs[width][0]
        landscape(axes[places[0]], run, pair, f"Q, width {width}")
        attention(axes[places[1]], run, "its attention")
    return figure


if __name__ == "__main__":
    save(draw(read("collapse")), "collapse")
