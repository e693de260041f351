r"""Implicit flow Q-learning (IFQL; the flow version of IDQL, as in the FQL paper): IQL's critics, a behaviour flow, the best of N draws.

Networks: V and two critics Q as in IQL, a velocity $v(s, x, t)$ without layer norm. The flow only imitates; it is never trained on Q. It
acts by drawing N actions from the flow and taking the one with the largest $\min_k Q_k$ (online critics). Settings: N = 32 everywhere
(cube-triple from the code of Value Flows, other domains as remembered from the FQL paper).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, batch_noise, seed_keys
from tql.config import POCKET, Task, TrainingConfig
from tql.critic import AbstractCritic
from tql.data import Batch, DataStatistics
from tql.flow_actor import Noise, draw_noise, euler, flow_matching
from tql.implicit_value import check_expectile, q_loss, value_loss
from tql.mlp import MLP, MLPCritic
from tql.optimise import copy, descend, polyak, start, value_and_grad


@dataclass(frozen=True)
class IFQLConfig(TrainingConfig):
    """Settings of IFQL; the defaults are the paper's, but for the discount of cube-triple."""

    method: ClassVar[str] = "ifql"

    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of all networks, in channels."""
    kappa: float = 0.9
    """Expectile of Q that V regresses to."""
    flow_steps: int = 10
    """Euler steps of the flow."""
    candidates: int = 32
    """Actions drawn per step, of which the best is taken."""

    def __post_init__(self):
        super().__post_init__()
        check_expectile(self.kappa)


def paper(task: str) -> IFQLConfig:
    """The paper's settings."""
    return IFQLConfig(task=task, discount=0.995 if Task.parse(task).domain == "cube-triple" else 0.99)


def pocket(task: str) -> IFQLConfig:
    """For 2 cores: narrower, at TQL's learning rate there, half the flow steps."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), flow_steps=5)


def flow_loss(v: MLP, batch: Batch, noise: Noise) -> Float[Array, ""]:
    """Flow matching, a mean over the batch: imitation."""
    return jnp.mean(jax.vmap(lambda row, z: flow_matching(v, row.observations, row.actions, z.x_0, z.t))(batch, noise))


def best_of(
    v: MLP, critic: AbstractCritic, s: Float[Array, " n_s"], z: Float[Array, "candidates n_a"], flow_steps: int
) -> Float[Array, " n_a"]:
    r"""$\arg\max_a \min_k Q_k(s, a)$ over the flow's actions from the noises `z`."""
    actions = jax.vmap(lambda z: euler(v, s, z, flow_steps))(z)
    Q = jax.vmap(lambda a: jnp.min(critic(s, a)))(actions)
    return actions[jnp.argmax(Q)]


class IFQL(AbstractAgent):
    """The state of its training."""

    Config = IFQLConfig
    presets = {"pocket": pocket, "paper": paper}

    value: MLP
    critic: MLPCritic
    target_critic: MLPCritic
    flow: MLP
    value_state: optax.OptState
    critic_state: optax.OptState
    flow_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: IFQLConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: IFQLConfig, statistics: DataStatistics) -> "IFQL":
        keys = seed_keys(config.seed)
        k_critic, k_value = jr.split(keys.critic)
        critic = MLPCritic(n_s, n_a, config.hidden, key=k_critic)
        value = MLP(n_s, 1, config.hidden, key=k_value)
        flow = MLP(n_s + n_a + 1, n_a, config.hidden, layer_norm=False, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (value, critic, flow))
        return cls(value, critic, copy(critic), flow, *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["IFQL", Metrics]:
        c, adam = self.config, optax.adam(self.config.lr)
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        (of_value, v), value_grads = value_and_grad(value_loss)(self.value, self.target_critic, batch, c.kappa)
        (of_q, q), critic_grads = value_and_grad(q_loss)(self.critic, self.value, batch, c.discount)
        of_flow, flow_grads = eqx.filter_value_and_grad(flow_loss)(self.flow, batch, noise)

        value, value_state = descend(adam, self.value, value_grads, self.value_state)
        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        flow, flow_state = descend(adam, self.flow, flow_grads, self.flow_state)
        target_critic = polyak(self.critic, self.target_critic, c.tau)

        networks = dict(value=value, critic=critic, target_critic=target_critic, flow=flow)
        agent = replace(self, **networks, value_state=value_state, critic_state=critic_state, flow_state=flow_state, step=self.step + 1)
        return agent, {"value_loss": of_value, "td_loss": of_q, "flow_loss": of_flow, "v_mean": v, "q_mean": q}

    def policy(self, name: str) -> Act:
        return eqx.Partial(rejection_sampled_action, self.flow, self.critic, self.n_a, self.config.flow_steps, self.config.candidates)


def rejection_sampled_action(
    v: MLP, critic: AbstractCritic, n_a: int, flow_steps: int, candidates: int, s: Float[Array, " n_s"], key: PRNGKeyArray
) -> Float[Array, " n_a"]:
    """The best of `candidates` fresh draws from the flow."""
    return best_of(v, critic, s, jr.normal(key, (candidates, n_a)), flow_steps)
