r"""PAC (Perceiver Actor-Critic; Springenberg et al. 2024) as the TQL authors ran it: its critic,
with the actor of FQL.

The critic is a Perceiver (Jaegle et al. 2021): few learned rows, the latents, read many tokens. The
state's scalars are tokens; the latents read them by cross-attention and then attend to each other;
a query made of the action reads the latents, and logits of a categorical distribution over values
come out, $Q = \sum_i p_i z_i$. So the price grows with n_s, not with its square. There is one
critic, no ensemble, with an average $\bar p$. The actor is FQL's with layer norm; it acts with
$\mathrm{clip}(\mu(s, z))$.

Settings: from the authors' fork of floq. Its scripts ask for an actor rate of 5e-4, but the code
gives the actors to the critic's optimiser, so they were trained at the critic's 1e-4; so does the
preset `paper`. It also has their v_min, which lies above the smallest return of scene, puzzle-3x3
and puzzle-4x4, so that bad states share the lowest value there; `paper-whole-range` reaches down to
that return. Doubts: 32 latents (fork) or 16 (their repository); the size of the published column;
cube-single was never published. Departures: the original's policy head over discrete actions, which
has no loss in the authors' version, is left out; position vectors are not decayed.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.attention import Block, SoftmaxAttention
from tql.baselines.networks import Loss, Scalar
from tql.batch import Transition
from tql.config import AbstractScheduledConfig
from tql.critic import D_HEAD
from tql.flow_actor import POLICIES, FlowActor, Noise, actor_loss, draw_noise
from tql.layers import NORM_EPS, Linear, lecun_normal
from tql.optimise import Learner, adamw, copy, polyak, value_and_grad
from tql.presets import POCKET, domain_of


@dataclass(frozen=True)
class PACConfig(AbstractScheduledConfig):
    """Settings of PAC; `paper` sets what differs by domain."""

    may_be_negative: ClassVar[tuple[str, ...]] = ("v_min",)

    method: str = "pac"
    weight_decay: float = 0.001  # AdamW's decay of the matrices, as a fraction of the rate.
    critic_lr: float = 1e-4  # Peak learning rate of the critic.
    actor_lr: float = 1e-4  # Peak learning rate of the flow and the policy.
    d_model: int = 160  # Width of the critic, in channels; the scaling study has 80, 160, 320, 640.
    latents: int = 32  # Learned latent tokens.
    latent_blocks: int = 2  # Self-attention blocks of the latents.
    v_min: float = -200.0  # Smallest value of the support, whose values are 1 apart and end at 0.
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Hidden widths of flow and policy.
    flow_steps: int = 10  # Euler steps of the behaviour flow.
    alpha_bc: float = 300.0  # Weight of the distillation loss against Q.

    def __post_init__(self):
        super().__post_init__()
        if self.d_model % (heads := heads_of(self.d_model)):
            raise ValueError(
                f"d_model is {self.d_model}; it must be a multiple of {heads}, its number of "
                "attention heads."
            )
        if not (math.isfinite(self.v_min) and self.v_min < 0 and self.v_min == int(self.v_min)):
            raise ValueError(
                f"v_min is {self.v_min}; it must be a whole number below 0, because the values are "
                "1 apart and end at 0."
            )


def heads_of(d_model: int) -> int:
    """One attention head per 32 channels: 80 channels have 2 of 40."""
    return max(1, d_model // D_HEAD)


def paper(task: str) -> PACConfig:
    """The paper's settings."""
    domain = domain_of(task)
    lowest = {"cube-single": -100.0, "cube-double": -200.0, "scene": -400.0}
    lowest |= {"puzzle-4x4": -900.0, "cube-quadruple": -400.0}
    alpha_bc = 1000.0 if domain.startswith("puzzle") else 300.0
    return PACConfig(task=task, v_min=lowest.get(domain, -300.0), alpha_bc=alpha_bc)


def smallest_return(task: str, gamma: float) -> float:
    r"""$-k/(1-\gamma)$ of k unsolved sub-goals for ever, rounded away from 0 to a whole number."""
    sub_goals = {"cube-double": 2, "cube-triple": 3, "cube-quadruple": 4}
    sub_goals |= {"scene": 5, "puzzle-3x3": 9, "puzzle-4x4": 16}
    k = sub_goals.get(domain_of(task), 1)
    return -float(math.ceil(round(k / (1 - gamma), 6)))


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


