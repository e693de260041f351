"""The benchmark: what its presets hold, what it costs, and that its runs end the same however they are stopped and whoever fails."""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from conftest import MAZE, as_in_tests
from test_run import assert_same_arrays, metrics_of, steps_of

from tql import __main__ as command_line
from tql import benchmark as bench
from tql import run_directory
from tql.benchmark import Outcome, costs, flops_of, is_done, record, run_all, seconds_at_median_speed
from tql.benchmark_presets import MEMBERS, POCKET_SEEDS, SEARCHED, settings, without_control
from tql.config import METHODS, Task
from tql.run_directory import RunError

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

SCORED = ("cube-single-noisy-singletask-task3-v0", "cube-single-noisy-singletask-task2-v0")


# What is run.


@cache
def members_of(preset):
    return MEMBERS[preset]()


def parts(name):
    """Task, label and seed in a run's name."""
    task, run = name.split("/")
    label, _, seed = run.rpartition("-seed")
    return task, label, int(seed)


def test_every_run_has_the_task_method_and_seed_of_its_name():
    for preset in MEMBERS:
        for name, config in members_of(preset).items():
            task, label, seed = parts(name)
            assert (config.task, config.seed) == (task, seed)
            assert label.split("@")[0].removesuffix("-none").removesuffix("-bound") == config.method


def test_pocket_trains_all_methods_alike():
    members = members_of("pocket")
    plain = {*METHODS, "tql-none", "q-transformer-bound"}
    wide = {"tql@64", "tql-none@64", "fql@512", "floq@256", "pac@64"}
    expected = {*product(SCORED, plain, range(3)), *product(SCORED[:1], wide, range(3))}
    assert {parts(name) for name in members} == expected and len(members) == 2 * 12 * 3 + 5 * 3
    shared = ("steps", "batch_size", "discount", "tau", "evaluate_every", "episodes", "dataset_episodes")
    assert {tuple(getattr(config, name) for name in shared) for config in members.values()} == {(18_000, 64, 0.97, 0.02, 6000, 50, 120)}
    assert len({(config.method, config) for config in members.values()}) == len(members), "no run is made twice"


def test_the_bound_of_pocket_differs_in_its_returns_alone():
    members = members_of("pocket")
    bound, published = (members[f"{SCORED[1]}/{label}-seed2"] for label in ("q-transformer-bound", "q-transformer"))
    assert bound.mc_mode == "lower_bound" and replace(bound, mc_mode="authors") == published


def test_the_search_changes_one_weight_of_pocket_at_another_seed():
    members, seeds = members_of("search"), set()
    for name, config in members.items():
        _, label, seed = parts(name)
        method, _, value = label.partition("@")
        flat = lambda config: {k: v for k, v in flat_settings(config) if k != "seed"}
        pocket = flat(settings(method, "pocket", SCORED[0], 0))
        changed = {k: v for k, v in flat(config).items() if v != pocket[k]}
        assert changed in ({}, {SEARCHED[method][0]: float(value)})
        seeds.add(seed)
    assert len(seeds) == 1 and not seeds & set(POCKET_SEEDS) and len({(c.method, c) for c in members.values()}) == len(members) == 29
    for method, (name, values) in SEARCHED.items():
        assert dict(flat_settings(settings(method, "pocket", SCORED[0], 0)))[name] in values, "what pocket uses was tried"


def flat_settings(config):
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from ((f"{field.name}.{inner}", x) for inner, x in flat_settings(value))
        else:
            yield field.name, value


def test_widths_of_pocket():
    members = members_of("pocket")
    of = lambda label: members[f"{SCORED[0]}/{label}-seed1"]
    assert of("tql").critic.d_model == 32 and of("tql@64").critic.d_model == of("tql-none@64").critic.d_model == 64
    assert of("fql@512").critic_hidden == (512, 512, 512) and of("floq@256").velocity_hidden == (256, 256) and of("pac@64").d_model == 64
    for label in ("tql", "tql@64"):
        without = of(label.replace("tql", "tql-none"))
        assert (of(label).control.kind, without.control.kind) == ("tql", "none")
        assert replace(without, control=of(label).control) == of(label), "all else equal"


