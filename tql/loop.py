r"""The agent's state, its three losses, one update (`update_with_noise`), and a chunk of updates in one compiled `scan`."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from tql.agent import AbstractAgent, Act, Metrics, batch_noise, seed_keys
from tql.attention import group_entropy
from tql.config import PRESETS, Config, TrainingConfig
from tql.critic import AbstractTransformerCritic
from tql.data import Batch, DataStatistics, sample
from tql.entropy_controller import (
    AbstractEntropyController,
    ClippedTemperature,
    FixedPenalty,
    NoControl,
    SignedTemperature,
    SingleTemperature,
    TemperaturePerGroup,
    default_target,
)
from tql.flow_actor import POLICIES, AbstractActor, DatasetActor, FlowActor, Noise, actor_loss, draw_noise
from tql.optimise import adamw, copy, descend, polyak, schedule, start, value_and_grad
from tql.variants import make_critic

AGGREGATE = {"mean": jnp.mean, "min": jnp.min}
"""Of the K heads, in the TD target."""


class Agent(AbstractAgent):
    """All that training changes, and the settings that it obeys. One PyTree: what is saved, donated and scanned over."""

    Config = Config
    presets = PRESETS

    critic: AbstractTransformerCritic
    target_critic: AbstractTransformerCritic
    actor: AbstractActor
    controller: AbstractEntropyController
    critic_state: optax.OptState
    controller_state: optax.OptState
    actor_state: optax.OptState
    step: Int[Array, ""]
    """Gradient updates made so far."""
    key: PRNGKeyArray
    """Never changes; update number k draws from fold_in(key, k)."""
    config: Config = eqx.field(static=True)

    @classmethod
    def initialise(cls, n_s: int, n_a: int, config: TrainingConfig, statistics: DataStatistics) -> "Agent":
        return initialise(n_s, n_a, config)

    def update(self, batch: Batch, key: PRNGKeyArray) -> tuple["Agent", Metrics]:
        return update(self, batch, key)

    def policy(self, name: str) -> Act:
        return eqx.Partial(POLICIES[name], self.actor)

    def about(self) -> dict:
        """The entropy target in force, in nats, also where the configuration leaves it to the default."""
        return {"target": self.controller.target}

    def progress(self, line: dict) -> str:
        pairs = zip(jnp.ravel(jnp.array(line["entropy"])), jnp.ravel(jnp.array(self.controller.target)))
        return f"TD loss {line['td_loss']:.3g}, entropy/target " + " ".join(f"{h:.2f}/{t:.2f}" for h, t in pairs)

    @property
    def n_s(self) -> int:
        return self.actor.n_s

    @property
    def n_a(self) -> int:
        return self.actor.n_a

    @property
    def policies(self) -> tuple[str, ...]:
        return self.actor.policies


def td_loss(
    critic: AbstractTransformerCritic,
    target_critic: AbstractTransformerCritic,
    actor: AbstractActor,
    discount: float,
    row: Batch,
    noise: Noise,
    aggregate: Callable[[Array], Array] = jnp.mean,
) -> tuple[Float[Array, ""], tuple[Float[Array, " ensemble"], Float[Array, ""], Float[Array, "layers 2"]]]:
    r"""For one transition: $y = r + \gamma\,m\,\frac1K\sum_k \bar Q_k(s', a')$ and $\frac1K\sum_k (Q_k(s, a) - y)^2$.

    `aggregate` is what y takes of the K heads, their mean unless given. Also returns the K values, y, and the entropy of every layer
    and token group in nats.
    """
    a_next = actor.next_action(row.next_observations, row.next_actions, noise.next_action)
    y = row.rewards + discount * row.masks * aggregate(target_critic(row.next_observations, a_next))
    Q, logits = critic.with_attention(row.observations, row.actions)
    return jnp.mean((Q - y) ** 2), (Q, y, jax.vmap(group_entropy)(logits))


def critic_loss(
    critic: AbstractTransformerCritic,
    target_critic: AbstractTransformerCritic,
    actor: AbstractActor,
    controller: AbstractEntropyController,
    batch: Batch,
    noise: Noise,
    discount: float,
    aggregate: Callable[[Array], Array] = jnp.mean,
) -> tuple[Float[Array, ""], tuple[Float[Array, "layers 2"], Metrics]]:
    """TD loss + attention loss, means over the batch. Moves the critic; also returns the entropies H."""
    td, (Q, y, H) = jax.vmap(lambda row, z: td_loss(critic, target_critic, actor, discount, row, z, aggregate))(batch, noise)
    td, H = jnp.mean(td), jnp.mean(H, axis=0)
    attention = controller.attention_loss(H)
    metrics = {"td_loss": td, "attention_loss": attention, "entropy": H, "q_mean": jnp.mean(Q), "q_std": jnp.std(Q)}
    return td + attention, (H, metrics | {"target_mean": jnp.mean(y)})


def temperature_loss(
    controller: AbstractEntropyController, H: Float[Array, "layers 2"]
) -> tuple[Float[Array, ""], Metrics]:
    """Moves the temperatures."""
    loss = controller.temperature_loss(H)
    return loss, {"temperature_loss": loss, "alpha": controller.alpha()}


def optimisers(
    config: Config,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation, optax.GradientTransformation]:
    """Of the critic, the temperatures and the actor."""
    return (
        adamw(config.critic_lr, config),
        optax.adam(schedule(config.temperature_lr, config)),
        adamw(config.actor_lr, config),
    )


def update(agent: Agent, batch: Batch, key: PRNGKeyArray) -> tuple[Agent, Metrics]:
    """One update of TQL from one batch."""
    noise = batch_noise(lambda k: draw_noise(agent.actor.n_a, key=k), key, batch)
    return update_with_noise(agent, batch, noise)


def update_with_noise(agent: Agent, batch: Batch, noise: Noise) -> tuple[Agent, Metrics]:
    """The same with the noise given: a deterministic function, every loss taken at the agent before the update."""
    config = agent.config
    of_critic, of_temperature, of_actor = optimisers(config)

    (_, (H, critic_metrics)), critic_grads = value_and_grad(critic_loss)(
        agent.critic, agent.target_critic, agent.actor, agent.controller, batch, noise, config.discount, AGGREGATE[config.aggregate]
    )
    (_, temperature_metrics), controller_grads = value_and_grad(temperature_loss)(agent.controller, H)
    (_, actor_metrics), actor_grads = value_and_grad(actor_loss)(
        agent.actor, agent.critic, batch, noise, config.actor.alpha_bc, config.actor.normalise_q
    )

    critic, critic_state = descend(of_critic, agent.critic, critic_grads, agent.critic_state)
    controller, controller_state = descend(of_temperature, agent.controller, controller_grads, agent.controller_state)
    actor, actor_state = descend(of_actor, agent.actor, actor_grads, agent.actor_state)
    # As in the reference, the target follows the critic from before this update.
    target_critic = polyak(agent.critic, agent.target_critic, config.tau)

    step = agent.step + 1
    agent = Agent(critic, target_critic, actor, controller, critic_state, controller_state, actor_state, step, agent.key, config)
    return agent, critic_metrics | temperature_metrics | actor_metrics


@eqx.filter_jit(donate="all-except-first")
def train_chunk(dataset_and_updates: tuple[Batch, int], agent: AbstractAgent) -> tuple[AbstractAgent, Metrics]:
    """A number of updates in one `scan`; every metric is stacked over them. The agent passed in is consumed (donated).

    Batches are drawn inside, uniformly with replacement, so nothing goes to the host within a chunk. Dataset and number come as one
    argument because donation spares the first argument only.
    """
    dataset, updates = dataset_and_updates
    arrays, static = eqx.partition(agent, eqx.is_array)

    def body(arrays: PyTree, _: None) -> tuple[PyTree, Metrics]:
        agent = eqx.combine(arrays, static)
        k_batch, k_update = jr.split(jr.fold_in(agent.key, agent.step))
        agent, metrics = agent.update(sample(dataset, agent.config.batch_size, k_batch), k_update)
        return eqx.filter(agent, eqx.is_array), metrics

    arrays, metrics = jax.lax.scan(body, arrays, None, length=updates)
    return eqx.combine(arrays, static), metrics


def initialise(
    n_s: int, n_a: int, config: Config, make_critic: Callable[..., AbstractTransformerCritic] = make_critic
) -> Agent:
    """A fresh agent for states of size `n_s` and actions of size `n_a`, determined by `config.seed`; its critic is `make_critic(n_s, n_a,
    config.critic, key=key)`.
    """
    keys = seed_keys(config.seed)
    critic = make_critic(n_s, n_a, config.critic, key=keys.critic)
    target_critic = copy(critic)
    actor = make_actor(n_s, n_a, config, key=keys.actor)
    controller = make_controller(n_s, n_a, config)
    states = (start(optimiser, model) for optimiser, model in zip(optimisers(config), (critic, controller, actor)))
    return Agent(critic, target_critic, actor, controller, *states, jnp.zeros((), int), keys.training, config)


def make_actor(n_s: int, n_a: int, config: Config, *, key: PRNGKeyArray) -> AbstractActor:
    """The actor that `config.actor` asks for."""
    if config.actor.kind == "dataset":
        return DatasetActor(n_s, n_a)
    return FlowActor(n_s, n_a, hidden=config.actor.hidden, flow_steps=config.actor.flow_steps, key=key)


def make_controller(n_s: int, n_a: int, config: Config) -> AbstractEntropyController:
    """The controller that `config.control` asks for. Raises `ValueError` for a target that n tokens cannot have."""
    target = config.control.target
    if target is None:
        target = default_target(n_s, n_a, config.critic.layers)
    n = 1 + n_s + n_a
    match config.control.kind:
        case "none":
            return NoControl(target, n)
        case "fixed":
            return FixedPenalty(target, n, config.control.coefficient)
        case "single":
            return SingleTemperature(target, n)
        case "tql":
            return TemperaturePerGroup(target, n)
        case "clipped":
            return ClippedTemperature(target, n, config.control.clip)
        case "signed":
            return SignedTemperature(target, n)
