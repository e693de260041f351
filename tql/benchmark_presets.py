r"""What the benchmark runs: methods x tasks x seeds x sizes. A run is TASK/LABEL-seedK; a label is METHOD, METHOD-CHANGE or METHOD@SIZE.

    pocket    all ten methods, TQL without control and the corrected Q-Transformer on 2 cores, the same data and updates, 3 seeds, two
              tasks; on the first also other sizes
    search    other values of the one setting that says how far a method may leave the dataset, on one task, with a seed that pocket does
              not have; by these, two of pocket's settings were changed
    gpu       cube-double and scene, all five tasks, all ten methods, 1,000,000 updates, one seed
    paper     the paper's 25 tasks, ten methods, 8 seeds, 1,000,000 updates
"""

from collections.abc import Callable
from dataclasses import replace

from tql.agent import method_class
from tql.config import METHODS, SIZES, TrainingConfig

POCKET_TASKS = ("cube-single-noisy-singletask-task3-v0", "cube-single-noisy-singletask-task2-v0")
POCKET_SEEDS = (0, 1, 2)
PAPER_DOMAINS = ("cube-double", "scene", "puzzle-3x3", "puzzle-4x4", "cube-triple")
SEARCHED = {
    "iql": ("alpha", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "rebrac": ("alpha_actor", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "fbrac": ("alpha_bc", (3.0, 10.0, 30.0, 100.0)),
    "ifql": ("candidates", (8, 32, 128)),
    "fql": ("alpha_bc", (3.0, 10.0, 30.0)),
    "floq": ("alpha_bc", (3.0, 10.0, 30.0)),
    "pac": ("alpha_bc", (3.0, 10.0, 30.0)),
    "tql": ("actor.alpha_bc", (3.0, 10.0, 30.0)),
}
"""By method, the setting that says how far it may leave the dataset, and its values. A larger one stays closer, but for IQL and IFQL. BC
has none; the Q-Transformer's weight is fixed at .5 in its loss.
"""
SEARCH_SEED = 10


def settings(method: str, preset: str, task: str, seed: int) -> TrainingConfig:
    """A method's settings under a preset of its own."""
    return replace(method_class(method).presets[preset](task), seed=seed)


def without_control(config: TrainingConfig) -> TrainingConfig:
    """TQL's transformer with the entropy loss off, all else equal."""
    return replace(config, control=replace(config.control, kind="none"))


def pocket() -> dict[str, TrainingConfig]:
    """By task and seed: all methods, TQL without control, the Q-Transformer with a correct bound; on the first task also other widths
    (the label's number), for the scaling curves."""
    members = {}
    for task in POCKET_TASKS:
        for seed in POCKET_SEEDS:
            for method in METHODS:
                members[f"{task}/{method}-seed{seed}"] = settings(method, "pocket", task, seed)
            members[f"{task}/tql-none-seed{seed}"] = without_control(settings("tql", "pocket", task, seed))
            bound = replace(settings("q-transformer", "pocket", task, seed), mc_mode="lower_bound")
            members[f"{task}/q-transformer-bound-seed{seed}"] = bound
    task = POCKET_TASKS[0]
    for seed in POCKET_SEEDS:
        tql = settings("tql", "pocket", task, seed)
        wide = replace(tql, critic=replace(tql.critic, d_model=64))
        members[f"{task}/tql@64-seed{seed}"] = wide
        members[f"{task}/tql-none@64-seed{seed}"] = without_control(wide)
        members[f"{task}/fql@512-seed{seed}"] = replace(settings("fql", "pocket", task, seed), critic_hidden=(512, 512, 512))
        members[f"{task}/floq@256-seed{seed}"] = replace(settings("floq", "pocket", task, seed), velocity_hidden=(256, 256))
        members[f"{task}/pac@64-seed{seed}"] = replace(settings("pac", "pocket", task, seed), d_model=64)
    return members


def search() -> dict[str, TrainingConfig]:
    """One run per method and value, METHOD@VALUE; all else as in `pocket`."""
    task, members = POCKET_TASKS[0], {}
    for method, (name, values) in SEARCHED.items():
        for value in values:
            config = settings(method, "pocket", task, SEARCH_SEED)
            part, _, of_part = name.partition(".")
            changed = replace(getattr(config, part), **{of_part: value}) if of_part else value
            members[f"{task}/{method}@{value:g}-seed{SEARCH_SEED}"] = replace(config, **{part: changed})
    return members


def at_paper_scale(domains: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, TrainingConfig]:
    """All five tasks of these domains, the paper's settings; TQL at its largest size."""
    members = {}
    for seed in seeds:
        for domain in domains:
            for number in range(1, 6):
                task = f"{domain}-play-singletask-task{number}-v0"
                for method in METHODS:
                    preset = f"paper-{list(SIZES)[-1]}" if method == "tql" else "paper"
                    members[f"{task}/{method}-seed{seed}"] = replace(settings(method, preset, task, seed), updates_per_call=50)
    return members


def gpu() -> dict[str, TrainingConfig]:
    """Cube-double and scene, one seed."""
    return at_paper_scale(("cube-double", "scene"), (0,))


def paper() -> dict[str, TrainingConfig]:
    """Everything in the paper's table, 8 seeds."""
    return at_paper_scale(PAPER_DOMAINS, tuple(range(8)))


MEMBERS: dict[str, Callable[[], dict[str, TrainingConfig]]] = {"pocket": pocket, "search": search, "gpu": gpu, "paper": paper}
