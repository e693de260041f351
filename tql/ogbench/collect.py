"""A dataset made by OGBench's scripted policies, in OGBench's file format; or one that a user has
already. Never imports jax.

Every episode has its own seed, so the files are the same, byte for byte, with any number of
workers.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tql.ogbench.environment import make
from tql.ogbench.scripted import make_script
from tql.ogbench.tasks import Task
from tql.ogbench.validate import MIN_ROWS, Files, read_pair, sha256, versions
from tql.ogbench.workers import Workers, on_signal


def official_episodes(task: Task) -> int:
    """Training episodes in OGBench's own dataset; a tenth more are its validation data."""
    others = {"cube-triple": 3000, "cube-quadruple": 5000, "pointmaze-giant": 500}
    return others.get(task.domain, 1000)


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
    """Makes `out/NAME.npz`, `out/NAME-val.npz` (a tenth more episodes) and the manifest
    `out/NAME.json`. Returns the first.

    `episodes` and `rows` (environment steps per episode) are OGBench's own numbers unless given.
    The episodes are held in memory until all are there. Raises `FileExistsError` rather than
    overwrite, `ValueError` for impossible numbers, `OSError` where the folder cannot be written and
    `WorkerError` where an environment fails; then no file is left.
    """
    episodes = official_episodes(task) if episodes is None else episodes
    rows = official_rows(task) if rows is None else rows
    if episodes < 1 or workers < 1 or rows < MIN_ROWS or not 0 <= seed < 2**32:
        raise ValueError(
            f"episodes {episodes} and workers {workers} must be at least 1, rows {rows} at least "
            f"{MIN_ROWS}, and seed {seed} must lie in [0, 2^32)."
        )
    numbers = {"train": episodes, "validation": max(1, episodes // 10)}
    jobs = [(seed, split, i) for split, n in enumerate(numbers.values()) for i in range(n)]
    arguments = [(task, rows)] * min(workers, len(jobs))
    shown = {"desc": f"make {task.dataset_name}", "unit": "step", "unit_scale": True}
    shown |= {"total": len(jobs) * rows, "disable": not progress}
    with _complete_or_nothing(task, out) as new, tqdm(**shown) as bar:
        made = {}
        with Workers(make_script, arguments) as pool:
            for job, episode in pool.map("make", jobs):
                made[job] = episode
                bar.update(rows)
        bar.set_postfix_str("compressing")
        for split, file in enumerate(new[:2]):
            parts = [made[job] for job in jobs if job[1] == split]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            np.savez_compressed(file, **whole)
        how = f"OGBench's scripted policies, {task.kind} data"
        recipe = {"seed": seed, "episodes": numbers, "rows_per_episode": rows}
        _write_manifest(task, new, {"made_by": how, **recipe, "versions": versions()})
    return out / new.train.name


def adopt(task: Task, file: Path, out: Path) -> Path:
    """Takes over a dataset that exists, for example an official one: it is checked, then copied to
    `out` with a manifest.

    Its validation file must lie beside it. A manifest beside it is checked and kept. The given
    files stay as they are. Raises `FileNotFoundError`, `FileExistsError`, `OSError` and
    `DatasetError`.
    """
    old = Files.of(file)
    with _complete_or_nothing(task, out) as new:
        with contextlib.closing(make(task)) as environment:
            read_pair(task, file, environment)
        for source, copy in zip(old[:2], new):
            shutil.copyfile(source, copy)
        about = {"made_by": f"taken from {file.name}", "versions": {}}
        if old.manifest.exists():
            about = json.loads(old.manifest.read_bytes())
        _write_manifest(task, new, about)
    return out / new.train.name


def download(task: Task, out: Path) -> Path:
    """Fetches OGBench's own dataset with OGBench's own downloader (hundreds of megabytes), checks
    it and writes a manifest. Raises `ConnectionError` where it cannot be reached, and what `adopt`
    raises."""
    import ogbench

    with _complete_or_nothing(task, out) as new:
        try:
            with warnings.catch_warnings():
                # The downloader leaves closing its files to Python.
                warnings.simplefilter("ignore", ResourceWarning)
                ogbench.download_datasets([task.dataset_name], str(new.train.parent))
        except OSError as error:  # urllib's errors are OSErrors
            make_it = f"make it here with: python -m tql data {task.dataset_name}"
            wrong = f"{task.dataset_name} could not be downloaded ({error})"
            raise ConnectionError(f"{wrong}; {make_it}") from error
        with contextlib.closing(make(task)) as environment:
            read_pair(task, new.train, environment)
        _write_manifest(task, new, {"made_by": "downloaded from OGBench", "versions": {}})
    return out / new.train.name


@contextlib.contextmanager
def _complete_or_nothing(task: Task, out: Path) -> Iterator[Files]:
    """The three files of a dataset, to be written in a hidden folder. At the end of the block they
    get their names in `out`, the training file last: where it is, all are. If the block raises,
    none is.

    SIGTERM and SIGHUP unwind the block as Ctrl-C does, so that hidden files and workers go.
    """
    files = Files.of(out / f"{task.dataset_name}.npz")
    with contextlib.ExitStack() as stack:
        for name in ("SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                stack.enter_context(on_signal(number, lambda got, _: sys.exit(128 + got)))
        try:
            _check_free(files)
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out, prefix=f".{task.dataset_name}-") as hidden:
                new = Files.of(Path(hidden) / files.train.name)
                yield new
                _check_free(files)
                _give_names(new, files)
        except OSError as error:
            if error.errno is None:  # it is our own, in words already
                raise
            wrong = f"{task.dataset_name} could not be made there ({error})"
            remedy = "make room, or choose another folder with --out"
            raise OSError(f"{out}: {wrong}, and no file of it is left; {remedy}.") from error


def _give_names(new: Files, final: Files) -> None:
    """Moves complete files; if one cannot be moved, none is there."""
    pairs, moved = list(zip(new, final)), []
    try:
        for source, target in (*pairs[1:], pairs[0]):
            with source.open("rb+") as opened:
                os.fsync(opened.fileno())
            moved.append(target)
            os.replace(source, target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        raise


def _check_free(files: Files) -> None:
    for file in files:
        if file.exists():
            remedy = "move or delete it, or choose another folder with --out"
            raise FileExistsError(f"{file}: it exists already and is not overwritten; {remedy}.")


def _write_manifest(task: Task, new: Files, about: dict[str, Any]) -> None:
    """Writes what is known about a dataset, with the SHA-256 of its files."""
    sums = {file.name: sha256(file) for file in new[:2]}
    text = json.dumps({"dataset": task.dataset_name} | about | {"sha256": sums}, indent=2)
    new.manifest.write_text(f"{text}\n", encoding="utf-8")
