"""Draws `roughness.png`: how rough Q is over actions, by width, without control and with TQL.

python figures/roughness.py
"""

from draw import COLOURS, CONTROLS, canvas, dots, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """cube-single, seeds 0, 1, 2; the paper gives no such number
without control wider is rougher; with an actor TQL is not smoother"""

MEASURES = {"roughness": "Roughness of Q", "turning_points": "Turning points of Q"}
KINDS = {
    "32": "sarsa-{}-32",
    "64": "sarsa-{}-64",
    "128": "sarsa-{}-128",
    "64 with\nan actor": "flow-{}-64",
}
"""What stands below the axis, and the label of its runs for a kind of control."""


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 4.2, CAPTION)
    for axis, (measure, title) in zip(figure.subplots(1, 2), MEASURES.items()):
        for x, label in enumerate(KINDS.values()):
            for control, shift in (("none", -0.17), ("tql", 0.17)):
                values = [run.late(measure) for run in pick(records, label=label.format(control))]
                dots(axis, x + shift, values, COLOURS[control], CONTROLS[control] if x == 0 else "")
        axis.axvline(2.5, color="#bbbbbb", linewidth=1)
        axis.set_xticks(range(len(KINDS)), KINDS)
        axis.set(title=title, xlabel="width of the critic", ylim=(0, None))
    axis.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    save(draw(read("cpu")), "roughness")
