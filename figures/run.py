"""Makes the runs behind the figures, and records them in `data/PRESET.jsonl`.

    python figures/run.py cpu --estimate     says how many are missing and about how long they take
    python figures/run.py cpu                makes it, one run per core at a time
    python figures/run.py cpu --minutes 9    stops by itself, with everything saved
    python figures/run.py paper --cluster slurm --partition NAME    one job per run (`cluster.py`)

`presets.py` lists the presets. Runs go to `runs/study/PRESET/`. A run that is done is left as it
is and one that was cut off goes on, so the same command continues after any stop. Datasets that
are missing are made first."""

import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from cluster import Cluster, make_on_cluster
from filelock import FileLock, Timeout
from presets import PRESETS, UNTIL, Runs, change_of
from records import DATA, read, record_of, write
from speed import best_matmul_rate
from tyro.conf import Positional

from tql.analysis.online_study import OnlinePhase, complete_online, is_complete_online
from tql.analysis.study import is_complete, one_core_each, submit
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.ogbench.collect import official_episodes
from tql.ogbench.tasks import Task
from tql.training.cost import update_flops
from tql.training.methods import new_agent
from tql.training.run import stop_signals
from tql.training.run_directory import RunError
from tql.training.workspace import dataset, home

WHOLE = ("cpu", "collapse", "scaling", "gpu", "paper")
"""Presets whose pictures draw curves of metrics and portraits, so that all of them is recorded."""
SHARE = 0.35
"""Part of the measured matrix rate that training is taken to reach: 0.29 to 0.74 on 2 CPU cores
(`speed.md`), an assumption on a GPU."""


@dataclass(frozen=True)
class Options:
    """Make and record the runs behind the figures."""

    preset: Positional[Literal[tuple(PRESETS)]]
    """Which runs; see presets.py."""
    only: str = ""
    """Only runs whose name contains this."""
    minutes: float | None = None
    """Stop after this time with everything saved; the same command goes on."""
    processes: int | None = None
    """Runs at a time, each on one core; as many as there are cores (on a GPU one, on a cluster
    1000) unless given."""
    cluster: Literal["", "slurm", "local"] = ""
    """Make each run in a job of its own: of Slurm, or for a try of this machine."""
    partition: str = ""
    """Slurm's partition; its default unless given."""
    hours: float = 24.0
    """Time limit of a job. One that ends by it is listed, and goes on with the same command."""
    estimate: bool = False
    """Say what it costs and stop."""
    records: Path = DATA
    """Folder of the records."""


def main(options: Options) -> int:
    """Makes what is missing; returns how many runs failed."""
    folder, until = home() / "runs" / "study" / options.preset, UNTIL.get(options.preset)
    runs = {n: c for n, c in PRESETS[options.preset]().items() if options.only in n}
    if not runs:
        raise SystemExit(f"no run of the preset {options.preset} has '{options.only}' in its name.")
    failed, missing = {}, {}
    for name, config in runs.items():
        try:
            if not is_done(folder / name, config, until):
                missing[name] = config
        except (RunError, ValueError) as error:
            failed[name] = str(error)
    say_what_it_costs(options.preset, len(runs), missing, until)
    if not options.estimate:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                record_done(options, folder, [n for n in runs if n not in missing | failed])
                making = make_in_jobs if options.cluster else make
                failed |= making(options, folder, missing, until)
        except Timeout:
            raise SystemExit(
                f"another runner works in {folder}; wait for it, or stop it."
            ) from None
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    return len(failed)


def is_done(run: Path, config: AbstractConfig | OnlinePhase, until: int | None) -> bool:
    """Whether nothing is missing in the directory of a run, or of an online phase."""
    if isinstance(config, OnlinePhase):
        return is_complete_online(run, config)
    return is_complete(run, config, until)


def flops_in_all(config: AbstractConfig | OnlinePhase, until: int | None) -> float:
    """Operations of all updates of a run."""
    if isinstance(config, OnlinePhase):
        updates = config.online.environment_steps * config.online.updates_per_step
        return flops_of(kind(config.config)) * updates
    return flops_of(kind(config)) * (until or config.steps)


