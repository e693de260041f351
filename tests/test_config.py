"""Names of tasks as OGBench has them, settings that cannot be run refused by name, and presets with the paper's values."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import ogbench  # noqa: F401  (registers its environments)
import pytest
from gymnasium.envs.registration import registry
from hypothesis import given, settings
from hypothesis import strategies as st

from tql.config import PRESETS, ActorConfig, Config, ControlConfig, CriticConfig, Task, Variant, task_names
from tql.entropy_controller import default_target
from tql.run_directory import config_from_dict, differences

CUBE = "cube-double-play-singletask-task2-v0"

PAPER = {  # domain: targets in nats, alpha_bc, learning rate of the critic and of the temperatures (paper, sections 3 and 5)
    "cube-double": (((3.0, 3.0), (2.5, 2.5)), 300.0, 1e-4),
    "cube-triple": (((3.5, 3.5), (3.0, 3.0)), 300.0, 4e-4),
    "scene": (((3.5, 3.5), (3.0, 3.0)), 300.0, 1e-4),
    "puzzle-3x3": (((3.5, 3.5), (3.0, 3.0)), 1000.0, 1e-4),
    "puzzle-4x4": (((3.5, 3.5), (3.0, 3.0)), 1000.0, 1e-4),
}
TOKENS = {"cube-double": 43, "cube-triple": 52, "scene": 46, "puzzle-3x3": 61, "puzzle-4x4": 89}


# Tasks.


@pytest.mark.parametrize("name", task_names())
def test_every_name_is_ogbench_s_own(name):
    task = Task.parse(name)
    assert task.name == name and task.env_name in registry
    assert name in (task.dataset_name, task.single_task_name)


def test_parts_of_a_name():
    task = Task.parse("puzzle-3x3-noisy-singletask-task4-v0")
    assert (task.domain, task.kind, task.task_id) == ("puzzle-3x3", "noisy", 4)
    assert task.dataset_name == "puzzle-3x3-noisy-v0"
    assert task.single_task_name == "puzzle-3x3-noisy-singletask-task4-v0"
    assert task.env_name == "puzzle-3x3-singletask-task4-v0"
    default = Task.parse("scene-play-v0")
    assert (default.task_id, default.single_task_name, default.env_name) == (None, "scene-play-singletask-v0", "scene-singletask-v0")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cube-doubel-play-v0", "cube-double-play-v0"),
        ("cube-double-play-singletask-task6-v0", "cube-double-play-singletask-task5-v0"),
        ("pointmaze-medium-play-v0", "pointmaze-medium-navigate-v0"),
        ("scene-play-singletask-task1-v1", "scene-play-singletask-task1-v0"),
        ("scene-play", "scene-play-v0"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(wrong, right):
    with pytest.raises(ValueError, match=f"there is no task '{wrong}'; the nearest name is '") as error:
        Task.parse(wrong)
    near = str(error.value).split("'")[3]
    assert near in task_names() and (near == right or "task6" in wrong and near[:-4] == right[:-4])


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_other_text_is_refused_with_a_name_that_exists(text):
    with pytest.raises(ValueError) as error:
        Task.parse(text)
    assert str(error.value).rsplit("'", 2)[1] in task_names()


# Settings.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(task="cube-single"), "there is no task 'cube-single'"),
        (dict(steps=0), "steps is 0; it must be at least 1"),
        (dict(log_every=-5), "log_every is -5; it must be at least 1"),
        (dict(checkpoint_every=0), "checkpoint_every is 0"),
        (dict(evaluate_every=0), "evaluate_every is 0"),
        (dict(updates_per_call=0), "updates_per_call is 0"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(episodes=-1), "episodes is -1; it must be at least 0"),
        (dict(steps=1_000_001), "steps 1000001 is no multiple of updates_per_call 50"),
        (dict(log_every=75), "log_every 75 is no multiple of updates_per_call 50"),
        (dict(checkpoint_every=51), "checkpoint_every 51 is no multiple"),
        (dict(evaluate_every=49), "evaluate_every 49 is no multiple"),
        (dict(dataset_episodes=0), "dataset_episodes is 0; it must be at least 1"),
        (dict(critic=CriticConfig(d_model=0)), "critic.d_model is 0; it must be at least 1"),
        (dict(critic=CriticConfig(heads=0)), "critic.heads is 0"),
        (dict(actor=ActorConfig(flow_steps=0)), "actor.flow_steps is 0"),
        (dict(actor=ActorConfig(hidden=(16, 0))), "actor.hidden is 0"),
        (dict(actor=ActorConfig(alpha_bc=-1.0)), "actor.alpha_bc is -1.0; it must be at least 0"),
        (dict(control=ControlConfig(coefficient=math.inf)), "control.coefficient is inf; it must be at least 0, and finite"),
        (dict(control=ControlConfig(clip=(1.0, 0.5))), r"control.clip is \(1.0, 0.5\); give the least temperature first"),
        (dict(seed=-1), "seed is -1; it must be at least 0"),
        (dict(warmup=-1), "warmup is -1"),
        (dict(critic_lr=-1e-4), "critic_lr is -0.0001"),
        (dict(actor_lr=math.nan), "actor_lr is nan; it must be at least 0, and finite"),
        (dict(temperature_lr=math.inf), "temperature_lr is inf"),
        (dict(weight_decay=-0.1), "weight_decay is -0.1"),
        (dict(discount=1.0), r"discount 1.0 must lie in \[0, 1\)"),
        (dict(discount=-0.1), "discount -0.1"),
        (dict(discount=math.nan), "discount nan"),
        (dict(tau=0.0), r"tau 0.0 in \(0, 1\]"),
        (dict(tau=1.1), "tau 1.1"),
        (dict(critic=CriticConfig(layers=3), control=ControlConfig(target=((1.0, 1.0),))), "has 1 pairs for 3 layers"),
        (dict(warmup=500_000), "steps 1000000 leave no room for the cosine after a warm-up of 500000"),
    ],
)
def test_a_setting_that_cannot_be_run_is_named_with_its_value(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**dict(task=CUBE) | change)


def test_settings_at_their_limits_are_taken():
    Config(task=CUBE, steps=3, warmup=1, updates_per_call=1, log_every=1, checkpoint_every=1, evaluate_every=1, batch_size=1)
    Config(task=CUBE, discount=0.0, tau=1.0)


pairs = st.tuples(st.floats(0.1, 3), st.floats(0.1, 3))
sizes = dict(d_model=st.integers(1, 4096), layers=st.integers(1, 4), heads=st.none() | st.integers(1, 32))
critics = st.fixed_dictionaries(sizes | dict(variant=st.sampled_from(get_args(Variant))))
actors = st.fixed_dictionaries(dict(kind=st.sampled_from(["flow", "dataset"]), hidden=st.lists(st.integers(1, 600), max_size=4).map(tuple)))
targets = st.none() | st.lists(pairs, min_size=1, max_size=3).map(tuple)
kinds = ["none", "fixed", "single", "tql", "clipped", "signed"]
clips = st.tuples(st.floats(-100, 0), st.floats(0, 100))
controls = st.fixed_dictionaries(dict(kind=st.sampled_from(kinds), target=targets, clip=clips))
others = st.fixed_dictionaries(dict(seed=st.integers(0, 2**31), tau=st.floats(1e-6, 1), critic_lr=st.floats(1e-9, 1)))


@settings(deadline=None)
@given(critics, actors, controls, others)
def test_settings_come_back_from_json(critic, actor, control, other):
    layers = len(control["target"] or ()) or critic["layers"]
    parts = dict(critic=CriticConfig(**critic | {"layers": layers}), actor=ActorConfig(**actor), control=ControlConfig(**control))
    config = Config(task=CUBE, **parts, **other)
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("name", [field.name for field in fields(Config) if field.name not in ("task", "critic", "actor", "control")])
def test_every_difference_is_named(name):
    config = Config(task=CUBE)
    value = getattr(config, name)
    other = {"updates_per_call": 25, "aggregate": "min"}.get(name)
    changed = replace(config, **{name: other or (value / 2 if isinstance(value, float) else (value or 0) + 50)})
    assert differences(changed, config) == [f"{name}: {getattr(changed, name)} instead of {value}"]
    assert differences(config, config) == []


def test_differences_of_the_parts_are_named_with_the_part():
    config = Config(task=CUBE)
    changed = replace(config, actor=ActorConfig(alpha_bc=7.0), control=ControlConfig(kind="none", target=config.control.target))
    assert differences(changed, config) == ["actor.alpha_bc: 7.0 instead of 300.0", "control.kind: none instead of tql"]


# Presets.


@pytest.mark.parametrize("domain", PAPER)
@pytest.mark.parametrize(("size", "d_model"), [("0.4M", 128), ("1M", 256), ("7M", 512), ("26M", 1024)])
def test_the_paper_s_settings(domain, size, d_model):
    target, alpha_bc, rate = PAPER[domain]
    config = PRESETS[f"paper-{size}"](f"{domain}-play-singletask-task1-v0")
    assert config.critic == CriticConfig(d_model=d_model, layers=2, heads=None, ensemble=2)
    assert config.actor == ActorConfig(kind="flow", hidden=(512, 512, 512, 512), flow_steps=10, alpha_bc=alpha_bc)
    assert (config.control.kind, config.control.target) == ("tql", target)
    assert (config.critic_lr, config.temperature_lr, config.actor_lr) == (rate, rate, 5e-4)
    assert (config.batch_size, config.discount, config.tau, config.weight_decay) == (256, 0.99, 0.005, 0.01)
    assert (config.steps, config.warmup, config.evaluate_every, config.episodes) == (1_000_000, 10_000, 100_000, 50)


@pytest.mark.parametrize(("domain", "first"), [("cube-double", 3.01), ("scene", 3.06), ("cube-triple", 3.16), ("puzzle-3x3", 3.29)])
def test_the_first_guess_of_the_target(domain, first):
    """The heuristic's values in the paper; elsewhere it stands in for a searched target."""
    target = default_target(TOKENS[domain] - 6, 5, 2)
    assert [round(value, 2) for value in target[0]] == [first, first]
    assert target[1] == (target[0][0] - 0.5,) * 2
    assert PRESETS["paper-7M"]("cube-single-play-v0").control.target is None


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", ["cube-single-noisy-singletask-task3-v0", CUBE, "pointmaze-large-navigate-singletask-v0"])
def test_every_preset_takes_every_task(preset, task):
    config = PRESETS[preset](task)
    assert config.task == task and config.control.kind == "tql"
    assert (config.actor.kind == "dataset") == (preset == "cpu-sarsa")


def test_settings_are_read_without_jax_and_simulator():
    check = "import sys, tql.config; assert not {'jax', 'mujoco', 'gymnasium', 'ogbench'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[1])
