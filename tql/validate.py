"""What a dataset on disk must be. Errors name the file, the array and the row, before any training; nothing in a file is executed.

OGBench's format: a NumPy archive with one row per environment step, and beside `NAME.npz` the validation data in `NAME-val.npz`.
Ours adds a manifest, `NAME.json`. Never imports jax.
"""

import hashlib
import importlib.metadata
import json
import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from tql.config import Task
from tql.scripted import BUTTONS, DTYPES

SIMULATOR = ("ogbench", "mujoco", "dm_control", "gymnasium", "numpy", "scipy")
"""Packages whose versions can change the rows that a seed makes."""

MIN_ROWS = 3
"""Rows of the shortest episode: two steps, and the row whose observation is the last next state."""


class DatasetError(ValueError):
    """A dataset cannot be used; the message says which file, array and row, what was expected, and what to do."""


@dataclass(frozen=True)
class Files:
    """The three files of a dataset."""

    train: Path
    validation: Path
    manifest: Path

    @staticmethod
    def of(path: Path) -> "Files":
        """Raises `DatasetError` for a path from which OGBench would derive a wrong validation path."""
        if path.suffix != ".npz" or str(path).count(".npz") != 1:
            raise DatasetError(
                f"{path}: '.npz' must stand at the end of a dataset's path and nowhere else, because OGBench puts '-val.npz' "
                "in the place of each to find the validation file; rename the file or the folder."
            )
        if path.stem.endswith("-val"):
            raise DatasetError(f"{path}: this is a validation file; name the training file, the one without '-val'.")
        return Files(path, path.with_name(f"{path.stem}-val.npz"), path.with_suffix(".json"))


