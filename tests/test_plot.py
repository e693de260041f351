"""One picture of every kind of run, from its files alone."""

import shutil

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from tql import plot as plots
from tql import run as runs
from tql import run_directory
from tql.evaluate import wilson
from tql.plot import draw_success, plot
from tql.run_directory import RunError


@pytest.fixture
def drawn(monkeypatch):
    """The figure of the next plot, as it was when it was written."""
    figures = []
    monkeypatch.setattr(plots, "Figure", lambda **how: figures.append(Figure(**how)) or figures[-1])
    return figures


def lines_of(axis):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.lines}


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


def is_picture(path):
    pixels = imageio.imread(path)
    return path.read_bytes()[:4] == b"\x89PNG" and pixels.shape[:2] == (800, 1500) and pixels.std() > 10


def test_a_run_with_control_shows_what_its_files_say(finished, tmp_path, drawn):
    run = shutil.copytree(finished, tmp_path / "run")
    assert plot(run) == run / "plot.png" and is_picture(run / "plot.png")
    losses, entropy, temperatures, q, actor, success = drawn[0].axes
    metrics = run_directory.read_metrics(run)
    assert lines_of(losses).keys() == {"TD", "flow matching", "distillation"}
    assert lines_of(losses)["TD"].tolist() == [line["td_loss"] for line in metrics]
    assert losses.lines[0].get_xdata().tolist() == list(range(5, 41, 5)) and losses.get_xlabel() == "gradient updates"
    assert lines_of(entropy)["layer 1, other tokens"].tolist() == [line["entropy"][0][1] for line in metrics]
    targets = [np.unique(line.get_ydata()).tolist() for line in entropy.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(targets, [[0.8 * np.log(5) - 0.5]] * 2)
    assert lines_of(temperatures)["layer 1, [VALUE]"].tolist() == [line["alpha"][0][0] for line in metrics]
    assert lines_of(q)["TD target"].tolist() == [line["target_mean"] for line in metrics]
    gain = [line["actor_q"] - line["q_mean"] for line in metrics]
    np.testing.assert_array_equal(lines_of(actor)["Q(s, policy) - Q(s, data)"], gain)
    rates = {container.get_label(): container.lines[0].get_ydata() for container in success.containers}
    assert rates.keys() == {"policy", "behaviour flow alone"}
    np.testing.assert_allclose(rates["policy"], [1 / 3] * 3)
    assert not any(texts_of(axis) for axis in drawn[0].axes)


def test_a_run_before_its_first_evaluation_and_with_a_torn_line(finished, tmp_path, drawn):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluation.jsonl").unlink()
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-9])
    assert is_picture(plot(run))
    assert texts_of(drawn[0].axes[5]) == ["not evaluated yet"] and len(drawn[0].axes[0].lines[0].get_xdata()) == 7


def test_a_critic_alone_without_control_says_what_there_is_not(critic_alone, tmp_path, drawn):
    assert is_picture(plot(shutil.copytree(critic_alone, tmp_path / "run")))
    losses, entropy, temperatures, _, actor, success = drawn[0].axes
    assert lines_of(losses).keys() == {"TD"}
    assert texts_of(temperatures) == ["no control: alpha = 0"] and not temperatures.lines
    assert texts_of(actor) == texts_of(success) == [plots.NO_POLICY] and not actor.lines
    assert len(entropy.lines) == 4, "entropies and targets are shown all the same"


def test_success_is_drawn_with_wilson_s_interval():
    axis = Figure().subplots()
    rows = [dict(step=step, policy="policy", success=i < solved) for step, solved in ((100, 0), (200, 3)) for i in range(7)]
    draw_success(axis, rows[::-1], acts=True)
    (container,) = axis.containers
    low, high = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()]).T
    np.testing.assert_allclose(container.lines[0].get_ydata(), [0, 3 / 7])
    np.testing.assert_allclose(np.array([low, high]).T, [wilson(0, 7), wilson(3, 7)])


def test_a_run_that_logged_nothing_yet_says_so(finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    for content in (None, b"", b'{"step": 5'):
        if content is not None:
            (tmp_path / "metrics.jsonl").write_bytes(content)
        with pytest.raises(RunError, match="has no metrics yet; train for at least log_every = 5 updates"):
            plot(tmp_path)
    assert not (tmp_path / "plot.png").exists()


def test_no_run():
    with pytest.raises(RunError, match="holds no run of tql"):
        plot(runs.Path("nowhere"))
