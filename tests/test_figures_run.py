"""The runner of the figures on two tiny runs, and what the measurement of speed counts."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest
from conftest import tiny_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

import run as runner
import speed
from cluster import Cluster
from draw import FIGURES
from presets import PRESETS
from records import read

from tql.config import ActorConfig, CriticConfig
from tql.training.cost import update_flops
from tql.training.methods import METHODS, as_json, method_class, new_agent

# ---- the runner ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, {figures!r})
import run
from tql.training.methods import config_from_dict

if __name__ == "__main__":
    one = config_from_dict({config!r})
    bad = replace(one, task="cube-single-play-singletask-task1-v0")
    runs = {{"sarsa-tql-32-seed3": one, "sarsa-tql-32-seed4": replace(one, seed=4)}}
    runs |= {{"failing-seed3": bad}} if "failing" in sys.argv else {{}}
    run.PRESETS["cpu"] = lambda: runs
    run.dataset = lambda task, episodes, seed: Path({maze!r})
    run.best_matmul_rate = lambda: 1e12
    options = run.Options("cpu", only=sys.argv[1], minutes=eval(sys.argv[2]), processes=1,
                          estimate="estimate" in sys.argv, records=Path({records!r}),
                          cluster="local" if "cluster" in sys.argv else "")
    raise SystemExit(run.main(options))
"""


class Runner:
    """`python figures/run.py cpu` with two tiny runs (and one that fails), in a home of its own."""

    def __init__(self, home: Path, maze: Path):
        self.home, self.program = home, home / "program.py"
        home.mkdir()
        long = dict(steps=600, checkpoint_every=200, evaluate_every=600)
        config = as_json(replace(tiny_settings("cpu-sarsa"), **long))
        places = dict(figures=str(FIGURES), maze=str(maze), records=str(home / "data"))
        self.program.write_text(PROGRAM.format(**places, config=config))

    def start(self, only="", minutes=None, *options):
        command = [sys.executable, self.program, only, repr(minutes), *options]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        environment = os.environ | {"TQL_HOME": str(self.home)}
        return subprocess.Popen(command, env=environment, start_new_session=True, **how)

    def __call__(self, *arguments):
        process = self.start(*arguments)
        said, _ = process.communicate()
        return process.returncode, said

    def path(self, seed):
        return self.home / "runs" / "study" / "cpu" / f"sarsa-tql-32-seed{seed}"

    def lines(self):
        """The records, without what a clock says."""
        text = (self.home / "data" / "cpu.jsonl").read_text().splitlines()
        return [json.loads(line) | {"training_seconds": 0} for line in text]


def test_it_makes_and_records_what_is_missing(tmp_path, maze_file):
    """Of three runs one fails, which costs only itself; what is done is left as it is."""
    mine = Runner(tmp_path / "mine", maze_file)
    code, said = mine("", None, "failing")
    assert code == 1 and "3 runs, 3 of them missing" in said and "2 of 3 made" in said, said
    assert "failed: failing-seed3: " in said and "35% of the 1.00 TFLOP/s" in said, said
    records = read("cpu", mine.home / "data")
    assert [record.seed for record in records] == [3, 4]
    for record in records:
        assert record.analysis["step"] == [200, 400, 600] and record.portrait.n_s == 2
        assert record.metrics["step"] == list(range(5, 601, 5))
        assert record.parameters["critic"] > 1000 and record.dataset.file == maze_file.name
        assert str(tmp_path) not in json.dumps(record.config) + record.dataset.file

    # What is done is not trained again, and recorded where it was not.
    lines = mine.lines()
    before = {path: path.stat().st_mtime_ns for path in mine.path(3).iterdir()}
    (mine.home / "data" / "cpu.jsonl").unlink()
    code, said = mine()
    assert code == 0 and "2 runs, 0 of them missing" in said, said
    assert mine.lines() == lines
    assert {path: path.stat().st_mtime_ns for path in mine.path(3).iterdir()} == before


