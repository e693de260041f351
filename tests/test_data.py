"""A dataset is loaded right, with OGBench's own rewards, or refused with a message that names file, array and row."""

import json
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import ogbench
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tql.collect import collect
from tql.config import Task
from tql.data import LARGEST_ACTION, Batch, goes_on, load, regression_to_returns, returns, sample, statistics
from tql.environment import make
from tql.validate import DatasetError, Files, columns_of, read, sha256

MAZE = Task.parse("pointmaze-medium-navigate-singletask-task3-v0")
NAME = "pointmaze-medium-navigate-v0"
MAZE_COLUMNS = {"observations": 2, "actions": 2, "terminals": None, "qpos": 2, "qvel": 2}


def rows(episodes: tuple[int, ...], columns: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """A dataset of episodes with these many rows; random, but for what it must be."""
    rng, total = np.random.default_rng(seed), sum(episodes)
    arrays = {name: rng.uniform(-1, 1, (total, size)).astype("float32") for name, size in columns.items() if size}
    arrays["terminals"] = np.isin(np.arange(total), np.cumsum(episodes) - 1)
    if "button_states" in columns:
        arrays["button_states"] = rng.integers(0, 2, (total, columns["button_states"]))
    return arrays


def save(path: Path, train: dict, validation: dict | None = None) -> Path:
    """Writes them where OGBench looks for them."""
    np.savez_compressed(path, **train)
    validation = rows((3,), MAZE_COLUMNS, seed=1) if validation is None else validation
    np.savez_compressed(path.with_name(f"{path.stem}-val.npz"), **validation)
    return path


@pytest.fixture
def train() -> dict[str, np.ndarray]:
    """Two episodes of the maze, of 4 and 7 rows."""
    return rows((4, 7), MAZE_COLUMNS)


# What is loaded.


def test_steps_by_hand(tmp_path, train):
    """Row t holds (s_t, a_t); the step from it takes s_(t+1) and a_(t+1) of the same episode, the last row starts none."""
    train["observations"][:] = np.arange(11)[:, None] / 100 + [0, 0.5]
    train["actions"][:] = np.arange(11)[:, None] / 100
    train["actions"][3], train["actions"][9] = 1, -1
    batch, validation = load(MAZE, save(tmp_path / f"{NAME}.npz", train))
    now, after = [0, 1, 2, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 6, 7, 8, 9, 10]
    largest = np.float32(LARGEST_ACTION)
    assert batch.observations.tolist() == train["observations"][now].tolist()
    assert batch.next_observations.tolist() == train["observations"][after].tolist()
    assert batch.actions.tolist() == train["actions"][now][:-1].tolist() + [[-largest, -largest]]
    assert batch.next_actions[2].tolist() == [largest, largest] and batch.next_actions[7].tolist() == [-largest, -largest]
    assert batch.next_actions[:2].tolist() == train["actions"][1:3].tolist()
    assert validation.rewards.shape == (2,) and {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"float32"}


def near_goals(columns, goals, num_objects, first=14, width=7):
    """Rows in which each object is at its goal in about half of them."""
    arrays = rows((101, 100), columns)
    rng = np.random.default_rng(3)
    for i in range(num_objects):
        at = slice(first + i * width, first + i * width + 3)
        offsets = np.where(rng.uniform(size=(201, 1)) < 0.5, 0.02, 0.2) * rng.choice([-1, 1], (201, 3))
        arrays["qpos"][:, at] = goals[i] + offsets
    return arrays


def cube_rewards(arrays):
    """Task 2 of cube-double: both cubes to y = 0.1, within 4 cm."""
    goals = [(0.35, 0.1, 0.02), (0.50, 0.1, 0.02)]
    for qpos in arrays["qpos"]:
        yield [sum((float(qpos[14 + 7 * i + k]) - goal[k]) ** 2 for k in range(3)) ** 0.5 <= 0.04 for i, goal in enumerate(goals)]


def scene_rewards(arrays, goal):
    for qpos, buttons in zip(arrays["qpos"], arrays["button_states"]):
        cube = sum((float(qpos[14 + k]) - goal["block_xyzs"][0][k]) ** 2 for k in range(3)) ** 0.5 <= 0.04
        pressed = [int(button) == int(wanted) for button, wanted in zip(buttons, goal["button_states"])]
        yield [cube, *pressed, abs(float(qpos[23]) - goal["drawer_pos"]) <= 0.04, abs(float(qpos[24]) - goal["window_pos"]) <= 0.04]


def puzzle_rewards(arrays, goal):
    for buttons in arrays["button_states"]:
        yield [int(button) == int(wanted) for button, wanted in zip(buttons, goal)]


def maze_rewards(arrays):
    """Task 3 of the medium maze: cell (4, 2), whose centre is x = 2 * 4 - 4, y = 4 * 4 - 4, within 1."""
    for x, y in arrays["qpos"].tolist():
        yield [((x - 4.0) ** 2 + (y - 12.0) ** 2) ** 0.5 <= 1.0]


@pytest.mark.parametrize(
    "name", ["cube-double-play-singletask-task2-v0", "scene-play-singletask-task4-v0", "puzzle-3x3-play-singletask-task2-v0", MAZE.name]
)
def test_rewards_are_ogbenchs_and_those_of_a_loop(tmp_path, name):
    task = Task.parse(name)
    environment = make(task)
    columns = columns_of(environment)
    infos = environment.unwrapped.task_infos
    if task.domain == "cube-double":
        train = near_goals(columns, [(0.35, 0.1, 0.02), (0.50, 0.1, 0.02)], 2)
        solved = list(cube_rewards(train))
    elif task.domain == "scene":
        goal = infos[3]["goal"]
        train = near_goals(columns, goal["block_xyzs"], 1)
        train["qpos"][:, 23], train["qpos"][:, 24] = goal["drawer_pos"], np.where(np.arange(201) % 3, goal["window_pos"], 0.1)
        solved = list(scene_rewards(train, goal))
    elif task.domain == "puzzle-3x3":
        train = rows((101, 100), columns)
        train["button_states"][::7] = infos[1]["goal_button_states"]
        solved = list(puzzle_rewards(train, infos[1]["goal_button_states"]))
    else:
        train = rows((101, 100), columns)
        train["qpos"] = (train["qpos"] * 1.5 + [4, 12]).astype("float32")
        solved = list(maze_rewards(train))
    path = save(tmp_path / f"{task.dataset_name}.npz", train, rows((5,), columns, seed=2))
    batch = load(task, path)[0]

    steps = [solved[t] for t in range(201) if t not in (100, 200)]
    assert batch.rewards.tolist() == [sum(flags) - len(flags) for flags in steps]
    assert batch.masks.tolist() == [0.0 if all(flags) else 1.0 for flags in steps]
    assert 0 < np.mean(batch.masks) < 1  # both kinds occur

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ogbench.make_env_and_datasets(task.single_task_name, dataset_path=str(path))[1]
    for array in ("observations", "next_observations", "rewards", "masks"):
        np.testing.assert_array_equal(getattr(batch, array), theirs[array])
    np.testing.assert_allclose(batch.actions, theirs["actions"], atol=2e-5, rtol=0)


def test_generated_data_are_loaded(tmp_path):
    """From the scripted policy to a batch, for an environment with buttons."""
    task = Task.parse("puzzle-3x3-play-singletask-task1-v0")
    path = collect(task, episodes=2, seed=0, workers=1, out=tmp_path, rows=23, progress=False)
    train, validation = load(task, path)
    assert train.observations.shape == (44, 55) and validation.observations.shape == (22, 55)
    assert train.rewards.min() >= -9 and np.array_equal(train.next_observations[:21], train.observations[1:22])


def test_a_sample_has_whole_rows_drawn_evenly(getkey):
    number = jnp.arange(7, dtype="float32")
    dataset = Batch(number[:, None], number[:, None] + 10, number + 20, number + 30, number[:, None] + 40, number[:, None] + 50)
    drawn = eqx.filter_jit(sample)(dataset, 7000, getkey())
    row = np.asarray(drawn.observations[:, 0])
    for array, offset in (("actions", 10), ("rewards", 20), ("masks", 30), ("next_observations", 40), ("next_actions", 50)):
        np.testing.assert_array_equal(np.ravel(getattr(drawn, array)), row + offset)
    assert np.abs(np.bincount(row.astype(int), minlength=7) - 1000).max() < 150  # five standard deviations
    assert not np.array_equal(sample(dataset, 7, jr.key(0)).rewards, sample(dataset, 7, jr.key(1)).rewards)


# What is refused.


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, row, value):
    def change(arrays):
        arrays[name][row] = value

    return change


