"""A critic at one moment, seen through a few pairs (s, a): Q landscapes and slices, attention maps,
entropies; as numbers, as a file, as a picture.

The pairs are the same for every run on the same dataset, so that critics can be compared.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tql.analysis.landscape import (
    OFFSETS,
    SLICE,
    attention_maps,
    effective_tokens,
    head_entropies,
    landscape,
    q_slice,
    roughness,
    sensitivity,
    turning_points,
)
from tql.batch import Transition
from tql.critic import AbstractCritic
from tql.training.whole_file import whole_file

PAIRS = 32
"""Pairs (s, a) that a portrait averages over."""
KEPT_PAIRS = 4
"""Pairs whose landscapes and slices go into a portrait's file."""
KEPT_MAPS = 4
"""Attention heads per layer whose maps a portrait keeps, of the first pair."""
PLANE = (0, 1)
"""The two action dimensions of the landscape: in OGBench's manipulation tasks, the hand's x and
y."""


@dataclass(frozen=True)
class Portrait:
    """What `take_portrait` saw. Q in discounted reward, entropies in nats, actions in [-1, 1]."""

    landscapes: Float[np.ndarray, "pairs 11 11"]
    slices: Float[np.ndarray, "pairs n_a 41"]
    sensitivities: Float[np.ndarray, " pairs"]
    entropies: Float[np.ndarray, "pairs layers heads 2"]
    maps: Float[np.ndarray, "layers kept n n"]
    """Attention of the first pair, the first few heads."""
    mean_maps: Float[np.ndarray, "layers n n"]
    """Attention averaged over pairs and heads."""
    n_s: np.ndarray
    """Number of state tokens, so that `[VALUE]`, states and actions can be told apart on the
    axes."""


def probe_pairs(data: Transition) -> tuple[Float[Array, "pairs n_s"], Float[Array, "pairs n_a"]]:
    """The `PAIRS` pairs (s, a) of validation data that every portrait of this dataset looks at."""
    n = data.r.shape[0]
    rows = np.random.default_rng(0).choice(n, PAIRS, replace=n < PAIRS)
    return data.s[rows], data.a[rows]


def take_portrait(
    critic: AbstractCritic, s: Float[Array, "pairs n_s"], a: Float[Array, "pairs n_a"]
) -> Portrait:
    """Looks at a critic through these pairs. Raises `ValueError` for actions of less than two
    dimensions."""
    if a.shape[1] < 2:
        raise ValueError(f"a landscape needs two action dimensions; these have {a.shape[1]}.")
    maps = _maps(critic, s, a)
    arrays = (*_look(critic, s, a), maps[0, :, :KEPT_MAPS], jnp.mean(maps, axis=(0, 2)))
    return Portrait(*map(np.asarray, arrays), n_s=np.array(s.shape[1]))


@eqx.filter_jit
def _look(
    critic: AbstractCritic, s: Float[Array, "pairs n_s"], a: Float[Array, "pairs n_a"]
) -> tuple[Float[Array, "pairs ..."], ...]:
    def one(s: Float[Array, " n_s"], a: Float[Array, " n_a"]):
        slices = jnp.stack([q_slice(critic, s, a, i) for i in range(a.shape[0])])
        steepness, H = sensitivity(critic, s, a), head_entropies(critic, s, a)
        return landscape(critic, s, a, *PLANE), slices, steepness, H

    # One pair at a time: a landscape is 121 evaluations, and 32 of them at once would take 32 times
    # the memory.
    return jax.lax.map(lambda pair: one(*pair), (s, a))


_maps = eqx.filter_jit(jax.vmap(attention_maps, in_axes=(None, 0, 0)))


def portrait_numbers(portrait: Portrait) -> dict[str, float | list]:
    """The portrait in numbers, means over the pairs.

    - `roughness`: of the landscape, see `landscape.roughness`; no unit.
    - `turning_points`: of Q along one action dimension over its whole range; mean over dimensions.
    - `q_range`, `q_variance`: of the landscape, in discounted reward, and squared.
    - `sensitivity`: length of dQ/da, in discounted reward per unit of action.
    - `entropy`: nats, per layer, head and group (`[VALUE]`, other tokens).
    - `effective_tokens`: exp(entropy, mean over heads), per layer and group.
    """
    H = portrait.entropies.mean(axis=0)
    lines = portrait.slices.reshape(-1, SLICE.size)
    return {
        "roughness": float(jnp.mean(jax.vmap(roughness)(portrait.landscapes))),
        "turning_points": float(jnp.mean(jax.vmap(turning_points)(jnp.asarray(lines)))),
        "q_range": float(np.mean(np.ptp(portrait.landscapes, axis=(1, 2)))),
        "q_variance": float(np.mean(np.var(portrait.landscapes, axis=(1, 2)))),
        "sensitivity": float(np.mean(portrait.sensitivities)),
        "entropy": H.tolist(),
        "effective_tokens": np.asarray(effective_tokens(jnp.asarray(H.mean(axis=1)))).tolist(),
    }


