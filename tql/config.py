"""What runs: the task's name and every setting, as frozen dataclasses. Imports neither jax nor the simulator."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from tyro.conf import Positional

DOMAINS = {
    "play": ("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4"),
    "noisy": ("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4"),
    "navigate": ("pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport"),
}
"""The domains of OGBench that can be generated and trained on, by kind of dataset."""


def task_names() -> list[str]:
    """Every name that `Task.parse` takes: OGBench's own dataset and single-task names."""
    stems = [f"{domain}-{kind}" for kind, domains in DOMAINS.items() for domain in domains]
    ends = ["-v0", "-singletask-v0", *(f"-singletask-task{i}-v0" for i in range(1, 6))]
    return [stem + end for stem in stems for end in ends]


@dataclass(frozen=True)
class Task:
    """A dataset of OGBench and, for training, one of the five single tasks of its domain."""

    name: str
    domain: str
    kind: str
    task_id: int | None

    @staticmethod
    def parse(name: str) -> "Task":
        """Reads OGBench's own name, for example `cube-single-play-v0` or `scene-play-singletask-task2-v0`.

        Raises `ValueError`, with the nearest right name, for any other.
        """
        if name not in task_names():
            near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.0)[0]
            raise ValueError(f"there is no task '{name}'; the nearest name is '{near}'.")
        domain, kind, single, task_id = re.fullmatch(
            r"(.+)-(play|noisy|navigate)(-singletask)?(?:-task(\d))?-v0", name
        ).groups()
        # OGBench's "-singletask-v0" without a number is the domain's default task; which one is OGBench's to say.
        return Task(name, domain, kind, int(task_id) if task_id else None)

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, which all tasks of a domain share: `cube-single-play-v0`."""
        return f"{self.domain}-{self.kind}-v0"

    @property
    def single_task_name(self) -> str:
        """Name under which OGBench gives rewards; without a task number, the domain's default task."""
        return f"{self.domain}-{self.kind}-singletask{self._number}-v0"

    @property
    def env_name(self) -> str:
        """Gymnasium's name of the environment with this task's reward: `cube-single-singletask-task2-v0`."""
        return f"{self.domain}-singletask{self._number}-v0"

    @property
    def _number(self) -> str:
        return f"-task{self.task_id}" if self.task_id else ""


Variant = Literal["plain", "qk-norm", "sigma-reparam", "rms-norm", "post-norm", "swiglu", "geglu", "softcap", "modern", "all"]


@dataclass(frozen=True)
class CriticConfig:
    """The transformer critic."""

    d_model: int = 128
    """Width, in channels."""
    layers: int = 2
    """Number of transformer blocks."""
    heads: int | None = None
    """Attention heads per block; d_model / 32 unless given."""
    ensemble: int = 2
    """Number K of Q heads; Q is their mean."""
    variant: Variant = "plain"
    """The transformer: plain is the paper's; modern is RMSNorm, post-norm, QK-norm and SwiGLU at once, all has sigma-reparam besides; the
    others change one part."""


@dataclass(frozen=True)
class ActorConfig:
    """The flow actor."""

    kind: Literal["flow", "dataset"] = "flow"
    """flow: the behaviour flow and its one-step policy. dataset: no policy, the TD target takes the dataset's next action."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of the flow and of the policy, in channels."""
    flow_steps: int = 10
    """Euler steps of the behaviour flow."""
    alpha_bc: float = 300.0
    """Weight of the distillation loss against Q: larger stays closer to the dataset."""
    normalise_q: bool = False
    """Divide Q in the policy's loss by the batch mean of its absolute value, so that alpha_bc does not depend on the scale of rewards."""


@dataclass(frozen=True)
class ControlConfig:
    """The control of the critic's attention entropy."""

    kind: Literal["none", "fixed", "single", "tql", "clipped", "signed"] = "tql"
    """none: plain transformer. fixed: constant penalty. single: one temperature. tql: one per layer and token group.
    clipped: tql's, within clip where they weigh the entropy. signed: tql's, which may turn negative and then lower the entropy."""
    target: tuple[tuple[float, float], ...] | None = None
    """Target entropies in nats, a pair ([VALUE], other tokens) per layer; 0.8 ln(n), last layer 0.5 lower, unless given."""
    coefficient: float = 1.0
    """The constant temperature of kind fixed."""
    clip: tuple[float, float] = (-100.0, 100.0)
    """Least and largest temperature of kind clipped; the default is far out of reach."""


