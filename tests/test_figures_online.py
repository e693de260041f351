"""The preset of online phases, the order in which the runner makes them, and their picture."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

import online as picture
import presets
import run as runner
from records import Evaluation, Record

from tql.analysis.online_study import OnlinePhase
from tql.training.methods import as_json
from tql.training.run_directory import DatasetFile

RUNS = presets.PRESETS["online"]()


def test_every_phase_goes_on_from_a_run_of_its_own_seed():
    offline = {name: x for name, x in RUNS.items() if not isinstance(x, OnlinePhase)}
    phases = {name: x for name, x in RUNS.items() if isinstance(x, OnlinePhase)}
    assert (len(offline), len(phases), len(set(phases.values()))) == (6, 24, 24)
    assert {x.seed for x in offline.values()} == {x.dataset_seed for x in offline.values()}
    assert {x.seed for x in offline.values()} == {200, 201, 202}
    for name, phase in phases.items():
        _, control, ratio, kind, seed = name.split("-")
        assert phase.before == f"before-{control}-{seed}" and phase.config == offline[phase.before]
        assert phase.config.control.kind == control
        online = phase.online
        assert online.updates_per_step == int(ratio[1:])
        assert online.reset_every == dict(never=0, critic=5000)[kind] and online.reset == "critic"
        assert online.buffer_size == 120_000 + online.environment_steps
        assert online.reset_every == 0 or online.environment_steps > 2 * online.reset_every


def test_no_other_preset_has_these_seeds():
    seeds = set()
    for name, runs in presets.PRESETS.items():
        seeds |= {x.seed for x in runs().values()} if name != "online" else set()
    assert not seeds & set(presets.ONLINE_SEEDS)


def test_a_phase_starts_once_the_run_before_it_is_done(monkeypatch, tmp_path):
    done = set()
    monkeypatch.setattr(runner, "is_complete", lambda run, config: run.name in done)
    first = [(name, x) for name, x in RUNS.items() if name.endswith("seed200")]
    waiting, running = list(first), {}
    for _ in range(2):
        name, config = runner.next_run(waiting, running, tmp_path)
        assert name.startswith("before-")
        waiting.remove((name, config))
        running[name] = name
    assert runner.next_run(waiting, running, tmp_path) is None
    done.add("before-tql-seed200")
    assert runner.next_run(waiting, running, tmp_path) is None, "it still looks at its critic"
    del running["before-tql-seed200"]
    name, config = runner.next_run(waiting, running, tmp_path)
    assert config.before == "before-tql-seed200"


def made_up(name: str, phase: OnlinePhase) -> Record:
    """A phase whose success rises with its steps, and whose entropy says which arm it is."""
    rng, online = np.random.default_rng(len(name)), phase.online
    config = as_json(phase.config) | {"online": vars(online)}
    at = lambda t: phase.config.steps + t * online.updates_per_step
    ends = [at(t) for t in range(1000, online.environment_steps + 1, 1000)]
    learnt = [
        Evaluation("learning", step, (True,) * i + (False,) * (15 - i), (0.0,) * 15, (7,) * 15)
        for i, step in enumerate(ends)
    ]
    level = 2.0 if phase.config.control.kind == "none" else 3.0
    entropy = (level + 0.1 * rng.random((len(ends), 2, 2))).tolist()
    metrics = {"step": tuple(ends), "entropy": entropy}
    return Record(
        *(name, config, DatasetFile("x.npz", "0"), {}, "cpu", 1.0, None, {}, metrics, {}),
        *(tuple(learnt), None),
    )


def test_the_picture_shows_every_arm_over_environment_steps():
    records = [made_up(name, x) for name, x in RUNS.items() if isinstance(x, OnlinePhase)]
    figure = picture.draw(records)
    for column in (0, 1):
        success, entropy = figure.axes[column], figure.axes[2 + column]
        thick = [line for line in success.lines if line.get_linewidth() > 2]
        assert len(thick) == 4 and len(success.lines) == 4 + 12 + 2
        assert list(thick[0].get_xdata()) == list(range(1, 16))
        np.testing.assert_allclose(thick[0].get_ydata(), [100 * i / 15 for i in range(15)])
        dates = [line.get_xdata()[0] for line in success.lines if line.get_linestyle() == ":"]
        assert dates == [5, 10]
        levels = [np.mean(x.get_ydata()) for x in entropy.lines if x.get_linewidth() > 2]
        np.testing.assert_allclose(levels, [2.05, 2.05, 3.05, 3.05], atol=0.03)
    missing = [x for x in records if "online-tql-x4-critic" not in x.name]
    with pytest.raises(SystemExit, match="no run with label online-tql-x4-critic"):
        picture.draw(missing)


def test_the_estimate_counts_the_updates_of_a_phase(optax_promotion):
    phase = RUNS["online-tql-x4-never-seed200"]
    one = runner.flops_of(runner.kind(phase.config))
    assert runner.flops_in_all(phase, None) == one * 4 * phase.online.environment_steps
    assert runner.flops_in_all(phase.config, None) == one * 18_000
    assert runner.flops_in_all(replace(phase.config, steps=20_000), 500) == 500 * runner.flops_of(
        replace(runner.kind(phase.config), steps=20_000)
    )
