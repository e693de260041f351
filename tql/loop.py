r"""Transformer Q-Learning (TQL): three losses, and one update of all that learns (paper 3 to 5)."""

import importlib
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tql.agent import AbstractAgent, Metrics, Policy, batch_noise, seed_keys
from tql.attention import ATTENTIONS, BLOCKS, AbstractAttention, AbstractBlock, group_entropy
from tql.batch import Transition
from tql.components import build, checked, find_class
from tql.config import CriticConfig, TQLConfig
from tql.critic import AbstractCritic, Critic
from tql.entropy_controller import CONTROLLERS, AbstractEntropyController, default_target
from tql.flow_actor import ACTORS, POLICIES, AbstractActor, Noise, actor_loss, draw_noise
from tql.optimise import Learner, adamw, copy, polyak, schedule, value_and_grad
from tql.presets import PRESETS
from tql.tokenizer import TOKENIZERS, AbstractTokenizer

Scalar, Groups = Float[Array, ""], Float[Array, "layers 2"]


def td_loss(
    critic: AbstractCritic, target_critic: AbstractCritic, actor: AbstractActor,
    row: Transition, noise: Noise, gamma: float
) -> tuple[Scalar, tuple[Float[Array, " K"], Scalar, Groups]]:
    r"""For one transition: $y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a')$ and
    $\frac1K\sum_k (Q_k(s, a) - y)^2$. The K values, y and the entropies (nats) are returned too."""
    r, m = row.r, row.m
    a_next = actor.next_action(row.s_next, row.a_next, noise.next_action)
    a_next = checked(a_next, row.a.shape, "actor.next_action(s_next, a_next, z)")
    y = r + gamma * m * jnp.mean(target_critic(row.s_next, a_next))
    Q, logits = critic.with_attention(row.s, row.a)
    Q = checked(Q, (critic.ensemble,), "critic.with_attention(s, a)[0]")
    # Layer by layer, not with `vmap`: so XLA reuses the exponentials of the attention itself.
    H = jnp.stack([group_entropy(l) for l in logits])
    return jnp.mean((Q - y) ** 2), (Q, y, H)


def critic_loss(
    critic: AbstractCritic, target_critic: AbstractCritic, actor: AbstractActor,
    controller: AbstractEntropyController, batch: Transition, noise: Noise, gamma: float
) -> tuple[Scalar, tuple[Groups, Metrics]]:
    """TD loss + attention loss, means over the batch. It moves the critic. The entropies H and what
    to log are returned too."""
    one = lambda row, noise: td_loss(critic, target_critic, actor, row, noise, gamma)
    td, (Q, y, H) = jax.vmap(one)(batch, noise)
    td, H = jnp.mean(td), jnp.mean(H, axis=0)
    attention = controller.attention_loss(H)
    metrics = {"td_loss": td, "attention_loss": attention, "entropy": H, "q_mean": jnp.mean(Q)}
    return td + attention, (H, metrics | {"q_std": jnp.std(Q), "target_mean": jnp.mean(y)})


def temperature_loss(controller: AbstractEntropyController, H: Groups) -> tuple[Scalar, Metrics]:
    """The controller's loss at the entropies H. It moves the temperatures."""
    loss = controller.temperature_loss(H)
    return loss, {"temperature_loss": loss, "alpha": controller.alpha()}