@pytest.mark.parametrize(
    ("preset", "domains", "seeds"),
    [
        ("gpu", ("cube-double", "scene"), range(1)),
        ("paper", ("cube-double", "scene", "puzzle-3x3", "puzzle-4x4", "cube-triple"), range(8)),
    ],
)
def test_presets_at_the_papers_scale(preset, domains, seeds):
    members = members_of(preset)
    tasks = [f"{domain}-play-singletask-task{number}-v0" for domain, number in product(domains, range(1, 6))]
    assert {parts(name) for name in members} == {*product(tasks, METHODS, seeds)}
    assert len(members) == {"gpu": 2 * 5 * 10, "paper": 25 * 10 * 8}[preset]
    assert {(config.steps, config.batch_size, config.episodes) for config in members.values()} == {(1_000_000, 256, 50)}
    assert {config.critic.d_model for name, config in members.items() if "/tql-" in name} == {1024}
    assert {config.dataset_episodes for config in members.values()} == {None}, "OGBench's official number"


# Whether a run is done.


def keep_lines(path, kept):
    path.write_text("".join(line for number, line in enumerate(path.read_text().splitlines(keepends=True)) if kept(number, line)))


def test_a_whole_run_is_done(finished, tiny, tmp_path):
    assert is_done(finished, tiny) and not is_done(tmp_path / "no run", tiny)


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("metrics.jsonl", lambda number, line: '"step": 40' not in line),
        ("metrics.jsonl", lambda number, line: False),
        ("evaluation.jsonl", lambda number, line: number < 17),  # 3 evaluations of 2 policies with 3 episodes
        ("evaluation.jsonl", lambda number, line: '"step": 40' not in line),
        ("evaluation.jsonl", lambda number, line: not ('"step": 40' in line and '"behaviour"' in line)),
        ("evaluation.jsonl", lambda number, line: not ('"step": 40' in line and '"policy": "policy"' in line)),
    ],
)
def test_a_run_without_its_last_updates_or_episodes_is_not(file, kept, finished, tiny, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / file).read_text()
    keep_lines(run / file, kept)
    assert (run / file).read_text() != before and not is_done(run, tiny)


def test_a_torn_line_is_no_progress(finished, tiny, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content[:-9])
    assert not is_done(run, tiny) and bench.share_done(run, tiny) == 35 / 40
    (run / "metrics.jsonl").write_bytes(b'{"step": 5')
    assert bench.share_done(run, tiny) == bench.share_done(tmp_path / "no run", tiny) == 0


def test_a_run_of_other_settings_is_refused(finished, tiny):
    with pytest.raises(RunError, match=r"holds a run of other settings \(tau: 0.5 instead of 0.02\); move it away"):
        is_done(finished, replace(tiny, tau=0.5))
    with pytest.raises(RunError, match="method: bc instead of tql"):
        is_done(finished, settings("bc", "pocket", MAZE, 3))


# What it costs.


def test_seeds_and_tasks_of_a_dataset_cost_the_same_and_wider_networks_more():
    of = lambda label: settings(label, "pocket", SCORED[0], 0)
    tql, fql = of("tql"), of("fql")
    members = {
        "tql": tql,
        "seed": replace(tql, seed=5),
        "task": replace(tql, task=SCORED[1]),
        "wide": replace(tql, critic=replace(tql.critic, d_model=64)),
        "long": replace(tql, steps=2 * tql.steps),
        "fql": fql,
        "fql-wide": replace(fql, critic_hidden=(512, 512, 512)),
    }
    found = costs(members, 1e11)
    assert found["tql"] == found["seed"] == found["task"] == found["long"] / 2 < found["wide"] and found["fql"] < found["fql-wide"]


