"""One episode of OGBench's scripted policies, made from one seed. Never imports jax.

The policies are in the `ogbench` package; the procedure around them is that of OGBench's published generation scripts (OGBench,
Park et al. 2025, appendix on datasets). Unlike there, an episode is a function of its seed: not of the episodes before it.
"""

import abc
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from tql.config import Task

P_STACK = {"cube-single": (0.0, 0.0), "cube-double": (0.0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5)}
"""Range from which an episode draws its probability of stacking cubes; 0.5 elsewhere."""

DTYPES = {"observations": "float32", "actions": "float32", "terminals": "bool", "qpos": "float32", "qvel": "float32"}
"""OGBench's arrays and their types; environments with buttons add `BUTTONS`."""

BUTTONS = {"button_states": "int64"}


@dataclass
class Episode:
    """The rows of an episode under OGBench's names, and each target that its policy worked on: what, and was it reached."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    targets: list[tuple[str, bool]] = field(default_factory=list)

    def append(self, **row: Any) -> None:
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The rows as arrays of OGBench's types, one row per environment step."""
        return {name: np.array(values, dtype=(DTYPES | BUTTONS)[name]) for name, values in self.rows.items()}


class AbstractScript(abc.ABC):
    """OGBench's environment, made for collecting, and a policy that acts in it and sets itself new targets."""

    environment: Any

    @abc.abstractmethod
    def reset(self, seed: int) -> tuple[Float[np.ndarray, " n_s"], dict[str, Any]]:
        """Starts the environment and the policy; first observation and info."""

    @abc.abstractmethod
    def act(self, observation: Float[np.ndarray, " n_s"], info: dict[str, Any]) -> Float[np.ndarray, " n_a"]:
        """The action before it is clipped."""

    @abc.abstractmethod
    def after(self, info: dict[str, Any], ended: bool) -> list[tuple[str, bool]]:
        """Sets a new target where the old one is done with; the old one, and whether it was reached."""

    def episode(self, seed: np.random.SeedSequence) -> Episode:
        """The episode that belongs to this seed. It ends at the environment's step limit only."""
        for_environment, for_actions, for_numpy = seed.generate_state(3).tolist()
        self.action_space.seed(for_actions)
        np.random.seed(for_numpy)  # the policies draw from the global generator
        observation, info = self.reset(for_environment)
        episode, ended = Episode(), False
        while not ended:
            action = np.clip(self.act(observation, info), -1, 1)
            next_observation, _, terminated, truncated, info = self.environment.step(action)
            ended = bool(terminated or truncated)
            episode.targets += self.after(info, ended)
            episode.append(observations=observation, actions=action, terminals=ended)
            episode.append(qpos=info["prev_qpos"], qvel=info["prev_qvel"])
            if "prev_button_states" in info:
                episode.append(button_states=info["prev_button_states"])
            observation = next_observation
        return episode

    def _make(self, task: Task, steps: int, **options: Any) -> None:
        with warnings.catch_warnings():
            # About float32 bounds of spaces and about a missing display; both concern nobody here.
            warnings.filterwarnings("ignore", category=UserWarning)
            import gymnasium
            import ogbench  # noqa: F401  (registers its environments)

            name = f"{task.domain}-v0"
            self.environment = gymnasium.make(
                name, terminate_at_goal=False, max_episode_steps=steps, disable_env_checker=True, **options
            )
            # OGBench makes a new space, seeded by the operating system, each time it is asked for one.
            self.action_space = self.environment.action_space


