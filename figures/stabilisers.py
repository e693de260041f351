"""Draws `stabilisers.png`: other ways to keep attention stable, beside the control of entropy.

python figures/stabilisers.py
"""

from draw import COLOURS, PUBLISHED, bars, canvas, published_bars, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """width 128, 1,000 updates on cube-single, seeds 0, 1, 2
as in the paper: all four keep more entropy than no control"""

WAYS = {
    "no control": ("sarsa-none-128", COLOURS["none"], PUBLISHED["ablation"]["none"]),
    "sigma reparam": ("sigma-reparam-none-128", "#e69500", "sigma-reparam"),
    "modern block": ("modern-none-128", "#2a9d6f", "modern"),
    "QK norm": ("qk-norm-none-128", "#8f4fd1", "qk-norm"),
    "TQL": ("sarsa-tql-128", COLOURS["tql"], "tql"),
}
"""By name: the label of its runs, its colour, and its published success or where that stands."""


def draw(records: list[Record]) -> Figure:
    runs = {way: pick(records, label=label) for way, (label, _, _) in WAYS.items()}
    colours = [colour for _, colour, _ in WAYS.values()]
    published = PUBLISHED["success_stabilisers"]
    success = [x if isinstance(x, list) else published[x]["average"] for _, _, x in WAYS.values()]

    figure = canvas(6.4, 4.0, CAPTION)
    axes = figure.subplots(1, 3, sharey=True, width_ratios=[1.2, 1.2, 0.9])
    bars(
        axes[0], {way: [run.late_entropy.mean() for run in of] for way, of in runs.items()}, colours
    )
    bars(axes[1], {way: [run.late("roughness") for run in of] for way, of in runs.items()}, colours)
    published_bars(axes[2], success, colours)
    axes[0].set(title="Entropy", xlabel="nats")
    axes[1].set(title="Roughness of Q", xlabel="no unit")
    axes[2].set(title="paper: success", xlabel="%")
    return figure


if __name__ == "__main__":
    save(draw(read("cpu")), "stabilisers")
