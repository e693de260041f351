"""The committed records and the pictures that are drawn from them."""

import importlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))

import draw
import presets
import records
import table
from draw import FIGURES
from records import pick, read
from success_statistics import improvement, interval, mean_deviation, mean_score

from tql.config import ActorConfig, ControlConfig
from tql.ogbench.tasks import Task
from tql.presets import SIZES
from tql.training.methods import METHODS, as_json, config_from_dict

PICTURES = {
    **dict.fromkeys(("collapse", "entropy_by_size", "roughness", "ablation", "agent"), ("cpu",)),
    **dict.fromkeys(("stabilisers", "depth"), ("cpu",)),
    **dict.fromkeys(("success", "scaling", "table"), ("pocket",)),
    "search": ("search", "pocket"),
}


@pytest.fixture(scope="module")
def recorded():
    return {preset: read(preset) for preset in ("cpu", "pocket", "search", "known-levels")}


# ---- records -------------------------------------------------------------------------------------


def test_the_records_are_there(recorded):
    assert {preset: len(of) for preset, of in recorded.items()} == {
        **{"cpu": 66, "pocket": 86, "search": 27, "known-levels": 4}
    }
    for record in sum(recorded.values(), []):
        assert record.name.endswith(f"-seed{record.seed}") and Task.parse(record.task)
        assert record.metrics["step"][-1] <= record.config["steps"]
        if record.evaluation:
            assert max(x.step for x in record.evaluation) == record.config["steps"]
        assert (record.portrait is not None) == (record in recorded["cpu"])


def test_a_record_comes_back_from_its_line(recorded, tmp_path):
    first, second, third = recorded["cpu"][:3]
    records.write([second], "mine", tmp_path)
    records.write([first, third], "mine", tmp_path)
    assert [asdict(x) for x in read("mine", tmp_path)] == [
        asdict(x) for x in (first, second, third)
    ]
    records.write([replace(second, device="another")], "mine", tmp_path)
    assert [x.device for x in read("mine", tmp_path)] == [first.device, "another", third.device]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def without(*path):
    def change(line):
        *outer, last = path
        for name in outer:
            line = line[name]
        del line[last]

    return change