def save_portrait(path: Path, portrait: Portrait) -> None:
    """Writes what is needed to draw the portrait, about 50 kB: the first `KEPT_PAIRS` pairs, and
    attention in half precision."""
    per_pair = ("landscapes", "slices", "sensitivities", "entropies")
    arrays = {n: x[:KEPT_PAIRS] if n in per_pair else x for n, x in vars(portrait).items()}
    arrays |= {name: arrays[name].astype(np.float16) for name in ("maps", "mean_maps")}
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_portrait(path: Path) -> Portrait:
    """A portrait from its file. Raises `ValueError` for a file that holds none."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float32) for name in file.files}
            return Portrait(**arrays | {"n_s": file["n_s"]})
    except Exception as error:  # zipfile, zlib and NumPy have a dozen kinds of them
        raise ValueError(
            f"{path}: holds no portrait of a critic ({error}); make it with tql analyse RUN."
        ) from error


def draw_landscape(axis: Axes, grid: Float[np.ndarray, "11 11"], title: str = "") -> None:
    """The paper's picture. Q's range differs from critic to critic, so it stands in the title."""
    edges = (OFFSETS[0], OFFSETS[-1])
    axis.imshow(grid.T, origin="lower", extent=(*edges, *edges), cmap="viridis")
    # Enough digits to tell the ends apart.
    digits = 2 + max(0, -math.floor(math.log10(np.ptp(grid)))) if np.ptp(grid) > 0 else 2
    axis.set(
        title=f"{title}Q from {grid.min():.{digits}f} to {grid.max():.{digits}f}",
        xlabel="offset along action 1",
        ylabel="offset along action 2",
    )


def draw_map(axis: Axes, attention: Float[np.ndarray, "n n"], n_s: int, title: str = "") -> None:
    """One attention map: each row a query, each column a key. Lines separate `[v]`, states and
    actions. Black is 0."""
    axis.imshow(attention, cmap="magma", vmin=0)
    n = attention.shape[0]
    for edge in (0.5, n_s + 0.5):
        axis.axhline(edge, color="white", linewidth=0.5)
        axis.axvline(edge, color="white", linewidth=0.5)
    middles, names = (0, 1 + (n_s - 1) / 2, 1 + n_s + (n - n_s - 2) / 2), ("[v]", "obs", "act")
    axis.set_xticks(middles, names)
    axis.set_yticks(middles, names)
    axis.set(title=f"{title}\nbrightest {attention.max():.2f}", xlabel="key", ylabel="query")


def draw_portrait(portrait: Portrait, title: str) -> Figure:
    """Landscape and slices of one pair, attention of every layer, and entropy by head."""
    layers = portrait.mean_maps.shape[0]
    figure = Figure(figsize=(4.2 * (3 + layers), 4.4), layout="constrained")
    axes = figure.subplots(1, 3 + layers)
    draw_landscape(axes[0], portrait.landscapes[0])
    for i, line in enumerate(portrait.slices[0]):
        axes[1].plot(SLICE, line, label=f"action {i + 1}")
    axes[1].set(title="Q along one action dimension", xlabel="action", ylabel="discounted reward")
    axes[1].legend(fontsize="small")
    for layer, attention in enumerate(portrait.mean_maps):
        words = f"attention, layer {layer + 1}\nmean over pairs and heads"
        draw_map(axes[2 + layer], attention, int(portrait.n_s), words)
    draw_head_entropies(axes[-1], portrait)
    figure.suptitle(title)
    return figure


def draw_head_entropies(axis: Axes, portrait: Portrait) -> None:
    """Every head's entropy by layer, beside ln n, which even attention has."""
    H = portrait.entropies.mean(axis=0)
    for layer, of_layer in enumerate(H):
        heads = len(of_layer)
        x = layer + np.linspace(-0.25, 0.25, heads) if heads > 1 else [layer]
        for group, (name, marker) in enumerate((("[VALUE]", "o"), ("other tokens", "x"))):
            label = name if layer == 0 else None
            axis.plot(x, of_layer[:, group], marker, color=f"C{group}", label=label)
    axis.axhline(np.log(portrait.mean_maps.shape[-1]), color="black", linestyle=":", label="ln n")
    axis.set_xticks(range(len(H)), [f"layer {layer + 1}" for layer in range(len(H))])
    axis.set(title="entropy of every head", ylabel="nats", ylim=(0, None))
    axis.legend(fontsize="small")
