"""A checkpoint holds everything bit for bit, is whole or absent, and a file that is not ours is refused with a message, not executed."""

import hashlib
import io
import json
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tql import checkpoint
from tql.checkpoint import CheckpointError, load, named_arrays, save
from tql.config import ActorConfig
from tql.loop import initialise

pytestmark = pytest.mark.usefixtures("optax_promotion")
shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture(scope="module")
def saved(finished) -> Path:
    """The last checkpoint of a finished run."""
    return finished / "step-000000040.checkpoint"


def content_of(path) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """First line, second line, arrays."""
    first, second, archive = path.read_bytes().split(b"\n", 2)
    with np.load(io.BytesIO(archive), allow_pickle=False) as opened:
        return json.loads(first), json.loads(second), dict(opened)


def forge(path, second, archive: bytes, **first):
    """A file whose checksum holds, whatever is in it."""
    content = (second if isinstance(second, bytes) else json.dumps(second).encode()) + b"\n" + archive
    first = {"format": checkpoint.FORMAT, "sha256": hashlib.sha256(content).hexdigest()} | first
    path.write_bytes(json.dumps(first).encode() + b"\n" + content)
    return path


def archive_of(arrays, **options) -> bytes:
    archive = io.BytesIO()
    np.savez(archive, **arrays, **options)
    return archive.getvalue()


# What comes back.


def test_every_leaf_comes_back_bit_for_bit(saved, tiny, tmp_path):
    agent = load(saved, tiny)
    path = tmp_path / "again.checkpoint"
    save(path, agent)
    assert path.read_bytes().partition(b"\n")[0] == saved.read_bytes().partition(b"\n")[0], "the same SHA-256"
    again = load(path, tiny)
    fresh = initialise(2, 2, tiny)
    assert jax.tree.structure(again) == jax.tree.structure(agent) == jax.tree.structure(fresh)
    assert len(jax.tree.leaves(again)) == len(named_arrays(again)), "every leaf is an array and has a name of its own"
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(agent)):
        assert ours.dtype == theirs.dtype
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jr.key_data(ours), jr.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)
    assert again.config == tiny and int(again.step) == 40
    names = named_arrays(again)
    for part in ("critic", "target_critic", "actor", "controller", "critic_state", "controller_state", "actor_state"):
        assert any(name.startswith(part) for name in names), part
    np.testing.assert_array_equal(names["key"], jr.key_data(jr.split(jr.key(tiny.seed), 4)[2]))
    trained = [name for name, array in names.items() if not np.array_equal(array, named_arrays(fresh)[name])]
    assert len(trained) > 0.9 * len(names), "trained arrays, not fresh ones"


def test_odd_values_come_back(tiny, tmp_path):
    """-0, the smallest subnormal, the largest float: whatever a float32 can be, bit for bit."""
    odd = np.array([-0.0, 1e-45, np.finfo(np.float32).max, -1.0], np.float32)
    agent = initialise(2, 2, tiny)
    shape = agent.critic.tokenizer.v.shape
    agent = eqx.tree_at(lambda agent: agent.critic.tokenizer.v, agent, jax.numpy.asarray(np.resize(odd, shape)))
    save(tmp_path / "odd", agent)
    assert np.asarray(load(tmp_path / "odd", tiny).critic.tokenizer.v).tobytes() == np.resize(odd, shape).tobytes()


def test_what_the_file_says_of_itself(saved, tiny):
    first, second, arrays = content_of(saved)
    assert first.keys() == {"format", "sha256"} and (second["step"], second["n_s"], second["n_a"]) == (40, 2, 2)
    assert second["config"]["task"] == tiny.task and second["config"]["critic"]["d_model"] == 32
    assert arrays["critic.blocks[0].attention.query.weight"].shape == (32, 32)
    assert not any(array.dtype.hasobject for array in arrays.values())


# Damage.


