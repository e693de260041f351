"""A dataset made by OGBench's scripted policies, in OGBench's file format; or one that a user has already. Never imports jax.

Every episode has its own seed, so the files are the same, byte for byte, with any number of workers.
"""

import contextlib
import json
import math
import multiprocessing
import shutil
import signal
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tql.config import Task
from tql.environment import BLAS_THREADS, bare_children, make
from tql.publish import Spool, free_files, publish, terminated_like_ctrl_c
from tql.scripted import SCRIPTS, Episode, make_episode
from tql.validate import MIN_ROWS, Files, read_pair, sha256, versions

SPLITS = ("train", "validation")

EXPECTED = {
    "play": {"cube": 0.85, "button": 0.95, "drawer": 0.6, "window": 0.6},
    "noisy": {"cube": 0.7, "button": 0.9, "drawer": 0.6, "window": 0.6},
    "navigate": {"goal": 0.95},
}
"""Least share of its targets that a scripted policy reaches, by kind of data. Measured over 6 episodes of each domain: play: cubes
.97 to 1 in cube-single and the scene, .89 to .91 where there are more; buttons 1; drawers and windows, which may be locked, .77 to
.83. noisy: cubes .78 (quadruple) to .93 (single), buttons .98 to 1, drawers and windows .79 to .83."""


def official_episodes(task: Task) -> int:
    """Number of training episodes in OGBench's own dataset; a tenth more are its validation data."""
    return {"cube-triple": 3000, "cube-quadruple": 5000, "pointmaze-giant": 500}.get(task.domain, 1000)


def official_rows(task: Task) -> int:
    """Rows of an episode in OGBench's own dataset: its environment steps."""
    return 2001 if task.domain == "pointmaze-giant" else 1001


