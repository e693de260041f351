"""Draws `scaling.png`: success of growing critics, ours and published.

python figures/scaling.py
"""

from draw import METHODS, PUBLISHED, canvas, dots, save
from matplotlib.figure import Figure
from presets import POCKET_TASKS
from records import Record, pick, read

CAPTION = """task 3 of cube-single-noisy, 18,000 updates, seeds 0, 1, 2
three runs against three decide nothing here"""

SIZES = {
    "tql": "tql@64",
    "tql-none": "tql-none@64",
    "fql": "fql@512",
    "floq": "floq@256",
    "pac": "pac@64",
}
"""By the label of its usual size: the label of the larger critic."""
COLOURS = {
    "tql": "#1c5fb0",
    "tql-none": "#c92a2a",
    "fql": "#1f8a5b",
    "floq": "#12b0c4",
    "pac": "#e667a8",
}


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 4.4, CAPTION)
    ours, paper = figure.subplots(1, 2, width_ratios=[2, 1])
    for i, (small, large) in enumerate(SIZES.items()):
        means = []
        for x, label in ((2 * i, small), (2 * i + 0.8, large)):
            runs = pick(records, label=label, task=POCKET_TASKS[0])
            solved = [100 * run.last_success() for run in runs]
            dots(ours, x, solved, COLOURS[small])
            means.append(sum(solved) / len(solved))
        ours.plot([2 * i, 2 * i + 0.8], means, color=COLOURS[small], linewidth=1)
    names = [METHODS[method].replace(" ", "\n") for method in SIZES]
    ours.set_xticks([2 * i + 0.4 for i in range(len(SIZES))], names)
    ours.set(title="Smaller and larger critic", ylabel="episodes solved, %", ylim=(-3, 103))

    published = PUBLISHED["success_by_size"]
    millions = [float(size.removesuffix("M")) for size in PUBLISHED["sizes"]]
    for method in SIZES:
        means = [mean for mean, _ in published[method.removeprefix("tql-")]]
        paper.plot(millions, means, ".--", color=COLOURS[method], linewidth=1.2)
    paper.set(title="paper: 25 tasks", xlabel="million parameters", xscale="log", ylim=(0, 50))
    paper.set_xticks([0.4, 7, 26], ["0.4", "7", "26"])
    paper.minorticks_off()
    return figure


if __name__ == "__main__":
    save(draw(read("pocket")), "scaling")
