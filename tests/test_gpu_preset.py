"""The benchmark's `gpu` preset at reduced size on a CPU: all ten methods on both domains' real data and episodes, in pieces."""

from dataclasses import fields, replace

import pytest
from test_baselines import SMALL

from tql import benchmark as bench
from tql.config import METHODS, ActorConfig, CriticConfig
from tql.study import read_lines

STEPS = 40


def reduced(config):
    """The same run with small networks, few updates and little data."""
    there = {field.name for field in fields(config)}
    small = {name: x for name, x in SMALL.items() if name in there}
    if config.method == "tql":
        small = dict(warmup=1, critic=CriticConfig(d_model=32, layers=2), actor=ActorConfig(hidden=(7,), flow_steps=2))
    every = dict(updates_per_call=5, log_every=10, checkpoint_every=10, evaluate_every=STEPS, episodes=1, dataset_episodes=2)
    return replace(config, **dict(steps=STEPS, batch_size=16) | every | small)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_all_methods_in_pieces_that_continue_each_other(monkeypatch, tmp_path):
    # The rewards of task 4 vary in two episodes.
    members = {name: reduced(config) for name, config in bench.MEMBERS["gpu"]().items() if "task4" in name}
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setitem(bench.MEMBERS, "gpu", lambda: members)
    pieces, missing = 0, list(members)
    while missing and pieces < 20:
        outcome = bench.benchmark("gpu", "", 1.0, None, False, tmp_path / "records")
        assert outcome.failed == [] and len(outcome.missing) <= len(missing)
        pieces, missing = pieces + 1, outcome.missing
    assert not missing and pieces > 1
    assert {name.split("/")[1] for name in outcome.done} == {f"{method}-seed0" for method in METHODS}
    for name in members:
        record = tmp_path / "records" / "gpu" / name
        assert read_lines(record / "metrics.jsonl")[-1]["step"] == STEPS
        assert {row["step"] for row in read_lines(record / "evaluation.jsonl")} == {STEPS}
