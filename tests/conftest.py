"""Strict numerics for every test: no silent dtype promotion, no silent broadcasting over ranks."""

import itertools
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite compiles far longer than it computes: tiny sizes, many programs.
jax.config.update("jax_disable_most_optimizations", True)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def getkey():
    """A function that returns a fresh key on every call; the seed is fixed."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20260201), next(counter))


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optax_promotion():
    """optax's Adam raises a float to an int32 power, which strict promotion forbids; for tests that step an optimiser."""
    with jax.numpy_dtype_promotion("standard"):
        yield
