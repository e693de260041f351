"""The exercises as they are handed out, the list of them, and the pictures of right answers."""

import json
import re
import sys
from pathlib import Path

import pytest
from draw_exercises import PICTURES, SIZE, draw
from test_book import cells

from tql.__main__ import main
from tql.commands.exercises import SOURCES, Exercises, as_notebook, with_constants
from tql.contracts import course, examine
from tql.contracts.contract import Wrong
from tql.contracts.entropy import check_row_entropy
from tql.contracts.exercises import EXERCISES
from tql.contracts.grade import CHECK_CELL, exercises_in, read_answer

TESTS = Path(__file__).parent
each_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda x: x.file[:-3])


def text(exercise) -> str:
    return (SOURCES / exercise.file).read_text()


def words(text: str) -> str:
    """Without line breaks and comment signs."""
    return " ".join(text.replace("\n# ", " ").split())


def test_every_file_of_the_folder_is_in_the_list():
    files = {path.name for path in SOURCES.iterdir() if path.suffix in (".py", ".md", ".ipynb")}
    assert files == {*(x.file for x in EXERCISES.values()), "09_projects.md", "README.md"}
    assert list(EXERCISES) == list(range(1, 9))
    answers = {path.name for path in (TESTS / "answers").glob("*.py")}
    assert answers == {x.file for x in EXERCISES.values()}


@each_exercise
def test_a_file_says_what_the_list_says(exercise):
    prose = words(text(exercise))
    number, minutes = exercise.number, exercise.minutes
    assert prose.startswith(f"# %% [markdown] # Exercise {number}. {exercise.title} ")
    assert f"**Difficulty**: {exercise.difficulty}. **Time**: {minutes} minutes. **You" in prose
    assert exercises_in(SOURCES / exercise.file) == (exercise,)
    assert exercise.points == 10


@each_exercise
def test_the_lecturers_page_has_every_exercise(exercise):
    page = (SOURCES / "README.md").read_text()
    row = f"[{exercise.number}. {exercise.title}]({exercise.file})"
    assert f"{row} | {exercise.difficulty} | {exercise.minutes} |" in page
    index = (SOURCES.parent / "index.md").read_text()
    assert f"(exercises/{exercise.file})" in index
    assert f"\nexercises/{exercise.file[:-3]}\n" in index


@each_exercise
def test_a_file_is_cells_with_one_check_and_one_picture(exercise):
    heads = [head for head, _ in cells(SOURCES / exercise.file)]
    assert set(heads) == {"# %%", "# %% [markdown]", "# %% Check", "# %% Picture"}
    assert heads.count("# %% Check") == heads.count("# %% Picture") == 1
    assert heads.index("# %% Check") < heads.index("# %% Picture")
    assert heads[0] == heads[-1] == "# %% [markdown]"
    assert "## In words" in cells(SOURCES / exercise.file)[-1][1][0]
    (check,) = [body for head, body in cells(SOURCES / exercise.file) if head == "# %% Check"]
    for part in exercise.parts:
        called = part.checker.partition(":")[2]
        assert f"{called}(" in "\n".join(check) and all(x in "\n".join(check) for x in part.takes)


@each_exercise
def test_a_stub_is_told_that_it_is_not_written_yet(exercise, monkeypatch, tmp_path):
    """Nothing of it is the answer, and nothing above the check fails or uses the answer."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "submission", None)
    monkeypatch.setenv("TQL_HOME", str(tmp_path))
    path = SOURCES / exercise.file
    module, stopped = examine._run(read_answer(path), path, exercise.library)
    assert stopped == ""
    for part in exercise.parts:
        passed, said = examine._check(part.load(), part.takes, dict(part.options), module)
        assert not passed and "is not written yet" in said or exercise.number == 8, said
        assert not passed and "\n" not in said and len(said) < 500


@each_exercise
def test_the_answer_of_the_tests_is_the_exercise_with_its_stub_filled(exercise):
    """So its picture is the one that a student sees."""
    ours, theirs = text(exercise), (TESTS / "answers" / exercise.file).read_text()
    below = lambda text: text[re.search(CHECK_CELL.pattern, text, re.MULTILINE).start() :]
    assert below(ours) == below(theirs)
    assert "raise NotImplementedError" not in theirs


@each_exercise
def test_the_book_has_the_picture_of_a_right_answer(exercise):
    """`python tests/draw_exercises.py` draws it."""
    size = (PICTURES / f"{exercise.file[:-3]}.png").stat().st_size
    assert 5_000 < size <= SIZE


@pytest.mark.slow
@each_exercise
def test_a_right_answer_draws_its_picture(exercise, tmp_path):
    assert draw(TESTS / "answers" / exercise.file, tmp_path)


# ---- handing out ---------------------------------------------------------------------------------


@pytest.fixture
def tql(monkeypatch):
    """Runs a command in this process; a message to the user is returned."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tql", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return left.code
        return ""

    return call


def test_clean_copies(tql, tmp_path):
    assert tql("exercises", tmp_path / "a" / "b") == ""
    copies = {path.name: path.read_text() for path in (tmp_path / "a" / "b").iterdir()}
    assert copies == {path.name: path.read_text() for path in SOURCES.glob("[0-9]*")}


def test_nothing_is_overwritten(tql, tmp_path):
    (tmp_path / "05_temperatures.py").write_text("my answer")
    assert "05_temperatures.py exists, and is not overwritten" in tql("exercises", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["05_temperatures.py"]
    assert (tmp_path / "05_temperatures.py").read_text() == "my answer"


def test_a_changed_constant_is_handed_out_and_last_years_answer_does_not_pass(monkeypatch):
    monkeypatch.setattr(course, "UNIT", 0.6931)
    changed = with_constants(text(EXERCISES[1]))
    assert re.findall(r"^UNIT = .*$", changed, re.MULTILINE) == [
        "UNIT = 0.6931  # nats in one unit of entropy"
    ]
    assert changed.replace("UNIT = 0.6931", "UNIT = 1.0") == text(EXERCISES[1])
    from tql.attention import row_entropy

    with pytest.raises(Wrong, match="in nats: divide it by UNIT"):
        check_row_entropy(row_entropy, unit=course.UNIT)


def test_a_missing_jupytext_is_named(tql, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    said = tql("exercises", tmp_path, "--notebooks")
    assert said.startswith("tql: ") and 'pip install -e ".[book]"' in said
    assert not list(tmp_path.iterdir())


def test_the_exercises_come_with_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr("tql.commands.exercises.SOURCES", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="come with the repository"):
        Exercises(tmp_path)()


def test_a_notebook_is_graded_like_its_script(tql, tmp_path):
    pytest.importorskip("jupytext", reason='needs pip install -e ".[book]"')
    assert tql("exercises", tmp_path, "--notebooks") == ""
    for exercise in EXERCISES.values():
        path = (tmp_path / exercise.file).with_suffix(".ipynb")
        assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"
        code = lambda source: [x for x in source.split("\n") if x and not x.startswith("#")]
        assert code(read_answer(path)) == code(read_answer(SOURCES / exercise.file))
        assert as_notebook(text(exercise)).count('"# %% Check\\n"') == 1
