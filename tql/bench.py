"""Updates per second of the shipped loop, side by side with the same update in a plain Python loop.

The plain loop is how the published codes work: one jitted call per update, nothing donated, batches gathered on the host, and of TQL's
critic the whole last block. Both run alternately in one process, a fresh one per row, so that compile time and peak memory are that
row's own. `over ideal` is the measured time of an update over that of its matrix products at the best rate and of its calls alone.
"""

import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from tql.agent import AbstractAgent, Metrics, initialise, method_class
from tql.config import METHODS, SIZES, Config, CriticConfig, TrainingConfig
from tql.critic import AbstractTransformerCritic, Critic
from tql.data import Batch, statistics
from tql.loop import Agent, train_chunk
from tql.optimise import copy

TASK = "cube-double-play-singletask-v0"
N_S, N_A = 37, 5
"""Of cube-double."""
ROWS = 100_000
"""Transitions of the synthetic dataset: the speed does not depend on what they are."""
LONG_UPDATE = 0.06
"""Seconds of matrix products from which on an update counts as long: so few go into a call then that it does not last a minute."""

Loop = Callable[[int], AbstractAgent]
"""Makes a number of updates, going on from where it stopped, and waits for them; the agent after the last one."""


# ---- what is measured ------------------------------------------------------------------------------------------------------


def widths(d_models: tuple[int, ...], batch_sizes: tuple[int, ...]) -> dict[str, TrainingConfig]:
    """TQL with critics of these widths (two layers) and the paper's actor, 4 x 512, at every batch size."""
    sizes = [(d_model, batch_size) for d_model in d_models for batch_size in batch_sizes]
    return {f"tql {d}, batch {B}": Config(TASK, batch_size=B, critic=CriticConfig(d_model=d)) for d, B in sizes}


def methods(method: str) -> dict[str, TrainingConfig]:
    """The paper's settings of a method, or of "all"; TQL's at its smallest size. Raises `ValueError` for a wrong name."""
    names = METHODS if method == "all" else (method,)
    presets = {name: f"paper-{next(iter(SIZES))}" if name == "tql" else "paper" for name in names}
    return {name: method_class(name).presets[preset](TASK) for name, preset in presets.items()}


@dataclass(frozen=True)
class Row:
    """What was measured of one method at one size."""

    name: str
    shipped: tuple[float, ...]
    """Updates per second, one per repeat."""
    plain: tuple[float, ...]
    flops: float
    """Of the matrix products of one update, by count."""
    matmul_rate: float
    """Floating-point operations per second of the best square float32 product, measured in the same process."""
    call_seconds: float
    """Of one jitted call that computes next to nothing, waited for."""
    updates_per_call: int
    """Of the shipped loop."""
    compile_seconds: float
    peak_bytes: int

    @property
    def over_ideal(self) -> float:
        """Measured seconds of an update / (flops / matmul_rate + call_seconds / updates_per_call)."""
        return 1 / median(self.shipped) / (self.flops / self.matmul_rate + self.call_seconds / self.updates_per_call)

    def __str__(self) -> str:
        fast, slow = median(self.shipped), median(self.plain)
        ratios = [a / b for a, b in zip(self.shipped, self.plain, strict=True)]
        rate = fast * self.flops
        return (
            f"{self.name:<18} {fast:>9.2f} {slow:>9.2f} {fast / slow:>6.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"{self.flops / 1e9:>10.2f} {rate / 1e9:>8.1f} {rate / self.matmul_rate:>9.0%} {self.over_ideal:>10.2f} "
            f"{self.updates_per_call:>8} {self.compile_seconds:>9.1f} {self.peak_bytes / 1e9:>7.2f}"
        )


HEADER = f"{'':<18}   shipped     plain  ratio (over repeats)  GFLOP/upd  GFLOP/s of matmul over ideal upd/call compile s peak GB"


def bench(configs: dict[str, TrainingConfig], repeats: int, seconds: float) -> list[Row]:
    """Measures every configuration in a process of its own and prints a table."""
    print(f"cube-double shapes (n_s {N_S}, n_a {N_A}); updates per second, median of {repeats} alternating repeats")
    print(HEADER, flush=True)
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name, config in configs.items():
            rows.append(pool.submit(measure, name, config, repeats, seconds).result())
            print(rows[-1], flush=True)
    rate, call = (median(getattr(row, name) for row in rows) for name in ("matmul_rate", "call_seconds"))
    print(f"best float32 matrix product: {rate / 1e9:.0f} GFLOP/s on {jax.devices()[0].device_kind}; an empty call: {1e6 * call:.0f} us")
    return rows


def measure(name: str, config: TrainingConfig, repeats: int, seconds: float) -> Row:
    """Both loops, alternating, each at least `seconds` per repeat."""
    data = synthetic()
    agent = initialise(N_S, N_A, config, statistics(data))
    data = agent.prepare(data, config)
    flops, best, call_seconds = update_flops(agent, data), best_matmul_rate(), empty_call_seconds()
    plain = plain_loop(agent, data)
    plain(1)

    updates = 20 if flops < LONG_UPDATE * best else 2
    began = time.perf_counter()
    shipped = shipped_loop(agent, data, updates)
    compile_seconds = time.perf_counter() - began
    shipped(updates)

    fast, slow = [], []
    for _ in range(repeats):
        fast.append(rate(shipped, updates, seconds))
        slow.append(rate(plain, 1, seconds))
    return Row(name, tuple(fast), tuple(slow), flops, best, call_seconds, updates, compile_seconds, peak_bytes())


