r"""PAC (Perceiver Actor-Critic; Springenberg et al. 2024) as the TQL authors ran it: its critic, with the actor of FQL.

Critic: a categorical distribution over values from a Perceiver (`perceiver.py`), $Q = \sum_i p_i z_i$; one, no ensemble, with an average
$\bar p$. The actor is FQL's with layer norm. It acts with $\mathrm{clip}(\mu(s, z))$. Settings: from the authors' fork of floq. The preset
`paper` has their v_min, which lies above the smallest return of scene, puzzle-3x3 and puzzle-4x4, so that bad states share the lowest value
there; `paper-whole-range` reaches down to that return. Doubts: 32 latents (fork) or 16 (their repository); the size of the published
column; cube-single was never published. Departures: the original's policy head over discrete actions, without a loss in the authors'
version, is left out; position vectors are not decayed.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Act, Metrics, batch_noise, seed_keys
from tql.config import POCKET, ScheduledConfig, Task
from tql.data import Batch, DataStatistics
from tql.flow_actor import POLICIES, FlowActor, Noise, actor_loss, draw_noise
from tql.optimise import adamw, copy, descend, polyak, start, value_and_grad
from tql.perceiver import PerceiverCritic, heads_of


@dataclass(frozen=True)
class PACConfig(ScheduledConfig):
    """Settings of PAC; `paper` sets what differs by domain."""

    method: ClassVar[str] = "pac"
    may_be_negative: ClassVar[tuple[str, ...]] = ("v_min",)

    weight_decay: float = 0.001
    """AdamW's decay of the matrices, as a fraction of the learning rate per update."""
    critic_lr: float = 1e-4
    """Peak learning rate of the critic."""
    actor_lr: float = 5e-4
    """Peak learning rate of the flow and the policy."""
    d_model: int = 160
    """Width of the critic, in channels; the scaling study has 80, 160, 320, 640."""
    latents: int = 32
    """Learned latent tokens."""
    latent_blocks: int = 2
    """Self-attention blocks of the latents."""
    v_min: float = -200.0
    """Smallest value of the support, whose values are 1 apart and end at 0."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the flow and of the policy, in channels."""
    flow_steps: int = 10
    """Euler steps of the behaviour flow."""
    alpha_bc: float = 300.0
    """Weight of the distillation loss against Q."""

    def __post_init__(self):
        super().__post_init__()
        if self.d_model % (heads := heads_of(self.d_model)):
            raise ValueError(f"d_model is {self.d_model}; it must be a multiple of {heads}, its number of attention heads.")
        if not (math.isfinite(self.v_min) and self.v_min < 0 and self.v_min == int(self.v_min)):
            raise ValueError(f"v_min is {self.v_min}; it must be a whole number below 0, for the values are 1 apart and end at 0.")


def paper(task: str) -> PACConfig:
    """The paper's settings."""
    domain = Task.parse(task).domain
    lowest = {"cube-single": -100.0, "cube-double": -200.0, "scene": -400.0, "puzzle-4x4": -900.0, "cube-quadruple": -400.0}
    return PACConfig(task=task, v_min=lowest.get(domain, -300.0), alpha_bc=1000.0 if domain.startswith("puzzle") else 300.0)


def smallest_return(task: str, discount: float) -> float:
    r"""$-k/(1-\gamma)$ of k unsolved sub-goals for ever, rounded away from 0 to a whole number."""
    sub_goals = {"cube-double": 2, "cube-triple": 3, "cube-quadruple": 4, "scene": 5, "puzzle-3x3": 9, "puzzle-4x4": 16}
    k = sub_goals.get(Task.parse(task).domain, 1)
    return -float(math.ceil(round(k / (1 - discount), 6)))


def paper_whole_range(task: str) -> PACConfig:
    """The paper's settings, but for a support that holds every return at their discount."""
    config = paper(task)
    return replace(config, v_min=smallest_return(task, config.discount))


def pocket(task: str) -> PACConfig:
    """For 2 cores, with a support that holds every return at that discount."""
    v_min = smallest_return(task, POCKET["discount"])
    rates = dict(critic_lr=1e-3, actor_lr=1e-3, warmup=300)
    sizes = dict(d_model=32, latents=8, hidden=(256, 256, 256), flow_steps=5)
    return replace(paper(task), **POCKET, **rates, **sizes, alpha_bc=10.0, v_min=v_min)


