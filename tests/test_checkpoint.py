"""A checkpoint holds everything bit for bit, is whole or absent, and a file that is not ours is
refused with a message, not executed."""

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

from tql.config import ActorConfig
from tql.training import checkpoint
from tql.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    named_arrays,
    save_checkpoint,
    settings_in,
)
from tql.training.methods import as_json, new_agent

pytestmark = pytest.mark.usefixtures("optax_promotion")
shared = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


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
    content = (
        (second if isinstance(second, bytes) else json.dumps(second).encode()) + b"\n" + archive
    )
    first = {"format": checkpoint.FORMAT, "sha256": hashlib.sha256(content).hexdigest()} | first
    path.write_bytes(json.dumps(first).encode() + b"\n" + content)
    return path


def archive_of(arrays, **options) -> bytes:
    archive = io.BytesIO()
    np.savez(archive, **arrays, **options)
    return archive.getvalue()


# What comes back.


def test_every_leaf_comes_back_bit_for_bit(saved, tiny, tmp_path):
    agent = load_checkpoint(saved, tiny)
    path = tmp_path / "again.checkpoint"
    save_checkpoint(path, agent)
    assert path.read_bytes().partition(b"\n")[0] == saved.read_bytes().partition(b"\n")[0], (
        "the same SHA-256"
    )
    again = load_checkpoint(path, tiny)
    fresh = new_agent(2, 2, tiny)
    assert jax.tree.structure(again) == jax.tree.structure(agent) == jax.tree.structure(fresh)
    assert len(jax.tree.leaves(again)) == len(named_arrays(again)), (
        "every leaf is an array and has a name of its own"
    )
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(agent)):
        assert ours.dtype == theirs.dtype
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jr.key_data(ours), jr.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)
    assert again.config == tiny and int(again.step) == 40
    names = named_arrays(again)
    for part in ("critic.model", "critic.optimiser_state", "target_critic", "actor", "controller"):
        assert any(name.startswith(part) for name in names), part
    np.testing.assert_array_equal(names["key"], jr.key_data(jr.split(jr.key(tiny.seed), 4)[2]))
    trained = [
        name
        for name, array in names.items()
        if not np.array_equal(array, named_arrays(fresh)[name])
    ]
    assert len(trained) > 0.9 * len(names), "trained arrays, not fresh ones"


def test_odd_values_come_back(tiny, tmp_path):
    """-0, the smallest subnormal, the largest float: whatever a float32 can be, bit for bit."""
    odd = np.array([-0.0, 1e-45, np.finfo(np.float32).max, -1.0], np.float32)
    agent = new_agent(2, 2, tiny)
    shape = agent.critic.model.tokenizer.v.shape
    agent = eqx.tree_at(
        lambda agent: agent.critic.model.tokenizer.v,
        agent,
        jax.numpy.asarray(np.resize(odd, shape)),
    )
    save_checkpoint(tmp_path / "odd", agent)
    assert (
        np.asarray(load_checkpoint(tmp_path / "odd", tiny).critic.model.tokenizer.v).tobytes()
        == np.resize(odd, shape).tobytes()
    )


def test_what_the_file_says_of_itself(saved, tiny):
    first, second, arrays = content_of(saved)
    assert first.keys() == {"format", "sha256"} and (
        second["step"],
        second["n_s"],
        second["n_a"],
    ) == (40, 2, 2)
    assert second["config"]["task"] == tiny.task and second["config"]["critic"]["d_model"] == 32
    assert arrays["critic.model.blocks[0].attention.query.weight"].shape == (32, 32)
    assert not any(array.dtype.hasobject for array in arrays.values())


# Damage.


