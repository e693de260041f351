"""The command line: `python -m tql COMMAND`, or `tql COMMAND`. jax and the simulator load only when a command needs them."""

import contextlib
import json
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from tql.config import EXPECTED, METHODS, PRESETS, Config, Task, TrainingConfig
from tql.workspace import CHECKOUT


@dataclass(frozen=True)
class Data:
    """Make a dataset with OGBench's scripted policies, without a download (or take over a file, or download the official one)."""

    task: Positional[str]
    """OGBench's name, for example cube-single-play-v0; a single task's name makes the dataset that it shares."""
    episodes: int | None = None
    """Episodes of 1001 environment steps, and a tenth more for validation; OGBench's official number unless given."""
    seed: int = 0
    """One seed makes the dataset, whatever the number of workers."""
    workers: int = 2
    """Processes that simulate, about 0.6 GB of memory each."""
    out: Path = Path("data")
    """Directory for NAME.npz, NAME-val.npz and NAME.json (the manifest); existing files are never overwritten."""
    source: Annotated[Path | None, arg(name="from")] = None
    """Check and take over this .npz file (with its -val.npz beside it) instead of simulating."""
    download: bool = False
    """Download OGBench's official file instead of simulating; the only option that uses the internet."""

    def __call__(self) -> None:
        from tql import collect

        task = Task.parse(self.task)
        if self.source is not None:
            path = collect.adopt(task, self.source, self.out)
        elif self.download:
            path = collect.download(task, self.out)
        else:
            path = collect.collect(task, episodes=self.episodes, seed=self.seed, workers=self.workers, out=self.out)
        print(f"dataset {path}, manifest {path.with_suffix('.json')}")


Settings = TypeVar("Settings", bound=TrainingConfig)


@dataclass(frozen=True)
class Train(Generic[Settings]):
    """Train TQL or another method on a task, evaluate it in the real environment and plot the run."""

    config: Annotated[Settings, arg(name="")]
    method: Annotated[str, arg(help=f"What to train: {', '.join(METHODS)}; tql unless given; with --resume --out RUN the run's.")] = ""
    preset: str = ""
    """Where the settings start from; other options override them. TQL: cpu (unless given), pocket, cpu-sarsa, cpu-flow, paper-0.4M,
    paper-1M, paper-7M, paper-26M. Other methods: pocket (unless given), paper; pac also paper-whole-range."""
    out: Path | None = None
    """Run directory; runs/TASK-PRESET-seedN unless given, with the method before the preset if it is not TQL."""
    data: Path | None = None
    """Dataset in OGBench's format; data/NAME.npz unless given, and generated if that is missing."""
    resume: bool = False
    """Continue the run in --out with its own settings, bitwise as if it had not stopped."""
    workers: int = 2
    """Processes that simulate, for generation and evaluation."""

    def __call__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: at least 1 process is needed.")
        task = Task.parse(self.config.task)
        method, preset = self.config.method, self.preset or next(iter(presets_of(self.config.method)))
        run = self.out or default_out(self.config.task, method, preset, self.config.seed)
        dataset = self.data or Path("data") / f"{task.dataset_name}.npz"
        from tql import run as runs
        from tql.run_directory import check_empty

        if self.resume:
            agent, data = runs.resume(run, task, self.config, self.data)
        else:
            check_empty(run)
            if self.data is None and not dataset.exists():
                print(f"{dataset} is missing and will be generated with OGBench's scripted policy.", flush=True)
                episodes = self.config.dataset_episodes
                Data(task.dataset_name, episodes=episodes, workers=self.workers, out=dataset.parent)()
            elif self.data is None:
                self.warn_of_other_length(dataset)
            agent, data = runs.start(self.config, dataset, run)
        print(f"run directory {run}; compiling ...", flush=True)
        agent = runs.train(agent, data, run, workers=self.workers)
        self.report(run, agent)

    def warn_of_other_length(self, dataset: Path) -> None:
        """On stderr, where an earlier command made the dataset with another number of episodes than these settings are for."""
        manifest, asked, made = dataset.with_suffix(".json"), self.config.dataset_episodes, None
        # A damaged manifest is refused in words where the data are loaded.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            made = json.loads(manifest.read_text(encoding="utf-8")).get("episodes", {}).get("train")
        if made and asked and made != asked:
            say = f"{dataset} has {made} episodes, these settings ask for {asked}; to make them, move it away (with -val.npz and .json)."
            print(f"warning: {say}", file=sys.stderr)

    def report(self, run: Path, agent) -> None:
        """What came out, where it is, and what to expect."""
        from tql.evaluate import episodes_of, recorded, summary
        from tql.plot import plot
        from tql.run_directory import read_metrics

        if read_metrics(run):
            print(f"plot: {plot(run)}\nmetrics: {run / 'metrics.jsonl'}")
        if recorded(run / "evaluation.jsonl"):
            print(f"episodes: {run / 'evaluation.jsonl'}")
        for policy, label in (("policy", "policy"), ("behaviour", "behaviour flow alone")):
            if episodes := episodes_of(recorded(run / "evaluation.jsonl"), int(agent.step), policy):
                print(f"{label}: {summary(episodes)}")
        for (preset, task), expected in EXPECTED.items():
            if agent.config.method == "tql" and replace(agent.config, seed=0) == PRESETS[preset](task):
                print(f"what to expect: {expected}")


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run in the real environment; adds to its evaluation.jsonl."""

    run: Positional[Path]
    """Run directory."""
    episodes: int = 50
    """Episodes per policy."""
    workers: int = 2
    """Processes that simulate; the results do not depend on them."""

    def __call__(self) -> None:
        from tql import run as runs
        from tql.evaluate import summary
        from tql.run_directory import trained_agent

        if self.episodes < 1 or self.workers < 1:
            raise ValueError(f"--episodes {self.episodes} and --workers {self.workers}: at least 1 of each is needed.")
        agent = trained_agent(self.run)
        for policy, episodes in runs.evaluate(agent, self.run, episodes=self.episodes, workers=self.workers).items():
            print(f"{policy} at update {int(agent.step)}: {summary(episodes)}")


@dataclass(frozen=True)
class Render:
    """Film one episode of a run's newest checkpoint, without a screen."""

    run: Positional[Path]
    """Run directory."""
    out: Path | None = None
    """A .gif or .mp4 file; RUN/episode.gif unless given."""
    episode: int = 0
    """Number of the episode in the run's evaluation."""
    policy: str = "policy"
    """policy (the one-step policy) or behaviour (the flow that imitates)."""

    def __call__(self) -> None:
        from tql import run as runs
        from tql.render import render
        from tql.run_directory import trained_agent

        agent = trained_agent(self.run)
        out = self.out or self.run / "episode.gif"
        task = Task.parse(agent.config.task)
        film = render(runs.wave_policy(agent, self.policy), task, seed=agent.config.seed, out=out, episode=self.episode)
        print(f"{out}: {film.length} steps, return {film.total_reward:g}, {'solved' if film.success else 'not solved'}")


