"""The walkthroughs that train for minutes, as a reader runs them, in two parts.

6 and 7 run on the recorded runs of `figures/data/cpu`, where every claim is held to the numbers at full size; and, among the slow tests, 6,
7 and 9 run at the sizes below through the code that trains.
"""

import shutil

import pytest
from test_walkthrough import REPOSITORY, SLACK, pictures_of, price, run

RECORDS = REPOSITORY / "figures" / "data" / "cpu"
FEWER_EPISODES = {"06_collapse": {"EPISODES = 100": "EPISODES = 2"}, "07_controller": {"EPISODES = 100": "EPISODES = 2"}}
SMALL = {
    "06_collapse": {"EPISODES = 100": "EPISODES = 2", "WIDTHS = (32, 64, 128)": "WIDTHS = (32, 64)", "SEEDS = (0, 1, 2)": "SEEDS = (0,)"}
    | {"STEPS = 1000": "STEPS = 40"},
    "07_controller": {"EPISODES = 100": "EPISODES = 2", "WIDTHS = (32, 64, 128)": "WIDTHS = (32, 64)", "SEEDS = (0, 1, 2)": "SEEDS = (0,)"}
    | {"UPDATES = 1000": "UPDATES = 40"},
    "09_agent": {"EPISODES = 120": "EPISODES = 2", "UPDATES = 18_000": "UPDATES = 180", "ACTED = 50": "ACTED = 2"},
}
"""Constants of a script and what stands in their place here."""

SMALL_SECONDS = {"06_collapse": 180, "07_controller": 120, "09_agent": 100}
"""Processor time at these sizes, on a 2-core Xeon otherwise idle; nearly all of it is compilation."""


@pytest.mark.parametrize("name", FEWER_EPISODES)
def test_the_claims_about_collapse_and_control_hold_on_the_recorded_runs(name, tmp_path):
    shutil.copytree(RECORDS, tmp_path / "runs" / "study" / "cpu")
    printed, _, _ = run(name, tmp_path, FEWER_EPISODES[name])
    assert "DOES NOT HOLD" not in printed and printed.count("holds:") >= 3
    named, there = pictures_of(name, tmp_path)
    assert named == there


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """6 and 7 share their runs, as for a reader."""
    return tmp_path_factory.mktemp("small")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_long_walkthroughs_train_what_they_show(name, small):
    printed, spent, memory = run(name, small, SMALL[name])
    named, there = pictures_of(name, small)
    assert there == named - ({"film.png"} if "no film" in printed else set())
    assert spent < SLACK * SMALL_SECONDS[name], f"{name}: {spent:.0f} s of processor time; {SMALL_SECONDS[name]} s are stated"
    assert memory < SLACK * price(name)[1]
    trained = {path.parent.name for path in (small / "runs" / "study" / "cpu").glob("*/config.json")}
    if name == "06_collapse":
        assert {"sarsa-none-32-seed0", "slow-none-64-seed0", "returns-none-64-seed0", "flow-none-64-seed0"} <= trained
    if name == "07_controller":
        assert {"sarsa-tql-64-seed0", "sarsa-fixed-64-seed0", "sarsa-single-64-seed0", "flow-tql-64-seed0"} <= trained


@pytest.mark.slow
def test_a_broken_controller_is_noticed(tmp_path):
    """Critics without control under the names of those with it: the asserts of 7 have to see the difference."""
    study = tmp_path / "runs" / "study" / "cpu"
    shutil.copytree(RECORDS, study)
    for controlled in study.glob("sarsa-tql-*"):
        for file in ("metrics.jsonl", "analysis.jsonl", "portrait.npz"):
            shutil.copy(study / controlled.name.replace("-tql-", "-none-") / file, controlled)
    with pytest.raises(AssertionError, match="AssertionError: no group ends more than 0.3 nats below its target"):
        run("07_controller", tmp_path, FEWER_EPISODES["07_controller"])