def test_the_count_behind_the_estimate_by_hand():
    """BC: 28 x 256 x 256 x 256 x 5; forward, its matrices' gradients and, but for the first layer, its inputs' gradients."""
    layers = [28 * 256, 256 * 256, 256 * 256, 256 * 5]
    config, flops = settings("bc", "pocket", SCORED[0], 0), 2 * 64 * (3 * sum(layers) - layers[0])
    assert flops_of(config) == flops
    assert costs({"bc": config}, 1e11) == {"bc": pytest.approx(flops * 18_000 / (0.35 * 1e11))}


def test_every_domain_of_the_presets_has_a_state_size():
    domains = {Task.parse(config.task).domain for preset in MEMBERS for config in members_of(preset).values()}
    assert domains <= bench.STATE_SIZES.keys()


# Running, in processes, on the tiny maze. No episodes, so no simulator; a checkpoint per update, so that a run lasts to be stopped.

TINY = replace(
    settings("bc", "pocket", MAZE, 0),
    **dict(steps=160, batch_size=7, hidden=(8,), updates_per_call=1, log_every=4, checkpoint_every=1, evaluate_every=160, episodes=0),
)
FIRST, SECOND, LOST = (f"{MAZE}/{label}" for label in ("bc-seed0", "bc-seed1", "bc-seed2"))
RUNS = {LOST: replace(TINY, seed=2), FIRST: TINY, SECOND: replace(TINY, seed=1)}


