"""One run on several devices, here virtual ones of the CPU, in programs of their own: a process has
its devices once and for all."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MAZE, TINY_OPTIONS
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tql.optimise import Learner
from tql.training.checkpoint import named_arrays
from tql.training.devices import (
    LARGE,
    ask_for_devices,
    keep_layout,
    layout,
    mesh_of,
    on_one_device,
    share_out,
    spread,
)
from tql.training.methods import new_agent
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


def start(
    run: Path, dataset: Path, *options: str, until: int = 40, mutant: str = "", **variables: str
) -> subprocess.Popen:
    """`tql train` on a tiny task, with a matrix that is large enough to be cut."""
    sizes = [*TINY_OPTIONS, "--critic.d-model", "128", "--batch-size", "8"]
    arguments = ["train", MAZE, *sizes, "--data", str(dataset), "--out", str(run), *options]
    words = dict(tests=str(ROOT / "tests"), arguments=arguments, until=until, mutant=mutant)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"} | variables
    command = [sys.executable, "-c", PROGRAM.format(**words)]
    how = dict(env=environment, cwd=run.parent, text=True)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def train(run: Path, dataset: Path, *options: str, **how) -> dict:
    """`start` to its end. What was counted of its program: operations, devices, and the part of the
    largest matrix's state that is on the first device."""
    process = start(run, dataset, *options, **how)
    said, wrong = process.communicate()
    assert process.returncode == 0, f"{said[-2000:]}\n{wrong[-4000:]}"
    counted = re.search(r"COUNTED (\S+) (\S+) (\S+)", said).groups()
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory, maze_file):
    """A run on one device, and what was counted of it."""
    run = tmp_path_factory.mktemp("devices") / "alone"
    return run, train(run, maze_file)


@pytest.mark.slow
def test_a_run_on_four_devices_then_one_then_two_makes_the_numbers_of_one(
    alone, tmp_path, maze_file
):
    """Each of four has a quarter of the batch to compute and a quarter of the large matrices' state
    to keep. Draws of random numbers and AdamW on small arrays are not shared out."""
    (run, one), moved = alone, tmp_path / "moved"
    four = train(moved, maze_file, "--devices", "4", until=20)
    assert (one["devices"], one["part"], four["devices"], four["part"]) == (1, 1, 4, 0.25)
    assert 0.24 < four["flops"] / one["flops"] < 0.35
    again = train(moved, maze_file, "--resume", until=30)
    assert again == one
    two = train(moved, maze_file, "--devices", "2", "--resume")
    assert (two["devices"], two["part"]) == (2, 0.5)
    assert_same_numbers(moved, run)


def test_two_devices_make_the_numbers_of_one(alone, tmp_path, maze_file):
    run, one = alone
    two = train(tmp_path / "two", maze_file, "--devices", "2")
    assert 0.49 < two["flops"] / one["flops"] < 0.6 and two["part"] == 0.5
    assert_same_numbers(tmp_path / "two", run)


@pytest.mark.slow
def test_without_its_constraint_a_batch_is_not_shared_out(alone, tmp_path, maze_file):
    mutant = "chunks.share_out = lambda batch: batch"
    four = train(tmp_path / "four", maze_file, "--devices", "4", until=10, mutant=mutant)
    assert four["flops"] / alone[1]["flops"] > 0.9


@pytest.mark.slow
def test_two_processes_make_the_numbers_of_one_and_the_first_writes(alone, tmp_path, maze_file):
    """Two devices each; one device goes on from their checkpoint. The second process could write
    neither a checkpoint nor `config.json`: here it has nothing to write them with."""
    run, folder = alone[0], tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    options = folder, maze_file, "--devices", "4"
    no_pen = "import tql.training.checkpoint as c, tql.training.run_directory as d\n"
    no_pen += "c.whole_file = d.whole_file = None"
    both = [
        start(*options, until=20, mutant=mutant, **where, JAX_PROCESS_ID=str(i))
        for i, mutant in enumerate(("", no_pen))
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "plot: " in said[0][0] and "plot: " not in said[1][0]
    assert [line["step"] for line in read_metrics(folder)] == [5, 10, 15, 20]
    train(folder, maze_file, "--resume")
    assert_same_numbers(folder, run)


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


def test_without_devices_nothing_is_constrained(tiny):
    """Alone, every function gives back what it was given; in a mesh it does not."""
    agent, batch = new_agent(2, 2, tiny), {"x": jnp.ones((7, 3))}
    assert spread(agent, batch, 1) == (agent, batch) and on_one_device(agent) is agent
    assert isinstance(mesh_of(agent), contextlib.nullcontext)
    assert share_out(batch) is batch and keep_layout(batch) is batch
    assert "mesh" not in jax.jit(share_out).lower(batch).as_text()
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), (AxisType.Auto,))):
        assert "mesh" in jax.jit(share_out).lower(batch).as_text()
