"""Rebuilds `figures/roughness.png`: how rough Q is over actions, by width, without control and with TQL. `python figures/roughness.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import (
    CONTROL_COLOURS,
    CONTROLS,
    Options,
    Record,
    canvas,
    draw_points,
    listed,
    pick,
    save,
    scale_of,
    sizes_study,
    values_of,
    verdict,
    width_axis,
)

MEASURES = {"roughness": "roughness (no unit)", "turning_points": "turning points"}


def means(records: Sequence[Record], measure: str, control: str, widths: Sequence[int]) -> list[float]:
    of = pick(records, control=control)
    return [float(np.mean([record.late(measure) for record in pick(of, width=width)])) for width in widths]


def judge(records: Sequence[Record], measure: str) -> str:
    """Agrees if without control the largest width is rougher than the smallest, and with TQL the largest is smoother than without.

    These are the critics whose landscapes the paper shows.
    """
    name = measure.replace("_", " ")
    widths = [width for width in values_of(records, "width") if len({record.control for record in pick(records, width=width)}) == 2]
    if len(widths) < 2:
        return verdict(None, "", f"{name} needs two widths, each without control and with TQL.")
    none, tql = (means(records, measure, control, widths) for control in ("none", "tql"))
    return verdict(
        none[-1] > none[0] and tql[-1] < none[-1],
        f"{name} without control: more in the largest critic than in the smallest; in the largest, less with TQL",
        f"{_numbers(none)} without control, {_numbers(tql)} with TQL at d_model {listed(widths)}.",
    )


def judge_flow(records: Sequence[Record]) -> str:
    """Agrees if TQL lowers both measures, means over seeds."""
    if len(values_of(records, "control")) < 2:
        return verdict(None, "", "the flow actor is needed without control and with TQL.")
    pairs = {
        measure: [np.mean([record.late(measure) for record in pick(records, control=control)]) for control in ("none", "tql")]
        for measure in MEASURES
    }
    return verdict(
        all(tql < none for none, tql in pairs.values()),
        "with the flow actor too, TQL lowers both",
        ", ".join(f"{measure.replace('_', ' ')} {none:.2f} without control, {tql:.2f} with TQL" for measure, (none, tql) in pairs.items())
        + ".",
    )


def _numbers(values: Sequence[float]) -> str:
    return listed(f"{value:.2f}" for value in values)


def checkpoints(records: Sequence[Record]) -> str:
    """Those that `Record.late` averages over."""
    return listed(sorted({line["step"] for record in records for line in record.analysis if line["step"] >= record.updates / 2}))


def draw_by_width(axis: Axes, records: Sequence[Record], measure: str) -> None:
    for control in ("none", "tql"):
        of_control = pick(records, control=control)
        widths = values_of(of_control, "width")
        if widths:
            seeds = [[record.late(measure) for record in pick(of_control, width=width)] for width in widths]
            draw_points(axis, widths, seeds, CONTROL_COLOURS[control], CONTROLS[control])
    width_axis(axis, values_of(records, "width"))
    axis.set(ylabel=MEASURES[measure])
    axis.legend(loc="upper left")


def draw_flow(axis: Axes, records: Sequence[Record], measure: str) -> None:
    """The critics that learn with the flow actor: one width, so one column per control."""
    for x, control in enumerate(("none", "tql")):
        seeds = [record.late(measure) for record in pick(records, control=control)]
        if seeds:
            draw_points(axis, [x], [seeds], CONTROL_COLOURS[control], CONTROLS[control])
    axis.set_xticks([0, 1], [CONTROLS["none"], CONTROLS["tql"]])
    axis.set_xlim(-0.6, 1.6)


def draw(records: list[Record]) -> Figure:
    shown = pick(sizes_study(records), control=("none", "tql"))
    flow = [record for record in records if record.study == "flow"]
    caption = [
        *(judge(shown, measure) for measure in MEASURES),
        *([judge_flow(flow)] if flow else []),
        f"Rule: means over seeds and the checkpoints of the second half of training ({checkpoints(shown)} updates"
        f"{f'; flow actor {checkpoints(flow)}' if flow else ''}). Points: every run; lines: "
        "their mean. The paper shows landscapes and gives no such number, so nothing published is drawn. Roughness: mean squared second "
        "difference over the variance, 11 x 11 grid; turning points: 41 points over the whole range; means over 32 pairs (s, a).",
        scale_of(shown),
        *([f"Beside, with the flow actor. {scale_of(flow)}"] if flow else []),
    ]
    figure, body = canvas(11, 6.2, "How rough Q is over actions", caption)
    axes = body.subplots(2, 1 + bool(flow), width_ratios=[2, 1] if flow else [1], squeeze=False, sharey="row")
    for row, measure in zip(axes, MEASURES):
        draw_by_width(row[0], shown, measure)
        if flow:
            draw_flow(row[1], flow, measure)
        row[0].set_ylim(bottom=0)
    axes[0, 0].set_title("critics of growing width")
    if flow:
        axes[0, 1].set_title(f"with the flow actor, d_model {listed(values_of(flow, 'width'))}")
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "roughness")
