"""Draws `film.gif`: two critics of width 128 over their first 4,000 updates, without control of
their attention and with TQL's.

    python figures/film.py            draws it from data/film.npz, in a minute
    python figures/film.py --record   trains both critics again first, in 10 minutes on one core

The runs are those of the preset `collapse` with seed 0, looked at every 100 updates."""

import argparse
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from draw import COLOURS, CONTROLS, FIGURES
from jaxtyping import Array, Float
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from presets import PRESETS
from records import DATA

from tql.analysis.landscape import attention_maps, head_entropies, landscape
from tql.analysis.portrait import PLANE, probe_pairs
from tql.config import TQLConfig
from tql.critic import AbstractCritic
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.training.run import start_or_resume, train
from tql.training.whole_file import whole_file
from tql.training.workspace import dataset, home

EVERY, UPDATES = 100, 4000
SHOWN = ("none", "tql")
PAIR = 1
"""Which of the pairs (s, a) of every portrait is shown."""

Look = tuple[Float[Array, "11 11"], Float[Array, "n n"], Float[Array, "layers heads 2"]]


@eqx.filter_jit
def look(
    critic: AbstractCritic, s: Float[Array, "pairs n_s"], a: Float[Array, "pairs n_a"]
) -> Look:
    """Q over two action dimensions and the attention of layer 1 (mean over heads) of one pair, and
    the entropy of every head, in nats, as a mean over the pairs."""
    Q = landscape(critic, s[PAIR], a[PAIR], *PLANE)
    A = jnp.mean(attention_maps(critic, s[PAIR], a[PAIR])[0], axis=0)
    H = eqx.filter_vmap(head_entropies, in_axes=(None, 0, 0))(critic, s, a)
    return Q, A, jnp.mean(H, axis=0)


def record_run(config: TQLConfig, run: Path) -> dict[str, np.ndarray]:
    """Trains one critic and returns what was seen on the way: `Q`, `A` and `H` by frame."""
    data = dataset(config.task, episodes=config.dataset_episodes, seed=config.dataset_seed)
    training, validation = load_dataset(Task.parse(config.task), data)
    agent, training = start_or_resume(config, data, run, training)
    frames = [look(agent.critic.model, *probe_pairs(validation))]
    see = lambda agent: frames.append(look(agent.critic.model, *probe_pairs(validation)))
    train(agent, training, run, workers=1, until=UPDATES, look=see)
    return {name: np.stack(seen) for name, seen in zip("QAH", zip(*frames))}


def record() -> None:
    """Trains both critics from their start and writes `data/film.npz`."""
    seen = {}
    for control in SHOWN:
        config = PRESETS["collapse"]()[f"agent-{control}-128-seed0"]
        config = replace(config, checkpoint_every=EVERY)
        run = home() / "runs" / "study" / "film" / control
        seen |= {f"{control}_{name}": x for name, x in record_run(config, run).items()}
    seen = {name: x.astype(np.float32 if "Q" in name else np.float16) for name, x in seen.items()}
    with whole_file(DATA / "film.npz") as file:
        np.savez_compressed(file, **seen)


def film(seen: dict[str, np.ndarray]) -> tuple[Figure, FuncAnimation]:
    """A frame every 100 updates: Q and attention of both critics, entropies below."""
    figure, axes = plt.subplot_mosaic(
        [["none_Q", "none_A", "tql_Q", "tql_A"], ["H"] * 4],
        figsize=(7.2, 4.2),
        height_ratios=[1, 0.8],
        layout="constrained",
    )
    updates = EVERY * np.arange(len(seen["none_Q"]))
    images = {}
    for control in SHOWN:
        name = CONTROLS[control]
        images[f"{control}_Q"] = axes[f"{control}_Q"].imshow(np.zeros((11, 11)), origin="lower")
        images[f"{control}_A"] = axes[f"{control}_A"].imshow(
            seen[f"{control}_A"][0], cmap="magma", vmin=0, vmax=0.25
        )
        axes[f"{control}_Q"].set_title(f"Q, {name}")
        axes[f"{control}_A"].set_title("its attention")
    lines = []
    for control in SHOWN:
        H = seen[f"{control}_H"].astype(float)
        heads = H.reshape(len(H), -1)
        axes["H"].plot(updates, heads, color=COLOURS[control], linewidth=0.5, alpha=0.35)
        (line,) = axes["H"].plot([], [], color=COLOURS[control], label=CONTROLS[control])
        lines.append((line, heads.mean(axis=1)))
    axes["H"].set(xlim=(0, updates[-1]), ylim=(0, 3.6), xlabel="updates", ylabel="entropy, nats")
    axes["H"].legend(loc="lower left", ncols=2)
    now = axes["H"].axvline(0, color="#888888", linewidth=1)
    for name in images:
        axes[name].set(xticks=[], yticks=[])

    def draw(frame: int) -> None:
        for control in SHOWN:
            Q = seen[f"{control}_Q"][frame]
            images[f"{control}_Q"].set(data=Q.T, clim=(Q.min(), Q.max()))
            images[f"{control}_A"].set_data(seen[f"{control}_A"][frame])
        for line, mean in lines:
            line.set_data(updates[: frame + 1], mean[: frame + 1])
        now.set_xdata([updates[frame]] * 2)

    return figure, FuncAnimation(figure, draw, frames=len(updates), interval=200)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="train both critics again first")
    if parser.parse_args().record:
        record()
    with np.load(DATA / "film.npz") as file:
        seen = dict(file)
    figure, animation = film(seen)
    animation.save(FIGURES / "film.gif", writer=PillowWriter(fps=5), dpi=90)
    print(FIGURES / "film.gif")
