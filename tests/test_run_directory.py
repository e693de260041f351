"""A run's directory: what lies in it is read back, and what is damaged or missing is refused by name."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import damage, shared

from tql import checkpoint, run_directory
from tql.run_directory import RunError


def test_the_checkpoint_after_so_many_updates(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert int(run_directory.agent_at(run, 30).step) == 30 and int(run_directory.agent_at(run, 40).step) == 40
    with pytest.raises(RunError, match="no checkpoint after 35 updates; there are: 40, 30"):
        run_directory.agent_at(run, 35)
    damage(run_directory.checkpoints(run)[0])
    with pytest.raises(checkpoint.CheckpointError, match="000000040.checkpoint: is damaged"):
        run_directory.agent_at(run, 40)
    for path in run_directory.checkpoints(run):
        path.unlink()
    with pytest.raises(RunError, match="there are: none"):
        run_directory.agent_at(run, 40)


def test_no_run_directory(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(RunError, match="holds no run of tql"):
            run_directory.read_settings(path)


@settings(shared, max_examples=30)
@given(cut=st.floats(0, 0.99))
def test_a_cut_config_is_refused(cut, finished):
    with tempfile.TemporaryDirectory() as folder:
        content = (finished / "config.json").read_bytes()
        (Path(folder) / "config.json").write_bytes(content[: int(cut * (len(content) - 2))])
        with pytest.raises(RunError, match="config.json: is damaged or of another version"):
            run_directory.read_settings(Path(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["config"].pop("task"),
        lambda about: about["config"].update(seed="three"),
        lambda about: about["config"].update(new_setting=1),
        lambda about: about["config"]["critic"].update(d_model=None),
        lambda about: about["config"].update(steps=41),
        lambda about: about["config"].update(control=None),
        lambda about: about.update(target=7),
        lambda about: about.pop("dataset"),
        lambda about: about["dataset"].update(file=3),
    ],
)
def test_a_config_of_other_content_is_refused(change, finished, tmp_path):
    about = json.loads((finished / "config.json").read_text())
    change(about)
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="config.json: is damaged or of another version"):
        run_directory.read_settings(tmp_path)


def test_metrics_with_a_torn_last_line_and_with_a_damaged_one(finished, tmp_path):
    content = (finished / "metrics.jsonl").read_bytes()
    for cut in (len(content) - 1, len(content) - 40):
        (tmp_path / "metrics.jsonl").write_bytes(content[:cut])
        assert run_directory.read_metrics(tmp_path) == run_directory.read_metrics(finished)[:-1]
    for damaged in (content.replace(b'{"step": 15', b'{"stxp": 15'), content.replace(b'{"step": 15', b"\0\0\0\0")):
        (tmp_path / "metrics.jsonl").write_bytes(damaged)
        with pytest.raises(RunError, match="metrics.jsonl, line 3: is no line of metrics"):
            run_directory.read_metrics(tmp_path)
