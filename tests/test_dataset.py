"""A dataset is loaded right, with OGBench's own rewards, or refused with one line that names the
file, what is wrong in it and where."""

import json
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import ogbench
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tql.ogbench import validate
from tql.ogbench.collect import collect
from tql.ogbench.dataset import LARGEST_ACTION, load_dataset
from tql.ogbench.environment import make
from tql.ogbench.tasks import Task
from tql.ogbench.validate import DatasetError, Files, check_fields, read, row_shapes, sha256

MAZE = Task.parse("pointmaze-medium-navigate-singletask-task3-v0")
NAME = MAZE.dataset_name
MAZE_ROW = {"observations": (2,), "actions": (2,), "terminals": (), "qpos": (2,), "qvel": (2,)}


def rows(episodes: tuple[int, ...], row: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """A dataset of episodes with these many rows; random, but for what it must be."""
    rng, total = np.random.default_rng(seed), sum(episodes)
    uniform = lambda shape: rng.uniform(-1, 1, (total, *shape)).astype("float32")
    arrays = {name: uniform(shape) for name, shape in row.items()}
    arrays["terminals"] = np.isin(np.arange(total), np.cumsum(episodes) - 1)
    if "button_states" in row:
        arrays["button_states"] = rng.integers(0, 2, (total, *row["button_states"]))
    return arrays


def save(path: Path, train: dict, validation: dict | None = None) -> Path:
    """Writes them where OGBench looks for them."""
    np.savez_compressed(path, **train)
    validation = rows((3,), MAZE_ROW, seed=1) if validation is None else validation
    np.savez_compressed(Files.of(path).validation, **validation)
    return path


@pytest.fixture
def train() -> dict[str, np.ndarray]:
    """Two episodes of the maze, of 4 and 7 rows."""
    return rows((4, 7), MAZE_ROW)


@pytest.fixture(scope="module")
def maze():
    return make(MAZE)


# What is loaded.


def test_steps_by_hand(tmp_path, train):
    """Row t holds (s_t, a_t). The step from it takes s_(t+1) and a_(t+1) of the same episode, and
    the last row starts none."""
    train["observations"][:] = np.arange(11)[:, None] / 100 + [0, 0.5]
    train["actions"][:] = np.arange(11)[:, None] / 100
    train["actions"][3], train["actions"][9] = 1, -1
    data, validation = load_dataset(MAZE, save(tmp_path / f"{NAME}.npz", train))
    now, after = [0, 1, 2, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 6, 7, 8, 9, 10]
    largest = np.float32(LARGEST_ACTION)
    assert data.s.tolist() == train["observations"][now].tolist()
    assert data.s_next.tolist() == train["observations"][after].tolist()
    clipped = np.clip(train["actions"], -largest, largest)
    assert data.a.tolist() == clipped[now].tolist() and data.a[8].tolist() == [-largest] * 2
    assert data.a_next.tolist() == clipped[after].tolist()
    assert data.a_next[2].tolist() == [largest] * 2
    assert validation.r.shape == (2,)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(data)} == {"float32"}


def near_goals(row, goals, num_objects, first=14, width=7):
    """Rows in which each object is at its goal in about half of them."""
    arrays = rows((101, 100), row)
    rng = np.random.default_rng(3)
    for i in range(num_objects):
        at = slice(first + i * width, first + i * width + 3)
        far = np.where(rng.uniform(size=(201, 1)) < 0.5, 0.02, 0.2)
        arrays["qpos"][:, at] = goals[i] + far * rng.choice([-1, 1], (201, 3))
    return arrays


def cubes_solved(arrays):
    """Task 2 of cube-double: both cubes to y = 0.1, within 4 cm."""
    goals = [(0.35, 0.1, 0.02), (0.50, 0.1, 0.02)]
    for qpos in arrays["qpos"]:
        yield [close(qpos[14 + 7 * i :], goal, 0.04) for i, goal in enumerate(goals)]


def scene_solved(arrays, goal):
    for qpos, buttons in zip(arrays["qpos"], arrays["button_states"]):
        cube = close(qpos[14:], goal["block_xyzs"][0], 0.04)
        pressed = [int(b) == int(wanted) for b, wanted in zip(buttons, goal["button_states"])]
        drawer = abs(float(qpos[23]) - goal["drawer_pos"]) <= 0.04
        yield [cube, *pressed, drawer, abs(float(qpos[24]) - goal["window_pos"]) <= 0.04]


