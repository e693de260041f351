"""Files of a dataset appear complete, under their names, or not at all. Never imports jax."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tql.config import Task
from tql.validate import Files


def free_files(task: Task, out: Path) -> Files:
    """The three files to be made in the folder `out`, which is made too; none of them exists."""
    files = Files.of(out / f"{task.dataset_name}.npz")
    for file in (files.train, files.validation, files.manifest):
        if file.exists():
            raise FileExistsError(f"{file}: exists already and is not overwritten; move or delete it, or choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    return files


def publish(new: Files, final: Files, manifest: dict[str, Any]) -> None:
    """Gives complete files their names, the training file last: where it is, all are. On failure none is."""
    new.manifest.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    pairs = ((new.validation, final.validation), (new.manifest, final.manifest), (new.train, final.train))
    done = []
    try:
        for source, target in pairs:
            with source.open("rb+") as opened:
                os.fsync(opened.fileno())
            if target.exists():
                raise FileExistsError(f"{target}: was made by somebody else meanwhile and is not overwritten.")
            done.append(target)
            os.replace(source, target)
    except BaseException:
        for target in done:
            target.unlink(missing_ok=True)
        raise


class Spool:
    """The arrays of one file while it grows, as .npy files on disk: episodes have equal lengths, so each has its place."""

    def __init__(self, folder: Path, episodes: int, rows: int):
        self.folder, self.shape = folder, (episodes, rows)
        self.files: dict[str, Any] = {}
        self.starts: dict[str, int] = {}
        folder.mkdir()

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Puts one episode in its place."""
        episodes, rows = self.shape
        for name, array in arrays.items():
            if len(array) != rows:
                raise RuntimeError(f"an episode has {len(array)} rows, expected {rows}: this OGBench ends episodes otherwise.")
            if name not in self.files:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (episodes * rows, *array.shape[1:])}
                self.files[name] = (self.folder / f"{name}.npy").open("wb+")
                np.lib.format.write_array_header_1_0(self.files[name], header)
                self.starts[name] = self.files[name].tell()
            self.files[name].seek(self.starts[name] + number * array.nbytes)
            self.files[name].write(array.tobytes())

    def archive(self, file: Path) -> None:
        """Compresses all arrays into one file in NumPy's format; equal arrays give equal bytes."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, opened in self.files.items():
                opened.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    shutil.copyfileobj(opened, member, 1 << 20)
                opened.close()


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that temporary files and workers go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