def project(
    p: Float[Array, " values"], z: Float[Array, " values"], r: Float[Array, ""], discount: Float[Array, ""]
) -> Float[Array, " values"]:
    r"""The distribution of $r + \gamma z$ on the same support: each $p_i$ is shared between the two values next to where it lands.

    $$Tz_i = \mathrm{clip}(r + \gamma z_i), \qquad p^{target}_j = \sum_i p_i\,\max(0,\, 1 - |Tz_i - z_j|)$$

    The values are 1 apart, so the weights of one $p_i$ are those of linear interpolation; they sum to 1. `discount` holds the mask.
    """
    Tz = jnp.clip(r + discount * z, z[0], z[-1])
    shares = jnp.maximum(0, 1 - jnp.abs(Tz[:, None] - z[None, :]))
    return jnp.sum(p[:, None] * shares, axis=0)


def critic_loss(
    critic: PerceiverCritic, target_critic: PerceiverCritic, actor: FlowActor, batch: Batch, noise: Noise, discount: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""With $a' = \mathrm{clip}(\mu(s', z'))$: $-\langle \sum_i p^{target}_i \log p_i(s, a) \rangle$, $p^{target}$ projected from $\bar
    p(s', a')$. In nats.

    Moves the critic alone; also returns the mean of Q.
    """

    def one(row: Batch, z: Noise) -> tuple[Float[Array, ""], Float[Array, ""]]:
        a_next = actor.act(row.next_observations, z.next_action)
        p_next = jax.nn.softmax(target_critic.logits(row.next_observations, a_next))
        p_target = project(p_next, critic.support, row.rewards, discount * row.masks)
        log_p = jax.nn.log_softmax(critic.logits(row.observations, row.actions))
        return -jnp.sum(p_target * log_p), jnp.sum(jnp.exp(log_p) * critic.support)

    loss, Q = jax.vmap(one)(batch, noise)
    return jnp.mean(loss), jnp.mean(Q)


class PAC(AbstractAgent):
    """The state of its training."""

    Config = PACConfig
    presets = {"pocket": pocket, "paper": paper, "paper-whole-range": paper_whole_range}

    critic: PerceiverCritic
    target_critic: PerceiverCritic
    actor: FlowActor
    critic_state: optax.OptState
    actor_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: PACConfig = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: PACConfig, statistics: DataStatistics) -> "PAC":
        keys, c = seed_keys(config.seed), config
        sizes = dict(d_model=c.d_model, latents=c.latents, latent_blocks=c.latent_blocks)
        critic = PerceiverCritic(n_s, n_a, **sizes, v_min=c.v_min, key=keys.critic)
        actor = FlowActor(n_s, n_a, hidden=c.hidden, flow_steps=c.flow_steps, key=keys.actor)
        states = start(adamw(c.critic_lr, c), critic), start(adamw(c.actor_lr, c), actor)
        return cls(critic, copy(critic), actor, *states, jnp.zeros((), int), keys.training, n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["PAC", Metrics]:
        c = self.config
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        (of_critic, q), critic_grads = value_and_grad(critic_loss)(self.critic, self.target_critic, self.actor, batch, noise, c.discount)
        (_, actor_metrics), actor_grads = value_and_grad(actor_loss)(self.actor, self.critic, batch, noise, c.alpha_bc)

        critic, critic_state = descend(adamw(c.critic_lr, c), self.critic, critic_grads, self.critic_state)
        actor, actor_state = descend(adamw(c.actor_lr, c), self.actor, actor_grads, self.actor_state)
        target_critic = polyak(self.critic, self.target_critic, c.tau)

        networks = dict(critic=critic, target_critic=target_critic, actor=actor)
        agent = replace(self, **networks, critic_state=critic_state, actor_state=actor_state, step=self.step + 1)
        return agent, {"cross_entropy_loss": of_critic, "q_mean": q} | actor_metrics

    def policy(self, name: str) -> Act:
        return eqx.Partial(POLICIES[name], self.actor)
