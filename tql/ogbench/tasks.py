"""OGBench's names: a dataset, and the single task that it is rewarded for. Imports neither jax nor
the simulator."""

import difflib
import re
from dataclasses import dataclass

_CUBES = ("cube-single", "cube-double", "cube-triple", "cube-quadruple")
_MANIPULATION = (*_CUBES, "scene", "puzzle-3x3", "puzzle-4x4")

DOMAINS = {
    "play": _MANIPULATION,
    "noisy": _MANIPULATION,
    "navigate": ("pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport"),
}
"""The domains of OGBench that can be generated and trained on, by kind of dataset."""


STATE_SIZES = {
    **{"cube-single": 28, "cube-double": 37, "cube-triple": 46, "cube-quadruple": 55},
    **{"scene": 40, "puzzle-3x3": 55, "puzzle-4x4": 83},
    **dict.fromkeys(DOMAINS["navigate"], 2),
}
"""Numbers n_s of a state, by domain."""


def task_names() -> list[str]:
    """Every name that `Task.parse` takes: OGBench's own names of datasets and of single tasks."""
    stems = [f"{domain}-{kind}" for kind, domains in DOMAINS.items() for domain in domains]
    ends = ["-v0", "-singletask-v0", *(f"-singletask-task{i}-v0" for i in range(1, 6))]
    return [stem + end for stem in stems for end in ends]


@dataclass(frozen=True)
class Task:
    """A dataset of OGBench and, for training, one of the five single tasks of its domain."""

    name: str
    domain: str
    """Such as `cube-single`."""
    kind: str
    """How the data were made: `play`, `noisy` or `navigate`."""
    task_id: int | None
    """1 to 5, or `None` for the domain's default task, which OGBench chooses."""

    @staticmethod
    def parse(name: str) -> "Task":
        """Reads OGBench's own name, `cube-single-play-v0` or `scene-play-singletask-task2-v0`.

        Raises `ValueError`, with the nearest right name, for any other.
        """
        if name not in task_names():
            near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.0)[0]
            raise ValueError(f"there is no task '{name}'; the nearest name is '{near}'.")
        pattern = r"(.+)-(play|noisy|navigate)(?:-singletask)?(?:-task(\d))?-v0"
        domain, kind, number = re.fullmatch(pattern, name).groups()
        return Task(name, domain, kind, int(number) if number else None)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers n_s of a state and n_a of an action."""
        return STATE_SIZES[self.domain], 2 if self.kind == "navigate" else 5

    @property
    def dataset_name(self) -> str:
        """The name of the dataset, which all tasks of a domain share: `cube-single-play-v0`."""
        return f"{self.domain}-{self.kind}-v0"

    @property
    def single_task_name(self) -> str:
        """The name under which OGBench gives rewards: `cube-single-play-singletask-task2-v0`."""
        return f"{self.domain}-{self.kind}-singletask{self._number}-v0"

    @property
    def env_name(self) -> str:
        """Gymnasium's name of the environment with this task's reward:
        `cube-single-singletask-task2-v0`."""
        return f"{self.domain}-singletask{self._number}-v0"

    @property
    def _number(self) -> str:
        return f"-task{self.task_id}" if self.task_id else ""