class PlayScript(AbstractScript):
    """`play` data: plans between keyframes, followed with smooth noise; when one is over, the next target."""

    def __init__(self, task: Task, steps: int):
        self._make(task, steps, mode="data_collection")
        self.p_stack_range = P_STACK.get(task.domain, (0.5, 0.5))
        self.policies = self.make_policies(task)

    def make_policies(self, task: Task) -> dict[str, Any]:
        """OGBench's policy for each kind of target."""
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        options = {"env": self.environment, "noise": 0.1, "noise_smoothing": 0.5}
        if task.domain.startswith("puzzle"):
            return {"button": ButtonPlanOracle(gripper_always_closed=True, **options)}
        if task.domain.startswith("cube"):
            return {"cube": CubePlanOracle(**options)}
        kinds = {"cube": CubePlanOracle, "button": ButtonPlanOracle, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
        return {target: kind(**options) for target, kind in kinds.items()}

    def reset(self, seed: int) -> tuple[Float[np.ndarray, " n_s"], dict[str, Any]]:
        observation, info = self.environment.reset(seed=seed)
        self.p_stack = np.random.uniform(*self.p_stack_range)
        self._aim(observation, info)
        return observation, info

    def act(self, observation: Float[np.ndarray, " n_s"], info: dict[str, Any]) -> Float[np.ndarray, " n_a"]:
        return self.policy.select_action(observation, info)

    def after(self, info: dict[str, Any], ended: bool) -> list[tuple[str, bool]]:
        if not self.policy.done:
            return []
        finished = (self.target, bool(info["success"]))
        self._aim(*self.environment.unwrapped.set_new_target(p_stack=self.p_stack))
        return [finished]

    def _aim(self, observation: Float[np.ndarray, " n_s"], info: dict[str, Any]) -> None:
        self.target = str(info["privileged/target_task"])
        self.policy = self.policies[self.target]
        self.policy.reset(observation, info)


class NoisyScript(PlayScript):
    """`noisy` data: policies that look at the present state only, with Gaussian noise and now and then a random action."""

    noise = 0.1
    p_random = 0.1
    noise_ratios = np.array([1.0, 1.0, 1.0, 3.0, 10.0])

    def make_policies(self, task: Task) -> dict[str, Any]:
        """OGBench's policy for each kind of target."""
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        options = {"env": self.environment, "min_norm": 0.4}
        if task.domain.startswith("puzzle"):
            return {"button": ButtonMarkovOracle(gripper_always_closed=True, **options)}
        if task.domain.startswith("cube"):
            return {"cube": CubeMarkovOracle(**options)}
        kinds = {"button": ButtonMarkovOracle, "drawer": DrawerMarkovOracle, "window": WindowMarkovOracle}
        return {target: kind(**options) for target, kind in kinds.items()} | {"cube": CubeMarkovOracle(max_step=100, **options)}

    def reset(self, seed: int) -> tuple[Float[np.ndarray, " n_s"], dict[str, Any]]:
        observation, info = super().reset(seed)
        self.xi = np.random.uniform(0, self.noise)
        return observation, info

    def act(self, observation: Float[np.ndarray, " n_s"], info: dict[str, Any]) -> Float[np.ndarray, " n_a"]:
        if np.random.uniform() < self.p_random:
            return self.action_space.sample().astype(np.float64)
        return super().act(observation, info) + np.random.normal(0, self.xi * self.noise_ratios)


class NavigateScript(AbstractScript):
    """Pointmaze `navigate` data: along the shortest path to a random cell, with noise; then to the next cell."""

    noise = 0.5
    patience = 1000
    """Steps after which an episode's last goal, if still ahead, counts as missed; every path is shorter."""

    def __init__(self, task: Task, steps: int):
        self._make(task, steps)
        self.cells, self.goals = maze_cells(self.environment.unwrapped.maze_map)

    def reset(self, seed: int) -> tuple[Float[np.ndarray, " n_s"], dict[str, Any]]:
        start = self.cells[np.random.randint(len(self.cells))]
        goal = self.goals[np.random.randint(len(self.goals))]
        self.steps = 0
        return self.environment.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})

    def act(self, observation: Float[np.ndarray, " n_s"], info: dict[str, Any]) -> Float[np.ndarray, " n_a"]:
        maze = self.environment.unwrapped
        to_subgoal = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)[0] - maze.get_xy()
        direction = to_subgoal / (np.linalg.norm(to_subgoal) + 1e-6)
        return direction + np.random.normal(0, self.noise, direction.shape)

    def after(self, info: dict[str, Any], ended: bool) -> list[tuple[str, bool]]:
        self.steps += 1
        if not info["success"]:
            return [("goal", False)] if ended and self.steps >= self.patience else []
        self.steps = 0
        self.environment.unwrapped.set_goal(self.goals[np.random.randint(len(self.goals))])
        return [("goal", True)]


def maze_cells(maze_map: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The empty cells (i, j) of a maze, and those of them that are not straight pieces of corridor."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]
    goals = []
    for i, j in cells:
        vertical, horizontal = (maze_map[i - 1, j], maze_map[i + 1, j]), (maze_map[i, j - 1], maze_map[i, j + 1])
        straight = {(vertical == (0, 0), horizontal == (1, 1)), (vertical == (1, 1), horizontal == (0, 0))}
        if (True, True) not in straight:
            goals.append((i, j))
    return cells, goals


SCRIPTS: dict[str, type[AbstractScript]] = {"play": PlayScript, "noisy": NoisyScript, "navigate": NavigateScript}


def cube_stayed_in_sight(qpos: Float[np.ndarray, "rows n_qpos"]) -> bool:
    """Scene only: the cube was always visible or in the drawer. OGBench redraws other episodes."""
    y, z = qpos[:, 15], qpos[:, 16]
    return not ((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any()


def make_episode(script: AbstractScript, task: Task, seed: int, split: int, number: int) -> Episode:
    """Episode `number` of the training (`split` 0) or validation (1) data of the dataset with this seed."""
    attempt = 0
    while True:
        episode = script.episode(np.random.SeedSequence(seed, spawn_key=(split, number, attempt)))
        if task.domain != "scene" or cube_stayed_in_sight(np.array(episode.rows["qpos"])):
            return episode
        attempt += 1
