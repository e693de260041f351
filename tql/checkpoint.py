r"""The whole state of training in one file, and critics from plain named arrays.

A checkpoint is a line of JSON (format, SHA-256 of all that follows), a second one (step, sizes, settings), and a NumPy `.npz` archive
that holds every array of the agent under its own name, such as `critic.blocks[0].attention.query.weight`. No pickle is written or
read. The file appears under its name only when it is complete and on the disk.
"""

import hashlib
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from tql.agent import AbstractAgent, initialise
from tql.config import TrainingConfig
from tql.critic import Critic
from tql.data import unknown_statistics
from tql.whole_file import whole_file

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every array of a PyTree by its path; random keys as their raw data."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path).lstrip("."): np.asarray(_raw(leaf)) for path, leaf in leaves}


def _raw(leaf: jax.Array) -> jax.Array:
    return jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def save(path: Path, agent: AbstractAgent) -> None:
    """Writes the agent to `path`: to a temporary file, flushed to the disk, then renamed."""
    archive = io.BytesIO()
    np.savez(archive, **named_arrays(agent))
    about = {"step": int(agent.step), "n_s": agent.n_s, "n_a": agent.n_a, "method": agent.config.method, "config": asdict(agent.config)}
    content = json.dumps(about).encode() + b"\n" + archive.getvalue()
    header = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    with whole_file(path) as file:
        file.write(json.dumps(header).encode() + b"\n" + content)


def load(path: Path, config: TrainingConfig) -> AbstractAgent:
    """The agent saved at `path`, for the settings `config`.

    Raises `CheckpointError` if the file is missing, cut short or altered, is of another format, or holds other arrays than an agent
    of these settings.
    """
    n_s, n_a, arrays = _parse(path, _read(path))
    skeleton = eqx.filter_eval_shape(initialise, n_s, n_a, config, unknown_statistics(n_a))
    leaves, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    names = [jax.tree_util.keystr(keypath).lstrip(".") for keypath, leaf in leaves if _is_struct(leaf)]
    _same_names(path, set(arrays), set(names))
    return jax.tree_util.tree_unflatten(
        structure, [_restore(path, jax.tree_util.keystr(keypath).lstrip("."), leaf, arrays) for keypath, leaf in leaves]
    )


