"""Every variant of the critic through compiled training and through a checkpoint."""

from typing import get_args

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql import loop
from tql.checkpoint import CheckpointError, load, named_arrays, save
from tql.config import ActorConfig, Config, ControlConfig, CriticConfig, Variant
from tql.critic import Critic
from tql.data import Batch
from tql.variants import QKNormAttention

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


def test_a_critic_of_ones_own_is_trained_by_the_loop(optax_promotion):
    """The README's line: the agent has it, as target too, and an update moves it."""
    own = lambda n_s, n_a, c, key: Critic(n_s, n_a, d_model=10, heads=2, layers=1, make_attention=QKNormAttention, key=key)
    agent = loop.initialise(N_S, N_A, config_of("plain"), make_critic=own)
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.array(rng.uniform(-1, 1, shape), jnp.float32)
    batch = Batch(draw(5, N_S), draw(5, N_A), draw(5), jnp.ones(5), draw(5, N_S), draw(5, N_A))
    after, metrics = loop.update(agent, batch, jr.key(1))
    assert np.isfinite(metrics["td_loss"])
    for critic in (agent.critic, agent.target_critic, after.critic):
        assert isinstance(critic.blocks[0].attention, QKNormAttention)
    assert not np.array_equal(agent.critic.blocks[0].attention.query_norm.weight, after.critic.blocks[0].attention.query_norm.weight)
