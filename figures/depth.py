"""Draws `depth.png`: critics of four layers beside those of two, without control and with TQL.

python figures/depth.py
"""

from draw import COLOURS, CONTROLS, PUBLISHED, bars, canvas, published_bars, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """width 64, 1,000 updates on cube-single, seeds 0, 1, 2
as in the paper: with four layers too TQL holds the entropy"""

KINDS = [(2, "none"), (2, "tql"), (4, "none"), (4, "tql")]
STUDIES = {2: "sarsa", 4: "depth4"}


def draw(records: list[Record]) -> Figure:
    name = lambda layers, control: f"{layers} layers,\n{CONTROLS[control]}"
    runs = {name(*kind): pick(records, label=f"{STUDIES[kind[0]]}-{kind[1]}-64") for kind in KINDS}
    colours = [COLOURS[control] for _, control in KINDS]
    deep = PUBLISHED["success_depth4"]
    success = [PUBLISHED["ablation"][c] if n == 2 else deep[c]["average"] for n, c in KINDS]

    figure = canvas(6.4, 4.0, CAPTION)
    axes = figure.subplots(1, 3, sharey=True, width_ratios=[1.2, 1.2, 0.9])
    bars(
        axes[0],
        {kind: [run.late_entropy.mean() for run in of] for kind, of in runs.items()},
        colours,
    )
    bars(
        axes[1], {kind: [run.late("roughness") for run in of] for kind, of in runs.items()}, colours
    )
    published_bars(axes[2], success, colours)
    axes[0].set(title="Entropy", xlabel="nats")
    axes[1].set(title="Roughness of Q", xlabel="no unit")
    axes[2].set(title="paper: success", xlabel="%")
    return figure


if __name__ == "__main__":
    save(draw(read("cpu")), "depth")
