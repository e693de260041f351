"""`tql exercises`: clean copies of the exercises, to hand out."""

import re
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

SOURCES = Path(__file__).parents[2] / "walkthrough" / "exercises"
"""They are in the repository, and not in the installed package."""


@dataclass(frozen=True)
class Exercises:
    """Copy the exercises and projects into a folder, to hand them out. The constants of
    tql/contracts/course.py are written into them."""

    out: Positional[Path]
    """Folder; it is made if it is missing, and files in it are never overwritten."""
    notebooks: bool = False
    """Write notebooks instead of scripts; this needs jupytext (pip install -e ".[book]")."""

    def __call__(self) -> None:
        files = sorted(SOURCES.glob("[0-9]*"))
        if not files:
            raise FileNotFoundError(
                f"{SOURCES}: no exercises here. They come with the repository: run this command "
                "from an installation with pip install -e."
            )
        texts = {}
        for path in files:
            name, text = path.name, with_constants(path.read_text())
            if self.notebooks and path.suffix == ".py":
                name, text = f"{path.stem}.ipynb", as_notebook(text)
            texts[self.out / name] = text
        for path in texts:
            if path.exists():
                raise FileExistsError(f"{path} exists, and is not overwritten.")
        self.out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text)
        print(f"{len(texts)} files in {self.out}")


def with_constants(text: str) -> str:
    """A script in which every line `NAME = ...` has the value of that name in the course's
    constants; what stands behind it as a comment is kept."""
    from tql.contracts import course

    for name, value in vars(course).items():
        if name.isupper():
            line = re.compile(rf"^{name} = [^#\n]*?(?=\s*(#.*)?$)", re.MULTILINE)
            text = line.sub(lambda _: f"{name} = {value!r}", text)
    return text


def as_notebook(text: str) -> str:
    """A script in percent cells as a Jupyter notebook. The words behind `# %%` are kept as the
    first line of the cell, because `tql check` stops reading at `# %% Check`."""
    try:
        import jupytext
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'notebooks are made by jupytext, which is missing: pip install -e ".[book]"'
        ) from None
    notebook = jupytext.reads(text, fmt="py:percent")
    for cell in notebook.cells:
        title = cell.metadata.get("title")
        if title:
            cell.source = f"# %% {title}\n{cell.source}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["kernelspec"] = kernel
    return jupytext.writes(notebook, fmt="ipynb") + "\n"
