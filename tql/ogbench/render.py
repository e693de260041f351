"""One episode as a GIF or an MP4, on a machine with or without a screen."""

import contextlib
import importlib.util
import os
import platform
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8

from tql.ogbench.environment import Environments
from tql.ogbench.evaluate import Episode, WavePolicy, episode_seed, play_wave
from tql.ogbench.tasks import Task
from tql.ogbench.workers import WorkerError

STEPS_PER_SECOND = 20
"""Of OGBench's manipulation environments. The film of a maze runs at twice its speed."""


class RenderingUnavailable(RuntimeError):
    """There is no OpenGL that draws without a screen, or no encoder. The message is one line that
    says what to install or export."""


def render_episode(
    policy: WavePolicy,
    task: Task,
    *,
    seed: int,
    out: Path,
    episode: int = 0,
    wave: int = 10,
    max_steps: int | None = None,
) -> Episode:
    """Films episode number `episode` of the evaluation with this seed. It is the same, number by
    number, as in `run_episodes` with this `wave`.

    A GIF has every fourth step (5 pictures/s), an MP4 every step (20 pictures/s), of 200 x 200
    pixels. The file appears only when it is whole. Raises `ValueError` for another suffix,
    `RenderingUnavailable`, and what `run_episodes` raises.
    """
    if out.suffix not in (".gif", ".mp4"):
        raise ValueError(f"{out}: a film is a .gif or an .mp4, not '{out.suffix}'.")
    if out.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        remedy = "pip install imageio-ffmpeg; or choose a name that ends in .gif"
        raise RenderingUnavailable(f"an MP4 needs an encoder: {remedy}.")
    every = 4 if out.suffix == ".gif" else 1
    frames = []
    with _drawing_environment(task, max_steps) as environments:

        def film(step, ended):
            if step % every == 0 or ended[0]:
                frames.append(environments.frame())

        own_seed = episode_seed(seed, episode)
        (filmed,) = play_wave(policy, environments, [own_seed], episode, wave, film)
    _write(out, np.stack(frames), STEPS_PER_SECOND / every)
    return filmed


def _drawing_environment(task: Task, max_steps: int | None) -> Environments:
    """One environment in a process whose OpenGL works. MuJoCo reads `MUJOCO_GL` when it is
    imported, so each try is a process."""
    headless = ("egl", "osmesa") if platform.system() == "Linux" else ("",)
    wanted = os.environ.get("MUJOCO_GL")
    reasons = []
    for gl in (wanted,) if wanted else headless:
        with contextlib.ExitStack() as stack:
            try:
                limits = {"size": 1, "workers": 1, "max_episode_steps": max_steps}
                environments = stack.enter_context(Environments(task, gl=gl, **limits))
                environments.reset([0])
                environments.frame()
                stack.pop_all()
                return environments
            except WorkerError as error:
                reasons.append(f"MUJOCO_GL={gl}: {str(error).strip().splitlines()[-1]}")
    raise RenderingUnavailable(
        "no OpenGL that draws without a screen: apt-get install libegl1 libgl1 libgl1-mesa-dri (or "
        "libosmesa6), or export MUJOCO_GL=glfw where there is a screen. Tried " + "; ".join(reasons)
    )


def _write(
    out: Path, frames: UInt8[np.ndarray, "frames height width 3"], frames_per_second: float
) -> None:
    """Writes beside the file and renames, so that a stop leaves no half film."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    how = {"duration": 1000 / frames_per_second, "loop": 0}
    if out.suffix == ".mp4":
        # Blocks of 8 pixels: the default of 16 would resize 200 x 200.
        how = {"fps": frames_per_second, "macro_block_size": 8}
    try:
        iio.imwrite(partial, frames, **how)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