@pytest.mark.slow
def test_however_often_stopped_it_records_the_same(tmp_path, maze_file):
    """By its time, by a kill and by a signal."""
    whole, stopped = Runner(tmp_path / "whole", maze_file), Runner(tmp_path / "stopped", maze_file)
    code, said = whole()
    assert code == 0, said
    code, said = stopped("", 0.001)
    assert code == 0 and not (stopped.home / "data").exists(), said
    process = stopped.start()
    while not list(stopped.path(3).glob("step-*.checkpoint")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, said = stopped("seed3")
    assert code == 0 and "1 runs, 1 of them missing" in said and "1 of 1 made" in said, said
    assert len(stopped.lines()) == 1
    process = stopped.start()
    while not stopped.path(4).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert "stopped; everything is saved, and the same command goes on." in said, said
    code, said = stopped()
    assert code == 0 and "2 runs, 1 of them missing" in said, said
    assert stopped.lines() == whole.lines()


@pytest.mark.slow
def test_the_local_cluster_makes_them_too_and_none_twice(tmp_path, maze_file):
    """One job a run, and a run that fails costs only itself."""
    pytest.importorskip("submitit", reason='needs pip install -e ".[cluster]"')
    mine = Runner(tmp_path / "mine", maze_file)
    code, said = mine("", None, "failing", "cluster")
    assert code == 1 and "made: sarsa-tql-32-seed3" in said and "seed4" in said, said
    assert "failed: failing-seed3: " in said and "Traceback" not in said, said
    assert [record.seed for record in read("cpu", mine.home / "data")] == [3, 4]
    jobs = mine.path(3).parent / ".jobs"
    names = {f"{name}.json" for name in ("sarsa-tql-32-seed3", "sarsa-tql-32-seed4")}
    assert names | {"failing-seed3.json"} == {path.name for path in jobs.glob("*.json")}

    before = {path: path.stat().st_mtime_ns for path in mine.path(3).iterdir()}
    code, said = mine("sarsa", None, "cluster")
    assert code == 0 and "2 runs, 0 of them missing" in said, said
    assert {path: path.stat().st_mtime_ns for path in mine.path(3).iterdir()} == before


@pytest.mark.parametrize("name", ["tql", "a/b-seed1"])
def test_a_job_that_is_not_over_is_found_again(name, tmp_path, monkeypatch):
    """And not submitted a second time, whoever waits for it."""
    submitit = pytest.importorskip("submitit", reason='needs pip install -e ".[cluster]"')
    over = {"7": False, "8": True}

    class Job:
        def __init__(self, folder, job_id):
            self.job_id = job_id

        def done(self, force_check=False):
            return over[self.job_id]

    monkeypatch.setattr(submitit, "SlurmJob", Job)
    where = Cluster("slurm", tmp_path, "", 1.0, 1)
    assert where.found(name) is None
    where.remember(name, Job(tmp_path, "7"))
    assert where.found(name).job_id == "7"
    where.remember(name, Job(tmp_path, "8"))
    assert where.found(name) is None


def test_without_submitit_or_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit, match=r"pip install -e \"\.\[cluster\]\""):
        Cluster("slurm", tmp_path, "", 1.0, 1).executor()


def test_a_wrong_name_and_an_estimate_start_nothing(tmp_path, maze_file):
    mine = Runner(tmp_path / "mine", maze_file)
    code, said = mine("seed4", None, "estimate")
    assert code == 0 and "1 runs, 1 of them missing. These take about 0.0 hours" in said, said
    assert not (mine.home / "runs" / "study").exists()
    with pytest.raises(SystemExit, match="no run of the preset cpu has 'seed7' in its name"):
        runner.main(runner.Options("cpu", only="seed7"))


def test_the_estimate_counts_matrix_products(optax_promotion):
    config = PRESETS["cpu"]()["sarsa-none-64-seed0"]
    # A token passes about 12 d^2 weights in the first layer and 3 d^2 in the last, forward and
    # twice backward, and forward in the target.
    n, d = 34, 64
    products = 2 * 64 * n * (12 + 3) * d**2 * (3 + 1)
    assert 0.6 < runner.flops_of(runner.kind(config)) / products < 1.2
    kinds = {runner.kind(config) for config in PRESETS["methods-paper"]().values()}
    assert len(kinds) == 5 * 10, "tasks of a domain and seeds cost the same"


# ---- speed ---------------------------------------------------------------------------------------


