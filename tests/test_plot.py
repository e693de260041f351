"""One picture of every kind of run, from its files alone."""

import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from tql.analysis import plot
from tql.analysis.plot import draw_success, plot_run
from tql.ogbench.evaluate import wilson
from tql.training.run_directory import RunError, read_metrics


@pytest.fixture
def drawn(monkeypatch):
    """The figure of the next plot, as it was when it was written."""
    figures = []
    keep = lambda **how: figures.append(Figure(**how)) or figures[-1]
    monkeypatch.setattr(plot, "Figure", keep)
    return figures


def lines_of(axis):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.lines}


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


def test_a_run_with_control_shows_what_its_files_say(finished, tmp_path, drawn):
    run = shutil.copytree(finished, tmp_path / "run")
    assert plot_run(run) == run / "plot.png"
    assert imageio.imread(run / "plot.png").shape[:2] == (800, 1500)
    losses, entropy, temperatures, q, actor, success = drawn[0].axes
    metrics = read_metrics(run)
    assert lines_of(losses).keys() == {"TD", "flow matching", "distillation"}
    assert lines_of(losses)["TD"].tolist() == [line["td_loss"] for line in metrics]
    assert losses.lines[0].get_xdata().tolist() == list(range(5, 41, 5))
    H = [line["entropy"][0][1] for line in metrics]
    assert lines_of(entropy)["layer 1, other tokens"].tolist() == H
    targets = [np.unique(x.get_ydata()).tolist() for x in entropy.lines if x.get_linestyle() == ":"]
    np.testing.assert_allclose(targets, [[0.8 * np.log(5) - 0.5]] * 2)
    alpha = [line["alpha"][0][0] for line in metrics]
    assert lines_of(temperatures)["layer 1, [VALUE]"].tolist() == alpha
    assert lines_of(q)["TD target"].tolist() == [line["target_mean"] for line in metrics]
    gain = [line["actor_q"] - line["q_mean"] for line in metrics]
    np.testing.assert_array_equal(lines_of(actor)["Q(s, policy) - Q(s, data)"], gain)
    curves = {of.get_label(): of.lines[0] for of in success.containers}
    assert curves.keys() == {"policy", "behaviour flow alone"}
    assert curves["policy"].get_xdata().tolist() == [15, 30, 40], "all evaluations, by updates"
    np.testing.assert_allclose(curves["policy"].get_ydata(), [1 / 3] * 3)


def test_all_panels_have_one_axis_of_updates(finished, tmp_path, drawn):
    """Also where a run has a single evaluation, at its end."""
    run = shutil.copytree(finished, tmp_path / "run")
    rows = (run / "evaluation.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluation.jsonl").write_text("".join(rows[-6:]))
    plot_run(run)
    assert {axis.get_xlim() for axis in drawn[0].axes} == {(0, 41.2)}


def test_a_run_before_its_first_evaluation_and_with_a_torn_line(finished, tmp_path, drawn):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluation.jsonl").unlink()
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-9])
    plot_run(run)
    assert texts_of(drawn[0].axes[5]) == ["not evaluated yet"]
    assert len(drawn[0].axes[0].lines[0].get_xdata()) == 7


def test_a_critic_alone_without_control_says_what_there_is_not(critic_alone, tmp_path, drawn):
    plot_run(shutil.copytree(critic_alone, tmp_path / "run"))
    losses, entropy, temperatures, _, actor, success = drawn[0].axes
    assert lines_of(losses).keys() == {"TD"}
    assert texts_of(temperatures) == ["no control: alpha = 0"] and not temperatures.lines
    assert texts_of(actor) == texts_of(success) == [plot.NO_POLICY] and not actor.lines
    assert len(entropy.lines) == 4, "entropies and targets are shown all the same"


def test_success_is_drawn_with_wilson_s_interval():
    axis = Figure().subplots()
    counts = ((100, 0), (200, 3))
    row = lambda step, success: dict(step=step, policy="policy", success=success)
    rows = [row(step, i < solved) for step, solved in counts for i in range(7)]
    draw_success(axis, rows[::-1], acts=True)
    (container,) = axis.containers
    low, high = np.array([ends[:, 1] for ends in container.lines[2][0].get_segments()]).T
    np.testing.assert_allclose(container.lines[0].get_ydata(), [0, 3 / 7])
    np.testing.assert_allclose(np.array([low, high]).T, [wilson(0, 7), wilson(3, 7)])


def test_a_run_that_logged_nothing_yet_says_so(finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    with pytest.raises(RunError, match="has no metrics yet; train for at least log_every = 5"):
        plot_run(tmp_path)
    assert not (tmp_path / "plot.png").exists()
    with pytest.raises(RunError, match="holds no run of tql"):
        plot_run(Path("nowhere"))
