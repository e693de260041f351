"""A file is under its name whole, or not at all; what is read from JSON is of the right type, or is
named."""

import os
from dataclasses import dataclass
from typing import Literal

import pytest

from tql.training.whole_file import read_json, typed, whole_file, whole_lines


class Killed(BaseException):
    """Stands for kill -9 as far as Python can: no `except Exception` sees it."""


def test_the_content_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
        (temporary,) = tmp_path.iterdir()
        assert temporary.name == f".file.{os.getpid()}.tmp", (
            "the name that a resumed run clears away"
        )
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
@pytest.mark.parametrize("before", [None, b"old and longer"])
def test_an_error_in_the_block_leaves_what_was_there(error, before, tmp_path):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if before else [])
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there_and_is_told_with_the_name(
    call, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(OSError, match=f"No space left on device: '{path}'"),
        whole_file(path) as file,
    ):
        file.write(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        noted = lambda *a, name=name, original=original: calls.append(name) or original(*a)
        monkeypatch.setattr(os, name, noted)
    with whole_file(tmp_path / "file") as file:
        file.write(b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "missing" / "file"):
        pytest.fail("opened")


def test_whole_lines_are_read_and_a_torn_last_one_is_not(tmp_path):
    path = tmp_path / "lines"
    assert whole_lines(path, {"a": int}) == []
    path.write_bytes(b'{"a": 1, "b": 2}\n{"a": 3}\n{"a": 4}')
    assert whole_lines(path, {"a": int}) == [{"a": 1, "b": 2}, {"a": 3}]


BAD_LINES = {
    b'{"b": 1}': "a is missing; it must be a whole number",
    b'{"a": true}': "a is true; it must be a whole number",
    b'{"a": 1': "Expecting",
    b"[1]": r"the line is \[1\]; it must be an object",
    b"7": "the line is 7; it must be an object",
    b"\xff": "codec",
    b"": "Expecting",
    b"[" * 100_000: "recursion",
    b'{"a": ' + b"9" * 5000 + b"}": "digits",
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_damaged_line_is_named(line, words, tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(
        ValueError, match=f"lines, line 2: .*{words}.*Mend or remove that line.$"
    ) as e:
        whole_lines(path, {"a": int})
    assert "\n" not in str(e.value)


def test_a_file_that_is_no_json_is_named(tmp_path):
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "file.json").write_bytes(content)
        with pytest.raises(ValueError, match="file.json: is not JSON, or damaged"):
            read_json(tmp_path / "file.json")


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] = ()
    pairs: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("bad is no name.")


GOOD = {"name": "x", "inner": {"rate": 1, "kind": "b"}, "sizes": [1, 2], "pairs": [[1.5, 2]]}


def test_what_is_right_comes_back_with_tuples():
    assert typed(GOOD, Outer, "o") == Outer("x", Inner(1, "b"), (1, 2), ((1.5, 2),))
    assert typed(GOOD | {"pairs": None}, Outer, "o").pairs is None
    assert typed({"m": []}, dict[str, tuple[int, ...]], "o") == {"m": ()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 3}, "o.name is 3; it must be a text"),
        ({"name": "bad"}, "o: bad is no name"),
        ({"sizes": [1, "2"]}, r'o.sizes\[1\] is "2"; it must be a whole number'),
        ({"sizes": [1, 2.0]}, r"o.sizes\[1\] is 2.0; it must be a whole number"),
        ({"sizes": 1}, "o.sizes is 1; it must be a list"),
        ({"pairs": [[1]]}, "o.pairs is .*; it must be a list or null"),
        ({"inner": 7}, "o.inner is 7; it must be an object"),
        ({"inner": {"rate": 1}}, "o.inner.kind is missing; it must be a or b"),
        (
            {"inner": {"rate": True, "kind": "a"}},
            "o.inner.rate is true; it must be a finite number",
        ),
        ({"inner": {"rate": float("nan"), "kind": "a"}}, "rate is NaN; it must be a finite number"),
        ({"inner": {"rate": 10**400, "kind": "a"}}, "rate is 1.*; it must be a finite number"),
        ({"inner": {"rate": 1, "kind": "c"}}, 'o.inner.kind is "c"; it must be a or b'),
        ({"more": 1}, "o.more is not a setting of Outer"),
    ],
)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        typed(GOOD | change, Outer, "o")
