"""One episode as a GIF or an MP4, on a machine with or without a screen."""

import importlib.util
import os
import platform
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8

from tql.config import Task
from tql.environment import Environments, WorkerError
from tql.evaluate import Episode, Policy, act_on_wave, episode_seed

STEPS_PER_SECOND = 20
"""Of OGBench's manipulation environments; the film of a maze runs at twice its speed."""


class RenderingUnavailable(RuntimeError):
    """No OpenGL that draws without a screen, or no encoder. The message is one line that says what to install or export."""


def render(
    policy: Policy,
    task: Task,
    *,
    seed: int,
    out: Path,
    episode: int = 0,
    wave: int = 10,
    max_steps: int | None = None,
) -> Episode:
    """Films episode number `episode` of the evaluation with this seed: the same numbers as in `run_episodes` with this `wave`.

    A GIF has every fourth step (5 pictures/s), an MP4 every step (20 pictures/s), 200 x 200 pixels. The file appears only when
    it is whole. Raises `ValueError` for another suffix and `RenderingUnavailable`.
    """
    _check_format(out)
    every = 4 if out.suffix == ".gif" else 1
    environments = _drawing_environments(task, max_steps)
    with environments:
        seed_of_episode = episode_seed(seed, episode)
        observations = environments.reset([seed_of_episode])
        frames = [environments.frame()]
        total_reward, length, running = 0.0, 0, np.ones(1, bool)
        while running[0]:
            actions = act_on_wave(policy, observations, np.array([episode]), length, wave)
            observations, rewards, ended, success = environments.step(actions, running)
            total_reward, length, running = total_reward + float(rewards[0]), length + 1, ~ended
            if length % every == 0 or ended[0]:
                frames.append(environments.frame())
    _write(out, np.stack(frames), STEPS_PER_SECOND / every)
    return Episode(seed_of_episode, total_reward, length, bool(success[0]))


def _check_format(out: Path) -> None:
    if out.suffix not in (".gif", ".mp4"):
        raise ValueError(f"{out}: a film is a .gif or an .mp4, not '{out.suffix}'.")
    if out.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise RenderingUnavailable("an MP4 needs an encoder: pip install imageio-ffmpeg; or choose a name that ends in .gif.")


def _drawing_environments(task: Task, max_steps: int | None) -> Environments:
    """An environment in a process whose OpenGL works. MuJoCo reads `MUJOCO_GL` on import, so each try is a process."""
    headless = ("egl", "osmesa") if platform.system() == "Linux" else ("",)
    wanted = os.environ.get("MUJOCO_GL")
    reasons = []
    for gl in (wanted,) if wanted else headless:
        try:
            environments = Environments(task, size=1, workers=1, gl=gl, max_episode_steps=max_steps)
            try:
                environments.reset([0])
                environments.frame()
                return environments
            except BaseException:
                environments.close()
                raise
        except WorkerError as error:
            reasons.append(f"MUJOCO_GL={gl}: {str(error).strip().splitlines()[-1]}")
    raise RenderingUnavailable(
        "no OpenGL that draws without a screen: apt-get install libegl1 libgl1 libgl1-mesa-dri (or libosmesa6), "
        f"or export MUJOCO_GL=glfw where there is a screen. Tried {'; '.join(reasons)}"
    )


def _write(out: Path, frames: UInt8[np.ndarray, "frames height width 3"], frames_per_second: float) -> None:
    """Writes beside the file and renames, so that a stop leaves no half film."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        if out.suffix == ".gif":
            iio.imwrite(partial, frames, duration=1000 / frames_per_second, loop=0)
        else:
            # Blocks of 8 pixels: the default of 16 would resize 200 x 200.
            iio.imwrite(partial, frames, fps=frames_per_second, macro_block_size=8)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
