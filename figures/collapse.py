"""Rebuilds `figures/collapse.png`: wider critics without control, their entropy, landscapes and attention. `python figures/collapse.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from portraits import LANDSCAPES, MAPS, draw_portraits
from records import (
    PUBLISHED,
    REFERENCE,
    WIDTH_COLOURS,
    Options,
    Record,
    canvas,
    draw_published,
    draw_seeds,
    legend_below,
    listed,
    mean_entropy,
    need,
    pick,
    published_label,
    save,
    scale_of,
    sizes_study,
    success_missing,
    values_of,
    verdict,
)


def judge(records: Sequence[Record]) -> str:
    """Agrees if late entropy, mean over seeds, falls from each width to the next."""
    widths = values_of(records, "width")
    if len(widths) < 2:
        return verdict(None, "", f"one width, {widths[0]}.")
    H = [np.mean([mean_entropy(record) for record in pick(records, width=width)]) for width in widths]
    ends = [{(record.study, record.seed): mean_entropy(record) for record in pick(records, width=widths[i])} for i in (0, -1)]
    both = ends[0].keys() & ends[1].keys()
    below = sum(ends[1][run] < ends[0][run] for run in both)
    return verdict(
        bool(np.all(np.diff(H) < 0)),
        "without control, attention entropy is lower for each larger width (rule: mean over seeds and the second half of the updates)",
        f"{listed(f'{h:.2f}' for h in H)} nats at d_model {listed(widths)}; the largest lies below the smallest "
        f"in {below} of {len(both)} pairs of equal seed.",
    )


def draw_success(axis: Axes, records: Sequence[Record]) -> None:
    evaluated = [record for record in records if record.success()[0]]
    for width in values_of(evaluated, "width"):
        curves = [(steps, 100 * np.array(rates)) for steps, rates in (record.success() for record in pick(evaluated, width=width))]
        draw_seeds(axis, curves, WIDTH_COLOURS[width], f"d_model {width}")
    published = PUBLISHED["success_without_control"]
    for size, width in PUBLISHED["sizes"].items():
        draw_published(axis, published["steps"], published[size], WIDTH_COLOURS[width], f"{size} ({width})")
    if not evaluated:
        axis.text(0.04, 0.96, "ours: no success recorded\nat this scale", transform=axis.transAxes, va="top")
    published_label(axis)
    axis.set(title=f"Success, {REFERENCE}", xlabel="updates", ylabel="episodes solved, %", ylim=(-2, 70), xlim=(0, 1.28e6))
    axis.set_xticks([0, 500_000, 1_000_000], ["0", "500 k", "1 M"])


def draw_entropy(axis: Axes, records: Sequence[Record]) -> None:
    """Ours and the published curves on one logarithmic axis of updates, in the same units."""
    for width in values_of(records, "width"):
        curves = [(record.steps, record.entropy.mean(axis=(1, 2))) for record in pick(records, width=width)]
        draw_seeds(axis, curves, WIDTH_COLOURS[width], f"d_model {width}")
    domain = records[0].domain
    published = PUBLISHED["entropy_without_control"]
    of_domain = published.get(domain, published[REFERENCE])
    for size, width in PUBLISHED["sizes"].items():
        draw_published(axis, published["steps"], of_domain[size], WIDTH_COLOURS[width], f"{size} ({width})")
    published_label(axis)
    name = domain if domain in published else f"ours {domain}, published {REFERENCE}"
    axis.set(title=f"Attention entropy: {name}", xlabel="updates (logarithmic)", ylabel="nats", xscale="log", ylim=(0, 4))
    axis.set_xlim(right=4e6)


def draw(records: list[Record]) -> Figure:
    compared = sizes_study(records)
    of_domain = pick(compared, domain=REFERENCE) or pick(compared, domain=compared[0].domain)
    shown = need(pick(of_domain, control="none"), "without control")
    caption = [
        judge(shown),
        scale_of(shown) + " Thin: every run; thick: their mean. " + success_missing(shown),
        "Entropy: mean over the 2 L entries of layer x {[VALUE], other tokens}; published: mean over layers and queries. "
        + LANDSCAPES
        + MAPS,
    ]
    figure, body = canvas(11, 8.2, "No control: the critic gets wider", caption)
    top, bottom = body.subfigures(2, 1, height_ratios=[1, 1.15])
    axes = top.subplots(1, 2, width_ratios=[1, 1.5])
    draw_success(axes[0], shown)
    draw_entropy(axes[1], shown)
    legend_below(top)
    widths, one_task = values_of(shown, "width"), pick(shown, study=shown[0].study)
    drawn = widths if len(values_of(one_task, "seed")) == 1 else (widths[0], widths[-1])
    draw_portraits(bottom, {f"d_model {width}": pick(one_task, width=width) for width in drawn})
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "collapse")
