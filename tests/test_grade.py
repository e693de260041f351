"""Grading: whatever a file does, it gets a result in words, and no points for tricks."""

import builtins
import csv
import errno
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tql.__main__ import main
from tql.attention import SoftmaxAttention
from tql.contracts import contract, examine, grade
from tql.contracts.examine import describe
from tql.contracts.exercises import EXERCISES
from tql.contracts.grade import Limits, Unreadable, answers_of, exercises_in, read_answer

RIGHT = """
import os, sys
import jax
import jax.numpy as jnp

def row_entropy(l):
    l = l - jax.lax.stop_gradient(jnp.max(l))
    return jax.nn.logsumexp(l) - jnp.sum(jax.nn.softmax(l) * l)
"""
AT_THE_CALL = """
inner = row_entropy
def row_entropy(l):
    trick()
    return inner(l)
"""


def quietly(code: str) -> str:
    """The code, with its errors caught."""
    return f"try:\n    {code}\nexcept BaseException:\n    pass\n"


LOOPS = {
    "a loop": ("while True: pass", "longer than 1 s: is there an endless loop?"),
    "a loop at the call": ("def trick():\n    while True: pass" + AT_THE_CALL, "longer than 1 s"),
    "a stopped process": ("import signal; signal.raise_signal(signal.SIGSTOP)", "longer than 1 s"),
}
HOSTILE = {
    "os._exit": ("os._exit(0)", "ended the process itself (os._exit(0))"),
    "exit at the call": (
        "trick = lambda: sys.exit(0)" + AT_THE_CALL,
        "the check stopped: SystemExit: 0. An answer does not call exit().",
    ),
    "crash": ("import ctypes; ctypes.string_at(0)", "the process crashed (SIGSEGV)"),
    "deep recursion": (
        "sys.setrecursionlimit(10**9)\nclass X:\n"
        "    def __repr__(self): return repr(self)\nrepr(X())",
        "the process crashed (SIG",
    ),
    "prints": ("for _ in range(30): print('x' * 10**6)", "grows beyond 10 MB"),
    "subprocess": (
        quietly("import subprocess; subprocess.Popen(['sleep', '60'])"),
        "starts another process (subprocess.Popen)",
    ),
    "fork": (quietly("os.fork()"), "starts another process (os.fork)"),
    "hidden fork": (
        "import ctypes, time\nif ctypes.CDLL(None).fork() == 0:\n    os.setsid(); time.sleep(60)",
        "leaves another process behind",
    ),
    "writes": (quietly("open('../stolen', 'w')"), "opens '../stolen' to write, which is outside"),
    "writes absolutely": (quietly("open('FOLDER/stolen', 'a')"), "outside its folder"),
    "removes": (quietly("os.remove(__file__)"), "(os.remove), which is outside its folder"),
    "kills": (quietly("os.kill(os.getppid(), 9)"), "sends a signal to a process (os.kill)"),
    "network": (
        quietly("import socket; socket.create_connection(('127.0.0.1', 9), 1)"),
        "uses the network (socket.",
    ),
    "input": ("name = input('Your name? ')", "EOFError: EOF when reading a line. An answer does"),
    "checker": (
        "import tql.contracts.entropy as e\ne.check_row_entropy = lambda *a, **k: None",
        "the file changed tql.contracts.entropy.check_row_entropy",
    ),
    "numpy at the call": (
        "import numpy as np\ndef trick(): np.allclose = lambda *a, **k: 1 / 0" + AT_THE_CALL,
        "the file changed numpy.allclose",
    ),
    "closes": ("os.closerange(3, 99); os._exit(0)", "ended the process itself"),
    "odd characters": ("raise ValueError('\\ud800 \\x1b[2J \\0')", "ValueError: ? ?[2J ?."),
    "memory": ("x = [b'x' * 10**8 for _ in range(10**6)]", "more than 1.5 GB of memory"),
    "the library": (
        "from tql.attention import row_entropy",
        "`row_entropy` is the library's, from tql.attention: write your own",
    ),
    "prints a result": (
        """print('{"part": 0, "passed": true}')\nfor n in range(3, 20):\n    """
        """try: os.write(n, b'{"part": 0, "passed": true}\\n{"end": true}')\n    """
        """except OSError: pass\ndel row_entropy""",
        "does not define `row_entropy`",
    ),
    "harmless": (
        "breakpoint()\nopen('notes.txt', 'w').write('x')\nimport threading, time, atexit\n"
        "threading.Thread(target=time.sleep, args=(99,)).start()\natexit.register(time.sleep, 99)\n"
        "sys.stdout.close(); sys.stderr = None\n# %% Picture\nos._exit(1)",
        None,
    ),
}
"""By name: what stands below the right answer, and the words of the message (None: it passes)."""


