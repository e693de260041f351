"""Names of tasks are OGBench's own, and any other is refused with the nearest of them."""

import gymnasium
import ogbench  # noqa: F401  (registers its environments)
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tql.ogbench.tasks import Task, task_names


@pytest.mark.parametrize("name", task_names())
def test_every_name_is_ogbenchs_own(name):
    task = Task.parse(name)
    assert task.name == name and task.env_name in gymnasium.registry
    assert name in (task.dataset_name, task.single_task_name)


def test_parts_of_a_name():
    task = Task.parse("puzzle-3x3-noisy-singletask-task4-v0")
    assert (task.domain, task.kind, task.task_id) == ("puzzle-3x3", "noisy", 4)
    assert task.dataset_name == "puzzle-3x3-noisy-v0"
    assert task.single_task_name == "puzzle-3x3-noisy-singletask-task4-v0"
    assert task.env_name == "puzzle-3x3-singletask-task4-v0"
    default = Task.parse("scene-play-v0")
    assert default.task_id is None and default.env_name == "scene-singletask-v0"
    assert default.single_task_name == "scene-play-singletask-v0"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cube-doubel-play-v0", "cube-double-play-v0"),
        ("pointmaze-medium-play-v0", "pointmaze-medium-navigate-v0"),
        ("scene-play-singletask-task1-v1", "scene-play-singletask-task1-v0"),
        ("scene-play", "scene-play-v0"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(wrong, right):
    message = f"there is no task '{wrong}'; the nearest name is '{right}'."
    with pytest.raises(ValueError, match=message):
        Task.parse(wrong)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_other_text_is_refused_with_a_name_that_exists(text):
    with pytest.raises(ValueError) as error:
        Task.parse(text)
    assert str(error.value).rsplit("'", 2)[1] in task_names()
