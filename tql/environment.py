"""OGBench's environments, seeded per episode, in worker processes that step in lock-step. Never imports jax.

An episode depends on its seed and its actions alone: not on the worker it runs in, on the number of workers, on the episodes
that its environment has run before, or on its neighbours.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from tql.config import Task

BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(RuntimeError):
    """An environment failed, or its process ended. The message has the episode's seed and the worker's traceback."""


def make(task: Task, **options: Any):
    """OGBench's environment of a single task; `options` go to `gymnasium.make` (`max_episode_steps`, `width`, ...).

    OGBench's manipulation environments build a fresh action space, seeded by the operating system, each time they are asked
    for one, and draw from it while they reset: with one seed, two resets differ in the goal's observation and in the
    simulator's hidden state. Here every environment keeps one action space, which `action_space.seed` seeds.
    """
    with warnings.catch_warnings():
        # About float32 bounds of spaces and about a missing display; both concern nobody here.
        warnings.filterwarnings("ignore", category=UserWarning)
        import gymnasium
        import ogbench  # noqa: F401  (registers its environments)

        environment = gymnasium.make(task.env_name, disable_env_checker=True, **options)
        inner = environment.unwrapped
        if isinstance(getattr(type(inner), "action_space", None), property):
            one_space = {"action_space": inner.action_space, "__module__": type(inner).__module__}
            inner.__class__ = type(type(inner).__name__, (type(inner),), one_space)
    return environment


class SeededEnvironment:
    """One environment whose episodes are a function of their seed.

    Some of OGBench's environments draw from NumPy's global generator, also while they step (the teleporting maze), so each
    has its own state of it, put in place for the call.
    """

    def __init__(self, task: Task, **options: Any):
        self._environment = make(task, **options)
        self.seed: int | None = None

    def reset(self, seed: int) -> Float[np.ndarray, " n_s"]:
        """First observation of the episode with this seed."""
        self.seed = seed
        for_environment, for_actions, for_numpy = np.random.SeedSequence(seed).generate_state(3).tolist()
        self._environment.action_space.seed(for_actions)
        np.random.seed(for_numpy)
        observation, _ = self._environment.reset(seed=for_environment)
        self._numpy_state = np.random.get_state()
        return observation

    def step(self, action: Float32[np.ndarray, " n_a"]) -> tuple[Float[np.ndarray, " n_s"], float, bool, bool]:
        """Next observation, reward, whether the episode ends here (solved, or OGBench's step limit), `info["success"]`."""
        np.random.set_state(self._numpy_state)
        observation, reward, terminated, truncated, info = self._environment.step(action)
        self._numpy_state = np.random.get_state()
        return observation, float(reward), bool(terminated or truncated), bool(info["success"])

    def frame(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the present state."""
        return self._environment.render()


class Environments:
    """`size` environments of one task, split over spawned processes and stepped in lock-step. A context manager.

    Memory is `size` environments, about 0.2 GB each for manipulation. `options` go to `gymnasium.make`; `gl` is MuJoCo's way
    to draw (`"egl"`, `"osmesa"`), off unless frames are wanted. Raises `WorkerError`.
    """

    def __init__(self, task: Task, *, size: int, workers: int, gl: str = "disable", **options: Any):
        if size < 1 or workers < 1:
            raise ValueError(f"at least 1 environment and 1 worker are needed, not size={size} and workers={workers}.")
        self.size = size
        self._slots = [slots.tolist() for slots in np.array_split(np.arange(size), min(workers, size))]
        self._connections: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        try:
            with bare_children({"MUJOCO_GL": gl} | dict.fromkeys(BLAS_THREADS, "1")):
                for slots in self._slots:
                    here, there = context.Pipe()
                    process = context.Process(target=_work, args=(there, task, slots, options), daemon=True)
                    process.start()
                    there.close()
                    self._connections.append(here)
                    self.processes.append(process)
            self._gather(range(len(self._slots)))
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> Float32[np.ndarray, "size n_s"]:
        """Starts one episode per seed, in the first environments; observations of the others are zero."""
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
        """One environment step of the `running` ones: observations, rewards, whether the episode ended, successes.

        The others keep their last observation, with reward 0, ended, no success.
        """
        rewards, ended, success = np.zeros(self.size), ~running, np.zeros(self.size, bool)
        results = self._call("step", {int(slot): (actions[slot],) for slot in np.flatnonzero(running)})
        for slot, result in results.items():
            self._observations[slot], rewards[slot], ended[slot], success[slot] = result
        return self._observations.copy(), rewards, ended, success

    def frame(self, slot: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one environment."""
        return self._call("frame", {slot: ()})[slot]

    def close(self) -> None:
        """Ends the workers. They also end by themselves when this process dies: their pipe closes."""
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> "Environments":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _call(self, method: str, arguments: dict[int, tuple]) -> dict[int, Any]:
        """Calls a method of the environments in these slots, all workers at once."""
        asked = [worker for worker, slots in enumerate(self._slots) if arguments.keys() & set(slots)]
        for worker in asked:
            mine = {slot: arguments[slot] for slot in self._slots[worker] if slot in arguments}
            # A worker that died is reported where its answer is missing.
            with contextlib.suppress(BrokenPipeError):
                self._connections[worker].send((method, mine))
        return self._gather(asked)

    def _gather(self, workers: Sequence[int]) -> dict[int, Any]:
        results = {}
        for worker in workers:
            try:
                answer = self._connections[worker].recv()
            except (EOFError, ConnectionResetError):
                self.processes[worker].join(timeout=5)
                code = self.processes[worker].exitcode
                hint = ", killed: was memory short?" if code == -signal.SIGKILL else ""
                raise WorkerError(f"an environment's process ended by itself (exit code {code}{hint}).") from None
            if isinstance(answer, str):
                raise WorkerError(answer)
            results |= answer
        return results


def _work(connection: Connection, task: Task, slots: list[int], options: dict[str, Any]) -> None:
    """A worker's life: make the environments, then do what the pipe says until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    environment = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            environments = {slot: SeededEnvironment(task, **options) for slot in slots}
            connection.send({})
            while True:
                method, arguments = connection.recv()
                results = {}
                for slot, values in arguments.items():
                    environment = environments[slot]
                    results[slot] = getattr(environment, method)(*values)
                connection.send(results)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            episode = f", episode seed {environment.seed}" if environment else ""
            connection.send(f"{task.env_name}{episode}:\n{traceback.format_exc()}")


@contextlib.contextmanager
def bare_children(variables: dict[str, str]) -> Iterator[None]:
    """Processes spawned here get these environment variables, and do not run the caller's script again.

    `multiprocessing` imports the main script into every spawned child: without a `__main__` guard that would run it once
    more, and a script that trains would bring jax along. The workers need nothing of it.
    """
    before = {name: os.environ.get(name) for name in variables}
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
