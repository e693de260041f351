"""What a checkpoint of an online phase holds: the agent, the transitions that it made, and where
the environment is."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tql.agent import AbstractAgent
from tql.batch import Transition
from tql.training.methods import new_agent
from tql.training.online_config import AnyConfig, Finetuning, span


class Snapshot(eqx.Module):
    """The dataset is not in it, because its file is still there. Neither is the simulator's state:
    an episode is a function of its seed and its actions, so it is played again."""

    agent: AbstractAgent
    rows: Transition
    """The places of the ring in which the transitions of the environment are, or will be."""
    episode: Int[Array, ""]  # Number of the episode that the agent acts in, from 0.
    length: Int[Array, ""]  # Environment steps made in it.
    s: Float[Array, " n_s"]  # What it observes.
    config: Finetuning = eqx.field(static=True)

    @property
    def step(self) -> Int[Array, ""]:
        """Gradient updates, as of every agent; those of the training before are counted."""
        return self.agent.step

    @property
    def environment_steps(self) -> int:
        first, _, _ = span(self.config)
        return (int(self.agent.step) - first) // self.config.online.updates_per_step

    @property
    def n_s(self) -> int:
        return self.agent.n_s

    @property
    def n_a(self) -> int:
        return self.agent.n_a


AnyState = AbstractAgent | Snapshot


def fresh_snapshot(agent: AbstractAgent, config: Finetuning) -> Snapshot:
    """Before the first environment step."""
    length = min(config.online.environment_steps, config.online.buffer_size)
    s, a, r = (jnp.zeros((length, *x)) for x in ((agent.n_s,), (agent.n_a,), ()))
    zero = jnp.zeros((), int)
    return Snapshot(agent, Transition(s, a, r, r, s, a), zero, zero, jnp.zeros(agent.n_s), config)


def new_state(n_s: int, n_a: int, config: AnyConfig) -> AnyState:
    """What a checkpoint with these settings holds, as it is before the first update."""
    if isinstance(config, Finetuning):
        return fresh_snapshot(new_agent(n_s, n_a, config.agent), config)
    return new_agent(n_s, n_a, config)