def puzzle_solved(arrays, goal):
    for buttons in arrays["button_states"]:
        yield [int(button) == int(wanted) for button, wanted in zip(buttons, goal)]


def maze_solved(arrays):
    """Task 3 of the medium maze: cell (4, 2), centre (4, 12), within 1."""
    for xy in arrays["qpos"]:
        yield [close(xy, (4.0, 12.0), 1.0)]


def close(x, goal, distance: float) -> bool:
    return sum((float(x[k]) - goal[k]) ** 2 for k in range(len(goal))) ** 0.5 <= distance


@pytest.mark.parametrize(
    "name",
    [
        "cube-double-play-singletask-task2-v0",
        "scene-play-singletask-task4-v0",
        "puzzle-3x3-play-singletask-task2-v0",
        MAZE.name,
    ],
)
def test_rewards_are_ogbenchs_and_those_of_a_loop(tmp_path, name):
    task = Task.parse(name)
    environment = make(task)
    row = row_shapes(environment)
    infos = environment.unwrapped.task_infos
    train = rows((101, 100), row)
    if task.domain == "cube-double":
        train = near_goals(row, [(0.35, 0.1, 0.02), (0.50, 0.1, 0.02)], 2)
        solved = list(cubes_solved(train))
    elif task.domain == "scene":
        goal = infos[3]["goal"]
        train = near_goals(row, goal["block_xyzs"], 1)
        train["qpos"][:, 23] = goal["drawer_pos"]
        train["qpos"][:, 24] = np.where(np.arange(201) % 3, goal["window_pos"], 0.1)
        solved = list(scene_solved(train, goal))
    elif task.domain == "puzzle-3x3":
        train["button_states"][::7] = infos[1]["goal_button_states"]
        solved = list(puzzle_solved(train, infos[1]["goal_button_states"]))
    else:
        train["qpos"] = (train["qpos"] * 1.5 + [4, 12]).astype("float32")
        solved = list(maze_solved(train))
    path = save(tmp_path / f"{task.dataset_name}.npz", train, rows((5,), row, seed=2))
    data = load_dataset(task, path)[0]

    steps = [solved[t] for t in range(201) if t not in (100, 200)]
    assert data.r.tolist() == [sum(flags) - len(flags) for flags in steps]
    assert data.m.tolist() == [0.0 if all(flags) else 1.0 for flags in steps]
    assert 0 < np.mean(data.m) < 1, "both kinds occur"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = ogbench.make_env_and_datasets
        theirs = load(task.single_task_name, dataset_path=str(path))[1]
    np.testing.assert_array_equal(data.s, theirs["observations"])
    np.testing.assert_array_equal(data.s_next, theirs["next_observations"])
    np.testing.assert_array_equal(data.r, theirs["rewards"])
    np.testing.assert_array_equal(data.m, theirs["masks"])
    np.testing.assert_allclose(data.a, theirs["actions"], atol=2e-5, rtol=0)


def test_generated_data_are_loaded(tmp_path):
    """From the scripted policy to transitions, for an environment with buttons."""
    task = Task.parse("puzzle-3x3-play-singletask-task1-v0")
    path = collect(task, episodes=2, workers=1, out=tmp_path, rows=23, progress=False)
    train, validation = load_dataset(task, path)
    assert train.s.shape == (44, 55) and validation.s.shape == (22, 55)
    assert train.r.min() >= -9 and np.array_equal(train.s_next[:21], train.s[1:22])


# What is refused.


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, row, value):
    def change(arrays):
        arrays[name][row] = value

    return change


def replace(name, f):
    return lambda arrays: arrays.update({name: f(arrays[name])})


def to(name, kind):
    return replace(name, lambda a: a.astype(kind))


