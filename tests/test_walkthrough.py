"""Every walkthrough, run as a reader runs it: a program of its own that has to end well, draw its pictures and keep to its price.

1 to 5 and 8 run whole here, those that train among the slow tests; 6, 7 and 9, which train for minutes, in `test_long_walkthroughs.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WALKTHROUGH = REPOSITORY / "walkthrough"
PRICE = re.compile(r"# \*\*Price\*\*: .+ on 2 cores \((.+) of processor time\), ([\d.]+) GB of memory")
WALL = re.compile(r"# \*\*Price\*\*: (.+) on 2 cores")
SLACK = 4
"""A price is held to its order of magnitude: the same work takes up to twice the processor time beside a neighbour on a shared core."""

COMPILED_QUICKLY = ("01_tour", "03_attention_and_entropy", "08_one_update")
"""They compile longer than they compute, so here without XLA's optimisations, which their claims do not need."""
TRAINED = ("02_tokens", "04_critic_and_td", "05_flow_actor")
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
    if name in COMPILED_QUICKLY:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
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


@pytest.mark.parametrize("name", [*COMPILED_QUICKLY, *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED)])
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