def replace(name, f):
    return lambda arrays: arrays.update({name: f(arrays[name])})


BAD = {
    "missing array": (without("qvel"), "array 'qvel' is missing"),
    "missing actions": (without("actions"), "array 'actions' is missing"),
    "float64": (replace("observations", lambda a: a.astype("float64")), "array 'observations' is of type float64, expected float32"),
    "other byte order": (replace("qpos", lambda a: a.astype(">f4")), "array 'qpos' is of type >f4, expected float32"),
    "terminals as numbers": (replace("terminals", lambda a: a.astype("float32")), "array 'terminals' is of type float32, expected bool"),
    "text": (replace("actions", lambda a: a.astype("U8")), "array 'actions' is of type <U8"),
    "complex": (replace("actions", lambda a: a.astype("complex64")), "array 'actions' is of type complex64"),
    "structured": (replace("terminals", lambda a: a.astype([("x", "?")])), "array 'terminals' is of type"),
    "one dimension too few": (replace("actions", lambda a: a[:, 0]), "array 'actions' has shape (11,), expected (rows, 2)"),
    "one dimension too many": (replace("terminals", lambda a: a[:, None]), "array 'terminals' has shape (11, 1), expected (rows,)"),
    "no dimension": (replace("terminals", lambda a: np.array(True)), "array 'terminals' has shape ()"),
    "other domain": (replace("observations", lambda a: np.tile(a, 14)), "has 28 columns, but those of pointmaze-medium have 2"),
    "buttons": (lambda arrays: arrays.update(button_states=np.zeros((11, 2), int)), "pointmaze-medium has no buttons"),
    "fewer rows": (replace("actions", lambda a: a[:-1]), "array 'actions' has 10 rows, but 'observations' has 11"),
    "NaN": (put("observations", (5, 1), np.nan), "array 'observations', row 5, column 1: nan is not a finite number"),
    "Inf": (put("qvel", (9, 0), np.inf), "array 'qvel', row 9, column 0: inf is not a finite number"),
    "NaN action": (put("actions", (0, 0), np.nan), "array 'actions', row 0, column 0: nan"),
    "too large an action": (put("actions", (3, 1), -1.0001), "array 'actions', row 3, column 1: -1.0001"),
    "open end": (put("terminals", 10, False), "array 'terminals', row 10: the last row must end an episode"),
    "empty episode": (put("terminals", 4, True), "array 'terminals', row 4: the episode that ends here has 1 rows"),
    "one-step episode": (put("terminals", 5, True), "array 'terminals', row 5: the episode that ends here has 2 rows"),
    "no rows": (lambda arrays: arrays.update({name: a[:0] for name, a in arrays.items()}), "has no rows"),
    "objects": (replace("actions", lambda a: a.astype(object)), "array 'actions' has pickled Python objects"),
    "objects aside": (lambda arrays: arrays.update(extra=np.array([{}], object)), "array 'extra' has pickled Python objects"),
    "inside a wall": (put("qpos", 2, [8.0, 0.0]), "array 'qpos', row 2: [8. 0.] is in a wall of pointmaze-medium"),
    "outside the maze": (put("qpos", 2, [-900.0, 900.0]), "array 'qpos', row 2: [-900.  900.] is in a wall"),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_by_name(tmp_path, train, case, split):
    change, message = BAD[case]
    bad = {name: array.copy() for name, array in train.items()}
    change(bad)
    other = rows((3, 4), MAZE_COLUMNS, seed=4)
    path = save(tmp_path / f"{NAME}.npz", *((bad, other) if split == "train" else (other, bad)))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    name = f"{NAME}.npz" if split == "train" else f"{NAME}-val.npz"
    with pytest.raises(DatasetError, match=f"^{re.escape(str(tmp_path / name))}: .*{re.escape(message)}"):
        load(MAZE, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


class Trap:
    """Unpickling one leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("how", ["object array", "bare pickle", "pickle inside"])
def test_no_pickle_is_ever_opened(tmp_path, train, how):
    mark, path = tmp_path / "mark", tmp_path / f"{NAME}.npz"
    save(path, train)
    if how == "object array":
        save(path, train | {"observations": np.array([[Trap(mark)] * 2] * 11, object)})
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("extra.npy", pickle.dumps(Trap(mark)))
    with pytest.raises(DatasetError, match="pickled Python objects|not a NumPy"):
        load(MAZE, path)
    assert not mark.exists()
    if how == "object array":  # the trap works
        np.load(path, allow_pickle=True)["observations"]
        assert mark.exists()


def test_damaged_files_are_refused(tmp_path, train):
    path = save(tmp_path / f"{NAME}.npz", train)
    whole = path.read_bytes()
    for damaged in (b"", b"not a zip", whole[:100], whole[:-1], whole[: len(whole) // 2], whole[:200] + b"\0" * 8 + whole[208:]):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=f"{NAME}.npz: "):
            load(MAZE, path)
    np.save(path.with_suffix(""), train["actions"])
    os.replace(path.with_suffix(".npy"), path)
    with pytest.raises(DatasetError, match="not a NumPy archive"):
        load(MAZE, path)


def test_a_header_that_promises_more_than_there_is_is_not_believed(tmp_path, train):
    """Nor is memory taken for it: this array says it has 8 terabytes."""
    path = save(tmp_path / f"{NAME}.npz", {name: a for name, a in train.items() if name != "actions"})
    with zipfile.ZipFile(path, "a") as archive, archive.open("actions.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)})
    with pytest.raises(DatasetError, match="array 'actions' says it has shape"):
        load(MAZE, path)


def harmless(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Reads the same arrays in spite of the damage, or refuses the file by its name; anything else is an error here."""
    try:
        out = read(path, MAZE, MAZE_COLUMNS)
    except DatasetError as error:
        assert str(path) in str(error)
        return False
    assert all(np.array_equal(out[name], arrays[name]) for name in MAZE_COLUMNS)
    return True


def test_any_single_damaged_byte_is_refused_or_harmless(tmp_path, train):
    """Easily compressed, so that the damage also meets the decompressor's own tables."""
    path, arrays = tmp_path / "damaged.npz", train | {"observations": np.round(train["observations"], 1)}
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    assert harmless(path, arrays)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        refused += not harmless(path, arrays)
    assert refused > len(whole) / 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3), st.floats(0.5, 1))
