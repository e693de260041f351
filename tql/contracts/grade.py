"""Grading: a student's file is run in a process of its own, with a limit of time and of memory, and
what comes of it is a list of results, whatever the file does.

This file reads submissions as text and never runs them. `tql.contracts.examine` is what runs in the
other process."""

import contextlib
import csv
import io
import json
import os
import re
import secrets
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tql.contracts.exercises import EXERCISES, Exercise

ROOT = Path(__file__).parents[2]
"""The folder that `tql` is imported from."""

SOURCE = 1_000_000
"""Bytes. No answer is longer."""

FILES = 200
"""Of one submission are looked at."""

CHECK_CELL = re.compile(r"^# ?%% ?(Check|Picture)\s*$")
DEFINED = re.compile(r"^(?:def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]*)?=(?!=)", re.MULTILINE)

BOOT = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job.pop("path")
from tql.contracts.examine import main
main(job)
"""


@dataclass(frozen=True)
class Limits:
    """What one exercise of one submission may use."""

    seconds: float | None = None
    """From the moment when everything is imported; the exercise's own limit unless given."""
    gigabytes: float = 4.0
    """Of memory, everything that is imported included (about .4)."""
    start: float = 120.0
    """Seconds for the imports. They are the machine's time, and not the student's."""


@dataclass(frozen=True)
class Result:
    """What became of one part of an exercise."""

    name: str
    points: float
    maximum: float
    message: str

    @property
    def passed(self) -> bool:
        return self.points == self.maximum


@dataclass(frozen=True)
class Grade:
    """One exercise of one submission."""

    exercise: Exercise
    file: str
    results: tuple[Result, ...]
    printed: str = ""
    """The beginning of what the file printed."""
    seconds: float = 0.0

    @property
    def points(self) -> float:
        return sum(result.points for result in self.results)

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def message(self) -> str:
        """Of the first part that did not pass, or an empty string."""
        return next((result.message for result in self.results if not result.passed), "")


class Unreadable(ValueError):
    """A file that holds no answer; the message says why."""


# ---- reading -------------------------------------------------------------------------------------


def read_answer(path: Path) -> str:
    """The source of a script or notebook above its Check cell, or the whole source if it has
    none."""
    text = _text(path)
    if path.suffix == ".ipynb":
        text = _from_notebook(text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    end = next((k for k, line in enumerate(lines) if CHECK_CELL.match(line)), len(lines))
    source = "\n".join(lines[:end]) + "\n"
    if not source.strip():
        raise Unreadable("the file is empty (above the line `# %% Check`).")
    return source


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # A pipe would be waited for, and a device never ends.
            raise Unreadable("this is no file.")
        with path.open("rb") as file:
            content = file.read(SOURCE + 1)
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}.") from None
    if len(content) > SOURCE:
        raise Unreadable(f"the file is larger than {SOURCE // 1000} kB.")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, ValueError, LookupError):
        text = "\0"
    if "\0" in text:
        raise Unreadable("the file is no text: it holds bytes that no Python file has.")
    return text


def _from_notebook(text: str) -> str:
    """The code cells of a notebook as one script. Lines of IPython (`%...`, `!...`) are left
    out."""
    try:
        cells, script = json.loads(text)["cells"], []
        for cell in cells:
            if cell["cell_type"] != "code":
                continue
            title = cell.get("metadata", {}).get("title")
            source = "".join(cell["source"])
            if title in ("Check", "Picture"):
                script.append(f"# %% {title}")
            script += [re.sub(r"^\s*[%!].*", "", line) for line in source.split("\n")]
        return "\n".join(script)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable("the file is no notebook that can be read.") from None


def exercises_in(path: Path) -> tuple[Exercise, ...]:
    """The exercise whose number the file's name begins with, or all of which it defines a name."""
    if _numbered(path):
        return (EXERCISES[_numbered(path)],)
    try:
        found = DEFINED.findall(read_answer(path))
    except Unreadable:
        return ()
    names = {name for pair in found for name in pair}
    # An exercise may ask again for what an earlier one asks for (7 for the attention of 2).
    first = {name: x.number for x in reversed(EXERCISES.values()) for name in x.names}
    found_in = {first[name] for name in names if name in first}
    return tuple(x for x in EXERCISES.values() if x.number in found_in)


