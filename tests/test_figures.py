"""Every picture from its records: what is drawn is what the files say, and the verdict follows from them."""

import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from tql.config import SIZES

FIGURES = Path(__file__).parents[1] / "figures"
sys.path.insert(0, str(FIGURES))  # the scripts import their neighbours, as `python figures/collapse.py` does

import ablation  # noqa: E402
import agent  # noqa: E402
import collapse  # noqa: E402
import depth  # noqa: E402
import entropy_by_size  # noqa: E402
import portraits  # noqa: E402
import records as shared  # noqa: E402
import roughness  # noqa: E402
import stabilisers  # noqa: E402

SCRIPTS = {script.__name__: script for script in (collapse, entropy_by_size, ablation, roughness, agent, stabilisers, depth)}
PUBLISHED = json.loads((FIGURES / "data" / "published.json").read_text())
TOKENS = {"cube-double": 43, "cube-triple": 52, "scene": 46, "puzzle-3x3": 61, "puzzle-4x4": 89}
DATA = FIGURES / "data" / "cpu"


def lines_of(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A function: the picture and the figure of a script, drawn and written once, by the script's own way."""
    folder = tmp_path_factory.mktemp("figures")

    @cache
    def drawn(name):
        kept = []
        options = shared.Options(out=folder / f"{name}.png", data=DATA.parent)
        return shared.save(lambda records: kept.append(SCRIPTS[name].draw(records)) or kept[0], options, name), kept[0]

    return drawn


def axes_of(figure, start):
    """Axes, wherever in the figure, whose title starts so."""
    return [axis for axis in figure.get_axes() if axis.get_title().lower().startswith(start.lower())]


def words_of(figure):
    """The caption, in one line."""
    return " ".join(" ".join(text.get_text() for part in figure.subfigs for text in part.texts).split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_rebuilds_its_picture(name, drawn):
    path, figure = drawn(name)
    pixels = imageio.imread(path)
    assert pixels.shape[1] == 1650 and pixels.shape[0] > 900 and pixels[..., :3].std() > 20
    words = words_of(figure)
    assert "the paper: " in words or "Neither agrees nor differs" in words
    for part in ("Scale: cube-single", " updates", "seed", "device: cpu"):
        assert part in words, f"the caption of {name} says nothing of {part!r}"
    committed = imageio.imread(FIGURES / f"{name}.png")
    assert committed.shape == pixels.shape and np.abs(committed - 1.0 * pixels).mean() < 2, f"rebuild it: python figures/{name}.py"


def test_collapse_draws_the_recorded_entropies(drawn):
    (axis,) = axes_of(drawn("collapse")[1], "attention entropy")
    for width in (32, 64, 128):
        runs = [lines_of(folder) for folder in sorted(DATA.glob(f"sarsa-none-{width}-seed*"))]
        of_runs = [[np.mean(line["entropy"]) for line in run] for run in runs]
        ours = [line for line in axis.lines if line.get_color() == shared.WIDTH_COLOURS[width] and line.get_linestyle() == "-"]
        *thin, thick = [line.get_ydata() for line in ours]
        np.testing.assert_allclose(thin, of_runs)
        np.testing.assert_allclose(thick, np.mean(of_runs, axis=0))
        assert ours[0].get_xdata().tolist() == [line["step"] for line in runs[0]]


def test_published_curves_are_drawn_thin_and_dashed_as_they_are(drawn):
    figure = drawn("collapse")[1]
    for start, block in (("attention entropy", "entropy_without_control"), ("success", "success_without_control")):
        (axis,) = axes_of(figure, start)
        dashed = [line for line in axis.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
        of = PUBLISHED[block].get("cube-double", PUBLISHED[block])
        assert [line.get_ydata().tolist() for line in dashed] == [of[size] for size in SIZES]
        assert all(line.get_xdata().tolist() == PUBLISHED[block]["steps"] and line.get_linewidth() < 1.5 for line in dashed)
        assert shared.CITED in axis.get_legend_handles_labels()[1]


def test_entropy_by_size_draws_both_controls_the_target_and_the_published_26M(drawn):
    figure = drawn("entropy_by_size")[1]
    for start, control in (("no control, cube-single", "none"), ("TQL, cube-single", "tql")):
        (axis,) = axes_of(figure, start)
        runs = [lines_of(folder) for folder in sorted(DATA.glob(f"sarsa-{control}-128-seed*"))]
        thin = [line for line in axis.lines if line.get_color() == shared.WIDTH_COLOURS[128] and line.get_linestyle() == "-"][:-1]
        np.testing.assert_allclose([line.get_ydata() for line in thin], [[np.mean(line["entropy"]) for line in run] for run in runs])
        star = [line.get_ydata().tolist() for line in axis.lines if line.get_linestyle() == "-."]
        assert star == [PUBLISHED["entropy_26M"][control]]
    (target,) = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert target.get_ydata()[0] == pytest.approx(0.8 * np.log(34) - 0.25)
    (axis,) = axes_of(figure, "success")
    dashed = [line.get_ydata().tolist() for line in axis.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert dashed == [[mean for mean, _ in PUBLISHED["success_by_size"][control]] for control in ("none", "tql")]


def test_ablation_draws_means_and_every_run(drawn):
    figure = drawn("ablation")[1]
    (entropy,), (rough,), (success,) = (axes_of(figure, start) for start in ("entropy", "roughness", "success, 26M"))
    controls = [control for control in shared.CONTROLS if list(DATA.glob(f"sarsa-{control}-128-seed*"))]
    runs = {control: sorted(DATA.glob(f"sarsa-{control}-128-seed*")) for control in controls}
    late = {c: [[r["roughness"] for r in lines_of(run, "analysis") if r["step"] in (500, 750, 1000)] for run in runs[c]] for c in controls}
    np.testing.assert_allclose([bar.get_height() for bar in rough.patches], [np.mean(late[control]) for control in controls])
    H = {c: np.mean([[r["entropy"] for r in lines_of(run) if r["step"] >= 500] for run in runs[c]], axis=(0, 1)) for c in controls}
    heights = [H[control][layer][group] for layer in (0, 1) for group in (0, 1) for control in controls]
    np.testing.assert_allclose([bar.get_height() for bar in entropy.patches], heights)
    assert [len(dots.get_xdata()) for dots in rough.lines] == [len(runs[control]) for control in controls]
    assert [bar.get_height() for bar in success.patches] == [PUBLISHED["ablation"][control][0] for control in shared.CONTROLS]
    assert all(bar.get_hatch() for bar in success.patches) and not any(bar.get_hatch() for bar in rough.patches)


def test_roughness_draws_every_run_and_the_mean_of_the_late_checkpoints(drawn):
    figure = drawn("roughness")[1]
    measures = {axis.get_ylabel(): axis for axis in figure.get_axes()}
    for name, label in roughness.MEASURES.items():
        colour = shared.CONTROL_COLOURS["tql"]
        *dots, means = [line.get_ydata() for line in measures[label].lines if line.get_color() == colour]
        late = [
            [
                np.mean([row[name] for row in lines_of(run, "analysis") if row["step"] >= 500])
                for run in sorted(DATA.glob(f"sarsa-tql-{w}-*"))
            ]
            for w in (32, 64, 128)
        ]
        for of_width, expected in zip(dots, late, strict=True):
            np.testing.assert_allclose(of_width, expected)
        np.testing.assert_allclose(means, [np.mean(of_width) for of_width in late])
    assert "(500, 750, 1000 updates" in words_of(figure)


def test_agent_draws_the_solved_episodes(drawn):
    (axis,) = axes_of(drawn("agent")[1], "episodes solved")
    expected = []
    for control in ("none", "tql"):
        rows = [row for folder in DATA.glob(f"agent-{control}-*") for row in lines_of(folder, "evaluation")]
        expected.append(100 * np.mean([row["success"] for row in rows if row["policy"] == "policy" and row["step"] == 18_000]))
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches][:2], expected)


def test_portraits_show_the_same_pair_for_all_with_its_range(drawn):
    records = shared.pick(shared.read(shared.Options(data=DATA.parent)), study="sarsa", control="none", width=(32, 128))
    pair = portraits.clearest_pair(records)
    axes = axes_of(drawn("collapse")[1], "d_model")
    landscapes = [axis for axis in axes if "Q from" in axis.get_title()]
    assert len(landscapes) == len(axes) / 2 == len(records)
    for axis in landscapes:
        record = next(r for r in records if axis.get_title().startswith(f"d_model {r.width}, seed {r.seed}\n"))
        grid = record.portrait.landscapes[pair]
        np.testing.assert_array_equal(axis.images[0].get_array(), grid.T)
        seen = [float(number) for number in re.findall(r"-?\d+\.\d+", axis.get_title())]
        np.testing.assert_allclose(seen, [grid.min(), grid.max()], atol=0.006)
    maps = [axis.images[0] for axis in axes if "nats" in axis.get_title()]
    assert len(maps) == len(records) and len({image.get_clim() for image in maps}) == 1, "maps of one picture need one scale of colour"


# ---- the verdict follows from the records --------------------------------------------------------------------------------------


def made(control, width, seed=0, *, H=3.0, rough=0.3, solved=None, target=2.5):
    """A record as `run.record` would leave it, with these numbers at every line."""
    config = dict(task="cube-single-play-singletask-task2-v0", seed=seed, control=dict(kind=control), critic=dict(d_model=width, layers=2))
    config |= dict(actor=dict(kind="dataset"), critic_lr=1e-3, temperature_lr=1e-4, tau=0.005, discount=0.99, batch_size=64)
    steps, evaluation = (250, 500, 750, 1000), []
    if solved is not None:
        evaluation = [dict(step=1000, policy="policy", success=i < solved) for i in range(50)]
    return shared.Record(
        Path(f"study-{control}-{width}-seed{seed}"),
        dict(config=config, target=[[target] * 2] * 2, device="cpu", training_seconds=60, dataset=dict(file="cube.npz", sha256="a")),
        [dict(step=step, entropy=(np.zeros((2, 2)) + H).tolist()) for step in steps],
        [dict(step=step, roughness=rough, turning_points=10 * rough) for step in steps],
        evaluation,
    )


def test_a_dataset_that_was_made_twice_is_named():
    one, other = made("none", 32), made("none", 32, 1)
    other.settings["dataset"] = dict(file="cube.npz", sha256="b")
    assert shared.datasets_of([one, one]) == "" and "not the same bit for bit" in shared.datasets_of([one, other])
    assert "made on 2 machines" in shared.scale_of([one, other])
    other.settings["dataset"] = dict(file="scene.npz", sha256="b")
    assert shared.datasets_of([one, other]) == "", "two datasets"


def test_collapse_agrees_only_if_entropy_falls_with_every_width():
    def words(*H):
        return collapse.judge([made("none", width, seed, H=h + 0.02 * seed) for width, h in zip((32, 64, 128), H) for seed in (0, 1)])

    assert words(3.0, 2.5, 2.0).startswith("AGREES with") and "3.01, 2.51, 2.01 nats" in words(3.0, 2.5, 2.0)
    assert "2 of 2 pairs" in words(3.0, 2.5, 2.0)
    assert words(3.0, 3.1, 2.0).startswith("DIFFERS from")
    assert words(2.0, 2.5, 3.0).startswith("DIFFERS from") and "0 of 2 pairs" in words(2.0, 2.5, 3.0)
    assert collapse.judge([made("none", 32)]).startswith("Neither")


def test_only_the_second_half_counts():
    first, second = made("none", 32, H=3.0), made("none", 64, H=2.0)
    early = [line | {"entropy": [[9.0] * 2] * 2} if line["step"] < 500 else line for line in second.metrics]
    assert collapse.judge([first, replace(second, metrics=early)]) == collapse.judge([first, second])
    late = [line | {"entropy": [[9.0] * 2] * 2} if line["step"] == 500 else line for line in second.metrics]
    assert collapse.judge([first, replace(second, metrics=late)]).startswith("DIFFERS")
    assert second.late("roughness") == pytest.approx(0.3)
    rough = replace(second, analysis=[line | {"roughness": line["step"] / 250} for line in second.analysis])
    assert rough.late("roughness") == pytest.approx(3.0)  # checkpoints 500, 750, 1000


@pytest.mark.parametrize(
    "none, tql, agrees",
    [
        ((2.4, 2.2, 2.0), (2.6, 2.5, 2.4), True),
        ((2.4, 2.2, 2.0), (2.6, 2.5, 2.2), False),  # 0.3 below the target at one width
        ((2.4, 2.2, 3.0), (2.6, 2.5, 2.9), False),  # above its target, and no gain
    ],
)
def test_control_agrees_only_if_it_holds_every_group_and_gains(none, tql, agrees):
    records = [made(c, w, seed, H=h) for c, H in (("none", none), ("tql", tql)) for w, h in zip((32, 64, 128), H) for seed in (0, 1)]
    assert entropy_by_size.judge(records).startswith("AGREES") == agrees
    assert entropy_by_size.judge(records[:6]).startswith("Neither")


def test_one_group_below_its_target_is_not_hidden_by_the_mean():
    held = [made("none", 32, H=1.0), made("tql", 32, H=3.0)]
    one_low = [line | {"entropy": [[2.2, 3.2], [3.3, 3.3]]} for line in held[1].metrics]
    assert entropy_by_size.judge(held).startswith("AGREES")
    assert entropy_by_size.judge([held[0], replace(held[1], metrics=one_low)]).startswith("DIFFERS")


def test_ablation_agrees_only_if_all_three_help():
    four = {"none": (2.0, 1.0), "fixed": (3.4, 0.3), "single": (3.2, 0.3), "tql": (3.0, 0.3)}

    def words(**changed):
        return ablation.judge([made(control, 128, H=H, rough=r) for control, (H, r) in (four | changed).items()])

    assert words().startswith("AGREES")
    assert words(single=(1.9, 0.3)).startswith("DIFFERS"), "one of them does not raise the entropy"
    assert words(fixed=(3.4, 1.1)).startswith("DIFFERS"), "one of them is rougher"
    assert ablation.judge([made("tql", 128)]).startswith("Neither")


def test_roughness_agrees_only_if_it_grows_without_control_and_control_lowers_it():
    def words(none, tql):
        values = (("none", none), ("tql", tql))
        return roughness.judge([made(c, w, rough=r) for c, of in values for w, r in zip((32, 64, 128), of)], "turning_points")

    assert words((0.3, 0.6, 1.2), (0.2, 0.3, 0.5)).startswith("AGREES")
    assert words((0.3, 1.2, 0.6), (0.4, 0.3, 0.5)).startswith("AGREES"), "the paper shows the smallest and the largest critic only"
    assert words((0.3, 0.6, 0.2), (0.2, 0.3, 0.1)).startswith("DIFFERS"), "it does not grow"
    assert words((0.3, 0.6, 1.2), (0.2, 0.3, 1.3)).startswith("DIFFERS"), "control does not lower it"


def test_the_flow_actor_agrees_only_if_control_lowers_both_measures():
    none, tql = made("none", 64, rough=0.6), made("tql", 64, rough=0.3)
    more_turns = replace(tql, analysis=[line | {"turning_points": 9.0} for line in tql.analysis])
    assert roughness.judge_flow([none, tql]).startswith("AGREES")
    assert roughness.judge_flow([none, more_turns]).startswith("DIFFERS")
    assert roughness.judge_flow([none]).startswith("Neither")


def test_agents_differ_from_the_smallest_size_only_if_their_runs_lie_apart():
    def words(none, tql):
        runs = [(control, seed, k) for control, solved in (("none", none), ("tql", tql)) for seed, k in enumerate(solved)]
        return agent.judge([made(control, 32, seed, solved=k) for control, seed, k in runs])

    overlap = words((17, 30, 40), (36, 42, 43))
    assert overlap.startswith("Neither") and "34% to 80% without control, 72% to 86% with TQL" in overlap
    assert words((17, 30, 35), (36, 42, 43)).startswith("DIFFERS") and words((36, 42, 43), (17, 30, 35)).startswith("DIFFERS")
    assert agent.judge([made("tql", 32, solved=3)]).startswith("Neither")


# ---- what is published, and what is missing ------------------------------------------------------------------------------------


def test_published_numbers_are_in_range_and_say_where_they_are_from():
    blocks = {name: block for name, block in PUBLISHED.items() if name not in ("_about", "sizes")}
    for name, block in blocks.items():
        assert block["what"] and block["source"] and block["exactness"], name
    curves = PUBLISHED["entropy_without_control"]
    for domain, n in TOKENS.items():
        for size in SIZES:
            assert len(curves[domain][size]) == len(curves["steps"]) and 0 < min(curves[domain][size]) < max(curves[domain][size]) < np.log(
                n
            )
        assert np.all(np.diff([curves[domain][size][-1] for size in SIZES]) < 0), "the paper's order of sizes"
    for name in ("entropy_without_control", "entropy_26M", "success_without_control"):
        steps = blocks[name]["steps"]
        assert np.all(np.diff(steps) > 0) and steps[-1] in (995_000, 1_000_000)
    for control in ("none", "tql"):
        assert len(PUBLISHED["entropy_26M"][control]) == 9 and 0 < min(PUBLISHED["entropy_26M"][control]) and len(SIZES) == 4
        assert max(PUBLISHED["entropy_26M"][control]) < np.log(43)
        assert [len(pair) for pair in PUBLISHED["success_by_size"][control]] == [2] * 4
    rates = [PUBLISHED["success_without_control"][size] for size in SIZES]
    assert np.shape(rates) == (4, 11) and np.min(rates) >= 0 and np.max(rates) <= 100


def test_published_numbers_are_those_the_paper_prints():
    assert PUBLISHED["sizes"] == SIZES
    assert {control: PUBLISHED["ablation"][control] for control in shared.CONTROLS} == {
        "none": [6, 3],
        "fixed": [38, 8],
        "single": [41, 12],
        "tql": [67, 6],
    }
    first, last = (PUBLISHED["success_by_size"]["tql"][i][0] for i in (0, -1))
    assert (first, last) == (28, 40) and round(100 * (last / first - 1)) == 43  # "+43 %"
    assert [PUBLISHED["entropy_without_control"]["cube-double"][size][-1] for size in SIZES] == [3.27, 2.95, 1.88, 0.27]


def test_the_caption_names_departures_from_the_paper():
    departing = made("none", 32)
    assert shared.departures([departing]) == " with learning rate 0.001 (paper 0.0001), batch 64 (paper 256)"
    departing.settings["config"] |= dict(critic_lr=1e-4, batch_size=256)
    assert shared.departures([departing]) == ""


def test_other_studies_are_not_mixed_into_the_comparison_of_widths():
    names = ["sarsa", "cube-double-task2", "slow", "returns", "flow", "agent", "sarsa-slow", "qk-norm", "sigma-reparam", "modern", "depth4"]
    records = [replace(made("none", 32), folder=Path(f"{name}-none-32-seed0")) for name in names]
    assert shared.values_of(shared.sizes_study(records), "study") == ["cube-double-task2", "sarsa"]


def test_no_records_ends_with_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="python figures/run.py gpu"):
        shared.read(shared.Options(preset="gpu", data=tmp_path))
    only_agents = [replace(made("tql", 32), folder=Path("agent-tql-32-seed0"))]
    with pytest.raises(SystemExit, match="of critics of several widths"):
        collapse.draw(only_agents)
    with pytest.raises(SystemExit, match="of agents that act"):
        agent.draw([made("none", 32)])


@pytest.mark.parametrize("name", ["collapse", "ablation", "roughness"])
def test_half_a_study_is_drawn_and_says_how_many_seeds_it_has(name):
    uncontrolled = shared.pick(shared.read(shared.Options(data=DATA.parent)), study="sarsa", control="none")
    words = words_of(SCRIPTS[name].draw([record for record in uncontrolled if record.seed <= (record.width == 32)]))
    assert ("seed 0;" if name == "ablation" else "1 to 2 seeds per curve;") in words  # only the widest, or all widths
    assert ("Neither agrees nor differs yet" in words) == (name != "collapse")