def refused(path, tiny, pattern=None) -> str:
    with pytest.raises(CheckpointError, match=pattern) as error:
        load(path, tiny)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@settings(shared, max_examples=60)
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_refused(data, saved, tiny):
    content = saved.read_bytes()
    length = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(content) - 1), st.just(len(content) - 1)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-000000040.checkpoint"
        path.write_bytes(content[:length])
        refused(path, tiny)


@settings(shared, max_examples=120)
@given(data=st.data())
def test_one_flipped_byte_anywhere_is_refused(data, saved, tiny):
    content = bytearray(saved.read_bytes())
    # Half of the positions in the two lines of JSON, where a reader that believes what it reads would go astray.
    lines = content.index(b"\n", content.index(b"\n") + 1) + 1
    position = data.draw(st.one_of(st.integers(0, lines), st.integers(0, len(content) - 1)))
    content[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-000000040.checkpoint"
        path.write_bytes(content)
        first = content.partition(b"\n")[0]
        try:
            same = json.loads(first) == json.loads(saved.read_bytes().partition(b"\n")[0])
        except ValueError:
            same = False
        if same and position <= len(first):  # one white space for another between two words of JSON
            assert int(load(path, tiny).step) == 40
        else:
            refused(path, tiny)


def test_bytes_after_the_end_are_refused(saved, tiny, tmp_path):
    (tmp_path / "long").write_bytes(saved.read_bytes() + b"\0")
    refused(tmp_path / "long", tiny, "SHA-256")


def test_missing_file_and_directory(tiny, tmp_path):
    refused(tmp_path / "missing.checkpoint", tiny, "cannot be read .No such file")
    refused(tmp_path, tiny, "cannot be read")


@settings(shared, max_examples=40)
@given(content=st.binary(max_size=200))
@example(content=b"[1, 2]\n")
@example(content=b'{"format": 1}\n')
@example(content=b'{"format": 1, "sha256": null}\n')
@example(content=b"null")
def test_any_other_file_is_refused(content, tiny):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any"
        path.write_bytes(content)
        refused(path, tiny)


def test_another_format_is_named(saved, tiny, tmp_path):
    _, second, arrays = content_of(saved)
    path = forge(tmp_path / "newer", second, archive_of(arrays), format=checkpoint.FORMAT + 1)
    refused(path, tiny, f"is of format {checkpoint.FORMAT + 1}, and this version of tql reads format {checkpoint.FORMAT}")


# Files whose checksum holds and that are still not what they should be.


def test_another_architecture_is_refused_with_names_and_shapes(saved, tiny):
    """The settings of one run with the checkpoint of another."""
    wider = replace(tiny, critic=replace(tiny.critic, d_model=64))
    message = refused(saved, wider, r"array 'critic\.\w+.* is float32\[.*32.*\], but these settings need float32\[.*64.*\]")
    assert "its own run directory" in message
    deeper = replace(tiny, critic=replace(tiny.critic, layers=2), control=replace(tiny.control, target=None))
    assert "missing arrays: ['actor_state" not in refused(saved, deeper, r"missing arrays: \[.*critic\.blocks\[1\]\.attention")
    no_actor = replace(tiny, actor=ActorConfig(kind="dataset"))
    refused(saved, no_actor, r"missing arrays: none; unknown arrays: \['actor\.flow\.layers\[0\]\.bias'")


def test_a_renamed_array_is_named_twice(saved, tiny, tmp_path):
    _, second, arrays = content_of(saved)
    arrays["critic.tokenizer.value"] = arrays.pop("critic.tokenizer.v")
    path = forge(tmp_path / "renamed", second, archive_of(arrays))
    refused(path, tiny, r"missing arrays: \['critic.tokenizer.v'\]; unknown arrays: \['critic.tokenizer.value'\]")


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("critic.tokenizer.v", np.zeros(31, np.float32), r"float32\[31\]"),
        ("critic.tokenizer.v", np.zeros(32, np.float64), r"float64\[32\]"),
        ("step", np.zeros(1, np.int32), r"int32\[1\]"),
        ("key", np.zeros(3, np.uint32), r"uint32\[3\]"),
        ("key", np.zeros(2, np.int32), r"int32\[2\]"),
    ],
)
def test_an_array_of_another_shape_or_type_is_named(name, array, found, saved, tiny, tmp_path):
    _, second, arrays = content_of(saved)
    path = forge(tmp_path / "other", second, archive_of(arrays | {name: array}))
    refused(path, tiny, f"array '{name}' is {found}, but these settings need")


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_executed(saved, tiny, tmp_path):
    armed = tmp_path / "armed"
    pickle.loads(pickle.dumps(Bomb(armed)))
    assert armed.exists(), "the bomb works"
    armed.unlink()
    _, second, arrays = content_of(saved)
    bomb = np.array([Bomb(armed)], dtype=object)
    lone = io.BytesIO()
    np.save(lone, bomb, allow_pickle=True)
    archives = (pickle.dumps(Bomb(armed)), archive_of(arrays | {"step": bomb}), archive_of(arrays | {"extra": bomb}), lone.getvalue())
    for archive in archives:
        refused(forge(tmp_path / "bomb", second, archive), tiny, "though its checksum holds")
        assert not armed.exists()


