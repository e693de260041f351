"""One picture of a run: losses, attention entropy and temperatures against their targets, Q, and success with its interval."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tql.evaluate import recorded, wilson
from tql.run import RunError, read_metrics, read_settings

GROUPS = ("[VALUE]", "other tokens")
NO_POLICY = "no policy: the critic learns\nfrom the dataset's own actions"
POLICY_LABELS = {"policy": "one-step policy", "behaviour": "behaviour flow alone"}


def plot(run: Path) -> Path:
    """Writes `run/plot.png` from the run's files. Raises `RunError` if nothing was logged yet."""
    settings = read_settings(run)
    config = settings.config
    lines = read_metrics(run)
    if not lines:
        raise RunError(f"{run}: has no metrics yet; train for at least log_every = {config.log_every} updates.")
    steps = np.array([line["step"] for line in lines])
    metrics = {name: np.array([line[name] for line in lines]) for name in lines[0]}

    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    c = config.critic
    figure.suptitle(
        f"{config.task}   |   critic {c.layers} x {c.d_model}, control: {config.control.kind}, seed {config.seed}   |   {run.name}"
    )
    draw_losses(axes[0, 0], steps, metrics)
    draw_entropy(axes[0, 1], steps, metrics["entropy"], np.array(settings.target))
    draw_temperatures(axes[0, 2], steps, metrics["alpha"])
    draw_q(axes[1, 0], steps, metrics)
    draw_actor(axes[1, 1], steps, metrics, config.actor.kind)
    draw_success(axes[1, 2], recorded(run / "evaluation.jsonl"), config.actor.kind)
    for axis in axes.flat:
        axis.set_xlabel("gradient updates")
        axis.grid(alpha=0.3)
    out = run / "plot.png"
    figure.savefig(out, dpi=100)
    return out


def say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def draw_losses(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
    for name, label in (("td_loss", "TD"), ("flow_loss", "flow matching"), ("distillation_loss", "distillation")):
        if np.any(metrics[name] > 0):
            axis.plot(steps, metrics[name], label=label)
    axis.set(title="losses", ylabel="mean squared error", yscale="log")
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
    mean, std = metrics["q_mean"], metrics["q_std"]
    axis.plot(steps, mean, label="Q(s, a) of the data: mean, +- sd")
    axis.fill_between(steps, mean - std, mean + std, alpha=0.2)
    axis.plot(steps, metrics["target_mean"], "--", label="TD target")
    axis.set(title="Q", ylabel="discounted reward")
    axis.legend(fontsize="small")


def draw_actor(axis: Axes, steps: np.ndarray, metrics: dict[str, np.ndarray], actor: str) -> None:
    axis.set(title="what the critic thinks that the policy gains", ylabel="discounted reward")
    if actor == "dataset":
        return say(axis, NO_POLICY)
    axis.plot(steps, metrics["actor_q"] - metrics["q_mean"], label="Q(s, policy) - Q(s, data)")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.legend(fontsize="small")


def draw_success(axis: Axes, episodes: list[dict], actor: str) -> None:
    axis.set(title="success (95 % Wilson interval)", ylabel="share of episodes", ylim=(-0.02, 1.02))
    if not episodes:
        return say(axis, NO_POLICY if actor == "dataset" else "not evaluated yet")
    by_policy = defaultdict(lambda: defaultdict(list))
    for row in episodes:
        by_policy[row["policy"]][row["step"]].append(row["success"])
    for policy, by_step in sorted(by_policy.items(), reverse=True):
        steps = sorted(by_step)
        rates = np.array([np.mean(by_step[step]) for step in steps])
        low, high = np.array([wilson(sum(by_step[step]), len(by_step[step])) for step in steps]).T
        axis.errorbar(steps, rates, yerr=(rates - low, high - rates), marker="o", capsize=4, label=POLICY_LABELS.get(policy, policy))
    axis.legend(fontsize="small")
