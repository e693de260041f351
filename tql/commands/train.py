"""`tql train`: train a method on a task, evaluate it and plot the run."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro
from tyro.conf import Positional, Suppress, arg

from tql.commands.data import Data
from tql.config import AbstractConfig
from tql.ogbench.tasks import Task
from tql.presets import PRESETS

EXPECTED = {
    ("cpu", "cube-single-noisy-singletask-task3-v0"): (
        "in six runs (three datasets, two seeds each) the policy solved 48 to 50 of 50 episodes "
        "and the behaviour flow alone 5 to 12"
    )
}
"""What a preset was measured to give on a task: printed beside a user's own result."""

LARGE_RUN = 1e9  # Bytes from which on a run says what it needs before it begins.

EXAMPLE = "cube-double-play-singletask-task2-v0"


@dataclass(frozen=True)
class Train:
    """Train TQL or another method on a task, evaluate it in the real environment and plot the run.
    The settings of another method than TQL are listed by: tql train TASK --method NAME --help"""

    task: Positional[str]
    """OGBench's name of a single task, for example cube-double-play-singletask-task2-v0."""
    method: str = ""
    """What to train: tql, bc, iql, rebrac, fbrac, ifql, fql, floq, q-transformer or pac, or a class
    in your own file (file.py:Class); tql unless given, and with --resume --out RUN the run's."""
    preset: str = ""
    """Where the settings start from; other options override them. TQL: cpu (unless given), pocket,
    cpu-sarsa, cpu-flow, paper-0.4M, paper-1M, paper-7M, paper-26M, paper-100M, paper-400M. Other
    methods: pocket (unless given), paper; pac also paper-whole-range."""
    out: Path | None = None
    """Run directory; runs/TASK-PRESET-seedN unless given, with the method before the preset if it
    is not TQL."""
    data: Path | None = None
    """Dataset in OGBench's format; data/NAME.npz unless given, and generated if that is missing."""
    resume: bool = False
    """Continue the run in --out with its own settings, bitwise as if it had not stopped."""
    workers: int = 2
    """Processes that simulate, for generation and evaluation."""
    devices: int = 1
    """Devices that share every batch, and the optimiser's state where it is large. The numbers are
    those of one device but for rounding. Without an accelerator, virtual devices of the CPU."""
    estimate: bool = False
    """Say what memory and how many operations training needs, and stop. Training says it by itself
    where it needs more than 1 GB."""


Settings = TypeVar("Settings", bound=AbstractConfig)


@dataclass(frozen=True)
class TrainWith(Generic[Settings]):
    """`Train`, and the settings of one method, each of them an option."""

    train: Annotated[Train, arg(name="")]
    config: Annotated[Settings, arg(name="")]

    def __call__(self) -> None:
        train_with(self.train, self.config)


def parse_train(arguments: list[str]) -> Callable[[], None]:
    """What `tql train` is asked to do. The task, the method and the preset are read first, because
    they say which settings there are and where these start from; then everything is read.

    Raises `ValueError` for unknown names, and `RunError` where there is no run to
    resume."""
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if not arguments or arguments[0].startswith("-"):
        if not asks_for_help:
            raise ValueError(
                f"give the task first: tql train TASK [options], for example tql train {EXAMPLE}."
            )
        first = [EXAMPLE, *arguments]
    else:
        first = arguments
    asked, _ = tyro.cli(
        Train, args=first, return_unknown_args=True, add_help=False, prog="tql train"
    )
    config = starting_settings(asked)
    shown = _without_task_and_method(config)
    whole = tyro.cli(
        TrainWith[type(shown)],
        args=first,
        default=TrainWith(asked, shown),
        prog="tql train",
        description=" ".join(Train.__doc__.split()),
    )
    given = {field.name: getattr(whole.config, field.name) for field in fields(config)}
    return lambda: train_with(whole.train, type(config)(**given))


def _without_task_and_method(config: AbstractConfig) -> AbstractConfig:
    """The same settings in a class whose task and method are no options, because `Train` has
    them."""
    kind, hidden = type(config), [(name, Suppress[str]) for name in ("task", "method")]
    shown = make_dataclass(kind.__name__, hidden, bases=(kind,), frozen=True)
    # tyro looks for the help of the options in the source of the class of this name.
    shown.__module__, shown.__qualname__ = kind.__module__, kind.__qualname__
    return shown(**{field.name: getattr(config, field.name) for field in fields(config)})


def starting_settings(asked: Train) -> AbstractConfig:
    """The preset's settings, or with `--resume` and without `--preset` those of the run."""
    task = Task.parse(asked.task)
    if asked.task == task.dataset_name:
        named = asked.task.replace("-v0", "-singletask-taskN-v0")
        raise ValueError(f"{asked.task} is a dataset of five tasks; name one of them: {named}.")
    if asked.resume and not asked.preset:
        from tql.training.run_directory import read_settings

        run = asked.out or default_out(asked, "0")
        config = read_settings(run).config
        if absolute(asked.method) in ("", config.method):
            return replace(config, task=asked.task)
    method = asked.method or "tql"
    presets = presets_of(method)
    preset = asked.preset or next(iter(presets))
    if preset not in presets:
        raise ValueError(
            f"there is no preset '{preset}' of {method}; choose one of {', '.join(presets)}."
        )
    return replace(presets[preset](asked.task), method=absolute(method))


def presets_of(method: str) -> dict[str, Callable[[str], AbstractConfig]]:
    """The presets of a method; TQL's need no jax. Raises `ValueError` for an unknown one."""
    if method == "tql":
        return PRESETS
    from tql.training.methods import method_class

    return method_class(method).presets