@dataclass(frozen=True)
class Plot:
    """Draw a run: losses, entropy and temperatures against their targets, Q, success."""

    run: Positional[Path]
    """Run directory."""

    def __call__(self) -> None:
        from tql.plot import plot

        print(plot(self.run))


@dataclass(frozen=True)
class Analyse:
    """Look at a run's critic: Q landscape and roughness, slices, attention maps, entropy of every head. Writes a picture and numbers."""

    run: Positional[Path]
    """Run directory."""
    step: int | None = None
    """Number of updates of the checkpoint to look at; the newest unless given."""
    data: Path | None = None
    """Where the run's dataset is now, if it was moved; its validation part is looked at."""

    def __call__(self) -> None:
        from tql.study import analyse

        for line in analyse(self.run, self.step, self.data):
            print(line)


@dataclass(frozen=True)
class Benchmark:
    """Train all methods on the same tasks, data and updates, evaluate them alike and record them; goes on where it stopped."""

    preset: Literal["pocket", "search", "gpu", "paper"] = "pocket"
    """pocket: small settings on 2 cores. search: other values of one of them per method. gpu: cube-double and scene at the paper's
    scale, one seed. paper: the paper's table, 8 seeds."""
    only: str = ""
    """Only runs whose name (TASK/LABEL-seedK) contains this."""
    minutes: float | None = None
    """Stop after this time with everything saved; the same command goes on. A dataset is made whole, or not begun: at most one per call."""
    processes: int | None = None
    """Runs at a time, one core each; all cores unless given, and 1 on a GPU."""
    estimate: bool = False
    """Say what it costs and stop."""
    records: Path = CHECKOUT / "figures" / "data" / "benchmark"
    """Folder in which finished runs are recorded, PRESET/TASK/LABEL-seedK in it."""

    def __call__(self) -> None:
        from tql.benchmark import benchmark

        if (self.minutes is not None and not self.minutes > 0) or (self.processes is not None and self.processes < 1):
            raise ValueError(f"--minutes {self.minutes} must be above 0, and --processes {self.processes} at least 1.")
        outcome = benchmark(self.preset, self.only, self.minutes, self.processes, self.estimate, self.records)
        if outcome is not None and outcome.done:
            scripts = {"pocket": ("table", "success", "scaling"), "search": ("search",)}.get(self.preset, ("table", "success"))
            options = ["--data", str(self.records)] if self.preset == "search" else ["--preset", self.preset, "--data", str(self.records)]
            print("Draw them:" if self.preset != "search" else "Draw them, beside the records of pocket:")
            for script in scripts:
                print(f"  python figures/{script}.py {shlex.join(options)}")
        if outcome is not None and outcome.failed:
            sys.exit(1)


