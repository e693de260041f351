"""Trains and records the runs behind the figures.

    python figures/run.py cpu      66 small runs on 2 cores: enough to see the collapse and the fix
    python figures/run.py gpu      the paper's four sizes on cube-double, 30,000 updates each, on one GPU
    python figures/run.py paper    the paper's runs: four sizes, with control and without, five tasks, 1,000,000 updates

Says what the preset costs before it starts. Runs go to `runs/study/PRESET/`; a run that is done is left as it is and one that was cut
off goes on, so the same command continues after any stop. `--minutes 9` stops by itself, with everything saved. Each finished run is
copied, without its checkpoints, to `figures/data/PRESET/` (about 60 kB), from which the scripts beside this file draw.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro
from tyro.conf import Positional

from tql.bench import best_matmul_rate, matmul_flops
from tql.collect import official_episodes
from tql.config import PAPER_TARGETS, PRESETS, SIZES, Config, Task, paper
from tql.data import Batch, regression_to_returns
from tql.loop import initialise, update
from tql.run import Interrupted
from tql.study import complete, is_complete, record, unchanged
from tql.workspace import dataset, home

DATA = Path(__file__).parent / "data"
SEEDS = (0, 1, 2)
COLLAPSE_TASK = "cube-single-play-singletask-task2-v0"
AGENT_TASK = "cube-single-noisy-singletask-task3-v0"


def with_critic(config: Config, d_model: int, control: str, seed: int) -> Config:
    """The settings at another width, control and seed; the entropy target stays."""
    return replace(config, seed=seed, critic=replace(config.critic, d_model=d_model), control=replace(config.control, kind=control))


def cpu() -> dict[str, Config]:
    """SARSA critics of three widths with and without control, the ablations at the widest, the flow actor, agents that act, and one
    change at a time to critics without control: learning rate, length, no bootstrapping (walkthrough 6)."""
    sarsa, flow, agent = PRESETS["cpu-sarsa"](COLLAPSE_TASK), PRESETS["cpu-flow"](COLLAPSE_TASK), PRESETS["cpu"](AGENT_TASK)
    members = {}
    for seed in SEEDS:
        for control in ("none", "tql"):
            for d_model in (32, 64, 128):
                members[f"sarsa-{control}-{d_model}-seed{seed}"] = with_critic(sarsa, d_model, control, seed)
            members[f"flow-{control}-64-seed{seed}"] = with_critic(replace(flow, episodes=0), 64, control, seed)
            members[f"agent-{control}-32-seed{seed}"] = with_critic(agent, 32, control, seed)
        for control in ("fixed", "single"):
            members[f"sarsa-{control}-128-seed{seed}"] = with_critic(sarsa, 128, control, seed)
        slow, fast = replace(sarsa, critic_lr=sarsa.critic_lr / 4), replace(sarsa, critic_lr=sarsa.critic_lr * 4)
        long = replace(sarsa, steps=4 * sarsa.steps, evaluate_every=4 * sarsa.steps, checkpoint_every=sarsa.steps)
        members[f"slow-none-128-seed{seed}"] = with_critic(slow, 128, "none", seed)
        members[f"fast-none-32-seed{seed}"] = with_critic(fast, 32, "none", seed)
        members[f"long-none-32-seed{seed}"] = with_critic(long, 32, "none", seed)
        for d_model in (32, 128):
            members[f"returns-none-{d_model}-seed{seed}"] = with_critic(sarsa, d_model, "none", seed)
    return members | stabilisers_and_depth(sarsa)


def stabilisers_and_depth(sarsa: Config) -> dict[str, Config]:
    """The paper's last two studies at the same small scale: other blocks without control, and four layers with and without it."""
    members = {}
    for seed in SEEDS:
        for variant in ("qk-norm", "sigma-reparam", "modern"):
            wide = with_critic(sarsa, 128, "none", seed)
            members[f"{variant}-none-128-seed{seed}"] = replace(wide, critic=replace(wide.critic, variant=variant))
        for control in ("none", "tql"):
            narrow = with_critic(sarsa, 64, control, seed)
            members[f"depth4-{control}-64-seed{seed}"] = replace(narrow, critic=replace(narrow.critic, layers=4))
    return members


def change(name: str, config: Config) -> Callable[[Batch], Batch]:
    """What is done to a member's training data: regression to returns, if its name says so."""
    return partial(regression_to_returns, discount=config.discount) if name.startswith("returns-") else unchanged


def gpu() -> dict[str, Config]:
    """The paper's sizes and settings on cube-double task 2, without control and with it, widest first; `UNTIL` cuts them off.

    The schedules are those of 1,000,000 updates, so these are the first 3 % of the paper's runs; by then the published entropies have
    parted. Not evaluated: the paper's own success curves begin at 100,000 updates.
    """
    members = {}
    for d_model in sorted(SIZES.values(), reverse=True):
        for control in ("none", "tql"):
            size = next(size for size, width in SIZES.items() if width == d_model)
            config = replace(paper("cube-double-play-singletask-task2-v0", size), episodes=0)
            config = replace(config, updates_per_call=50, log_every=500, checkpoint_every=5000)
            members[f"cube-double-task2-{control}-{d_model}-seed0"] = with_critic(config, d_model, control, 0)
    return members


