r"""Implicit Q-learning (IQL; Kostrikov, Nair, Levine 2022) as re-implemented in FQL's code: learn V
and Q from the dataset's own actions alone, then imitate its good actions.

$V(s)$ regresses to an upper expectile of $Q(s, a)$ over the dataset's actions, and Q to one step
ahead of V. So no action outside the dataset is ever asked for. Networks: V and two critics $Q_k$
with layer norm, an average $\bar Q_k$ of the critics, and a mean $\mu(s)$ whose policy is Gaussian
with standard deviation 1. It acts with $\mathrm{clip}(\mu(s))$.

The original has two hidden layers of 256 with ReLU and no norm, squashes the mean by tanh, learns
the standard deviation, and lowers the actor's learning rate by a cosine. It updates V first, takes
the advantage from that new V and the target critics (here: V and the critics, all before the
update), and its target follows the critics from after the update.

Settings: alpha of cube-triple is from the code of Value Flows, other domains as remembered from the
FQL paper, so not certain. A widely read summary gives TQL an alpha of .3 on cube-double; that is
IQL's, here, while TQL's own code has 300 (`alpha_bc`). The reference's other extraction (DDPG + BC)
is not used.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, seed_keys
from tql.baselines.networks import Loss, MeanActor, MLPCritic, Scalar, log_probability, mean_action
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.layers import MLP
from tql.optimise import Learner, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of

LARGEST_WEIGHT = 100.0
"""Bound of an action's weight in the regression."""


@dataclass(frozen=True)
class IQLConfig(AbstractConfig):
    """Settings of IQL; `paper` sets what differs by domain."""

    method: str = "iql"
    lr: float = 3e-4  # Learning rate of all networks.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of all networks.
    kappa: float = 0.9  # Expectile of Q that V regresses to.
    alpha: float = 10.0  # Inverse temperature: the weight of an action is exp(alpha * advantage).

    def __post_init__(self):
        super().__post_init__()
        check_expectile(self.kappa)


def check_expectile(kappa: float) -> None:
    """Raises `ValueError` for what is no expectile."""
    if not 0 < kappa < 1:
        raise ValueError(
            f"kappa is {kappa}; an expectile lies between 0 and 1, and above one half to be an "
            "upper one."
        )


def paper(task: str) -> IQLConfig:
    """The paper's settings."""
    domain = domain_of(task)
    alpha = {"cube-single": 1.0, "cube-double": 0.3, "puzzle-4x4": 3.0}.get(domain, 10.0)
    return IQLConfig(task=task, alpha=alpha, discount=0.995 if domain == "cube-triple" else 0.99)


def pocket(task: str) -> IQLConfig:
    """For 2 cores: narrower, at the learning rate that TQL has there. A search found alpha, and it
    is also that of cube-single."""
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256), alpha=1.0)


def expectile_loss(u: Scalar, kappa: float) -> Scalar:
    r"""$\ell_\kappa(u) = \kappa\,u^2$ if $u \ge 0$, else $(1 - \kappa)\,u^2$. The shift of u that
    minimises its mean is the $\kappa$-expectile."""
    return jnp.where(u >= 0, kappa, 1 - kappa) * u**2


def value_loss(V: MLP, target_critic: MLPCritic, batch: Transition, kappa: float) -> Loss:
    r"""$\langle \ell_\kappa(\min_k \bar Q_k(s, a) - V(s)) \rangle$. It moves V."""

    def one(row: Transition) -> tuple[Scalar, Scalar]:
        Q, v = jnp.min(target_critic(row.s, row.a)), V(row.s)[0]
        return expectile_loss(Q - v, kappa), v

    loss, v = jax.tree.map(jnp.mean, jax.vmap(one)(batch))
    return loss, {"value_loss": loss, "v_mean": v}


def q_loss(critic: MLPCritic, V: MLP, batch: Transition, gamma: float) -> Loss:
    r"""$y = r + \gamma\,m\,V(s')$ and $\langle \sum_k (Q_k(s, a) - y)^2 \rangle$, a sum over the K
    members as in the reference. It moves the critic."""

    def one(row: Transition) -> tuple[Scalar, Scalar]:
        y = row.r + gamma * row.m * V(row.s_next)[0]
        Q = critic(row.s, row.a)
        return jnp.sum((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch))
    return loss, {"td_loss": loss, "q_mean": Q}


def actor_loss(
    actor: MeanActor, critic: MLPCritic, V: MLP, batch: Transition, alpha: float
) -> Loss:
    r"""$-\langle w \log N(a;\,\mu(s), I) \rangle$ with
    $w = \min(e^{\alpha\,(\min_k Q_k(s, a) - V(s))}, 100)$. It moves the actor."""

    def one(row: Transition) -> tuple[Scalar, Scalar]:
        advantage = jnp.min(critic(row.s, row.a)) - V(row.s)[0]
        w = jnp.minimum(jnp.exp(alpha * advantage), LARGEST_WEIGHT)
        return -w * log_probability(actor(row.s), row.a), w

    loss, w = jax.tree.map(jnp.mean, jax.vmap(one)(batch))
    return loss, {"actor_loss": loss, "weight": w}


class IQL(AbstractAgent):
    """The state of IQL's training."""

    Config = IQLConfig
    presets = {"pocket": pocket, "paper": paper}

    value: Learner
    critic: Learner
    target_critic: MLPCritic
    actor: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: IQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: IQLConfig) -> "IQL":
        keys, adam = seed_keys(config.seed), optax.adam(config.lr)
        k_critic, k_value = jr.split(keys.critic)
        value = Learner.start(MLP(n_s, 1, config.hidden, key=k_value), adam)
        critic = Learner.start(MLPCritic(n_s, n_a, config.hidden, key=k_critic), adam)
        actor = Learner.start(MeanActor(n_s, n_a, config.hidden, key=keys.actor), adam)
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(value, critic, copy(critic.model), actor, *rest)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["IQL", Metrics]:
        """One update. Nothing in it is random."""
        c, adam, target_critic = self.config, optax.adam(self.config.lr), self.target_critic
        value, critic, actor = self.value.model, self.critic.model, self.actor.model
        (_, value_metrics), value_gradient = value_and_grad(value_loss)(
            value, target_critic, batch, c.kappa
        )
        (_, critic_metrics), critic_gradient = value_and_grad(q_loss)(
            critic, value, batch, c.discount
        )
        (_, actor_metrics), actor_gradient = value_and_grad(actor_loss)(
            actor, critic, value, batch, c.alpha
        )
        agent = replace(
            self,
            value=self.value.descend(value_gradient, adam),
            critic=self.critic.descend(critic_gradient, adam),
            target_critic=polyak(critic, target_critic, c.tau),
            actor=self.actor.descend(actor_gradient, adam),
            step=self.step + 1,
        )
        return agent, value_metrics | critic_metrics | actor_metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(mean_action, self.actor.model)
