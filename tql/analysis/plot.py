"""One picture of a run: losses, attention entropy and temperatures against their targets, Q, and
success with its interval; of an online phase over environment steps."""

import math
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tql.ogbench.evaluate import recorded_episodes, wilson
from tql.training.run_directory import RunError, Settings, read_metrics, read_settings

GROUPS = ("[VALUE]", "other tokens")
NO_POLICY = "no policy: the critic learns\nfrom the dataset's own actions"
LOSSES = {"td_loss": "TD", "flow_loss": "flow matching"}
POLICY_LABELS = {"policy": "policy", "behaviour": "behaviour flow alone"}


def plot_run(run: Path) -> Path:
    """Writes `run/plot.png` from the run's files and returns its path. Raises `RunError` if nothing
    was logged yet."""
    settings, lines = read_settings(run), read_metrics(run)
    if not lines:
        raise RunError(
            f"{run}: has no metrics yet; train for at least log_every = "
            f"{settings.config.log_every} updates."
        )
    steps = time_of(settings, np.array([line["step"] for line in lines]))
    metrics = {name: np.array([line[name] for line in lines]) for name in lines[0]}
    evaluated, learnt = (
        [row | {"step": time_of(settings, row["step"])} for row in recorded_episodes(run / name)]
        for name in ("evaluation.jsonl", "episodes.jsonl")
    )
    panels = panels_of(settings, steps, metrics, evaluated)
    if settings.online:
        panels.append(partial(draw_learnt, episodes=learnt))
    end = settings.online.environment_steps if settings.online else settings.config.steps

    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(15, 4 * rows), layout="constrained")
    axes = figure.subplots(rows, min(3, len(panels)), squeeze=False)
    figure.suptitle(f"{settings.config.task}   |   {run_title(settings)}   |   {run.name}")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, draw in zip(axes.flat, panels):
        draw(axis)
        axis.set_xlabel("environment steps" if settings.online else "gradient updates")
        axis.set_xlim(0, max(end, steps[-1]) * 1.03)
        axis.grid(alpha=0.3)
    out = run / "plot.png"
    figure.savefig(out, dpi=100)
    return out


def time_of(settings: Settings, step):
    """What a run is drawn over: gradient updates, or in an online phase environment steps."""
    if not settings.online:
        return step
    return (step - settings.config.steps) // settings.online.updates_per_step


def panels_of(settings: Settings, steps: np.ndarray, metrics: dict, episodes: list[dict]) -> list:
    """The functions that draw the panels, each on an axis: those for which the method logs
    something."""
    acts = bool(settings.policies)
    panels = [partial(draw_losses, steps=steps, metrics=metrics)]
    if settings.target:
        H, target = metrics["entropy"], np.array(settings.target)
        panels.append(partial(draw_entropy, steps=steps, entropy=H, target=target))
        panels.append(partial(draw_temperatures, steps=steps, alpha=metrics["alpha"]))
    if "q_mean" in metrics:
        panels.append(partial(draw_q, steps=steps, metrics=metrics))
    if "actor_q" in metrics:
        panels.append(partial(draw_actor, steps=steps, metrics=metrics, acts=acts))
    return [*panels, partial(draw_success, episodes=episodes, acts=acts)]


def run_title(settings: Settings) -> str:
    """The method, for TQL what kind of critic, and the seed."""
    config = settings.config
    title = config.method
    if settings.target is not None:
        critic = f"critic {config.critic.layers} x {config.critic.d_model}"
        title = f"{critic}, control: {config.control.kind}"
    if online := settings.online:
        many = "s" if online.updates_per_step > 1 else ""
        title += f", online with {online.updates_per_step} update{many} a step"
        if online.reset_every:
            title += f" and a reset ({online.reset}) every {online.reset_every} steps"
    return f"{title}, seed {config.seed}"


def marker(steps: np.ndarray) -> str | None:
    """A line of one point cannot be seen without a mark."""
    return "o" if len(steps) == 1 else None


