"""Measures updates per second on this machine, beside the same update in a plain Python loop.

    python figures/speed.py                                    TQL's critic at several widths
    python figures/speed.py --method all                       every method at the paper's settings

The plain loop is how the published codes work: one jitted call per update, nothing donated,
batches gathered on the host, and the whole last block of TQL's critic. Both run alternately in
one process, a fresh one per row, so that compile time and peak memory are that row's own. `over
ideal` is the time of an update over that of its matrix products at the best rate and of its calls
alone."""

import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from jaxtyping import PyTree

from tql.agent import AbstractAgent
from tql.batch import Transition
from tql.config import AbstractConfig, CriticConfig, TQLConfig
from tql.critic import AbstractCritic, Critic
from tql.optimise import copy
from tql.training.chunk import train_chunk
from tql.training.cost import update_flops
from tql.training.methods import METHODS, method_class, new_agent

TASK, N_S, N_A = "cube-double-play-singletask-task2-v0", 37, 5
ROWS = 100_000
"""Transitions of the synthetic dataset; the speed does not depend on what they are."""
LONG_UPDATE = 0.06
"""Seconds of matrix products from which on so few updates go into a call that it lasts no
minute."""

Loop = Callable[[int], AbstractAgent]
"""Makes a number of updates, going on from where it stopped, and waits for them; the last agent."""

HEADER = (
    f"{'':<18}   shipped     plain  ratio (over repeats)  GFLOP/upd  GFLOP/s of matmul over ideal "
    "upd/call compile s peak GB"
)


@dataclass(frozen=True)
class Options:
    """Measure updates per second on this machine."""

    method: str = ""
    """The paper's settings of one method, or of all; TQL's critic at several widths unless
    given."""
    d_model: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of TQL's critic, without --method."""
    batch_size: tuple[int, ...] = (64, 256)
    """Transitions per update, without --method."""
    repeats: int = 3
    """Alternating measurements of both loops; medians are printed."""
    seconds: float = 4.0
    """Length of a measurement, at least."""


def configs_of(options: Options) -> dict[str, AbstractConfig]:
    """What is measured, by name. Raises `ValueError` for an unknown method."""
    if options.method:
        names = METHODS if options.method == "all" else (options.method,)
        presets = {name: "paper-0.4M" if name == "tql" else "paper" for name in names}
        return {name: method_class(name).presets[preset](TASK) for name, preset in presets.items()}
    sizes = [(d, B) for d in options.d_model for B in options.batch_size]
    tql = lambda d, B: TQLConfig(TASK, batch_size=B, critic=CriticConfig(d_model=d))
    return {f"tql {d}, batch {B}": tql(d, B) for d, B in sizes}


def measure(name: str, config: AbstractConfig, repeats: int, seconds: float) -> str:
    """One line of the table: both loops, alternating, each at least `seconds` per repeat."""
    agent, data = new_agent(N_S, N_A, config).prepare(synthetic())
    flops, best, call = update_flops(agent, data), best_matmul_rate(), empty_call_seconds()
    plain = plain_loop(agent, data)
    plain(1)

    updates = 20 if flops < LONG_UPDATE * best else 2
    began = time.perf_counter()
    shipped = shipped_loop(agent, data, updates)
    compiled = time.perf_counter() - began
    shipped(updates)

    fast, slow = [], []
    for _ in range(repeats):
        fast.append(rate(shipped, updates, seconds))
        slow.append(rate(plain, 1, seconds))
    ratios, updates_per_second = np.divide(fast, slow), np.median(fast)
    over_ideal = 1 / updates_per_second / (flops / best + call / updates)
    return (
        f"{name:<18} {updates_per_second:>9.2f} {np.median(slow):>9.2f} "
        f"{updates_per_second / np.median(slow):>6.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"{flops / 1e9:>10.2f} {updates_per_second * flops / 1e9:>8.1f} "
        f"{updates_per_second * flops / best:>9.0%} {over_ideal:>10.2f} {updates:>8} "
        f"{compiled:>9.1f} {peak_bytes() / 1e9:>7.2f}"
    )


def synthetic(rows: int = ROWS) -> Transition:
    """Random transitions of cube-double's sizes. A hundredth of them is solved, so that there are
    two rewards."""
    draw = np.random.default_rng(0)
    s, s_next = (jnp.asarray(draw.normal(size=(rows, N_S)), jnp.float32) for _ in range(2))
    a, a_next = (jnp.asarray(draw.uniform(-1, 1, (rows, N_A)), jnp.float32) for _ in range(2))
    solved = jnp.asarray(np.arange(rows) % 100 == 0, jnp.float32)
    return Transition(s, a, solved - 1, 1 - solved, s_next, a_next)


