"""The exercises: what a student defines in each, and which checkers look at it.

A checker is named, not imported, so that this list costs nothing to read. A lecturer who gives
other points, or leaves a part out, changes this file and no other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tql.contracts import course


@dataclass(frozen=True)
class Part:
    """One test of an exercise: a checker, and the student's objects that it is called with."""

    name: str
    points: int
    checker: str
    """`module:function` below `tql.contracts`."""
    takes: tuple[str, ...]
    """The student's names, in the order of the checker's arguments."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the checker gets besides."""

    def load(self) -> Callable[..., Any]:
        """The checker itself."""
        module, _, function = self.checker.partition(":")
        return getattr(import_module(f"tql.contracts.{module}"), function)


@dataclass(frozen=True)
class Exercise:
    """One file that is handed out, and its parts."""

    number: int
    file: str
    title: str
    difficulty: str
    minutes: int
    """For a student."""
    parts: tuple[Part, ...]
    seconds: float = 60.0
    """Limit of time when it is graded. A check takes a tenth of it on an idle core."""
    library: tuple[str, ...] = ()
    """What of tql is the answer itself; an answer that uses it gets no points."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the student defines, in the order in which it is checked."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.takes))

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)


_EXERCISES = (
    Exercise(
        1,
        "01_entropy.py",
        "How many tokens does a row look at?",
        "easy",
        30,
        (
            Part(
                "the entropy of a row",
                10,
                "entropy:check_row_entropy",
                ("row_entropy",),
                {"unit": course.UNIT},
            ),
        ),
        library=("tql.attention.row_entropy", "tql.attention.group_entropy"),
    ),
    Exercise(
        2,
        "02_attention.py",
        "Which rows does a query read?",
        "medium",
        45,
        (
            Part("the seam of any attention", 4, "attention:check_attention", ("Attention",)),
            Part("its values", 6, "attention:check_dot_product_attention", ("Attention",)),
        ),
        library=("tql.attention.SoftmaxAttention",),
    ),
    Exercise(
        3,
        "03_tokenizer.py",
        "How large was that number?",
        "medium",
        45,
        (
            Part("the seam of any tokenizer", 4, "tokenizer:check_tokenizer", ("Tokenizer",)),
            Part("the magnitude", 6, "tokenizer:check_keeps_magnitude", ("Tokenizer",)),
        ),
    ),
    Exercise(
        4,
        "04_td_loss.py",
        "What does the critic learn from?",
        "easy",
        30,
        (Part("the TD loss", 10, "td:check_td_loss", ("td_loss",)),),
        library=("tql.loop.td_loss", "tql.loop.critic_loss"),
    ),
    Exercise(
        5,
        "05_temperatures.py",
        "What does a temperature move, and what may it not move?",
        "medium",
        60,
        (
            Part(
                "the two losses",
                4,
                "controller:check_temperature_losses",
                ("attention_loss", "temperature_loss"),
            ),
            Part(
                "a controller per head",
                6,
                "controller:check_head_controller",
                ("TemperaturePerHead",),
            ),
        ),
        library=(
            "tql.entropy_controller.TemperaturePerGroup",
            "tql.entropy_controller.SingleTemperature",
            "tql.loop.temperature_loss",
        ),
    ),
    Exercise(
        6,
        "06_flow.py",
        "How does noise become an action?",
        "medium",
        45,
        (
            Part("flow matching", 4, "flow:check_flow_matching", ("flow_matching",)),
            Part("the Euler integral", 3, "flow:check_euler", ("euler",)),
            Part("the order of an integral", 3, "flow:check_order", ("order",)),
        ),
        library=("tql.flow_actor.flow_matching", "tql.flow_actor.euler"),
    ),
    Exercise(
        7,
        "07_one_update.py",
        "Do your parts make an agent?",
        "hard",
        90,
        (Part("three updates", 10, "update:check_update", ("update", "Attention")),),
        seconds=180.0,
        library=("tql.loop.td_loss", "tql.loop.critic_loss", "tql.loop.temperature_loss"),
    ),
    Exercise(
        8,
        "08_diagnosis.py",
        "Which bug has which agent?",
        "hard",
        45,
        (Part("which agent has which bug", 10, "diagnosis:check_diagnosis", ("answers",)),),
    ),
)

EXERCISES = {exercise.number: exercise for exercise in _EXERCISES}
"""By number."""
