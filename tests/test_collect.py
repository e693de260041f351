"""Generated data: one seed and any number of workers give the same bytes; nothing half-made stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import ogbench
import pytest

import tql
from tql.collect import adopt, check_policy, collect, download, official_episodes, official_rows
from tql.config import Task
from tql.scripted import SCRIPTS, Episode, NavigateScript, PlayScript, cube_stayed_in_sight, make_episode, maze_cells
from tql.validate import DatasetError, sha256, versions

SCENE = Task.parse("scene-play-v0")
MAZE = Task.parse("pointmaze-medium-navigate-v0")
KINDS = ["cube-double-play-v0", "cube-single-noisy-v0", "scene-play-v0", "puzzle-3x3-noisy-v0", "pointmaze-teleport-navigate-v0"]


@pytest.fixture(scope="module")
def maze_data(tmp_path_factory):
    """A small pointmaze dataset; tests must not change it."""
    return collect(MAZE, episodes=11, seed=5, workers=1, out=tmp_path_factory.mktemp("maze"), rows=43, progress=False)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# One seed makes everything.


def test_any_number_of_workers_makes_the_same_bytes(tmp_path):
    made = {}
    for workers in (1, 3):
        out = tmp_path / str(workers)
        collect(SCENE, episodes=5, seed=7, workers=workers, out=out, rows=53, progress=False)
        made[workers] = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(made[1]) == ["scene-play-v0-val.npz", "scene-play-v0.json", "scene-play-v0.npz"]
    assert made[1] == made[3]
    out = tmp_path / "other"
    collect(SCENE, episodes=1, seed=8, workers=1, out=out, rows=53, progress=False)
    assert not np.array_equal(np.load(out / "scene-play-v0.npz")["qpos"], np.load(tmp_path / "1/scene-play-v0.npz")["qpos"][:53])


@pytest.mark.parametrize("name", KINDS)
def test_an_episode_depends_on_its_seed_alone(name):
    """First or later in its environment, and whatever the global generator was used for before."""
    task = Task.parse(name)
    used, fresh = SCRIPTS[task.kind](task, 61), SCRIPTS[task.kind](task, 61)
    before = [make_episode(used, task, 3, 0, number).arrays() for number in range(3)]
    np.random.seed(99)
    for number in (2, 0):
        assert same(make_episode(fresh, task, 3, 0, number).arrays(), before[number])
    others = [before[1], make_episode(fresh, task, 3, 1, 0).arrays(), make_episode(fresh, task, 4, 0, 0).arrays()]
    assert not any(same(other, before[0]) for other in others)


# What is in an episode.


def test_rows_belong_together():
    """Observation, qpos and qvel of a row are of one moment, the action moves it to the next, and it ends in the last row."""
    task = Task.parse("cube-double-play-v0")
    rows = make_episode(PlayScript(task, 97), task, 0, 0, 0).arrays()
    assert {name: (a.shape, a.dtype.name) for name, a in rows.items()} == {
        "observations": ((97, 37), "float32"),
        "actions": ((97, 5), "float32"),
        "terminals": ((97,), "bool"),
        "qpos": ((97, 28), "float32"),
        "qvel": ((97, 26), "float32"),
    }
    np.testing.assert_array_equal(rows["observations"][:, :6], rows["qpos"][:, :6])
    np.testing.assert_array_equal(rows["observations"][:, 6:12], rows["qvel"][:, :6])
    np.testing.assert_allclose(rows["observations"][:, 19:22], 10 * (rows["qpos"][:, 14:17] - [0.425, 0, 0]), atol=1e-5)
    assert np.flatnonzero(rows["terminals"]).tolist() == [96]
    assert np.abs(rows["actions"]).max() <= 1 and np.ptp(rows["actions"], axis=0).min() > 0.1


def test_a_maze_episode_moves_as_its_actions_say():
    """A point moves by a fifth of the action unless a wall is in the way."""
    rows = make_episode(NavigateScript(MAZE, 199), MAZE, 0, 0, 0).arrays()
    moved = np.diff(rows["qpos"], axis=0) - 0.2 * rows["actions"][:-1]
    assert np.median(np.abs(moved)) < 1e-6 and (np.abs(moved) < 1e-6).mean() > 0.7
    np.testing.assert_array_equal(rows["observations"], rows["qpos"])


def test_the_scripted_policy_reaches_its_targets():
    cube = Task.parse("cube-single-play-v0")
    targets = make_episode(PlayScript(cube, 401), cube, 0, 0, 0).targets
    assert targets == [("cube", True)] * 4
    assert make_episode(NavigateScript(MAZE, 401), MAZE, 0, 0, 0).targets.count(("goal", True)) >= 1


def test_too_few_reached_targets_are_warned_about_but_not_bad_luck():
    cube = Task.parse("cube-single-play-v0")
    record = check_policy(cube, Counter({("cube", True): 96, ("cube", False): 4}))
    assert record == {
        "targets": {"cube": {"tried": 100, "reached": 96, "share": 0.96, "expected_at_least": 0.85}},
        "as_expected": True,
    }
    assert check_policy(cube, Counter({("cube", True): 2, ("cube", False): 1}))["as_expected"]
    with pytest.warns(UserWarning, match="70 of 100 targets 'cube'"):
        assert not check_policy(cube, Counter({("cube", True): 70, ("cube", False): 30}))["as_expected"]


def test_goals_of_a_maze_are_not_in_straight_corridors():
    cells, goals = maze_cells(np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]))
    assert cells == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert goals == [(1, 1), (1, 3), (3, 3)]  # both ends and the corner


@pytest.mark.parametrize(
    ("y", "z", "seen"), [(0.0, 0.02, True), (0.29, 0.02, False), (-0.3, 0.07, True), (-0.3, 0.05, False), (-0.3, 0.09, False)]
)
def test_the_cube_of_the_scene_stays_in_sight(y, z, seen):
    qpos = np.zeros((3, 25))
    qpos[1, 15:17] = y, z
    assert cube_stayed_in_sight(qpos) == seen


def test_a_scene_episode_that_lost_its_cube_is_drawn_again():
    class Loses(PlayScript):
        def __init__(self):
            self.seeds = []

        def episode(self, seed):
            self.seeds.append(seed.spawn_key)
            qpos = np.zeros((2, 25))
            qpos[1, 15] = 0.3 if len(self.seeds) < 3 else 0
            return Episode(rows={"qpos": list(qpos)})

    script = Loses()
    make_episode(script, SCENE, 0, 1, 13)
    assert script.seeds == [(1, 13, 0), (1, 13, 1), (1, 13, 2)]
    script = Loses()
    make_episode(script, Task.parse("cube-single-play-v0"), 0, 1, 13)
    assert script.seeds == [(1, 13, 0)]


# Files.


def test_ogbench_reads_the_file(maze_data):
    dataset = ogbench.load_dataset(str(maze_data), add_info=True)
    raw = np.load(maze_data)
    assert {name: raw[name].dtype.name for name in raw} == {
        "observations": "float32",
        "actions": "float32",
        "terminals": "bool",
        "qpos": "float32",
        "qvel": "float32",
    }
    assert raw["terminals"].shape == (11 * 43,) and np.flatnonzero(raw["terminals"]).tolist() == list(range(42, 11 * 43, 43))
    assert dataset["observations"].shape == dataset["next_observations"].shape == (11 * 42, 2)
    np.testing.assert_array_equal(dataset["next_observations"][:42], raw["observations"][1:43])
    assert ogbench.load_dataset(str(maze_data).replace(".npz", "-val.npz"))["observations"].shape == (1 * 42, 2)


def test_the_manifest_says_how_the_files_were_made(maze_data):
    manifest = json.loads(maze_data.with_suffix(".json").read_text())
    assert manifest["dataset"] == "pointmaze-medium-navigate-v0" and manifest["seed"] == 5
    assert manifest["episodes"] == {"train": 11, "validation": 1} and manifest["rows_per_episode"] == 43
    assert manifest["versions"] == versions() and {"ogbench", "mujoco", "dm_control", "gymnasium"} < versions().keys()
    assert manifest["sha256"] == {file.name: sha256(file) for file in maze_data.parent.glob("*.npz")}
    assert manifest["scripted_policy"]["as_expected"]


def test_official_sizes():
    sizes = {"cube-single-play-v0": (1000, 1001), "cube-triple-noisy-v0": (3000, 1001), "cube-quadruple-play-v0": (5000, 1001)}
    sizes |= {"pointmaze-giant-navigate-v0": (500, 2001), "pointmaze-medium-navigate-v0": (1000, 1001)}
    assert {name: (official_episodes(Task.parse(name)), official_rows(Task.parse(name))) for name in sizes} == sizes


@pytest.mark.parametrize("end", [".npz", "-val.npz", ".json"])
def test_nothing_is_overwritten(tmp_path, end, maze_data):
    existing = f"pointmaze-medium-navigate-v0{end}"
    (tmp_path / existing).write_text("precious")
    with pytest.raises(FileExistsError, match=existing):
        collect(MAZE, episodes=1, out=tmp_path)
    with pytest.raises(FileExistsError, match=existing):
        adopt(MAZE, maze_data, tmp_path)
    with pytest.raises(FileExistsError, match=existing):
        download(MAZE, tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "precious")]


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"workers": 0}, {"rows": 2}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        collect(MAZE, out=tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_file_that_a_user_has_is_taken_over(tmp_path, maze_data):
    mine = tmp_path / "mine.npz"
    mine.write_bytes(maze_data.read_bytes())
    with pytest.raises(FileNotFoundError, match="mine-val.npz"):
        adopt(MAZE, mine, tmp_path / "data")
    (tmp_path / "mine-val.npz").write_bytes(maze_data.with_name(f"{maze_data.stem}-val.npz").read_bytes())
    taken = adopt(MAZE, mine, tmp_path / "data")
    assert taken == tmp_path / "data/pointmaze-medium-navigate-v0.npz" and taken.read_bytes() == mine.read_bytes()
    manifest = json.loads(taken.with_suffix(".json").read_text())
    assert manifest["made_by"] == "taken from mine.npz" and manifest["sha256"][taken.name] == sha256(mine)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "mine-val.npz", "mine.npz"]

    again = json.loads(adopt(MAZE, maze_data, tmp_path / "again").with_suffix(".json").read_text())
    assert again == json.loads(maze_data.with_suffix(".json").read_text())  # its own manifest stays

    mine.write_bytes(mine.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="mine.npz: damaged"):
        adopt(MAZE, mine, tmp_path / "bad")
    assert not list((tmp_path / "bad").iterdir())


def test_a_download_is_ogbenchs_own_and_only_when_asked_for(tmp_path, maze_data, monkeypatch):
    asked = []

    def urlopen(url, *_, **__):
        asked.append(url)
        if tmp_path.name in os.environ.get("NO_SERVER", ""):
            raise urllib.error.URLError("no route to host")
        name = url.rsplit("/", 1)[1]
        return (maze_data.parent / name).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    adopt(MAZE, maze_data, tmp_path / "adopted")
    assert not asked
    path = download(MAZE, tmp_path / "downloaded")
    assert [url.rsplit("/", 1)[1] for url in asked] == ["pointmaze-medium-navigate-v0.npz", "pointmaze-medium-navigate-v0-val.npz"]
    assert path.read_bytes() == maze_data.read_bytes() and len(list(path.parent.iterdir())) == 3

    monkeypatch.setenv("NO_SERVER", tmp_path.name)
    with pytest.raises(ConnectionError, match="no route to host.*python -m tql data"):
        download(MAZE, tmp_path / "nothing")
    assert not list((tmp_path / "nothing").iterdir())


# Processes.

SCRIPT = """
import sys
from pathlib import Path
from tql.collect import collect
from tql.config import Task
collect(Task.parse("cube-single-play-v0"), episodes=1000, seed=0, workers=2, out=Path(sys.argv[1]), rows=7)
"""


def start(out: Path, **environment: str) -> subprocess.Popen:
    """A process that collects, in a session of its own."""
    paths = os.pathsep.join([*filter(None, [environment.pop("first", "")]), str(Path(tql.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


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
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("end", ["Ctrl-C", "SIGTERM", "kill -9 of a worker", "kill -9"])
def test_an_interrupted_collection_leaves_no_half_file_and_no_worker(tmp_path, end):
    process = start(tmp_path)
    try:
        until(lambda: list(tmp_path.glob(".*/train/qpos.npy")))  # the first episodes are there
        workers = members(process.pid)
        assert len(workers) == 2
        if end == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        else:
            os.kill(workers[0] if end.endswith("worker") else process.pid, signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
        until(lambda: not members(process.pid))
    finally:
        process.kill()
    assert process.returncode != 0 and not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob("*.json"))
    if end != "kill -9":
        assert not list(tmp_path.iterdir())
    if end == "Ctrl-C":
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    if end.endswith("worker"):
        assert "a worker ended by itself (exit code -9" in errors


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_workers_never_import_jax(tmp_path):
    """A stand-in for jax that leaves a mark for whoever imports it stands before the real one."""
    stand_in, mark = tmp_path / "first/jax", tmp_path / "imported"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(f"open({str(mark)!r}, 'a').close()\nraise ImportError('not here')\n")
    process = start(tmp_path / "out", first=str(tmp_path / "first"))
    try:
        until(lambda: list((tmp_path / "out").glob(".*/train/qpos.npy")) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt") and not mark.exists()