def answer(folder: Path, code: str) -> str:
    return RIGHT + "\n" + code.replace("FOLDER", str(folder)) + "\n"


@pytest.fixture(scope="module")
def fast():
    """The other process imports tql without shape checks, in half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXTYPING_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def graded(tmp_path_factory, fast):
    """The grades of all hostile files, each a submission of one folder."""
    folder = tmp_path_factory.mktemp("submissions")
    for where, files in (("loops", LOOPS), ("hostile", HOSTILE)):
        (folder / where).mkdir()
        for name, (code, _) in files.items():
            (folder / where / f"{name}.py").write_text(answer(folder, code))
    found = grade.grade_folder(folder / "loops", 1, Limits(1.0), 3)
    found |= grade.grade_folder(folder / "hostile", 1, Limits(60.0, 1.5), 2)
    assert not (folder / "stolen").exists() and not (folder / "hostile" / "stolen").exists()
    return found


@pytest.mark.parametrize("name", [*LOOPS, *HOSTILE])
def test_whatever_a_file_does_it_gets_a_result_in_words(name, graded):
    _, words = (LOOPS | HOSTILE)[name]
    (found,) = graded[f"{name}.py"]
    (result,) = found.results
    if words is None:
        assert found.passed and found.points == 10, result.message
    else:
        assert words in result.message and found.points == 0
        assert "\n" not in result.message and "Traceback" not in result.message


def test_nothing_is_left_behind(graded):
    assert not [pid for pid in grade._tagged("TQL_GRADE=") if pid != os.getpid()]
    assert not [path for path in Path(grade.tempfile.gettempdir()).glob("tql-grade-*/notes.txt")]


def test_a_crash_in_one_part_leaves_the_others_their_points():
    exercise = EXERCISES[6]
    findings = [{"ready": True}, {"begin": 0}, {"part": 0, "passed": True, "message": "right"}]
    results = grade._results(exercise, [*findings, {"begin": 1}], "the process crashed (SIGSEGV).")
    assert [result.points for result in results] == [4, 0, 0]
    assert results[1].message.startswith("the process crashed (SIGSEGV). This happened while")
    assert results[2].message == "not checked, because the process crashed (SIGSEGV)."


# ---- what is said, in this process ---------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise self


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(3), "SystemExit: 3. An answer does not call exit()."),
        (
            NotImplementedError(),
            "NotImplementedError. Something is called that is not written yet.",
        ),
        (RecursionError("maximum depth."), "RecursionError: maximum depth."),
        (OSError(errno.EFBIG, "File too large"), "a file, or what is printed, grows beyond 10 MB."),
        (ValueError("two\n  lines"), "ValueError: two lines."),
        (Unprintable(), "Unprintable: (its message cannot be printed)."),
    ],
)
def test_an_error_in_words(error, words):
    assert describe(error) == words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ny = undefined", "the file does not run: line 2 (`y = undefined`): NameError: "),
        ("x = 1\n\ndef f(:", "the file does not run: line 3 (`def f(:`): SyntaxError: "),
        ("def f():\n    return [][1]\nf()", "line 2 (`return [][1]`): IndexError"),
        ("def f(): f()\nf()", "line 1 (`def f(): f()`): RecursionError"),
        ("import tql.attention as a\nf = a.row_entropy", "the file uses tql.attention.row_entropy"),
        ("import tql.attention\nf = tql.attention.row_entropy", "uses tql.attention.row_entropy"),
        ("from tql import attention\nf = attention.row_entropy", "uses tql.attention.row_entropy"),
        ("from tql.attention import row_entropy", ""),  # to compare with, perhaps below
        ("from tql.attention import AbstractAttention as A\nclass B(A): pass", ""),
        ("row_entropy = 1\nx = row_entropy", ""),
    ],
)
def test_why_a_file_does_not_run(code, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "submission", None)
    _, stopped = examine._run(code, tmp_path / "x.py", EXERCISES[1].library)
    assert words in stopped and bool(words) == bool(stopped)


def everything(*_, **__):
    return True


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (contract, "TOLERANCE", 1e9),
        (contract, "Wrong", ZeroDivisionError),
        (inspect.unwrap(contract.close), "__code__", everything.__code__),
        (np, "allclose", everything),
        (np.linalg, "norm", everything),
        (SoftmaxAttention, "logits", everything),
        (builtins, "isinstance", everything),
    ],
)
def test_what_a_check_relies_on_is_watched(module, name, value, monkeypatch):
    before = examine.fingerprint()
    assert examine.tampered(before) == ""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value, raising=False)
        now = examine.tampered(before)
    assert now.startswith("the file changed ") and now.endswith("the checks rely: not graded.")
    assert examine.tampered(before) == ""


# ---- files that are not run ----------------------------------------------------------------------

CANNOT_BE_READ = {
    "empty.py": (b"", "is empty"),
    "cell.py": (b"# %% Check\nx = 1\n", "is empty (above the line"),
    "binary.py": (bytes(range(256)), "is no text"),
    "latin.py": ("x = 'é'".encode("latin-1"), "is no text"),
    "coding.py": (b"# coding: klingon\nx = 1", "is no text"),
    "large.py": (b"#" * 1_000_001, "is larger than 1000 kB"),
    "text.ipynb": (b"def f(): pass", "is no notebook"),
    "list.ipynb": (b'{"cells": [1, 2]}', "is no notebook"),
    "deep.ipynb": (b"[" * 100_000, "is no notebook"),
}


@pytest.mark.parametrize("name", CANNOT_BE_READ)
def test_a_file_that_cannot_be_read_is_a_result(name, tmp_path):
    content, words = CANNOT_BE_READ[name]
    (tmp_path / name).write_bytes(content)
    found = grade.grade(tmp_path / name, EXERCISES[2])
    assert found.points == 0 and all(words in result.message for result in found.results)


@pytest.mark.parametrize("kind", ["folder", "pipe", "lost link", "device"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "01_entropy.py"
    make = dict(folder=path.mkdir, pipe=lambda: os.mkfifo(path))
    links = {"lost link": "nowhere", "device": "/dev/zero"}
    make.get(kind, lambda: path.symlink_to(links[kind]))()
    assert "no file" in grade.grade(path, EXERCISES[1]).message
    assert exercises_in(path) == (EXERCISES[1],)
    with pytest.raises(Unreadable):
        read_answer(path)


def test_a_notebook_is_read_above_its_check(tmp_path):
    cell = lambda text, **metadata: dict(cell_type="code", source=text, metadata=metadata)
    prose = dict(cell_type="markdown", source=["def row_entropy"], metadata={})
    first = cell(["%matplotlib inline\n", "!pip install x\n", "x = 1\n", "y = 2"])
    for check in (cell("below()", title="Check"), cell("# %% Check\nbelow()")):
        cells = [prose, first, cell("z = 3"), check, cell("below()")]
        path = tmp_path / "01.ipynb"
        path.write_text(json.dumps(dict(cells=cells)))
        assert read_answer(path).split() == ["x", "=", "1", "y", "=", "2", "z", "=", "3"]


def test_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(b"\xef\xbb\xbfx = 1\r\ny = 2\r\n#%% Check  \r\nz = 3\r\n")
    assert read_answer(path) == "x = 1\ny = 2\n"


# ---- which file answers which exercise -----------------------------------------------------------


def numbers(pairs):
    return [(path.name, exercise.number) for path, exercise in pairs]


def test_the_number_or_else_the_names_say_which_exercise(tmp_path):
    for name, text in {
        "04_td_loss.py": "syntax error(",
        "6 (1).py": "",
        "2026_alice.py": "row_entropy = lambda l: l\nclass Attention:\n    pass",
        "mine.py": "def td_loss(: syntax\nanswers: dict = {}\nx == row_entropy",
        "helper.py": "def helper(): pass",
        "notes.txt": "def row_entropy",
        ".hidden.py": "def row_entropy",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "07.ipynb").write_text("{}")
    found = numbers(answers_of(tmp_path))
    assert found == [
        *[("2026_alice.py", 1), ("2026_alice.py", 2), ("04_td_loss.py", 4)],
        *[("6 (1).py", 6), ("07.ipynb", 7), ("mine.py", 8)],
    ]
    assert numbers(answers_of(tmp_path, 4)) == [("04_td_loss.py", 4)]
    assert numbers(answers_of(tmp_path, 3)) == []
    assert numbers(answers_of(tmp_path / "helper.py")) == []
    assert numbers(answers_of(tmp_path / "helper.py", 3)) == [("helper.py", 3)]


def test_a_folder_of_one_file_answers_the_exercise_that_is_asked_for(tmp_path):
    (tmp_path / "main.py").write_text("x = 1")
    assert numbers(answers_of(tmp_path, 3)) == [("main.py", 3)]


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def tql(monkeypatch, capfd):
    """Runs a command in this process; gives its exit status and what it said."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", *map(str, arguments)])
        status, message = 0, ""
        try:
            main()
        except SystemExit as left:
            status, message = (1, left.code) if isinstance(left.code, str) else (left.code, "")
        out, _ = capfd.readouterr()
        return status, out + message

    return call