def _numbered(path: Path) -> int:
    """The exercise's number that the file's name begins with, or 0."""
    number = re.match(r"0?(\d)(?!\d)", path.name)
    return int(number[1]) if number and int(number[1]) in EXERCISES else 0


def answers_of(submission: Path, number: int | None = None) -> list[tuple[Path, Exercise]]:
    """The files of a submission (a file, or a folder with all below it), each with an exercise.

    A file whose name begins with an exercise's number is the answer to it; other files are answers
    only to exercises that no such file answers. `number` asks for one exercise only."""
    if submission.is_dir():
        files = [path for path in _walk(submission) if path.suffix in (".py", ".ipynb")]
    elif number is not None:
        return [(submission, EXERCISES[number])]
    else:
        files = [submission]
    found = [(path, exercise) for path in files for exercise in exercises_in(path)]
    if number is not None:
        found = [(path, exercise) for path, exercise in found if exercise.number == number]
        if not found and len(files) == 1:
            found = [(files[0], EXERCISES[number])]
    by_name = {exercise.number for path, exercise in found if _numbered(path)}
    found = [(p, x) for p, x in found if _numbered(p) or x.number not in by_name]
    return sorted(found, key=lambda pair: (pair[1].number, pair[0]))


def _walk(folder: Path) -> list[Path]:
    """The files below a folder in order, without hidden ones; links to folders are not followed."""
    files: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(x for x in folders if not x.startswith((".", "__")))
        files += [Path(where, name) for name in sorted(names) if not name.startswith(".")]
        if len(files) > FILES:
            break
    return files[:FILES]


# ---- one exercise --------------------------------------------------------------------------------

_stop = threading.Event()
"""Set when the grader itself is interrupted."""


def grade(path: Path, exercise: Exercise, limits: Limits = Limits()) -> Grade:
    """Runs the checkers of an exercise on a file, in a process of its own. Never raises for
    anything that the file does."""
    began = time.monotonic()
    try:
        source = read_answer(path)
    except Unreadable as error:
        return failed(exercise, path, str(error))
    word = secrets.token_hex(16)
    job = {"exercise": exercise.number, "file": str(path.resolve()), "source": source, "word": word}
    if limits.seconds is None:
        limits = replace(limits, seconds=exercise.seconds)
    findings, printed, ended = _run(job, limits)
    results = _results(exercise, findings, ended)
    seconds = round(time.monotonic() - began, 1)
    return Grade(exercise, path.name, results, clean(printed), seconds)


def failed(exercise: Exercise, path: Path, message: str) -> Grade:
    """No points, and the same message for every part."""
    nothing = tuple(Result(part.name, 0, part.points, message) for part in exercise.parts)
    return Grade(exercise, path.name, nothing)


def _results(
    exercise: Exercise, findings: Sequence[Mapping[str, Any]], ended: str
) -> tuple[Result, ...]:
    """The findings of the other process as results; a part without a finding did not pass."""
    stopped = next((found["stopped"] for found in findings if "stopped" in found), "")
    broken = next((found["failed"] for found in findings if "failed" in found), "")
    if broken:
        stopped = f"the grader itself failed, which is no fault of the file: {broken}"
    checked = {found["part"]: found for found in findings if "part" in found}
    running = [found["begin"] for found in findings if "begin" in found]
    results: list[Result] = []
    for k, part in enumerate(exercise.parts):
        points, message = 0, f"not checked, because {ended}"
        if stopped:
            message = stopped
        elif k in checked:
            points = part.points if checked[k]["passed"] is True else 0
            message = checked[k]["message"]
        elif k in running:
            message = f"{ended} This happened while the answer was checked."
        elif not running:
            message = f"{ended} This happened before anything was checked."
        results.append(Result(part.name, points, part.points, clean(message)))
    return tuple(results)


