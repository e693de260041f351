"""Draws `roughness.png`: how rough Q is over actions, by width, without control and with TQL.

python figures/roughness.py
"""

from draw import COLOURS, CONTROLS, canvas, dots, save
from matplotlib.figure import Figure
from records import Record, pick, read

CAPTION = """cube-single, seeds 0, 1, 2; the paper gives no such number
without control wider is rougher; with an actor TQL is not smoother"""

MEASURES = {"roughness": "Roughness of Q", "turning_points": "Turning points of Q"}
WIDTHS = (32, 64, 128)


def draw(records: list[Record]) -> Figure:
    figure = canvas(6.4, 4.2, CAPTION)
    for axis, (measure, title) in zip(figure.subplots(1, 2), MEASURES.items()):
        for x, width in enumerate(WIDTHS):
            for control, shift in (("none", -0.17), ("tql", 0.17)):
                runs = pick(records, label=f"agent-{control}-{width}")
                values = [run.late(measure) for run in runs]
                dots(axis, x + shift, values, COLOURS[control], CONTROLS[control] if x == 0 else "")
        axis.set_xticks(range(len(WIDTHS)), WIDTHS)
        axis.set(title=title, xlabel="width of the critic", ylim=(0, None))
    axis.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    save(draw(read("collapse")), "roughness")
