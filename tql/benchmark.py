r"""The benchmark: every run of a preset (`benchmark_presets.py`), made and recorded by the same loop, data and evaluation.

A run is one process, on a CPU bound to one core: small networks use one core well and two badly, and what a run computes does not depend on
how many there are. On a GPU the seeds of a small method are one process, under `vmap` (`together.py`). A run lies in
`runs/benchmark/PRESET/TASK/LABEL-seedK`. One that is done is left alone, one that was cut off goes on bitwise, one that fails is reported
at the end and costs only itself. `record` copies what figures need.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from tqdm import tqdm

from tql import run as runs
from tql import together
from tql.agent import AbstractAgent, initialise, method_class
from tql.bench import best_matmul_rate, matmul_flops
from tql.benchmark_presets import MEMBERS
from tql.collect import official_episodes
from tql.config import Task, TrainingConfig
from tql.data import Batch, statistics
from tql.environment import bare_children
from tql.evaluate import episodes_of, recorded
from tql.run_directory import RunError, differences, read_settings, trained_agent
from tql.study import read_lines, rounded
from tql.whole_file import whole_file
from tql.workspace import dataset, dataset_path, home

METRICS_EVERY = 5
"""Of the lines of metrics, one in so many is recorded."""
SHARE = 0.35
"""Part of the best matrix rate that training is assumed to reach, for the estimate; 0.29 to 0.74 on 2 CPU cores (README, Speed)."""
TOGETHER_BELOW = 1e11
"""Floating-point operations of one update below which the seeds of a method train together on a GPU: all but TQL's. A guess; no GPU was at
hand."""
STATE_SIZES = {"cube-single": 28, "cube-double": 37, "cube-triple": 46, "scene": 40, "puzzle-3x3": 55, "puzzle-4x4": 83}


# ---- what is there already --------------------------------------------------------------------------------------------------------


def is_done(run: Path, config: TrainingConfig) -> bool:
    """Whether a run made all its updates and episodes. Raises `RunError` if the directory holds a run of other settings."""
    if not (run / "config.json").exists():
        return False
    settings = read_settings(run)
    if found := differences(config, settings.config):
        raise RunError(f"{run}: holds a run of other settings ({'; '.join(found)}); move it away to run the benchmark's.")
    rows = recorded(run / "evaluation.jsonl")
    evaluated = all(len(episodes_of(rows, config.steps, policy)) >= config.episodes for policy in settings.policies)
    return share_done(run, config) == 1 and evaluated


def unusable(members: dict[str, TrainingConfig], folder: Path) -> dict[str, str]:
    """The runs whose directory is damaged or holds another run, and why."""
    found = {}
    for name, config in members.items():
        try:
            is_done(folder / name, config)
        except (RunError, ValueError) as error:
            found[name] = str(error)
    return found


# ---- what it costs ---------------------------------------------------------------------------------------------------------


def kind(config: TrainingConfig) -> TrainingConfig:
    """The same for all runs that cost the same: those that differ by their seed or by the task of one dataset."""
    return replace(config, seed=0, task=Task.parse(config.task).dataset_name)


@cache
def flops_of(config: TrainingConfig) -> float:
    """Of the matrix products of one update, by count."""
    n_s, B = STATE_SIZES[Task.parse(config.task).domain], config.batch_size
    s, a, r = jnp.zeros((B, n_s)), jnp.zeros((B, 5)), -jnp.arange(B, dtype=float)
    data = Batch(s, a, r, jnp.ones(B), s, a)
    batch = method_class(config.method).prepare(data, config)
    return matmul_flops(lambda: initialise(n_s, 5, config, statistics(data)).update(batch, jr.key(0)))


def costs(members: dict[str, TrainingConfig], rate: float) -> dict[str, float]:
    """Estimated seconds of training of every run at `rate` floating-point operations per second."""
    return {name: flops_of(kind(config)) * config.steps / (SHARE * rate) for name, config in members.items()}


# ---- running ---------------------------------------------------------------------------------------------------------------


def one_job(configs: list[TrainingConfig], data: Path, directories: list[Path], core: int | None) -> None:
    """What a process of the benchmark does: a run, or several seeds together, from the start or from where they stopped. What it says
    goes to `RUN.log` of the first.
    """
    config, run = configs[0], directories[0]
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    jax.config.update("jax_compilation_cache_dir", str(home() / "runs" / "compiled"))
    # Closed here: a process of multiprocessing ends without flushing files that something still refers to.
    with open(run.with_name(f"{run.name}.log"), "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            if len(configs) > 1:
                return together.train(configs, data, directories, workers=1)
            agent, batch = runs.start_or_resume(config, data, run)
            runs.train(agent, batch, run, workers=1)
        except runs.Interrupted as stop:
            print(stop)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


@dataclass(frozen=True)
class Outcome:
    """What came of a call of the benchmark: names of runs."""

    done: list[str]
    failed: list[str]
    missing: list[str]


Job = tuple[str, ...]
"""Names of the runs that one process makes: one, or several that differ by their seed."""


def jobs(members: dict[str, TrainingConfig], folder: Path, seeds_together: bool) -> list[Job]:
    """What the processes make, in the order of the runs. Together only seeds of methods whose update is small enough to leave a GPU idle
    between its kernels, and that can go on from the same update."""
    of: dict[TrainingConfig | str, list[str]] = {}
    for name, config in members.items():
        small = seeds_together and flops_of(kind(config)) < TOGETHER_BELOW
        of.setdefault(replace(config, seed=0) if small else name, []).append(name)
    apart = lambda names: together.common_step([folder / name for name in names]) is None
    return [job for names in of.values() for job in ([(name,) for name in names] if apart(names) else [tuple(names)])]


def run_all(
    members: dict[str, TrainingConfig],
    data: dict[str, Path],
    folder: Path,
    *,
    processes: int,
    minutes: float | None = None,
    seeds_together: bool = False,
) -> Outcome:
    """Makes the runs that are missing and have data, `processes` at a time; stops by itself after `minutes`, and on SIGTERM or Ctrl-C, with
    all saved. Seeds that failed together are tried again one by one.
    """
    missing = {name: config for name, config in members.items() if name in data and not is_done(folder / name, config)}
    waiting = jobs(missing, folder, seeds_together)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and jax.default_backend() == "cpu" else [None]
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    running: dict[Job, tuple[BaseProcess, int]] = {}
    failed: list[str] = []
    weights = costs(missing, 1e11)
    bar = tqdm(total=round(sum(weights.values())), desc="benchmark", bar_format="{desc}: {percentage:.1f}%|{bar}| {elapsed}<{remaining}")
    with runs.stop_signals() as stop, bar, ended_with(running):
        while (waiting or running) and not stop and time.monotonic() < deadline:
            while waiting and len(running) < processes:
                slot = min(set(range(processes)) - {slot for _, slot in running.values()})
                job = waiting.pop(0)
                configs, directories = [members[name] for name in job], [folder / name for name in job]
                running[job] = start_process(configs, data[job[0]], directories, cores[slot % len(cores)]), slot
            for job in [job for job, (process, _) in running.items() if not process.is_alive()]:
                process, _ = running.pop(job)
                lost = [name for name in job if process.exitcode != 0 or not is_done(folder / name, members[name])]
                # After a signal to all of them, a run that ended early was stopped and did not fail.
                if not stop and len(job) > 1:
                    waiting += [(name,) for name in lost]
                elif not stop:
                    failed += lost
                for name in job:
                    weights.pop(name, None)
            left = sum(weight * (1 - share_done(folder / name, members[name])) for name, weight in weights.items())
            bar.update(max(0, round(bar.total - left) - bar.n))
            time.sleep(1)
    done = [name for name, config in members.items() if is_done(folder / name, config)]
    return Outcome(done, failed, [name for name in members if name not in done and name not in failed])


@contextlib.contextmanager
def ended_with(running: dict[Job, tuple[BaseProcess, int]]) -> Iterator[None]:
    """Whatever happens, the processes are asked to save and stop, and waited for."""
    try:
        yield
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def start_process(configs: list[TrainingConfig], data: Path, directories: list[Path], core: int | None) -> BaseProcess:
    """A fresh process for one job."""
    directories[0].parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=one_job, args=(configs, data, directories, core))
    with bare_children({"TQDM_DISABLE": "1"}):
        process.start()
    return process


def share_done(run: Path, config: TrainingConfig) -> float:
    """Share of its updates that a run has logged."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0.0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        whole = file.read().split(b"\n")[:-1]
    try:
        return json.loads(whole[-1])["step"] / config.steps
    except (IndexError, ValueError):
        return 0.0


