"""Every module's types are checked on every call."""

from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import pytest
from jaxtyping import TypeCheckError

import tql
from tql.autoregressive_q import AutoregressiveQ
from tql.perceiver import PerceiverCritic
from tql.value_flow import ValueFlow


def test_every_module_is_under_a_type_checking_hook():
    """The command line checks what it is given itself."""
    here = Path(tql.__file__).parent
    modules = {f"tql.{path.stem}" for path in here.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"tql.__init__", "tql.__main__"} == {*tql._WITH_JAX, *tql._WITHOUT_JAX}
    assert not {*tql._WITH_JAX} & {*tql._WITHOUT_JAX}


@pytest.mark.parametrize(
    "call",
    [
        lambda: ValueFlow(3, 2, (5,), key=jr.key(0))(jnp.ones(3), jnp.ones(2), jnp.ones((3, 50)), jnp.ones(())),
        lambda: AutoregressiveQ(3, 2, bins=7, d_model=4, layers=1, heads=2, key=jr.key(0))(jnp.ones(4), jnp.zeros(2, int)),
        lambda: PerceiverCritic(3, 2, d_model=8, latents=5, latent_blocks=1, v_min=-3.0, key=jr.key(0))(jnp.ones(3), jnp.ones(3)),
    ],
    ids=["value-flow", "autoregressive-q", "perceiver"],
)
def test_a_wrong_shape_fails_at_the_door(call):
    with pytest.raises(TypeCheckError):
        call()