@pytest.fixture(scope="module")
def small_processes(tmp_path_factory):
    """What processes of this file inherit: a home of their own, quick compilation, and that it is shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQL_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setitem(bench.STATE_SIZES, "pointmaze-medium", 2)
        yield bench.home() / "runs" / "benchmark" / "pocket"


@pytest.fixture(scope="module")
def called(small_processes, maze_file):
    """One call for two runs that can be made and one whose dataset is missing. The folder, and what came of it."""
    data = dict.fromkeys(RUNS, maze_file) | {LOST: maze_file.with_name("lost.npz")}
    with as_in_tests():
        return small_processes, data, run_all(RUNS, data, small_processes, processes=2)


def no_process(*arguments):
    pytest.fail("a run was started")


def test_a_failure_costs_only_itself(called):
    folder, _, outcome = called
    assert outcome == Outcome(done=[FIRST, SECOND], failed=[LOST], missing=[])
    assert "FileNotFoundError" in (log := (folder / f"{LOST}.log").read_text()) and "lost.npz: there is no such file" in log
    for name in (FIRST, SECOND):
        assert is_done(folder / name, RUNS[name]) and steps_of(folder / name) == [160, 159]
        assert [line["step"] for line in metrics_of(folder / name)] == list(range(4, 161, 4))
    assert metrics_of(folder / FIRST) != metrics_of(folder / SECOND), "another seed is another run"


def test_what_is_done_is_left_alone(called, monkeypatch):
    folder, data, _ = called
    monkeypatch.setattr(bench, "start_process", no_process)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = {name: RUNS[name] for name in (FIRST, SECOND)}
    assert run_all(done, data, folder, processes=2) == Outcome([FIRST, SECOND], [], [])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_stopped_by_its_minutes_then_by_a_signal_it_ends_bit_for_bit_the_same(called, tmp_path, monkeypatch):
    folder, data, _ = called
    share = lambda: bench.share_done(tmp_path / FIRST, TINY)
    go = lambda **options: run_all({FIRST: TINY}, data, tmp_path, processes=1, **options)
    wait = bench.time.sleep
    with monkeypatch.context() as patch:
        patch.setattr(bench.time, "sleep", lambda seconds: wait(seconds / 10))
        patch.setattr(bench.time, "monotonic", lambda: 121.0 if share() > 0 else 0.0)
        assert go(minutes=2.0) == Outcome([], [], [FIRST])
    assert 0 < (stopped := share()) < 1 and "stopped by SIGTERM" in (tmp_path / f"{FIRST}.log").read_text()

    def signalled(seconds):
        wait(seconds / 10)
        if share() > stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(bench.time, "sleep", signalled)
        before = signal.getsignal(signal.SIGTERM)
        assert go() == Outcome([], [], [FIRST]) and signal.getsignal(signal.SIGTERM) is before
    assert stopped < share() < 1
    assert go() == Outcome([FIRST], [], [])
    assert_same_arrays(run_directory.trained_agent(tmp_path / FIRST), run_directory.trained_agent(folder / FIRST))
    assert metrics_of(tmp_path / FIRST) == metrics_of(folder / FIRST)


def test_without_minutes_left_nothing_is_started(called, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "start_process", no_process)
    assert run_all({FIRST: TINY}, called[1], tmp_path, processes=1, minutes=0.0) == Outcome([], [], [FIRST])


class Process:
    """Stands for one that ended at once."""

    exitcode = 1

    def is_alive(self):
        return False


def test_runs_that_ended_by_the_same_signal_did_not_fail(called, tmp_path, monkeypatch):
    """Ctrl-C reaches all processes of a terminal."""

    def start(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return Process()

    monkeypatch.setattr(bench, "start_process", start)
    assert run_all({FIRST: TINY}, called[1], tmp_path, processes=1) == Outcome([], [], [FIRST])


# Recording.


def test_what_is_recorded(finished, tmp_path):
    record(finished, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl", "evaluation.jsonl"}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (finished, tmp_path))
    assert after["dataset"] == before["dataset"] | {"file": Path(before["dataset"]["file"]).name} != before["dataset"]
    assert after.pop("training_seconds") == round(seconds_at_median_speed(run_directory.read_metrics(finished)), 1)
    learned = after.pop("parameters")
    flow, one_step = (5 * 16 + 16 + 2 * 16 + 16 * 2 + 2, 4 * 16 + 16 + 2 * 16 + 16 * 2 + 2)
    assert learned.keys() == {"critic", "actor", "controller"} and (learned["actor"], learned["controller"]) == (flow + one_step, 2)
    assert after == before | {"dataset": after["dataset"]}
    assert not any(str(finished.parents[1]) in path.read_text() for path in tmp_path.iterdir()), "no local path"
    lines = metrics_of(finished)
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [25, 40], "the fifth of eight, and the last"
    assert kept[0].keys() == lines[4].keys() and kept[0]["td_loss"] == pytest.approx(lines[4]["td_loss"], rel=1e-5)
    rows = [[json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()] for folder in (finished, tmp_path)]
    assert rows[0] == rows[1] and len(rows[0]) == 18


def test_the_training_time_is_that_at_the_median_speed():
    """10 updates take 2 s; a pause of an hour does not count."""
    times = [0.0, 2.0, 4.0, 3604.0, 3606.0]
    assert seconds_at_median_speed([{"step": 10 * (i + 1), "time": time} for i, time in enumerate(times)]) == pytest.approx(50 / 5)
    assert seconds_at_median_speed([{"step": 10, "time": 3.0}]) == 0


# The command.


@pytest.fixture
def tql(called, maze_file, monkeypatch, tmp_path):
    """`tql benchmark ...` with the preset of this file; two of its three runs are done."""
    monkeypatch.setitem(bench.MEMBERS, "pocket", lambda: RUNS)
    monkeypatch.setattr(bench, "best_matmul_rate", lambda: 2e12)
    monkeypatch.setattr(bench, "costs", lambda members, rate: dict.fromkeys(members, 1800.0))
    monkeypatch.setattr(bench, "dataset_path", lambda task, *, episodes: maze_file)
    monkeypatch.setattr(bench, "start_process", no_process)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", "benchmark", "--records", str(tmp_path / "records"), *arguments])
        command_line.main()

    return call


def test_the_estimate_trains_nothing(tql, monkeypatch, capsys, tmp_path):
    for name in ("dataset", "run_all", "record"):
        monkeypatch.setattr(bench, name, no_process)
    tql("--estimate")
    said = capsys.readouterr().out
    assert said.startswith("preset pocket: 3 runs, 2 of them done.\nThe others take about 0.5 hours of this machine (")
    assert "35% of the 2.00 TFLOP/s" in said
    assert not list(tmp_path.iterdir())


def test_what_is_done_is_recorded(tql, capsys, tmp_path):
    tql("--only", "bc-seed1")
    said = capsys.readouterr().out
    assert "1 runs done, 0 failed, 0 missing" in said
    assert f"\n  python figures/table.py --preset pocket --data {tmp_path / 'records'}" in said
    assert [path.parent for path in (tmp_path / "records").rglob("config.json")] == [tmp_path / "records" / "pocket" / SECOND]


@pytest.mark.parametrize(
    "preset, commands",
    [("search", ["search.py"]), ("gpu", ["table.py --preset gpu", "success.py --preset gpu"])]
    + [("pocket", [f"{x}.py --preset pocket" for x in ("table", "success", "scaling")])],
)
def test_it_says_what_draws_the_runs_that_are_done(preset, commands, monkeypatch, capsys, tmp_path):
    """The records' folder may have a space."""
    monkeypatch.setattr(bench, "benchmark", lambda *_: Outcome([FIRST], [], []))
    command_line.Benchmark(preset=preset, records=tmp_path / "my records")()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [f"python figures/{command} --data '{tmp_path / 'my records'}'" for command in commands]


