"""`tql analyse`: a closer look at a run's critic."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Analyse:
    """Look at a run's critic: Q landscape and roughness, slices, attention maps, entropy of every
    head. Writes a picture and numbers."""

    run: Positional[Path]
    """Run directory."""
    step: int | None = None
    """Number of updates of the checkpoint to look at; the newest unless given."""
    data: Path | None = None
    """Where the run's dataset is now, if it was moved; its validation part is looked at."""
    out: Path | None = None
    """Folder for the picture and the numbers; the run directory unless given."""

    def __call__(self) -> None:
        from tql.analysis.one_checkpoint import analyse_run

        for line in analyse_run(self.run, step=self.step, dataset=self.data, out=self.out):
            print(line, flush=True)
