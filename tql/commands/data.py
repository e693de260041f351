"""`tql data`: make a dataset, or take one over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tql.ogbench.tasks import Task


@dataclass(frozen=True)
class Data:
    """Make a dataset with OGBench's scripted policies, without a download (or take over a file, or
    download the official one)."""

    task: Positional[str]
    """OGBench's name, for example cube-single-play-v0; a single task's name makes the dataset that
    it shares."""
    episodes: int | None = None
    """Episodes of 1001 environment steps, and a tenth more for validation; OGBench's official
    number unless given."""
    seed: int = 0
    """One seed makes the dataset, whatever the number of workers."""
    workers: int = 2
    """Processes that simulate, about 0.6 GB of memory each."""
    out: Path = Path("data")
    """Directory for NAME.npz, NAME-val.npz and NAME.json (the manifest); existing files are never
    overwritten."""
    source: Annotated[Path | None, arg(name="from")] = None
    """Check and take over this .npz file (with its -val.npz beside it) instead of simulating."""
    download: bool = False
    """Download OGBench's official file instead of simulating; the only option that uses the
    internet."""

    def __call__(self) -> None:
        from tql.ogbench import collect

        task, options = Task.parse(self.task), dict(seed=self.seed, workers=self.workers)
        if self.source is not None:
            path = collect.adopt(task, self.source, self.out)
        elif self.download:
            path = collect.download(task, self.out)
        else:
            path = collect.collect(task, episodes=self.episodes, out=self.out, **options)
        print(f"dataset {path}, manifest {path.with_suffix('.json')}")