@dataclass(frozen=True)
class TrainingConfig:
    """What every method needs to be told; each method's own settings are a subclass of it, in the method's file."""

    method: ClassVar[str]
    """The method's name in `METHODS`."""

    task: Positional[str]
    """OGBench's name of a single task, for example cube-double-play-singletask-task2-v0."""
    seed: int = 0
    """One seed determines the run: initialisation, batches, noise and evaluation."""
    steps: int = 1_000_000
    """Length of training, in gradient updates."""
    batch_size: int = 256
    """Transitions per update."""
    discount: float = 0.99
    """gamma, per environment step."""
    tau: float = 0.005
    """Rate of the target network's moving average, per update."""
    updates_per_call: int = 50
    """Updates per compiled chunk; must divide steps and the three intervals below. A signal is obeyed between chunks."""
    log_every: int = 1000
    """Updates between two lines of metrics, each a mean over the last chunk."""
    checkpoint_every: int = 10_000
    """Updates between checkpoints."""
    evaluate_every: int = 100_000
    """Updates between evaluations; one more at the end."""
    episodes: int = 50
    """Episodes per evaluation; 0 for none."""
    dataset_episodes: int | None = None
    """Episodes to generate (a tenth more for validation) where the dataset is missing; OGBench's official number unless given."""

    def __post_init__(self):
        """Raises `ValueError` for settings that cannot be run: every count at least 1, every rate at least 0 and finite."""
        Task.parse(self.task)
        if not 0 <= self.discount < 1 or not 0 < self.tau <= 1:
            raise ValueError(f"discount {self.discount} must lie in [0, 1) and tau {self.tau} in (0, 1].")
        for name, value, counts in numbers_of(self):
            if name in self.may_be_negative:
                continue
            least = 1 if counts and name not in ("seed", "episodes", "warmup") else 0
            if not least <= value < 2**32:
                raise ValueError(f"{name} is {value}; it must be at least {least}{'' if counts else ', and finite'}.")
        for name in ("steps", "log_every", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) % self.updates_per_call:
                raise ValueError(f"{name} {getattr(self, name)} is no multiple of updates_per_call {self.updates_per_call}; make it one.")

    may_be_negative: ClassVar[tuple[str, ...]] = ()
    """Settings of the subclass that may be below 0."""


def numbers_of(config) -> Iterator[tuple[str, float, bool]]:
    """Every number of a settings dataclass: its dotted name, its value, and whether it counts something (is an int)."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from ((f"{field.name}.{name}", number, counts) for name, number, counts in numbers_of(value))
        else:
            yield from ((field.name, leaf, "int" in str(field.type)) for leaf in leaves(value))


def leaves(value) -> Iterator[float]:
    """The numbers in nested tuples; names, switches and `None` are none."""
    if isinstance(value, tuple):
        for inner in value:
            yield from leaves(inner)
    elif not isinstance(value, (str, bool, type(None))):
        yield value


@dataclass(frozen=True)
class ScheduledConfig(TrainingConfig):
    """What methods trained with AdamW under a warm-up and a cosine add."""

    weight_decay: float = 0.01
    """AdamW's decay of the matrices of blocks, Q heads and actors, as a fraction of the learning rate per update."""
    warmup: int = 10_000
    """Updates in which the learning rates rise from 1 % to 100 %; a cosine to 10 % follows."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps <= 2 * self.warmup:
            raise ValueError(
                f"steps {self.steps} leave no room for the cosine after a warm-up of {self.warmup}; take more than {2 * self.warmup}, "
                "or a shorter warm-up (--warmup)."
            )


@dataclass(frozen=True)
class Config(ScheduledConfig):
    """Every setting of TQL. The defaults are the paper's at its smallest size; `paper` sets what it chose for each domain."""

    method: ClassVar[str] = "tql"
    may_be_negative: ClassVar[tuple[str, ...]] = ("control.clip",)

    aggregate: Literal["mean", "min"] = "mean"
    """What the TD target takes of the K heads; min is for critics that overestimate."""
    critic_lr: float = 1e-4
    """Peak learning rate of the critic."""
    actor_lr: float = 5e-4
    """Peak learning rate of the flow and the policy."""
    temperature_lr: float = 1e-4
    """Peak learning rate of the logarithm of the temperatures."""
    critic: CriticConfig = CriticConfig()
    actor: ActorConfig = ActorConfig()
    control: ControlConfig = ControlConfig()

    def __post_init__(self):
        super().__post_init__()
        low, high = self.control.clip
        if not low <= high:
            raise ValueError(f"control.clip is {self.control.clip}; give the least temperature first, then the largest.")
        target, layers = self.control.target, self.critic.layers
        if target is not None and len(target) != layers:
            raise ValueError(
                f"the entropy target {target} has {len(target)} pairs for {layers} layers; give one pair ([VALUE], other tokens) per layer."
            )


METHODS = {
    "tql": "tql.loop.Agent",
    "bc": "tql.baselines.bc.BC",
    "iql": "tql.baselines.iql.IQL",
    "rebrac": "tql.baselines.rebrac.ReBRAC",
    "fbrac": "tql.baselines.fbrac.FBRAC",
    "ifql": "tql.baselines.ifql.IFQL",
    "fql": "tql.baselines.fql.FQL",
    "floq": "tql.baselines.floq.Floq",
    "q-transformer": "tql.baselines.q_transformer.QTransformer",
    "pac": "tql.baselines.pac.PAC",
}
"""Methods by name, each the `tql.agent.AbstractAgent` to import when it is asked for. A new method is a new line here."""


