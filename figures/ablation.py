"""Rebuilds `figures/ablation.png`: four ways to treat the entropy of the widest critic. `python figures/ablation.py`."""

from collections.abc import Sequence

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from portraits import MAPS, MAX_SEEDS, brightest, show_map
from records import (
    CITED,
    CONTROL_COLOURS,
    CONTROLS,
    PUBLISHED,
    Options,
    Record,
    canvas,
    mean_entropy,
    pick,
    save,
    scale_of,
    sizes_study,
    values_of,
    verdict,
)


def present(records: Sequence[Record]) -> list[str]:
    """The kinds of control that were recorded, in the paper's order."""
    return [control for control in CONTROLS if pick(records, control=control)]


def judge(records: Sequence[Record]) -> str:
    """Agrees if every kind of control ends with a higher entropy and a smoother landscape than no control, means over seeds."""
    controls = present(records)
    if "none" not in controls or len(controls) < 2:
        return verdict(None, "", f"only {CONTROLS[controls[0]]} is recorded.")
    H = {control: np.mean([mean_entropy(record) for record in pick(records, control=control)]) for control in controls}
    rough = {control: np.mean([record.late("roughness") for record in pick(records, control=control)]) for control in controls}
    better = [control for control in controls if H[control] > H["none"] and rough[control] < rough["none"]]
    return verdict(
        len(better) == len(controls) - 1,
        "any control of the entropy is better than none (rule: higher entropy and lower roughness, means over seeds and the second half "
        "of the updates; the paper's measure is success, which is not measured here, and in roughness TQL need not be the smoothest)",
        ", ".join(f"{CONTROLS[control]} {H[control]:.2f} nats, roughness {rough[control]:.2f}" for control in controls) + ".",
    )


def draw_bars(axis: Axes, x: float, width: float, seeds: Sequence[float], colour: str, label: str | None) -> None:
    axis.bar(x, np.mean(seeds), width, color=colour, alpha=0.75, label=label)
    axis.plot(x + width * np.linspace(-0.2, 0.2, len(seeds)) if len(seeds) > 1 else x, seeds, "o", color="black", markersize=3.5)


def draw_entropy(axis: Axes, records: Sequence[Record]) -> None:
    """Late entropy of every layer and group, against its target."""
    controls, target = present(records), records[0].target
    for place, (layer, group) in enumerate(np.ndindex(target.shape)):
        for i, control in enumerate(controls):
            seeds = [record.late_entropy[layer, group] for record in pick(records, control=control)]
            label = CONTROLS[control] if place == 0 else None
            draw_bars(axis, place + 0.2 * (i - (len(controls) - 1) / 2), 0.19, seeds, CONTROL_COLOURS[control], label)
        dots = dict(color="black", linestyles=":", linewidth=2, label="target" if place == 0 else None)
        axis.hlines(target[layer, group], place - 0.45, place + 0.45, **dots)
    names = [f"layer {layer + 1}\n{('[VALUE]', 'others')[group]}" for layer, group in np.ndindex(target.shape)]
    axis.set_xticks(range(len(names)), names)
    axis.set(title="Entropy", ylabel="nats", ylim=(0, 4.6))
    axis.legend(loc="upper left", ncols=3, fontsize=8)


def draw_roughness(axis: Axes, records: Sequence[Record]) -> None:
    for i, control in enumerate(present(records)):
        seeds = [record.late("roughness") for record in pick(records, control=control)]
        draw_bars(axis, i, 0.75, seeds, CONTROL_COLOURS[control], None)
    axis.set(title="Roughness of the Q landscape", ylabel="no unit", ylim=(0, None))
    _name_bars(axis, present(records))


def draw_success(axis: Axes) -> None:
    """Published only: thin hatched bars with their standard errors."""
    for i, control in enumerate(CONTROLS):
        mean, error = PUBLISHED["ablation"][control]
        axis.bar(i, mean, 0.45, fill=False, hatch="///", edgecolor=CONTROL_COLOURS[control], linewidth=1)
        axis.errorbar(i, mean, error, color="black", capsize=3, linewidth=1, linestyle="none")
    axis.set(title=f"Success, 26M, cube-double\n{CITED}", ylabel="%", ylim=(0, 80))
    axis.title.set_fontsize(10)
    _name_bars(axis, list(CONTROLS))


def _name_bars(axis: Axes, controls: Sequence[str]) -> None:
    axis.set_xticks(range(len(controls)), [CONTROLS[control].replace(" ", "\n") for control in controls], fontsize=8)


def draw_maps(figure: SubFigure, records: Sequence[Record]) -> None:
    """Two kinds of control per row, one map per seed."""
    controls = present(records)
    seeds = min(MAX_SEEDS, max(len(pick(records, control=control)) for control in controls))
    axes = figure.subplots((len(controls) + 1) // 2, 2 * seeds, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    scale = brightest(records)
    for place, control in enumerate(controls):
        for i, record in enumerate(pick(records, control=control)[:seeds]):
            axis = axes[place // 2, place % 2 * seeds + i]
            axis.set_axis_on()
            show_map(axis, record, scale, CONTROLS[control])
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.7, pad=0.01, label="attention weight")


def draw(records: list[Record]) -> Figure:
    compared = sizes_study(records)
    widest = pick(compared, width=values_of(compared, "width")[-1])
    shown = pick(widest, domain=widest[0].domain)
    caption = [
        judge(shown),
        scale_of(shown) + " Dots: every run; bars: their mean. Success: published only.",
        "Entropy and roughness: second half of the updates. " + MAPS,
    ]
    figure, body = canvas(11, 7.9, f"Ablation of the control, d_model {shown[0].width}", caption)
    top, bottom = body.subfigures(2, 1, height_ratios=[1, 1.2])
    axes = top.subplots(1, 3, width_ratios=[1.75, 1, 1])
    draw_entropy(axes[0], shown)
    draw_roughness(axes[1], shown)
    draw_success(axes[2])
    draw_maps(bottom, pick(shown, study=shown[0].study))
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "ablation")