def refused(path, tiny, pattern=None) -> str:
    with pytest.raises(CheckpointError, match=pattern) as error:
        load_checkpoint(path, tiny)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@settings(shared, max_examples=60)
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_refused(data, saved, tiny):
    content = saved.read_bytes()
    length = data.draw(
        st.one_of(st.integers(0, 400), st.integers(0, len(content) - 1), st.just(len(content) - 1))
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-000000040.checkpoint"
        path.write_bytes(content[:length])
        refused(path, tiny)


@settings(shared, max_examples=120)
@given(data=st.data())
def test_one_flipped_byte_anywhere_is_refused(data, saved, tiny):
    content = bytearray(saved.read_bytes())
    # Half of the positions are in the two lines of JSON, where a reader that believes what it reads
    # would go astray.
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
            assert int(load_checkpoint(path, tiny).step) == 40
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
    refused(
        path,
        tiny,
        f"is of format {checkpoint.FORMAT + 1}, and this version of tql reads format "
        f"{checkpoint.FORMAT}",
    )


# Files whose checksum holds and that are still not what they should be.


def other_settings(tiny):
    """Settings that need other arrays, and what is said of the arrays that are not theirs."""
    wider = replace(tiny, critic=replace(tiny.critic, d_model=64))
    deeper = replace(tiny, critic=replace(tiny.critic, layers=2))
    no_actor = replace(tiny, actor=ActorConfig(kind="dataset"))
    shapes = r"array 'critic\.\w+.* is float32\[.*32.*\], but these settings need float32\[.*64.*\]"
    yield wider, "config.json says critic.d_model 64, the checkpoint has 32;", shapes
    more = r"missing arrays: \[.*critic\.model\.blocks\[1\]\.attention"
    yield deeper, "config.json says critic.layers 2, the checkpoint has 1;", more
    fewer = r"missing arrays: none; unknown arrays: \['actor\.model\.flow\.layers\[0\]\.bias'"
    yield no_actor, "config.json says actor.kind dataset, the checkpoint has flow", fewer


def test_other_settings_are_named(saved, tiny, tmp_path):
    """`config.json` was edited; or the checkpoint says that it has the edited settings, and its
    arrays are others."""
    _, second, arrays = content_of(saved)
    for config, named, about_arrays in other_settings(tiny):
        refused(saved, config, named)
        second["config"] = as_json(config)
        refused(forge(tmp_path / "other", second, archive_of(arrays)), config, about_arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(steps=400),
            "config.json says steps 400, the checkpoint has 40; put config.json back",
        ),
        (
            dict(seed=4, tau=0.5),
            "says seed 4, the checkpoint has 3, tau 0.5, the checkpoint has 0.02",
        ),
    ],
)
def test_settings_that_need_the_same_arrays_are_named_too(change, words, saved, tiny):
    refused(saved, replace(tiny, **change), words)


def test_what_the_first_lines_say(saved, tiny, tmp_path):
    assert settings_in(saved) == (40, as_json(tiny))
    for content in (b"", b"mine", b"{}\n{}", b'{"format": 1}\n{}\n', b"[]\n" * 3, b"[" * 100_000):
        (tmp_path / "any").write_bytes(content)
        assert settings_in(tmp_path / "any") is None
    assert settings_in(tmp_path) is None and settings_in(tmp_path / "missing") is None


def test_a_renamed_array_is_named_twice(saved, tiny, tmp_path):
    _, second, arrays = content_of(saved)
    arrays["critic.model.tokenizer.value"] = arrays.pop("critic.model.tokenizer.v")
    path = forge(tmp_path / "renamed", second, archive_of(arrays))
    refused(
        path,
        tiny,
        r"missing arrays: \['critic.model.tokenizer.v'\]; unknown arrays: "
        r"\['critic.model.tokenizer.value'\]",
    )


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("critic.model.tokenizer.v", np.zeros(31, np.float32), r"float32\[31\]"),
        ("critic.model.tokenizer.v", np.zeros(32, np.float64), r"float64\[32\]"),
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
    archives = (
        pickle.dumps(Bomb(armed)),
        archive_of(arrays | {"step": bomb}),
        archive_of(arrays | {"extra": bomb}),
        lone.getvalue(),
    )
    for archive in archives:
        refused(forge(tmp_path / "bomb", second, archive), tiny, "though its checksum holds")
        assert not armed.exists()


@pytest.mark.parametrize(
    "second",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"n_s": null, "n_a": 2}',
        b'{"n_s": "two", "n_a": 2}',
        b"\xff",
    ],
)
def test_a_second_line_of_other_content_is_refused(second, saved, tiny, tmp_path):
    _, _, arrays = content_of(saved)
    refused(
        forge(tmp_path / "second", second, archive_of(arrays)), tiny, "though its checksum holds"
    )


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
    content = {
        "nothing": b"",
        "one array": lone.getvalue(),
        "an archive without arrays": archive_of({}),
    }[archive]
    refused(forge(tmp_path / "archive", content_of(saved)[1], content), tiny)


# Whole or absent.


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_before_the_new_file_has_its_name_leaves_the_old_one(
    call, saved, tiny, tmp_path, monkeypatch
):
    agent, path = load_checkpoint(saved, tiny), tmp_path / "step-000000040.checkpoint"
    path.write_bytes(b"the old file")

    def dies(*_):
        assert path.read_bytes() == b"the old file"
        raise Killed

    monkeypatch.setattr(os, call, dies)
    with pytest.raises(Killed):
        save_checkpoint(path, agent)
    assert path.read_bytes() == b"the old file"
    monkeypatch.undo()
    save_checkpoint(path, agent)
    assert int(load_checkpoint(path, tiny).step) == 40


def test_on_the_disk_before_it_has_its_name(saved, tiny, tmp_path, monkeypatch):
    """The file's bytes are synced, then it is renamed, then its directory is synced."""
    calls, replace_, fsync = [], os.replace, os.fsync

    def noted_fsync(descriptor):
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(
            (
                "fsync",
                "directory"
                if target.is_dir()
                else "whole"
                if target.stat().st_size > 10_000
                else "part",
            )
        )
        fsync(descriptor)

    def noted_replace(source, target):
        calls.append(("replace", Path(target).name))
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    agent = load_checkpoint(saved, tiny)
    save_checkpoint(tmp_path / "new", agent)
    assert calls == [("fsync", "whole"), ("replace", "new"), ("fsync", "directory")]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
