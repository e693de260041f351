"""No actor at all: the cheapest setting in which a critic collapses. It is not in the paper."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from tql.flow_actor import AbstractActor, Action, ActorLosses, Noise, QFunction, State


class DatasetActor(AbstractActor):
    """The action of the TD target is the one that the dataset took next (SARSA). This actor learns
    nothing and cannot act."""

    policies: ClassVar[tuple[str, ...]] = ()
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, **unused):
        """There are no widths, no steps and no key here."""
        self.n_s, self.n_a = n_s, n_a

    def act(self, s: State, z: Action) -> Action:
        """Raises `ValueError`, because there is no policy."""
        raise ValueError(
            "this agent trains a critic on the dataset's own actions and has no policy; train it "
            "with --actor.kind flow."
        )

    def next_action(self, s_next: State, a_next: Action, z: Action) -> Action:
        return a_next

    def losses(self, critic: QFunction, s: State, a: Action, noise: Noise) -> ActorLosses:
        return ActorLosses(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
