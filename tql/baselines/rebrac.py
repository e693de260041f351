r"""ReBRAC (Tarasov et al. 2023): TD3 + BC with normalised critics and two separate ties to the behaviour, in the actor and in the target.

Networks: a deterministic actor $\pi(s) = \tanh(\mu(s))$ and two critics with layer norm, with averages $\bar\pi$, $\bar Q_k$ of both. It
acts with $\pi(s)$. Actor and averages move at every second update only. As in the reference, the actor's Adam then sees a gradient of
zero and coasts on its momentum. Settings: cube-triple from the code of Value Flows, other domains as remembered from the FQL paper, so
not certain. One departure: the next action of an episode's last row is the episode's own, where the reference takes the next episode's
first.
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
from tql.mlp import MeanActor, MLPCritic
from tql.optimise import copy, descend, polyak, start, value_and_grad

NOISE_SCALE, NOISE_CLIP = 0.2, 0.5
ACTOR_EVERY = 2
"""Updates of the critic per update of the actor and of the averages."""


@dataclass(frozen=True)
class ReBRACConfig(TrainingConfig):
    """Settings of ReBRAC; `paper` sets what differs by domain."""

    method: ClassVar[str] = "rebrac"

    lr: float = 3e-4
    """Learning rate of both networks."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of both networks, in channels."""
    alpha_actor: float = 0.1
    """Weight of the tie to the dataset's action in the actor's loss (alpha_1)."""
    alpha_critic: float = 0.0
    """Weight of the tie to the dataset's next action in the target (alpha_2)."""


def paper(task: str) -> ReBRACConfig:
    """The paper's settings; cube-double and scene have the default alpha_1."""
    domain = Task.parse(task).domain
    alpha_actor = {"cube-single": 1.0, "puzzle-3x3": 0.3, "puzzle-4x4": 0.3, "cube-triple": 0.03}.get(domain, 0.1)
    alpha_critic = {"scene": 0.01, "puzzle-3x3": 0.01, "puzzle-4x4": 0.01}.get(domain, 0.0)
    discount = 0.995 if domain == "cube-triple" else 0.99
    return ReBRACConfig(task=task, alpha_actor=alpha_actor, alpha_critic=alpha_critic, discount=discount)


def pocket(task: str) -> ReBRACConfig:
    """For 2 cores: narrower, at TQL's learning rate there; alpha_1 and alpha_2 are the paper's, for the actor's loss measures Q in units of
    its size.
    """
    return replace(paper(task), **POCKET, lr=1e-3, hidden=(256, 256, 256))


def pi(actor: MeanActor, s: Float[Array, " {actor.n_s}"]) -> Float[Array, " {actor.n_a}"]:
    r"""$\pi(s) = \tanh(\mu(s))$."""
    return jnp.tanh(actor(s))


def critic_loss(
    critic: AbstractCritic, target_critic: AbstractCritic, target_actor: MeanActor, batch: Batch, noise: Float[Array, "batch n_a"],
    discount: float, alpha_critic: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""With $\tilde a' = \mathrm{clip}(\bar\pi(s') + \mathrm{clip}(0.2\,\epsilon, \pm 0.5))$ and the dataset's next action $a^+$:

    $$y = r + \gamma\,m\,(\min_k \bar Q_k(s', \tilde a') - \alpha_2\,|\tilde a' - a^+|^2), \qquad \langle (Q_k(s, a) - y)^2 \rangle$$

    Squares of actions are sums over their dimensions; the mean is over members and batch. Moves the critic alone; also returns the mean
    of Q.
    """

    def one(row: Batch, epsilon: Float[Array, " n_a"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        n = jnp.clip(NOISE_SCALE * epsilon, -NOISE_CLIP, NOISE_CLIP)
        a_next = jnp.clip(pi(target_actor, row.next_observations) + n, -1, 1)
        tie = jnp.sum((a_next - row.next_actions) ** 2)
        Q_next = jnp.min(target_critic(row.next_observations, a_next))
        y = row.rewards + discount * row.masks * (Q_next - alpha_critic * tie)
        Q = critic(row.observations, row.actions)
        return jnp.mean((Q - y) ** 2), jnp.mean(Q)

    loss, Q = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(Q)


def actor_loss(
    actor: MeanActor, critic: AbstractCritic, batch: Batch, alpha_actor: float
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    r"""With $q = \min_k Q_k(s, \pi(s))$: $-\langle q \rangle / \mathrm{sg}\langle |q| \rangle + \alpha_1 \langle |\pi(s) - a|^2 \rangle$.

    Moves the actor alone; also returns the mean of q and of the squares.
    """

    def one(row: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        a = pi(actor, row.observations)
        return jnp.min(critic(row.observations, a)), jnp.sum((a - row.actions) ** 2)

    q, tie = jax.vmap(one)(batch)
    loss = -jnp.mean(q) / jax.lax.stop_gradient(jnp.mean(jnp.abs(q))) + alpha_actor * jnp.mean(tie)
    return loss, (jnp.mean(q), jnp.mean(tie))


class ReBRAC(AbstractAgent):
    """The state of its training."""

    Config = ReBRACConfig
    presets = {"pocket": pocket, "paper": paper}

    critic: MLPCritic
    target_critic: MLPCritic
    actor: MeanActor
    target_actor: MeanActor
    critic_state: optax.OptState
    actor_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: ReBRACConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: ReBRACConfig, statistics: DataStatistics) -> "ReBRAC":
        keys = seed_keys(config.seed)
        critic = MLPCritic(n_s, n_a, config.hidden, key=keys.critic)
        actor = MeanActor(n_s, n_a, config.hidden, key=keys.actor)
        states = (start(optax.adam(config.lr), model) for model in (critic, actor))
        return cls(critic, copy(critic), actor, copy(actor), *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["ReBRAC", Metrics]:
        c, adam = self.config, optax.adam(self.config.lr)
        noise = batch_noise(lambda k: jr.normal(k, (self.n_a,)), key, batch)
        (of_critic, q), critic_grads = value_and_grad(critic_loss)(
            self.critic, self.target_critic, self.target_actor, batch, noise, c.discount, c.alpha_critic
        )
        (of_actor, (actor_q, tie)), actor_grads = value_and_grad(actor_loss)(self.actor, self.critic, batch, c.alpha_actor)
        step = self.step + 1
        now = jnp.where(step % ACTOR_EVERY == 0, 1.0, 0.0)

        critic, critic_state = descend(adam, self.critic, critic_grads, self.critic_state)
        actor, actor_state = descend(adam, self.actor, jax.tree.map(lambda g: now * g, actor_grads), self.actor_state)
        target_critic = polyak(self.critic, self.target_critic, now * c.tau)
        target_actor = polyak(self.actor, self.target_actor, now * c.tau)

        networks = dict(critic=critic, target_critic=target_critic, actor=actor, target_actor=target_actor)
        agent = replace(self, **networks, critic_state=critic_state, actor_state=actor_state, step=step)
        return agent, {"td_loss": of_critic, "tie_loss": tie, "actor_objective": of_actor, "q_mean": q, "actor_q": actor_q}

    def policy(self, name: str) -> Act:
        return eqx.Partial(deterministic_action, self.actor)


def deterministic_action(actor: MeanActor, s: Float[Array, " {actor.n_s}"], key: PRNGKeyArray) -> Float[Array, " {actor.n_a}"]:
    """The actor's action without exploration; it needs no randomness."""
    return pi(actor, s)
