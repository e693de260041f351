"""The walkthroughs as a book: `sphinx-build walkthrough runs/book/html` runs every script here and writes its page with its pictures."""

import hashlib
import os
from importlib import resources
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

project = html_title = "TQL, step by step"
extensions = ["myst_nb"]
exclude_patterns = ["conf.py", "_static", "__pycache__", ".ipynb_checkpoints"]

# The scripts are the notebooks: percent cells, read by jupytext.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
myst_enable_extensions = ["dollarmath", "amsmath"]

# A page is run again when its code changes, or anything in tql/ or figures/data/: the cache of the outputs is named after those.
SOURCES = sorted([*(REPOSITORY / "tql").glob("*.py"), *(REPOSITORY / "figures" / "data").rglob("*.*")])
VERSION = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()[:12]
nb_execution_mode = "cache"
nb_execution_cache_path = str(REPOSITORY / "runs" / "book" / "cache" / VERSION)
nb_execution_timeout = -1  # no limit: a page may train for minutes
nb_execution_raise_on_error = True  # a claim that fails leaves no book
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
# With a width, Sphinx links a picture to its file, to see it alone and large; book.css takes the width back.
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
