"""`tql render`: a film of one episode."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tql.ogbench.tasks import Task


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
        from tql.ogbench.render import render_episode
        from tql.training.run import wave_policy
        from tql.training.run_directory import check_can_write, trained_agent

        agent = trained_agent(self.run)
        policy, out = wave_policy(agent, self.policy), self.out or self.run / "episode.gif"
        check_can_write(out)
        task, seed = Task.parse(agent.config.task), agent.config.seed
        film = render_episode(policy, task, seed=seed, out=out, episode=self.episode)
        solved = "solved" if film.success else "not solved"
        print(f"{out}: {film.length} steps, return {film.total_reward:g}, {solved}")
