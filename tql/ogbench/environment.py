"""OGBench's environments, seeded per episode, in worker processes that step together. Never imports
jax.

An episode depends on its seed and its actions alone: not on the worker that it runs in, on the
number of workers, on the episodes that its environment ran before, or on its neighbours.
"""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from tql.ogbench.tasks import Task
from tql.ogbench.workers import Workers


def make(task: Task, **options: Any):
    """OGBench's environment of a single task; `options` go to `gymnasium.make`
    (`max_episode_steps`, `width`, ...).

    OGBench's manipulation environments build a fresh action space, seeded by the operating system,
    each time they are asked for one, and draw from it while they reset. With one seed, two resets
    then differ in the goal's observation and in the simulator's hidden state. Here every
    environment keeps one action space, which `action_space.seed` seeds.
    """
    environment, space = with_one_space(task.env_name, **options)
    inner = environment.unwrapped
    kind = type(inner)
    if isinstance(getattr(kind, "action_space", None), property):
        one_space = {"action_space": space, "__module__": kind.__module__}
        inner.__class__ = type(kind.__name__, (kind,), one_space)
    return environment


def with_one_space(name: str, **options: Any) -> tuple[Any, Any]:
    """An environment of OGBench by Gymnasium's name, and its action space."""
    with warnings.catch_warnings():
        # About float32 bounds of spaces and about a missing display; both concern nobody here.
        warnings.filterwarnings("ignore", category=UserWarning)
        import gymnasium
        import ogbench  # noqa: F401  (registers its environments)

        environment = gymnasium.make(name, disable_env_checker=True, **options)
        return environment, environment.unwrapped.action_space


def generator_seeds(seed: np.random.SeedSequence) -> list[int]:
    """The seeds of the three generators that an episode draws from: the environment's, its action
    space's, and NumPy's global one."""
    return seed.generate_state(3).tolist()


class SeededEnvironment:
    """One environment whose episodes are a function of their seed.

    Some of OGBench's environments draw from NumPy's global generator, also while they step (the
    teleporting maze does). So each has its own state of it, which is put in place for the call.
    """

    def __init__(self, task: Task, **options: Any):
        self._environment = make(task, **options)
        self.seed: int | None = None

    def reset(self, seed: int) -> Float[np.ndarray, " n_s"]:
        """The first observation of the episode with this seed."""
        self.seed = seed
        for_environment, for_actions, for_numpy = generator_seeds(np.random.SeedSequence(seed))
        self._environment.action_space.seed(for_actions)
        np.random.seed(for_numpy)
        observation, _ = self._environment.reset(seed=for_environment)
        self._numpy_state = np.random.get_state()
        return observation

    def step(
        self, action: Float32[np.ndarray, " n_a"]
    ) -> tuple[Float[np.ndarray, " n_s"], float, bool, bool]:
        """The next observation, the reward, whether the episode ends here (it is solved, or at
        OGBench's step limit), and `info["success"]`."""
        np.random.set_state(self._numpy_state)
        observation, reward, terminated, truncated, info = self._environment.step(action)
        self._numpy_state = np.random.get_state()
        return observation, float(reward), bool(terminated or truncated), bool(info["success"])

    def frame(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the present state."""
        return self._environment.render()


class _Slots:
    """The environments of one worker, by their slot."""

    def __init__(self, task: Task, slots: list[int], options: dict[str, Any]):
        self.task, self.seed = task, None
        self.environments = {slot: SeededEnvironment(task, **options) for slot in slots}

    def call(self, slot: int, method: str, *arguments: Any) -> Any:
        self.seed = arguments[0] if method == "reset" else self.environments[slot].seed
        return getattr(self.environments[slot], method)(*arguments)

    def __str__(self) -> str:
        return f"{self.task.env_name}, episode seed {self.seed}"


class Environments(contextlib.AbstractContextManager):
    """`size` environments of one task, split over `workers` processes and stepped together.

    It takes the memory of `size` environments, about 0.2 GB each for manipulation. `gl` is as in
    `Workers`, and `options` go to `gymnasium.make`. Raises `ValueError` for numbers below 1, and
    `WorkerError`, which names the episode's seed, where an environment fails.
    """

    def __init__(self, task: Task, *, size: int, workers: int, gl: str = "disable", **options: Any):
        if size < 1 or workers < 1:
            raise ValueError(f"size={size} and workers={workers} must be at least 1.")
        self.size = size
        slots = np.array_split(np.arange(size), min(workers, size))
        self._worker_of = {int(slot): worker for worker, own in enumerate(slots) for slot in own}
        self.workers = Workers(_Slots, [(task, own.tolist(), options) for own in slots], gl)

    def reset(self, seeds: Sequence[int]) -> Float32[np.ndarray, "size n_s"]:
        """Starts one episode per seed, in the first environments. The others observe 0."""
        first = self._call("reset", {slot: (int(seed),) for slot, seed in enumerate(seeds)})
        self._observations = np.zeros((self.size, *first[0].shape), np.float32)
        for slot, observation in first.items():
            self._observations[slot] = observation
        return self._observations.copy()

    def step(
        self, actions: Float32[np.ndarray, "size n_a"], running: Bool[np.ndarray, " size"]
    ) -> tuple[
        Float32[np.ndarray, "size n_s"],
        Float[np.ndarray, " size"],
        Bool[np.ndarray, " size"],
        Bool[np.ndarray, " size"],
    ]:
        """One environment step of the `running` ones: observations, rewards, whether the episode
        ended, and successes. The others keep their last observation; they have reward 0, ended, no
        success."""
        rewards, ended, success = np.zeros(self.size), ~running, np.zeros(self.size, bool)
        moves = {int(slot): (actions[slot],) for slot in np.flatnonzero(running)}
        for slot, result in self._call("step", moves).items():
            self._observations[slot], rewards[slot], ended[slot], success[slot] = result
        return self._observations.copy(), rewards, ended, success

    def frame(self, slot: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one environment."""
        return self._call("frame", {slot: ()})[slot]

    def __exit__(self, *_: Any) -> None:
        self.workers.close()

    def _call(self, method: str, arguments: dict[int, tuple]) -> dict[int, Any]:
        """Calls a method of the environments in these slots, in all workers at once."""
        for slot, values in arguments.items():
            self.workers.ask(self._worker_of[slot], "call", slot, method, *values)
        return {slot: self.workers.answer(self._worker_of[slot]) for slot in arguments}