def whole_paper() -> dict[str, Config]:
    """Five domains, five tasks, four sizes, without control and with it; the ablations at the largest size on cube-double."""
    members = {}
    for seed in SEEDS:
        for domain in PAPER_TARGETS:
            for number in range(1, 6):
                for size, d_model in SIZES.items():
                    controls = ("none", "tql", "fixed", "single") if (domain, size) == ("cube-double", "26M") else ("none", "tql")
                    for control in controls:
                        config = replace(paper(f"{domain}-play-singletask-task{number}-v0", size), updates_per_call=50)
                        members[f"{domain}-task{number}-{control}-{d_model}-seed{seed}"] = with_critic(config, d_model, control, seed)
    return members


PRESET_MEMBERS = {"cpu": cpu, "gpu": gpu, "paper": whole_paper}
UNTIL = {"gpu": 30_000}
"""Updates after which a preset's runs are cut off; all of them unless named here."""

STATE_SIZES = {"cube-single": 28, "cube-double": 37, "cube-triple": 46, "scene": 40, "puzzle-3x3": 55, "puzzle-4x4": 83}
SHARE = 0.35
"""Part of the measured matrix rate that training reaches: 0.29 to 0.58 on 2 CPU cores (README, Speed); an assumption on a GPU."""


def episodes(config: Config) -> int:
    """Episodes of a run's dataset: what the CPU presets ask for, and OGBench's 1,000,000 transitions at the paper's scale."""
    return config.dataset_episodes or official_episodes(Task.parse(config.task))


def seconds_of(config: Config, until: int | None, rate: float) -> float:
    """Estimated training time, from the counted matrix products of one update."""
    n_s = STATE_SIZES[Task.parse(config.task).domain]
    rows = jnp.zeros((config.batch_size, n_s)), jnp.zeros((config.batch_size, 5)), jnp.zeros(config.batch_size)
    batch = Batch(rows[0], rows[1], rows[2], rows[2], rows[0], rows[1])
    agent = initialise(n_s, 5, config)
    return matmul_flops(lambda: update(agent, batch, jr.key(0))) * (until or config.steps) / (SHARE * rate)


def say_what_it_costs(preset: str, members: dict[str, Config], folder: Path) -> None:
    """Prints, before anything is trained, how many runs are missing and about how long they take on this machine."""
    until, rate = UNTIL.get(preset), best_matmul_rate()
    missing = {name: config for name, config in members.items() if not is_complete(folder / name, config, until)}
    kinds = {}
    for config in missing.values():
        of_kind = replace(config, seed=0, task=config.task.replace(f"-task{Task.parse(config.task).task_id}", "-task1"))
        kinds[of_kind] = kinds.get(of_kind, 0) + 1
    hours = sum(count * seconds_of(config, until, rate) for config, count in kinds.items()) / 3600
    print(f"preset {preset}: {len(members)} runs, {len(members) - len(missing)} of them done, of {until or 'all'} updates")
    print(
        f"about {hours:.1f} hours of training on {jax.devices()[0].device_kind}, if it reaches {SHARE:.0%} of the {rate / 1e12:.2f} "
        "TFLOP/s that a float32 matrix product was just measured to reach; datasets and evaluations come on top",
        flush=True,
    )


@dataclass(frozen=True)
class Arguments:
    """Train and record the runs behind the figures."""

    preset: Positional[Literal["cpu", "gpu", "paper"]]
    """cpu: small runs on 2 cores. gpu: the paper's sizes, cut off. paper: the paper's runs."""
    minutes: float | None = None
    """Stop after this time with everything saved; the same command goes on."""
    only: str = ""
    """Only runs whose name contains this."""
    workers: int = 2
    """Processes that simulate, for datasets and evaluations."""
    estimate: bool = False
    """Say what it costs and stop."""


def stop_between_runs(*_) -> None:
    print("stopped between two runs; the same command goes on.")
    sys.exit()


def main(asked: Arguments) -> None:
    jax.config.update("jax_compilation_cache_dir", str(home() / "runs" / "compiled"))  # runs that differ by their seed share programs
    members = {name: config for name, config in PRESET_MEMBERS[asked.preset]().items() if asked.only in name}
    folder = home() / "runs" / "study" / asked.preset
    say_what_it_costs(asked.preset, members, folder)
    if asked.estimate:
        return
    # While a run trains it has its own way to stop; between two runs there is nothing to save.
    signal.signal(signal.SIGTERM, stop_between_runs)
    if asked.minutes:
        alarm = threading.Timer(60 * asked.minutes, lambda: os.kill(os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
    for number, (name, config) in enumerate(members.items(), start=1):
        print(f"{number} of {len(members)}: {name}", flush=True)
        data = dataset(config.task, episodes=episodes(config))
        try:
            complete(config, data, folder / name, workers=asked.workers, until=UNTIL.get(asked.preset), change=change(name, config))
        except Interrupted as stop:
            print(f"{name}: {stop} The same command goes on.")
            return
        record(folder / name, DATA / asked.preset / name)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
