"""Episodes depend on their seed and actions alone, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

import tql
from tql.ogbench.environment import Environments, SeededEnvironment, make
from tql.ogbench.tasks import Task
from tql.ogbench.workers import WorkerError, Workers, bare_children

CUBE = Task.parse("cube-single-play-singletask-task2-v0")
MAZE = Task.parse("pointmaze-medium-navigate-singletask-task1-v0")
TELEPORT = Task.parse("pointmaze-teleport-navigate-singletask-task1-v0")
N_A = {CUBE: 5, MAZE: 2, TELEPORT: 2}


def simulator_state(environment):
    """All of MuJoCo's state that the next steps can depend on, with the solver's warm start and the
    controls."""
    inner = environment.unwrapped
    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(inner.model, whole))
    mujoco.mj_getState(inner.model, inner.data, state, whole)
    return state


def trajectory(environment, task, seed, steps):
    """Everything that an episode shows, and the hidden state at both ends, with actions that are a
    function of the seed."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, N_A[task])).astype(np.float32)
    rows = [environment.reset(seed), simulator_state(environment._environment)]
    for action in actions:
        observation, *rest = environment.step(action)
        rows.append(np.concatenate([observation, rest]))
    return np.concatenate([*rows, simulator_state(environment._environment)])


@pytest.mark.parametrize("task", [CUBE, MAZE, TELEPORT], ids=lambda task: task.domain)
def test_an_episode_is_bitwise_the_same_first_or_later_in_its_environment(task):
    used, fresh = SeededEnvironment(task), SeededEnvironment(task)
    first = trajectory(used, task, 5, steps=41)
    trajectory(used, task, 6, steps=101)
    np.testing.assert_array_equal(trajectory(used, task, 5, steps=41), first)
    np.testing.assert_array_equal(trajectory(fresh, task, 5, steps=41), first)
    assert not np.array_equal(trajectory(fresh, task, 7, steps=41), first)


def test_ogbench_alone_is_not_reproducible_which_is_why_make_exists():
    """With one seed, OGBench's own environment gives two goals and two simulator states."""

    def resets(environment):
        shown = []
        for _ in range(2):
            environment.action_space.seed(11)
            goal = environment.reset(seed=11)[1]["goal"]
            shown.append((goal, simulator_state(environment)))
        return shown

    (goal, state), (goal_again, state_again) = resets(make(CUBE))
    np.testing.assert_array_equal(goal, goal_again)
    np.testing.assert_array_equal(state, state_again)
    with pytest.warns(UserWarning, match="precision lowered"):
        theirs = gymnasium.make(CUBE.env_name, disable_env_checker=True)
        (goal, state), (goal_again, state_again) = resets(theirs)
    assert not np.array_equal(goal, goal_again)
    assert not np.array_equal(state, state_again)


def test_neighbours_in_one_process_do_not_share_numpys_generator():
    """The teleporting maze draws its exit from NumPy's global generator while it steps. Here every
    episode is teleported."""
    maze = make(TELEPORT).unwrapped
    entrance = np.array(maze.ij_to_xy((4, 6)))

    def xys(environments, seeds):
        pairs = zip(environments, seeds, strict=True)
        rows = [[environment.reset(seed) for environment, seed in pairs]]
        for _ in range(400):
            row = []
            for environment, xy in zip(environments, rows[-1], strict=True):
                aim = maze.get_oracle_subgoal(xy, entrance)[0] - xy
                row.append(environment.step(np.clip(aim, -1, 1).astype(np.float32))[0])
            rows.append(row)
        return np.array(rows)

    one, other = SeededEnvironment(TELEPORT), SeededEnvironment(TELEPORT)
    together = xys([one, other], [2, 3])
    jumps = np.linalg.norm(np.diff(together, axis=0), axis=-1) > 4
    assert jumps.any(axis=0).all()
    np.testing.assert_array_equal(together[:, [0]], xys([one], [2]))
    np.testing.assert_array_equal(together[:, [1]], xys([other], [3]))


def lockstep(workers, size=5, steps=13):
    rng = np.random.default_rng(0)
    with Environments(MAZE, size=size, workers=workers) as environments:
        assert len(environments.workers.processes) == workers
        shown = [environments.reset([3, 1, 4, 15, 9])]
        for _ in range(steps):
            actions = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
            observations, *rest = environments.step(actions, np.ones(size, bool))
            shown += [observations, np.stack(rest)]
    return shown


