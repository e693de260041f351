"""What runs in the process of its own: a student's file, under rules, and then the checkers.

`tql.contracts.grade` starts this process, waits for it, and stops it when it takes too long. The
rules stop accidents and idle tricks. They do not stop somebody who means to get past them, because
the student's code and the checkers share this process."""

import ast
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

OUTPUT = 10_000_000
"""Bytes that a file may print, and the size to which a file that it writes may grow."""

WATCHED = ("builtins", "json", "os", "math", "numpy", "numpy.linalg", "numpy.testing")
WATCHED += ("jax", "jax.nn", "jax.numpy", "jax.random", "jax.errors", "equinox")
"""Besides tql: what a checker relies on, and what an answer has no reason to replace."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.mknod"), 1),
    **dict.fromkeys(("os.chmod", "os.chown", "os.utime", "os.setxattr", "sqlite3.connect"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}
"""Events of Python that change files, and how many of their first arguments are paths."""
PROCESSES = {"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn"}
PROCESSES |= {"os.spawn", "os.exec", "pty.spawn"}
NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"}
SIGNALS = {"os.kill", "os.killpg"}


def examine(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Runs the student's source and the checkers of one exercise; every finding goes to `tell`.

    First comes `ready`, when everything is imported and the student's time begins. Then, for each
    part, `begin` and `passed` with a message; or `stopped`, when the file itself cannot run."""
    from tql.contracts.exercises import EXERCISES

    exercise = EXERCISES[job["exercise"]]
    checkers = [part.load() for part in exercise.parts]
    if "matplotlib" in job["source"]:
        import matplotlib.pyplot  # noqa: F401  It may build its cache of fonts, before the rules.
    before = fingerprint()
    _limit()
    refused = _rules(Path.cwd())
    tell({"ready": True})
    module, stopped = _run(job["source"], Path(job["file"]), exercise.library)
    if stopped or refused:
        return tell({"stopped": refused[0] if refused else stopped})
    for k, (part, checker) in enumerate(zip(exercise.parts, checkers)):
        tell({"begin": k})
        passed, message = _check(checker, part.takes, dict(part.options), module)
        changed = tampered(before)
        if refused or changed:
            return tell({"stopped": refused[0] if refused else changed})
        tell({"part": k, "passed": passed, "message": message})


def main(job: dict[str, Any]) -> None:
    """The whole life of this process. The answers go to a file that is open as `job["channel"]`,
    each behind a word that nobody prints by accident."""
    import json

    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # There is nobody to answer a question.
    _die_with_parent()
    sys.argv = [job["file"]]
    channel, word, write, dumps = job.pop("channel"), job.pop("word"), os.write, json.dumps
    leave = os._exit  # It leaves threads and atexit functions behind.

    def tell(finding: dict[str, Any]) -> None:
        write(channel, f"\n{word} {dumps(finding)}\n".encode())

    try:
        examine(job, tell)
    except BaseException as error:
        tell({"failed": describe(error)})
    tell({"end": True})
    leave(0)


