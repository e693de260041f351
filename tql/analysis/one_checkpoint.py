"""One checkpoint of a run, looked at for people: what `tql analyse` prints and writes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tql.analysis.portrait import (
    PAIRS,
    draw_portrait,
    portrait_numbers,
    probe_pairs,
    save_portrait,
    take_portrait,
)
from tql.analysis.study import attends
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.training.run_directory import (
    RunError,
    agent_at,
    check_can_write,
    read_settings,
    trained_agent,
)
from tql.training.whole_file import whole_file


def analyse_run(
    run: Path, step: int | None = None, dataset: Path | None = None, out: Path | None = None
) -> Iterator[str]:
    """What `tql analyse` does with one checkpoint: the newest, or that after `step` updates.
    Yields lines for people, before anything is written.

    Then writes `analysis-STEP.png`, `.json` (the numbers) and `.npz` (the portrait) to the folder
    `out`, or to the run's. Raises `RunError` if there is no such checkpoint, if the critic has no
    attention, and if the folder cannot be written, which is found out first."""
    settings = read_settings(run)
    config = settings.config
    if not attends(config):
        raise RunError(
            f"{run}: is a run of {config.method}; only TQL's critic has attention to look at."
        )
    agent = trained_agent(run) if step is None else agent_at(run, step)
    stem = (out or run) / f"analysis-{int(agent.step):09d}"
    files = [stem.with_suffix(f".{kind}") for kind in ("png", "json", "npz")]
    for file in files:
        check_can_write(file)
    place = dataset or Path(settings.dataset.file)
    _, validation = load_dataset(Task.parse(config.task), place)
    portrait = take_portrait(agent.critic.model, *probe_pairs(validation))
    found = portrait_numbers(portrait)
    # Seen first, so that it is not lost where the disk refuses.
    critic = f"critic {config.critic.layers} x {config.critic.d_model}"
    control, updates = f"control {config.control.kind}", f"{int(agent.step):,} updates"
    title = f"{config.task}, {critic}, {control}, {updates}"
    yield title
    yield from _in_words(found, portrait.mean_maps.shape[-1])
    with whole_file(files[0]) as file:
        draw_portrait(portrait, title).savefig(file, dpi=100, format="png")
    with whole_file(files[1]) as file:
        file.write(json.dumps(found, indent=1).encode())
    save_portrait(files[2], portrait)
    yield "picture {}, numbers {}, arrays {}".format(*files)


def _in_words(found: dict, tokens: int) -> list[str]:
    H = np.mean(found["entropy"], axis=1)
    lines = [
        f"over {PAIRS} pairs of validation data: roughness {found['roughness']:.3f}, turning "
        f"points {found['turning_points']:.2f}, Q range on the landscape {found['q_range']:.3f}, "
        f"|dQ/da| {found['sensitivity']:.3f}"
    ]
    for layer, (value, others) in enumerate(found["effective_tokens"]):
        lines.append(
            f"layer {layer + 1}: entropy {H[layer, 0]:.2f} nats for [VALUE], {H[layer, 1]:.2f} for "
            f"the others; looks at {value:.1f} and {others:.1f} of {tokens} tokens"
        )
    return lines