@pytest.mark.parametrize("second", [b"", b"not json", b"[]", b"{}", b'{"n_s": null, "n_a": 2}', b'{"n_s": "two", "n_a": 2}', b"\xff"])
def test_a_second_line_of_other_content_is_refused(second, saved, tiny, tmp_path):
    _, _, arrays = content_of(saved)
    refused(forge(tmp_path / "second", second, archive_of(arrays)), tiny, "though its checksum holds")


@pytest.mark.parametrize("sizes", [(-2, 2), (0, 0), (3, 2), (2, 3), (10**9, 2)])
def test_other_sizes_of_states_and_actions_are_refused(sizes, saved, tiny, tmp_path):
    """Within the file they contradict its arrays."""
    _, second, arrays = content_of(saved)
    second |= dict(zip(("n_s", "n_a"), sizes))
    refused(forge(tmp_path / "sizes", second, archive_of(arrays)), tiny)


@pytest.mark.parametrize("archive", ["nothing", "one array", "an archive without arrays"])
def test_no_archive_of_arrays(archive, saved, tiny, tmp_path):
    lone = io.BytesIO()
    np.save(lone, np.zeros(3))
    content = {"nothing": b"", "one array": lone.getvalue(), "an archive without arrays": archive_of({})}[archive]
    refused(forge(tmp_path / "archive", content_of(saved)[1], content), tiny)


# Whole or absent.


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_before_the_new_file_has_its_name_leaves_the_old_one(call, saved, tiny, tmp_path, monkeypatch):
    agent, path = load(saved, tiny), tmp_path / "step-000000040.checkpoint"
    path.write_bytes(b"the old file")

    def dies(*_):
        assert path.read_bytes() == b"the old file"
        raise Killed

    monkeypatch.setattr(os, call, dies)
    with pytest.raises(Killed):
        save(path, agent)
    assert path.read_bytes() == b"the old file"
    monkeypatch.undo()
    save(path, agent)
    assert int(load(path, tiny).step) == 40


def test_on_the_disk_before_it_has_its_name(saved, tiny, tmp_path, monkeypatch):
    """The file's bytes are synced, then it is renamed, then its directory is synced."""
    calls, replace_, fsync = [], os.replace, os.fsync

    def noted_fsync(descriptor):
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(("fsync", "directory" if target.is_dir() else "whole" if target.stat().st_size > 10_000 else "part"))
        fsync(descriptor)

    def noted_replace(source, target):
        calls.append(("replace", Path(target).name))
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    agent = load(saved, tiny)
    save(tmp_path / "new", agent)
    assert calls == [("fsync", "whole"), ("replace", "new"), ("fsync", "directory")]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
