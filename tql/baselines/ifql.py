r"""Implicit flow Q-learning (IFQL) as implemented in FQL's code, the flow version of IDQL
(Hansen-Estruch et al. 2023): the critics of IQL, a behaviour flow, and the best of N draws.

Networks: V and two critics as in IQL, and a velocity $v(s, x, t)$ without layer norm. The flow only
imitates; it is never trained on Q. To act it draws N actions and takes the one with the largest
$\min_k Q_k$.

The original, IDQL, has a diffusion model in the place of the flow, with a moving average of its own
and a cosine for its learning rate, critics without norm, and ranks the draws by the target critics
(here: by the critics). Settings: N = 32 everywhere (cube-triple from the code of Value Flows, other
domains as remembered from the FQL paper). A widely read summary calls these 32 candidates "action
bins" of TQL, which has none.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.baselines.iql import check_expectile, q_loss, value_loss
from tql.baselines.networks import Action, Loss, MLPCritic, State
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.flow_actor import Noise, draw_noise, euler, flow_matching
from tql.layers import MLP
from tql.optimise import Learner, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of


@dataclass(frozen=True)
class IFQLConfig(AbstractConfig):
    """Settings of IFQL; the defaults are the paper's, but for the discount of cube-triple."""

    method: str = "ifql"
    lr: float = 3e-4  # Learning rate of all networks.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of all networks.
    kappa: float = 0.9  # Expectile of Q that V regresses to.
    flow_steps: int = 10  # Euler steps of the flow.
    candidates: int = 32  # Actions drawn per environment step, of which the best is taken.

    def __post_init__(self):
        super().__post_init__()
        check_expectile(self.kappa)


def paper(task: str) -> IFQLConfig:
    """The paper's settings."""
    return IFQLConfig(task=task, discount=0.995 if domain_of(task) == "cube-triple" else 0.99)


def pocket(task: str) -> IFQLConfig:
    """For 2 cores: narrower, at the learning rate that TQL has there, half the flow steps."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), flow_steps=5)


def flow_loss(v: MLP, batch: Transition, noise: Noise) -> Loss:
    """Flow matching: imitation. It moves the flow."""
    one = lambda row, z: flow_matching(v, row.s, row.a, z.x_0, z.t)
    loss = jnp.mean(jax.vmap(one)(batch, noise))
    return loss, {"flow_loss": loss}


def best_of(
    v: MLP, critic: MLPCritic, s: State, z: Float[Array, "candidates n_a"], flow_steps: int
) -> Action:
    r"""$\arg\max_a \min_k Q_k(s, a)$ over the flow's actions from the noises `z`."""
    actions = jax.vmap(lambda z: euler(v, s, z, flow_steps))(z)
    Q = jax.vmap(lambda a: jnp.min(critic(s, a)))(actions)
    return actions[jnp.argmax(Q)]


class IFQL(AbstractAgent):
    """The state of IFQL's training."""

    Config = IFQLConfig
    presets = {"pocket": pocket, "paper": paper}

    value: Learner
    critic: Learner
    target_critic: MLPCritic
    flow: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: IFQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: IFQLConfig) -> "IFQL":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        k_critic, k_value = jr.split(keys.critic)
        value = Learner.start(MLP(n_s, 1, config.hidden, key=k_value), adam)
        critic = Learner.start(MLPCritic(n_s, n_a, config.hidden, key=k_critic), adam)
        flow = MLP(n_s + n_a + 1, n_a, config.hidden, layer_norm=False, key=keys.actor)
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(value, critic, copy(critic.model), Learner.start(flow, adam), *rest)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["IFQL", Metrics]:
        """One update."""
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        return self.update_with_noise(batch, noise)

    def update_with_noise(self, batch: Transition, noise: Noise) -> tuple["IFQL", Metrics]:
        """One update, a deterministic function of batch and noise."""
        c, adam, target_critic = self.config, optax.adam(self.config.lr), self.target_critic
        value, critic, flow = self.value.model, self.critic.model, self.flow.model
        (_, value_metrics), value_gradient = value_and_grad(value_loss)(
            value, target_critic, batch, c.kappa
        )
        (_, critic_metrics), critic_gradient = value_and_grad(q_loss)(
            critic, value, batch, c.discount
        )
        (_, flow_metrics), flow_gradient = value_and_grad(flow_loss)(flow, batch, noise)
        agent = replace(
            self,
            value=self.value.descend(value_gradient, adam),
            critic=self.critic.descend(critic_gradient, adam),
            target_critic=polyak(critic, target_critic, c.tau),
            flow=self.flow.descend(flow_gradient, adam),
            step=self.step + 1,
        )
        return agent, value_metrics | critic_metrics | flow_metrics

    def policy(self, name: str) -> Policy:
        c = self.config
        models = self.flow.model, self.critic.model
        return eqx.Partial(rejection_sampled_action, *models, self.n_a, c.flow_steps, c.candidates)


def rejection_sampled_action(
    v: MLP,
    critic: MLPCritic,
    n_a: int,
    flow_steps: int,
    candidates: int,
    s: State,
    key: PRNGKeyArray,
) -> Action:
    """The best of `candidates` fresh draws from the flow."""
    return best_of(v, critic, s, jr.normal(key, (candidates, n_a)), flow_steps)
