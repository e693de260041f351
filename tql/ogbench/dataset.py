"""From a dataset's files to transitions, with the rewards of one task."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tql.batch import Transition
from tql.ogbench.environment import make
from tql.ogbench.tasks import Task
from tql.ogbench.validate import read_pair

LARGEST_ACTION = 1 - 1e-5
"""Actions are clipped to plus or minus this, as in OGBench's reference agents (float32)."""


def load_dataset(task: Task, path: Path) -> tuple[Transition, Transition]:
    """All transitions of a training file in OGBench's format, and of the validation file beside it.

    Rewards and masks are OGBench's own. They belong to the state *before* the action. Raises
    `FileNotFoundError` and `validate.DatasetError` for anything that could not be trained on. Warns
    where other versions of the simulator made the data.
    """
    environment = make(task)
    try:
        train, validation = read_pair(task, path, environment)
        return transitions(task, train, environment), transitions(task, validation, environment)
    finally:
        environment.close()


def transitions(task: Task, arrays: dict[str, np.ndarray], environment: Any) -> Transition:
    """The steps of all episodes. The arrays have one row more per episode: its observation is the
    last next state, and its action the last next action. OGBench reads the goal from the task's
    `environment`."""
    from ogbench.relabel_utils import relabel_dataset

    now = np.flatnonzero(~arrays["terminals"])
    solved = {name: arrays[name][now] for name in ("qpos", "button_states") if name in arrays}
    relabel_dataset(task.env_name, environment, solved)
    s = arrays["observations"]
    a = np.clip(arrays["actions"], -LARGEST_ACTION, LARGEST_ACTION)
    return Transition(
        s=jnp.asarray(s[now]),
        a=jnp.asarray(a[now]),
        r=jnp.asarray(solved["rewards"]),
        m=jnp.asarray(solved["masks"]),
        s_next=jnp.asarray(s[now + 1]),
        a_next=jnp.asarray(a[now + 1]),
    )
