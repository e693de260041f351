r"""The whole state of training in one file.

A checkpoint is a line of JSON (format, SHA-256 of all that follows), a second one (step, sizes,
settings), and a NumPy `.npz` archive that holds every array of the agent under its own name, such
as `critic.model.blocks[0].attention.query.weight`; in an online phase, every array of the
`Snapshot`. No pickle is written or read. The file appears
under its name only when it is complete and on the disk."""

import hashlib
import io
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from tql.training.machines import leads, on_host
from tql.training.methods import as_json, different
from tql.training.online_config import AnyConfig
from tql.training.snapshot import AnyState, new_state
from tql.training.whole_file import typed, whole_file

FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every array of a PyTree by its path; random keys as their raw data."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {_name(path): on_host(_raw(leaf)) for path, leaf in leaves}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def _raw(leaf: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jr.key_data(leaf) if is_key else leaf


def save_checkpoint(path: Path, agent: AnyState) -> None:
    """Writes the agent to `path`: to a temporary file, flushed to the disk, then renamed. Several
    processes call it together, and the first writes. Raises `OSError`, with the name of the file,
    where it cannot be written."""
    arrays = named_arrays(agent)
    if not leads():
        return
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    about = {"step": int(agent.step), "n_s": agent.n_s, "n_a": agent.n_a}
    about["config"] = as_json(agent.config)
    content = json.dumps(about).encode() + b"\n" + archive.getvalue()
    header = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    with whole_file(path) as file:
        file.write(json.dumps(header).encode() + b"\n" + content)


def load_checkpoint(path: Path, config: AnyConfig) -> AnyState:
    """The agent saved at `path`, whose settings must be `config`.

    Raises `CheckpointError` if the file is missing, cut short or altered, is of another format, was
    saved with other settings, or holds other arrays than an agent of these settings.
    """
    about, arrays = _parse(path, _read(path))
    if found := different(as_json(config), about["config"]):
        words = ", ".join(f"{name} {ours}, the checkpoint has {its}" for name, ours, its in found)
        raise CheckpointError(
            f"{path}: was saved with other settings: config.json says {words}; put config.json "
            "back as it was."
        )
    skeleton = eqx.filter_eval_shape(new_state, about["n_s"], about["n_a"], config)
    leaves, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    _same_names(path, set(arrays), {_name(p) for p, leaf in leaves if _is_struct(leaf)})
    return jax.tree_util.tree_unflatten(
        structure, [_restore(path, _name(p), leaf, arrays) for p, leaf in leaves]
    )


def settings_in(path: Path) -> tuple[int, dict] | None:
    """Step and settings that a checkpoint says it has, from its first two lines alone; None for a
    file that is no checkpoint of this format."""
    try:
        with open(path, "rb") as file:
            header, about = json.loads(file.readline()), json.loads(file.readline())
        if header["format"] == FORMAT:
            return typed(about["step"], int, "step"), typed(about["config"], dict, "config")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _is_struct(leaf: PyTree) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _restore(path: Path, name: str, like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    if not _is_struct(like):
        return like
    raw, array = jax.eval_shape(_raw, like), arrays[name]
    if array.shape != raw.shape or array.dtype != raw.dtype:
        raise CheckpointError(
            f"{path}: array '{name}' is {array.dtype}{list(array.shape)}, but these settings need "
            f"{raw.dtype}{list(raw.shape)}."
        )
    # A copy: training donates its arrays, and NumPy's memory is not to be given away.
    copy = jnp.array(array)
    return copy if raw.dtype == like.dtype else jr.wrap_key_data(copy)


def _same_names(path: Path, given: set[str], needed: set[str]) -> None:
    missing, extra = sorted(needed - given), sorted(given - needed)
    if missing or extra:
        raise CheckpointError(
            f"{path}: missing arrays: {missing or 'none'}; unknown arrays: {extra or 'none'}."
        )


def _read(path: Path) -> bytes:
    """What follows the first line of a checkpoint, if its checksum holds."""
    try:
        line, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        header = json.loads(line)
        version, checksum = header["format"], header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no checkpoint of tql, or its first line is damaged."
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {version}, and this version of tql reads format {FORMAT}."
        )
    if hashlib.sha256(content).hexdigest() != checksum:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one in its first line.")
    return content


def _parse(path: Path, content: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The second line and the arrays. A right checksum does not make a file ours, so nothing of it
    is believed or executed."""
    line, _, archive = content.partition(b"\n")
    try:
        about = json.loads(line)
        for name, kind in (("step", int), ("n_s", int), ("n_a", int), ("config", dict)):
            typed(about[name], kind, name)
        if about["step"] < 0 or min(about["n_s"], about["n_a"]) < 1:
            raise ValueError(f"step {about['step']}, n_s {about['n_s']}, n_a {about['n_a']}")
        with np.load(io.BytesIO(archive), allow_pickle=False) as opened:
            return about, {name: opened[name] for name in opened.files}
    # json, zipfile and NumPy raise a dozen kinds of errors for what is no archive of plain arrays.
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no checkpoint of tql, though its checksum holds ({error})."
        ) from error
