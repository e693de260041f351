"""Resets: parts of an agent become what they are in a fresh one."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import GetAttrKey

from tql.agent import AbstractAgent
from tql.loop import TQL
from tql.training.methods import new_agent

PARTS = {
    "critic": ("critic", "target_critic"),
    "heads": ("critic", "target_critic"),
    "all": ("critic", "target_critic", "actor", "controller"),
}
"""By what is reset: the fields of the agent in which it lies. Of these, `heads` takes the Q heads
alone, with what the optimiser remembers of them; the optimiser's count of its steps, on which the
learning rate depends, is that of the whole critic and goes on. In the other two it starts again."""


def check_reset(agent: AbstractAgent, what: str) -> None:
    """Raises `ValueError` for a method of which it is not known what to reset."""
    if not isinstance(agent, TQL):
        name = agent.config.method
        raise ValueError(f"resetting '{what}' is defined for tql alone, not for {name}.")


def reset(agent: TQL, what: str, environment_step: int) -> TQL:
    """The agent in which `what` is as in a fresh agent, whose seed comes from the run's seed and
    the number of environment steps. Its count of updates and its settings stay."""
    config = replace(agent.config, seed=_seed(agent, environment_step))
    fresh = new_agent(agent.n_s, agent.n_a, config)
    arrays, rest = eqx.partition(agent, eqx.is_array)
    new = eqx.filter(replace(fresh, config=agent.config), eqx.is_array)
    pick = lambda path, old, new: new if _is_reset(path, what) else old
    return eqx.combine(jax.tree_util.tree_map_with_path(pick, arrays, new), rest)


def _seed(agent: TQL, environment_step: int) -> int:
    """Evaluations have spawn keys of one number, so that this seed is not one of theirs."""
    sequence = np.random.SeedSequence(agent.config.seed, spawn_key=(environment_step, 2))
    return int(sequence.generate_state(1)[0])


def _is_reset(path: tuple, what: str) -> bool:
    names = [key.name for key in path if isinstance(key, GetAttrKey)]
    return names[0] in PARTS[what] and (what != "heads" or "q_heads" in names)
