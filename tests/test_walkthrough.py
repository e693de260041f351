"""Every walkthrough, run as a reader runs it: a program of its own that has to end well, draw its pictures and keep to its price.

1 to 5 and 8 run whole. 6 and 7 run twice: on the recorded runs of `figures/data/cpu`, where every claim is held to the numbers at full
size, and at the sizes below through the code that trains. 9 runs at the sizes below.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WALKTHROUGH = REPOSITORY / "walkthrough"
RECORDS = REPOSITORY / "figures" / "data" / "cpu"
PRICE = re.compile(r"# \*\*Price\*\*: .+ on 2 cores \((.+) of processor time\), ([\d.]+) GB of memory")
WALL = re.compile(r"# \*\*Price\*\*: (.+) on 2 cores")
SLACK = 1.5

WHOLE = ("01_tour", "02_tokens", "03_attention_and_entropy", "04_critic_and_td", "05_flow_actor", "08_one_update")
FEWER_EPISODES = {"06_collapse": {"EPISODES = 100": "EPISODES = 2"}, "07_controller": {"EPISODES = 100": "EPISODES = 2"}}
SMALL = {
    "06_collapse": {"EPISODES = 100": "EPISODES = 2", "WIDTHS = (32, 64, 128)": "WIDTHS = (32, 64)", "SEEDS = (0, 1, 2)": "SEEDS = (0,)"}
    | {"STEPS = 1000": "STEPS = 40"},
    "07_controller": {"EPISODES = 100": "EPISODES = 2", "WIDTHS = (32, 64, 128)": "WIDTHS = (32, 64)", "SEEDS = (0, 1, 2)": "SEEDS = (0,)"}
    | {"UPDATES = 1000": "UPDATES = 40"},
    "09_agent": {"EPISODES = 120": "EPISODES = 2", "UPDATES = 18_000": "UPDATES = 180", "ACTED = 50": "ACTED = 2"},
}
"""Constants of a script and what stands in their place here."""


ALONE = """
import resource, subprocess, sys
from pathlib import Path
code = subprocess.run(sys.argv[2:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
Path(sys.argv[1]).write_text(f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1e6}")
sys.exit(code)
"""
"""Runs a program from a small process: a child is charged with the memory of the process that it was forked from."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where these runs keep data and pictures; the two episodes of data are made once."""
    return tmp_path_factory.mktemp("home")


def source(name, constants):
    """The script with other constants; each has to be there, once."""
    text = (WALKTHROUGH / f"{name}.py").read_text()
    for ours, theirs in constants.items():
        assert len(re.findall(rf"^{re.escape(ours)}(?!\w)", text, re.MULTILINE)) == 1, f"{name}: where is {ours}?"
        text = re.sub(rf"^{re.escape(ours)}(?!\w)", theirs, text, flags=re.MULTILINE)
    return text


def run(name, home, constants={}):
    """Runs a script; what it printed, its processor seconds and the memory of its largest process in GB."""
    script = home / f"{name}.py"
    script.write_text(source(name, constants))
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("JAX", "XLA", "PYTEST"))}
    environment = outside | {"TQL_HOME": str(home), "PYTHONWARNINGS": "default", "TQDM_DISABLE": "1"}
    with open(home / f"{name}.out", "w") as out, open(home / f"{name}.err", "w") as err:
        command = [sys.executable, "-c", ALONE, str(home / f"{name}.usage"), sys.executable, str(script)]
        code = subprocess.run(command, env=environment, cwd=home, stdout=out, stderr=err).returncode
    printed, complained = ((home / f"{name}.{kind}").read_text() for kind in ("out", "err"))
    assert code == 0, f"{name} failed:\n{printed[-2000:]}\n{complained[-4000:]}"
    assert "Warning" not in complained, f"{name} warns:\n{complained[-2000:]}"
    spent, memory = map(float, (home / f"{name}.usage").read_text().split())
    return printed, spent, memory


