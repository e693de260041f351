"""One picture of a run: losses, attention entropy and temperatures against their targets, Q, and success with its interval."""

import math
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tql.config import Config, TrainingConfig
from tql.evaluate import recorded, wilson
from tql.run_directory import RunError, read_metrics, read_settings

GROUPS = ("[VALUE]", "other tokens")
NO_POLICY = "no policy: the critic learns\nfrom the dataset's own actions"
LOSSES = {"td_loss": "TD", "flow_loss": "flow matching"}
POLICY_LABELS = {"policy": "policy", "behaviour": "behaviour flow alone"}


def plot(run: Path) -> Path:
    """Writes `run/plot.png` from the run's files. Raises `RunError` if nothing was logged yet."""
    settings = read_settings(run)
    config = settings.config
    lines = read_metrics(run)
    if not lines:
        raise RunError(f"{run}: has no metrics yet; train for at least log_every = {config.log_every} updates.")
    steps = np.array([line["step"] for line in lines])
    metrics = {name: np.array([line[name] for line in lines]) for name in lines[0]}

    panels = [partial(draw_losses, steps=steps, metrics=metrics)]
    if settings.target:
        panels.append(partial(draw_entropy, steps=steps, entropy=metrics["entropy"], target=np.array(settings.target)))
        panels.append(partial(draw_temperatures, steps=steps, alpha=metrics["alpha"]))
    if "q_mean" in metrics:
        panels.append(partial(draw_q, steps=steps, metrics=metrics))
    if "actor_q" in metrics:
        panels.append(partial(draw_actor, steps=steps, metrics=metrics, acts=bool(settings.policies)))
    panels.append(partial(draw_success, episodes=recorded(run / "evaluation.jsonl"), acts=bool(settings.policies)))

    figure = Figure(figsize=(15, 4 * math.ceil(len(panels) / 3)), layout="constrained")
    axes = figure.subplots(math.ceil(len(panels) / 3), min(3, len(panels)), squeeze=False)
    figure.suptitle(f"{config.task}   |   {title(config)}, seed {config.seed}   |   {run.name}")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, draw in zip(axes.flat, panels):
        draw(axis)
        axis.set_xlabel("gradient updates")
        axis.grid(alpha=0.3)
    out = run / "plot.png"
    figure.savefig(out, dpi=100)
    return out


def title(config: TrainingConfig) -> str:
    """The method, and for TQL what kind of critic."""
    if not isinstance(config, Config):
        return config.method
    return f"critic {config.critic.layers} x {config.critic.d_model}, control: {config.control.kind}"


def marker(steps: np.ndarray) -> str | None:
    """A line of one point cannot be seen without."""
    return "o" if len(steps) == 1 else None


def say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def draw_losses(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
    """Those that are never negative: attention, temperature and policy losses have no logarithm."""
    for name, values in metrics.items():
        if name.endswith("_loss") and name != "temperature_loss" and np.any(values > 0) and np.all(values >= 0):
            axis.plot(steps, values, marker=marker(steps), label=LOSSES.get(name, name.removesuffix("_loss")))
    axis.set(title="losses", ylabel="mean of the losses", yscale="log")
    axis.legend()


def draw_entropy(axis: Axes, steps: np.ndarray, entropy: np.ndarray, target: np.ndarray) -> None:
    for layer in range(entropy.shape[1]):
        for group, name in enumerate(GROUPS):
            (line,) = axis.plot(steps, entropy[:, layer, group], label=f"layer {layer + 1}, {name}")
            axis.axhline(target[layer, group], color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(title="attention entropy (dotted: target)", ylabel="nats", ylim=(0, None))
    axis.legend(fontsize="small")


def draw_temperatures(axis: Axes, steps: np.ndarray, alpha: np.ndarray) -> None:
    axis.set(title="temperatures", ylabel="alpha")
    if not np.any(alpha):
        return say(axis, "no control: alpha = 0")
    for layer in range(alpha.shape[1]):
        for group, name in enumerate(GROUPS):
            axis.plot(steps, alpha[:, layer, group], label=f"layer {layer + 1}, {name}")
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
    axis.set(title="what the critic thinks that the policy gains", ylabel="discounted reward")
    if not acts:
        return say(axis, NO_POLICY)
    axis.plot(steps, metrics["actor_q"] - metrics["q_mean"], marker=marker(steps), label="Q(s, policy) - Q(s, data)")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.legend(fontsize="small")


def draw_success(axis: Axes, episodes: list[dict], acts: bool) -> None:
    axis.set(title="success (95 % Wilson interval)", ylabel="share of episodes", ylim=(-0.02, 1.02))
    if not episodes:
        return say(axis, "not evaluated yet" if acts else NO_POLICY)
    by_policy = defaultdict(lambda: defaultdict(list))
    for row in episodes:
        by_policy[row["policy"]][row["step"]].append(row["success"])
    for policy, by_step in sorted(by_policy.items(), reverse=True):
        steps = sorted(by_step)
        rates = np.array([np.mean(by_step[step]) for step in steps])
        low, high = np.array([wilson(sum(by_step[step]), len(by_step[step])) for step in steps]).T
        axis.errorbar(steps, rates, yerr=(rates - low, high - rates), marker="o", capsize=4, label=POLICY_LABELS.get(policy, policy))
    axis.legend(fontsize="small")