@dataclass(frozen=True)
class Bench:
    """Measure updates per second on this machine, beside the same update in a plain Python loop."""

    method: str = ""
    """The paper's settings of one method (tql, bc, iql, ...) or of all; TQL's critic at several widths unless given."""
    d_model: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of TQL's critic, without --method."""
    batch_size: tuple[int, ...] = (64, 256)
    """Transitions per update, without --method."""
    repeats: int = 3
    """Alternating measurements of both loops; medians are printed."""
    seconds: float = 4.0
    """Least time per measurement."""

    def __call__(self) -> None:
        from tql.bench import bench, methods, widths

        configs = methods(self.method) if self.method else widths(self.d_model, self.batch_size)
        bench(configs, self.repeats, self.seconds)


def train_defaults(arguments: list[str]) -> Train:
    """The settings of the task (the first argument), of `--method` and of `--preset`, or with `--resume` those of the run.

    Raises `ValueError` for wrong names, and `RunError` where there is no run to resume.
    """
    task = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if task is None and not {"-h", "--help"} & set(arguments):
        raise ValueError("give the task first: tql train TASK [options], for example tql train cube-double-play-singletask-task2-v0.")
    asked_method, asked_preset = option(arguments, "--method"), option(arguments, "--preset")
    method = asked_method or "tql"
    presets = presets_of(method)
    preset = asked_preset or next(iter(presets))
    if task is not None and "--resume" in arguments and asked_preset is None:
        from tql.run_directory import read_settings

        out, seed = option(arguments, "--out"), option(arguments, "--seed") or "0"
        config = read_settings(Path(out) if out else default_out(task, method, preset, seed)).config
        if asked_method in (None, config.method):
            return Train(config)
    if preset not in presets:
        raise ValueError(f"there is no preset '{preset}' of {method}; choose one of {', '.join(presets)}.")
    return Train(presets[preset](task or "cube-double-play-singletask-v0"))


def default_out(task: str, method: str, preset: str, seed: int | str) -> Path:
    """Where a run lies unless `--out` says otherwise."""
    name = preset if method == "tql" else f"{method}-{preset}"
    return Path("runs") / f"{Task.parse(task).single_task_name}-{name}-seed{seed}"


def presets_of(method: str) -> dict[str, Callable[[str], TrainingConfig]]:
    """Those of a method; TQL's need no jax. Raises `ValueError` for a method that there is not."""
    if method == "tql":
        return PRESETS
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; choose one of {', '.join(METHODS)}.")
    from tql.agent import method_class

    return method_class(method).presets


def option(arguments: list[str], name: str) -> str | None:
    """What stands after `name` on the command line, or behind `name=`."""
    found = None  # the last one counts, as for the other options
    for word, following in zip(arguments, [*arguments[1:], ""]):
        if word == name or word.startswith(f"{name}="):
            found = following if word == name else word.removeprefix(f"{name}=")
    return found


COMMANDS = {
    **{"data": Data, "train": Train[Config], "evaluate": Evaluate, "render": Render, "plot": Plot, "analyse": Analyse},
    **{"bench": Bench, "benchmark": Benchmark},
}


def main() -> None:
    """Runs the command in `sys.argv`; errors that a user can mend are one line on stderr and exit status 1."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["train"]:
            defaults = train_defaults(arguments[1:])
            tyro.cli(Train[type(defaults.config)], args=arguments[1:], prog="tql train", default=defaults)()
        else:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="tql", args=arguments)()
    except KeyboardInterrupt:
        sys.exit("tql: interrupted.")
    except Exception as error:
        # What tql itself says with `raise`, and errors of files, are messages to the user; any other is a defect and shows where.
        origin = traceback.extract_tb(error.__traceback__)[-1]
        said = Path(__file__).parent in Path(origin.filename).parents and (origin.line or "").startswith("raise ")
        if said or isinstance(error, OSError):
            sys.exit(f"tql: {error}")
        raise


if __name__ == "__main__":
    main()