def _run(source: str, file: Path, library: Iterable[str]) -> tuple[ModuleType, str]:
    """The student's module, and why it could not be run, or an empty string."""
    import linecache

    module = ModuleType("submission")
    module.__file__ = str(file)
    sys.modules["submission"] = module
    sys.path.insert(0, str(file.parent))
    lines = source.splitlines(keepends=True)
    linecache.cache[str(file)] = (len(source), None, lines, str(file))  # type: ignore
    try:
        tree = ast.parse(source, str(file))
        found = borrowed(tree, library)
        if found:
            return module, f"the file uses {found}, which is the answer itself: write your own."
        exec(compile(tree, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return module, f"the file does not run: {_where(error, str(file), lines)}{describe(error)}"
    return module, ""


def _check(
    checker: Callable[..., Any], takes: tuple[str, ...], options: dict[str, Any], module: ModuleType
) -> tuple[bool, str]:
    """Whether the checker is content, and what it says."""
    from tql.contracts.contract import Wrong

    for name in takes:
        if name not in vars(module):
            return False, f"the file does not define `{name}` (above the line `# %% Check`)."
        home = str(getattr(vars(module)[name], "__module__", ""))
        if home.startswith("tql."):
            return False, f"`{name}` is the library's, from {home}: write your own."
    try:
        said = checker(*(vars(module)[name] for name in takes), **options)
    except Wrong as error:
        return False, str(error)
    except BaseException as error:
        return False, f"the check stopped: {describe(error)}"
    return True, said if isinstance(said, str) else "right"


def describe(error: BaseException) -> str:
    """An error in a line; also one whose own message raises."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = " ".join(text.split())[:500]
    except BaseException:
        reason = "(its message cannot be printed)"
    hints = {
        SystemExit: "An answer does not call exit().",
        EOFError: "An answer does not wait for input.",
        NotImplementedError: "Something is called that is not written yet.",
    }
    hint = next((f" {words}" for kind, words in hints.items() if isinstance(error, kind)), "")
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno == 27:  # EFBIG
        return f"a file, or what is printed, grows beyond {OUTPUT // 1_000_000} MB."
    return f"{name}: {reason}.{hint}".replace("..", ".") if reason else f"{name}.{hint}"


def _where(error: BaseException, file: str, lines: list[str]) -> str:
    """The student's line at which it happened, as the beginning of a sentence."""
    number = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            number = trace.tb_lineno
        trace = trace.tb_next
    if not number or not 0 < number <= len(lines):
        return ""
    return f"line {number} (`{lines[number - 1].strip()[:80]}`): "


# ---- rules ---------------------------------------------------------------------------------------


def _rules(folder: Path) -> list[str]:
    """From here on, no file is written outside the folder, no process started or signalled, and no
    network used. What was refused is in the list, also if the student's code caught the error."""
    refused: list[str] = []
    root, realpath = os.path.realpath(folder), os.path.realpath

    def refuse(words: str) -> None:
        refused.append(f"the file {words}; this is refused.")
        raise PermissionError(refused[-1])

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = realpath(os.fsdecode(path))
        return real != os.devnull and real != root and not real.startswith(root + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and outside(path):
                refuse(f"opens {path!r} to write, which is outside its folder")
        elif event in PATHS:
            for path in arguments[: PATHS[event]]:
                if outside(path):
                    refuse(f"changes {path!r} ({event}), which is outside its folder")
        elif event in PROCESSES:
            refuse(f"starts another process ({event})")
        elif event in NETWORK:
            refuse(f"uses the network ({event})")
        elif event in SIGNALS:
            refuse(f"sends a signal to a process ({event})")

    sys.addaudithook(hook)
    return refused


def _limit() -> None:
    """What the operating system holds this process to."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))


def _die_with_parent() -> None:
    """On Linux: nothing stays behind when the grader itself is killed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        Path("/proc/self/oom_score_adj").write_text("1000")  # The first to go when memory is short.


def fingerprint() -> dict[tuple[str, ...], tuple[Any, ...]]:
    """Every function, class and constant that the checkers rely on, as it is now."""
    found: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for name, module in list(sys.modules.items()):
        if not (name in WATCHED or name == "tql" or name.startswith("tql.")):
            continue
        for key, value in list(vars(module).items()):
            if callable(value) or name.startswith("tql.contracts."):
                found[name, key] = _identity(value)
            if isinstance(value, type) and name.startswith("tql."):
                for field, inner in list(vars(value).items()):
                    if callable(inner):
                        found[name, key, field] = _identity(inner)
    return found


def _identity(value: Any) -> tuple[Any, ...]:
    """Held by reference, so that no other object can get the same address. What a decorator wraps
    is part of it."""
    identity: list[Any] = []
    for _ in range(9):
        identity += [value, getattr(value, "__code__", None)]
        value = getattr(value, "__wrapped__", None)
        if value is None:
            break
    return tuple(identity)


def tampered(before: dict[tuple[str, ...], tuple[Any, ...]]) -> str:
    """What of it was changed, as a sentence; an empty string if nothing was."""
    try:
        now = fingerprint()
        for name, identity in before.items():
            theirs = now.get(name, ())
            if len(theirs) != len(identity) or any(a is not b for a, b in zip(theirs, identity)):
                return f"the file changed {'.'.join(name)}, on which the checks rely: not graded."
    except Exception:  # Not even `isinstance` may be what it was.
        return "the file changed a part of Python on which the checks rely: not graded."
    return ""


def borrowed(tree: ast.AST, library: Iterable[str]) -> str:
    """The first of these names of the library (`tql.loop.td_loss`) that the code uses, or ''."""
    stands_for: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                stands_for[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                stands_for[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in stands_for:
            name = ".".join([stands_for[node.id], *parts])
            for answer in library:
                if name == answer or name.startswith(f"{answer}."):
                    return answer
    return ""
