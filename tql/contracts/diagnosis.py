"""Five trained agents, four of which have a bug: what was recorded of them, and the check of
somebody's diagnosis.

The records are in `diagnosis.json`. Which letter an agent has depends on `course.LETTERS`. In the
file an agent stands under a number made of its verdict, so that nobody reads the answer by
accident; somebody who wants to can work it out, as in any exercise whose checker is public.
"""

import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from tql.contracts import course
from tql.contracts.contract import Wrong

VERDICTS = (
    "healthy",
    "target not stopped",
    "mask ignored",
    "broadcast",
    "controller's sign",
)
"""What an agent can be told to have."""

LETTERS = "ABCDE"

_HINTS = {
    "healthy": "look at the value of agent {letter} at the step that solves the task, at its mean "
    "Q beside its mean target, and at one of its entropies together with that temperature",
    "target not stopped": "subtract the mean target of agent {letter} from its mean Q at every "
    "record, and compare the difference with those of the other agents",
    "mask ignored": "look at the value of agent {letter} at the step that solves the task: what "
    "is the return of a step after which nothing follows?",
    "broadcast": "look at the standard deviation of Q of agent {letter}, and at its landscape: "
    "what does its Q depend on?",
    "controller's sign": "look at the entropies and the temperatures of agent {letter} together: "
    "where an entropy is above its target, which way should its temperature go?",
}
"""Evidence for each agent. No hint says what it is evidence of."""


def settings() -> dict[str, Any]:
    """What the five trainings share: `every` (updates between two records), `discount`, `tau`,
    `batch_size`, `target` [L, 2] in nats, and `before`, the row of `value` at which the task is
    solved."""
    return _file()["settings"]


def records(letters: int = course.LETTERS) -> dict[str, dict[str, np.ndarray]]:
    """What was recorded of each agent, by its letter.

    `td_loss`, `q_mean`, `q_std`, `target_mean` [records]: means over the updates since the last
    record. `entropy`, `alpha` [records, L, 2]. `value` [steps]: Q of the trained critic along an
    episode of the validation data. `landscape` [11, 11]: Q over two dimensions of the action.
    """
    agents = _file()["agents"]
    return {
        letter: {name: np.array(x) for name, x in agents[number(verdict)].items()}
        for letter, verdict in _truth(letters).items()
    }


def check_diagnosis(answers: Any, letters: int = course.LETTERS) -> None:
    """Raises `Wrong` unless `answers` says of every letter which of the `VERDICTS` is true."""
    said = _read(answers)
    truth = _truth(letters)
    wrong = [letter for letter in LETTERS if said[letter] != truth[letter]]
    if wrong:
        hint = _HINTS[truth[wrong[0]]].format(letter=wrong[0])
        right = len(LETTERS) - len(wrong)
        raise Wrong(f"right verdicts: {right} of {len(LETTERS)}. A hint: {hint}.")


def number(verdict: str) -> str:
    """Under which an agent stands in the file."""
    return hashlib.sha256(f"exercise 8: {verdict}".encode()).hexdigest()[:12]


def _read(answers: Any) -> dict[str, str]:
    """The answers, in small letters. Raises `Wrong` unless every letter has a verdict, and every
    verdict one letter."""
    example = '{"A": "healthy", ...}'
    if not isinstance(answers, dict):
        raise Wrong(f"answers is {type(answers).__name__}; expected a dictionary as {example}.")
    said = {str(letter).strip().upper(): str(text).strip() for letter, text in answers.items()}
    if unknown := sorted(set(said) - set(LETTERS)):
        raise Wrong(f"there is no agent {unknown[0]!r}; expected the letters A to E.")
    if missing := [letter for letter in LETTERS if not said.get(letter)]:
        raise Wrong(f"the diagnosis is not written yet: no verdict for {', '.join(missing)}.")
    said = {letter: text.lower().replace("\u2019", "'") for letter, text in said.items()}
    for letter, text in said.items():
        if text not in VERDICTS:
            known = ", ".join(map(repr, VERDICTS))
            raise Wrong(f"the verdict for {letter}, {text!r}, is none of {known}.")
    for verdict in VERDICTS:
        same = [letter for letter in LETTERS if said[letter] == verdict]
        if len(same) > 1:
            raise Wrong(
                f"the verdict {verdict!r} stands for {' and for '.join(same)}; each of the five "
                "verdicts is true of one agent."
            )
    return said


def _truth(letters: int) -> dict[str, str]:
    order = np.random.default_rng(letters).permutation(len(VERDICTS))
    return {letter: VERDICTS[k] for letter, k in zip(LETTERS, order, strict=True)}


@cache
def _file() -> dict[str, Any]:
    return json.loads(resources.files("tql.contracts").joinpath("diagnosis.json").read_text())
