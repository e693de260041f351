"""Every walkthrough, run as a reader runs it: a program of its own that has to end well, draw its
pictures and keep to its price.

The scripts 1 to 5 and 8 run whole, the quick ones among the default tests. 6, 7 and 9 train for
minutes. `test_long_walkthroughs.py` runs 6 and 7 on recorded runs, and `test_book.py` runs all
three at small sizes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WALKTHROUGH = REPOSITORY / "walkthrough"
PRICE = re.compile(
    r"# \*\*Price\*\*: (.+) on 2 cores \((.+) of processor time\), ([\d.]+) GB of memory"
)
SLACK = 4
"""A price is held to its order of magnitude, because the same work takes up to twice the processor
time beside a neighbour on a shared core."""

QUICK = ("01_tour", "03_attention_and_entropy")
COMPILED_QUICKLY = (*QUICK, "08_one_update")
"""They compile longer than they compute, so they are compiled without XLA's optimisations here,
which no claim of theirs needs."""
SLOW = ("02_tokens", "04_critic_and_td", "05_flow_actor", "08_one_update")

ALONE = """
import resource, subprocess, sys
from pathlib import Path
code = subprocess.run(sys.argv[2:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
Path(sys.argv[1]).write_text(f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1e6}")
sys.exit(code)
"""
"""Runs a program from a small process, because a child is charged with the memory of the process
that it was forked from."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where these runs keep data and pictures."""
    return tmp_path_factory.mktemp("home")


def source(name, constants):
    """The script with other constants. Each of them has to be there, once."""
    text = (WALKTHROUGH / f"{name}.py").read_text()
    for ours, theirs in constants.items():
        line = re.compile(rf"^{re.escape(ours)}(?!\w)", re.MULTILINE)
        text, found = line.subn(theirs, text)
        assert found == 1, f"{name}: where is {ours}?"
    return text


def run(name, home, constants={}):
    """Runs a script. Returns what it printed, its processor seconds, and the memory of its largest
    process in GB."""
    script = home / f"{name}.py"
    script.write_text(source(name, constants))
    ours = ("JAX", "XLA", "PYTEST")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment |= {"TQL_HOME": str(home), "PYTHONWARNINGS": "default", "TQDM_DISABLE": "1"}
    if name in COMPILED_QUICKLY:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    usage = home / f"{name}.usage"
    command = [sys.executable, "-c", ALONE, str(usage), sys.executable, str(script)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{name} failed:\n{said}"
    assert "Warning" not in done.stderr, f"{name} warns:\n{said}"
    spent, memory = map(float, usage.read_text().split())
    return done.stdout, spent, memory


def price(name):
    """Stated wall seconds, processor seconds and gigabytes."""
    stated = PRICE.search((WALKTHROUGH / f"{name}.py").read_text())
    assert stated, f"{name} does not state its price"
    wall, spent, memory = stated.groups()
    return seconds(wall), seconds(spent), float(memory)


def seconds(text):
    """'90 s', '2 min' or '2 min 30 s' in seconds."""
    minutes, rest = re.fullmatch(r"(?:(\d+) min)? ?(?:(\d+) s)?", text).groups()
    return 60 * int(minutes or 0) + int(rest or 0)


def pictures_of(name, home):
    """The pictures that the script names, and those that it drew."""
    text = (WALKTHROUGH / f"{name}.py").read_text()
    named = set(re.findall(r'PICTURES / "([\w.]+\.png)"', text))
    files = (home / "runs" / "walkthrough" / name).glob("*.png")
    return named, {path.name for path in files if path.stat().st_size > 5000}


def test_every_page_states_its_price_and_all_of_them_fit_into_an_afternoon():
    wall = [price(script.stem)[0] for script in sorted(WALKTHROUGH.glob("[0-9]*.py"))]
    assert len(wall) == 9
    assert sum(wall) <= 45 * 60, f"the nine scripts take {sum(wall) / 60:.0f} minutes"


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)])
def test_a_walkthrough_holds_what_it_claims_and_keeps_to_its_price(name, home):
    _, spent, memory = run(name, home)
    _, stated_seconds, stated_memory = price(name)
    named, drawn = pictures_of(name, home)
    assert named and named == drawn
    # The first to run makes the two episodes of data, in about 15 s.
    assert spent < SLACK * stated_seconds, f"{name}: {spent:.0f} s; {stated_seconds} s are stated"
    assert memory < SLACK * stated_memory, f"{name}: {memory} GB; {stated_memory} GB are stated"
