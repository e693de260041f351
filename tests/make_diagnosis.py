"""Makes the records of exercise 8: a healthy agent and four with one bug each, really trained.

`python tests/make_diagnosis.py DATASET.npz` trains the five one after the other, in two minutes of
processor time, and writes `tql/contracts/diagnosis.json`. DATASET is that of cube-single-noisy-v0
with 120 episodes, which `python -m tql train cube-single-noisy-singletask-task3-v0` makes first. A
bug is a subclass of `TQL` that changes one loss or the batch. Data, initial weights, batches and
settings are the same for all five.

`verdict` is the reasoning that the exercise asks for, as four rules about the records. The script
prints what it says of each agent.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tql import loop
from tql.analysis.landscape import landscape, mean_q
from tql.config import ActorConfig, CriticConfig, TQLConfig
from tql.contracts.diagnosis import number
from tql.entropy_controller import default_target
from tql.loop import TQL
from tql.ogbench.dataset import load_dataset
from tql.ogbench.tasks import Task
from tql.training.chunk import train_chunk
from tql.variants.returns import goes_on

OUT = Path(__file__).parents[1] / "tql" / "contracts" / "diagnosis.json"
EVERY = 50  # updates between two records, each the mean over the last `EVERY`
CONFIG = TQLConfig(
    "cube-single-noisy-singletask-task1-v0", seed=0, steps=2000, warmup=100, batch_size=64,
    discount=0.95, tau=0.01, critic_lr=1e-3, temperature_lr=1e-2, updates_per_call=EVERY,
    critic=CriticConfig(d_model=32), actor=ActorConfig(kind="dataset"),
)  # fmt: skip
BEFORE, AFTER = 80, 8  # steps of the recorded episode before its first success, and after it
WHERE = 10  # steps before the success: there the landscape is taken
critic_loss, temperature_loss = loop.critic_loss, loop.temperature_loss


class Healthy(TQL):
    """No bug."""


class TargetNotStopped(TQL):
    """The target is computed with the critic itself, and the gradient goes through it."""

    def update_with_noise(self, batch, noise):
        wrong = lambda critic, _, *rest: critic_loss(critic, critic, *rest)
        with mock.patch.object(loop, "critic_loss", wrong):
            return super().update_with_noise(batch, noise)


class MaskIgnored(TQL):
    """The target goes on where the task is solved."""

    def update_with_noise(self, batch, noise):
        return super().update_with_noise(replace(batch, m=jnp.ones_like(batch.m)), noise)


class Broadcast(TQL):
    """Q [batch] minus y [batch, 1] is [batch, batch]: every Q is drawn to every target."""

    def update_with_noise(self, batch, noise):
        def wrong(critic, target_critic, actor, controller, batch, noise, gamma):
            one = lambda row, noise: loop.td_loss(critic, target_critic, actor, row, noise, gamma)
            _, (Q, y, H) = jax.vmap(one)(batch, noise)
            H = jnp.mean(H, axis=0)
            td = jnp.mean((Q[:, None] - y[None, :, None]) ** 2)
            attention = controller.attention_loss(H)
            metrics = {"td_loss": td, "attention_loss": attention, "entropy": H}
            metrics |= {"q_mean": jnp.mean(Q), "q_std": jnp.std(Q), "target_mean": jnp.mean(y)}
            return td + attention, (H, metrics)

        with mock.patch.object(loop, "critic_loss", wrong):
            return super().update_with_noise(batch, noise)


class ControllerSign(TQL):
    """The temperatures ascend their loss."""

    def update_with_noise(self, batch, noise):
        def wrong(controller, H):
            loss, metrics = temperature_loss(controller, H)
            return -loss, metrics | {"temperature_loss": -loss}

        with mock.patch.object(loop, "temperature_loss", wrong):
            return super().update_with_noise(batch, noise)


AGENTS = {
    "healthy": Healthy,
    "target not stopped": TargetNotStopped,
    "mask ignored": MaskIgnored,
    "broadcast": Broadcast,
    "controller's sign": ControllerSign,
}


def rows_before_success(data, before, after):
    """The rows of the first episode whose first success comes late enough."""
    solved = np.asarray(data.m) == 0
    starts = np.append(0, np.flatnonzero(~goes_on(data))[:-1] + 1)
    for start, end in zip(starts, np.append(starts[1:], len(solved)), strict=True):
        found = np.flatnonzero(solved[start:end])
        if len(found) and found[0] > before and start + found[0] + after < end:
            return np.arange(start + found[0] - before, start + found[0] + after)
    raise ValueError("no episode has so long a way to its first success.")


def record(Agent, train, seen, config):
    """The metrics of a whole training, and what the trained critic says of the rows `seen`."""
    agent = Agent.create(train.s.shape[1], train.a.shape[1], config)
    lines = []
    for _ in range(config.steps // EVERY):
        agent, metrics = train_chunk((train, EVERY), agent)
        lines.append({name: np.mean(x, axis=0) for name, x in metrics.items()})
    names = ("td_loss", "q_mean", "q_std", "target_mean", "entropy", "alpha")
    curves = {name: np.stack([line[name] for line in lines]) for name in names}
    critic = agent.critic.model
    value = eqx.filter_jit(jax.vmap(lambda s, a: mean_q(critic, s, a)))(seen.s, seen.a)
    s, a = seen.s[BEFORE - WHERE], seen.a[BEFORE - WHERE]
    surface = eqx.filter_jit(lambda: landscape(critic, s, a, 0, 1))()
    return curves | {"value": np.asarray(value), "landscape": np.asarray(surface)}


def verdict(seen):
    """What the records say, without a look at the code."""
    half = len(seen["q_mean"]) // 2
    late = lambda name: np.mean(seen[name][half:], axis=0)
    # 1. Every entropy is above its target, so every temperature should have fallen from 1.
    if np.all(np.array(seen["alpha"][-1]) > 10):
        return "controller's sign"
    # 2. Q is one number, whatever state and action are.
    if late("q_std") < 0.1:
        return "broadcast"
    # 3. Q stays above its target by a good part of a reward. A critic that follows its target
    # closes this gap. Where the target moves with Q, it cannot: there y = r + gamma Q at once.
    if late("q_mean") - late("target_mean") > 0.25:
        return "target not stopped"
    # 4. Nothing follows where the task is solved, and the reward is 0 there, so Q should be 0.
    if seen["value"][BEFORE] < seen["q_mean"][-1] / 2:
        return "mask ignored"
    return "healthy"


def rounded(x):
    return [rounded(y) for y in x] if np.ndim(x) else float(f"{x:.4g}")


def packed(found, config, target):
    """The contents of the file."""
    shared = dict(every=EVERY, before=BEFORE, where=WHERE, target=rounded(target))
    shared |= {name: getattr(config, name) for name in ("discount", "tau", "batch_size", "steps")}
    return {
        "settings": shared,
        "agents": {number(name): found[name] for name in sorted(found, key=number)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    config = replace(CONFIG, seed=options.seed)
    train, validation = load_dataset(Task.parse(config.task), options.dataset)
    rows = rows_before_success(validation, BEFORE, AFTER)
    seen = jax.tree.map(lambda x: x[rows], validation)
    found = {}
    for name, Agent in AGENTS.items():
        found[name] = {key: rounded(x) for key, x in record(Agent, train, seen, config).items()}
        print(f"{name}: {verdict(found[name])}", flush=True)
    target = default_target(1 + train.s.shape[1] + train.a.shape[1], config.critic.layers)
    options.out.write_text(json.dumps(packed(found, config, target)))


if __name__ == "__main__":
    main()