# ---- the two loops -------------------------------------------------------------------------------


def shipped_loop(agent: AbstractAgent, data: Transition, updates_per_call: int) -> Loop:
    """`train_chunk`, compiled here. It makes whole chunks only."""
    inputs = data, updates_per_call
    chunk = train_chunk.lower(inputs, agent).compile()
    holder = [copy(agent)]

    def run(updates: int) -> AbstractAgent:
        for _ in range(updates // updates_per_call):
            holder[0], metrics = chunk(inputs, holder[0])
        jax.block_until_ready(metrics)
        return holder[0]

    return run


def plain_loop(agent: AbstractAgent, data: Transition) -> Loop:
    """One jitted call per update, compiled at its first."""
    rows = jax.tree.map(np.asarray, data)
    arrays, static = eqx.partition(as_published(agent), eqx.is_array)
    holder, draw = [arrays], np.random.default_rng(0)

    @jax.jit
    def update(arrays: PyTree, batch: Transition) -> tuple[PyTree, dict]:
        agent = eqx.combine(arrays, static)
        agent, metrics = agent.update(batch, jr.fold_in(agent.key, agent.step))
        return eqx.filter(agent, eqx.is_array), metrics

    def run(updates: int) -> AbstractAgent:
        for _ in range(updates):
            picked = draw.integers(len(rows.r), size=agent.config.batch_size)
            batch = jax.tree.map(lambda x: jnp.asarray(x[picked]), rows)
            holder[0], metrics = update(holder[0], batch)
        jax.block_until_ready(metrics)
        return eqx.combine(holder[0], static)

    return run


class PlainCritic(AbstractCritic):
    """The same critic by the plain route: every block whole, one row read at the end."""

    critic: Critic
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __call__(self, s, a):
        return self.with_attention(s, a)[0]

    def with_attention(self, s, a):
        x, logits = self.critic.tokens(s, a), []
        for block in self.critic.blocks:
            x, l = block(x)
            logits.append(l)
        return self.critic.read_out(x[0]), jnp.stack(logits)


def as_published(agent: AbstractAgent) -> AbstractAgent:
    """The agent with a `PlainCritic` for every critic of TQL, also for those that an optimiser's
    state mirrors."""
    is_critic = lambda x: isinstance(x, Critic)
    plain = lambda x: PlainCritic(x, x.n_s, x.n_a, x.ensemble) if is_critic(x) else x
    return jax.tree.map(plain, agent, is_leaf=is_critic)


# ---- rates and counts ----------------------------------------------------------------------------


def rate(loop: Loop, unit: int, seconds: float) -> float:
    """Updates per second over at least `seconds`; the loop is asked for multiples of `unit`."""
    units = 1
    while True:
        began = time.perf_counter()
        loop(units * unit)
        spent = time.perf_counter() - began
        if spent >= seconds:
            return units * unit / spent
        units = math.ceil(units * max(1.2, 1.1 * seconds / spent))


def empty_call_seconds() -> float:
    """Of a jitted call that adds 1 to a number, from the call to its result; the median of 200."""
    plus_one, x, times = jax.jit(lambda x: x + 1), jnp.zeros(()), []
    for _ in range(201):
        began = time.perf_counter()
        plus_one(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def best_matmul_rate() -> float:
    """Floating-point operations per second of the best of several square float32 products."""
    best, size, shortest = 0.0, 256, 0.0
    # An accelerator multiplies 2048 x 2048 faster than it is called.
    while size < 2048 or shortest < 0.005 and size < 16384:
        size, shortest = 2 * size, math.inf
        x = jr.normal(jr.key(size), (size, size))
        product = jax.jit(lambda x: x @ x)
        product(x).block_until_ready()
        for _ in range(8):
            began = time.perf_counter()
            product(x).block_until_ready()
            shortest = min(shortest, time.perf_counter() - began)
        best = max(best, 2 * size**3 / shortest)
    return best


def peak_bytes() -> int:
    """Most memory in use so far: of the accelerator, or of this process on a CPU."""
    memory = jax.devices()[0].memory_stats() or {}
    usage = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return memory.get("peak_bytes_in_use", usage)


def main(options: Options) -> None:
    """Prints the table, one line at a time."""
    device = jax.devices()[0].device_kind
    print(f"cube-double (n_s {N_S}, n_a {N_A}) on {device}; updates per second, medians")
    print(HEADER, flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name, config in configs_of(options).items():
            repeats = options.repeats, options.seconds
            print(pool.submit(measure, name, config, *repeats).result(), flush=True)
    rate, call = best_matmul_rate(), empty_call_seconds()
    print(f"best float32 product: {rate / 1e9:.0f} GFLOP/s; an empty call: {1e6 * call:.0f} us")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