def absolute(method: str) -> str:
    """`mine.py:AWAC` with the absolute path of the file; a short name as it is."""
    place, colon, name = method.rpartition(":")
    return f"{Path(place).resolve()}{colon}{name}" if colon else method


def default_out(train: Train, seed: int | str) -> Path:
    """Where a run lies unless `--out` says otherwise."""
    method = train.method or "tql"
    preset = train.preset or next(iter(presets_of(method)))
    name = preset if method == "tql" else f"{method.rpartition(':')[2]}-{preset}"
    return Path("runs") / f"{train.task}-{name}-seed{seed}"


def train_with(train: Train, config: AbstractConfig) -> None:
    """Makes the dataset if it is missing, trains, and reports."""
    from tql.training import machines
    from tql.training import run as runs
    from tql.training.devices import ask_for_devices, spread

    if train.workers < 1:
        raise ValueError(f"--workers {train.workers}: at least 1 process is needed.")
    ask_for_devices(train.devices, config.batch_size)
    if machines.leads() and (train.estimate or not train.resume):
        say_what_it_needs(train, config)
    if train.estimate:
        return
    run = train.out or default_out(train, config.seed)
    if not machines.leads():
        return follow(train, run)
    agent, data = agent_and_data(train, config, run)
    machines.meet("the run is there")
    print(f"run directory {run}; compiling ...", flush=True)
    agent, data = spread(agent, data, train.devices)
    agent = runs.train(agent, data, run, workers=train.workers)
    machines.meet("the run is done")
    report(run, agent)


def agent_and_data(train: Train, config: AbstractConfig, run: Path):
    """The agent of a run that is started or resumed, and its data, which are made if missing."""
    import equinox as eqx

    from tql.training import run as runs
    from tql.training.methods import new_agent
    from tql.training.run_directory import check_empty

    if train.resume:
        return runs.resume_run(run, config, train.data)
    check_empty(run)
    task = Task.parse(config.task)
    dataset = train.data or Path("data") / f"{task.dataset_name}.npz"
    if train.data is None and not dataset.exists():
        # With made-up sizes: a misspelt component is found before minutes are spent on data.
        eqx.filter_eval_shape(new_agent, 97, 5, config)
        print(
            f"{dataset} is missing and will be generated by OGBench's scripted policy.",
            flush=True,
        )
        how = dict(episodes=config.dataset_episodes, seed=config.dataset_seed)
        Data(task.dataset_name, out=dataset.parent, workers=train.workers, **how)()
    elif train.data is None:
        warn_of_other_data(dataset, config)
    return runs.start_run(config, dataset, run)


def follow(train: Train, run: Path) -> None:
    """Trains beside the first process, whose numbers these are too. The log goes to a folder that
    is deleted."""
    from tql.training import machines
    from tql.training import run as runs
    from tql.training.devices import spread

    machines.meet("the run is there")
    agent, data = runs.follow(run, train.data)
    agent, data = spread(agent, data, train.devices)
    with tempfile.TemporaryDirectory() as scratch:
        runs.train(agent, data, Path(scratch), workers=1)
    machines.meet("the run is done")


def say_what_it_needs(train: Train, config: AbstractConfig) -> None:
    """Prints memory and operations, by count and with the rows of OGBench's own dataset, if they
    were asked for or are large."""
    from tql.ogbench.collect import official_episodes, official_rows
    from tql.training import cost

    task = Task.parse(config.task)
    rows = (config.dataset_episodes or official_episodes(task)) * (official_rows(task) - 1)
    agent, data = cost.agent_of(*task.sizes, config), cost.transitions_of(*task.sizes, rows)
    if train.estimate or cost.memory(agent, data, train.devices).total > LARGE_RUN:
        print(cost.in_words(agent, data, train.devices), flush=True)


def warn_of_other_data(dataset: Path, config: AbstractConfig) -> None:
    """Warns on stderr where an earlier command made the dataset with another number of episodes, or
    another seed, than these settings ask for."""
    episodes, seed = None, None
    # A damaged manifest is refused in words where the data are loaded.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        manifest = json.loads(dataset.with_suffix(".json").read_text(encoding="utf-8"))
        episodes, seed = manifest.get("episodes", {}).get("train"), manifest.get("seed")
    made, asked = (episodes, seed), (config.dataset_episodes, config.dataset_seed)
    if any(a is not None and b is not None and a != b for a, b in zip(made, asked)):
        print(
            f"warning: {dataset} has {episodes} episodes of seed {seed}, these settings ask for "
            f"{asked[0] or episodes} of seed {asked[1]}; to make them, move it away (with -val.npz "
            "and .json).",
            file=sys.stderr,
        )


def report(run: Path, agent) -> None:
    """What came out, where it is, and what to expect."""
    from tql.analysis.plot import plot_run
    from tql.ogbench.evaluate import episodes_of, recorded_episodes, summary
    from tql.training.run_directory import read_metrics

    rows = recorded_episodes(run / "evaluation.jsonl")
    if rows:
        print(f"episodes: {run / 'evaluation.jsonl'}")
    for policy, label in (("policy", "policy"), ("behaviour", "behaviour flow alone")):
        if episodes := episodes_of(rows, int(agent.step), policy):
            print(f"{label}: {summary(episodes)}")
    for (preset, task), expected in EXPECTED.items():
        if agent.config.method == "tql" and replace(agent.config, seed=0) == PRESETS[preset](task):
            print(f"what to expect: {expected}")
    if read_metrics(run):
        print(f"metrics: {run / 'metrics.jsonl'}", flush=True)
        print(f"plot: {plot_run(run)}")
