"""One episode of OGBench's scripted policies, made from one seed. Never imports jax.

The policies are in the `ogbench` package. The procedure around them is that of OGBench's published
generation scripts (Park et al. 2025, appendix on datasets). Unlike there, an episode is a function
of its seed, and not of the episodes before it.
"""

import abc
import importlib
from typing import Any

import numpy as np
from jaxtyping import Float

from tql.ogbench.environment import generator_seeds, with_one_space
from tql.ogbench.tasks import Task

DTYPES = {
    **dict(observations="float32", actions="float32", terminals="bool"),
    **dict(qpos="float32", qvel="float32", button_states="int64"),
}
"""OGBench's arrays and their types. Only environments with buttons have the last one."""

State = Float[np.ndarray, " n_s"]
Action = Float[np.ndarray, " n_a"]
Info = dict[str, Any]
"""What OGBench's environment says besides."""


class AbstractScript(abc.ABC):
    """OGBench's environment, made for collecting, and a policy that acts in it and sets itself new
    targets. `steps` is the length of an episode, in environment steps."""

    def __init__(self, task: Task, steps: int, **options: Any):
        self.task, self.now = task, "at the start"
        options |= {"terminate_at_goal": False, "max_episode_steps": steps}
        self.environment, self.action_space = with_one_space(f"{task.domain}-v0", **options)

    @abc.abstractmethod
    def reset(self, seed: int) -> tuple[State, Info]:
        """Starts the environment and the policy; the first observation."""

    @abc.abstractmethod
    def act(self, observation: State, info: Info) -> Action:
        """The action before it is clipped."""

    @abc.abstractmethod
    def after(self, info: Info) -> None:
        """Sets a new target where the old one is done with."""

    def make(self, seed: int, split: int, number: int) -> dict[str, np.ndarray]:
        """Episode `number` of the training (`split` 0) or the validation data (1) of the dataset
        with this seed: OGBench's arrays, one row per environment step."""
        self.now, attempt = f"seed {seed}, split {split}, episode {number}", 0
        while True:
            rows = self._play(np.random.SeedSequence(seed, spawn_key=(split, number, attempt)))
            if self.task.domain != "scene" or cube_stayed_in_sight([row["qpos"] for row in rows]):
                return {x: np.array([row[x] for row in rows], DTYPES[x]) for x in rows[0]}
            attempt += 1

    def _play(self, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
        """The rows of the episode with this seed. It ends at the environment's step limit only."""
        for_environment, for_actions, for_numpy = generator_seeds(seed)
        self.action_space.seed(for_actions)
        np.random.seed(for_numpy)  # the policies draw from the global generator
        observation, info = self.reset(for_environment)
        rows, ended = [], False
        while not ended:
            action = np.clip(self.act(observation, info), -1, 1)
            row = {"observations": observation, "actions": action}
            observation, _, terminated, truncated, info = self.environment.step(action)
            self.after(info)
            ended = bool(terminated or truncated)
            row |= {"terminals": ended, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            if "prev_button_states" in info:
                row["button_states"] = info["prev_button_states"]
            rows.append(row)
        return rows

    def __str__(self) -> str:
        return f"{self.task.dataset_name}, {self.now}"


class ManipulationScript(AbstractScript):
    """`play` data: plans between keyframes, followed with smooth noise; when one is over, the next
    target. `noisy` data: policies that look at the present state only, with Gaussian noise and now
    and then a random action."""

    P_STACK = {
        **{"cube-single": (0.0, 0.0), "cube-double": (0.0, 0.25)},
        **{"cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5)},
    }
    """The range from which an episode draws its probability of stacking cubes; 0.5 elsewhere."""
    P_RANDOM = 0.1
    NOISE = 0.1
    NOISE_RATIOS = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
    SCENE = ("cube", "button", "drawer", "window")
    TARGETS = {"cube": ("cube",), "puzzle": ("button",), "scene": SCENE}

    def __init__(self, task: Task, steps: int):
        super().__init__(task, steps, mode="data_collection")
        targets = self.TARGETS[task.domain.split("-")[0]]
        self.oracles = {target: self._oracle(target) for target in targets}

    def _oracle(self, target: str):
        """OGBench's policy for a kind of target, such as `CubePlanOracle`."""
        style, options = "plan", {"noise": 0.1, "noise_smoothing": 0.5}
        if self.task.kind == "noisy":
            style, options = "markov", {"min_norm": 0.4}
            if self.task.domain == "scene" and target == "cube":
                options["max_step"] = 100
        if self.task.domain.startswith("puzzle"):
            options["gripper_always_closed"] = True
        module = importlib.import_module(f"ogbench.manipspace.oracles.{style}.{target}_{style}")
        oracle = getattr(module, f"{target.title()}{style.title()}Oracle")
        return oracle(env=self.environment, **options)

    def reset(self, seed: int) -> tuple[State, Info]:
        observation, info = self.environment.reset(seed=seed)
        self.p_stack = np.random.uniform(*self.P_STACK.get(self.task.domain, (0.5, 0.5)))
        self._aim(observation, info)
        if self.task.kind == "noisy":
            self.xi = np.random.uniform(0, self.NOISE)
        return observation, info

    def act(self, observation: State, info: Info) -> Action:
        if self.task.kind == "play":
            return self.oracle.select_action(observation, info)
        if np.random.uniform() < self.P_RANDOM:
            return self.action_space.sample().astype(np.float64)
        action = self.oracle.select_action(observation, info)
        return action + np.random.normal(0, self.xi * self.NOISE_RATIOS)

    def after(self, info: Info) -> None:
        if self.oracle.done:
            self._aim(*self.environment.unwrapped.set_new_target(p_stack=self.p_stack))

    def _aim(self, observation: State, info: Info) -> None:
        self.oracle = self.oracles[info["privileged/target_task"]]
        self.oracle.reset(observation, info)


class MazeScript(AbstractScript):
    """Pointmaze `navigate` data: along the shortest path to a random cell, with noise; then to the
    next cell."""

    NOISE = 0.5

    def __init__(self, task: Task, steps: int):
        super().__init__(task, steps)
        self.cells, self.goals = maze_cells(self.environment.unwrapped.maze_map)

    def reset(self, seed: int) -> tuple[State, Info]:
        start = self.cells[np.random.randint(len(self.cells))]
        ends = {"init_ij": start, "goal_ij": self._draw_goal()}
        return self.environment.reset(seed=seed, options={"task_info": ends})

    def act(self, observation: State, info: Info) -> Action:
        maze = self.environment.unwrapped
        xy = maze.get_xy()
        ahead = maze.get_oracle_subgoal(xy, maze.cur_goal_xy)[0] - xy
        direction = ahead / (np.linalg.norm(ahead) + 1e-6)
        return direction + np.random.normal(0, self.NOISE, direction.shape)

    def after(self, info: Info) -> None:
        if info["success"]:
            self.environment.unwrapped.set_goal(self._draw_goal())

    def _draw_goal(self) -> tuple[int, int]:
        return self.goals[np.random.randint(len(self.goals))]


def make_script(task: Task, steps: int) -> AbstractScript:
    """The script for a task's kind of data."""
    return (MazeScript if task.kind == "navigate" else ManipulationScript)(task, steps)


def maze_cells(maze_map: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The empty cells (i, j) of a maze, and those of them that are not straight corridors."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]

    def straight(i: int, j: int) -> bool:
        around = maze_map[i - 1, j], maze_map[i + 1, j], maze_map[i, j - 1], maze_map[i, j + 1]
        return around in ((0, 0, 1, 1), (1, 1, 0, 0))

    return cells, [cell for cell in cells if not straight(*cell)]


def cube_stayed_in_sight(qpos: list[np.ndarray]) -> bool:
    """Scene only: whether the cube was always visible or in the drawer. OGBench redraws others."""
    y, z = np.array(qpos)[:, 15:17].T
    return not ((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any()
