"""Online phases that belong to one question: each goes on from a run that a study completed."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tql.config import AbstractConfig
from tql.ogbench.evaluate import episodes_of, recorded_episodes
from tql.training.methods import differences, with_absolute_paths
from tql.training.online import finetune, resume_online, start_online
from tql.training.online_config import Finetuning, OnlineConfig, span
from tql.training.run_directory import RunError, checkpoint_steps, read_settings


@dataclass(frozen=True)
class OnlinePhase:
    """One of them, and where it begins."""

    before: str
    """The name of the run that it goes on from."""
    config: AbstractConfig
    """The settings of that run."""
    online: OnlineConfig


def complete_online(
    phase: OnlinePhase, dataset: Path, before: Path, out: Path, *, workers: int = 2
) -> Path:
    """Brings the online phase in `out` to its end, from the start or from where it stopped. One
    that is done is left as it is. Returns `out`. Raises what `finetune` raises."""
    if is_complete_online(out, phase):
        return out
    begin = resume_online if (out / "config.json").exists() else start_online
    finetune(*begin(before, out, asdict(phase.online), dataset), out, workers=workers)
    return out


def is_complete_online(out: Path, phase: OnlinePhase) -> bool:
    """Whether all environment steps are made and no episode is missing. Raises `RunError` if the
    directory holds something else."""
    if not (out / "config.json").exists():
        return False
    settings, online = read_settings(out), phase.online
    found = differences(with_absolute_paths(phase.config), settings.config)
    if found or settings.online != online:
        words = "; ".join(found) or f"{settings.online} instead of {online}"
        raise RunError(
            f"{out}: holds a run of other settings ({words}); move it away, or choose another "
            "directory."
        )
    _, last, _ = span(Finetuning(phase.config, online))
    rows = recorded_episodes(out / "evaluation.jsonl")
    acted = [len(episodes_of(rows, last, policy)) for policy in settings.policies]
    return last in checkpoint_steps(out) and all(n >= online.episodes for n in acted)
