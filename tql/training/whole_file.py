"""Files that a kill cannot spoil, and JSON that is checked when it is read.

A file appears under its name once it is whole. Of a file that grows by lines, the whole lines are
read. Every value that is read is checked against the type that it must have.
"""

import json
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Union, get_args, get_origin


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` for writing. If the block raises, what was under the name before is still there.

    Raises `OSError`, with the name of the file, where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # what went wrong before it says more


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `ValueError`, with the name of the file, if it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON, or damaged ({error}).") from None


def whole_lines(path: Path, kinds: dict[str, Any]) -> list[dict]:
    """The rows of a file of JSON lines, without a last line that a kill has torn; none if there is
    no file. Every row must have the fields `kinds`, each of its type; other fields are left as they
    are.

    Raises `ValueError` with file, line, field and what is wrong.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = typed(json.loads(line.decode()), dict, "the line")
            for name, kind in kinds.items():
                typed(row.get(name, MISSING), kind, name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}. Mend or remove that line.") from None
        rows.append(row)
    return rows


MISSING = object()
"""Stands for a field that is not there."""


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value`, which JSON gave, as a value of type `kind`; lists become the tuples that they were.

    Types are int, float (finite), str, bool, None, `Literal`, unions, tuples, `dict` and
    `dict[str, T]`, and dataclasses, which must have exactly their fields. Raises `ValueError`, with
    `where` and the right type, for anything else.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if value is MISSING:
        raise ValueError(f"{where} is missing; it must be {in_words(kind)}")
    if is_dataclass(kind) and isinstance(value, dict):
        return _typed_fields(value, kind, where)
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return typed(value, one, where)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(inner) == len(value):
            return tuple(typed(x, t, f"{where}[{i}]") for i, (x, t) in enumerate(zip(value, inner)))
    elif origin is dict and isinstance(value, dict):
        return {name: typed(x, arguments[1], f"{where}.{name}") for name, x in value.items()}
    elif kind in (None, types.NoneType):
        if value is None:
            return None
    elif kind is float and type(value) in (int, float):
        if abs(value) <= sys.float_info.max:
            return value
    elif kind in (int, str, bool, dict) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {_short(value)}; it must be {in_words(kind)}")


def _typed_fields(value: dict, kind: type, where: str) -> Any:
    known = {field.name: field.type for field in fields(kind)}
    for name in value:
        if name not in known:
            raise ValueError(f"{where}.{name} is not a setting of {kind.__name__}")
    content = {
        name: typed(value.get(name, MISSING), t, f"{where}.{name}") for name, t in known.items()
    }
    try:
        return kind(**content)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).rstrip('.')}") from None


def in_words(kind: Any) -> str:
    """A type, for people."""
    origin, arguments = get_origin(kind), get_args(kind)
    simple = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return "a list" if arguments[1:] == (...,) else f"a list of {len(arguments)}"
    if kind in (None, types.NoneType):
        return "null"
    return simple.get(kind, "an object {...}")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."
