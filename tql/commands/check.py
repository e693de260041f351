"""`tql check`: grade an answer, or a folder of them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Check:
    """Grade answers to the exercises. Every file runs in a process of its own, with limits; what
    runs is still somebody else's code (walkthrough/exercises/README.md says how to contain it).

    The exit status is 0 when everything passes, otherwise 1. With --csv it is 0 when every
    submission was graded, whatever its points."""

    path: Positional[Path]
    """A script or notebook, a folder that is one submission, or (with --csv) a folder in which
    every file or folder is a submission."""
    exercise: int | None = None
    """Its number; unless given, the number that the file's name begins with, or else every exercise
    of which the file defines a name."""
    results: Annotated[Path | None, arg(name="json")] = None
    """Write the results to this file, in the format of Gradescope's results.json."""
    csv: Path | None = None
    """Grade a folder of submissions, and write a row for each submission and exercise to this
    file."""
    processes: int = 2
    """How many files are graded at a time."""
    seconds: float | None = None
    """Limit of time for one exercise; unless given, 60 s, and 180 s for exercise 7."""
    memory: float = 4.0
    """Limit of memory for one exercise, in GB (on Linux)."""

    def __call__(self) -> None:
        from tql.contracts import grade

        self._validate(grade.EXERCISES)
        limits = grade.Limits(self.seconds, self.memory)
        if self.csv is not None:
            return self._folder(grade, limits)
        grades = grade.grade_submission(self.path, self.exercise, limits, self.processes)
        nothing = f"{self.path}: no file answers an exercise; name it with --exercise."
        if self.results is not None:
            content = json.dumps(grade.gradescope(grades, nothing), indent=2)
            self.results.write_text(content + "\n")
        if not grades:
            raise ValueError(nothing)
        print(grade.table(grades))
        if not all(found.passed for found in grades):
            sys.exit(1)

    def _validate(self, exercises) -> None:
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: there is no such file or folder.")
        if self.exercise is not None and self.exercise not in exercises:
            raise ValueError(f"there is no exercise {self.exercise}; they are 1 to 8.")
        if self.processes < 1 or (self.seconds or 1.0) <= 0 or self.memory <= 0:
            raise ValueError("--processes, --seconds and --memory must be above 0.")
        if self.csv is not None and (self.results is not None or not self.path.is_dir()):
            raise ValueError("--csv is for a folder of submissions, and --json for one submission.")
        for out in (self.csv, self.results):
            if out is not None and not out.parent.is_dir():
                raise FileNotFoundError(f"{out.parent}: there is no such folder.")

    def _folder(self, grade, limits) -> None:
        say = lambda name: print(f"graded: {grade.clean(name)}", file=sys.stderr, flush=True)
        found = grade.grade_folder(self.path, self.exercise, limits, self.processes, say)
        grade.write_csv(self.csv, found)
        for name, grades in found.items():
            words = [f"{name}:"]
            if isinstance(grades, str):
                words.append(grades)
            else:
                words += [f"[{x.exercise.number}] {x.points:g}/{x.exercise.points}" for x in grades]
            print(" ".join(words))
        print(f"{len(found)} submissions: {self.csv}")