# ---- recording -------------------------------------------------------------------------------------------------------------


def record(run: Path, out: Path) -> None:
    """Copies what figures need: settings without local paths, training time, every 5th line of metrics, every episode.

    The time is that of all updates at their median speed, so that a busy minute of the machine does not count.
    """
    content = json.loads((run / "config.json").read_text())
    lines = read_lines(run / "metrics.jsonl")
    content["dataset"]["file"] = Path(content["dataset"]["file"]).name
    content["training_seconds"] = round(seconds_at_median_speed(lines), 1)
    content["parameters"] = parameters(trained_agent(run))
    thin = [line for number, line in enumerate(lines, start=1) if number % METRICS_EVERY == 0 or number == len(lines)]
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": [json.dumps(content, indent=1)],
        "metrics.jsonl": [json.dumps({key: rounded(x) for key, x in line.items() if key != "time"}) for line in thin],
        "evaluation.jsonl": [json.dumps(row) for row in recorded(run / "evaluation.jsonl")],
    }
    for name, rows in files.items():
        with whole_file(out / name) as file:
            file.write(("\n".join(rows) + "\n").encode())


def parameters(agent: AbstractAgent) -> dict[str, int]:
    """How many numbers every network of the method learns; targets and optimiser states aside."""
    networks = {name: x for name, x in vars(agent).items() if isinstance(x, eqx.Module) and not name.startswith(("target", "statistics"))}
    return {name: sum(x.size for x in jax.tree.leaves(network) if eqx.is_inexact_array(x)) for name, network in networks.items()}


