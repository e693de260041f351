"""The runner behind the figures: its presets are what they promise, and one command, cut off anywhere, goes on to the same records."""

import contextlib
import importlib.util
import json
import re
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from conftest import tiny_settings
from jax.experimental.compilation_cache import compilation_cache
from test_run import Killed, assert_same_arrays, before_chunk, metrics_of, steps_of, what_stops

from tql import run_directory, study
from tql.config import PRESETS, SIZES, ActorConfig, ControlConfig, CriticConfig, Task, paper
from tql.data import Batch, regression_to_returns
from tql.environment import make
from tql.study import is_complete, read_lines

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")


def imported(path):
    """A script of figures/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"figures_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = imported(Path(__file__).parents[1] / "figures" / "run.py")
ALONE = tiny_settings("cpu-sarsa", control=ControlConfig(kind="none"))


# What the presets are.


def without(config):
    """The settings with what runs of a group may differ in set to one value."""
    same = dict(seed=0, episodes=0, control=replace(config.control, kind="none"))
    return replace(config, critic=replace(config.critic, d_model=1, heads=1), **same)


def test_the_cpu_preset():
    members = run.cpu()
    kinds = [f"sarsa-{control}-{width}" for control in ("none", "tql") for width in (32, 64, 128)]
    kinds += ["sarsa-fixed-128", "sarsa-single-128", "flow-none-64", "flow-tql-64", "agent-none-32", "agent-tql-32"]
    kinds += ["slow-none-128", "fast-none-32", "long-none-32", "returns-none-32", "returns-none-128"]
    kinds += ["qk-norm-none-128", "sigma-reparam-none-128", "modern-none-128", "depth4-none-64", "depth4-tql-64"]
    assert set(members) == {f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1, 2)} and len(members) == 66
    sarsa, flow = (PRESETS[preset]("cube-single-play-singletask-task2-v0") for preset in ("cpu-sarsa", "cpu-flow"))
    groups = {"sarsa": sarsa, "returns": sarsa, "flow": flow, "agent": PRESETS["cpu"]("cube-single-noisy-singletask-task3-v0")}
    groups |= {"slow": replace(sarsa, critic_lr=sarsa.critic_lr / 4), "fast": replace(sarsa, critic_lr=4 * sarsa.critic_lr)}
    groups["long"] = replace(sarsa, steps=4000, evaluate_every=4000, checkpoint_every=1000)
    variants = {name: dict(variant=name) for name in ("qk-norm", "sigma-reparam", "modern")} | {"depth4": dict(layers=4)}
    groups |= {name: replace(sarsa, critic=replace(sarsa.critic, **change)) for name, change in variants.items()}
    for name, config in members.items():
        group, control, width, seed = re.fullmatch(r"(.+)-(\w+)-(\d+)-seed(\d)", name).groups()
        assert (config.control.kind, config.critic.d_model, config.seed) == (control, int(width), int(seed))
        assert without(config) == without(groups[group]), "all but width, control and seed"
        layers = 4 if group == "depth4" else 2
        assert config.control.target is None and config.critic.layers == layers, "the same target in nats for all: 0.8 ln(n)"
        assert config.episodes == (50 if group == "agent" else 0) or config.actor.kind == "dataset"
        assert run.episodes(config) == (120 if group == "agent" else 100)
    others = {name: config for name, config in members.items() if not name.startswith("returns")}
    assert len(set(others.values())) == 60 and "cpu" not in run.UNTIL


def test_regression_to_returns_is_for_the_runs_of_that_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    monkeypatch.setattr(run, "say_what_it_costs", lambda *_: None)
    monkeypatch.setattr(run, "dataset", lambda task, *, episodes: tmp_path)
    monkeypatch.setattr(run, "record", lambda *_: None)
    changes = {}
    monkeypatch.setattr(run, "complete", lambda config, data, folder, *, change, **_: changes.update({folder.name: change}))
    with compiled_programs():
        run.main(run.Arguments("cpu", only="seed1"))
    assert len(changes) == 22
    for width in (32, 128):
        returns = changes.pop(f"returns-none-{width}-seed1")
        assert returns.func is regression_to_returns and returns.keywords == {"discount": 0.95}
    assert set(changes.values()) == {study.unchanged}


def test_the_gpu_preset_is_the_paper_s():
    members = run.gpu()
    assert list(members) == [f"cube-double-task2-{control}-{width}-seed0" for width in (1024, 512, 256, 128) for control in ("none", "tql")]
    for name, config in members.items():
        *_, control, width, _ = name.split("-")
        critic = CriticConfig(d_model=int(width), layers=2, heads=None, ensemble=2)
        assert config.critic == critic and config.actor == ActorConfig("flow", (512, 512, 512, 512), 10, 300.0)
        assert config.control == ControlConfig(control, ((3.0, 3.0), (2.5, 2.5)), 1.0)
        assert config.task == "cube-double-play-singletask-task2-v0"
        numbers = (config.steps, config.batch_size, config.discount, config.tau, config.weight_decay, config.warmup)
        assert numbers == (1_000_000, 256, 0.99, 0.005, 0.01, 10_000)
        assert (config.critic_lr, config.actor_lr, config.temperature_lr) == (1e-4, 5e-4, 1e-4)
        size = {128: "0.4M", 256: "1M", 512: "7M", 1024: "26M"}[int(width)]
        how = dict(updates_per_call=50, log_every=500, checkpoint_every=5000, episodes=0)
        assert config == replace(paper(config.task, size), **how, control=replace(config.control, kind=control))
        assert run.episodes(config) == 1000, "OGBench's 1,000,000 transitions"
        assert run.UNTIL["gpu"] == 30_000 and run.UNTIL["gpu"] % config.checkpoint_every == 0, "it is looked at where it ends"


def test_the_paper_preset():
    members = run.whole_paper()
    counts = Counter(re.fullmatch(r"(.+)-task\d-(\w+)-(\d+)-seed\d", name).group(1, 2, 3) for name in members)
    domains = ("cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4")
    expected = {(domain, control, str(width)): 15 for domain in domains for control in ("none", "tql") for width in SIZES.values()}
    assert counts == expected | {("cube-double", control, "1024"): 15 for control in ("fixed", "single")} and len(members) == 630
    for name, config in members.items():
        domain, task, control, width, seed = re.fullmatch(r"(.+)-task(\d)-(\w+)-(\d+)-seed(\d)", name).groups()
        assert config.task == f"{domain}-play-singletask-task{task}-v0"
        assert (config.control.kind, config.critic.d_model, config.seed) == (control, int(width), int(seed))
        assert config.critic_lr == (4e-4 if domain == "cube-triple" else 1e-4) and config.steps == 1_000_000 and config.episodes == 50
        assert config.actor.alpha_bc == (1000 if "puzzle" in domain else 300)
        assert config.control.target == (((3, 3), (2.5, 2.5)) if domain == "cube-double" else ((3.5, 3.5), (3, 3)))
    assert len(set(members.values())) == 630 and "paper" not in run.UNTIL


def test_another_width_keeps_the_target_and_all_else():
    config = paper("scene-play-singletask-task1-v0", "1M")
    assert run.with_critic(config, 512, "none", 7) == replace(
        config, seed=7, critic=replace(config.critic, d_model=512), control=ControlConfig("none", ((3.5, 3.5), (3.0, 3.0)))
    )


def test_state_sizes_are_the_environments():
    domains = {Task.parse(config.task).domain for members in run.PRESET_MEMBERS.values() for config in members().values()}
    assert domains <= run.STATE_SIZES.keys()
    for domain in ("cube-double", "puzzle-3x3"):
        environment = make(Task.parse(f"{domain}-play-singletask-task1-v0"))
        assert environment.observation_space.shape == (run.STATE_SIZES[domain],) and environment.action_space.shape == (5,)
        environment.close()


# What it costs.


def test_the_estimate_counts_matrix_products(monkeypatch):
    config = run.cpu()["sarsa-none-64-seed0"]
    seconds = run.seconds_of(config, None, 1e12)
    # A token passes about 12 d^2 weights in the first layer and 3 d^2 in the last, forward, twice backward; and the target's.
    n, d = 34, 64
    products = 2 * 64 * n * (12 + 3) * d**2 * (3 + 1)
    assert 0.6 < seconds * run.SHARE * 1e12 / (config.steps * products) < 1.2
    monkeypatch.setattr(run, "matmul_flops", lambda function: 3e9)
    assert run.seconds_of(config, None, 1e12) == pytest.approx(1000 * 3e9 / 0.35e12)
    assert run.seconds_of(config, 10, 1e11) == pytest.approx(10 * 3e9 / 0.35e11)


@contextlib.contextmanager
def compiled_programs():
    """The runner's cache of compiled programs, for fast ones too; switched off afterwards."""
    name, before = "jax_persistent_cache_min_compile_time_secs", jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update(name, 0.2)
    yield
    jax.config.update(name, before)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def runner(tmp_path, monkeypatch, maze_file):
    """The command `python figures/run.py cpu ...` with two tiny runs, in a home and a data folder of its own."""
    members = {"sarsa-none-32-seed3": ALONE, "sarsa-none-32-seed4": replace(ALONE, seed=4)}
    monkeypatch.setenv("TQL_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(run.PRESET_MEMBERS, "cpu", lambda: members)
    for name, stand_in in (
        ("DATA", tmp_path / "data"),
        ("dataset", lambda task, *, episodes: maze_file),
        ("best_matmul_rate", lambda: 2e12),
        ("seconds_of", lambda config, until, rate: 1800.0),
    ):
        monkeypatch.setattr(run, name, stand_in)
    with compiled_programs():
        yield lambda *arguments: run.main(tyro.cli(run.Arguments, args=list(arguments)))


def test_it_says_what_it_costs_and_stops(runner, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "dataset", lambda *_, **__: pytest.fail("generated"))
    runner("cpu", "--estimate")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "preset cpu: 2 runs, 0 of them done, of all updates"
    assert said[1].startswith("about 1.0 hours of training on ") and "35% of the 2.00 TFLOP/s" in said[1] and len(said) == 2
    assert not list(tmp_path.glob("home/runs/study/*")) and not (tmp_path / "data").exists()


def test_runs_that_differ_by_seed_or_task_are_estimated_once_and_done_ones_not(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(run, "best_matmul_rate", lambda: 1e12)
    monkeypatch.setattr(run, "seconds_of", lambda config, until, rate: asked.append((config, until)) or 3600.0)
    members = run.whole_paper()
    monkeypatch.setattr(run, "is_complete", lambda path, config, until: path.name.endswith("seed0"))
    run.say_what_it_costs("paper", members, tmp_path)
    assert "630 runs, 210 of them done" in (said := capsys.readouterr().out) and "about 420.0 hours" in said
    assert len(asked) == 42, "5 domains, 4 sizes, 2 controls; 2 ablations"
    run.say_what_it_costs("gpu", run.gpu(), tmp_path)
    assert "8 runs, 8 of them done, of 30000 updates\nabout 0.0 hours" in capsys.readouterr().out
    monkeypatch.setattr(run, "is_complete", lambda path, config, until: until != 30_000)
    run.say_what_it_costs("gpu", run.gpu(), tmp_path)
    assert asked[-1][1] == 30_000 and "about 8.0 hours" in capsys.readouterr().out


# Cut off and continued.


def recorded_files(tmp_path, preset="cpu"):
    return {str(path.relative_to(tmp_path / "data")): path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}


def test_the_same_command_goes_on_after_any_stop(runner, tmp_path, capsys, critic_alone, monkeypatch):
    """SIGTERM in the first run; a kill in the second, where steps begin anew; then nothing is left to do."""
    folder, data = tmp_path / "home" / "runs" / "study" / "cpu", tmp_path / "data" / "cpu"
    with before_chunk(what_stops(signal.SIGTERM, 20)):
        runner("cpu", "--workers", "1")
    said = capsys.readouterr().out
    assert said.endswith("sarsa-none-32-seed3: stopped by SIGTERM at update 25; saved. Go on with --resume. The same command goes on.\n")
    assert "1 of 2: sarsa-none-32-seed3" in said and "2 of 2" not in said
    assert steps_of(folder / "sarsa-none-32-seed3") == [25, 20] and not data.exists(), "recorded once it is done"
    with before_chunk(what_stops("kill", 10)), pytest.raises(Killed):
        runner("cpu", "--workers", "1")
    assert {path.name for path in data.iterdir()} == {"sarsa-none-32-seed3"}
    assert_same_arrays(run_directory.trained_agent(folder / "sarsa-none-32-seed3"), run_directory.trained_agent(critic_alone))
    assert metrics_of(folder / "sarsa-none-32-seed3") == metrics_of(critic_alone)
    capsys.readouterr()
    runner("cpu", "--workers", "1")
    assert "2 runs, 1 of them done" in capsys.readouterr().out
    assert {path.name for path in data.iterdir()} == {"sarsa-none-32-seed3", "sarsa-none-32-seed4"}
    for name, seed in (("sarsa-none-32-seed3", 3), ("sarsa-none-32-seed4", 4)):
        files = {path.name for path in (data / name).iterdir()}
        assert files == {"config.json", "metrics.jsonl", "analysis.jsonl", "portrait.npz"}
        assert is_complete(data / name, replace(ALONE, seed=seed))
        about = json.loads((data / name / "config.json").read_text())
        assert about["config"]["seed"] == seed and about["device"] and "jax" in about["versions"] and about["training_seconds"] >= 0
        assert [line["step"] for line in read_lines(data / name / "analysis.jsonl")] == [10, 15, 20, 30, 40]
    before = recorded_files(tmp_path)
    monkeypatch.setattr(study.runs, "train", lambda *_, **__: pytest.fail("trained again"))
    runner("cpu")
    assert "2 runs, 2 of them done" in capsys.readouterr().out and recorded_files(tmp_path) == before


def test_it_stops_by_itself_after_the_minutes_asked_for(runner, tmp_path, capsys, monkeypatch):
    timers = []

    class Timer:
        def __init__(self, seconds, function):
            self.seconds, self.function, self.daemon, self.started = seconds, function, False, False
            timers.append(self)

        def start(self):
            assert self.daemon, "or the process would wait for it"
            self.started = True

    monkeypatch.setattr(run.threading, "Timer", Timer)
    with before_chunk(lambda step, *_: timers[0].function() if step == 10 else None):
        runner("cpu", "--minutes", "9", "--only", "seed4")
    assert [timer.seconds for timer in timers] == [540] and timers[0].started
    said = capsys.readouterr().out
    assert "preset cpu: 1 runs" in said and "1 of 1: sarsa-none-32-seed4" in said
    assert said.endswith("stopped by SIGTERM at update 15; saved. Go on with --resume. The same command goes on.\n")
    assert steps_of(tmp_path / "home" / "runs" / "study" / "cpu" / "sarsa-none-32-seed4") == [15, 10]
    assert not (tmp_path / "home" / "runs" / "study" / "cpu" / "sarsa-none-32-seed3").exists()


def test_the_options():
    parse = lambda *arguments: tyro.cli(run.Arguments, args=list(arguments))
    assert parse("gpu") == run.Arguments("gpu", minutes=None, only="", workers=2, estimate=False)
    assert parse("paper", "--minutes", "9.5", "--only", "tql", "--workers", "1").minutes == 9.5
    with pytest.raises(SystemExit):
        parse("overnight")


# The gpu preset at reduced size: its own settings and its own way through the program, but for the numbers below.


def reduced(config):
    """26M parameters to 30 thousand, 30,000 updates to 30."""
    sizes = dict(batch_size=7, critic=replace(config.critic, d_model=32), actor=replace(config.actor, hidden=(16,), flow_steps=3))
    return replace(config, **sizes, updates_per_call=5, log_every=5, checkpoint_every=10)


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """`python figures/run.py gpu` in a home of its own, with random transitions of cube-double's sizes."""
    file = tmp_path / "cube-double-play-v0.npz"
    file.write_bytes(b"stands for the dataset")
    rng = np.random.default_rng(0)
    s, a, r = (jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32) for shape in ((64, 37), (64, 5), (64,)))
    members = {name: reduced(config) for name, config in run.gpu().items() if "tql-1024" in name}
    asked = []
    monkeypatch.setattr(study, "load", lambda task, path: (asked.append((task.name, path)), (Batch(s, a, r, jnp.ones(64), s, a),) * 2)[1])
    monkeypatch.setitem(run.PRESET_MEMBERS, "gpu", lambda: members)
    monkeypatch.setitem(run.UNTIL, "gpu", 30)
    monkeypatch.setattr(run, "dataset", lambda task, *, episodes: asked.append((task, episodes)) or file)
    monkeypatch.setattr(run, "best_matmul_rate", lambda: 1e12)

    monkeypatch.setenv("TQL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(run, "DATA", tmp_path / "home" / "data")
    with compiled_programs():
        yield asked
    study._loaded.cache_clear()


@pytest.mark.slow
def test_the_gpu_preset_at_reduced_size_stopped_and_continued(on_gpu, tmp_path, capsys):
    name, home, whole = "cube-double-task2-tql-1024-seed0", tmp_path / "home", tmp_path / "whole"
    gpu = lambda: run.main(run.Arguments("gpu"))
    gpu()
    assert on_gpu[0] == ("cube-double-play-singletask-task2-v0", 1000)
    assert "1 runs, 0 of them done, of 30 updates" in capsys.readouterr().out
    done = home / "runs" / "study" / "gpu" / name
    config = run_directory.read_settings(done).config
    assert (config.steps, config.warmup, config.control.kind, config.episodes) == (1_000_000, 10_000, "tql", 0)
    assert [line["step"] for line in metrics_of(done)] == [5, 10, 15, 20, 25, 30] and steps_of(done) == [30, 20]
    shutil.copytree(done, whole)
    shutil.copytree(home / "data" / "gpu" / name, whole / "record")
    shutil.rmtree(home / "runs" / "study")
    shutil.rmtree(home / "data")

    with before_chunk(what_stops(signal.SIGTERM, 10)):
        gpu()
    assert steps_of(done) == [15, 10] and "The same command goes on." in capsys.readouterr().out
    gpu()
    assert_same_arrays(run_directory.trained_agent(done), run_directory.trained_agent(whole))
    assert metrics_of(done) == metrics_of(whole)
    assert [line["step"] for line in read_lines(done / "analysis.jsonl")] == [10, 20, 30]
    record = home / "data" / "gpu" / name
    assert (record / "analysis.jsonl").read_bytes() == (whole / "record" / "analysis.jsonl").read_bytes()
    assert (record / "metrics.jsonl").read_bytes() == (whole / "record" / "metrics.jsonl").read_bytes()
    assert sum(path.stat().st_size for path in record.iterdir()) < 60_000 and not (done / "evaluation.jsonl").exists()
