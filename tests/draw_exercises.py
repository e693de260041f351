"""Draws what a right answer to each exercise draws, for the book: `python tests/draw_exercises.py`
runs the files of `tests/answers/` and writes `walkthrough/_static/exercises/*.png`.

Exercise 8 is shown by its evidence, because its picture would tell the answer."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

TESTS = Path(__file__).parent
PICTURES = TESTS.parent / "walkthrough" / "_static" / "exercises"
SIZE = 60_000
"""Bytes of a picture, at most."""
SHOWN = {"08_diagnosis": "landscapes.png"}
"""Elsewhere it is the last picture that is drawn."""


def draw(answer: Path, home: Path) -> list[Path]:
    """Runs a right answer as a student runs it. Its pictures, in the order in which they came."""
    environment = os.environ | {"TQL_HOME": str(home), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(answer)], env=environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{answer.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    folder = home / "runs" / "walkthrough" / f"exercise_{answer.name[:2]}"
    return sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)


def shrink(picture: Path, out: Path) -> None:
    """A copy with few colours, and smaller until it has few bytes."""
    image = Image.open(picture).convert("RGB")
    for width in (1100, 1000, 900, 800, 700, 600):
        width = min(width, image.width)
        small = image.resize((width, width * image.height // image.width), Image.LANCZOS)
        small.quantize(48, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size <= SIZE:
            return
    raise ValueError(f"{picture.name} cannot be made small enough")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    asked = sys.argv[1:]
    for answer in sorted((TESTS / "answers").glob("[0-9]*.py")):
        if asked and answer.stem not in asked:
            continue
        with tempfile.TemporaryDirectory() as home:
            drawn = {path.name: path for path in draw(answer, Path(home))}
            shown = drawn[SHOWN.get(answer.stem, list(drawn)[-1])]
            shrink(shown, PICTURES / f"{answer.stem}.png")
            print(answer.stem, list(drawn), (PICTURES / f"{answer.stem}.png").stat().st_size)
