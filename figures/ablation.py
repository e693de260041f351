"""Draws `ablation.png`: four ways to treat the entropy of the widest critic.

python figures/ablation.py
"""

from draw import COLOURS, CONTROLS, PUBLISHED, attention, bars, canvas, published_bars, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """width 128, 1,000 updates on cube-single, seeds 0, 1, 2; maps: seed 0
with any control Q is smoother; the paper's order is one of success"""


def draw(records: list[Record]) -> Figure:
    runs = {control: pick(records, label=f"sarsa-{control}-128") for control in CONTROLS}
    colours = [COLOURS[control] for control in CONTROLS]
    figure = canvas(6.4, 4.6, CAPTION)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])

    axes = top.subplots(1, 3, sharey=True, width_ratios=[1.2, 1.2, 0.9])
    entropy = {CONTROLS[c]: [run.late_entropy.mean() for run in of] for c, of in runs.items()}
    bars(axes[0], entropy, colours)
    bars(
        axes[1],
        {CONTROLS[c]: [run.late("roughness") for run in of] for c, of in runs.items()},
        colours,
    )
    published_bars(axes[2], [PUBLISHED["ablation"][control] for control in CONTROLS], colours)
    axes[0].set(title="Entropy", xlabel="nats")
    axes[1].set(title="Roughness of Q", xlabel="no unit")
    axes[2].set(title="paper: success", xlabel="%")

    for axis, (control, of) in zip(bottom.subplots(1, 4), runs.items()):
        attention(axis, of[0], CONTROLS[control])
    return figure


if __name__ == "__main__":
    save(draw(read("cpu")), "ablation")
