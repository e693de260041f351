"""Generated data: one seed and any number of workers give the same bytes, and nothing half-made
stays behind."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import ogbench
import pytest

import tql
from tql.ogbench import collect as module
from tql.ogbench.collect import adopt, collect, download, official_episodes, official_rows
from tql.ogbench.scripted import (
    ManipulationScript,
    MazeScript,
    cube_stayed_in_sight,
    make_script,
    maze_cells,
)
from tql.ogbench.tasks import Task
from tql.ogbench.validate import DatasetError, sha256, versions
from tql.ogbench.workers import Workers

CUBE = Task.parse("cube-single-play-v0")
SCENE = Task.parse("scene-play-v0")
MAZE = Task.parse("pointmaze-medium-navigate-v0")
NAME = MAZE.dataset_name


@pytest.fixture(scope="module")
def maze_data(tmp_path_factory):
    """A small pointmaze dataset; tests must not change it."""
    out = tmp_path_factory.mktemp("maze")
    return collect(MAZE, episodes=11, seed=5, workers=1, out=out, rows=43, progress=False)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# One seed makes everything.


def test_any_number_of_workers_makes_the_same_bytes(tmp_path):
    made = {}
    for workers in (1, 3):
        out = tmp_path / str(workers)
        collect(SCENE, episodes=4, seed=7, workers=workers, out=out, rows=53, progress=False)
        made[workers] = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(made[1]) == ["scene-play-v0-val.npz", "scene-play-v0.json", "scene-play-v0.npz"]
    assert made[1] == made[3]


@pytest.mark.parametrize(
    "name",
    [
        *("cube-double-play-v0", "cube-single-noisy-v0", "scene-noisy-v0", "puzzle-3x3-play-v0"),
        *("puzzle-3x3-noisy-v0", "pointmaze-teleport-navigate-v0"),
    ],
)
def test_an_episode_depends_on_its_seed_alone(name):
    """First or later in its environment, and whatever the global generator was used for before."""
    used, fresh = (make_script(Task.parse(name), 61) for _ in range(2))
    before = [used.make(3, 0, number) for number in range(3)]
    np.random.seed(99)
    for number in (2, 0):
        assert same(fresh.make(3, 0, number), before[number])
    others = [before[1], fresh.make(3, 1, 0), fresh.make(4, 0, 0)]
    assert not any(same(other, before[0]) for other in others)


# What is in an episode.


def test_rows_belong_together():
    """Observation, qpos and qvel of a row are of one moment, the action moves it to the next, and
    it ends in the last row."""
    rows = make_script(Task.parse("cube-double-play-v0"), 97).make(0, 0, 0)
    assert {name: (a.shape, a.dtype.name) for name, a in rows.items()} == {
        "observations": ((97, 37), "float32"),
        "actions": ((97, 5), "float32"),
        "terminals": ((97,), "bool"),
        "qpos": ((97, 28), "float32"),
        "qvel": ((97, 26), "float32"),
    }
    seen, qpos = rows["observations"], rows["qpos"]
    np.testing.assert_array_equal(seen[:, :6], qpos[:, :6])
    np.testing.assert_array_equal(seen[:, 6:12], rows["qvel"][:, :6])
    np.testing.assert_allclose(seen[:, 19:22], 10 * (qpos[:, 14:17] - [0.425, 0, 0]), atol=1e-5)
    assert np.flatnonzero(rows["terminals"]).tolist() == [96]
    assert np.abs(rows["actions"]).max() <= 1 and np.ptp(rows["actions"], axis=0).min() > 0.1


def test_a_maze_episode_moves_as_its_actions_say():
    """A point moves by a fifth of the action unless a wall is in the way."""
    rows = make_script(MAZE, 199).make(0, 0, 0)
    moved = np.diff(rows["qpos"], axis=0) - 0.2 * rows["actions"][:-1]
    assert np.median(np.abs(moved)) < 1e-6 and (np.abs(moved) < 1e-6).mean() > 0.7
    np.testing.assert_array_equal(rows["observations"], rows["qpos"])


@pytest.mark.parametrize(
    ("script", "task", "least"), [(ManipulationScript, CUBE, 4), (MazeScript, MAZE, 1)]
)
def test_the_scripted_policy_reaches_its_targets(script, task, least, monkeypatch):
    reached, after = [], script.after

    def watched(self, info):
        reached.append(bool(info["success"]))
        after(self, info)

    monkeypatch.setattr(script, "after", watched)
    script(task, 401).make(0, 0, 0)
    assert sum(now and not before for before, now in zip([False, *reached], reached)) >= least


def test_goals_of_a_maze_are_not_in_straight_corridors():
    lines = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]
    cells, goals = maze_cells(np.array(lines))
    assert cells == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert goals == [(1, 1), (1, 3), (3, 3)]  # both ends and the corner


@pytest.mark.parametrize(
    ("y", "z", "seen"),
    [
        *[(0.0, 0.02, True), (0.29, 0.02, False), (-0.3, 0.07, True)],
        *[(-0.3, 0.05, False), (-0.3, 0.09, False)],
    ],
)
def test_the_cube_of_the_scene_stays_in_sight(y, z, seen):
    qpos = np.zeros((3, 25))
    qpos[1, 15:17] = y, z
    assert cube_stayed_in_sight(list(qpos)) == seen


@pytest.mark.parametrize(("task", "attempts"), [(SCENE, 3), (CUBE, 1)])
def test_a_scene_episode_that_lost_its_cube_is_drawn_again(task, attempts, monkeypatch):
    seeds = []

    def loses(self, seed):
        seeds.append(seed.spawn_key)
        qpos = np.zeros(25)
        qpos[15] = 0.3 if len(seeds) < 3 else 0
        return [{"qpos": qpos}]

    monkeypatch.setattr(ManipulationScript, "_play", loses)
    make_script(task, 9).make(0, 1, 13)
    assert seeds == [(1, 13, attempt) for attempt in range(attempts)]


# Files.


def test_ogbench_reads_the_file(maze_data):
    dataset = ogbench.load_dataset(str(maze_data), add_info=True)
    raw = np.load(maze_data)
    assert raw["terminals"].shape == (11 * 43,)
    assert np.flatnonzero(raw["terminals"]).tolist() == list(range(42, 11 * 43, 43))
    assert dataset["observations"].shape == dataset["next_observations"].shape == (11 * 42, 2)
    np.testing.assert_array_equal(dataset["next_observations"][:42], raw["observations"][1:43])
    validation = ogbench.load_dataset(str(maze_data).replace(".npz", "-val.npz"))
    assert validation["observations"].shape == (1 * 42, 2)


def test_the_manifest_says_how_the_files_were_made(maze_data):
    manifest = json.loads(maze_data.with_suffix(".json").read_text())
    assert manifest["dataset"] == NAME and manifest["seed"] == 5
    assert manifest["episodes"] == {"train": 11, "validation": 1}
    assert manifest["rows_per_episode"] == 43 and manifest["versions"] == versions()
    sums = {file.name: sha256(file) for file in maze_data.parent.glob("*.npz")}
    assert manifest["sha256"] == sums and len(sums) == 2


def test_official_sizes():
    sizes = {
        **{"cube-single-play-v0": (1000, 1001), "cube-triple-noisy-v0": (3000, 1001)},
        **{"cube-quadruple-play-v0": (5000, 1001), "pointmaze-giant-navigate-v0": (500, 2001)},
    }
    for name, size in sizes.items():
        assert (official_episodes(Task.parse(name)), official_rows(Task.parse(name))) == size


@pytest.mark.parametrize("end", [".npz", "-val.npz", ".json"])
def test_nothing_is_overwritten(tmp_path, end, maze_data):
    existing = tmp_path / f"{NAME}{end}"
    existing.write_text("precious")
    for make in (
        lambda: collect(MAZE, episodes=1, out=tmp_path),
        lambda: adopt(MAZE, maze_data, tmp_path),
        lambda: download(MAZE, tmp_path),
    ):
        with pytest.raises(FileExistsError, match=f"{NAME}{end}: it exists already"):
            make()
    assert existing.read_text() == "precious" and list(tmp_path.iterdir()) == [existing]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_cannot_be_moved_takes_the_others_back(
    tmp_path, maze_data, monkeypatch, number
):
    moves, replace = [], os.replace

    def full(source, target):
        moves.append(target)
        if len(moves) == number + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(
        OSError, match=f"{tmp_path}: {NAME} could not be made there .*No space left"
    ):
        adopt(MAZE, maze_data, tmp_path)
    assert not list(tmp_path.iterdir()) and moves[2:] in ([], [tmp_path / f"{NAME}.npz"])


@pytest.mark.parametrize(
    "wrong", [{"episodes": 0}, {"workers": 0}, {"rows": 2}, {"seed": -1}, {"seed": 2**32}]
)
def test_impossible_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        collect(MAZE, out=tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_file_that_a_user_has_is_taken_over(tmp_path, maze_data):
    mine = tmp_path / "mine.npz"
    mine.write_bytes(maze_data.read_bytes())
    with pytest.raises(FileNotFoundError, match="mine-val.npz"):
        adopt(MAZE, mine, tmp_path / "data")
    validation = maze_data.with_name(f"{NAME}-val.npz").read_bytes()
    (tmp_path / "mine-val.npz").write_bytes(validation)
    taken = adopt(MAZE, mine, tmp_path / "data")
    assert taken == tmp_path / f"data/{NAME}.npz" and taken.read_bytes() == mine.read_bytes()
    manifest = json.loads(taken.with_suffix(".json").read_text())
    assert manifest["made_by"] == "taken from mine.npz"
    assert manifest["sha256"][taken.name] == sha256(mine)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "mine-val.npz", "mine.npz"]

    again = adopt(MAZE, maze_data, tmp_path / "again").with_suffix(".json")
    assert again.read_bytes() == maze_data.with_suffix(".json").read_bytes(), "its own manifest"

    mine.write_bytes(mine.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="mine.npz: it is damaged"):
        adopt(MAZE, mine, tmp_path / "bad")
    assert not list((tmp_path / "bad").iterdir())


def test_a_download_is_ogbenchs_own_and_only_when_asked_for(tmp_path, maze_data, monkeypatch):
    asked = []

    def urlopen(url, *_, **__):
        asked.append(url.rsplit("/", 1)[1])
        if len(asked) > 2:
            raise urllib.error.URLError("no route to host")
        return (maze_data.parent / asked[-1]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    adopt(MAZE, maze_data, tmp_path / "adopted")
    assert not asked
    path = download(MAZE, tmp_path / "downloaded")
    assert asked == [f"{NAME}.npz", f"{NAME}-val.npz"]
    assert path.read_bytes() == maze_data.read_bytes() and len(list(path.parent.iterdir())) == 3

    with pytest.raises(ConnectionError, match="no route to host.*python -m tql data"):
        download(MAZE, tmp_path / "nothing")
    assert not list((tmp_path / "nothing").iterdir())


# Processes.

SCRIPT = """
import sys
from pathlib import Path
from tql.ogbench.collect import collect
from tql.ogbench.tasks import Task
task = Task.parse("cube-single-play-v0")
collect(task, episodes=1000, seed=0, workers=2, out=Path(sys.argv[1]), rows=7)
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def start(out: Path, stderr: Path) -> subprocess.Popen:
    """A process that collects, in a session of its own. Returns when the first episodes are
    there."""
    checkout = str(Path(tql.__file__).parents[1])
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out)],
            env=os.environ | {"PYTHONPATH": checkout, "TQDM_MININTERVAL": "0"},
            stderr=errors,
            start_new_session=True,
        )
    made = lambda: stderr.read_text().rsplit("make ", 1)[-1].count(" 0.00/") == 0
    until(lambda: process.poll() is not None or (stderr.read_text().count("make ") > 1 and made()))
    return process


