"""One run on several devices, here virtual ones of the CPU, in programs of their own: a process has
its devices once and for all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import MAZE, TINY_OPTIONS
from jax.sharding import PartitionSpec as P

from tql.optimise import Learner
from tql.training.checkpoint import named_arrays
from tql.training.chunk import train_chunk
from tql.training.devices import LARGE, ask_for_devices, layout, mesh_of, on_one_device, spread
from tql.training.run import start_run
from tql.training.run_directory import read_metrics, trained_agent

pytestmark = pytest.mark.usefixtures("optax_promotion")

ROOT = Path(__file__).parents[1]

PROGRAM = """
import runpy, sys
import jax
sys.path.insert(0, {tests!r})
from conftest import scripted_episodes
import tql.training.chunk as chunks, tql.training.run as run

jax.config.update("jax_numpy_dtype_promotion", "standard")
run.run_episodes = scripted_episodes
train, original = run.train, run.train_chunk

class Counted:
    def lower(self, inputs, agent):
        state = max(jax.tree.leaves(agent.critic.optimiser_state), key=lambda x: x.size)
        self.part = state.addressable_shards[0].data.size / state.size
        self.lowered = original.lower(inputs, agent)
        return self

    def compile(self):
        chunk = self.lowered.compile()
        flops = chunk.compiled.cost_analysis()["flops"]
        print("COUNTED", flops, len(jax.devices()), self.part, flush=True)
        return chunk

run.train_chunk = Counted()
run.train = lambda *a, **k: train(*a, **k, until={until})
{mutant}
sys.argv = ["tql", *{arguments!r}]
runpy.run_module("tql", run_name="__main__")
"""


def train(run: Path, dataset: Path, *options: str, until: int = 40, mutant: str = "") -> dict:
    """`tql train` on a tiny task, with a matrix that is large enough to be cut. What was counted of
    its program: operations, devices, and the part of that matrix's state on the first device."""
    sizes = [*TINY_OPTIONS, "--critic.d-model", "128", "--batch-size", "8"]
    arguments = ["train", MAZE, *sizes, "--data", str(dataset), "--out", str(run), *options]
    words = dict(tests=str(ROOT / "tests"), arguments=arguments, until=until, mutant=mutant)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", PROGRAM.format(**words)]
    done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    counted = re.search(r"COUNTED (\S+) (\S+) (\S+)", done.stdout).groups()
    return dict(zip(("flops", "devices", "part"), map(float, counted)))


def assert_same_numbers(ours: Path, theirs: Path):
    """To 1e-5, metrics and weights. The bias of the keys is left out: softmax takes no notice of
    it, so its gradient is rounding alone, and Adam makes steps of it."""
    for a, b in zip(read_metrics(ours), read_metrics(theirs), strict=True):
        for name in a.keys() - {"time"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)
    arrays, others = named_arrays(trained_agent(ours)), named_arrays(trained_agent(theirs))
    for name, array in arrays.items():
        if "optimiser_state" not in name and "attention.key.bias" not in name:
            np.testing.assert_allclose(array, others[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_run_on_four_devices_then_one_then_two_makes_the_numbers_of_one(tmp_path, maze_file):
    """Each of four has a quarter of the batch to compute (draws of random numbers and AdamW on small
    arrays are not shared out), and a quarter of the large matrices' state to keep."""
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    one = train(alone, maze_file)
    four = train(moved, maze_file, "--devices", "4", until=20)
    assert (one["devices"], one["part"], four["devices"], four["part"]) == (1, 1, 4, 0.25)
    assert 0.24 < four["flops"] / one["flops"] < 0.35
    again = train(moved, maze_file, "--resume", until=30)
    assert again == one
    two = train(moved, maze_file, "--devices", "2", "--resume")
    assert (two["devices"], two["part"]) == (2, 0.5)
    assert_same_numbers(moved, alone)


@pytest.mark.slow
def test_without_its_constraint_a_batch_is_not_shared_out(tmp_path, maze_file):
    mutant = "chunks.share_out = lambda batch: batch"
    one, four = train(tmp_path / "one", maze_file, until=10), {}
    four = train(tmp_path / "four", maze_file, "--devices", "4", until=10, mutant=mutant)
    assert four["flops"] / one["flops"] > 0.9


@pytest.mark.parametrize(
    ("devices", "words"),
    [(3, "must divide 8"), (0, "must divide 8"), (8, f"there are {len(jax.devices())} ")],
)
def test_numbers_of_devices_that_cannot_be_are_refused(devices, words):
    with pytest.raises(ValueError, match=words):
        ask_for_devices(devices, 8)


def test_only_large_matrices_of_the_optimisers_state_are_cut():
    """Along their first axis that four devices share evenly; a plain number has none."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, float)
    assert LARGE == 65536
    arrays = [shape(128, 512), shape(129, 512), shape(129, 513), shape(128, 511), shape(65536)]
    specs = layout(Learner(arrays, arrays), 4)
    assert specs.optimiser_state == [P("batch"), P(None, "batch"), P(), P(), P()]
    assert specs.model == [P()] * 5


def test_without_devices_nothing_is_constrained(tiny, maze_file, tmp_path):
    """The program of a plain run knows nothing of devices."""
    agent, data = start_run(tiny, maze_file, tmp_path / "run")
    assert spread(agent, data, 1) == (agent, data) and on_one_device(agent) is agent
    with mesh_of(agent):
        program = train_chunk.lower((data, tiny.updates_per_call), agent).as_text()
    assert "sharding" not in program