def say(axis: Axes, text: str) -> None:
    """A word in an empty panel."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def draw_losses(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
    """Those that are never negative: attention, temperature and policy losses have no logarithm."""
    for name, values in metrics.items():
        is_loss = name.endswith("_loss") and name != "temperature_loss"
        if is_loss and np.any(values > 0) and np.all(values >= 0):
            label = LOSSES.get(name, name.removesuffix("_loss"))
            axis.plot(steps, values, marker=marker(steps), label=label)
    axis.set(title="losses", ylabel="mean of the losses", yscale="log")
    axis.legend()


def draw_entropy(axis: Axes, steps: np.ndarray, entropy: np.ndarray, target: np.ndarray) -> None:
    """Every layer and group, beside its target."""
    for layer, group in np.ndindex(entropy.shape[1:]):
        label = f"layer {layer + 1}, {GROUPS[group]}"
        (line,) = axis.plot(steps, entropy[:, layer, group], marker=marker(steps), label=label)
        axis.axhline(target[layer, group], color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(title="attention entropy (dotted: target)", ylabel="nats", ylim=(0, None))
    axis.legend(fontsize="small")


def draw_temperatures(axis: Axes, steps: np.ndarray, alpha: np.ndarray) -> None:
    """Every layer and group."""
    axis.set(title="temperatures", ylabel="alpha")
    if not np.any(alpha):
        return say(axis, "no control: alpha = 0")
    for layer, group in np.ndindex(alpha.shape[1:]):
        label = f"layer {layer + 1}, {GROUPS[group]}"
        axis.plot(steps, alpha[:, layer, group], marker=marker(steps), label=label)
    axis.set_yscale("symlog" if np.any(alpha < 0) else "log")
    axis.legend(fontsize="small")


def draw_q(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
    """What of it a method logs: the mean, its spread over the batch, the mean of the target."""
    mean = metrics["q_mean"]
    label = f"Q(s, a) of the data: mean{', +- sd' if 'q_std' in metrics else ''}"
    axis.plot(steps, mean, marker=marker(steps), label=label)
    if "q_std" in metrics:
        axis.fill_between(steps, mean - metrics["q_std"], mean + metrics["q_std"], alpha=0.2)
    if "target_mean" in metrics:
        axis.plot(steps, metrics["target_mean"], "--", label="TD target")
    axis.set(title="Q", ylabel="discounted reward")
    axis.legend(fontsize="small")


def draw_actor(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray], acts: bool) -> None:
    """How much better than the data the critic holds the policy to be."""
    axis.set(title="what the critic thinks that the policy gains", ylabel="discounted reward")
    if not acts:
        return say(axis, NO_POLICY)
    gain = metrics["actor_q"] - metrics["q_mean"]
    axis.plot(steps, gain, marker=marker(steps), label="Q(s, policy) - Q(s, data)")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.legend(fontsize="small")


def draw_success(axis: Axes, episodes: list[dict], acts: bool) -> None:
    """Of every evaluation, by updates. The interval is over that evaluation's episodes; how much
    runs with other seeds differ, it does not show."""
    axis.set(title="success (95 % Wilson interval)", ylabel="share of episodes", ylim=(-0.02, 1.02))
    if not episodes:
        return say(axis, "not evaluated yet" if acts else NO_POLICY)
    by_policy = defaultdict(lambda: defaultdict(list))
    for row in episodes:
        by_policy[row["policy"]][row["step"]].append(row["success"])
    for policy, by_step in sorted(by_policy.items(), reverse=True):
        steps = sorted(by_step)
        rates = np.array([np.mean(by_step[step]) for step in steps])
        ends = [wilson(sum(by_step[step]), len(by_step[step])) for step in steps]
        low, high = np.array(ends).T
        label, around = POLICY_LABELS.get(policy, policy), (rates - low, high - rates)
        axis.errorbar(steps, rates, yerr=around, marker="o", capsize=4, label=label)
    axis.legend(fontsize="small")


def draw_learnt(axis: Axes, episodes: list[dict], window: int = 20) -> None:
    """Of the episodes that the agent learnt from: the share solved among the last `window`."""
    axis.set(title=f"solved while learning (last {window} episodes)", ylim=(-0.02, 1.02))
    if not episodes:
        return say(axis, "no episode ended yet")
    success = [row["success"] for row in episodes]
    rates = [np.mean(success[max(0, i - window) : i]) for i in range(1, len(success) + 1)]
    steps = np.array([row["step"] for row in episodes])
    axis.plot(steps, rates, marker=marker(steps))
