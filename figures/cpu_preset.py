"""Rebuilds `figures/cpu_preset.png` from the recorded runs in `figures/data/cpu_preset/`: `python figures/cpu_preset.py`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tql.evaluate import wilson

DATA = Path(__file__).parent / "data" / "cpu_preset"
OUT = Path(__file__).parent / "cpu_preset.png"
CONTROLS = ("tql", "none")
"""Those that were recorded are drawn."""
COLOURS = {"tql": "tab:blue", "none": "tab:red", "behaviour": "tab:gray"}
LABELS = {"tql": "TQL", "none": "no control", "behaviour": "behaviour flow alone"}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def runs(control: str) -> list[str]:
    """Names of the recorded runs with this control, one per seed."""
    return sorted(path.name.removesuffix(".metrics.jsonl") for path in DATA.glob(f"{control}-seed*.metrics.jsonl"))


def successes(run: str, policy: str) -> list[bool]:
    """Of the last evaluation of a run."""
    rows = lines(DATA / f"{run}.evaluation.jsonl")
    last = max(row["step"] for row in rows)
    return [row["success"] for row in rows if row["step"] == last and row["policy"] == policy]


def draw_entropy(axis: Axes, layer: int, target: list) -> None:
    """Entropy of one layer, mean of its two token groups, every seed."""
    for control in CONTROLS:
        for i, run in enumerate(runs(control)):
            metrics = lines(DATA / f"{run}.metrics.jsonl")
            entropy = [np.mean(row["entropy"][layer]) for row in metrics]
            label = LABELS[control] if i == 0 else None
            axis.plot([row["step"] for row in metrics], entropy, color=COLOURS[control], linewidth=1, label=label)
    axis.axhline(target[layer][0], color="black", linestyle=":", linewidth=1, label="target")
    axis.set(title=f"attention entropy, layer {layer + 1}", xlabel="gradient updates", ylabel="nats", ylim=(0, 3.6))
    axis.legend(loc="lower left")
    axis.grid(alpha=0.3)


def draw_success(axis: Axes) -> None:
    """Success of the final checkpoint: every seed a point, their pool a bar with its Wilson interval."""
    groups = {control: [successes(run, "policy") for run in runs(control)] for control in CONTROLS if runs(control)}
    groups["behaviour"] = [successes(run, "behaviour") for control in CONTROLS for run in runs(control)]
    for x, (name, seeds) in enumerate(groups.items()):
        pooled = [success for seed in seeds for success in seed]
        rate, (low, high) = np.mean(pooled), wilson(sum(pooled), len(pooled))
        axis.bar(x, rate, color=COLOURS[name], alpha=0.5)
        axis.errorbar(x, rate, yerr=[[rate - low], [high - rate]], color="black", capsize=5)
        axis.plot(x + np.linspace(-0.2, 0.2, len(seeds)), [np.mean(seed) for seed in seeds], "o", color="black", markersize=4)
        axis.text(x, 1.06, f"{rate:.0%} of {len(pooled)}", ha="center")
    axis.set_xticks(range(len(groups)), [LABELS[name] for name in groups])
    axis.set(title="episodes solved at the final checkpoint", ylabel="share", ylim=(0, 1.15))


def main() -> None:
    settings = json.loads((DATA / "tql-seed0.config.json").read_text())
    config = settings["config"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for layer in (0, 1):
        draw_entropy(axes[layer], layer, settings["target"])
    draw_success(axes[2])
    figure.suptitle(
        f"Reduced scale: {config['task']}, critic {config['critic']['layers']} x {config['critic']['d_model']}, "
        f"{config['steps']:,} updates, {len(runs('tql'))} seeds, 50 episodes each, CPU ({settings['device']})"
    )
    figure.savefig(OUT, dpi=100)
    print(OUT)


if __name__ == "__main__":
    main()
