"""A film of the episode that the evaluation ran, or one line that says why there is none."""

import importlib.util

import imageio.v3 as iio
import numpy as np
import pytest

from tql.ogbench import render as module
from tql.ogbench.evaluate import run_episodes
from tql.ogbench.render import RenderingUnavailable, render_episode
from tql.ogbench.tasks import Task

CUBE = Task.parse("cube-single-play-singletask-task1-v0")
MAZE = Task.parse("pointmaze-medium-navigate-singletask-task1-v0")


def sines(n_a, seen=None):
    """A policy by hand, of the observation, the episode and the step, which shows what it saw of
    episode 4."""

    def policy(observations, episodes, step):
        if seen is not None and 4 in episodes:
            seen.append(observations[episodes.tolist().index(4)].copy())
        phase = observations.sum(axis=1, keepdims=True) + episodes[:, None] + 0.3 * step
        return np.sin(phase + np.arange(n_a)).astype(np.float32)

    return policy


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """Skips, with the reason, where nothing can draw."""
    out = tmp_path_factory.mktemp("probe") / "probe.gif"
    try:
        render_episode(sines(2), MAZE, seed=0, out=out, max_steps=1)
    except RenderingUnavailable as reason:
        pytest.skip(str(reason))


def test_the_film_shows_the_robot_the_cube_and_motion(drawing, tmp_path):
    out = tmp_path / "new folder" / "cube.gif"
    render_episode(sines(5), CUBE, seed=0, out=out, max_steps=9)
    frames = iio.imread(out)
    assert frames.shape == (4, 200, 200, 3), "the start, steps 4 and 8, and the last"
    red, green, blue = np.moveaxis(frames[0].astype(int), -1, 0)
    assert ((red > 120) & (green < 80) & (blue < 80)).sum() > 20, "a red cube"
    assert ((red > 150) & (green > 150) & (blue > 150)).sum() > 200, "a light arm"
    assert (frames[0] != frames[-1]).any(axis=-1).mean() > 0.01
    assert out.stat().st_size < 100_000
    assert list(out.parent.iterdir()) == [out]


def test_the_film_is_the_episode_of_the_evaluation(drawing, tmp_path):
    how = dict(seed=3, wave=3, max_steps=11)
    evaluated, filmed = [], []
    quiet = dict(workers=1, progress=False)
    episodes = run_episodes(sines(2, evaluated), MAZE, episodes=5, **quiet, **how)
    out = tmp_path / "maze.gif"
    film = render_episode(sines(2, filmed), MAZE, episode=4, out=out, **how)
    assert film == episodes[4]
    np.testing.assert_array_equal(filmed, evaluated)
    assert len(np.unique(filmed, axis=0)) == 11


def test_where_nothing_draws_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(RenderingUnavailable) as caught:
        render_episode(sines(2), MAZE, seed=0, out=tmp_path / "maze.gif")
    message = str(caught.value)
    assert "\n" not in message
    words = ("libegl1", "libosmesa6", "export MUJOCO_GL", "MUJOCO_GL=nonsense: RuntimeError")
    assert all(word in message for word in words)
    assert not any(tmp_path.iterdir())


def test_egl_then_osmesa_are_tried_and_both_reasons_given(tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    tried = []

    def no_gl(task, *, gl, **_):
        tried.append(gl)
        raise module.WorkerError(f"a traceback\n\nImportError: no {gl} here\n")

    monkeypatch.setattr(module, "Environments", no_gl)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    both = "ImportError: no egl here; .*ImportError: no osmesa here"
    with pytest.raises(RenderingUnavailable, match=both):
        render_episode(sines(2), MAZE, seed=0, out=tmp_path / "maze.gif")
    assert tried == ["egl", "osmesa"]


def test_a_failed_film_leaves_the_old_one(drawing, tmp_path):
    out = tmp_path / "maze.gif"
    out.write_bytes(b"the old film")
    nan = lambda observations, *_: np.full((len(observations), 2), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN or Inf"):
        render_episode(nan, MAZE, seed=0, out=out, max_steps=2)
    assert out.read_bytes() == b"the old film"
    assert list(tmp_path.iterdir()) == [out]


def test_a_stop_while_writing_leaves_no_half_film(tmp_path, monkeypatch):
    def stopped(path, *_, **__):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.iio, "imwrite", stopped)
    with pytest.raises(KeyboardInterrupt):
        module._write(tmp_path / "maze.gif", np.zeros((1, 8, 8, 3), np.uint8), 5.0)
    assert not any(tmp_path.iterdir())


def test_the_format_is_checked_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a \.gif or an \.mp4, not '\.avi'"):
        render_episode(sines(2), MAZE, seed=0, out=tmp_path / "maze.avi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RenderingUnavailable, match="pip install imageio-ffmpeg"):
        render_episode(sines(2), MAZE, seed=0, out=tmp_path / "maze.mp4")


# imageio's reader and writer leave closing ffmpeg's pipes to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_mp4_where_there_is_an_encoder(drawing, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    out = tmp_path / "maze.mp4"
    render_episode(sines(2), MAZE, seed=0, out=out, max_steps=7)
    assert iio.imread(out).shape == (8, 200, 200, 3)
