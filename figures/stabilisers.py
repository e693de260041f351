"""Rebuilds `figures/stabilisers.png`: other ways to keep attention stable, beside entropy control. `python figures/stabilisers.py`."""

from collections.abc import Mapping, Sequence

import numpy as np
import tyro
from ablation import draw_bars
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from records import (
    CITED,
    CONTROL_COLOURS,
    PUBLISHED,
    Options,
    Record,
    canvas,
    draw_published,
    listed,
    mean_entropy,
    need,
    pick,
    save,
    scale_of,
    verdict,
)

WAYS = {"none": "no control", "sigma-reparam": "sigma reparam", "modern": "modern block", "qk-norm": "QK norm", "tql": "TQL"}
"""Kinds of critics, in the order of the paper's success; between no control and TQL those that change the transformer instead."""
COLOURS = {**CONTROL_COLOURS, "sigma-reparam": "#e69500", "modern": "#2a9d6f", "qk-norm": "#8f4fd1"}
WIDTH = 128


def by_way(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The recorded runs of every way: `sarsa-none`, `sarsa-tql`, and `<way>-none` of the changed transformers."""
    of = {way: pick(records, study=way, control="none", width=WIDTH) for way in WAYS}
    of |= {control: pick(records, study="sarsa", control=control, width=WIDTH) for control in ("none", "tql")}
    return {way: runs for way, runs in of.items() if runs}


def pairs_above(runs: Sequence[Record], plain: Sequence[Record]) -> str:
    """In how many pairs of equal seed the entropy lies above."""
    first, second = ({record.seed: mean_entropy(record) for record in of} for of in (runs, plain))
    both = first.keys() & second.keys()
    return f"{sum(first[seed] > second[seed] for seed in both)}/{len(both)}"


def judge(of: Mapping[str, Sequence[Record]]) -> str:
    """Agrees if every changed transformer that is recorded ends with a higher entropy than the plain one, and TQL too."""
    changed = [way for way in of if way not in ("none", "tql")]
    if "none" not in of or not changed:
        return verdict(None, "", "runs of a changed transformer, and of the plain one without control, are needed.")
    H = {way: np.mean([mean_entropy(record) for record in runs]) for way, runs in of.items()}
    rough = {way: np.mean([record.late("roughness") for record in runs]) for way, runs in of.items()}
    parts = [f"{WAYS[way]} {H[way]:.2f} nats, roughness {rough[way]:.2f}" for way in of]
    above = [f"{WAYS[way]} {pairs_above(of[way], of['none'])}" for way in of if way != "none"]
    return verdict(
        all(H[way] > H["none"] for way in of if way != "none"),
        "each of these ways keeps the entropy above that of the plain transformer (rule: means over seeds and the second half of the "
        "updates, for every way that is recorded; the paper's other measure is success, which is not measured here)",
        f"{'; '.join(parts)}. Pairs of equal seed with more entropy than the plain one: {listed(above)}.",
    )


def missing(of: Mapping[str, Sequence[Record]]) -> str:
    without = [WAYS[way] for way in WAYS if way not in of]
    return f"NOT RECORDED yet: {listed(without)}. " if without else ""


def draw_published_bars(axis: Axes, pairs: Sequence[tuple[float, float]], colours: Sequence[str]) -> None:
    """Hatched bars with their standard errors."""
    for x, ((mean, error), colour) in enumerate(zip(pairs, colours, strict=True)):
        axis.bar(x, mean, 0.5, fill=False, hatch="///", edgecolor=colour, linewidth=1)
        axis.errorbar(x, mean, error, color="black", capsize=3, linewidth=1, linestyle="none")
    axis.set(ylabel="%", ylim=(0, 80))


def draw_published_entropy(axis: Axes) -> None:
    published = PUBLISHED["entropy_26M"]
    shift = {"modern": -0.08, "tql": 0.24}  # or their names would touch
    for way in WAYS:
        draw_published(axis, published["steps"], published[way], COLOURS[way])
        at = published["steps"][-1], published[way][-1] + shift.get(way, 0)
        axis.annotate(WAYS[way], at, xytext=(4, 0), textcoords="offset points", color=COLOURS[way], va="center", fontsize=8.5)
    axis.set(title=f"Entropy, 26M, cube-double\n{CITED}", xlabel="updates (logarithmic)", ylabel="nats", xscale="log", ylim=(0, 4))
    axis.set_xlim(right=1.2e7)


def draw_ours(axis: Axes, runs: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    """Bars: means; dots: runs; a word where there are none."""
    for x, (values, colour) in enumerate(zip(runs, colours, strict=True)):
        if values:
            draw_bars(axis, x, 0.7, values, colour, None)
        else:
            axis.text(x, 0.03, "not\nrecorded", ha="center", va="bottom", fontsize=8, color="#b3261e", transform=axis.get_xaxis_transform())
    axis.set_ylim(bottom=0)


def name_bars(axis: Axes, names: Sequence[str]) -> None:
    axis.set_xticks(range(len(names)), names, fontsize=8.5)
    axis.set_xlim(-0.6, len(names) - 0.4)


def draw_four(
    figure: SubFigure, success: Sequence, kinds: Sequence[Sequence[Record]], colours: Sequence[str], names: Sequence[str]
) -> Axes:
    """Published success, our entropy and our roughness; returns the axes where the published entropy belongs."""
    axes, domain = figure.subplots(2, 2), next(runs[0].domain for runs in kinds if runs)
    draw_published_bars(axes[0, 0], success, colours)
    draw_ours(axes[0, 1], [[mean_entropy(record) for record in runs] for runs in kinds], colours)
    draw_ours(axes[1, 1], [[record.late("roughness") for record in runs] for runs in kinds], colours)
    axes[0, 0].set_title(f"Success, cube-double\n{CITED}")
    axes[0, 1].set(title=f"Entropy, ours, {domain}", ylabel="nats", ylim=(0, 4))
    axes[1, 1].set(title=f"Roughness of the Q landscape, ours, {domain}", ylabel="no unit")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
        name_bars(axis, names)
    return axes[1, 0]


def draw(records: list[Record]) -> Figure:
    of = by_way(records)
    ours = need([record for runs in of.values() for record in runs], f"of critics of width {WIDTH}")
    caption = [
        missing(of) + judge(of),
        scale_of(ours) + " Dots: every run; bars: their mean over the second half of the updates.",
        "Ours: mean over the entries of layer x {[VALUE], other tokens}; published: mean over layers and queries. The paper's legend calls "
        "sigma reparam spectral norm. Success: published only; bars there are standard errors.",
    ]
    figure, body = canvas(11, 6.9, f"Other ways to keep attention stable, reduced scale, d_model {WIDTH}", caption)
    averages = {way: block["average"] for way, block in PUBLISHED["success_stabilisers"].items() if way in WAYS}
    averages["none"] = PUBLISHED["ablation"]["none"]
    success, kinds = [averages[way] for way in WAYS], [of.get(way, []) for way in WAYS]
    names = [way.replace(" ", "\n") for way in WAYS.values()]
    draw_published_entropy(draw_four(body, success, kinds, [COLOURS[way] for way in WAYS], names))
    return figure


if __name__ == "__main__":
    save(draw, tyro.cli(Options, description=__doc__), "stabilisers")