def test_any_damage_is_refused_or_harmless(tmp_path_factory, flips, kept):
    """Flipped and cut bytes anywhere: the same arrays come out, or a `DatasetError`, never anything else."""
    path, arrays = tmp_path_factory.getbasetemp() / "damaged.npz", rows((4, 7), MAZE_COLUMNS)
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    path.write_bytes(content[: round(kept * len(content))])
    harmless(path, arrays)


def test_missing_files_say_what_to_do(tmp_path, train):
    path = tmp_path / f"{NAME}.npz"
    with pytest.raises(FileNotFoundError, match=f"python -m tql data {NAME}"):
        load(MAZE, path)
    save(path, train)
    (tmp_path / f"{NAME}-val.npz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAME}-val.npz.*beside {NAME}.npz"):
        load(MAZE, path)


def test_validation_data_must_be_other_episodes(tmp_path, train):
    with pytest.raises(DatasetError, match=f"{NAME}-val.npz: array 'observations' is the one of {NAME}.npz"):
        load(MAZE, save(tmp_path / f"{NAME}.npz", train, train))


@pytest.mark.parametrize("path", ["x.npz.npz", "a.npz/x.npz", "x.npy", "x", "x-val.npz"])
def test_names_that_ogbench_would_mangle_are_refused(path):
    with pytest.raises(DatasetError, match=re.escape(path)):
        Files.of(Path(path))


