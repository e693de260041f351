"""Where walkthroughs and figures find and leave their files: `data/` and `runs/` of the checkout,
or of the folder $TQL_HOME.

Unlike paths from the current directory, these are the same in a terminal, in an editor's cell and
in a notebook."""

import os
from pathlib import Path

from tql.ogbench.collect import collect
from tql.ogbench.tasks import Task

CHECKOUT = Path(__file__).parents[2]
"""The repository's own folder, with `figures/` in it."""


def home() -> Path:
    """$TQL_HOME if it is set, otherwise the checkout."""
    return Path(os.environ.get("TQL_HOME") or CHECKOUT)


def pictures(walkthrough: str) -> Path:
    """The folder of a walkthrough's pictures, `runs/walkthrough/NAME`; made if it is missing."""
    folder = home() / "runs" / "walkthrough" / walkthrough
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dataset(task: str, *, episodes: int, seed: int = 0) -> Path:
    """The file of a task's dataset with this many episodes (and a tenth more for validation),
    generated with this seed if it is missing.

    Datasets of other lengths or seeds lie in other folders, so a tour's two episodes are never
    taken for a study's hundred. Raises `ValueError` for an unknown task.
    """
    path = dataset_path(task, episodes=episodes, seed=seed)
    if not path.exists():
        print(f"{path} is missing and is generated now, by OGBench's scripted policy.", flush=True)
        task = Task.parse(path.stem)
        collect(task, episodes=episodes, seed=seed, workers=2, out=path.parent)
    return path


def dataset_path(task: str, *, episodes: int, seed: int = 0) -> Path:
    """The file that `dataset` returns, whether it is there yet or not."""
    folder = f"{episodes}-episodes" + (f"-seed{seed}" if seed else "")
    return home() / "data" / folder / f"{Task.parse(task).dataset_name}.npz"
