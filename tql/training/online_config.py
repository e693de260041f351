"""The settings with which a trained agent goes on in the environment."""

from dataclasses import dataclass, fields

from tql.config import AbstractConfig

RESETS = ("critic", "heads", "all")
"""What `reset_every` can reset; `resets.py` says what each of them means."""


@dataclass(frozen=True)
class OnlineConfig:
    """How long the agent acts, how much it learns meanwhile, and what is kept."""

    environment_steps: int  # Length of the online phase.
    buffer_size: int  # Transitions in the replay buffer, which starts with the dataset's.
    updates_per_step: int = 1  # Gradient updates after every environment step.
    reset_every: int = 0  # Environment steps between two resets; 0 is never.
    reset: str = "critic"  # What is reset: critic, heads or all.
    log_every: int = 100
    """Environment steps between two lines of metrics, means over these steps; it divides all
    lengths and intervals but `reset_every`. Signals are obeyed after so many steps."""
    checkpoint_every: int = 1000  # Environment steps between two checkpoints.
    evaluate_every: int = 5000  # Environment steps between two evaluations.
    episodes: int = 50  # Episodes of an evaluation; 0 is no evaluation.

    def __post_init__(self):
        """Raises `ValueError` for settings that cannot be run."""
        for field in fields(self):
            value, least = getattr(self, field.name), field.name not in ("reset_every", "episodes")
            if isinstance(value, int) and not int(least) <= value < 2**31:
                raise ValueError(f"{field.name} is {value}; it must lie in [{int(least)}, 2^31).")
        for name in ("environment_steps", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} {getattr(self, name)} is no multiple of log_every {self.log_every}."
                )
        if self.reset not in RESETS:
            raise ValueError(f"reset is '{self.reset}'; it must be one of {', '.join(RESETS)}.")


@dataclass(frozen=True)
class Finetuning:
    """All settings of an online phase: those of the agent, and how it goes on."""

    agent: AbstractConfig
    online: OnlineConfig


AnyConfig = AbstractConfig | Finetuning


def span(config: AnyConfig) -> tuple[int, int, int]:
    """The first and the last number of gradient updates of a run with these settings, and those
    between two moments at which it can be saved."""
    if isinstance(config, Finetuning):
        first, updates = config.agent.steps, config.online.updates_per_step
        last = first + updates * config.online.environment_steps
        return first, last, updates * config.online.log_every
    return 0, config.steps, config.updates_per_call