def test_what_is_measured():
    every = speed.configs_of(speed.Options(method="all"))
    assert list(every) == list(METHODS) and {c.batch_size for c in every.values()} == {256}
    assert every["tql"] == method_class("tql").presets["paper-0.4M"](speed.TASK)
    sizes = speed.configs_of(speed.Options(d_model=(64, 96), batch_size=(5, 7)))
    crossed = [(c.critic.d_model, c.batch_size) for c in sizes.values()]
    assert crossed == [(64, 5), (64, 7), (96, 5), (96, 7)]
    with pytest.raises(ValueError, match="'sarsa'; choose .*tql, bc"):
        speed.configs_of(speed.Options(method="sarsa"))


def tiny(method):
    config = replace(speed.configs_of(speed.Options(method=method))[method], batch_size=7)
    if method == "bc":
        return replace(config, hidden=(11, 13))
    actor = ActorConfig(kind="dataset")
    return replace(config, critic=CriticConfig(d_model=32), actor=actor)


def fresh(config, rows=53):
    """An agent and its data."""
    return new_agent(speed.N_S, speed.N_A, config).prepare(speed.synthetic(rows))


def test_both_loops_make_the_methods_own_updates(optax_promotion):
    """A dataset of one row, so that both see the same batches; the update of an MLP by hand."""
    agent, data = fresh(tiny("bc"))
    products = [37 * 11, 11 * 13, 13 * 5]
    assert update_flops(agent, data) == 2 * 7 * (3 * sum(products) - products[0])
    data = jax.tree.map(lambda x: x[:1], data)
    shipped, plain = speed.shipped_loop(agent, data, 3), speed.plain_loop(agent, data)
    for updates, made in ((3, 3), (6, 9)):
        ours, theirs = shipped(updates), plain(updates)
        assert int(ours.step) == int(theirs.step) == made
    for a, b in zip(jax.tree.leaves(ours.actor.model), jax.tree.leaves(theirs.actor.model)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(agent.step) == 0, "the agent given is neither consumed nor changed"


def test_tql_as_published_makes_the_same_update_with_more_work(optax_promotion):
    agent, data = fresh(tiny("tql"))
    batch = jax.tree.map(lambda x: x[:7], data)
    plain = speed.as_published(agent)
    assert isinstance(plain.critic.model, speed.PlainCritic)
    ours, metrics = jax.jit(lambda: agent.update(batch, jr.key(3)))()
    theirs, same_metrics = jax.jit(lambda: plain.update(batch, jr.key(3)))()
    for name, value in metrics.items():
        np.testing.assert_allclose(same_metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(ours.critic), jax.tree.leaves(theirs.critic), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert update_flops(plain, data) > update_flops(agent, data)


def test_a_rate_is_that_of_a_call_which_lasts_long_enough(monkeypatch):
    """By a clock on which an update takes a quarter of a second."""
    now, asked = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def loop(updates):
        asked.append(updates)
        now[0] += updates / 4

    assert speed.rate(loop, 3, 20.0) == 4
    assert asked[0] == 3 and asked[-1] >= 80 and all(updates % 3 == 0 for updates in asked)


def test_a_row_stands_under_its_header(monkeypatch, optax_promotion):
    """10 and 5 updates a second; the best rate is the update's own, so an update costs .1 s over
    1."""
    flops, few = update_flops(*fresh(tiny("bc"))), speed.synthetic(53)
    monkeypatch.setattr(speed, "synthetic", lambda: few)
    monkeypatch.setattr(speed, "best_matmul_rate", lambda: flops)
    monkeypatch.setattr(speed, "empty_call_seconds", lambda: 0.0)
    monkeypatch.setattr(speed, "rate", lambda loop, unit, seconds: 10.0 if unit > 1 else 5.0)
    row = speed.measure("mine", tiny("bc"), 3, 0.0)
    at = {"shipped": "10.00", "plain": "5.00", "of matmul": "1000%", "over ideal": "0.10"}
    for column, word in at.items():
        end = speed.HEADER.index(column) + len(column)
        assert row[:end].endswith(word), (column, row)
    assert "2.00 (2.00 to 2.00)" in row