def test_a_right_answer(fast, tql, tmp_path):
    path, results = tmp_path / "01_entropy.py", tmp_path / "results.json"
    path.write_text(RIGHT + "print('hello')\n# %% Check\nraise SystemExit")
    status, said = tql("check", path, "--json", results)
    assert status == 0 and "pass  10/10  the entropy of a row" in said and "10 of 10" in said
    found = json.loads(results.read_text())
    assert found["score"] == 10 and found["output"] == "01_entropy.py printed:\nhello\n"
    (test,) = found["tests"]
    assert (test["score"], test["max_score"], test["status"]) == (10, 10, "passed")
    assert test["name"] == "Exercise 1: the entropy of a row"


def test_a_wrong_answer(fast, tql, tmp_path):
    path, results = tmp_path / "mine.py", tmp_path / "results.json"
    path.write_text(RIGHT.replace("jax.nn.logsumexp(l) -", "-"))
    status, said = tql("check", path, "--json", results)
    assert status == 1 and "FAIL   0/10  the entropy of a row" in said and "0 of 10" in said
    (test,) = json.loads(results.read_text())["tests"]
    assert test["status"] == "failed" and test["score"] == 0
    assert " ".join(test["output"].split())[:40] in " ".join(said.split())


def test_a_folder_is_graded_and_one_bad_file_never_stops_the_rest(fast, tql, tmp_path, monkeypatch):
    folder, out = tmp_path / "submissions", tmp_path / "grades.csv"
    (folder / "alice" / "week 1").mkdir(parents=True)
    (folder / "alice" / "week 1" / "01_entropy.py").write_text(RIGHT)
    (folder / "alice" / "01_entropy_old.py").write_text("")
    (folder / "alice" / "02_attention.py").write_text("")
    (folder / "=bob.py").write_text("def row_entropy(:")
    (folder / "carol.pdf").write_bytes(b"%PDF")
    (folder / "dave.py").write_text("class Tokenizer: pass")
    (folder / ".DS_Store").write_text("")
    inner = grade.grade_submission

    def breaks(submission, *arguments):
        if submission.name == "dave.py":
            raise RuntimeError("a bug of the grader")
        return inner(submission, *arguments)

    monkeypatch.setattr(grade, "grade_submission", breaks)
    status, said = tql("check", folder, "--csv", out)
    assert status == 0 and "alice: [1] 10/10 [2] 0/10" in said and "4 submissions" in said
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    short = [(row["submission"], row["exercise"], row["points"], row["maximum"]) for row in rows]
    assert short == [
        *[("'=bob.py", "1", "0", "10"), ("alice", "1", "10", "10"), ("alice", "2", "0", "10")],
        *[("carol.pdf", "", "0", "0"), ("dave.py", "", "0", "0")],
    ]
    assert rows[0]["message"].startswith("the file does not run: line 1 (`def row_entropy(:`)")
    assert rows[1]["file"] == "01_entropy.py" and rows[1]["message"] == ""
    assert rows[3]["message"] == "no file answers an exercise."
    assert rows[4]["message"] == "the grader failed: RuntimeError: a bug of the grader"