def synthetic(rows: int = ROWS) -> Batch:
    """Random transitions of cube-double's sizes; a hundredth of them solved, so that there are two rewards."""
    draw = np.random.default_rng(0)
    s, s_next = (jnp.asarray(draw.normal(size=(rows, N_S)).astype(np.float32)) for _ in range(2))
    a, a_next = (jnp.asarray(draw.uniform(-1, 1, size=(rows, N_A)).astype(np.float32)) for _ in range(2))
    solved = jnp.asarray((np.arange(rows) % 100 == 0).astype(np.float32))
    return Batch(s, a, solved - 1, 1 - solved, s_next, a_next)


# ---- the two loops ---------------------------------------------------------------------------------------------------------


def shipped_loop(agent: AbstractAgent, data: Batch, updates_per_call: int) -> Loop:
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


def plain_loop(agent: AbstractAgent, data: Batch) -> Loop:
    """One jitted call per update; compiled at its first."""
    rows = jax.tree.map(np.asarray, data)
    arrays, static = eqx.partition(as_published(agent), eqx.is_array)
    holder = [arrays]
    draw = np.random.default_rng(0)

    @jax.jit
    def update(arrays: PyTree, batch: Batch) -> tuple[PyTree, Metrics]:
        agent = eqx.combine(arrays, static)
        agent, metrics = agent.update(batch, jr.fold_in(agent.key, agent.step))
        return eqx.filter(agent, eqx.is_array), metrics

    def run(updates: int) -> AbstractAgent:
        for _ in range(updates):
            picked = draw.integers(len(rows.rewards), size=agent.config.batch_size)
            holder[0], metrics = update(holder[0], jax.tree.map(lambda x: jnp.asarray(x[picked]), rows))
        jax.block_until_ready(metrics)
        return eqx.combine(holder[0], static)

    return run


class PlainCritic(AbstractTransformerCritic):
    """The same critic by the plain route: every block whole, one row read at the end."""

    critic: Critic
    n: int = eqx.field(static=True)
    ensemble: int = eqx.field(static=True)

    def __call__(self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]) -> Float[Array, " {self.ensemble}"]:
        return self.with_attention(s, a)[0]

    def with_attention(
        self, s: Float[Array, " n_s"], a: Float[Array, " {self.n}-1-n_s"]
    ) -> tuple[Float[Array, " {self.ensemble}"], Float[Array, "layers heads n n"]]:
        x, logits = self.critic.tokenizer(s, a), []
        for block in self.critic.blocks:
            x, l = block(x)
            logits.append(l)
        return self.critic.read_out(x[0]), jnp.stack(logits)


def as_published(agent: AbstractAgent) -> AbstractAgent:
    """TQL with every critic a `PlainCritic`, also those that the optimiser's state mirrors; other methods as they are."""
    if not isinstance(agent, Agent):
        return agent
    is_critic = lambda x: isinstance(x, Critic)
    return jax.tree.map(lambda x: PlainCritic(x, agent.critic.n, agent.critic.ensemble) if is_critic(x) else x, agent, is_leaf=is_critic)


# ---- rates and counts ------------------------------------------------------------------------------------------------------


def rate(loop: Loop, unit: int, seconds: float) -> float:
    """Updates per second, measured over at least `seconds`; the loop is asked for multiples of `unit`."""
    units, spent = 1, 0.0
    while True:
        began = time.perf_counter()
        loop(units * unit)
        spent = time.perf_counter() - began
        if spent >= seconds:
            return units * unit / spent
        units = math.ceil(units * max(2.0, 1.1 * seconds / spent)) if spent < seconds / 2 else math.ceil(1.2 * units * seconds / spent)


def empty_call_seconds() -> float:
    """Of a jitted call that adds 1 to a number, from the call until the result is there; the median of 200."""
    plus_one, x, times = jax.jit(lambda x: x + 1), jnp.zeros(()), []
    for _ in range(201):
        began = time.perf_counter()
        plus_one(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def best_matmul_rate() -> float:
    """Floating-point operations per second of the best of several square float32 products, large enough for this machine."""
    best, size, shortest = 0.0, 256, 0.0
    while size < 2048 or shortest < 0.005 and size < 16384:  # an accelerator multiplies 2048 x 2048 faster than it is called
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


def update_flops(agent: AbstractAgent, data: Batch) -> float:
    """Of the matrix products of one update, by count."""
    batch = jax.tree.map(lambda x: x[: agent.config.batch_size], data)
    return matmul_flops(lambda: agent.update(batch, jr.key(0)))


def matmul_flops(function: Callable[[], object]) -> float:
    """Floating-point operations of all matrix products that `function()` runs: 2 per multiply-add, loops counted in full."""
    return _flops(jax.make_jaxpr(lambda: eqx.filter(function(), eqx.is_array))().jaxpr)


def _flops(jaxpr: jex.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), (lhs, _) = equation.params["dimension_numbers"], equation.invars
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs.aval.shape[i] for i in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)):
            if isinstance(inner, jex.ClosedJaxpr):
                total += times * _flops(inner.jaxpr)
            elif isinstance(inner, jex.Jaxpr):
                total += times * _flops(inner)
    return total


def peak_bytes() -> int:
    """Most memory in use so far: of the accelerator, or of this process on a CPU."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