BAD = {
    "missing array": (without("qvel"), "array 'qvel' is missing, expected float32[11, 2]"),
    "other type": (to("observations", "float64"), "is float64[11, 2], expected float32[11, 2]"),
    "other byte order": (to("qpos", ">f4"), "array 'qpos' is >f4[11, 2], expected float32[11, 2]"),
    "ends as numbers": (to("terminals", "float32"), "is float32[11], expected bool[11]"),
    "fewer axes": (
        replace("actions", lambda a: a[:, 0]),
        "is float32[11], expected float32[11, 2]",
    ),
    "no axis": (replace("observations", lambda a: a[0, 0]), "is float32[], expected float32[1, 2]"),
    "other domain": (
        replace("observations", lambda a: np.tile(a, 14)),
        "is float32[11, 28], expected float32[11, 2]; is it a dataset of another domain than",
    ),
    "fewer rows": (replace("actions", lambda a: a[:-1]), "'actions' is float32[10, 2], expected"),
    "NaN": (
        put("observations", (5, 1), np.nan),
        "'observations', row 5: nan is not a finite number",
    ),
    "Inf": (put("qvel", (9, 0), np.inf), "array 'qvel', row 9: inf is not a finite number"),
    "large action": (
        put("actions", (3, 1), -1.5),
        "array 'actions', row 3: -1.5 is not in [-1, 1]",
    ),
    "open end": (put("terminals", 10, False), "'terminals', row 10: the last row must end an epis"),
    "short": (put("terminals", 5, True), "row 5: the episode that ends here has 2 rows"),
    "no rows": (
        lambda arrays: arrays.update({x: a[:0] for x, a in arrays.items()}),
        "the last row",
    ),
    "objects": (to("actions", object), "Object arrays cannot be loaded"),
    "in a wall": (put("qpos", 2, [8.0, 0.0]), "array 'qpos', row 2: 8.0 is not a position in this"),
    "outside": (put("qpos", 2, [-900.0, 900.0]), "array 'qpos', row 2: -900.0 is not a position"),
}


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_by_name(tmp_path, train, case, split):
    change, message = BAD[case]
    change(train)
    pair = [rows((3, 4), MAZE_ROW, seed=4), rows((3, 4), MAZE_ROW, seed=5)]
    pair[split] = train
    path = save(tmp_path / f"{NAME}.npz", *pair)
    with pytest.raises(DatasetError) as caught:
        load_dataset(MAZE, path)
    text = str(caught.value)
    assert text.startswith(f"{Files.of(path)[split]}: ") and message in text and "\n" not in text


class Trap:
    """Unpickling one leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_no_pickle_is_ever_opened(tmp_path, train, how):
    mark, path = tmp_path / "mark", tmp_path / f"{NAME}.npz"
    save(path, train | {"observations": np.array([[Trap(mark)] * 2] * 11, object)})
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(DatasetError, match=f"{NAME}.npz: it is damaged, or not a dataset"):
        load_dataset(MAZE, path)
    assert not mark.exists()
    if how == "object array":  # the trap works
        np.load(path, allow_pickle=True)["observations"]
        assert mark.exists()


def test_a_header_that_promises_more_than_there_is_is_not_believed(tmp_path, train):
    """This array says it has 8 terabytes."""
    path = save(tmp_path / f"{NAME}.npz", {x: a for x, a in train.items() if x != "actions"})
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)}
    with zipfile.ZipFile(path, "a") as archive, archive.open("actions.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(DatasetError, match="it is damaged"):
        load_dataset(MAZE, path)


def harmless(path: Path, arrays: dict[str, np.ndarray], maze) -> bool:
    """Reads the same arrays in spite of the damage, or refuses the file by its name; anything else
    is an error here."""
    try:
        out = read(path, MAZE, maze)
    except DatasetError as error:
        assert str(path) in str(error)
        return False
    assert all(np.array_equal(out[name], arrays[name]) for name in MAZE_ROW)
    return True


def test_any_single_damaged_byte_is_refused_or_harmless(tmp_path, train, maze, monkeypatch):
    """The arrays compress easily, so that the damage also meets the decompressor's own tables."""
    monkeypatch.setattr(validate, "row_shapes", lambda _: MAZE_ROW)  # it resets the maze: slow
    path = tmp_path / "damaged.npz"
    arrays = train | {"observations": np.round(train["observations"], 1)}
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    assert harmless(path, arrays, maze)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        refused += not harmless(path, arrays, maze)
    assert refused > len(whole) / 2


damage = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3)