def _is_struct(leaf: PyTree) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _restore(path: Path, name: str, like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    if not _is_struct(like):
        return like
    raw = jax.eval_shape(_raw, like)
    if arrays[name].shape != raw.shape or arrays[name].dtype != raw.dtype:
        raise CheckpointError(
            f"{path}: array '{name}' is {arrays[name].dtype}{list(arrays[name].shape)}, but these settings need "
            f"{raw.dtype}{list(raw.shape)}; load it with the settings in its own run directory."
        )
    # A copy: training donates its arrays, and NumPy's memory is not to be given away.
    array = jnp.array(arrays[name])
    return array if raw.dtype == like.dtype else jr.wrap_key_data(array)


def _same_names(source: Path | str, given: set[str], needed: set[str]) -> None:
    missing, extra = sorted(needed - given), sorted(given - needed)
    if missing or extra:
        raise CheckpointError(f"{source}: missing arrays: {missing or 'none'}; unknown arrays: {extra or 'none'}.")


def _read(path: Path) -> bytes:
    """What follows the first line of a checkpoint, if its checksum holds."""
    try:
        line, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        header = json.loads(line)
        version, checksum = header["format"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of tql, or its first line is damaged.") from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: is of format {version}, and this version of tql reads format {FORMAT}.")
    if hashlib.sha256(content).hexdigest() != checksum:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one in its first line.")
    return content


def _parse(path: Path, content: bytes) -> tuple[int, int, dict[str, np.ndarray]]:
    """n_s, n_a and the arrays. A right checksum does not make a file ours, so nothing of it is believed or executed."""
    line, _, archive = content.partition(b"\n")
    try:
        about = json.loads(line)
        n_s, n_a = int(about["n_s"]), int(about["n_a"])
        if min(n_s, n_a) < 1:
            raise ValueError(f"it is for states of size {n_s} and actions of size {n_a}")
        with np.load(io.BytesIO(archive), allow_pickle=False) as opened:
            return n_s, n_a, {name: opened[name] for name in opened.files}
    except Exception as error:  # json, zipfile and NumPy have a dozen kinds of them for what is no archive of plain arrays
        raise CheckpointError(f"{path}: is no checkpoint of tql, though its checksum holds ({error}).") from error


CRITIC_NAMES = (
    (r"tokenizer\.w_s", "state_projection/kernel"),
    (r"tokenizer\.b_s", "state_projection/bias"),
    (r"tokenizer\.e_s", "state_modality_embedding"),
    (r"tokenizer\.w_a", "action_projection/kernel"),
    (r"tokenizer\.b_a", "action_projection/bias"),
    (r"tokenizer\.e_a", "action_modality_embedding"),
    (r"tokenizer\.p", "position_embedding"),
    (r"tokenizer\.v", "value_token"),
    (r"blocks\[(\d+)\]\.attention_norm\.(\w+)", r"block\1/attn_norm/\2"),
    (r"blocks\[(\d+)\]\.mlp_norm\.(\w+)", r"block\1/mlp_norm/\2"),
    (r"blocks\[(\d+)\]\.attention\.(query|key|value)\.(\w+)", r"block\1/\2/\3"),
    (r"blocks\[(\d+)\]\.attention\.out\.(\w+)", r"block\1/attn_out/\2"),
    (r"blocks\[(\d+)\]\.(mlp_in|mlp_out)\.(\w+)", r"block\1/\2/\3"),
    (r"final_norm\.(\w+)", r"final_norm/\1"),
    (r"q_heads\[(\d+)\]\.(hidden|out)\.(\w+)", r"head\1/\2/\3"),
)
"""Our path (a pattern) and the name under which Flax-like code stores the same array."""


def foreign_name(path: str) -> str:
    """Name of the critic's array at `path` in plain, Flax-like storage: `block0/query/kernel`, `block0/attn_norm/scale`, ..."""
    for pattern, name in CRITIC_NAMES:
        if match := re.fullmatch(pattern, path):
            name = match.expand(name)
            return name.replace("weight", "scale" if "norm" in name else "kernel")
    raise ValueError(f"the critic's array '{path}' has no plain name.")


def critic_from_arrays(arrays: dict[str, np.ndarray], heads: int) -> Critic:
    """A critic from plain named arrays, for weights trained elsewhere.

    Names are those of a Flax parameter tree with `/` between levels: `state_projection/kernel` (1, d), `block{i}/query/kernel`
    (d, heads, d/heads), `block{i}/attn_out/kernel` (d, d), `head{k}/out/kernel` (d/2, 1), ...; kernels are (input, output). Sizes,
    layers and the ensemble are read off the names and shapes. Raises `CheckpointError` that names every missing or extra array,
    or the first one of a wrong shape or with a non-finite value.
    """
    sizes = {name: arrays[name] for name in ("value_token", "position_embedding") if name in arrays}
    if len(sizes) < 2 or sizes["value_token"].ndim != 1 or sizes["position_embedding"].ndim != 2:
        shapes = {name: list(array.shape) for name, array in sizes.items()}
        raise CheckpointError(
            f"arrays of a critic: need 'value_token' [d_model] and 'position_embedding' [n_s + n_a, d_model] to know its sizes; "
            f"got {shapes or 'neither'}."
        )
    (d_model,), tokens = sizes["value_token"].shape, sizes["position_embedding"].shape[0]
    # By distinct numbers, so that one stray name is named as unknown and does not ask for hundreds of blocks.
    layers = max(1, len({m[1] for name in arrays if (m := re.match(r"block(\d+)/", name))}))
    ensemble = max(1, len({m[1] for name in arrays if (m := re.match(r"head(\d+)/", name))}))
    if heads < 1 or d_model < 1 or d_model % heads:
        raise CheckpointError(f"arrays of a critic: width {d_model} is not a multiple of heads {heads}.")

    # The arrays hold n_s + n_a, not the two; the critic takes any pair of sizes with that sum.
    critic = Critic(
        *(tokens, 0),
        d_model=d_model,
        layers=layers,
        heads=heads,
        ensemble=ensemble,
        key=jr.key(0),
    )
    leaves, structure = jax.tree_util.tree_flatten_with_path(critic)
    names = [foreign_name(jax.tree_util.keystr(path).lstrip(".")) for path, _ in leaves]
    _same_names("arrays of a critic", set(arrays), set(names))
    return jax.tree_util.tree_unflatten(
        structure, [_from_foreign(name, arrays[name], leaf, heads) for name, (_, leaf) in zip(names, leaves)]
    )


def _from_foreign(name: str, array: np.ndarray, like: jax.Array, heads: int) -> jax.Array:
    """The array in our layout: matrices as (output, input), heads merged head-major into one axis."""
    shape = _foreign_shape(name, like.shape, heads)
    if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
        raise CheckpointError(f"arrays of a critic: '{name}' is {array.dtype}{list(array.shape)}, but must be float{list(shape)}.")
    if not np.all(np.isfinite(array)):
        raise CheckpointError(f"arrays of a critic: '{name}' holds NaN or Inf.")
    if name.endswith("kernel"):
        array = array.reshape(array.shape[0], -1).T
    return jnp.asarray(array.reshape(like.shape))


def _foreign_shape(name: str, ours: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """Shape under the plain name of an array that we keep in shape `ours`."""
    if "_projection/kernel" in name:
        return (1, *ours)
    shape = ours[::-1] if name.endswith("kernel") else ours
    if re.search("/(query|key|value)/", name):
        return (*shape[:-1], heads, shape[-1] // heads)
    return shape