def test_a_dataset_of_another_task_is_refused(tmp_path):
    path = collect(MAZE, episodes=2, seed=0, workers=1, out=tmp_path, rows=101, progress=False)
    load(MAZE, path)
    with pytest.raises(DatasetError, match="this is 'pointmaze-medium-navigate-v0', but cube-single.* needs 'cube-single-play-v0'"):
        load(Task.parse("cube-single-play-v0"), path)
    path.with_suffix(".json").unlink()  # without it the arrays must do
    with pytest.raises(DatasetError, match="'observations' has 2 columns, but those of cube-single have 28"):
        load(Task.parse("cube-single-play-v0"), path)
    with pytest.raises(DatasetError, match="'button_states' is missing"):
        save(path, rows((5,), MAZE_COLUMNS | {"observations": 55, "actions": 5, "qpos": 23, "qvel": 23}))
        load(Task.parse("puzzle-3x3-play-v0"), path)


@pytest.fixture
def with_manifest(tmp_path, train):
    path = save(tmp_path / f"{NAME}.npz", train)
    files = Files.of(path)
    manifest = {"dataset": NAME, "versions": {}, "sha256": {f.name: sha256(f) for f in (files.train, files.validation)}}
    return files, manifest


def test_a_file_that_is_not_its_manifests_is_refused(with_manifest):
    files, manifest = with_manifest
    files.manifest.write_text(json.dumps(manifest))
    load(MAZE, files.train)
    save(files.train, rows((4, 7), MAZE_COLUMNS, seed=9))
    with pytest.raises(DatasetError, match=f"{NAME}.npz: its SHA-256 is not the one in {NAME}.json"):
        load(MAZE, files.train)


