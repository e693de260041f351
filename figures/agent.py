"""Draws `agent.png`: agents that act, without control and with TQL.

python figures/agent.py
"""

from draw import (
    COLOURS,
    CONTROLS,
    attention,
    canvas,
    clearest_pair,
    dots,
    entropy_curves,
    landscape,
    save,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """18,000 updates on cube-single-noisy, seeds 0, 1, 2; pictures: seed 0
TQL holds the entropy; in success the runs overlap"""


def draw_success(axis: Axes, runs: dict[str, list[Record]]) -> None:
    """The success of every run, and that of the behaviour flow alone in all of them."""
    of = {control: [100 * run.last_success() for run in runs[control]] for control in runs}
    of["flow alone"] = [100 * r.last_success("behaviour") for some in runs.values() for r in some]
    for x, (name, values) in enumerate(of.items()):
        dots(axis, x, values, COLOURS.get(name, "#868e96"))
    axis.set_xticks(range(len(of)), ["no\ncontrol", "TQL", "flow\nalone"])
    axis.set(title="Episodes solved, %", ylim=(-3, 103), xlim=(-0.5, 2.5))


def draw(records: list[Record]) -> Figure:
    runs = {control: pick(records, label=f"agent-{control}-32") for control in ("none", "tql")}
    figure = canvas(6.4, 5, CAPTION)
    rows = [["entropy"] * 6 + ["success"] * 6, sum([[c] * 3 for c in "abcd"], [])]
    axes = figure.subplot_mosaic(rows, height_ratios=[1.35, 1])
    for control, of in runs.items():
        entropy_curves(axes["entropy"], of, COLOURS[control], CONTROLS[control])
    target = sum(sum(pair) for pair in runs["tql"][0].target) / 4
    axes["entropy"].axhline(
        target, color="black", linestyle=":", linewidth=1.6, label="TQL's target"
    )
    axes["entropy"].set(title="Attention entropy", xlabel="updates", ylabel="nats", ylim=(0, 3.6))
    axes["entropy"].set_xticks([0, 9000, 18_000], ["0", "9,000", "18,000"])
    axes["entropy"].legend(loc="lower left")
    draw_success(axes["success"], runs)
    pair = clearest_pair(sum(runs.values(), []))
    for control, places in (("none", "ab"), ("tql", "cd")):
        landscape(axes[places[0]], runs[control][0], pair, f"Q, {CONTROLS[control]}")
        attention(axes[places[1]], runs[control][0], "its attention")
    return figure


if __name__ == "__main__":
    save(draw(read("cpu")), "agent")