def read_pair(task: Task, path: Path, environment: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of the training and of the validation file, checked against each other, the task and the manifest.

    `environment` is one of the task's domain. Raises `FileNotFoundError` and `DatasetError`; warns where other versions of the
    simulator made the data.
    """
    files = Files.of(path)
    if not files.train.is_file():
        raise FileNotFoundError(f"{files.train}: there is no such file; make it with: python -m tql data {task.dataset_name}")
    if not files.validation.is_file():
        raise FileNotFoundError(f"{files.validation}: there is no such file; the validation data must lie beside {files.train.name}.")
    check_manifest(task, files)
    columns = columns_of(environment)
    train, validation = (read(file, task, columns) for file in (files.train, files.validation))
    if hasattr(environment.unwrapped, "maze_map"):
        for file, arrays in ((files.train, train), (files.validation, validation)):
            _in_maze(file, arrays["qpos"], environment.unwrapped, task)
    for name in ("observations", "actions"):
        if np.array_equal(train[name], validation[name]):
            raise DatasetError(f"{files.validation}: array '{name}' is the one of {files.train.name}; it must be of other episodes.")
    return train, validation


def columns_of(environment: Any) -> dict[str, int | None]:
    """Name of each array that a dataset of this environment has, and its number of columns; None for a vector."""
    inner = environment.unwrapped
    observation, _ = environment.reset()
    n_s, n_a = len(observation), environment.action_space.shape[0]
    columns = {"observations": n_s, "actions": n_a, "terminals": None, "qpos": inner.model.nq, "qvel": inner.model.nv}
    return columns | ({"button_states": inner._num_buttons} if hasattr(inner, "_cur_button_states") else {})


def read(file: Path, task: Task, columns: dict[str, int | None]) -> dict[str, np.ndarray]:
    """The arrays of one file, each checked. Raises `DatasetError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            headers = _headers(file, archive)
            _check_headers(file, task, columns, headers)
            arrays = {}
            for name in columns:
                arrays[name] = _array(file, name, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        # OSError: `read_array` and `zipfile` report some kinds of damage so.
        raise DatasetError(f"{file}: damaged, or not a NumPy archive ({error}); copy, download or make it again.") from error
    _check_episodes(file, arrays["terminals"])
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            _all_rows(file, name, array, np.isfinite(array), "a finite number")
    _all_rows(file, "actions", arrays["actions"], np.abs(arrays["actions"]) <= 1, "in [-1, 1]")
    if "button_states" in arrays:
        _all_rows(file, "button_states", arrays["button_states"], np.isin(arrays["button_states"], (0, 1)), "0 or 1")
    return arrays


def _array(file: Path, name: str, archive: zipfile.ZipFile) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:  # NumPy, zipfile and three decompressors have a dozen kinds of them for damaged bytes
        raise DatasetError(f"{file}: array '{name}' is damaged ({error!r}); copy, download or make the file again.") from error


def _headers(file: Path, archive: zipfile.ZipFile) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of every array, from the first bytes of each; the data stay unread."""
    headers = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise DatasetError(f"{file}: '{name}' is no array (its name does not end in .npy); a dataset holds arrays only.")
        if name in headers:
            raise DatasetError(f"{file}: array '{name}' occurs twice.")
        with archive.open(member) as opened:
            try:
                version = np.lib.format.read_magic(opened)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
                shape, _, dtype = read_header(opened)
            except ValueError as error:
                raise DatasetError(f"{file}: '{member.filename}' is not a NumPy array ({error}).") from error
            if dtype.hasobject:
                raise DatasetError(f"{file}: array '{name}' has pickled Python objects, which could run code; they are never loaded.")
            expected, found = opened.tell() + math.prod(shape) * dtype.itemsize, member.file_size
            if expected != found:
                raise DatasetError(f"{file}: array '{name}' says it has shape {shape}, which is {expected} bytes, but has {found}.")
            headers[name] = (shape, dtype)
    return headers


def _check_headers(
    file: Path, task: Task, columns: dict[str, int | None], headers: dict[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    """Names, types and sizes are those of the task's domain, with as many rows everywhere."""
    for name, size in columns.items():
        if name not in headers:
            raise DatasetError(f"{file}: array '{name}' is missing; datasets of {task.domain} have {', '.join(columns)}.")
        (shape, dtype), wanted = headers[name], np.dtype((DTYPES | BUTTONS)[name])
        if dtype != wanted:
            raise DatasetError(f"{file}: array '{name}' is of type {dtype}, expected {wanted}.")
        if len(shape) != (1 if size is None else 2):
            raise DatasetError(f"{file}: array '{name}' has shape {shape}, expected {'(rows,)' if size is None else f'(rows, {size})'}.")
        if shape[1:] != (() if size is None else (size,)):
            raise DatasetError(
                f"{file}: array '{name}' has {shape[1]} columns, but those of {task.domain} have {size}: is it a dataset of another domain?"
            )
        if shape[0] != headers["observations"][0][0]:
            raise DatasetError(f"{file}: array '{name}' has {shape[0]} rows, but 'observations' has {headers['observations'][0][0]}.")
    if "button_states" in headers and "button_states" not in columns:
        raise DatasetError(f"{file}: array 'button_states' is there, but {task.domain} has no buttons: is it a dataset of another domain?")


def _check_episodes(file: Path, terminals: Bool[np.ndarray, " _"]) -> None:
    """Episodes end where `terminals` is true, the last one in the last row, and none is too short."""
    if not len(terminals):
        raise DatasetError(f"{file}: array 'terminals' has no rows: the dataset is empty.")
    if not terminals[-1]:
        raise DatasetError(f"{file}: array 'terminals', row {len(terminals) - 1}: the last row must end an episode; is the file cut off?")
    last = np.flatnonzero(terminals)
    rows = np.diff(last, prepend=-1)
    if rows.min() < MIN_ROWS:
        short = int(rows.argmin())
        raise DatasetError(
            f"{file}: array 'terminals', row {last[short]}: the episode that ends here has {rows[short]} rows, "
            f"expected at least {MIN_ROWS} (two steps and the observation after them)."
        )


def _all_rows(
    file: Path, name: str, array: Shaped[np.ndarray, "_ _"], good: Bool[np.ndarray, "_ _"], expected: str
) -> None:
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise DatasetError(f"{file}: array '{name}', row {row}, column {column}: {array[row, column]} is not {expected}.")


def _in_maze(file: Path, xy: Shaped[np.ndarray, "_ 2"], maze: Any, task: Task) -> None:
    """Mazes have arrays of equal sizes; only the walls tell them apart."""
    offset = np.array([maze._offset_y, maze._offset_x])
    cells = np.floor((xy[:, ::-1] + offset) / maze._maze_unit + 0.5).astype(int)  # OGBench's `xy_to_ij`
    inside = ((cells >= 0) & (cells < maze.maze_map.shape)).all(axis=1)
    free = inside & (maze.maze_map[tuple(np.where(inside[:, None], cells, 0).T)] == 0)
    if not free.all():
        row = int(free.argmin())
        raise DatasetError(f"{file}: array 'qpos', row {row}: {xy[row]} is in a wall of {task.domain}: is it a dataset of another maze?")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The installed versions of the packages that make a dataset."""
    return {name: importlib.metadata.version(name) for name in SIMULATOR}


def check_manifest(task: Task, files: Files) -> None:
    """The files are the ones that the manifest was written for. A dataset without a manifest has nothing to check.

    Raises `DatasetError`; warns where the manifest's versions are not the installed ones.
    """
    if not files.manifest.exists():
        return
    try:
        manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
        name, sums, made_with = manifest["dataset"], manifest["sha256"], dict(manifest["versions"])
        expected = {file: sums[file.name] for file in (files.train, files.validation)}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DatasetError(f"{files.manifest}: not a dataset's manifest ({error!r}); delete it to use the dataset unchecked.") from error
    if name != task.dataset_name:
        raise DatasetError(f"{files.manifest}: this is '{name}', but {task.name} needs '{task.dataset_name}'.")
    for file, checksum in expected.items():
        if sha256(file) != checksum:
            raise DatasetError(f"{file}: its SHA-256 is not the one in {files.manifest.name}: changed or damaged since; make it again.")
    other = {package: (made_with[package], here) for package, here in versions().items() if made_with.get(package, here) != here}
    if other:
        differences = ", ".join(f"{package} {made} (installed: {here})" for package, (made, here) in other.items())
        warnings.warn(f"{files.train}: made with {differences}; the environment may move otherwise than the data say.", stacklevel=2)
