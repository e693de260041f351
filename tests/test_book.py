"""The walkthroughs as pages of one book: what `sphinx-build walkthrough runs/book/html` needs of
them, and, among the slow tests, the book itself. Its pages 6, 7 and 9 train at small sizes here."""

import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from test_walkthrough import REPOSITORY, WALKTHROUGH, pictures_of, source

SCRIPTS = sorted(WALKTHROUGH.glob("[0-9]*.py"))
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)

TWO_SIZES = {
    "EPISODES = 100": "EPISODES = 2",
    "WIDTHS = (32, 64, 128)": "WIDTHS = (32, 64)",
    "SEEDS = (0, 1, 2)": "SEEDS = (0,)",
}
SMALL = {
    "06_collapse": TWO_SIZES | {"STEPS = 1000": "STEPS = 40"},
    "07_controller": TWO_SIZES | {"UPDATES = 1000": "UPDATES = 40"},
    "09_agent": {
        "EPISODES = 120": "EPISODES = 2",
        "UPDATES = 18_000": "UPDATES = 180",
        "ACTED = 50": "ACTED = 2",
    },
}
"""Constants of a script and what stands in their place here."""


def cells(script):
    """(head, lines) of every cell; nothing stands before the first."""
    lines = script.read_text().splitlines()
    heads = [k for k, line in enumerate(lines) if line.startswith("# %%")] + [len(lines)]
    assert heads[0] == 0, f"{script.name}: the first line is no cell"
    return [(lines[start], lines[start + 1 : end]) for start, end in zip(heads, heads[1:])]


def prose(script):
    """The text of every markdown cell, without its comment signs."""
    texts = [body for head, body in cells(script) if head == "# %% [markdown]"]
    return ["\n".join(line[2:] for line in body) for body in texts]


def test_the_book_has_every_walkthrough_in_order():
    index = (WALKTHROUGH / "index.md").read_text()
    contents = re.search(r"```{toctree}\n:hidden:\n\n(.*?)```", index, re.DOTALL).group(1).split()
    assert contents == [*(script.stem for script in SCRIPTS), "cluster"]
    assert re.findall(r"^\d+\. \[[^]]+\]\((\w+)\.py\)", index, re.MULTILINE) == contents[:-1]
    assert (WALKTHROUGH / "cluster.md").exists() and "(cluster.md)" in index


@each_script
def test_a_script_is_cells_of_prose_and_of_code_and_nothing_else(script):
    for head, body in cells(script):
        assert head in ("# %%", "# %% [markdown]"), f"{head}: a cell's head carries no metadata"
        text = "\n".join(body).rstrip()
        assert text, f"{script.name}: an empty cell"
        if head == "# %%":
            compile(text, script.name, "exec")
        else:
            comments = [line == "#" or line.startswith("# ") for line in text.splitlines()]
            assert all(comments), f"{script.name}: prose that is no comment: {text}"


@each_script
def test_a_page_has_one_title_and_headings_that_differ(script):
    text = CODE.sub("", "\n\n".join(prose(script)))
    headings = re.findall(r"^(#+) (.+)$", text, re.MULTILINE)
    title = f"# {int(script.name[:2])}. "
    assert prose(script)[0].startswith(title), f"{script.name} must begin with '# {title}...'"
    assert [level for level, _ in headings].count("#") == 1
    assert len({words for _, words in headings}) == len(headings)


@each_script
def test_formulas_close_and_links_lead_somewhere(script):
    pages = [page.name for page in SCRIPTS]
    for text in prose(script):
        plain = CODE.sub("code", text)
        displayed = plain.split("$$")
        assert len(displayed) % 2, f"an open $$ in: {text}"
        for paragraph in "\n\n".join(displayed[::2]).split("\n\n"):
            assert paragraph.replace(r"\$", "").count("$") % 2 == 0, f"an open $ in: {paragraph}"
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", plain):
            there = target.startswith("https://") or target in pages
            assert there, f"{script.name} links to {target}"


# ---- building it ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A checkout without runs and data, whose pages train at small sizes."""
    pytest.importorskip("myst_nb", reason='needs pip install -e ".[book]"')
    for name in ("tql", "figures", "walkthrough"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=without)
    for name, constants in SMALL.items():
        (tmp_path / "walkthrough" / f"{name}.py").write_text(source(name, constants))
    return tmp_path


def test_a_change_anywhere_below_tql_or_in_a_record_runs_the_pages_again(project):
    conf = project / "walkthrough" / "conf.py"
    cache = lambda: runpy.run_path(str(conf))["nb_execution_cache_path"]
    # A folder with a dot in its name, as recorded runs have had, is not read as a file.
    (project / "figures" / "data" / "iql@0.3.json").mkdir()
    caches = [cache(), cache()]
    assert caches[0] == caches[1]
    for file in ("tql/loop.py", "tql/training/chunk.py", "figures/data/cpu.jsonl"):
        with (project / file).open("a") as text:
            text.write("\n")
        caches.append(cache())
    assert len(set(caches[1:])) == 4


@pytest.mark.slow
def test_the_book_builds_in_a_fresh_checkout(project):
    html, conf = project / "runs" / "book" / "html", project / "walkthrough"
    environment = os.environ | {"TQL_HOME": str(project), "PYTHONPATH": str(project)}
    environment.pop("XLA_FLAGS", None)  # conftest.py sets it, and a reader does not
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(conf), str(html)]
    built = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, f"{built.stdout[-2000:]}\n{built.stderr[-6000:]}"
    for script in SCRIPTS:
        page = (html / f"{script.stem}.html").read_text()
        named, drawn = pictures_of(script.stem, project)
        assert drawn <= named, script.stem
        assert named - drawn <= {"film.png"}, script.stem  # it needs an OpenGL on the machine
        assert page.count("drawn by the cell above") >= len(drawn), script.stem
    runs = {path.parent.name for path in (project / "runs/study/cpu").glob("*/metrics.jsonl")}
    collapse = {f"{kind}-none-64-seed0" for kind in ("sarsa", "slow", "returns", "flow")}
    control = {f"sarsa-{kind}-64-seed0" for kind in ("tql", "fixed", "single")}
    assert collapse | control | {"flow-tql-64-seed0", "agent-tql-32-seed0"} <= runs