def test_every_page_states_its_price_and_all_of_them_fit_into_an_afternoon():
    minutes = 0.0
    for script in sorted(WALKTHROUGH.glob("[0-9]*.py")):
        stated = WALL.search(script.read_text())
        assert stated and PRICE.search(script.read_text()), f"{script.name} does not state its price"
        minutes += seconds(stated.group(1)) / 60
    assert minutes <= 45, f"the nine scripts take {minutes:.0f} minutes"


def seconds(text):
    """'90 s', '2 min', '2 min 30 s' in seconds."""
    minutes, rest = re.fullmatch(r"(?:(\d+) min)? ?(?:(\d+) s)?", text).groups()
    return 60 * int(minutes or 0) + int(rest or 0)


def price(name):
    """Stated processor seconds and gigabytes."""
    spent, memory = PRICE.search((WALKTHROUGH / f"{name}.py").read_text()).groups()
    return seconds(spent), float(memory)


def pictures_of(name, home):
    """Draws every picture that the script names."""
    named = set(re.findall(r'PICTURES / "([\w.]+\.png)"', (WALKTHROUGH / f"{name}.py").read_text()))
    there = {path.name for path in (home / "runs" / "walkthrough" / name).glob("*.png") if path.stat().st_size > 5000}
    return named, there


@pytest.mark.parametrize("name", WHOLE)
def test_a_walkthrough_holds_what_it_claims_and_keeps_to_its_price(name, home):
    if not (home / "data" / "2-episodes").exists():
        make = "from tql.workspace import dataset; dataset('cube-single-play-v0', episodes=2)"
        subprocess.run([sys.executable, "-c", make], env=os.environ | {"TQL_HOME": str(home), "TQDM_DISABLE": "1"}, check=True)
    _, spent, memory = run(name, home)
    stated_seconds, stated_memory = price(name)
    named, there = pictures_of(name, home)
    assert named and named == there
    assert spent < SLACK * stated_seconds, f"{name}: {spent:.0f} s of processor time; {stated_seconds} s are stated"
    assert memory < SLACK * stated_memory, f"{name}: {memory:.2f} GB; {stated_memory} GB are stated"


@pytest.mark.parametrize("name", FEWER_EPISODES)
def test_the_claims_about_collapse_and_control_hold_on_the_recorded_runs(name, tmp_path):
    shutil.copytree(RECORDS, tmp_path / "runs" / "study" / "cpu")
    printed, _, _ = run(name, tmp_path, FEWER_EPISODES[name])
    assert "DOES NOT HOLD" not in printed and printed.count("holds:") >= 3
    named, there = pictures_of(name, tmp_path)
    assert named == there


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """6 and 7 share their runs, as for a reader."""
    return tmp_path_factory.mktemp("small")


@pytest.mark.parametrize("name", SMALL)
def test_the_long_walkthroughs_train_what_they_show(name, small):
    printed, _, memory = run(name, small, SMALL[name])
    named, there = pictures_of(name, small)
    assert there == named - ({"film.png"} if "no film" in printed else set())
    assert memory < SLACK * price(name)[1]
    trained = {path.parent.name for path in (small / "runs" / "study" / "cpu").glob("*/config.json")}
    if name == "06_collapse":
        assert {"sarsa-none-32-seed0", "slow-none-64-seed0", "returns-none-64-seed0", "flow-none-64-seed0"} <= trained
    if name == "07_controller":
        assert {"sarsa-tql-64-seed0", "sarsa-fixed-64-seed0", "sarsa-single-64-seed0", "flow-tql-64-seed0"} <= trained


def test_a_broken_controller_is_noticed(tmp_path):
    """Critics without control under the names of those with it: the asserts of 7 have to see the difference."""
    study = tmp_path / "runs" / "study" / "cpu"
    shutil.copytree(RECORDS, study)
    for controlled in study.glob("sarsa-tql-*"):
        for file in ("metrics.jsonl", "analysis.jsonl", "portrait.npz"):
            shutil.copy(study / controlled.name.replace("-tql-", "-none-") / file, controlled)
    with pytest.raises(AssertionError, match="AssertionError: no group ends more than 0.3 nats below its target"):
        run("07_controller", tmp_path, FEWER_EPISODES["07_controller"])
