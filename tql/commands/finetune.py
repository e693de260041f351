"""`tql finetune`: an agent that was trained offline acts, and learns from what it sees."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Finetune:
    """Go on with a finished run in the environment: the agent acts, and learns from a replay buffer
    that starts with the dataset. Writes to a directory of its own."""

    run: Positional[Path]
    """Directory of the run that was trained offline; nothing in it is changed."""
    environment_steps: int | None = None
    """How many environment steps it makes; to be given, but for --resume."""
    updates_per_step: int | None = None
    """Gradient updates after every environment step; 1 unless given."""
    reset_every: int | None = None
    """Environment steps between two resets; never unless given."""
    reset: Literal["critic", "heads", "all"] | None = None
    """critic (unless given): the critic, its target and their optimiser. heads: of these the Q
    heads alone. all: also the actor and the temperatures."""
    buffer_size: int | None = None
    """Transitions in the replay buffer; the oldest make room for new ones, the dataset first. Room
    for all unless given."""
    log_every: int | None = None
    """Environment steps between two lines of metrics, and between two moments at which a signal is
    obeyed; 100 unless given. It divides the other lengths but --reset-every."""
    checkpoint_every: int | None = None
    """Environment steps between two checkpoints; 1000 unless given."""
    evaluate_every: int | None = None
    """Environment steps between two evaluations; 5000 unless given."""
    episodes: int | None = None
    """Episodes of an evaluation, for each policy; as many as in the run unless given."""
    out: Path | None = None
    """Directory of the online phase; RUN-online beside RUN unless given."""
    data: Path | None = None
    """Where the run's dataset is now, if it was moved."""
    resume: bool = False
    """Continue what is in --out with its own settings, bitwise as if it had not stopped."""
    workers: int = 2
    """Processes that simulate in an evaluation; the agent acts in another one."""

    def __call__(self) -> None:
        from tql.analysis.plot import plot_run
        from tql.training.online import finetune, resume_online, start_online

        names = ("environment_steps", "updates_per_step", "reset_every", "reset", "buffer_size")
        names += ("log_every", "checkpoint_every", "evaluate_every", "episodes")
        given = {x: getattr(self, x) for x in names if getattr(self, x) is not None}
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: at least 1 process is needed.")
        if not self.resume and self.environment_steps is None:
            raise ValueError("give --environment-steps, the length of the online phase.")
        if not self.resume and self.reset and not self.reset_every:
            raise ValueError(f"--reset {self.reset}: give --reset-every too, or nothing is reset.")
        run = self.run.resolve()
        out = self.out or run.with_name(f"{run.name}-online")
        begin = resume_online if self.resume else start_online
        state, data = begin(self.run, out, given, self.data)
        print(f"directory {out}; compiling ...", flush=True)
        finetune(state, data, out, workers=self.workers)
        for line in report(out):
            print(line)
        print(f"plot: {plot_run(out)}")


def report(out: Path) -> list[str]:
    """For people: the first and the last evaluation, and the episodes that it learnt from."""
    from tql.ogbench.evaluate import episodes_of, recorded_episodes, summary

    evaluated, learnt = (
        recorded_episodes(out / name) for name in ("evaluation.jsonl", "episodes.jsonl")
    )
    lines = []
    if evaluated:
        steps, names = ({row[key] for row in evaluated} for key in ("step", "policy"))
        for name in sorted(names, reverse=True):
            first, last = (episodes_of(evaluated, at(steps), name) for at in (min, max))
            lines.append(f"{name} before: {summary(first)}; after: {summary(last)}")
    if learnt:
        solved = sum(row["success"] for row in learnt[-50:])
        many = f"episodes that it learnt from: {len(learnt)}, in {out / 'episodes.jsonl'}"
        lines.append(f"{many}; of the last {len(learnt[-50:])} it solved {solved}")
    return lines
