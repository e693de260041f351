"""The walkthroughs as a book: `sphinx-build walkthrough runs/book/html` runs every script of this
folder and writes its page, with its pictures."""

import hashlib
import os
import re
from importlib import resources
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

project = html_title = "TQL, step by step"
extensions = ["myst_nb"]
exclude_patterns = ["conf.py", "_static", "__pycache__", ".ipynb_checkpoints"]

# An exercise as it is handed out cannot run.
nb_execution_excludepatterns = ["exercises/*"]

# The scripts are the notebooks: percent cells, read by jupytext.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
myst_enable_extensions = ["dollarmath", "amsmath"]


def version_of_sources() -> str:
    """A name that changes when any file of the library or any record that a page reads changes."""
    files = [*(REPOSITORY / "tql").rglob("*.py"), *(REPOSITORY / "figures").rglob("*.json*")]
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.is_file()):
        digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


# A page is run again when its own code changes; for changes elsewhere the cache has this name.
nb_execution_mode = "cache"
nb_execution_cache_path = str(REPOSITORY / "runs" / "book" / "cache" / version_of_sources())
nb_execution_timeout = -1  # There is no limit, because a page may train for minutes.
nb_execution_raise_on_error = True  # A claim that fails leaves no book.
nb_execution_show_tb = True
nb_output_stderr = "remove"  # Progress bars go there.
nb_merge_streams = True
# With a width, Sphinx links a picture to its file, so that it can be seen alone and large. The file
# book.css takes the width back.
nb_render_image_options = {"alt": "drawn by the cell above", "width": "100%"}
# A kernel chooses Matplotlib's inline backend only where none is asked for.
os.environ.pop("MPLBACKEND", None)

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = html_use_index = html_show_copyright = False
pygments_dark_style = "github-dark"
# MathJax with its glyphs is one file, taken from a package, so that the book needs no internet.
MATHJAX = resources.files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js"
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["book.css"]
mathjax_path = MATHJAX.name
mathjax3_config = {"options": {"enableMenu": False}}


HEADER = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
"""


def as_page(app, page: str, source: list[str]) -> None:
    """An exercise as a page: it is told to be Python, because it is not run, and the picture that a
    right answer draws stands behind its code. Links out of the book become words."""
    if not page.startswith("exercises/"):
        return
    text = re.sub(r"\[([^]]+)\]\(\.\./\.\./[^)]+\)", r"\1", source[0])
    if text.startswith("# %%"):
        start = text.rindex("# %% [markdown]")
        drawn = f"# ![Drawn by a right answer](../_static/{page}.png)\n\n"
        drawn = f"# %% [markdown]\n# *What {SHOWN.get(page, 'a right answer draws')}:*\n#\n{drawn}"
        text = HEADER + text[:start] + drawn + text[start:]
    source[0] = text


SHOWN = {"exercises/08_diagnosis": "the evidence looks like"}
"""Its picture would tell the answer."""


def setup(app) -> None:
    app.connect("source-read", as_page)
