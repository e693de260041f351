"""One run on several devices, here virtual ones of the CPU, in programs of their own: a process has
its devices once and for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import MAZE, TINY_OPTIONS
from jax.sharding import PartitionSpec as P

from tql.training.checkpoint import named_arrays
from tql.training.devices import LARGE, ask_for_devices, layout
from tql.training.run_directory import checkpoint_steps, read_metrics, trained_agent

ROOT = Path(__file__).parents[1]

PROGRAM = """
import runpy, sys
import jax
sys.path.insert(0, {tests!r})
from conftest import scripted_episodes
import tql.training.run as run

jax.config.update("jax_disable_most_optimizations", True)
run.run_episodes = scripted_episodes
compiled, original = [], run.train_chunk

class Counted:
    def lower(self, inputs, agent):
        self.lowered = original.lower(inputs, agent)
        return self

    def compile(self):
        chunk = self.lowered.compile()
        costs = chunk.compiled.cost_analysis()
        state = max(jax.tree.leaves(run_agent[0].critic.optimiser_state), key=lambda x: x.size)
        part = state.addressable_shards[0].data.size / state.size
        print("COUNTED", costs["flops"], len(jax.devices()), part, flush=True)
        return chunk

run_agent = []
run.train_chunk = Counted()
whole = run.train
run.train = lambda agent, *a, **k: (run_agent.append(agent), whole(agent, *a, **k))[1]
{mutant}
sys.argv = ["tql", *{arguments!r}]
runpy.run_module("tql", run_name="__main__")
"""


def train(run: Path, dataset: Path, devices: int, *options: str, mutant: str = "") -> dict:
    """`tql train --devices N` on a tiny task, with a matrix that is large enough to be cut. What was
    counted of its program: operations, devices, and the part of that matrix's state on the first
    device."""
    sizes = [*TINY_OPTIONS, "--critic.d-model", "128", "--batch-size", "8", "--episodes", "3"]
    arguments = ["train", MAZE, *sizes, "--data", str(dataset), "--out", str(run), *options]
    arguments += ["--devices", str(devices)]
    program = PROGRAM.format(tests=str(ROOT / "tests"), arguments=arguments, mutant=mutant)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    counted = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("COUNTED")]
    names = ("flops", "devices", "part")
    return dict(zip(names, map(float, counted[0])))


def assert_same_numbers(ours: Path, theirs: Path):
    """To 1e-5, metrics and weights. The bias of the keys is left out: softmax takes no notice of it,
    so its gradient is rounding alone, and Adam makes steps of it."""
    for a, b in zip(read_metrics(ours), read_metrics(theirs), strict=True):
        for name in a.keys() - {"time"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)
    arrays, others = named_arrays(trained_agent(ours)), named_arrays(trained_agent(theirs))
    for name, array in arrays.items():
        if "optimiser_state" not in name and "attention.key.bias" not in name:
            np.testing.assert_allclose(array, others[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, maze_file):
    """A run on one device, and what was counted of it."""
    run = tmp_path_factory.mktemp("devices") / "one"
    return run, train(run, maze_file, 1)


def test_four_devices_make_the_same_numbers_with_a_quarter_of_the_work(alone, tmp_path, maze_file):
    """Each of them has a quarter of the batch to compute and of the optimiser's large matrices to
    keep. Draws of random numbers and the optimiser's small arrays are not shared out."""
    run, one = alone
    four = train(tmp_path / "four", maze_file, 4)
    assert (one["devices"], one["part"], four["devices"], four["part"]) == (1, 1, 4, 0.25)
    assert 0.24 < four["flops"] / one["flops"] < 0.35
    assert_same_numbers(tmp_path / "four", run)
