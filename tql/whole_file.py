"""Files that a kill cannot spoil: one appears under its name once it is whole; of one that grows by lines, the whole lines are read."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` for writing. If the block raises, what was under the name before is still there."""
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
    finally:
        temporary.unlink(missing_ok=True)


def whole_lines(path: Path, fields: tuple[str, ...], what: str) -> list[dict]:
    """The rows of a file of JSON lines, each with these fields, but for a last line torn by a kill; none if there is no file.

    Raises `ValueError`, naming the line and saying `what` is wrong with it.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            [row[field] for field in fields]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: {what}. Mend or remove that line.") from None
        rows.append(row)
    return rows
