"""The check of a diagnosis, and the records that it is about.

That each bug can be told from the records follows from four rules (`make_diagnosis.verdict`), which
know nothing of the code. They are held to the recorded agents here. Trained with the seeds 1 and 2,
the same five agents got the same five verdicts (`python tests/make_diagnosis.py DATASET.npz --seed
1`), so they do not hang on one seed.
"""

import itertools
import json
import runpy
from pathlib import Path

import make_diagnosis
import numpy as np
import pytest

from tql.contracts import course
from tql.contracts.contract import Wrong
from tql.contracts.diagnosis import (
    LETTERS,
    VERDICTS,
    check_diagnosis,
    number,
    records,
    settings,
)

FILE = Path(make_diagnosis.OUT)


def diagnosis(letters=course.LETTERS):
    """What the four rules say of the recorded agents."""
    seen = records(letters)
    return {letter: make_diagnosis.verdict(x) for letter, x in seen.items()}


@pytest.mark.parametrize("letters", [course.LETTERS, 0, 1, 2027])
def test_a_diagnosis_by_reasoning_is_right_whatever_the_letters(letters):
    check_diagnosis(diagnosis(letters), letters)


def test_other_letters_are_another_answer():
    answers = {tuple(diagnosis(letters).values()) for letters in range(2020, 2030)}
    assert len(answers) > 5


def test_right_answers_in_another_spelling_pass():
    said = {f" {letter.lower()}": f"{text.capitalize()} " for letter, text in diagnosis().items()}
    check_diagnosis(said)
    check_diagnosis({letter: text.replace("'", "\u2019") for letter, text in diagnosis().items()})


def test_no_other_order_of_the_verdicts_passes():
    right = diagnosis()
    for order in itertools.permutations(VERDICTS):
        said = dict(zip(LETTERS, order))
        if said == right:
            continue
        same = sum(said[letter] == right[letter] for letter in LETTERS)
        with pytest.raises(Wrong, match=f"^right verdicts: {same} of 5. A hint: "):
            check_diagnosis(said)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("healthy", "at the step that solves the task, at its mean Q beside its mean target"),
        ("target not stopped", "subtract the mean target"),
        ("mask ignored", "a step after which nothing follows"),
        ("broadcast", "the standard deviation of Q"),
        ("controller's sign", "where an entropy is above its target"),
    ],
)
def test_the_hint_is_the_evidence_of_the_first_wrong_letter_and_not_its_verdict(verdict, words):
    right = diagnosis()
    first = next(letter for letter, text in right.items() if text == verdict)
    other = "A" if first == "E" else "E"
    said = right | {first: right[other], other: verdict}
    with pytest.raises(Wrong) as error:
        check_diagnosis(said)
    letter = min(first, other)
    assert f"agent {letter}" in str(error.value)
    assert not any(text in str(error.value) for text in VERDICTS)
    if letter == first:
        assert words in str(error.value).replace("look at ", "")


UNREADABLE = {
    "a list": (list(VERDICTS), "answers is list; expected a dictionary"),
    "nothing": ({}, "the diagnosis is not written yet: no verdict for A, B, C, D, E"),
    "as handed out": (dict.fromkeys(LETTERS, ""), "the diagnosis is not written yet"),
    "a letter missing": (
        dict(zip("ABCD", VERDICTS)),
        "the diagnosis is not written yet: no verdict for E",
    ),
    "a letter too many": (dict(zip("ABCDEF", VERDICTS)) | {"F": "healthy"}, "no agent 'F'"),
    "an unknown verdict": (
        dict(zip(LETTERS, VERDICTS)) | {"B": "overfitting"},
        "the verdict for B, 'overfitting', is none of 'healthy'",
    ),
    "a verdict twice": (dict.fromkeys(LETTERS, "healthy"), "'healthy' stands for A and for B"),
    "a number": (dict.fromkeys(LETTERS, 3), "the verdict for A, '3', is none of"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_as_a_diagnosis_is_named(name):
    answers, words = UNREADABLE[name]
    with pytest.raises(Wrong) as error:
        check_diagnosis(answers)
    assert words in str(error.value)


# ---- the records ---------------------------------------------------------------------------------


def test_the_records_are_whole_and_small():
    assert FILE.stat().st_size < 150_000
    assert set(json.loads(FILE.read_text())["agents"]) == set(map(number, VERDICTS))
    shapes = {
        **dict.fromkeys(("td_loss", "q_mean", "q_std", "target_mean"), (40,)),
        **dict.fromkeys(("entropy", "alpha"), (40, 2, 2)),
        "value": (make_diagnosis.BEFORE + make_diagnosis.AFTER,),
        "landscape": (11, 11),
    }
    for seen in records().values():
        assert {name: x.shape for name, x in seen.items()} == shapes
        assert all(np.isfinite(x).all() for x in seen.values())
    assert settings()["every"] == make_diagnosis.EVERY
    assert settings()["before"] == make_diagnosis.BEFORE


def test_no_verdict_is_written_in_the_file():
    text = FILE.read_text()
    assert not any(verdict in text for verdict in VERDICTS)


def test_every_agent_of_the_maker_has_a_verdict():
    assert set(make_diagnosis.AGENTS) == set(VERDICTS)


def test_the_text_of_the_exercise_is_true_of_the_records():
    """What the exercise calls a healthy number and a broken one, with room between the two."""
    seen = {make_diagnosis.verdict(x): x for x in records().values()}
    gap = {name: np.mean((x["q_mean"] - x["target_mean"])[20:]) for name, x in seen.items()}
    assert all((g > 0.4) == (name == "target not stopped") for name, g in gap.items())
    assert all(abs(g) < 0.2 for name, g in gap.items() if name != "target not stopped")
    solved = settings()["before"]
    ratio = {name: x["value"][solved] / x["q_mean"][-1] for name, x in seen.items()}
    assert ratio["healthy"] < 0.1 and 0.8 < ratio["mask ignored"] < 1.2
    spread = {name: np.mean(x["q_std"][20:]) for name, x in seen.items()}
    assert spread["broadcast"] < 0.05 and spread["healthy"] > 1
    largest = {name: x["alpha"][-1].max() for name, x in seen.items()}
    assert largest["controller's sign"] > 1e6
    assert all(x < 1 for name, x in largest.items() if name != "controller's sign")


def test_the_answer_file_is_right(tmp_path, monkeypatch):
    """As the grader runs it: the cells above the check, under another name than __main__."""
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    text = (Path(__file__).parent / "answers" / "08_diagnosis.py").read_text()
    script = tmp_path / "answer.py"
    script.write_text(text.partition("# %% Check")[0])
    check_diagnosis(runpy.run_path(str(script))["answers"])
    assert not (tmp_path / "runs").exists()
