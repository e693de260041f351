"""Seeds trained together: the same runs as one by one, cut off anywhere, and a failure that costs only itself."""

import json
import shutil
from dataclasses import replace
from itertools import count, product
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import as_in_tests
from test_baselines import tiny

from tql import run as runs
from tql import run_directory, together
from tql.benchmark import jobs
from tql.checkpoint import named_arrays
from tql.config import Task

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

SEEDS = (3, 11, 5)


def without_time(run):
    return [{name: x for name, x in line.items() if name != "time"} for line in run_directory.read_metrics(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, maze_file):
    """Settings and directories of three seeds that nothing interrupted."""
    folder = tmp_path_factory.mktemp("together")
    configs, directories = [replace(tiny("iql"), seed=seed) for seed in SEEDS], [folder / f"seed{seed}" for seed in SEEDS]
    with as_in_tests():
        together.train(configs, maze_file, directories, workers=1)
    return configs, directories


def test_each_is_the_run_that_it_would_be_alone(whole, tmp_path, maze_file):
    for config, run in zip(*whole):
        alone = tmp_path / run.name
        agent = runs.train(*runs.start(config, maze_file, alone), alone, workers=1)
        ours, theirs = named_arrays(run_directory.trained_agent(run)), named_arrays(agent)
        assert run_directory.read_settings(run).config == config and ours.keys() == theirs.keys()
        for name in ours.keys() - {"key"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.array_equal(ours["key"], theirs["key"])
        for a, b in zip(without_time(run), without_time(alone), strict=True):
            assert a.keys() == b.keys() and all(np.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)
        episodes = [[json.loads(line) for line in (place / "evaluation.jsonl").read_text().splitlines()] for place in (run, alone)]
        assert [(row["step"], row["seed"], row["policy"]) for row in episodes[0]] == [
            (row["step"], row["seed"], row["policy"]) for row in episodes[1]
        ]
        assert len(episodes[0]) == 4
    assert not np.allclose(*(without_time(run)[-1]["q_mean"] for run in whole[1][:2])), "another seed is another run"


def test_the_settings_name_the_seeds(whole):
    for run in whole[1]:
        assert json.loads((run / "config.json").read_text())["seeds_together"] == list(SEEDS)


@pytest.mark.parametrize("at", [4, 8])
def test_killed_between_two_saves_they_end_bit_for_bit_the_same(at, whole, tmp_path, maze_file, monkeypatch):
    """Also between their first: then all begin again."""
    configs, directories = whole
    again = [tmp_path / run.name for run in directories]
    save, saved = run_directory.save, []

    def save_or_die(run, agent):
        if int(agent.step) == at and saved[-1:] == [("seed3", at)]:
            raise KeyboardInterrupt
        saved.append((run.name, int(agent.step)))
        save(run, agent)

    with monkeypatch.context() as patch:
        patch.setattr(together, "save", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            together.train(configs, maze_file, again, workers=1)
    assert [len(run_directory.checkpoints(run)) for run in again] == ([1, 0, 0] if at == 4 else [2, 1, 1])
    together.train(configs, maze_file, again, workers=1)
    for ours, theirs in zip(again, directories):
        a, b = named_arrays(run_directory.trained_agent(ours)), named_arrays(run_directory.trained_agent(theirs))
        assert all(np.array_equal(a[name], b[name]) for name in b) and without_time(ours) == without_time(theirs)


def test_runs_too_far_apart_go_on_alone(whole, tmp_path, maze_file, monkeypatch):
    """A seed that was finished alone has dropped the checkpoints from which the others could go on with it."""
    configs, directories = whole
    names = ["task/iql-3", "task/iql-11"]
    shutil.copytree(directories[0], tmp_path / names[0])
    assert together.common_step(directories) == 8 and together.common_step([tmp_path / name for name in names]) is None
    with pytest.raises(run_directory.RunError, match="no checkpoint after the same number of updates; train them one by one"):
        together.begin(configs[:2], maze_file, [tmp_path / name for name in names])
    monkeypatch.setattr("tql.benchmark.flops_of", lambda config: 1e9)
    assert jobs(dict(zip(names, configs)), tmp_path, True) == [(name,) for name in names]


def test_the_clock_of_each_runs_at_its_share(whole, tmp_path, maze_file, monkeypatch):
    """Three seeds, and 30 seconds between two lines."""
    ticks = count(1000.0, 30.0)
    monkeypatch.setattr(together, "time", SimpleNamespace(time=lambda: next(ticks)))
    directories = [tmp_path / run.name for run in whole[1]]
    together.train(whole[0], maze_file, directories, workers=1)
    for run in directories:
        assert np.diff([line["time"] for line in run_directory.read_metrics(run)]).tolist() == pytest.approx([10] * 3)


def test_what_is_stacked_comes_apart(whole):
    configs, directories = whole
    agents = [run_directory.trained_agent(run) for run in directories]
    for agent, again in zip(agents, together.unstack(together.stack(agents), configs), strict=True):
        assert again.config == agent.config and jax.tree.structure(again) == jax.tree.structure(agent)
        ours, theirs = named_arrays(agent), named_arrays(again)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_one_that_diverges_is_named(whole, tmp_path, maze_file, monkeypatch):
    """The second of three; the others keep their checkpoints."""
    configs, _ = whole
    directories = [tmp_path / f"seed{seed}" for seed in SEEDS]
    check = runs.check_finite

    def broken(run, first, metrics):
        if run.name == "seed11" and first == 6:
            metrics = {name: np.full_like(x, np.nan) for name, x in metrics.items()}
        check(run, first, metrics)

    monkeypatch.setattr(runs, "check_finite", broken)
    with pytest.raises(run_directory.Diverged, match="became .*nan.* at update 6; .*seed11.step-000000004"):
        together.train(configs, maze_file, directories, workers=1)
    assert [len(run_directory.checkpoints(run)) for run in directories] == [1, 1, 1]


def test_only_seeds_may_differ(tmp_path, maze_file):
    first = tiny("bc")
    with pytest.raises(ValueError, match="may differ by their seed alone"):
        together.begin([first, replace(first, seed=4, tau=0.5)], maze_file, [tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())


def test_jobs_of_the_benchmark(monkeypatch, tmp_path):
    """Seeds of small methods are one job where asked; tasks and other settings keep apart."""
    monkeypatch.setattr("tql.benchmark.flops_of", lambda config: 1e12 if config.method == "tql" else 1e9)
    tasks = [f"cube-double-play-singletask-task{number}-v0" for number in (1, 2)]
    every = product(tasks, ("bc", "tql"), (0, 1))
    members = {f"{task[-7:-3]}/{method}-{seed}": replace(tiny(method), task=task, seed=seed) for task, method, seed in every}
    assert all(Task.parse(config.task) for config in members.values())
    assert jobs(members, tmp_path, False) == [(name,) for name in members]
    grouped = jobs(members, tmp_path, True)
    assert sorted(map(len, grouped)) == [1, 1, 1, 1, 2, 2] and sorted(sum(grouped, ())) == sorted(members)
    assert all("bc" in name for job in grouped if len(job) == 2 for name in job)
    assert all(len({name[:4] for name in job}) == 1 for job in grouped)