def say_what_it_costs(preset: str, all_runs: int, missing: Runs, until: int | None) -> None:
    """Prints how many runs are missing and about how long they take on this machine."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the runs need this memory
    rate, device = best_matmul_rate(), jax.devices()[0].device_kind
    flops = sum(flops_in_all(config, until) for config in missing.values())
    print(
        f"preset {preset}: {all_runs} runs, {len(missing)} of them missing. These take about "
        f"{flops / (SHARE * rate) / 3600:,.1f} hours of training on {device}, if it reaches "
        f"{SHARE:.0%} of the {rate / 1e12:.2f} TFLOP/s that a float32 matrix product was just "
        "measured to reach. Datasets and episodes come on top.",
        flush=True,
    )


def kind(config: AbstractConfig) -> AbstractConfig:
    """The same for all runs that cost the same: those that differ by seed or by the task's
    number."""
    return replace(config, seed=0, task=Task.parse(config.task).dataset_name)


@cache
def flops_of(config: AbstractConfig) -> float:
    """Floating-point operations of the matrix products of one update."""
    (n_s, n_a), B = Task.parse(config.task).sizes, config.batch_size
    s, a, r = jnp.zeros((B, n_s)), jnp.zeros((B, n_a)), -jnp.arange(B, dtype=float)
    agent, data = new_agent(n_s, n_a, config).prepare(Transition(s, a, r, jnp.ones(B), s, a))
    return update_flops(agent, data)


def record_done(options: Options, folder: Path, done: list[str]) -> None:
    """Records the runs that are done, where they are not recorded yet."""
    file = options.records / f"{options.preset}.jsonl"
    there = {r.name: r for r in read(options.preset, options.records)} if file.exists() else {}
    whole = options.preset in WHOLE
    found = [record_of(folder / name, name, whole=whole) for name in done]
    if new := [record for record in found if there.get(record.name) != record]:
        write(new, options.preset, options.records)


def make(options: Options, folder: Path, missing: Runs, until: int | None) -> dict[str, str]:
    """Makes and records the missing runs; returns those that failed, and why."""
    on_cpu = jax.default_backend() == "cpu"
    processes = options.processes or (len(os.sched_getaffinity(0)) if on_cpu else 1)
    deadline = time.monotonic() + 60 * (options.minutes or float("inf"))
    waiting, running, failed, made = list(missing.items()), {}, {}, 0
    with one_core_each(processes, folder.parent / "compiled") as pool, stop_signals() as stop:
        ending = lambda: bool(stop) or time.monotonic() > deadline
        while running or (waiting and not ending()):
            if ending():
                # Again and again, because a run obeys a signal only while it trains.
                for child in multiprocessing.active_children():
                    child.terminate()
            elif len(running) < processes and (startable := next_run(waiting, running, folder)):
                name, config = startable
                waiting.remove(startable)
                try:
                    running[begin(pool, config, name, folder, until)] = name
                except Exception as error:  # whatever the simulator raises; other runs go on
                    failed[name] = f"its dataset could not be made: {error}"
                continue
            elif not running:
                for name, phase in waiting:
                    failed[name] = f"the run {phase.before}, from which it goes on, is missing."
                waiting.clear()
                continue
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            for job in done:
                name, error = running.pop(job), job.exception()
                if error is None:
                    record_done(options, folder, [name])
                    made += 1
                    print(f"{made} of {len(missing)} made: {name}", flush=True)
                elif not ending():  # after a signal, a run that ended early was stopped
                    # An error that is no message for people comes with the other process's
                    # traceback.
                    failed[name] = str(error if isinstance(error, RunError) else error.__cause__)
    if made + len(failed) < len(missing):
        print("stopped; everything is saved, and the same command goes on.")
    return failed


def make_in_jobs(
    options: Options, folder: Path, missing: Runs, until: int | None
) -> dict[str, str]:
    """`make` on a cluster."""
    if any(isinstance(config, OnlinePhase) for config in missing.values()):
        raise SystemExit(f"--cluster cannot make the preset {options.preset}; leave it out.")
    of_one_machine = options.processes or len(os.sched_getaffinity(0))
    at_once = of_one_machine if options.cluster == "local" else options.processes or 1000
    where = (options.cluster, folder, options.partition, options.hours, at_once)
    deadline = time.monotonic() + 60 * (options.minutes or float("inf"))

    def made(name: str) -> None:
        record_done(options, folder, [name])
        print(f"made: {name}", flush=True)

    with stop_signals() as stop:
        ending = lambda: bool(stop) or time.monotonic() > deadline
        how = dict(data_of=dataset_of, ending=ending, made=made)
        return make_on_cluster(Cluster(*where), missing, until, **how)


def dataset_of(config: AbstractConfig) -> Path:
    """The file of a run's dataset, made if it is missing."""
    return dataset(config.task, episodes=dataset_episodes(config), seed=config.dataset_seed)


def next_run(waiting: list[tuple], running: dict, folder: Path) -> tuple | None:
    """The first that can start: an online phase only once the run before it is done."""
    for name, config in waiting:
        phase = isinstance(config, OnlinePhase)
        if not phase or config.before not in running.values() and is_complete(
            folder / config.before, config.config
        ):
            return name, config
    return None


def begin(
    pool, config: AbstractConfig | OnlinePhase, name: str, folder: Path, until: int | None
):
    """Starts a run in one of the pool's processes, once its dataset is there."""
    phase = isinstance(config, OnlinePhase)
    settings = config.config if phase else config
    data = dataset_of(settings)
    if phase:
        places = data, folder / config.before, folder / name
        return submit(pool, config, *places, work=complete_online)
    how = dict(until=until, change=change_of(name, config))
    return submit(pool, config, data, folder / name, **how)


def dataset_episodes(config: AbstractConfig) -> int:
    """How many episodes a run's dataset has: as many as the settings ask for, or OGBench's official
    number."""
    return config.dataset_episodes or official_episodes(Task.parse(config.task))


if __name__ == "__main__":
    raise SystemExit(bool(main(tyro.cli(Options, description=__doc__))))
