"""The settings of a run, as frozen dataclasses."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import ClassVar


@dataclass(frozen=True)
class CriticConfig:
    """The transformer critic."""

    d_model: int = 128  # Width, in channels.
    layers: int = 2  # Number of transformer blocks.
    heads: int | None = None  # Attention heads per block; d_model / 32 unless given.
    ensemble: int = 2  # Number K of Q heads, whose mean is Q.
    tokenizer: str = "scalar"  # scalar or file.py:Class. The defaults here are the paper's.
    attention: str = "softmax"  # softmax, qk-norm, softcap, softcap+qk-norm or file.py:Class.
    block: str = "pre-norm"  # pre-norm, swiglu, geglu, sandwich, sandwich+swiglu or file.py:Class.
    changes: tuple[str, ...] = ()  # rms-norm, sigma-reparam: changes of the built critic, in order.


@dataclass(frozen=True)
class ActorConfig:
    """The flow actor."""

    kind: str = "flow"
    """flow: the behaviour flow and its one-step policy. dataset: no policy, and the TD target takes
    the action that the dataset took next. Or file.py:Class."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # Widths of the hidden layers of both MLPs.
    flow_steps: int = 10  # Euler steps of the behaviour flow.
    alpha_bc: float = 300.0  # Weight of the distillation loss; larger stays closer to the data.


@dataclass(frozen=True)
class ControlConfig:
    """The control of the critic's attention entropy."""

    kind: str = "tql"
    """none: no control. fixed: a constant penalty. single: one temperature. tql: one for each
    layer and token group. Or file.py:Class."""
    target: tuple[tuple[float, float], ...] | None = None
    """Target entropies in nats, a pair ([VALUE], other tokens) per layer; unless given, 0.8 ln(n),
    and 0.5 less in the last layer."""


@dataclass(frozen=True)
class AbstractConfig:
    """What every method needs to be told. The settings of a method are a subclass of this."""

    task: str  # OGBench's name of a single task, for example cube-double-play-singletask-task2-v0.
    method: str = "tql"  # What is trained: tql, a rival's short name, or file.py:Class.
    seed: int = 0  # It determines the run: initial weights, batches, noise, evaluation.
    steps: int = 1_000_000  # Length of training, in gradient updates.
    batch_size: int = 256  # Transitions per update.
    discount: float = 0.99  # gamma, per environment step.
    tau: float = 0.005  # Rate of the target network's moving average, per update.
    updates_per_call: int = 50
    """Updates per compiled chunk; it divides steps and intervals. Signals are obeyed after one."""
    log_every: int = 1000  # Updates between two lines of metrics, means over a chunk.
    checkpoint_every: int = 10_000  # Updates between two checkpoints.
    evaluate_every: int = 100_000  # Updates between two evaluations; one more at the end.
    episodes: int = 50  # Episodes per evaluation; 0 for none.
    dataset_episodes: int | None = None
    """Episodes to generate where the dataset is missing; OGBench's official number unless given."""
    dataset_seed: int = 0  # Seed of the dataset that is generated where it is missing.

    may_be_0: ClassVar[tuple[str, ...]] = ("seed", "dataset_seed", "episodes", "warmup")
    may_be_negative: ClassVar[tuple[str, ...]] = ()  # Settings of the subclass that may be below 0.

    def __post_init__(self):
        """Raises `ValueError` for settings that cannot be run."""
        discount, tau = self.discount, self.tau
        if not 0 <= discount < 1 or not 0 < tau <= 1:
            raise ValueError(f"discount {discount} must lie in [0, 1) and tau {tau} in (0, 1].")
        for name, value, counts in numbers_of(self):
            least = 1 if counts and name not in self.may_be_0 else 0
            if name not in self.may_be_negative and not least <= value < 2**32:
                raise ValueError(f"{name} is {value}; it must lie in [{least}, 2^32).")
        for name in ("steps", "log_every", "checkpoint_every", "evaluate_every"):
            value, chunk = getattr(self, name), self.updates_per_call
            if value % chunk:
                raise ValueError(f"{name} {value} is no multiple of updates_per_call {chunk}.")


def numbers_of(config, prefix: str = "") -> Iterator[tuple[str, float, bool]]:
    """Every number of a settings dataclass: its dotted name, its value, and whether it counts
    something (is an int). Names, switches and `None` are not numbers."""
    for field in fields(config):
        waiting = [getattr(config, field.name)]
        while waiting:
            value = waiting.pop()
            if is_dataclass(value):
                yield from numbers_of(value, f"{prefix}{field.name}.")
            elif isinstance(value, tuple):
                waiting.extend(value)
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{prefix}{field.name}", value, "int" in str(field.type)


@dataclass(frozen=True)
class AbstractScheduledConfig(AbstractConfig):
    """What methods add that are trained with AdamW under a warm-up and a cosine."""

    weight_decay: float = 0.01  # Of matrices, as a fraction of the learning rate per update.
    warmup: int = 10_000  # Updates in which the learning rates rise from 1 % to 100 %.

    def __post_init__(self):
        super().__post_init__()
        if self.steps <= 2 * self.warmup:
            raise ValueError(
                f"steps {self.steps} must be more than twice the warm-up ({self.warmup}), to leave "
                "room for the cosine; take more steps, or a shorter warm-up (--warmup)."
            )


@dataclass(frozen=True)
class TQLConfig(AbstractScheduledConfig):
    """Every setting of TQL. The defaults are the paper's at its smallest size; `presets.paper` sets
    what the paper chose for each domain."""

    critic_lr: float = 1e-4  # Peak learning rate of the critic.
    actor_lr: float = 5e-4  # Peak learning rate of the flow and the policy.
    temperature_lr: float = 1e-4  # Peak learning rate of the logarithm of the temperatures.
    critic: CriticConfig = CriticConfig()
    actor: ActorConfig = ActorConfig()
    control: ControlConfig = ControlConfig()

    def __post_init__(self):
        super().__post_init__()
        target, layers = self.control.target, self.critic.layers
        if target is not None and len(target) != layers:
            raise ValueError(f"the entropy target {target} must have one pair for {layers} layers.")
