"""Paths that do not depend on the current directory; datasets that are made once per length."""

from pathlib import Path

import pytest

from tql.training import workspace
from tql.training.workspace import dataset, home, pictures

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A home of its own, where `collect` writes a file at once; the list of what was asked of
    it."""
    calls = []

    def collect(task, *, out, **options):
        calls.append((task.name, out, options))
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{task.dataset_name}.npz").write_text(str(options["episodes"]))
        return out / f"{task.dataset_name}.npz"

    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    monkeypatch.setattr("tql.training.workspace.collect", collect)
    return calls


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_the_checkout_unless_told(value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TQL_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("TQL_HOME", value)
    assert home() == CHECKOUT and (home() / "tql" / "training" / "workspace.py").samefile(
        workspace.__file__
    )


def test_home_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    assert home() == tmp_path
    folder = pictures("05_x")
    assert (
        folder == tmp_path / "runs" / "walkthrough" / "05_x"
        and folder.is_dir()
        and pictures("05_x") == folder
    )


def test_a_dataset_is_generated_once(asked, tmp_path, capsys):
    path = dataset("cube-single-play-singletask-task2-v0", episodes=2)
    folder = tmp_path / "data" / "2-episodes"
    assert path == folder / "cube-single-play-v0.npz" and path.exists()
    assert asked == [("cube-single-play-v0", folder, dict(episodes=2, seed=0, workers=2))]
    assert f"{path} is missing and is generated now" in capsys.readouterr().out
    for task in (
        "cube-single-play-singletask-task2-v0",
        "cube-single-play-singletask-task4-v0",
        "cube-single-play-v0",
    ):
        assert dataset(task, episodes=2) == path
    assert len(asked) == 1 and capsys.readouterr().out == "", "its tasks share a dataset"


def test_datasets_of_other_lengths_and_names_lie_elsewhere(asked):
    wanted = [("cube-single-play-v0", 2), ("cube-single-play-v0", 3), ("cube-single-noisy-v0", 2)]
    paths = [dataset(name, episodes=episodes) for name, episodes in wanted]
    assert len(set(paths)) == len(asked) == 3
    assert [path.read_text() for path in paths] == ["2", "3", "2"]


def test_a_wrong_name_is_refused(asked):
    with pytest.raises(ValueError, match="the nearest name is 'cube-single-play-v0'"):
        dataset("cube-singel-play-v0", episodes=2)
    assert not asked