class TQL(AbstractAgent):
    """All that training changes, and the settings that it obeys, as one PyTree."""

    Config = TQLConfig
    presets = PRESETS

    critic: Learner
    target_critic: AbstractCritic
    controller: Learner
    actor: Learner
    step: Int[Array, ""]
    key: PRNGKeyArray
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: TQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s: int, n_a: int, config: TQLConfig) -> "TQL":
        keys = seed_keys(config.seed)
        of_critic, of_temperatures, of_actor = optimisers(config)
        critic = make_critic(n_s, n_a, config.critic, key=keys.critic)
        actor = make_actor(n_s, n_a, config, key=keys.actor)
        return cls(
            Learner.start(critic, of_critic),
            copy(critic),
            Learner.start(make_controller(n_s, n_a, config), of_temperatures),
            Learner.start(actor, of_actor),
            *(jnp.zeros((), int), keys.training, n_s, n_a, config),
        )

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["TQL", Metrics]:
        """One update of TQL from one batch."""
        noise = batch_noise(lambda k: draw_noise(self.n_a, key=k), key, batch)
        return self.update_with_noise(batch, noise)

    def update_with_noise(self, batch: Transition, noise: Noise) -> tuple["TQL", Metrics]:
        """One update, as a deterministic function of batch and noise. Every loss is taken at the
        agent before the update.

        1. The critic's gradient, of TD loss + attention loss. It also gives the entropies H.
        2. The temperatures' gradient, at these entropies.
        3. The actor's gradient.
        4. Each descends its gradient, and the target critic moves towards the critic.
        """
        config, target_critic = self.config, self.target_critic
        critic, controller, actor = self.critic.model, self.controller.model, self.actor.model
        of_critic, of_temperatures, of_actor = optimisers(config)

        # 1. The critic.
        (_, (H, critic_metrics)), critic_gradient = value_and_grad(critic_loss)(
            critic, target_critic, actor, controller, batch, noise, config.discount
        )
        # 2. The temperatures.
        temperature = value_and_grad(temperature_loss)
        (_, temperature_metrics), controller_gradient = temperature(controller, H)
        # 3. The actor.
        (_, actor_metrics), actor_gradient = value_and_grad(actor_loss)(
            actor, critic, batch, noise, config.actor.alpha_bc
        )
        # 4. As in the reference, the target follows the critic from before this update.
        agent = replace(
            self,
            critic=self.critic.descend(critic_gradient, of_critic),
            target_critic=polyak(critic, target_critic, config.tau),
            controller=self.controller.descend(controller_gradient, of_temperatures),
            actor=self.actor.descend(actor_gradient, of_actor),
            step=self.step + 1,
        )
        return agent, critic_metrics | temperature_metrics | actor_metrics

    @property
    def policies(self) -> tuple[str, ...]:
        return self.actor.model.policies

    def policy(self, name: str) -> Policy:
        return eqx.Partial(POLICIES[name], self.actor.model)

    def about(self) -> dict:
        return {"target": self.controller.model.target}


def optimisers(config: TQLConfig) -> tuple[optax.GradientTransformation, ...]:
    """The optimisers of the critic, the temperatures and the actor."""
    of_temperatures = optax.adam(schedule(config.temperature_lr, config))
    return adamw(config.critic_lr, config), of_temperatures, adamw(config.actor_lr, config)


def make_critic(n_s: int, n_a: int, config: CriticConfig, *, key: PRNGKeyArray) -> AbstractCritic:
    """The critic that the settings ask for. Raises `ValueError` if there is no such component."""
    sizes = {name: getattr(config, name) for name in ("d_model", "layers", "heads", "ensemble")}
    critic = Critic(
        n_s,
        n_a,
        **sizes,
        make_tokenizer=find_class(config.tokenizer, TOKENIZERS, AbstractTokenizer),
        make_attention=find_class(config.attention, ATTENTIONS, AbstractAttention),
        make_block=find_class(config.block, BLOCKS, AbstractBlock),
        key=key,
    )
    if config.changes:
        return importlib.import_module("tql.variants.changes").changed(critic, config.changes)
    return critic


def make_actor(n_s: int, n_a: int, config: TQLConfig, *, key: PRNGKeyArray) -> AbstractActor:
    """The actor that the settings ask for. Raises `ValueError` as `make_critic` does."""
    make = find_class(config.actor.kind, ACTORS, AbstractActor)
    sizes = dict(hidden=config.actor.hidden, flow_steps=config.actor.flow_steps)
    return build(make, n_s, n_a, **sizes, key=key)


def make_controller(n_s: int, n_a: int, config: TQLConfig) -> AbstractEntropyController:
    """The controller that the settings ask for. Raises `ValueError` as `make_critic` does."""
    n, control = 1 + n_s + n_a, config.control
    target = control.target or default_target(n, config.critic.layers)
    return build(find_class(control.kind, CONTROLLERS, AbstractEntropyController), target, n)