@settings(max_examples=100, deadline=None)
@given(damage, st.floats(0.5, 1))
def test_any_damage_is_refused_or_harmless(tmp_path_factory, maze, flips, kept):
    """Flipped and cut bytes anywhere: the same arrays come out, or a `DatasetError`."""
    path, arrays = tmp_path_factory.getbasetemp() / "damaged.npz", rows((4, 7), MAZE_ROW)
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    path.write_bytes(content[: round(kept * len(content))])
    harmless(path, arrays, maze)


def test_missing_files_say_what_to_do(tmp_path, train):
    path = tmp_path / f"{NAME}.npz"
    with pytest.raises(FileNotFoundError, match=f"python -m tql data {NAME}"):
        load_dataset(MAZE, path)
    Files.of(save(path, train)).validation.unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAME}-val.npz.*beside {NAME}.npz"):
        load_dataset(MAZE, path)


def test_validation_data_must_be_other_episodes(tmp_path, train):
    with pytest.raises(DatasetError, match=f"{NAME}-val.npz: it is a copy of {NAME}.npz"):
        load_dataset(MAZE, save(tmp_path / f"{NAME}.npz", train, train))


def test_a_dataset_of_another_task_is_refused(tmp_path):
    cube = Task.parse("cube-single-play-v0")
    path = collect(MAZE, episodes=2, workers=1, out=tmp_path, rows=101, progress=False)
    with pytest.raises(DatasetError, match=f"this is '{NAME}', but .* needs '{cube.dataset_name}'"):
        load_dataset(cube, path)
    path.with_suffix(".json").unlink()  # without it the arrays must do
    with pytest.raises(DatasetError, match="is it a dataset of another domain than cube-single"):
        load_dataset(cube, path)
    large = Task.parse("pointmaze-large-navigate-v0")
    with pytest.raises(DatasetError, match="'qpos', row .* is not a position in this environment"):
        load_dataset(large, path)


# The manifest.


@pytest.fixture
def with_manifest(tmp_path, train):
    files = Files.of(save(tmp_path / f"{NAME}.npz", train))
    sums = {file.name: sha256(file) for file in files[:2]}
    return files, {"dataset": NAME, "versions": {}, "sha256": sums}


def test_a_file_that_is_not_its_manifests_is_refused(with_manifest):
    files, manifest = with_manifest
    files.manifest.write_text(json.dumps(manifest))
    load_dataset(MAZE, files.train)
    save(files.train, rows((4, 7), MAZE_ROW, seed=9))
    with pytest.raises(
        DatasetError, match=f"{NAME}.npz: its SHA-256 is not the one in {NAME}.json"
    ):
        load_dataset(MAZE, files.train)


def test_other_versions_are_warned_about(with_manifest):
    files, manifest = with_manifest
    files.manifest.write_text(json.dumps(manifest | {"versions": {"mujoco": "9.8.7"}}))
    with pytest.warns(UserWarning, match=r"made with mujoco 9.8.7 \(installed: "):
        load_dataset(MAZE, files.train)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        *[("", "Expecting value"), ("{", "Expecting"), ("\xff\xfe", ""), ("[" * 9**5, "recursion")],
        *[("[]", "not a JSON object"), ('{"dataset": 3}', "field 'dataset' is 3, expected str")],
        (f'{{"dataset": "{NAME}", "sha256": {{}}}}', "'versions' is missing, expected dict"),
        (f'{{"dataset": "{NAME}", "sha256": 3, "versions": {{}}}}', "'sha256' is 3, expected dict"),
    ],
)
def test_a_manifest_that_is_none_is_refused(with_manifest, text, wrong):
    files, _ = with_manifest
    files.manifest.write_text(text, encoding="latin-1")
    message = f"{NAME}.json: it is not the manifest of a dataset (.*{re.escape(wrong)}"
    with pytest.raises(DatasetError, match=message.replace("(", r"\(", 1)):
        load_dataset(MAZE, files.train)


@pytest.mark.parametrize(
    "value", [True, "1", None, [1], 0, 4, float("nan"), float("inf"), -float("inf"), 2.5]
)
def test_a_field_is_of_its_type_and_in_its_range(value):
    with pytest.raises(ValueError, match="the field 'x' is .*, expected int in .1, 3.$"):
        check_fields({"x": value}, {"x": (int, 1, 3)})
    check_fields({"x": 3}, {"x": (int, 1, 3)})
    check_fields({"x": 3}, {"x": (float, 1, 3)})