class CrossBlock(eqx.Module):
    r"""Rows x read a context c: $y = x + \mathrm{Attention}(\mathrm{LN}_1(x), \mathrm{LN}_2(c))$,
    then $y + \mathrm{MLP}(\mathrm{LN}_3(y))$."""

    query_norm: eqx.nn.LayerNorm
    context_norm: eqx.nn.LayerNorm
    mlp_norm: eqx.nn.LayerNorm
    attention: SoftmaxAttention
    mlp_in: Linear
    mlp_out: Linear
    d_model: int = eqx.field(static=True)

    def __init__(self, d_model: int, heads: int, *, key: PRNGKeyArray):
        k_attention, k_in, k_out = jr.split(key, 3)
        norms = (eqx.nn.LayerNorm(d_model, eps=NORM_EPS) for _ in range(3))
        self.query_norm, self.context_norm, self.mlp_norm = norms
        self.attention = SoftmaxAttention(d_model, heads, key=k_attention)
        self.mlp_in = Linear(lecun_normal, d_model, 4 * d_model, key=k_in)
        self.mlp_out = Linear(lecun_normal, 4 * d_model, d_model, key=k_out)
        self.d_model = d_model

    def __call__(
        self, x: Float[Array, "m {self.d_model}"], c: Float[Array, "n {self.d_model}"]
    ) -> Float[Array, "m {self.d_model}"]:
        queries, context = jax.vmap(self.query_norm)(x), jax.vmap(self.context_norm)(c)
        y = x + self.attention.mix(self.attention.logits(queries, context), context)
        h = jax.vmap(self.mlp_norm)(y)
        return y + self.mlp_out(jax.nn.gelu(self.mlp_in(h), approximate=True))