def seconds_at_median_speed(lines: list[dict]) -> float:
    """Of all updates, at the median speed between two lines of metrics."""
    speeds = [(b["step"] - a["step"]) / (b["time"] - a["time"]) for a, b in zip(lines, lines[1:])]
    return lines[-1]["step"] / median(speeds) if speeds else 0.0


def benchmark(preset: str, only: str, minutes: float | None, processes: int | None, estimate: bool, records: Path) -> Outcome | None:
    """What `tql benchmark` does. Says what the missing runs cost before it starts; with `estimate` that is all.

    Missing datasets are made first. With `minutes`, which include them, that is one dataset at most; runs that need another wait for the
    next call.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    # This process measures the matrix rate on the GPU that the runs' processes need.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    members = {name: config for name, config in MEMBERS[preset]().items() if only in name}
    if not members:
        raise ValueError(f"no run of the preset {preset} has '{only}' in its name; names are like {next(iter(MEMBERS[preset]()))}.")
    folder = home() / "runs" / "benchmark" / preset
    failed = unusable(members, folder)
    members = {name: config for name, config in members.items() if name not in failed}
    missing = {name: config for name, config in members.items() if not is_done(folder / name, config)}
    rate, device = best_matmul_rate(), jax.devices()[0].device_kind
    hours = sum(costs(missing, rate).values()) / 3600
    print(
        f"preset {preset}: {len(members) + len(failed)} runs, {len(members) - len(missing)} of them done.\n"
        f"The others take about {hours:,.1f} hours of this machine ({device}), if training reaches {SHARE:.0%} of the {rate / 1e12:.2f} "
        "TFLOP/s that a float32 matrix product was just measured to reach; data and episodes come on top.",
        flush=True,
    )
    if estimate:
        say_failed(failed)
        return None
    data, without_data = datasets(missing, at_most_one=minutes is not None)
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" and hasattr(os, "sched_getaffinity") else 1
    left = None if deadline is None else max(0.0, (deadline - time.monotonic()) / 60)
    on_gpu = jax.default_backend() != "cpu"
    outcome = run_all(members, data, folder, processes=processes, minutes=left, seeds_together=on_gpu)
    failed |= without_data | {name: f"see {folder / name}.log" for name in outcome.failed}
    for name in outcome.done:
        try:
            record(folder / name, records / preset / name)
        except (RunError, ValueError) as error:
            failed[name] = f"not recorded: {error}"
    missing = [name for name in outcome.missing if name not in failed]
    print(f"{len(outcome.done)} runs done, {len(failed)} failed, {len(missing)} missing; those done are recorded in {records / preset}.")
    say_failed(failed)
    return Outcome(outcome.done, list(failed), missing)


def say_failed(failed: dict[str, str]) -> None:
    for name, why in failed.items():
        print(f"failed: {name}; {why}")


def datasets(members: dict[str, TrainingConfig], *, at_most_one: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The file of every run's dataset, made if it is missing; with `at_most_one` only the first of those, and the runs that need another
    are left out. Also the runs whose dataset could not be made, and why."""
    episodes = {name: episodes_of_dataset(config) for name, config in members.items()}
    path = {name: dataset_path(config.task, episodes=episodes[name]) for name, config in members.items()}
    made: list[Path] = []
    failed: dict[Path, str] = {}
    for name, config in members.items():
        if path[name] in made or path[name].exists() or path[name] in failed or (made and at_most_one):
            continue
        try:
            made.append(path[name])
            dataset(config.task, episodes=episodes[name])
        except Exception as error:  # whatever the simulator raises; the runs that have their data go on
            failed[path[name]] = f"{path[name]} could not be made: {error!r}"
    found = {name: file for name, file in path.items() if file not in failed and (file in made or file.exists())}
    return found, {name: failed[file] for name, file in path.items() if file in failed}


def episodes_of_dataset(config: TrainingConfig) -> int:
    """What the settings ask for, and OGBench's official number at the paper's scale."""
    return config.dataset_episodes or official_episodes(Task.parse(config.task))
