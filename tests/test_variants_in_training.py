"""Every variant of the critic through compiled training and through a checkpoint."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from tql import loop
from tql.checkpoint import CheckpointError, load, named_arrays, save
from tql.config import ActorConfig, Config, ControlConfig, CriticConfig, Variant
from tql.data import Batch

N_S, N_A = 3, 2


def config_of(variant):
    return Config(
        task="cube-single-play-singletask-task1-v0",
        steps=40,
        warmup=3,
        batch_size=5,
        updates_per_call=2,
        critic_lr=1e-2,
        critic=CriticConfig(d_model=10, heads=2, layers=1, ensemble=1, variant=variant),
        actor=ActorConfig(kind="dataset"),
        control=ControlConfig(target=((1.0, 1.2),)),
    )


@pytest.mark.parametrize("variant", [name for name in get_args(Variant) if name != "plain"])
def test_every_variant_trains_and_comes_back_from_disk(variant, tmp_path, optax_promotion):
    """Two updates: every array of the critic has moved. Saved, loaded, the same; and no other variant's settings take it."""
    rng, config = np.random.default_rng(3), config_of(variant)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    data = Batch(draw(13, N_S), draw(13, N_A), draw(13), jnp.ones(13), draw(13, N_S), draw(13, N_A))
    agent = loop.initialise(N_S, N_A, config)
    before = {name: x.copy() for name, x in named_arrays(agent).items()}  # the agent's own memory is donated
    agent, metrics = loop.train_chunk((data, 2), agent)
    assert np.isfinite(metrics["td_loss"]).all() and int(agent.step) == 2
    after = named_arrays(agent)
    still = {name for name in after if name.startswith("critic.") and np.array_equal(before[name], after[name])}
    assert still == set()

    save(tmp_path / "saved", agent)
    again = named_arrays(load(tmp_path / "saved", config))
    assert again.keys() == after.keys() and all(np.array_equal(again[name], after[name]) for name in after)
    with pytest.raises(CheckpointError, match="missing arrays|unknown arrays|but these settings need"):
        load(tmp_path / "saved", config_of("rms-norm" if variant in ("plain", "softcap") else "plain"))
