"""Rebuilds `figures/entropy_by_size.png`: entropy of every width, without control and with TQL. `python figures/entropy_by_size.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import (
    CONTROL_COLOURS,
    CONTROLS,
    PUBLISHED,
    REFERENCE,
    WIDTH_COLOURS,
    Options,
    Record,
    canvas,
    draw_points,
    draw_published,
    draw_seeds,
    legend_below,
    mean_entropy,
    pick,
    published_label,
    save,
    scale_of,
    sizes_study,
    success_missing,
    values_of,
    verdict,
    width_axis,
)

TOLERANCE = 0.2
"""Nats below its target at which an entropy still counts as held."""
SIZES = PUBLISHED["sizes"]


def judge(records: Sequence[Record]) -> str:
    """Agrees if with TQL no group ends more than `TOLERANCE` below its target, and every width ends above the one without control."""
    widths = [width for width in values_of(records, "width") if len({record.control for record in pick(records, width=width)}) == 2]
    if not widths:
        return verdict(None, "", "no width is recorded both without control and with TQL.")
    with_tql = {width: pick(records, width=width, control="tql") for width in widths}
    above = np.array([np.mean([record.late_entropy - record.target for record in with_tql[width]], axis=0) for width in widths])
    gain = [
        np.mean([mean_entropy(record) for record in with_tql[width]])
        - np.mean([mean_entropy(record) for record in pick(records, width=width, control="none")])
        for width in widths
    ]
    return verdict(
        bool(above.min() >= -TOLERANCE and min(gain) > 0),
        f"TQL keeps the entropy from falling (rule: at each width, mean over seeds and the second half of the updates, no layer and token "
        f"group lies more than {TOLERANCE} nats below its target, and their mean lies above that without control)",
        f"groups lie {above.min():+.2f} to {above.max():+.2f} nats from their targets (a temperature pushes up only); gain over no control "
        + ", ".join(f"{g:+.2f} at {width}" for g, width in zip(gain, widths))
        + " nats.",
    )


def draw_entropy(axis: Axes, records: Sequence[Record], domain: str, control: str) -> None:
    for width in values_of(records, "width"):
        curves = [(record.steps, record.entropy.mean(axis=(1, 2))) for record in pick(records, width=width)]
        draw_seeds(axis, curves, WIDTH_COLOURS[width], f"d_model {width}")
    draw_references(axis, domain, control)
    if control == "tql":
        axis.axhline(np.mean(records[0].target), color="black", linestyle=":", linewidth=1.6, label="target, mean over entries")
    axis.set(xscale="log", ylim=(0, 4), xlabel="updates (logarithmic)", ylabel="nats")
    axis.set_xlim(right=4e6)


def draw_references(axis: Axes, domain: str, control: str) -> None:
    """The published curves of this domain, or of the reference domain."""
    published, only_26M = PUBLISHED["entropy_without_control"], PUBLISHED["entropy_26M"]
    if control == "none":
        for size, width in SIZES.items():
            draw_published(axis, published["steps"], published.get(domain, published[REFERENCE])[size], WIDTH_COLOURS[width], size)
    if domain == REFERENCE or domain not in published:
        draw_published(axis, only_26M["steps"], only_26M[control], WIDTH_COLOURS[SIZES["26M"]], "26M *", style="-.")
    published_label(axis)


def draw_late(axis: Axes, records: Sequence[Record]) -> None:
    """Late entropy against width; published: the last point of each curve."""
    for control in ("none", "tql"):
        of_control = pick(records, control=control)
        widths = values_of(of_control, "width")
        seeds = [[mean_entropy(record) for record in pick(of_control, width=width)] for width in widths]
        if widths:
            draw_points(axis, widths, seeds, CONTROL_COLOURS[control], CONTROLS[control])
    published = PUBLISHED["entropy_without_control"]
    domains = [domain for domain in values_of(records, "domain") if domain in published] or [REFERENCE]
    ends = [np.mean([published[domain][size][-1] for domain in domains]) for size in SIZES]
    draw_published(axis, list(SIZES.values()), ends, CONTROL_COLOURS["none"])
    axis.plot(SIZES["26M"], PUBLISHED["entropy_26M"]["tql"][-1], ".", color=CONTROL_COLOURS["tql"], markersize=6)
    published_label(axis)
    beside = domains[0] if len(domains) == 1 else f"{len(domains)} domains"
    axis.set(title=f"Late entropy (published: {beside})", ylabel="nats", ylim=(0, 4))


def draw_success(axis: Axes, records: Sequence[Record]) -> None:
    evaluated = [record for record in records if record.success()[0]]
    for control in ("none", "tql"):
        of_control = pick(evaluated, control=control)
        widths = values_of(of_control, "width")
        seeds = [[100 * record.success()[1][-1] for record in pick(of_control, width=width)] for width in widths]
        if widths:
            draw_points(axis, widths, seeds, CONTROL_COLOURS[control], CONTROLS[control])
        means = [mean for mean, _ in PUBLISHED["success_by_size"][control]]
        draw_published(axis, list(SIZES.values()), means, CONTROL_COLOURS[control], CONTROLS[control])
    if not evaluated:
        axis.text(0.04, 0.95, "ours: no success recorded\nat this scale", transform=axis.transAxes, va="top")
    published_label(axis)
    axis.set(title="Success (published: 25 tasks)", ylabel="%")
    axis.set_ylim(0, max(60, axis.get_ylim()[1]))


def draw(records: list[Record]) -> Figure:
    shown = pick(sizes_study(records), control=("none", "tql"))
    domains, widths = values_of(shown, "domain"), sorted({*values_of(shown, "width"), *SIZES.values()})
    caption = [
        judge(shown),
        scale_of(shown) + " Thin lines, points: every run; thick: their mean. " + success_missing(shown),
        "Entropy: mean over the 2 L entries of layer x {[VALUE], other tokens}; published: mean over layers and queries. The paper draws "
        "26 M without control twice, ending at 0.27 and (*) at 0.95 nats; with TQL it draws an entropy of 26 M on cube-double only.",
    ]
    figure, body = canvas(3.4 + 7.6 * max(1, 0.5 * len(domains)), 6.8, "Attention entropy by size, without control and with TQL", caption)
    axes = body.subplots(2, len(domains) + 1, width_ratios=[1.6 if len(domains) == 1 else 1] * len(domains) + [1])
    for column, domain in enumerate(domains):
        for row, control in enumerate(("none", "tql")):
            of_control = pick(shown, domain=domain, control=control)
            if of_control:
                draw_entropy(axes[row, column], of_control, domain, control)
            beside = "" if domain in PUBLISHED["entropy_without_control"] else f" (published: {REFERENCE})"
            axes[row, column].set_title(f"{CONTROLS[control]}, {domain}{beside}")
    draw_late(axes[0, -1], shown)
    draw_success(axes[1, -1], shown)
    width_axis(axes[0, -1], widths)
    width_axis(axes[1, -1], widths, room=2.9)
    legend_below(body)
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "entropy_by_size")