DAMAGES = {
    "the run.name is missing": without("name"),
    "the run.device is 7; it must be a text": lambda line: line.update(device=7),
    "config.seed is null; it must be a whole number": without("config", "seed"),
    "the run.dataset.sha256 is missing": without("dataset", "sha256"),
    "metrics.td_loss must have one number": lambda line: line["metrics"]["td_loss"].pop(),
    "metrics.q_mean must have": lambda line: line["metrics"].update(q_mean=["many"] * 20),
    r"evaluation\[0\].successes\[2\] is 2; it must be true or false": lambda line: line[
        "evaluation"
    ][0]["successes"].__setitem__(2, 2),
    r"evaluation\[0\]: successes, returns and lengths": lambda line: line["evaluation"][0][
        "lengths"
    ].pop(),
    "the run.portrait is": without("portrait", "map"),
    "its name must end in -seedK": lambda line: line.update(name="mine"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_line_is_named(said, recorded, tmp_path):
    (agent,) = pick(recorded["cpu"], label="agent-tql-32", seed=0)
    records.write([recorded["cpu"][-1], agent], "mine", tmp_path)
    file = tmp_path / "mine.jsonl"
    first, second = file.read_text().splitlines()
    line = json.loads(first)
    DAMAGES[said](line)
    file.write_text(f"{second}\n{json.dumps(line)}\n")
    with pytest.raises(
        SystemExit, match=rf"mine.jsonl, line 2: .*{said}.*Restore the file"
    ) as error:
        read("mine", tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(recorded, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"name": "half')
    with pytest.raises(SystemExit, match="line 1: Unterminated string"):
        read("mine", tmp_path)
    with pytest.raises(SystemExit, match="make its runs with: python figures/run.py gpu"):
        read("gpu", tmp_path)
    with pytest.raises(SystemExit, match="no run with label sarsa and seed 7 is recorded yet"):
        pick(recorded["cpu"], label="sarsa", seed=7)


# ---- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cpu", "pocket", "search", "known-levels"])
def test_the_recorded_runs_have_the_settings_of_their_preset(preset, recorded):
    """Two runs of three of the search are those that the benchmark had before it."""
    runs = presets.PRESETS[preset]()
    there = {record.name: record for record in recorded[preset]}
    for name in there.keys() & runs.keys():
        assert there[name].config == as_json(runs[name]), name
        assert config_from_dict(there[name].config) == runs[name]
    beside = [there[name].label for name in sorted(there.keys() - runs.keys())]
    assert beside == (["fbrac@3"] * 3 + ["iql@3"] * 3 if preset == "search" else [])
    short = {name.rpartition("/")[2] for name in runs.keys() - there.keys()}
    first = [f"{method}@{value}-seed10" for method, value in FIRST_VALUES.items()]
    assert short == {"pocket": {"floq@256-seed2"}, "search": {*first}}.get(preset, set())


FIRST_VALUES = dict(iql=3, rebrac=1, fbrac=3, ifql=32, fql=10, floq=10, pac=10, tql=10)
"""The settings with which the search began: pocket's runs stand for them."""


def test_presets_at_the_papers_scale():
    gpu = presets.PRESETS["gpu"]()
    assert list(gpu) == [
        f"cube-double-task2-{control}-{width}-seed0"
        for width in (1024, 512, 256, 128)
        for control in ("none", "tql")
    ]
    for name, config in gpu.items():
        *_, control, width, _ = name.split("-")
        assert config.control == ControlConfig(control, ((3.0, 3.0), (2.5, 2.5)))
        assert config.critic.d_model == int(width) and config.actor == ActorConfig()
        numbers = (config.steps, config.batch_size, config.discount, config.tau, config.warmup)
        assert numbers == (1_000_000, 256, 0.99, 0.005, 10_000) and config.episodes == 0
        assert presets.UNTIL["gpu"] % config.checkpoint_every == 0, "it is looked at where it ends"
    paper = presets.PRESETS["paper"]()
    assert len(paper) == len(set(paper.values())) == 3 * (25 * 4 * 2 + 5 * 2)
    rates = {name: config.critic_lr for name, config in paper.items() if config.critic_lr != 1e-4}
    assert set(rates.values()) == {4e-4}
    assert all("cube-triple" in name and "-1024-" in name for name in rates)
    methods = presets.PRESETS["methods-paper"]()
    assert len(methods) == 25 * 10 * 8 and {c.method for c in methods.values()} == METHODS.keys()
    widths = {c.critic.d_model for c in methods.values() if c.method == "tql"}
    assert widths == {SIZES["26M"]} and {c.steps for c in methods.values()} == {1_000_000}
    assert presets.PRESETS["methods-gpu"]().keys() <= methods.keys()


def test_only_runs_of_returns_change_their_data():
    for name, config in presets.cpu().items():
        change = presets.change_of(name, config)
        if name.startswith("returns-"):
            assert change.keywords == {"gamma": 0.95}
        else:
            assert change is presets.unchanged


# ---- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_that_of_its_records(name, recorded, tmp_path):
    """As it is committed, but for what another version of matplotlib may shift."""
    figure = importlib.import_module(name).draw(*(recorded[preset] for preset in PICTURES[name]))
    ours = imageio.imread(draw.save(figure, name, tmp_path)).astype(float)
    committed = imageio.imread(FIGURES / f"{name}.png").astype(float)
    assert ours.shape == committed.shape and np.mean(np.abs(ours - committed)) < 3
    caption = figure._supxlabel.get_text() if figure._supxlabel else ""
    assert caption.count("\n") <= 1 and all(len(line) <= 80 for line in caption.split("\n"))
    texts = [text for text in figure.findobj(match=draw.matplotlib.text.Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 10


def test_curves_are_the_means_of_the_runs(recorded):
    axis = importlib.import_module("collapse").draw(recorded["cpu"]).axes[0]
    for width in (32, 64, 128):
        (line,) = (x for x in axis.lines if x.get_label() == f"width {width}")
        H = [run.metrics["entropy"] for run in pick(recorded["cpu"], label=f"sarsa-none-{width}")]
        np.testing.assert_allclose(line.get_ydata(), np.mean(H, axis=(0, 2, 3)))
        assert list(line.get_xdata()) == list(range(50, 1001, 50))


def test_the_table_is_that_of_the_records(recorded):
    assert (FIGURES / "table.md").read_text() == table.markdown(recorded["pocket"])
    pairs = table.pairs(recorded["pocket"])
    assert len(pairs) == 40 and {pair[-1] for pair in pairs if pair[-1] <= 0.05}
    assert all(q >= p for *_, p, q in pairs)


def test_the_numbers_of_the_readme(recorded):
    """Those in the sentences; a list of numbers is written as `2.76, 2.44 and 2.18`."""
    said = " ".join((FIGURES / "README.md").read_text().split())
    cpu, pocket = recorded["cpu"], recorded["pocket"]
    mean = lambda labels, of: [np.mean([of(run) for run in pick(cpu, label=x)]) for x in labels]
    listed = lambda values: " and ".join(", ".join(f"{x:.2f}" for x in values).rsplit(", ", 1))
    entropy, rough = lambda run: run.late_entropy.mean(), lambda run: run.late("roughness")
    turns = lambda run: run.late("turning_points")
    none, tql = ([f"sarsa-{kind}-{d}" for d in (32, 64, 128)] for kind in ("none", "tql"))
    ways = [f"{way}-none-128" for way in ("sigma-reparam", "modern", "qk-norm")]
    kinds = [f"sarsa-{kind}-128" for kind in ("none", "fixed", "single", "tql")]
    for labels in (none, tql, ways, kinds):
        assert listed(mean(labels, entropy)) in said and listed(mean(labels, rough)) in said, labels
    assert listed(mean(none, turns)) in said and listed(mean(tql, turns)) in said
    flow = [mean(("flow-none-64", "flow-tql-64"), of) for of in (rough, turns)]
    words = "{:.2f} without control and {:.2f} with it; turning points are {:.2f} and {:.2f}"
    assert words.format(*flow[0], *flow[1]) in said
    deep = mean(("depth4-tql-64", "depth4-none-64"), entropy)
    assert "{:.2f} nats, against {:.2f} without control; every group".format(*deep) in said
    for label in ("agent-none-32", "agent-tql-32"):
        solved = [round(50 * run.last_success()) for run in pick(cpu, label=label)]
        assert "{}, {} and {}".format(*solved) in said
    for method, name in draw.METHODS.items():
        x = table.scores(pocket, method)
        words = f"{100 * mean_score(x):.0f} ± {100 * mean_deviation(x):.0f}"
        assert words in said, name
    x, y = table.scores(pocket, "tql"), table.scores(pocket, "tql-none")
    low, high = interval(improvement, x, y)
    chance = f"probability {100 * improvement(x, y):.0f} %"
    assert f"{chance} (95 % interval over runs {100 * low:.0f} to {100 * high:.0f})" in said
    decided = [points > 0 for *_, points, _, q in table.pairs(pocket) if q <= 0.05]
    words = "In {} pairs our order is decided and is the paper's, in {} it is decided and is the"
    assert words.format(sum(decided), decided.count(False)) in said