def collect(
    task: Task,
    *,
    episodes: int | None = None,
    seed: int = 0,
    workers: int = 2,
    out: Path = Path("data"),
    rows: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes `out/NAME.npz`, `out/NAME-val.npz` (a tenth more episodes) and the manifest `out/NAME.json`; returns the first.

    `episodes` and `rows` (environment steps per episode) are OGBench's own numbers unless given. Nothing appears under these
    names before everything is complete. Raises `FileExistsError` rather than overwrite, `ValueError` for impossible numbers and
    `RuntimeError` where an environment fails; warns where the scripted policy reached fewer targets than it should.
    """
    episodes = official_episodes(task) if episodes is None else episodes
    rows = official_rows(task) if rows is None else rows
    if episodes < 1 or workers < 1 or rows < MIN_ROWS or seed < 0:
        raise ValueError(
            f"episodes {episodes} and workers {workers} must be at least 1, rows {rows} at least {MIN_ROWS}, and seed {seed} not negative."
        )
    numbers = (episodes, max(1, episodes // 10))
    files = free_files(task, out)
    targets: Counter[tuple[str, bool]] = Counter()
    bar = tqdm(total=sum(numbers) * rows, desc=f"make {task.dataset_name}", unit="step", unit_scale=True, disable=not progress)
    with terminated_like_ctrl_c(), tempfile.TemporaryDirectory(dir=out, prefix=f".{task.dataset_name}-") as folder, bar:
        spools = [Spool(Path(folder) / split, number, rows) for split, number in zip(SPLITS, numbers)]
        jobs = [(split, number) for split in range(2) for number in range(numbers[split])]
        with contextlib.closing(_episodes(task, jobs, seed, min(workers, len(jobs)), rows)) as made:
            for split, number, episode in made:
                spools[split].write(number, episode.arrays())
                targets.update(episode.targets)
                bar.update(rows)
        new = Files.of(Path(folder) / files.train.name)
        bar.set_postfix_str("compressing")
        for spool, file in zip(spools, (new.train, new.validation)):
            spool.archive(file)
        manifest = {
            "dataset": task.dataset_name,
            "made_by": f"OGBench's scripted policies, {task.kind} data",
            "seed": seed,
            "episodes": dict(zip(SPLITS, numbers)),
            "rows_per_episode": rows,
            "versions": versions(),
            "sha256": {file.name: sha256(file) for file in (new.train, new.validation)},
            "scripted_policy": check_policy(task, targets),
        }
        publish(new, files, manifest)
    return files.train


def check_policy(task: Task, targets: Counter[tuple[str, bool]]) -> dict[str, Any]:
    """What the scripted policy reached, for the manifest; warns where it is too little to be chance (three standard errors)."""
    record, too_few = {}, []
    for target in sorted({target for target, _ in targets}):
        reached, tried = targets[target, True], targets[target, True] + targets[target, False]
        least = EXPECTED[task.kind][target]
        record[target] = {"tried": tried, "reached": reached, "share": round(reached / tried, 4), "expected_at_least": least}
        if reached / tried < least - 3 * math.sqrt(least * (1 - least) / tried):
            too_few.append(f"{reached} of {tried} targets '{target}' (expected at least {least:.0%})")
    if too_few:
        warnings.warn(f"{task.dataset_name}: the scripted policy reached {', '.join(too_few)}: is the simulator the pinned one?")
    return {"targets": record, "as_expected": not too_few}


def adopt(task: Task, file: Path, out: Path) -> Path:
    """Takes a dataset that exists, for example an official one: validated, then copied to `out` with a manifest.

    Its validation file must lie beside it. A manifest beside it is checked and kept. Raises `FileNotFoundError`,
    `FileExistsError` and `validate.DatasetError`; the given files stay as they are.
    """
    old, files = Files.of(file), free_files(task, out)
    with contextlib.closing(make(task)) as environment:
        read_pair(task, file, environment)
    manifest = {"dataset": task.dataset_name, "made_by": f"taken from {file.name}", "versions": {}}
    if old.manifest.exists():
        manifest = json.loads(old.manifest.read_text(encoding="utf-8"))
    with terminated_like_ctrl_c(), tempfile.TemporaryDirectory(dir=out, prefix=f".{task.dataset_name}-") as folder:
        new = Files.of(Path(folder) / files.train.name)
        for source, copy in ((old.train, new.train), (old.validation, new.validation)):
            shutil.copyfile(source, copy)
        manifest["sha256"] = {copy.name: sha256(copy) for copy in (new.train, new.validation)}
        publish(new, files, manifest)
    return files.train


def download(task: Task, out: Path) -> Path:
    """OGBench's own dataset, by OGBench's own downloader (hundreds of megabytes), then as `adopt`.

    Raises `ConnectionError` where it cannot be reached.
    """
    import ogbench

    free_files(task, out)
    with terminated_like_ctrl_c(), tempfile.TemporaryDirectory(dir=out, prefix=f".{task.dataset_name}-") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # the downloader leaves closing its files to Python
                ogbench.download_datasets([task.dataset_name], folder)
        except OSError as error:  # urllib's errors are OSErrors
            raise ConnectionError(
                f"OGBench's server did not give {task.dataset_name} ({error}); make it here with: python -m tql data {task.dataset_name}"
            ) from error
        return adopt(task, Path(folder) / f"{task.dataset_name}.npz", out)


def _episodes(
    task: Task, jobs: Sequence[tuple[int, int]], seed: int, workers: int, rows: int
) -> Iterator[tuple[int, int, Episode]]:
    """Split, number and episode for each of the jobs (split, number), as they are ready."""
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, Any] = {}
    try:
        with bare_children({"MUJOCO_GL": "disable"} | dict.fromkeys(BLAS_THREADS, "1")), _without_ctrl_c():
            for _ in range(workers):
                here, there = context.Pipe()
                processes[here] = context.Process(target=_work, args=(there, task, seed, rows), daemon=True)
                processes[here].start()
                there.close()
        waiting = list(reversed(jobs))
        busy = set()
        for connection in processes:
            connection.send(waiting.pop())
            busy.add(connection)
        while busy:
            for connection in wait(list(busy)):
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionResetError):
                    processes[connection].join(timeout=5)
                    code = processes[connection].exitcode
                    raise RuntimeError(f"a worker ended by itself (exit code {code}; -9: was memory short?).") from None
                if isinstance(answer, str):
                    raise RuntimeError(answer)
                if waiting:
                    connection.send(waiting.pop())
                else:
                    busy.remove(connection)
                yield answer
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
        for process in processes.values():
            process.join()


def _work(connection: Connection, task: Task, seed: int, rows: int) -> None:
    """A worker's life: make the episodes that the pipe asks for, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            script = SCRIPTS[task.kind](task, rows)
            while True:
                job = connection.recv()
                connection.send((*job, make_episode(script, task, seed, *job)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            connection.send(f"{task.dataset_name}, (split, episode) {job}, seed {seed}:\n{traceback.format_exc()}")


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from their first moment; it is for this process, which then ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