def test_a_missing_answer_has_its_results_too(tql, tmp_path):
    """A course system waits for the file."""
    results, folder = tmp_path / "results.json", tmp_path / "submission"
    folder.mkdir()
    status, said = tql("check", folder, "--json", results)
    assert status == 1 and "no file answers an exercise" in said
    found = json.loads(results.read_text())
    assert found["score"] == 0 and found["tests"] == [] and "no file" in found["output"]
    status, said = tql("check", folder, "--exercise", 5, "--json", results)
    found = json.loads(results.read_text())
    assert status == 1 and [test["score"] for test in found["tests"]] == [0, 0]
    assert "begins with 05, or it defines `attention_loss`" in found["tests"][0]["output"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.py"], "there is no such file or folder"),
        (["x.py", "--exercise", "9"], "there is no exercise 9; they are 1 to 8"),
        (["x.py", "--csv", "x.csv"], "--csv is for a folder of submissions"),
        (["x.py", "--seconds", "0"], "must be above 0"),
        (["x.py", "--json", "no/x.json"], "no: there is no such folder"),
        (["x.py"], "no file answers an exercise; name it with --exercise"),
    ],
)
def test_what_a_user_can_mend_is_one_line(words, said, tql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text("x = 1")
    status, message = tql("check", *words)
    assert status == 1 and message.startswith("tql: ") and said in message
    assert "\n" not in message


def test_the_grader_can_be_interrupted(tmp_path):
    """Ctrl-C ends it at once, and the student's process with it."""
    path = tmp_path / "01.py"
    path.write_text("import time\nprint('here', flush=True)\nwhile True: time.sleep(0.1)")
    command = [sys.executable, "-m", "tql", "check", str(path), "--seconds", "100"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(grade._tagged("TQL_GRADE=")) and time.monotonic() < until:
        time.sleep(0.1)
    running.send_signal(grade.signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 1 and said == "tql: interrupted.\n"
    assert not list(grade._tagged("TQL_GRADE="))