def test_other_versions_are_warned_about(with_manifest):
    files, manifest = with_manifest
    files.manifest.write_text(json.dumps(manifest | {"versions": {"mujoco": "9.8.7"}}))
    with pytest.warns(UserWarning, match=r"made with mujoco 9.8.7 \(installed: "):
        load(MAZE, files.train)


VERSIONS = '{"dataset": "pointmaze-medium-navigate-v0", "sha256": {}, "versions": 3}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dataset": 3}', '{"dataset": "x", "versions": {}, "sha256": {}}', "\xff\xfe", VERSIONS])
def test_a_manifest_that_is_none_is_refused(with_manifest, text):
    files, _ = with_manifest
    files.manifest.write_text(text, encoding="latin-1")
    with pytest.raises(DatasetError, match=f"{NAME}.json: "):
        load(MAZE, files.train)


def two_episodes():
    """An episode of 5 steps that is solved after 3 (mask 0) and goes on, and one of 3 steps that is never solved; s counts the rows."""
    s, s_next = np.array([0, 1, 2, 3, 4, 10, 11, 12.0]), np.array([1, 2, 3, 4, 5, 11, 12, 13.0])
    rewards, masks = np.array([-1, -1, 0, -1, -1, -1, -1, -1.0]), np.array([1, 1, 0, 1, 1, 1, 1, 1.0])
    column = lambda x: jnp.asarray(x[:, None], jnp.float32)
    flat = lambda x: jnp.asarray(x, jnp.float32)
    return Batch(column(s), column(s), flat(rewards), flat(masks), column(s_next), column(s_next))


def test_returns_are_those_of_the_episode_and_stop_where_the_task_is_solved():
    found = regression_to_returns(two_episodes(), 0.5, horizon=0)
    # By hand: G_4 = -1, G_3 = -1.5, G_2 = 0 (solved, nothing follows), G_1 = -1, G_0 = -1.5; second episode -1.75, -1.5, -1.
    np.testing.assert_allclose(found.rewards, [-1.5, -1, 0, -1.5, -1, -1.75, -1.5, -1], atol=1e-7)
    assert not found.masks.any() and found.rewards.dtype == jnp.float32
    np.testing.assert_array_equal(found.observations, two_episodes().observations)


def test_returns_that_are_cut_short_are_left_out():
    found = regression_to_returns(two_episodes(), 0.5, horizon=2)
    np.testing.assert_array_equal(found.observations[:, 0], [0, 1, 2, 10])  # more than two steps of their episode are left
    np.testing.assert_allclose(found.rewards, [-1.5, -1, 0, -1.75], atol=1e-7)


def test_returns_are_sums_over_what_is_left_of_the_episode():
    """G_t = sum over the later rows k of the episode of gamma^(k-t) r_k, as long as every mask before k is 1."""
    rng = np.random.default_rng(5)
    r, m, goes = rng.normal(size=23), (rng.uniform(size=23) < 0.8).astype(float), rng.uniform(size=23) < 0.8
    goes[-1] = False
    expected = []
    for t in range(23):
        k, G, factor = t, 0.0, 1.0
        while True:
            G += factor * r[k]
            if not goes[k]:
                break
            factor *= 0.7 * m[k]
            k += 1
        expected.append(G)
    np.testing.assert_allclose(returns(r, m, goes, 0.7), expected, atol=1e-12)


def test_where_episodes_end():
    """Where the next row's state is not the one that this row led to, if only in one number; and after the last row."""
    assert goes_on(two_episodes()).tolist() == [True, True, True, True, False, True, True, False]
    batch = two_episodes()
    both = lambda x, other: jnp.concatenate([x, other], axis=1)
    shifted = batch.next_observations.at[1].add(1e-3)
    batch = replace_columns(batch, both(batch.observations, batch.observations), both(batch.next_observations, shifted))
    assert goes_on(batch).tolist() == [True, False, True, True, False, True, True, False]


def replace_columns(batch, s, s_next):
    return eqx.tree_at(lambda b: (b.observations, b.next_observations), batch, (s, s_next))


def test_statistics_by_hand():
    batch = eqx.tree_at(lambda b: b.actions, two_episodes(), jnp.stack([jnp.arange(8.0) / 8, -jnp.arange(8.0) / 16], axis=1))
    found = statistics(batch)
    assert (float(found.reward_low), float(found.reward_high)) == (-1, 0)
    assert found.action_low.tolist() == [0, -0.4375] and found.action_high.tolist() == [0.875, 0]
