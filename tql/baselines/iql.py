r"""Implicit Q-learning (IQL; Kostrikov, Nair, Levine 2022): learn V and Q from the dataset's own actions, then imitate the good ones.

Networks: $V(s)$ and two critics $Q_k(s, a)$ with layer norm, an average $\bar Q$ of the critics, a mean $\mu(s)$ of standard deviation 1.
Losses: `implicit_value.value_loss`, `implicit_value.q_loss` and advantage-weighted regression below. It acts with
$\mathrm{clip}(\mu(s))$. Settings: alpha of cube-triple from the code of Value Flows; of the other domains as remembered from the FQL
paper, so not certain. Not used: the other extraction in the reference (DDPG + BC).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, seed_keys
from tql.config import POCKET, Task, TrainingConfig
from tql.critic import AbstractCritic
from tql.data import Batch, DataStatistics
from tql.implicit_value import check_expectile, q_loss, value_loss
from tql.mlp import MLP, MeanActor, MLPCritic, log_probability, mean_action
from tql.optimise import copy, descend, polyak, start, value_and_grad

LARGEST_WEIGHT = 100.0


@dataclass(frozen=True)
class IQLConfig(TrainingConfig):
    """Settings of IQL; `paper` sets what differs by domain."""

    method: ClassVar[str] = "iql"

    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of all networks, in channels."""
    kappa: float = 0.9
    """Expectile of Q that V regresses to."""
    alpha: float = 10.0
    """Inverse temperature: the weight of an action is exp(alpha * advantage)."""

    def __post_init__(self):
        super().__post_init__()
        check_expectile(self.kappa)


def paper(task: str) -> IQLConfig:
    """The paper's settings."""
    domain = Task.parse(task).domain
    alpha = {"cube-single": 1.0, "cube-double": 0.3, "puzzle-4x4": 3.0}.get(domain, 10.0)
    return IQLConfig(task=task, alpha=alpha, discount=0.995 if domain == "cube-triple" else 0.99)


def pocket(task: str) -> IQLConfig:
    """For 2 cores: narrower, at TQL's learning rate there; alpha by a search (`benchmark_presets.search`), also cube-single's."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), alpha=1.0)


def actor_loss(
    actor: MeanActor, critic: AbstractCritic, V: MLP, batch: Batch, alpha: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$-\langle w \log N(a;\,\mu(s), I) \rangle$ with $w = \min(e^{\alpha\,(\min_k Q_k(s, a) - V(s))}, 100)$. Moves the actor alone.

    Also returns the mean of w.
    """

    def one(row: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        s, a = row.observations, row.actions
        advantage = jnp.min(critic(s, a)) - V(s)[0]
        w = jnp.minimum(jnp.exp(alpha * advantage), LARGEST_WEIGHT)
        return -w * log_probability(actor(s), a), w

    loss, w = jax.vmap(one)(batch)
    return jnp.mean(loss), jnp.mean(w)


class IQL(AbstractAgent):
    """The state of its training."""

    Config = IQLConfig
    presets = {"pocket": pocket, "paper": paper}

    value: MLP
    critic: MLPCritic
    target_critic: MLPCritic
    actor: MeanActor
    value_state: optax.OptState
    critic_state: optax.OptState
    actor_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: IQLConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: IQLConfig, statistics: DataStatistics) -> "IQL":
        keys = seed_keys(config.seed)
        k_critic, k_value = jr.split(keys.critic)
        critic = MLPCritic(n_s, n_a, config.hidden, key=k_critic)
        value = MLP(n_s, 1, config.hidden, key=k_value)
        actor = MeanActor(n_s, n_a, config.hidden, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (value, critic, actor))
        return cls(value, critic, copy(critic), actor, *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["IQL", Metrics]:
        c, adam = self.config, optax.adam(self.config.lr)
        (of_value, v), value_grads = value_and_grad(value_loss)(self.value, self.target_critic, batch, c.kappa)
        (of_q, q), critic_grads = value_and_grad(q_loss)(self.critic, self.value, batch, c.discount)
        (of_actor, w), actor_grads = value_and_grad(actor_loss)(self.actor, self.critic, self.value, batch, c.alpha)

        value, value_state = descend(adam, self.value, value_grads, self.value_state)
        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        actor, actor_state = descend(adam, self.actor, actor_grads, self.actor_state)
        target_critic = polyak(self.critic, self.target_critic, c.tau)

        networks = dict(value=value, critic=critic, target_critic=target_critic, actor=actor)
        agent = replace(self, **networks, value_state=value_state, critic_state=critic_state, actor_state=actor_state, step=self.step + 1)
        return agent, {"value_loss": of_value, "td_loss": of_q, "actor_loss": of_actor, "v_mean": v, "q_mean": q, "weight": w}

    def policy(self, name: str) -> Act:
        return eqx.Partial(mean_action, self.actor)
