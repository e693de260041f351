"""Records the runs behind `figures/cpu_preset.py`: the CPU preset, 3 seeds, with entropy control and without.

Six runs of about 6 minutes each on 2 cores, and 2 minutes for the dataset. Runs that are there are continued or left as they are.
From each it keeps the metrics, the episodes and the settings in `figures/data/cpu_preset/`, about 100 kB a run.

    python figures/run_cpu_preset.py [--runs runs/cpu_preset] [--data data/cube-single-noisy-v0.npz]
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

TASK = "cube-single-noisy-singletask-task3-v0"
SEEDS = (0, 1, 2)
CONTROLS = ("tql", "none")
OUT = Path(__file__).parent / "data" / "cpu_preset"
DIGITS = 6


@dataclass(frozen=True)
class Arguments:
    """Record the CPU preset."""

    runs: Path = Path("runs/cpu_preset")
    """Where the full runs go."""
    data: Path = Path("data/cube-single-noisy-v0.npz")
    """The dataset; generated if missing."""


def rounded(value):
    """Floats to 6 significant digits, so that the recorded files stay small."""
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def record(arguments: Arguments, control: str, seed: int) -> None:
    """One run, and its small copy."""
    run = arguments.runs / f"{control}-seed{seed}"
    options = ["--control.kind", control, "--seed", str(seed), "--out", str(run)]
    if (run / "config.json").exists():
        options = ["--out", str(run), "--resume"]
    if arguments.data.exists():
        options += ["--data", str(arguments.data)]
    subprocess.run([sys.executable, "-m", "tql", "train", TASK, *options], check=True)

    OUT.mkdir(parents=True, exist_ok=True)
    settings = json.loads((run / "config.json").read_text())
    settings["dataset"]["file"] = Path(settings["dataset"]["file"]).name
    (OUT / f"{run.name}.config.json").write_text(json.dumps(settings, indent=1) + "\n")
    for name in ("metrics", "evaluation"):
        rows = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        small = [{key: rounded(value) for key, value in row.items() if key != "time"} for row in rows]
        (OUT / f"{run.name}.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in small))


if __name__ == "__main__":
    asked = tyro.cli(Arguments)
    print(f"{len(SEEDS) * len(CONTROLS)} runs of about 6 minutes on 2 cores", flush=True)
    for seed in SEEDS:
        for control in CONTROLS:
            record(asked, control, seed)
