"""Landscapes and attention maps in a picture: a row per kind of critic, a column per seed."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import SubFigure
from records import Record

from tql.portrait import draw_landscape, draw_map

MAX_SEEDS = 3
LANDSCAPES = (
    "Landscapes: Q over offsets in [-0.5, 0.5] along actions 1 (across) and 2 (up), the same pair (s, a) of validation data for all: of "
    "the four recorded, the one with the largest range of Q on average. "
)
MAPS = "Maps: layer 1, head 1 of one pair (s, a); rows are queries, columns keys; entropy: mean over rows; one colour scale, a square root."
"""For the caption."""


def clearest_pair(records: Sequence[Record]) -> int:
    """Of the pairs (s, a) in every portrait, the one over which these critics' Q varies most on average."""
    return int(np.argmax(np.mean([np.ptp(record.portrait.landscapes, axis=(1, 2)) for record in records], axis=0)))


def show_landscape(axis: Axes, record: Record, pair: int, name: str) -> None:
    draw_landscape(axis, record.portrait.landscapes[pair], f"{name}, seed {record.seed}\n")
    axis.set(xlabel="", ylabel="", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    _plain(axis)


def show_map(axis: Axes, record: Record, brightest: float, name: str) -> None:
    """The first head of layer 1, for the first pair: heads have no order, so this is a draw that nobody chose."""
    draw_map(axis, record.portrait.maps[0, 0], int(record.portrait.n_s))
    axis.images[0].set_norm(PowerNorm(0.5, 0, brightest))  # a square root, or one bright weight would turn the others black
    axis.set_title(f"{name}, seed {record.seed}\nentropy {entropy(record.portrait.maps[0, 0]):.2f} nats")
    axis.set(xlabel="", ylabel="")
    _plain(axis)


def entropy(attention: Float[np.ndarray, "n n"]) -> float:
    """Of one map, mean over its queries, in nats."""
    return float(-np.mean(np.sum(attention * np.log(np.maximum(attention, 1e-9)), axis=1)))


def _plain(axis: Axes) -> None:
    axis.grid(False)
    axis.tick_params(labelsize=7.5)
    axis.title.set_fontsize(8)


def brightest(records: Sequence[Record]) -> float:
    return max(float(record.portrait.maps[0, 0].max()) for record in records)


def draw_portraits(figure: SubFigure, rows: Mapping[str, Sequence[Record]]) -> None:
    """Per row, left a landscape and right an attention map for each of the first seeds; one seed: per column, one above the other."""
    shown = [record for row in rows.values() for record in row[:MAX_SEEDS]]
    seeds, pair, scale = max(len(row[:MAX_SEEDS]) for row in rows.values()), clearest_pair(shown), brightest(shown)
    axes = figure.subplots(2, len(rows), squeeze=False).T if seeds == 1 else figure.subplots(len(rows), 2 * seeds, squeeze=False)
    for row, (name, records) in zip(axes, rows.items()):
        for i in range(seeds):
            if i < len(records):
                show_landscape(row[i], records[i], pair, name)
                show_map(row[seeds + i], records[i], scale, name)
            else:
                row[i].set_axis_off()
                row[seeds + i].set_axis_off()
    figure.colorbar(axes[0, seeds].images[0], ax=axes[:, seeds:] if seeds > 1 else axes, shrink=0.7, pad=0.01, label="attention weight")
