"""What a dataset's files must be before they are used. Never imports jax.

A dataset is in OGBench's format: a NumPy archive with one row per environment step, `NAME.npz`, and
beside it the validation data, `NAME-val.npz`. Ours adds a manifest, `NAME.json`. An error is one
line that names the file, what is wrong in it and what to do. Nothing in a file is executed.
"""

import hashlib
import importlib.metadata
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from tql.ogbench.scripted import DTYPES
from tql.ogbench.tasks import Task

SIMULATOR = ("ogbench", "mujoco", "dm_control", "gymnasium", "numpy", "scipy")
"""The packages whose versions can change the rows that a seed makes."""

MIN_ROWS = 3
"""Rows of the shortest episode: two steps, and the row whose observation is the last next state."""


class DatasetError(ValueError):
    """A dataset cannot be used."""


class Files(NamedTuple):
    """The three files of a dataset."""

    train: Path
    validation: Path
    manifest: Path

    @staticmethod
    def of(train: Path) -> "Files":
        """The training file, and the two that belong beside it."""
        return Files(train, train.with_name(f"{train.stem}-val.npz"), train.with_suffix(".json"))


def read_pair(
    task: Task, path: Path, environment: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of the training file `path` and of its validation file, each checked against the
    task, its `environment` and the manifest, if there is one.

    Raises `FileNotFoundError` and `DatasetError`. Warns where other versions of the simulator made
    the data.
    """
    files = Files.of(path)
    make_it = f"make it with: python -m tql data {task.dataset_name}"
    beside = f"the validation data must lie beside {path.name}"
    for file, remedy in ((files.train, make_it), (files.validation, beside)):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file; {remedy}")
    check_manifest(task, files)
    train, validation = (read(file, task, environment) for file in files[:2])
    if np.array_equal(train["observations"], validation["observations"]):
        raise DatasetError(f"{files.validation}: it is a copy of {path.name}; take other episodes.")
    return train, validation


def read(file: Path, task: Task, environment: Any) -> dict[str, np.ndarray]:
    """The arrays of one file, each checked. Raises `DatasetError`."""
    rows = row_shapes(environment)
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in [x for x in rows if f"{x}.npy" in archive.namelist()]:
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                    if member.read(1):  # the checksum is compared where an array is read to its end
                        raise ValueError(f"array '{name}' is longer than its header says")
    except Exception as error:  # NumPy, zipfile and the decompressors have a dozen kinds of them
        wrong = f"it is damaged, or not a dataset ({' '.join(str(error).split())})"
        raise DatasetError(f"{file}: {wrong}; copy, download or make it again.") from error
    n = len(np.atleast_1d(arrays.get("observations", ())))
    for name, row in rows.items():
        wanted, found = f"{DTYPES[name]}{[n, *row]}", "missing"
        if name in arrays:
            found = f"{arrays[name].dtype}{list(arrays[name].shape)}"
        if found != wanted:
            wrong = f"array '{name}' is {found}, expected {wanted}"
            hint = f"is it a dataset of another domain than {task.domain}?"
            raise DatasetError(f"{file}: {wrong}; {hint}")
    good = {name: np.isfinite(array) for name, array in arrays.items()}
    good["actions"] &= np.abs(arrays["actions"]) <= 1
    if hasattr(environment.unwrapped, "maze_map"):
        good["qpos"] &= in_maze(arrays["qpos"], environment.unwrapped)[:, None]
    limits = {"actions": "in [-1, 1]", "qpos": "a position in this environment"}
    for name, ok in good.items():
        if not ok.all():
            place = tuple(np.argwhere(~ok)[0].tolist())
            wrong = f"{arrays[name][place]} is not {limits.get(name, 'a finite number')}"
            raise DatasetError(f"{file}: array '{name}', row {place[0]}: {wrong}; make it again.")
    _check_episodes(file, arrays["terminals"])
    return arrays


def row_shapes(environment: Any) -> dict[str, tuple[int, ...]]:
    """The arrays that a dataset of this environment has, and the shape of one row of each."""
    inner = environment.unwrapped
    n_s, n_a = len(environment.reset()[0]), environment.action_space.shape[0]
    rows = {"observations": (n_s,), "actions": (n_a,), "terminals": ()}
    rows |= {"qpos": (inner.model.nq,), "qvel": (inner.model.nv,)}
    buttons = {"button_states": (inner._num_buttons,)} if hasattr(inner, "_num_buttons") else {}
    return rows | buttons


def _check_episodes(file: Path, terminals: Bool[np.ndarray, " rows"]) -> None:
    """Each episode ends where `terminals` is true, the last one in the last row."""
    ends = np.flatnonzero(terminals)
    lengths = np.diff(ends, prepend=-1)
    wrong = None
    if not terminals[-1:].any():
        wrong = f"row {len(terminals) - 1}: the last row must end an episode; is the file cut off?"
    elif lengths.min() < MIN_ROWS:
        row, needed = ends[lengths.argmin()], f"it needs at least {MIN_ROWS}; make the file again."
        wrong = f"row {row}: the episode that ends here has {lengths.min()} rows, but {needed}"
    if wrong:
        raise DatasetError(f"{file}: array 'terminals', {wrong}")


def in_maze(xy: Shaped[np.ndarray, "rows 2"], maze: Any) -> Bool[np.ndarray, " rows"]:
    """Whether each point is in an empty cell. Datasets of two mazes differ in nothing else."""
    offset = np.array([maze._offset_y, maze._offset_x])
    cells = np.floor((xy[:, ::-1] + offset) / maze._maze_unit + 0.5)  # their `xy_to_ij`
    inside = ((cells >= 0) & (cells < maze.maze_map.shape)).all(axis=1)
    i, j = np.where(inside[:, None], cells, 0).astype(int).T
    return inside & (maze.maze_map[i, j] == 0)


def sha256(file: Path) -> str:
    """The checksum of a file's content, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The installed versions of the packages that make a dataset."""
    return {name: importlib.metadata.version(name) for name in SIMULATOR}


def check_manifest(task: Task, files: Files) -> dict[str, Any]:
    """The manifest of these files, which must be those that it was written for; empty if there is
    none.

    Raises `DatasetError`. Warns where the manifest's versions are not the installed ones.
    """
    if not files.manifest.exists():
        return {}
    try:
        manifest = json.loads(files.manifest.read_bytes())
        check_fields(manifest, {"dataset": (str,), "sha256": (dict,), "versions": (dict,)})
    except (ValueError, RecursionError) as error:
        wrong = f"it is not the manifest of a dataset ({error})"
        hint = "delete it to use the data unchecked"
        raise DatasetError(f"{files.manifest}: {wrong}; {hint}.") from None
    if manifest["dataset"] != task.dataset_name:
        wrong = f"this is '{manifest['dataset']}', but {task.name} needs '{task.dataset_name}'"
        raise DatasetError(f"{files.manifest}: {wrong}; choose the other file or the other task.")
    for file in files[:2]:
        if sha256(file) != manifest["sha256"].get(file.name):
            wrong = f"its SHA-256 is not the one in {files.manifest.name}"
            raise DatasetError(f"{file}: {wrong}, so it was changed or damaged; make it again.")
    made, here = manifest["versions"], versions()
    other = [name for name in here if made.get(name, here[name]) != here[name]]
    if other:
        words = ", ".join(f"{name} {made[name]} (installed: {here[name]})" for name in other)
        hint = "the environment may move otherwise than the data say"
        warnings.warn(f"{files.train}: it was made with {words}; {hint}.", stacklevel=2)
    return manifest


def check_fields(row: Any, rules: dict[str, tuple]) -> None:
    """Checks what was read from JSON. A rule is `(type,)`, or `(type, least, largest)` for a
    number.

    Raises `ValueError`, which names the field, unless `row` is a JSON object with each of these
    fields.
    """
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object {...}")
    for name, (kind, *ends) in rules.items():
        value = row.get(name)
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (ends and not ends[0] <= value <= ends[1]):
            wanted = f"{kind.__name__}{f' in [{ends[0]}, {ends[1]}]' if ends else ''}"
            found = f"is {json.dumps(value)[:60]}" if name in row else "is missing"
            raise ValueError(f"the field '{name}' {found}, expected {wanted}")
