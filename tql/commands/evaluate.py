"""`tql evaluate`: how often a run's policies solve their task."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run in the real environment; adds to its
    evaluation.jsonl."""

    run: Positional[Path]
    """Run directory."""
    episodes: int = 50
    """Episodes per policy."""
    workers: int = 2
    """Processes that simulate; the results do not depend on them."""
    out: Path | None = None
    """The file that the episodes are added to; RUN/evaluation.jsonl unless given."""

    def __call__(self) -> None:
        from tql.ogbench.evaluate import summary
        from tql.training.run import evaluate_run
        from tql.training.run_directory import trained_agent

        if self.episodes < 1 or self.workers < 1:
            raise ValueError(
                f"--episodes {self.episodes} and --workers {self.workers} must be at least 1 each."
            )
        agent = trained_agent(self.run)
        step = int(agent.step)
        tell = lambda name, found: print(f"{name} at update {step}: {summary(found)}", flush=True)
        options = dict(episodes=self.episodes, workers=self.workers, out=self.out)
        evaluate_run(agent, self.run, **options, tell=tell)