def _run(job: dict[str, Any], limits: Limits) -> tuple[list[dict[str, Any]], str, str]:
    """What the other process told, what was printed in it, and how it ended, as a sentence."""
    tag, folder = f"TQL_GRADE={secrets.token_hex(16)}", Path(tempfile.mkdtemp(prefix="tql-grade-"))
    command = [sys.executable, "-u", "-B", "-P", "-c", BOOT]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        given, printed, channel = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        path = [str(ROOT), *(x for x in sys.path if x and Path(x) != Path.cwd())]
        given.write(json.dumps(job | {"path": path, "channel": channel.fileno()}).encode())
        given.seek(0)
        process = subprocess.Popen(
            *(command,),
            **dict(stdin=given, stdout=printed, stderr=subprocess.STDOUT, cwd=folder),
            **dict(env=_environment(folder, tag), start_new_session=True),
            pass_fds=[channel.fileno()],
        )
        try:
            why = _wait(process, channel, job["word"], limits)
        finally:
            left = _kill(process, tag)
        findings = _findings(channel, job["word"])
        if left and not why:
            findings.append({"stopped": "the file leaves another process behind; this is refused."})
        return findings, _beginning(printed), why or _exit(process.returncode)


def _environment(folder: Path, tag: str) -> dict[str, str]:
    """Only what Python needs: nothing secret, and every cache and home in the folder."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "JAXTYPING_DISABLE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= dict.fromkeys(("HOME", "TMPDIR", "TQL_HOME", "XDG_CACHE_HOME"), str(folder))
    environment |= {"PYTHONUSERBASE": site.getuserbase(), "PYTHONBREAKPOINT": "0"}
    environment |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
    environment |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"
    }  # A check compiles more than it computes.
    for name, default in (("MPLCONFIGDIR", ".config/matplotlib"), ("XLA_FLAGS", "")):
        environment[name] = os.environ.get(name, str(Path.home() / default) if default else "")
    key, _, value = tag.partition("=")
    return environment | {key: value}


def _wait(process: subprocess.Popen[bytes], channel: BinaryIO, word: str, limits: Limits) -> str:
    """Waits until the process has ended, or until it has to be ended; then says why."""
    deadline, ready = time.monotonic() + limits.start, False
    while process.poll() is None:
        if _stop.is_set():
            return "the grader was interrupted."
        if not ready and any("ready" in found for found in _findings(channel, word)):
            deadline, ready = time.monotonic() + limits.seconds, True
        if time.monotonic() > deadline:
            if not ready:
                return f"the imports took longer than {limits.start:g} s."
            return f"it took longer than {limits.seconds:g} s: is there an endless loop?"
        if _memory(process.pid) > limits.gigabytes * 1e9:
            return f"it used more than {limits.gigabytes:g} GB of memory."
        time.sleep(0.03)
    return ""


def _findings(channel: BinaryIO, word: str) -> list[dict[str, Any]]:
    """The lines of the channel that begin with the word."""
    size = os.fstat(channel.fileno()).st_size
    lines = os.pread(channel.fileno(), min(size, SOURCE), 0).split(b"\n")
    start = word.encode() + b" "
    found: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith(start):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line[len(start) :]))
    return found


def _beginning(printed: BinaryIO) -> str:
    return os.pread(printed.fileno(), 4000, 0).decode(errors="replace")


def _memory(pid: int) -> float:
    """Bytes in use, where the system tells (Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _kill(process: subprocess.Popen[bytes], tag: str) -> bool:
    """Ends the process and everything that it started. Whether anything was left besides it."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = False
    for _ in range(100):  # What is being born while we look is found the next time.
        others = list(_tagged(tag))
        if not others:
            break
        left = True
        for pid in others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return left


def _tagged(tag: str) -> Iterator[int]:
    """The processes that have inherited the tag, also in groups and sessions of their own
    (Linux)."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if tag.encode() in entry.read_bytes():
                yield int(entry.parent.name)


def _exit(code: int) -> str:
    """How a process ended that was not stopped, in words."""
    if code >= 0:
        return f"the file ended the process itself (os._exit({code}))."
    with contextlib.suppress(ValueError):
        return f"the process crashed ({signal.Signals(-code).name})."
    return f"the process crashed (signal {-code})."


def clean(text: str) -> str:
    """Text that can be printed and written anywhere: no control characters, no half characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(x if x.isprintable() or x in "\n\t" else "?" for x in text)[:4000]


# ---- submissions ---------------------------------------------------------------------------------


def grade_submission(
    submission: Path, number: int | None, limits: Limits, processes: int = 1
) -> list[Grade]:
    """The grades of one submission, the best of each exercise if several files answer it."""
    answers = answers_of(submission, number)
    if number is not None and not answers:
        message = f"no file answers exercise {number}: its name begins with {number:02}, or it "
        message += f"defines `{EXERCISES[number].names[0]}`."
        return [failed(EXERCISES[number], submission, message)]
    return _best(_parallel(lambda answer: grade(*answer, limits), answers, processes))


def grade_folder(
    folder: Path,
    number: int | None,
    limits: Limits,
    processes: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Grade] | str]:
    """By the name of every file or folder in `folder`: its grades, or why it has none."""

    def one(submission: Path) -> list[Grade] | str:
        try:
            found: list[Grade] | str = grade_submission(submission, number, limits)
        except Exception as error:  # One submission never stops the others.
            found = clean(f"the grader failed: {type(error).__name__}: {error}")
        tell(submission.name)
        return found or "no file answers an exercise."

    submissions = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    grades = _parallel(one, submissions, processes)
    return {clean(path.name): found for path, found in zip(submissions, grades)}


def _parallel(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> list[Any]:
    """The function of every item, so many at a time. Ctrl-C ends what runs."""
    _stop.clear()
    with ThreadPoolExecutor(max(processes, 1)) as pool:
        running = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException:
            _stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _best(grades: Sequence[Grade]) -> list[Grade]:
    best: dict[int, Grade] = {}
    for found in grades:
        number = found.exercise.number
        if number not in best or found.points > best[number].points:
            best[number] = found
    return list(best.values())


# ---- what is written -----------------------------------------------------------------------------


def gradescope(grades: Sequence[Grade], otherwise: str = "") -> dict[str, Any]:
    """The content of Gradescope's results.json. `otherwise` is said when there are no grades."""
    tests = [
        {
            "name": f"Exercise {found.exercise.number}: {result.name}",
            "number": f"{found.exercise.number}.{k}",
            "score": result.points,
            "max_score": result.maximum,
            "status": "passed" if result.passed else "failed",
            "output": result.message,
            "output_format": "text",
            "visibility": "visible",
        }
        for found in grades
        for k, result in enumerate(found.results, start=1)
    ]
    said = [f"{found.file} printed:\n{found.printed}" for found in grades if found.printed.strip()]
    return {
        "score": sum(found.points for found in grades),
        "execution_time": round(sum(found.seconds for found in grades)),
        "output": "\n\n".join(said) or ("" if grades else otherwise),
        "output_format": "text",
        "tests": tests,
    }


COLUMNS = ("submission", "exercise", "file", "points", "maximum", "message")


def write_csv(path: Path, submissions: Mapping[str, Sequence[Grade] | str]) -> None:
    """One row for every submission and exercise; a submission without an answer has one row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, grades in submissions.items():
            if isinstance(grades, str):
                writer.writerow(_safe((name, "", "", 0, 0, grades)))
                continue
            for found in grades:
                number, maximum = found.exercise.number, found.exercise.points
                row = (name, number, found.file, found.points, maximum, found.message)
                writer.writerow(_safe(row))


def _safe(row: Sequence[Any]) -> list[Any]:
    """A spreadsheet takes a cell that begins with one of these for a formula."""
    return [f"'{x}" if isinstance(x, str) and x.startswith(tuple("=+-@\t\r")) else x for x in row]


def table(grades: Sequence[Grade]) -> str:
    """Exercise, test, points and message, a row for every part, for a terminal."""
    import textwrap

    lines: list[str] = []
    for found in grades:
        lines.append(f"Exercise {found.exercise.number}: {found.exercise.title} ({found.file})")
        said = ""
        for result in found.results:
            points = f"{result.points:g}/{result.maximum:g}"
            lines.append(f"  {'pass' if result.passed else 'FAIL'}  {points:>5}  {result.name}")
            if result.message != said:
                lines += textwrap.wrap(
                    result.message, 96, initial_indent=" " * 15, subsequent_indent=" " * 15
                )
            said = result.message
        if found.printed.strip() and not found.passed:
            shown = found.printed.strip().split("\n")
            lines += ["  It printed:", *(f"    {line[:94]}" for line in shown[:10])]
    got, most = sum(x.points for x in grades), sum(x.exercise.points for x in grades)
    return "\n".join([*lines, f"{got:g} of {most:g} points"])