def test_a_failed_run_is_named_and_the_command_fails(tql, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run_all", lambda *_, **__: Outcome([FIRST, SECOND], [LOST], []))
    with pytest.raises(SystemExit) as left:
        tql()
    said = capsys.readouterr().out
    assert left.value.code == 1 and "2 runs done, 1 failed, 0 missing" in said and f"failed: {LOST}; see " in said and f"{LOST}.log" in said


def test_a_selection_of_nothing_is_one_line(tql):
    with pytest.raises(SystemExit, match=f"^tql: no run of the preset pocket has 'sarsa' in its name; names are like {LOST}.$"):
        tql("--only", "sarsa")


def test_options_reach_the_runs(tql, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "run_all", lambda *names, **options: asked.append((names, options)) or Outcome([], [], []))
    tql("--only", "bc-seed2", "--minutes", "9.5", "--processes", "3")
    (members, data, folder), options = asked[0]
    assert members == {LOST: RUNS[LOST]} and data.keys() == {LOST} and folder == bench.home() / "runs" / "benchmark" / "pocket"
    assert options == dict(processes=3, minutes=pytest.approx(9.5, abs=0.2), seeds_together=False)


def test_a_call_with_limited_time_makes_one_dataset(monkeypatch, tmp_path):
    """Two are there from the second call on, and so on; without a limit all are made at once."""
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    members = {name: config for name, config in MEMBERS["gpu"]().items() if "task1" in name or "task4" in name}
    made = []

    def make(task, *, episodes):
        path = bench.dataset_path(task, episodes=episodes)
        if not path.exists():
            made.append(path.stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return path

    monkeypatch.setattr(bench, "dataset", make)
    first, _ = bench.datasets(members, at_most_one=True)
    assert made == ["cube-double-play-v0"] and first.keys() == {name for name in members if name.startswith("cube-double")}
    assert bench.datasets(members, at_most_one=True)[0].keys() == members.keys() and made == ["cube-double-play-v0", "scene-play-v0"]
    monkeypatch.setenv("TQL_HOME", str(tmp_path / "other"))
    assert bench.datasets(members, at_most_one=False)[0].keys() == members.keys() and len(made) == 4


def test_a_dataset_that_cannot_be_made_costs_only_its_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    members = {name: config for name, config in MEMBERS["gpu"]().items() if "/bc-" in name}
    asked = []

    def make(task, *, episodes):
        asked.append(task)
        if task.startswith("cube"):
            raise RuntimeError("no simulator")

    monkeypatch.setattr(bench, "dataset", make)
    found, failed = bench.datasets(members, at_most_one=False)
    assert len(asked) == 2 and found.keys() | failed.keys() == members.keys()
    assert all(name.startswith("scene") for name in found) and len(failed) == len(found) == 5
    assert all("cube-double-play-v0.npz could not be made: RuntimeError('no simulator')" in why for why in failed.values())


def damaged(folder):
    (folder / "config.json").write_text("{")


def without_checkpoints(folder):
    for path in run_directory.checkpoints(folder):
        path.unlink()


def with_a_damaged_line(folder):
    (folder / "evaluation.jsonl").write_text("{}\n")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (damaged, "is damaged or of another version"),
        (with_a_damaged_line, "not the record of an episode"),
        (without_checkpoints, "not recorded: .* no usable checkpoint"),
    ],
)
def test_a_damaged_run_costs_only_itself(harm, why, tql, called, tmp_path, monkeypatch, capsys):
    folder = called[0]
    monkeypatch.setenv("TQL_HOME", str(tmp_path / "home"))
    copy = shutil.copytree(folder, tmp_path / "home" / "runs" / "benchmark" / "pocket")
    harm(copy / FIRST)
    monkeypatch.setattr(bench, "start_process", lambda *_: Process())
    with pytest.raises(SystemExit):
        tql()
    said = capsys.readouterr().out
    assert re.search(f"failed: {FIRST}; .*{why}", said) and f"failed: {LOST}; see " in said and "preset pocket: 3 runs" in said
    assert (tmp_path / "records" / "pocket" / SECOND / "config.json").exists()
    assert not (tmp_path / "records" / "pocket" / FIRST / "config.json").exists()


