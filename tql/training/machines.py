"""One run on several machines: the same command runs on each, and their processes are one JAX.

The first process leads. It alone makes data, acts, and writes the run's files. The others make the
same updates with their part of every batch; they read the dataset and the checkpoints, so all
machines must see the same files. If one process ends, the others end too, and `--resume` goes on
from the newest checkpoint. Alone, every function here returns at once.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices


def join() -> int:
    """Makes one JAX of the processes that the environment speaks of, and returns their number.

    It speaks by `JAX_COORDINATOR_ADDRESS` (host:port of the first process), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or by what Slurm sets for `srun --ntasks N`. Raises `ValueError` for variables
    that say something else."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    if address:
        try:
            processes, process = map(int, numbers)
        except (TypeError, ValueError):
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is {address}, so JAX_NUM_PROCESSES and JAX_PROCESS_ID "
                "must say how many processes there are and which one this is, from 0."
            ) from None
        _initialise(address, processes, process)
        return processes
    processes = int(os.environ.get("SLURM_NTASKS", 1))
    if processes > 1 and "SLURM_STEP_NODELIST" in os.environ:
        _initialise()
        return processes
    return 1


def _initialise(*where) -> None:
    if not jax.distributed.is_initialized():
        jax.distributed.initialize(*where)


def leads() -> bool:
    """Whether this process is the first, or the only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def meet(where: str) -> None:
    """Waits until every process has come to this point."""
    if jax.distributed.is_initialized():
        sync_global_devices(where)


def anyones(signals: Sequence[str]) -> str:
    """The first of the signals that any process has got, or nothing; the same everywhere."""
    mine = signals[0] if signals else ""
    if not jax.distributed.is_initialized():
        return mine
    everyones = process_allgather(np.array(bool(mine)))
    return mine or ("a signal to another process" if np.any(everyones) else "")


def on_host(x: jax.Array) -> np.ndarray:
    """All of an array, also of parts that lie on other machines; then every process must ask."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return process_allgather(x, tiled=True)
