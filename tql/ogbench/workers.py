"""Worker processes, each with one object whose methods this process calls. Imports neither jax nor
the simulator.

They make data, where each object makes whole episodes, and they evaluate, where each holds
environments that are stepped together.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_WITHOUT_JAX = {"JAXTYPING_DISABLE": "1"}  # The shape checks would load it into every process.


class WorkerError(RuntimeError):
    """A worker's object raised an error, or its process ended. The message has the object's `str`,
    which says what it was doing, and the traceback."""


class Workers(contextlib.AbstractContextManager):
    """One process per tuple in `arguments`, each with an object of its own, `build(*arguments[i])`.

    The processes end with the block of this context manager. They also end when this process is
    killed, because their pipe then closes. Ctrl-C is not for them. `gl` is MuJoCo's way to draw
    (`"egl"` or `"osmesa"`), which is off unless pictures are wanted. Raises `WorkerError`.
    """

    def __init__(self, build: Callable[..., Any], arguments: list[tuple], gl: str = "disable"):
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        variables = _ONE_THREAD | _WITHOUT_JAX | {"MUJOCO_GL": gl}
        try:
            with bare_children(variables), on_signal(signal.SIGINT, signal.SIG_IGN):
                for own in arguments:
                    here, there = context.Pipe()
                    self._pipes.append(here)
                    process = context.Process(target=_work, args=(there, build, own), daemon=True)
                    process.start()
                    self.processes.append(process)
                    there.close()
            for worker in range(len(arguments)):
                self.answer(worker)
        except BaseException:
            self.close()
            raise

    def ask(self, worker: int, method: str, *arguments: Any) -> None:
        """Has one worker call a method of its object; `answer` gives the result."""
        # A worker that has died is reported where its answer is missing.
        with contextlib.suppress(BrokenPipeError):
            self._pipes[worker].send((method, arguments))

    def answer(self, worker: int) -> Any:
        """The result of the oldest call to this worker that has not been answered yet."""
        try:
            result, error = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            self.processes[worker].join(timeout=5)
            code = self.processes[worker].exitcode
            hint = ", killed: was memory short?" if code == -signal.SIGKILL else ""
            error = f"a worker process ended by itself (exit code {code}{hint})."
        if error:
            raise WorkerError(error)
        return result

    def map(self, method: str, jobs: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Calls a method with the arguments of each job, on whichever worker is free. Gives each
        job and its result as soon as it is ready, in any order."""
        waiting, doing = iter(jobs), {}
        free = list(self._pipes)
        while free or doing:
            for pipe, job in zip(free, waiting):
                doing[pipe] = job
                self.ask(self._pipes.index(pipe), method, *job)
            free = wait(list(doing)) if doing else []
            for pipe in free:
                yield doing.pop(pipe), self.answer(self._pipes.index(pipe))

    def close(self) -> None:
        """Ends the processes at once. They hold nothing that could be left half-written."""
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()

    def __exit__(self, *_: Any) -> None:
        self.close()


def _work(pipe: Connection, build: Callable[..., Any], arguments: tuple) -> None:
    """A worker's life: it calls what the pipe asks for until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    served = build.__name__
    try:
        served = build(*arguments)
        pipe.send((None, None))
        while True:
            method, values = pipe.recv()
            pipe.send((getattr(served, method)(*values), None))
    except (EOFError, ConnectionError):
        pass
    except Exception:
        with contextlib.suppress(ConnectionError):
            pipe.send((None, f"{served}:\n{traceback.format_exc()}"))


@contextlib.contextmanager
def on_signal(number: int, handler: Any) -> Iterator[None]:
    """Handles a signal so within the block. In other threads than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def bare_children(variables: dict[str, str]) -> Iterator[None]:
    """Processes spawned in this block get these environment variables, and do not run the caller's
    script again.

    `multiprocessing` imports the main script into every spawned child. Without a `__main__` guard
    that would run it once more, and a script that trains would bring jax along.
    """
    before, script = os.environ.copy(), sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        for name in variables:
            del os.environ[name]
        os.environ.update({name: before[name] for name in variables if name in before})
