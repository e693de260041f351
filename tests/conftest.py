"""Strict numerics for every test, and a tiny run that many files share."""

import contextlib
import ctypes
import gc
import itertools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

# The suite compiles far longer than it computes; without these emitters of loops XLA needs a third
# less time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
)

import jax
import numpy as np
import pytest

from tql.config import CriticConfig, TQLConfig
from tql.presets import PRESETS

# No silent dtype promotion, no silent broadcasting over ranks.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)

GOLDEN = Path(__file__).parent / "golden"


def pin_to_one_core(worker: str) -> None:
    """Workers of xdist (gw0, gw1, ...) get one core each, and the programs that they start too,
    because sharing costs time."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    pin_to_one_core(os.environ["PYTEST_XDIST_WORKER"])

# A shell starts background jobs with Ctrl-C ignored, and the programs that tests interrupt would
# inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = ("test_walkthrough.py", "test_long_walkthroughs.py", "test_collect.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker takes a whole file. The long ones come first, or the other worker waits for them."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """After every file the compiled programs are forgotten and their memory is handed back; a
    worker would grow to several GB."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def getkey():
    """A function that returns a fresh key on every call; the seed is fixed."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20260201), next(counter))


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optax_promotion():
    """For tests that step an optimiser: optax's Adam raises a float to an int32 power, which strict
    promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# A tiny run, shared by the tests of runs, checkpoints, plots and the command line. It has one set
# of settings, so it is compiled once per file.

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture(scope="session")
def maze_file(tmp_path_factory) -> Path:
    """71 random rows in three episodes, in OGBench's format; n_s = n_a = 2."""
    path = tmp_path_factory.mktemp("data") / "pointmaze-medium-navigate-v0.npz"
    for name, ends in ((path, (16, 39, 70)), (path.with_name(f"{path.stem}-val.npz"), (4,))):
        rng, rows = np.random.default_rng(len(ends)), ends[-1] + 1
        columns = ("observations", "actions", "qpos", "qvel")
        arrays = {column: rng.uniform(-1, 1, (rows, 2)).astype("float32") for column in columns}
        np.savez(name, **arrays, terminals=np.isin(np.arange(rows), ends))
    return path


def tiny_settings(preset: str, **changes) -> TQLConfig:
    """A preset cut down to 40 updates in chunks of 5. Evaluations come at 15, 30 and 40, of which
    15 is not a multiple of checkpoint_every."""
    config = PRESETS[preset](MAZE)
    every = dict(updates_per_call=5, log_every=5, checkpoint_every=10, evaluate_every=15)
    actor = replace(config.actor, hidden=(16,), flow_steps=3)
    sizes = dict(steps=40, batch_size=7, warmup=2, episodes=3, actor=actor)
    critic = CriticConfig(d_model=32, layers=1)
    return replace(config, seed=3, critic=critic, **sizes, **every, **changes)


TINY_OPTIONS = (
    "--seed 3 --steps 40 --batch-size 7 --warmup 2 --critic.d-model 32 --critic.layers 1 "
    "--actor.hidden 16 --actor.flow-steps 3 --updates-per-call 5 --log-every 5 "
    "--checkpoint-every 10 --evaluate-every 15 --episodes 3"
).split()
"""The same on the command line."""


@pytest.fixture(scope="session")
def tiny() -> TQLConfig:
    return tiny_settings("cpu")


def scripted_episodes(policy, task, *, episodes, seed, workers, **_):
    """Stands for `run_episodes`: no simulator, and a return that shows every weight of the
    policy."""
    from tql.ogbench.evaluate import Episode

    actions = policy(np.ones((episodes, 2), np.float32), np.arange(episodes), 0)
    return [Episode(seed + i, float(action.sum()), 3, i == 1) for i, action in enumerate(actions)]


@pytest.fixture
def no_simulator(monkeypatch):
    monkeypatch.setattr("tql.training.run.run_episodes", scripted_episodes)


@contextlib.contextmanager
def as_in_tests():
    """What the fixtures of a test do, for those of a session: no simulator, and numerics under
    which optax runs."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr("tql.training.run.run_episodes", scripted_episodes)
        yield


def trained(config: TQLConfig, dataset: Path, run: Path) -> Path:
    """The directory of a whole run that nothing interrupted."""
    from tql.training.run import start_run, train

    with as_in_tests():
        train(*start_run(config, dataset, run), run, workers=1)
    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny, maze_file) -> Path:
    """The directory of a whole run. It is not to be changed: copy it."""
    return trained(tiny, maze_file, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def critic_alone(tmp_path_factory, maze_file) -> Path:
    """The directory of a run without control and without a policy. It is not to be changed."""
    config = tiny_settings("cpu-sarsa")
    config = replace(config, control=replace(config.control, kind="none"))
    return trained(config, maze_file, tmp_path_factory.mktemp("runs") / "critic-alone")
