r"""Flow Q-learning (FQL; Park, Li, Levine 2025): a behaviour flow, and a one-step policy distilled
from it that maximises Q.

Networks: the flow actor of `flow_actor.FlowActor`, here without layer norm, and two MLP critics
with layer norm, with an average $\bar Q_k$ of the critics. The same actor serves floq, PAC and TQL;
only the critic differs. Its loss is `flow_actor.actor_loss`. It acts with $\mathrm{clip}(\mu(s,
z))$, with fresh z at every step.

Settings: from FQL's code. Doubts: cube-triple's discount is .99 in the TQL authors' scripts and
.995 elsewhere (the default is .99), and the scaling curve of the paper may be of a variant with
quantile critics.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.baselines.networks import Action, Loss, MLPCritic, Scalar, State
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.flow_actor import POLICIES, FlowActor, Noise, actor_loss, draw_noise
from tql.optimise import Learner, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of


@dataclass(frozen=True)
class FQLConfig(AbstractConfig):
    """Settings of FQL; `paper` sets what differs by domain."""

    method: str = "fql"
    lr: float = 3e-4  # Learning rate of all networks.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of flow and policy.
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden widths of the critics; the scaling study has 320, 512, 1536, 2944."""
    flow_steps: int = 10  # Euler steps of the behaviour flow.
    alpha_bc: float = 300.0  # Weight of the distillation loss; larger stays closer to the data.


def paper(task: str) -> FQLConfig:
    """The paper's settings."""
    return FQLConfig(task=task, alpha_bc=1000.0 if domain_of(task).startswith("puzzle") else 300.0)


def pocket(task: str) -> FQLConfig:
    """For 2 cores: narrower, at the learning rate and alpha_bc that TQL has there (a thirtieth of
    the paper's alpha_bc), half the flow steps."""
    sizes = dict(hidden=(256, 256, 256), critic_hidden=(256, 256, 256), flow_steps=5)
    return replace(paper(task), **POCKET, **sizes, lr=1e-3, alpha_bc=10.0)


def critic_loss(
    critic: MLPCritic,
    target_critic: MLPCritic,
    act: Callable[[State, Action], Action],
    batch: Transition,
    noise: Noise,
    gamma: float,
) -> Loss:
    r"""With $a' = \mathrm{act}(s', z')$: $y = r + \gamma\,m\,\frac1K \sum_k \bar Q_k(s', a')$ and
    $\langle (Q_k(s, a) - y)^2 \rangle$, a mean over members and batch. It moves the critic."""

    def one(row: Transition, z: Noise) -> tuple[Scalar, Scalar]:
        a_next = act(row.s_next, z.next_action)
        y = row.r + gamma * row.m * jnp.mean(target_critic(row.s_next, a_next))
        Q = critic(row.s, row.a)
        return jnp.mean((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return loss, {"td_loss": loss, "q_mean": Q}


class FQL(AbstractAgent):
    """The state of FQL's training."""

    Config = FQLConfig
    presets = {"pocket": pocket, "paper": paper}

    critic: Learner
    target_critic: MLPCritic
    actor: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: FQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: FQLConfig) -> "FQL":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        critic = Learner.start(MLPCritic(n_s, n_a, config.critic_hidden, key=keys.critic), adam)
        sizes = dict(hidden=config.hidden, flow_steps=config.flow_steps)
        actor = FlowActor(n_s, n_a, **sizes, layer_norm=False, key=keys.actor)
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(critic, copy(critic.model), Learner.start(actor, adam), *rest)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["FQL", Metrics]:
        """One update."""
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        return self.update_with_noise(batch, noise)

    def update_with_noise(self, batch: Transition, noise: Noise) -> tuple["FQL", Metrics]:
        """One update, a deterministic function of batch and noise."""
        c, adam, target_critic = self.config, optax.adam(self.config.lr), self.target_critic
        critic, actor = self.critic.model, self.actor.model
        (_, critic_metrics), critic_gradient = value_and_grad(critic_loss)(
            critic, target_critic, actor.act, batch, noise, c.discount
        )
        (_, actor_metrics), actor_gradient = value_and_grad(actor_loss)(
            actor, critic, batch, noise, c.alpha_bc
        )
        agent = replace(
            self,
            critic=self.critic.descend(critic_gradient, adam),
            target_critic=polyak(critic, target_critic, c.tau),
            actor=self.actor.descend(actor_gradient, adam),
            step=self.step + 1,
        )
        return agent, critic_metrics | actor_metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(POLICIES[name], self.actor.model)