def test_runs_without_data_wait(called, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "start_process", no_process)
    assert run_all({FIRST: TINY}, {}, tmp_path, processes=1) == Outcome([], [], [FIRST])


def test_making_a_dataset_counts_towards_the_minutes(tql, monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bench, "dataset_path", lambda task, *, episodes: Path("missing.npz"))
    monkeypatch.setattr(bench, "dataset", lambda task, *, episodes: now.append(now.pop() + 240.0))
    monkeypatch.setattr(bench, "run_all", lambda *_, minutes, **__: asked.append(minutes) or Outcome([], [], []))
    tql("--only", "bc-seed2", "--minutes", "9.5")
    tql("--only", "bc-seed2", "--minutes", "3")
    assert asked == [5.5, 0.0]


def test_without_control_changes_nothing_else():
    config = settings("tql", "pocket", SCORED[0], 4)
    without = without_control(config)
    assert without.control.kind == "none" and replace(without, control=config.control) == config


def test_seeds_that_failed_together_are_tried_one_by_one(called, tmp_path, monkeypatch):
    """The process of both seeds ends at once; so does that of one of them alone."""
    started = []

    def start(configs, data, directories, core):
        started.append([config.seed for config in configs])
        if len(configs) == 1 and configs[0].seed == 0:
            shutil.copytree(called[0] / FIRST, directories[0])
            return Ended(0)
        return Ended(1)

    monkeypatch.setattr(bench, "start_process", start)
    members = {FIRST: TINY, SECOND: RUNS[SECOND]}
    outcome = run_all(members, called[1], tmp_path, processes=1, seeds_together=True)
    assert started == [[0, 1], [0], [1]] and outcome == Outcome([FIRST], [SECOND], [])


class Ended(Process):
    def __init__(self, exitcode):
        self.exitcode = exitcode
