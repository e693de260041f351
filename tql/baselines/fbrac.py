r"""FBRAC (flow behaviour-regularised actor-critic, as in the FQL paper): Q's gradient runs through
the whole multi-step flow.

Networks: a velocity $v(s, x, t)$ without layer norm, and the two critics of FQL with their average
and their loss (with $a' = \mathrm{flow}(s', z')$). There is no one-step policy. It acts with
$\mathrm{flow}(s, z)$, which ends in a clip, with fresh z at every step.

Settings: cube-triple from the code of Value Flows, other domains as remembered from the FQL paper;
puzzle-3x3 (100 or 300) is the least certain, and an earlier revision of Value Flows has 10 on
cube-triple. One re-implementation (FAC's) takes the minimum in the target, others the mean, as
here.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.baselines.fql import critic_loss
from tql.baselines.networks import Action, Loss, MLPCritic, Scalar, State
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.flow_actor import Noise, draw_noise, euler, flow_matching
from tql.layers import MLP
from tql.optimise import Learner, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of


@dataclass(frozen=True)
class FBRACConfig(AbstractConfig):
    """Settings of FBRAC; `paper` sets what differs by domain."""

    method: str = "fbrac"
    lr: float = 3e-4  # Learning rate of all networks.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of the flow.
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of the critics.
    flow_steps: int = 10  # Euler steps of the flow.
    alpha_bc: float = 100.0  # Weight of flow matching against Q; larger stays closer to the data.


def paper(task: str) -> FBRACConfig:
    """The paper's settings."""
    domain = domain_of(task)
    return FBRACConfig(
        task=task,
        alpha_bc=300.0 if domain == "puzzle-4x4" else 100.0,
        discount=0.995 if domain == "cube-triple" else 0.99,
    )


def pocket(task: str) -> FBRACConfig:
    """For 2 cores: narrower, at the learning rate that TQL has there, half the flow steps. A search
    found alpha_bc."""
    sizes = dict(hidden=(256, 256, 256), critic_hidden=(256, 256, 256), flow_steps=5)
    return replace(paper(task), **POCKET, **sizes, lr=1e-3, alpha_bc=10.0)


def flow_loss(
    v: MLP, critic: MLPCritic, batch: Transition, noise: Noise, alpha_bc: float, flow_steps: int
) -> Loss:
    r"""$\alpha_{bc}\,\text{flow matching} - \langle \frac1K \sum_k Q_k(s, \mathrm{flow}(s, z))
    \rangle$.

    The gradient of Q runs through all Euler steps and the clip. It moves the flow.
    """

    def one(row: Transition, z: Noise) -> tuple[Scalar, Scalar]:
        Q = jnp.mean(critic(row.s, euler(v, row.s, z.z, flow_steps)))
        return flow_matching(v, row.s, row.a, z.x_0, z.t), Q

    matching, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return alpha_bc * matching - Q, {"flow_loss": matching, "actor_q": Q}


class FBRAC(AbstractAgent):
    """The state of FBRAC's training."""

    Config = FBRACConfig
    presets = {"pocket": pocket, "paper": paper}

    critic: Learner
    target_critic: MLPCritic
    flow: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FBRACConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: FBRACConfig) -> "FBRAC":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        critic = Learner.start(MLPCritic(n_s, n_a, config.critic_hidden, key=keys.critic), adam)
        flow = MLP(n_s + n_a + 1, n_a, config.hidden, layer_norm=False, key=keys.actor)
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(critic, copy(critic.model), Learner.start(flow, adam), *rest)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["FBRAC", Metrics]:
        """One update."""
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        return self.update_with_noise(batch, noise)

    def update_with_noise(self, batch: Transition, noise: Noise) -> tuple["FBRAC", Metrics]:
        """One update, a deterministic function of batch and noise."""
        c, adam, target_critic = self.config, optax.adam(self.config.lr), self.target_critic
        critic, flow = self.critic.model, self.flow.model
        act = lambda s, z: euler(flow, s, z, c.flow_steps)
        (_, critic_metrics), critic_gradient = value_and_grad(critic_loss)(
            critic, target_critic, act, batch, noise, c.discount
        )
        (_, flow_metrics), flow_gradient = value_and_grad(flow_loss)(
            flow, critic, batch, noise, c.alpha_bc, c.flow_steps
        )
        agent = replace(
            self,
            critic=self.critic.descend(critic_gradient, adam),
            target_critic=polyak(critic, target_critic, c.tau),
            flow=self.flow.descend(flow_gradient, adam),
            step=self.step + 1,
        )
        return agent, critic_metrics | flow_metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(flow_action, self.flow.model, self.n_a, self.config.flow_steps)


def flow_action(v: MLP, n_a: int, flow_steps: int, s: State, key: PRNGKeyArray) -> Action:
    """The flow's action from fresh noise."""
    return euler(v, s, jr.normal(key, (n_a,)), flow_steps)
