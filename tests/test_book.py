"""The walkthroughs as pages of one book: what `sphinx-build walkthrough` needs of them, held without building it."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WALKTHROUGH = REPOSITORY / "walkthrough"
SCRIPTS = sorted(WALKTHROUGH.glob("[0-9]*.py"))
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def cells(script):
    """(head, lines) of every cell; nothing stands before the first."""
    lines = script.read_text().splitlines()
    heads = [k for k, line in enumerate(lines) if line.startswith("# %%")] + [len(lines)]
    assert heads[0] == 0, f"{script.name}: the first line is no cell"
    return [(lines[start], lines[start + 1 : end]) for start, end in zip(heads, heads[1:])]


def prose(script):
    """The text of every markdown cell, without its comment signs."""
    return ["\n".join(line[2:] for line in body) for head, body in cells(script) if head == "# %% [markdown]"]


def test_the_book_has_every_walkthrough_in_order():
    index = (WALKTHROUGH / "index.md").read_text()
    contents = re.search(r"```{toctree}\n:hidden:\n\n(.*?)```", index, re.DOTALL).group(1).split()
    assert contents == [script.stem for script in SCRIPTS]
    assert re.findall(r"^\d\. \[[^]]+\]\((\w+)\.py\)", index, re.MULTILINE) == contents


def test_no_notebook_is_committed():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "-C", str(REPOSITORY), "ls-files", "*.ipynb"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_cells_of_prose_and_of_code_and_nothing_else(script):
    for head, body in cells(script):
        assert head in ("# %%", "# %% [markdown]"), f"{head}: a cell's head carries no metadata"
        assert any(line.strip() for line in body), f"{script.name}: an empty cell"
        if head == "# %%":
            compile("\n".join(body), script.name, "exec")
        else:
            while not body[-1]:
                body = body[:-1]
            assert all(line == "#" or line.startswith("# ") for line in body), f"{script.name}: prose that is no comment: {body}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_has_one_title_and_headings_that_differ(script):
    headings = re.findall(r"^(#+) (.+)$", CODE.sub("", "\n\n".join(prose(script))), re.MULTILINE)
    number = int(script.name[:2])
    assert prose(script)[0].startswith(f"# {number}. "), f"{script.name} begins with its title, '# # {number}. ...'"
    assert [level for level, _ in headings].count("#") == 1
    assert len({text for _, text in headings}) == len(headings)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_formulas_close_and_links_lead_somewhere(script):
    pages = [page.name for page in SCRIPTS]
    for text in prose(script):
        plain = CODE.sub("code", text)
        displayed = plain.split("$$")
        assert len(displayed) % 2, f"an open $$ in: {text}"
        for paragraph in "\n\n".join(displayed[::2]).split("\n\n"):
            assert paragraph.replace(r"\$", "").count("$") % 2 == 0, f"an open $ in: {paragraph}"
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", plain):
            picture = target.endswith((".png", ".gif")) and (WALKTHROUGH / target).exists()
            assert target.startswith("https://") or target in pages or picture, f"{script.name} links to {target}"
