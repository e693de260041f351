"""The walkthroughs 6 and 7, which train for minutes, on the recorded runs of
`figures/data/cpu.jsonl`: every claim is held to the numbers at full size. At small sizes
`test_book.py` trains what they show."""

import json

import numpy as np
import pytest
from test_walkthrough import REPOSITORY, pictures_of, run

from tql.analysis.portrait import Portrait, save_portrait

pytestmark = pytest.mark.slow
FEWER_EPISODES = {"EPISODES = 100": "EPISODES = 2"}
COLUMNS = ("metrics", "analysis")


@pytest.fixture(scope="module")
def records():
    """The recorded runs by name."""
    lines = (REPOSITORY / "figures" / "data" / "cpu.jsonl").read_text().splitlines()
    return {record["name"]: record for record in map(json.loads, lines)}


def unpack(records, home):
    """Makes the run directories that the walkthroughs look for, from the records.

    A record keeps a portrait's landscapes and one of its maps. No claim rests on the rest of it, so
    placeholders stand there.
    """
    for name, record in records.items():
        folder = home / "runs" / "study" / "cpu" / name
        folder.mkdir(parents=True)
        shapes = {key: np.shape(x)[1:] for key, x in record["metrics"].items() if key != "step"}
        acts = record["config"]["actor"]["kind"] == "flow"
        settings = {
            "policies": ["policy", "behaviour"] if acts else [],
            "metrics": shapes,
            "files": {},
        } | {key: record[key] for key in ("config", "dataset", "versions", "device", "target")}
        (folder / "config.json").write_text(json.dumps(settings))
        for kind in COLUMNS:
            rows = [dict(zip(record[kind], values)) for values in zip(*record[kind].values())]
            lines = [json.dumps(row | {"time": float(i)}) for i, row in enumerate(rows)]
            (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
        save_portrait(folder / "portrait.npz", portrait(record["portrait"]))


def portrait(seen):
    pairs, n = len(seen["landscapes"]), len(seen["map"])
    maps = np.tile(np.array(seen["map"], np.float32), (2, 1, 1))
    return Portrait(
        landscapes=np.array(seen["landscapes"], np.float32),
        slices=np.tile(np.linspace(0, 1, 41, dtype=np.float32), (pairs, n - 1 - seen["n_s"], 1)),
        sensitivities=np.zeros(pairs, np.float32),
        entropies=np.zeros((pairs, 2, 1, 2), np.float32),
        maps=maps[:, None],
        mean_maps=maps,
        n_s=np.array(seen["n_s"]),
    )


@pytest.mark.parametrize("name", ["06_collapse", "07_controller"])
def test_the_claims_about_collapse_and_control_hold_on_the_recorded_runs(name, records, tmp_path):
    unpack(records, tmp_path)
    printed, _, _ = run(name, tmp_path, FEWER_EPISODES)
    assert "DOES NOT HOLD" not in printed and printed.count("holds:") >= 3
    named, drawn = pictures_of(name, tmp_path)
    assert named == drawn


def test_a_broken_controller_is_noticed(records, tmp_path):
    """The records of critics without control stand under the names of those with it."""
    broken = dict(records)
    for name in records:
        if name.startswith("sarsa-tql-"):
            without = records[name.replace("-tql-", "-none-")]
            broken[name] = records[name] | {kind: without[kind] for kind in COLUMNS}
    unpack(broken, tmp_path)
    with pytest.raises(AssertionError, match="no group ends more than 0.3 nats below its target"):
        run("07_controller", tmp_path, FEWER_EPISODES)
