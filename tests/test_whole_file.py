"""A file is under its name whole, or not at all; of one that grows by lines, a torn last one is no line."""

import os

import pytest

from tql.whole_file import whole_file, whole_lines


class Killed(BaseException):
    """Stands for kill -9 as far as Python can: no `except Exception` sees it."""


def test_the_content_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
        (temporary,) = tmp_path.iterdir()
        assert temporary.name == f".file.{os.getpid()}.tmp", "hidden, and the name that a resumed run clears away"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_an_old_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old and longer"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_error_in_the_block_leaves_what_was_there(error, before, tmp_path):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(call, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="no space"), whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: calls.append(name) or original(*a))
    with whole_file(tmp_path / "file") as file:
        file.write(b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "missing" / "file"):
        pytest.fail("opened")


def test_whole_lines_are_read_and_a_torn_last_one_is_not(tmp_path):
    path = tmp_path / "lines"
    assert whole_lines(path, ("a",), "bad") == []
    path.write_bytes(b'{"a": 1, "b": 2}\n{"a": 3}\n{"a": 4}')
    assert whole_lines(path, ("a",), "bad") == [{"a": 1, "b": 2}, {"a": 3}]


@pytest.mark.parametrize("line", [b'{"b": 1}', b'{"a": 1', b"[1]", b"7", b"\xff", b""])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match="lines, line 2: is no row. Mend or remove that line.$"):
        whole_lines(path, ("a",), "is no row")
