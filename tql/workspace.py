"""Where walkthroughs and figures find and leave their files: `data/` and `runs/` of the checkout, or of the folder $TQL_HOME.

Unlike paths from the current directory, these are the same in a terminal, an editor's cell and a notebook.
"""

import os
from pathlib import Path

from tql import collect
from tql.config import Task

CHECKOUT = Path(__file__).parents[1]
"""The repository's own folder, with `figures/` in it."""


def home() -> Path:
    """$TQL_HOME if it is set, otherwise the checkout."""
    return Path(os.environ.get("TQL_HOME") or CHECKOUT)


def pictures(walkthrough: str) -> Path:
    """The folder of a walkthrough's pictures, `runs/walkthrough/NAME`; made if it is missing."""
    folder = home() / "runs" / "walkthrough" / walkthrough
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dataset(task: str, *, episodes: int) -> Path:
    """The file of a task's dataset with this many episodes (and a tenth more for validation), generated if it is missing.

    Datasets of other lengths lie in other folders, so a tour's two episodes are never taken for a study's hundred.
    """
    path = dataset_path(task, episodes=episodes)
    if not path.exists():
        print(f"{path} is missing and is generated now, with OGBench's scripted policy.", flush=True)
        collect.collect(Task.parse(path.stem), episodes=episodes, seed=0, workers=2, out=path.parent)
    return path


def dataset_path(task: str, *, episodes: int) -> Path:
    """Where `dataset` has it, whether it is there or not."""
    return home() / "data" / f"{episodes}-episodes" / f"{Task.parse(task).dataset_name}.npz"
