"""Runs that belong to one question: each trained to its end, looked at on the way, and copied into a few small files.

A run of a study is a run like any other (`run_directory.py`), with two more files:

    RUN/analysis.jsonl   one line per checkpoint: roughness, turning points, sensitivity, entropy of every head (`portrait.numbers`)
    RUN/portrait.npz     the critic at its newest checkpoint: landscapes, slices, attention maps
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing.queues import Queue
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from tql import run as runs
from tql.config import Config, Task
from tql.data import Batch, load
from tql.environment import bare_children
from tql.evaluate import episodes_of, recorded
from tql.flow_actor import FlowActor
from tql.loop import Agent
from tql.portrait import PAIRS, draw, numbers, probe_pairs, save, take
from tql.run_directory import RunError, agent_at, differences, read_settings, trained_agent
from tql.whole_file import whole_file

RECORDED = ("config.json", "metrics.jsonl", "evaluation.jsonl", "analysis.jsonl", "portrait.npz")


def look(agent: Agent, validation: Batch, run: Path) -> None:
    """Takes the critic's portrait and adds its numbers to `analysis.jsonl`, once for every planned checkpoint.

    A checkpoint that only a signal asked for is passed over, so that a run that was stopped has the lines of one that was not.
    """
    config, step = agent.config, int(agent.step)
    if step % config.checkpoint_every and step % config.evaluate_every and step != config.steps:
        return
    lines = [line for line in read_lines(run / "analysis.jsonl") if line["step"] < step]
    portrait = take(agent.critic, *probe_pairs(validation))
    save(run / "portrait.npz", portrait)
    with whole_file(run / "analysis.jsonl") as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in [*lines, {"step": step} | numbers(portrait)])


def read_lines(path: Path) -> list[dict]:
    """The lines of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_complete(run: Path, config: Config, until: int | None = None) -> bool:
    """Whether a run, or the record of one, made `until` updates (all, unless given). Raises `RunError` if it is one of other settings."""
    if not (run / "config.json").exists():
        return False
    if found := differences(config, read_settings(run).config):
        raise RunError(f"{run}: holds a run of other settings ({'; '.join(found)}); move it away, or choose another directory.")
    end = until or config.steps
    looked_at = any(line["step"] >= end for line in read_lines(run / "analysis.jsonl"))
    return looked_at and _is_evaluated(run, config, end)


def _is_evaluated(run: Path, config: Config, step: int) -> bool:
    """Whether no episode is missing after `step` updates: a signal can end a run between its last checkpoint and its last episode."""
    due = step == config.steps or step % config.evaluate_every == 0
    policies = FlowActor.policies if due and config.actor.kind == "flow" else ()
    rows = recorded(run / "evaluation.jsonl")
    return all(len(episodes_of(rows, step, policy)) >= config.episodes for policy in policies)


def unchanged(data: Batch) -> Batch:
    """The data as they are."""
    return data


@lru_cache(maxsize=2)
def _loaded(task: Task, dataset: Path) -> tuple[Batch, Batch]:
    return load(task, dataset)


def complete(
    config: Config,
    dataset: Path,
    run: Path,
    *,
    workers: int = 2,
    until: int | None = None,
    change: Callable[[Batch], Batch] = unchanged,
) -> Path:
    """Trains a run to its end and looks at every checkpoint: from the start, from where it stopped, or not at all if it is done.

    `until` ends it earlier, after that many updates. `change` alters the training data before they are used (their rewards, say);
    give it its own directory, since no file records it. Returns `run`. Raises `RunError` if the directory holds a run of other
    settings, and whatever `run.train` raises.
    """
    if is_complete(run, config, until):
        return run
    data, validation = _loaded(Task.parse(config.task), dataset)
    agent, data = runs.start_or_resume(config, dataset, run, data)
    if int(agent.step) > 0:
        look(agent, validation, run)  # makes up for a stop between a checkpoint and its portrait
    if until is not None and int(agent.step) >= until:
        return run
    runs.train(agent, change(data), run, workers=workers, until=until, look=lambda agent: look(agent, validation, run))
    return run


