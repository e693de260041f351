"""Rebuilds `figures/agent.png`: agents that act, without control and with TQL. `python figures/agent.py`."""

from collections.abc import Sequence

import entropy_by_size
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from portraits import LANDSCAPES, MAPS, draw_portraits
from records import (
    CONTROL_COLOURS,
    CONTROLS,
    PUBLISHED,
    Options,
    Record,
    canvas,
    draw_seeds,
    need,
    pick,
    save,
    scale_of,
    verdict,
)

from tql.evaluate import wilson

BEHAVIOUR = "behaviour"


def solved(record: Record, policy: str) -> list[bool]:
    """Episodes of the last evaluation."""
    rows = [line for line in record.evaluation if line["policy"] == policy]
    return [line["success"] for line in rows if line["step"] == max(row["step"] for row in rows)]


def rate(runs: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Success over the episodes of all runs, and its Wilson interval."""
    pooled = [success for run in runs for success in run]
    return float(np.mean(pooled)), *wilson(sum(pooled), len(pooled))


def judge(records: Sequence[Record]) -> str:
    """Differs from the paper's smallest size, where control changes nothing, if every run of one control beats every run of the other.

    The interval of all episodes together would not do: it leaves out how much runs differ by their seed.
    """
    runs = {control: [solved(record, "policy") for record in pick(records, control=control)] for control in ("none", "tql")}
    if not all(runs.values()):
        return verdict(None, "", "agents without control and with TQL are both needed.")
    none, tql = (sorted(float(np.mean(run)) for run in runs[control]) for control in ("none", "tql"))
    published = {control: PUBLISHED["success_by_size"][control][0][0] for control in runs}
    apart = none[-1] < tql[0] or tql[-1] < none[0]
    measured = f"success of single runs {none[0]:.0%} to {none[-1]:.0%} without control, {tql[0]:.0%} to {tql[-1]:.0%} with TQL"
    claim = f"at the smallest size control makes no difference to success ({published['none']} and {published['tql']} %, 25 tasks)"
    if apart:
        return verdict(False, claim, measured + ", no overlap.")
    return verdict(None, claim, f"{measured}: they overlap, so these few seeds do not show a difference. The paper: {claim}.")


def draw_entropy(axis: Axes, records: Sequence[Record], layer: int) -> None:
    """Entropy of one layer, mean of its two token groups."""
    for control in ("none", "tql"):
        curves = [(record.steps, record.entropy[:, layer].mean(axis=1)) for record in pick(records, control=control)]
        draw_seeds(axis, curves, CONTROL_COLOURS[control], CONTROLS[control])
    axis.axhline(records[0].target[layer].mean(), color="black", linestyle=":", linewidth=1.6, label="target")
    axis.set(title=f"Attention entropy, layer {layer + 1}", xlabel="updates", ylabel="nats", ylim=(0, 3.6))
    axis.legend(loc="lower left", fontsize=8.5)


def draw_success(axis: Axes, records: Sequence[Record]) -> None:
    """At the last checkpoint: every seed a point, their episodes together a bar with its interval."""
    groups = {CONTROLS[control]: [solved(record, "policy") for record in pick(records, control=control)] for control in ("none", "tql")}
    groups["behaviour\nflow alone"] = [solved(record, BEHAVIOUR) for record in records]
    colours = [CONTROL_COLOURS["none"], CONTROL_COLOURS["tql"], "#868e96"]
    for x, (colour, runs) in enumerate(zip(colours, groups.values())):
        if runs:
            mean, low, high = rate(runs)
            axis.bar(x, 100 * mean, 0.7, color=colour, alpha=0.6)
            axis.errorbar(x, 100 * mean, [[100 * (mean - low)], [100 * (high - mean)]], color="black", capsize=5)
            axis.plot(x + np.linspace(-0.22, 0.22, len(runs)), [100 * np.mean(run) for run in runs], "o", color="black", markersize=3.5)
            axis.text(x, 106, f"{mean:.0%} of {sum(map(len, runs))}", ha="center", fontsize=8.5)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(title="Episodes solved", ylabel="%", ylim=(0, 115), yticks=range(0, 101, 20))


def draw(records: list[Record]) -> Figure:
    shown = need([record for record in records if record.study == "agent"], "of agents that act")
    caption = [
        entropy_by_size.judge(shown),
        judge(shown),
        scale_of(shown) + " Entropy, thin: every run; thick: their mean; each curve the mean of [VALUE] and other tokens. Success of the "
        "last checkpoint; dots: every run; bars: all episodes, with Wilson's 95 % interval.",
        LANDSCAPES + MAPS,
    ]
    figure, body = canvas(11, 7.9, "Agents that act, without control and with TQL", caption)
    top, bottom = body.subfigures(2, 1, height_ratios=[1, 1.25])
    axes = top.subplots(1, 3)
    for layer in (0, 1):
        draw_entropy(axes[layer], shown, layer)
    draw_success(axes[2], shown)
    draw_portraits(bottom, {CONTROLS[control]: pick(shown, control=control) for control in ("none", "tql") if pick(shown, control=control)})
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "agent")