class PerceiverCritic(eqx.Module):
    """State tokens, latents that read them, an action query that reads the latents, logits over the
    support."""

    state_map: Linear
    positions: Float[Array, "n_s d_model"]
    latents: Float[Array, "latents d_model"]
    encode: CrossBlock
    latent_blocks: tuple[Block, ...]
    latent_norm: eqx.nn.LayerNorm
    action_map: Linear
    action_query: Linear
    query_norm: eqx.nn.LayerNorm
    decode: CrossBlock
    out_norm: eqx.nn.LayerNorm
    hidden: Linear
    out: Linear
    v_min: float = eqx.field(static=True)
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __init__(self, n_s: int, n_a: int, config: PACConfig, *, key: PRNGKeyArray):
        keys, d_model, blocks = jr.split(key, 11), config.d_model, config.latent_blocks
        heads = heads_of(d_model)
        self.state_map = Linear(lecun_normal, 1, d_model, key=keys[0])
        self.positions = 0.02 * jr.normal(keys[1], (n_s, d_model))
        self.latents = 0.02 * jr.normal(keys[2], (config.latents, d_model))
        self.encode = CrossBlock(d_model, heads, key=keys[3])
        block_keys = zip(jr.split(keys[4], blocks), jr.split(keys[5], blocks))
        self.latent_blocks = tuple(
            Block(SoftmaxAttention(d_model, heads, key=k_a), key=k_b) for k_a, k_b in block_keys
        )
        self.action_map = Linear(lecun_normal, 1, d_model, key=keys[6])
        self.action_query = Linear(lecun_normal, n_a * d_model, d_model, key=keys[7])
        self.decode = CrossBlock(d_model, heads, key=keys[8])
        norms = (eqx.nn.LayerNorm(d_model, eps=NORM_EPS) for _ in range(3))
        self.latent_norm, self.query_norm, self.out_norm = norms
        self.hidden = Linear(lecun_normal, d_model, d_model // 2, key=keys[9])
        self.out = Linear(lecun_normal, d_model // 2, 1 - int(config.v_min), key=keys[10])
        self.v_min, self.n_s, self.n_a, self.ensemble = config.v_min, n_s, n_a, 1

    @property
    def support(self) -> Float[Array, " values"]:
        """$z_i$: v_min, v_min + 1, ..., 0, in units of discounted reward."""
        return self.v_min + jnp.arange(1 - int(self.v_min), dtype=self.latents.dtype)

    def logits(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " values"]:
        """The logits of the distribution over the support."""
        tokens = self.state_map(s[:, None]) + self.positions
        x = self.encode(self.latents, tokens)
        for block in self.latent_blocks:
            x, _ = block(x)
        latents = jax.vmap(self.latent_norm)(x)
        query = self.query_norm(self.action_query(self.action_map(a[:, None]).reshape(-1)))
        read = self.decode(query[None], latents)[0]
        return self.out(jax.nn.gelu(self.hidden(self.out_norm(read)), approximate=True))

    def __call__(
        self, s: Float[Array, " {self.n_s}"], a: Float[Array, " {self.n_a}"]
    ) -> Float[Array, " {self.ensemble}"]:
        r"""$Q = \sum_i p_i z_i$."""
        return jnp.sum(jax.nn.softmax(self.logits(s, a)) * self.support)[None]


def project(
    p: Float[Array, " values"], z: Float[Array, " values"], r: Scalar, gamma: Scalar
) -> Float[Array, " values"]:
    r"""The distribution of $r + \gamma z$ on the same support: each $p_i$ is shared between the two
    values next to where it lands. `gamma` holds the mask.

    $$Tz_i = \mathrm{clip}(r + \gamma z_i), \qquad
    p^{target}_j = \sum_i p_i\,\max(0,\, 1 - |Tz_i - z_j|)$$

    The values are 1 apart, so the weights of one $p_i$ are those of linear interpolation, and they
    sum to 1.
    """
    Tz = jnp.clip(r + gamma * z, z[0], z[-1])
    shares = jnp.maximum(0, 1 - jnp.abs(Tz[:, None] - z[None, :]))
    return jnp.sum(p[:, None] * shares, axis=0)


def critic_loss(
    critic: PerceiverCritic,
    target_critic: PerceiverCritic,
    actor: FlowActor,
    batch: Transition,
    noise: Noise,
    gamma: float,
) -> Loss:
    r"""With $a' = \mathrm{clip}(\mu(s', z'))$: $-\langle \sum_i p^{target}_i \log p_i(s, a)
    \rangle$ in nats, with $p^{target}$ projected from $\bar p(s', a')$. It moves the critic."""

    def one(row: Transition, z: Noise) -> tuple[Scalar, Scalar]:
        a_next = actor.act(row.s_next, z.next_action)
        p_next = jax.nn.softmax(target_critic.logits(row.s_next, a_next))
        p_target = project(p_next, critic.support, row.r, gamma * row.m)
        log_p = jax.nn.log_softmax(critic.logits(row.s, row.a))
        return -jnp.sum(p_target * log_p), jnp.sum(jnp.exp(log_p) * critic.support)

    loss, Q = jax.tree.map(jnp.mean, jax.vmap(one)(batch, noise))
    return loss, {"cross_entropy_loss": loss, "q_mean": Q}


class PAC(AbstractAgent):
    """The state of PAC's training."""

    Config = PACConfig
    presets = {"pocket": pocket, "paper": paper, "paper-whole-range": paper_whole_range}

    critic: Learner
    target_critic: PerceiverCritic
    actor: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: PACConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: PACConfig) -> "PAC":
        keys, c = seed_keys(config.seed), config
        critic = PerceiverCritic(n_s, n_a, config, key=keys.critic)
        critic = Learner.start(critic, adamw(c.critic_lr, c))
        actor = FlowActor(n_s, n_a, hidden=c.hidden, flow_steps=c.flow_steps, key=keys.actor)
        actor = Learner.start(actor, adamw(c.actor_lr, c))
        rest = jnp.zeros((), int), keys.training, n_s, n_a, config
        return cls(critic, copy(critic.model), actor, *rest)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["PAC", Metrics]:
        """One update."""
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        return self.update_with_noise(batch, noise)

    def update_with_noise(self, batch: Transition, noise: Noise) -> tuple["PAC", Metrics]:
        """One update, a deterministic function of batch and noise."""
        c, target_critic = self.config, self.target_critic
        critic, actor = self.critic.model, self.actor.model
        (_, critic_metrics), critic_gradient = value_and_grad(critic_loss)(
            critic, target_critic, actor, batch, noise, c.discount
        )
        (_, actor_metrics), actor_gradient = value_and_grad(actor_loss)(
            actor, critic, batch, noise, c.alpha_bc
        )
        agent = replace(
            self,
            critic=self.critic.descend(critic_gradient, adamw(c.critic_lr, c)),
            target_critic=polyak(critic, target_critic, c.tau),
            actor=self.actor.descend(actor_gradient, adamw(c.actor_lr, c)),
            step=self.step + 1,
        )
        return agent, critic_metrics | actor_metrics

    def policy(self, name: str) -> Policy:
        return eqx.Partial(POLICIES[name], self.actor.model)
