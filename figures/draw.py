"""What the pictures share: colours, means over seeds, bars with their runs, landscapes and maps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record

FIGURES = Path(__file__).parent
PUBLISHED = json.loads((FIGURES / "published.json").read_text())
"""Numbers that were read off the paper's figures and tables; the file says how exactly."""

CONTROLS = {
    "none": "no control",
    "fixed": "fixed penalty",
    "single": "one temperature",
    "tql": "TQL",
}
COLOURS = {"none": "#c92a2a", "fixed": "#e69500", "single": "#2a9d6f", "tql": "#1c5fb0"}
WIDTH_COLOURS = {
    32: "#2bb5c4",
    64: "#4c9a2a",
    128: "#e69500",
    256: "#d9480f",
    512: "#a61e6c",
    1024: "#3d1a5b",
}
METHODS = {
    "bc": "BC",
    "iql": "IQL",
    "rebrac": "ReBRAC",
    "fbrac": "FBRAC",
    "ifql": "IFQL",
    "fql": "FQL",
    "floq": "floq",
    "q-transformer": "Q-T",
    "q-transformer-bound": "Q-T, corrected",
    "pac": "PAC",
    "tql-none": "no control",
    "tql": "TQL",
}
"""The methods in the order of the paper's table, and their names there. `tql-none` is TQL's
transformer without control of its entropy; the corrected Q-Transformer has a correct lower bound."""

matplotlib.rcParams |= {
    "font.size": 12,
    "axes.titlesize": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.4,
}


def canvas(width: float, height: float, caption: str = "") -> Figure:
    """An empty figure of this size in inches; the caption, at most two short lines, goes below."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if caption:
        figure.supxlabel(caption, fontsize=11, color="#444444")
    return figure


def save(figure: Figure, name: str, folder: Path = FIGURES) -> Path:
    """Writes the picture, and prints and returns its path."""
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150)
    print(path)
    return path


def curves(axis: Axes, runs: Sequence[tuple[Sequence, Sequence]], colour: str, label: str) -> None:
    """Every run (steps, values) thin, and their mean thick; the runs have the same steps."""
    for steps, values in runs:
        axis.plot(steps, values, color=colour, linewidth=0.9, alpha=0.5)
    axis.plot(
        runs[0][0], np.mean([values for _, values in runs], axis=0), color=colour, label=label
    )


def entropy_curves(axis: Axes, records: Sequence[Record], colour: str, label: str) -> None:
    """Attention entropy over updates, mean over layers and token groups."""
    runs = [(record.metrics["step"], record.entropy.mean(axis=(1, 2))) for record in records]
    curves(axis, runs, colour, label)


def dots(axis: Axes, x: float, values: Sequence[float], colour: str, label: str = "") -> None:
    """One dot per run, and a stroke at their mean."""
    beside = x + np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [x]
    axis.plot(beside, values, "o", color=colour, markersize=6, alpha=0.7, markeredgewidth=0)
    axis.plot([x - 0.27, x + 0.27], 2 * [np.mean(values)], color=colour, label=label or None)


def bars(axis: Axes, groups: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """One horizontal bar per group, from the top: the mean, a dot for every run."""
    for y, (values, colour) in enumerate(zip(groups.values(), colours, strict=True)):
        axis.barh(y, np.mean(values), 0.65, color=colour, alpha=0.6)
        beside = y + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [y]
        axis.plot(values, beside, "o", color="black", markersize=4)
    axis.set_yticks(range(len(groups)), groups)
    axis.set_ylim(len(groups) - 0.5, -0.5)


def published_bars(
    axis: Axes, pairs: Sequence[tuple[float, float]], colours: Sequence[str]
) -> None:
    """Published means with their standard errors, thin and hatched."""
    for y, ((mean, error), colour) in enumerate(zip(pairs, colours, strict=True)):
        axis.barh(y, mean, 0.35, xerr=error, fill=False, hatch="////", edgecolor=colour)


def clearest_pair(records: Sequence[Record]) -> int:
    """Of the four recorded pairs (s, a), the one over which Q of these runs varies most on
    average."""
    ranges = [np.ptp(record.portrait.landscapes, axis=(1, 2)) for record in records]
    return int(np.argmax(np.mean(ranges, axis=0)))


def landscape(axis: Axes, record: Record, pair: int, title: str) -> None:
    """Q over two action dimensions, each moved by -0.5 to 0.5, in its own range of colours."""
    grid = np.array(record.portrait.landscapes)[pair]
    axis.imshow(grid.T, origin="lower", cmap="viridis")
    axis.set(title=title, xticks=[], yticks=[])


def attention(axis: Axes, record: Record, title: str) -> None:
    """The attention of layer 1, head 1 (rows are queries, columns keys); brighter is more, from 0
    to a quarter."""
    axis.imshow(np.array(record.portrait.map), cmap="magma", vmin=0, vmax=0.25)
    axis.set(title=title, xticks=[], yticks=[])