POCKET = dict(
    steps=18_000,
    batch_size=64,
    discount=0.97,
    tau=0.02,
    updates_per_call=100,
    log_every=200,
    checkpoint_every=2000,
    evaluate_every=6000,
    dataset_episodes=120,
)
"""What the `pocket` settings of all methods share: the updates, the data and the discount that 2 cores can train (see `cpu`)."""

SIZES = {"0.4M": 128, "1M": 256, "7M": 512, "26M": 1024}
"""The paper's critics by their name: width d_model at two layers."""

PAPER_TARGETS = {
    "cube-double": ((3.0, 3.0), (2.5, 2.5)),
    "cube-triple": ((3.5, 3.5), (3.0, 3.0)),
    "scene": ((3.5, 3.5), (3.0, 3.0)),
    "puzzle-3x3": ((3.5, 3.5), (3.0, 3.0)),
    "puzzle-4x4": ((3.5, 3.5), (3.0, 3.0)),
}
"""Target entropies of the paper's five domains, in nats; other domains start from 0.8 ln(n)."""


def paper(task: str, size: str) -> Config:
    """The paper's settings (its appendix and section 5) for one of its sizes."""
    domain = Task.parse(task).domain
    return Config(
        task=task,
        critic=CriticConfig(d_model=SIZES[size]),
        actor=ActorConfig(alpha_bc=1000.0 if domain.startswith("puzzle") else 300.0),
        control=ControlConfig(target=PAPER_TARGETS.get(domain)),
        # Small, since a signal waits for the end of a chunk and these critics are slow on a CPU.
        updates_per_call=5,
        critic_lr=4e-4 if domain == "cube-triple" else 1e-4,
        temperature_lr=4e-4 if domain == "cube-triple" else 1e-4,
    )


def cpu(task: str) -> Config:
    """Four minutes on 2 cores, and it learns to act: made for cube-single-noisy-singletask-task3-v0.

    Departs from the paper where so short a run needs it: a small critic, a shorter horizon and a faster target so that values spread
    in 18,000 updates, larger learning rates (the temperatures' largest, or they would hardly move), a weak tie to the behaviour
    (rewards are -1 a step, so Q differs little between actions), half the flow steps, and `noisy` data, which cover more actions.
    """
    return Config(
        task=task,
        steps=18_000,
        batch_size=64,
        discount=0.97,
        tau=0.02,
        critic_lr=1e-3,
        actor_lr=1e-3,
        temperature_lr=1e-2,
        warmup=300,
        critic=CriticConfig(d_model=32),
        actor=ActorConfig(hidden=(256, 256, 256), flow_steps=5, alpha_bc=10.0),
        updates_per_call=100,
        log_every=200,
        checkpoint_every=2000,
        evaluate_every=18_000,
        dataset_episodes=120,
    )


def pocket(task: str) -> Config:
    """`cpu` as the pocket benchmark runs it beside the other methods: evaluated on the way too."""
    return replace(cpu(task), **POCKET)


def cpu_sarsa(task: str) -> Config:
    """One minute on 2 cores: a critic on the dataset's own next actions, no policy; the cheapest run that shows the collapse.

    Departs from the paper as `cpu` does; so that Q moves off its mean within 1000 updates, the horizon is shorter still.
    """
    return Config(
        task=task,
        steps=1000,
        batch_size=64,
        discount=0.95,
        tau=0.02,
        critic_lr=1e-3,
        temperature_lr=1e-2,
        warmup=100,
        critic=CriticConfig(d_model=64),
        actor=ActorConfig(kind="dataset"),
        log_every=50,
        checkpoint_every=250,
        evaluate_every=1000,
        dataset_episodes=100,
    )


def cpu_flow(task: str) -> Config:
    """Two minutes on 2 cores: the same with the flow actor, for the landscapes; too short to solve an episode."""
    return replace(cpu_sarsa(task), steps=1500, actor=ActorConfig(hidden=(256, 256, 256)), evaluate_every=1500)


PRESETS: dict[str, Callable[[str], Config]] = {
    "cpu": cpu,
    "pocket": pocket,
    "cpu-sarsa": cpu_sarsa,
    "cpu-flow": cpu_flow,
    **{f"paper-{size}": partial(paper, size=size) for size in SIZES},
}
"""Settings by name, each a function of the task."""

EXPECTED = {
    ("cpu", "cube-single-noisy-singletask-task3-v0"): (
        "over seeds 0, 1, 2 the policy solved 42, 36, 43 of 50 episodes (81 %, 95 % interval 74 to 86 %), the behaviour flow alone "
        "5, 5, 6 of 50 (11 %, 7 to 17 %); on a shared 2-core Xeon with jax 0.10.2. The intervals are over the episodes of these runs: on "
        "another machine, whose dataset was not the same bit for bit, the same seeds solved 36, 37, 28 of 50 (67 %)."
    )
}
"""What a preset was measured to give on a task, with machine, seeds and spread: printed beside a user's own result."""