def complete_all(
    members: dict[str, Config],
    dataset: Path,
    folder: Path,
    *,
    change: Callable[[Batch], Batch] = unchanged,
    processes: int = 2,
) -> dict[str, Path]:
    """`complete` for every member, several at a time, each on one core of its own; returns the directories `folder / NAME`.

    Small critics use one core well and two badly, and on one core a run's numbers do not depend on how many there are. On a GPU, take
    one process. A `change` has to be a function of a module, which other processes can import.
    """
    runs_of = {name: folder / name for name in members}
    missing = [name for name, config in members.items() if not is_complete(runs_of[name], config)]
    processes = min(processes, len(missing))
    if not missing:
        return runs_of
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for number in range(processes):
        cores.put(number)
    quiet = {"TQDM_DISABLE": "1", "MUJOCO_GL": "disable"}
    with ProcessPoolExecutor(processes, context, _on_one_core, (cores, folder.parent / "compiled")) as pool:
        with bare_children(quiet):
            jobs = {pool.submit(complete, members[name], dataset, runs_of[name], workers=1, change=change): name for name in missing}
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc=folder.name, unit="run", dynamic_ncols=True):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return runs_of


def _on_one_core(cores: Queue, compiled: Path) -> None:
    """Binds a process to one core (where the system can), before JAX counts them. Runs that differ by their seed share programs."""
    number = cores.get()
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    jax.config.update("jax_compilation_cache_dir", str(compiled))


def analyse(run: Path, step: int | None = None, dataset: Path | None = None) -> list[str]:
    """What `tql analyse` does with one checkpoint (the newest, or that after `step` updates); returns lines for people.

    Writes `RUN/analysis-STEP.png`, `.json` (the numbers) and `.npz` (the portrait). Raises `RunError` if there is no such checkpoint.
    """
    settings = read_settings(run)
    agent = trained_agent(run) if step is None else agent_at(run, step)
    if not isinstance(agent, Agent):
        raise RunError(f"{run}: is a run of {settings.config.method}; only TQL's critic has attention to look at.")
    _, validation = load(Task.parse(settings.config.task), dataset or settings.dataset)
    portrait = take(agent.critic, *probe_pairs(validation))
    found, out = numbers(portrait), run / f"analysis-{int(agent.step):09d}"
    c = settings.config.critic
    title = f"{settings.config.task}, critic {c.layers} x {c.d_model}, control {settings.config.control.kind}, {int(agent.step):,} updates"
    save(out.with_suffix(".npz"), portrait)
    with whole_file(out.with_suffix(".json")) as file:
        file.write(json.dumps(found, indent=1).encode())
    with whole_file(out.with_suffix(".png")) as file:
        draw(portrait, title).savefig(file, dpi=100, format="png")
    H = np.mean(found["entropy"], axis=1)
    return [
        title,
        f"over {PAIRS} pairs of validation data: roughness {found['roughness']:.3f}, turning points {found['turning_points']:.2f}, "
        f"Q range on the landscape {found['q_range']:.3f}, |dQ/da| {found['sensitivity']:.3f}",
        *(
            f"layer {layer + 1}: entropy {H[layer, 0]:.2f} nats for [VALUE], {H[layer, 1]:.2f} for the others; looks at "
            f"{tokens[0]:.1f} and {tokens[1]:.1f} of {portrait.mean_maps.shape[-1]} tokens"
            for layer, tokens in enumerate(found["effective_tokens"])
        ),
        f"picture {out.with_suffix('.png')}, numbers {out.with_suffix('.json')}, arrays {out.with_suffix('.npz')}",
    ]


def record(run: Path, out: Path) -> None:
    """Copies what figures need of a run to the folder `out`: settings without local paths, numbers to 6 digits, no checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads((run / "config.json").read_text())
    settings["dataset"]["file"] = Path(settings["dataset"]["file"]).name
    settings["training_seconds"] = round(seconds_without_pauses(read_lines(run / "metrics.jsonl")), 1)
    (out / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    for name in RECORDED[1:4]:
        if rows := read_lines(run / name):
            small = [{key: rounded(value) for key, value in row.items() if key != "time"} for row in rows]
            (out / name).write_text("".join(json.dumps(row) + "\n" for row in small))
    shutil.copy(run / "portrait.npz", out)


def seconds_without_pauses(lines: list[dict]) -> float:
    """Wall time of the updates between the first and the last line of metrics; pauses between a stop and a resume are left out."""
    between = np.diff([line["time"] for line in lines])
    return float(np.sum(between[between < 10 * np.median(between)])) if len(between) else 0.0


def rounded(value):
    """Numbers to 6 digits, also in nested lists."""
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