def test_1_2_and_4_workers_give_the_same_numbers():
    for a, b, c in zip(lockstep(1), lockstep(2), lockstep(4), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_an_environment_that_does_not_run_keeps_its_observation():
    only_second = np.array([False, True, False])
    with Environments(MAZE, size=3, workers=2) as environments:
        first = environments.reset([1, 2])
        np.testing.assert_array_equal(first[2], 0)
        moved = environments.step(np.ones((3, 2), np.float32), only_second)
    observations, rewards, ended, success = moved
    np.testing.assert_array_equal(observations[[0, 2]], first[[0, 2]])
    assert not np.array_equal(observations[1], first[1])
    assert rewards.tolist() == [0, -1, 0] and ended.tolist() == [True, False, True]
    assert not success.any()


def test_workers_have_no_jax_one_thread_each_and_end_with_the_block():
    before = dict(os.environ)
    with Environments(CUBE, size=1, workers=1) as environments:
        (process,) = environments.workers.processes
        environments.reset([0])
        libraries = Path(f"/proc/{process.pid}/maps").read_text()
        variables = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    assert "mujoco" in libraries and "jaxlib" not in libraries
    wanted = {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "MUJOCO_GL=disable"}
    assert wanted <= set(variables) and os.environ == before
    assert not process.is_alive()


def test_a_workers_exception_arrives_with_traceback_and_seed():
    with pytest.raises(WorkerError) as caught:
        with Environments(MAZE, size=2, workers=2) as environments:
            environments.reset([17, 23])
            environments.step(np.zeros((2, 3), np.float32), np.array([False, True]))
    message = str(caught.value)
    assert "episode seed 23" in message and "point.py" in message and MAZE.env_name in message
    assert not any(process.is_alive() for process in environments.workers.processes)


def test_a_worker_that_is_killed_is_reported():
    with Environments(MAZE, size=2, workers=2) as environments:
        environments.reset([0, 1])
        environments.workers.processes[1].kill()
        environments.workers.processes[1].join()
        with pytest.raises(WorkerError, match="exit code -9"):
            environments.step(np.zeros((2, 2), np.float32), np.ones(2, bool))


@pytest.mark.parametrize(("size", "workers"), [(0, 1), (1, 0)])
def test_no_environments_or_no_workers_is_an_error(size, workers):
    with pytest.raises(ValueError, match="at least 1"):
        Environments(MAZE, size=size, workers=workers)


@pytest.mark.parametrize("jobs", [0, 1, 2, 7])
def test_every_job_is_done_once_by_whichever_worker_is_free(jobs):
    with Workers(str, [("a-b",), ("c-d",)]) as workers:
        done = dict(workers.map("center", [(width,) for width in range(10, 10 + jobs)]))
    assert sorted(done) == [(width,) for width in range(10, 10 + jobs)]
    assert all(len(x) == width and x.strip() in ("a-b", "c-d") for (width,), x in done.items())


def test_bare_children_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("THERE", "before")
    before, script = dict(os.environ), sys.modules["__main__"]
    with pytest.raises(KeyboardInterrupt), bare_children({"THERE": "now", "NEW": "now"}):
        assert (os.environ["THERE"], os.environ["NEW"]) == ("now", "now")
        assert not hasattr(sys.modules["__main__"], "__file__")
        raise KeyboardInterrupt
    assert os.environ == before and sys.modules["__main__"] is script


# No `__main__` guard, and jax at the top: neither may reach the workers.
SCRIPT = """
import sys, time, jax, numpy as np
from tql.ogbench.tasks import Task
from tql.ogbench.environment import Environments
print("script runs", flush=True)
task = Task.parse("pointmaze-medium-navigate-singletask-task1-v0")
environments = Environments(task, size=2, workers=2)
environments.reset([0, 1])
try:
    # From here on a signal may come.
    print(*[process.pid for process in environments.workers.processes], flush=True)
    {then}
except KeyboardInterrupt:
    time.sleep(0.5)  # the workers have had the signal too, if it was for them
    environments.step(np.zeros((2, 2), np.float32), np.ones(2, bool))
    print("steps after Ctrl-C", flush=True)
"""


def alive(pid):
    """Whether a process runs; one that waits to be reaped has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, "raises"])
def test_no_worker_outlives_its_parent(end, tmp_path):
    then = "raise SystemExit(3)" if end == "raises" else "time.sleep(60)"
    script, stderr = tmp_path / "script.py", tmp_path / "stderr"
    script.write_text(SCRIPT.format(then=then))
    environment = os.environ | {"PYTHONPATH": str(Path(tql.__file__).parents[1])}
    with stderr.open("w") as errors:
        options = dict(env=environment, stderr=errors, text=True, start_new_session=True)
        parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, **options)
    with parent:
        assert parent.stdout.readline() == "script runs\n"
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if end == signal.SIGINT:
            os.killpg(parent.pid, end)  # as a terminal does: to everyone in the foreground
        elif end != "raises":
            parent.send_signal(end)
        parent.wait(timeout=20)
        deadline = time.monotonic() + 20
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, workers))
        # And nothing else: the workers did not run the caller's script.
        shown = "steps after Ctrl-C\n" if end == signal.SIGINT else ""
        assert parent.stdout.read() == shown
    assert "SpawnProcess" not in stderr.read_text(), "a worker printed a traceback"