def members(session: int) -> list[int]:
    """The living workers of a session of processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            worker = "spawn_main" in (stat.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if worker and int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(condition, seconds: float = 60):
    """Waits for it; the time limit is for a hang, not a measurement."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@needs_proc
@pytest.mark.parametrize("end", ["Ctrl-C", "SIGTERM", "SIGHUP", "kill -9 of a worker", "kill -9"])
def test_an_interrupted_collection_leaves_no_half_file_and_no_worker(tmp_path, end):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    process = start(out, stderr)
    try:
        workers = members(process.pid)
        assert len(workers) == 2
        if end == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        else:
            how = getattr(signal, end, signal.SIGKILL)
            os.kill(workers[0] if end.endswith("worker") else process.pid, how)
        process.wait(timeout=60)
        until(lambda: not members(process.pid))
    finally:
        process.kill()
    errors = stderr.read_text()
    assert process.returncode != 0 and not [*out.glob("*.npz"), *out.glob("*.json")]
    if end != "kill -9":
        assert not list(out.iterdir())
    if end == "Ctrl-C":
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    if end.endswith("worker"):
        assert "a worker process ended by itself (exit code -9" in errors


def test_workers_never_import_jax():
    """They go without the shape checks, which would load it."""
    with Workers(importlib.import_module, [("builtins",)]) as workers:
        workers.ask(0, "eval", "'jax' in __import__('sys').modules")
        assert workers.answer(0) is False
