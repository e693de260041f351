"""Updates per second of the shipped loop, side by side with the same update in a plain Python loop.

The plain loop is how the published codes work: one jitted call per update, whole last block, batches gathered on the host. Both run
alternately in one process, a fresh one per size, so that compile time and peak memory are that size's own.
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
from jaxtyping import Array, Float

from tql.config import ActorConfig, Config, CriticConfig
from tql.critic import AbstractTransformerCritic, Critic
from tql.data import Batch
from tql.loop import Agent, initialise, train_chunk, update

N_S, N_A = 37, 5
"""Of cube-double."""
ROWS = 100_000
"""Transitions of the synthetic dataset: the speed does not depend on what they are."""


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


@dataclass(frozen=True)
class Row:
    """What was measured at one size."""

    d_model: int
    batch_size: int
    shipped: tuple[float, ...]
    """Updates per second, one per repeat."""
    plain: tuple[float, ...]
    flops: float
    """Of the matrix products of one update, by count."""
    matmul_rate: float
    """Floating-point operations per second of the best square float32 product, measured in the same process."""
    compile_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        fast, slow = median(self.shipped), median(self.plain)
        ratios = [a / b for a, b in zip(self.shipped, self.plain, strict=True)]
        rate = fast * self.flops
        return (
            f"{self.d_model:>7} {self.batch_size:>5} {fast:>9.2f} {slow:>9.2f} {fast / slow:>6.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) {self.flops / 1e9:>9.2f} {rate / 1e9:>8.1f} "
            f"{rate / self.matmul_rate:>9.0%} {self.compile_seconds:>8.1f} {self.peak_bytes / 1e9:>7.2f}"
        )


HEADER = "d_model batch   shipped     plain  ratio (over repeats)  GFLOP/upd  GFLOP/s of matmul compile s peak GB"


def bench(d_models: tuple[int, ...], batch_sizes: tuple[int, ...], repeats: int, seconds: float) -> list[Row]:
    """Measures every size in a process of its own and prints a table. Actors are the paper's, 4 x 512."""
    print(f"cube-double shapes (n_s {N_S}, n_a {N_A}), 2 layers, flow actor 4 x 512; median of {repeats} alternating repeats")
    print(HEADER, flush=True)
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for d_model in d_models:
            for batch_size in batch_sizes:
                rows.append(pool.submit(measure, d_model, batch_size, repeats, seconds).result())
                print(rows[-1], flush=True)
    print(f"best float32 matrix product: {median(row.matmul_rate for row in rows) / 1e9:.0f} GFLOP/s on {jax.devices()[0].device_kind}")
    return rows


def measure(d_model: int, batch_size: int, repeats: int, seconds: float) -> Row:
    """Both loops at one size, alternating, each at least `seconds` per repeat."""
    config = Config(
        task="cube-double-play-singletask-v0",
        batch_size=batch_size,
        critic=CriticConfig(d_model=d_model),
        actor=ActorConfig(),
    )
    data = synthetic()
    fresh = initialise(N_S, N_A, config)
    flops = matmul_flops(lambda: update(fresh, jax.tree.map(lambda x: x[:batch_size], data), jr.key(0)))
    plain = plain_loop(fresh, data)
    plain(1)

    began = time.perf_counter()
    chunk_size = 20 if flops < 2e10 else 2  # a call should last neither milliseconds nor a minute
    chunk = train_chunk.lower((data, chunk_size), fresh).compile()
    compile_seconds = time.perf_counter() - began
    agent, metrics = chunk((data, chunk_size), jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, fresh))
    jax.block_until_ready(metrics)
    holder = [agent]

    def shipped(calls: int) -> None:
        for _ in range(calls):
            holder[0], metrics = chunk((data, chunk_size), holder[0])
        jax.block_until_ready(metrics)

    fast, slow = [], []
    for _ in range(repeats):
        fast.append(chunk_size * rate(shipped, seconds))
        slow.append(rate(plain, seconds))
    return Row(d_model, batch_size, tuple(fast), tuple(slow), flops, best_matmul_rate(), compile_seconds, peak_bytes())


def synthetic() -> Batch:
    """Random transitions of cube-double's sizes."""
    draw = np.random.default_rng(0)
    s, s_next = (jnp.asarray(draw.normal(size=(ROWS, N_S)).astype(np.float32)) for _ in range(2))
    a, a_next = (jnp.asarray(draw.uniform(-1, 1, size=(ROWS, N_A)).astype(np.float32)) for _ in range(2))
    return Batch(s, a, -jnp.ones(ROWS), jnp.ones(ROWS), s_next, a_next)


def plain_loop(agent: Agent, data: Batch) -> Callable[[int], None]:
    """A function that makes a number of updates the plain way, going on from where it stopped."""
    rows = jax.tree.map(np.asarray, data)
    as_plain = lambda critic: PlainCritic(critic, critic.n, critic.ensemble)
    wrapped = (as_plain(agent.critic), as_plain(agent.target_critic))
    # The optimiser's state mirrors the critic's tree, so it is wrapped alike.
    state = jax.tree.map(
        lambda x: as_plain(x) if isinstance(x, Critic) else x, agent.critic_state, is_leaf=lambda x: isinstance(x, Critic)
    )
    holder = [eqx.tree_at(lambda a: (a.critic, a.target_critic, a.critic_state), agent, (*wrapped, state))]
    jitted = eqx.filter_jit(update)
    draw = np.random.default_rng(0)

    def run(updates: int) -> None:
        for _ in range(updates):
            picked = draw.integers(ROWS, size=agent.config.batch_size)
            batch = jax.tree.map(lambda x: jnp.asarray(x[picked]), rows)
            holder[0], metrics = jitted(holder[0], batch, jr.fold_in(agent.key, int(draw.integers(2**31))))
        jax.block_until_ready(metrics)

    return run


def rate(loop: Callable[[int], None], seconds: float) -> float:
    """Calls per second, measured over at least `seconds`."""
    calls, spent = 1, 0.0
    while True:
        began = time.perf_counter()
        loop(calls)
        spent = time.perf_counter() - began
        if spent >= seconds:
            return calls / spent
        calls = math.ceil(calls * max(2.0, 1.1 * seconds / spent)) if spent < seconds / 2 else math.ceil(1.2 * calls * seconds / spent)


def best_matmul_rate() -> float:
    """Floating-point operations per second of the best of several square float32 products."""
    best = 0.0
    for size in (512, 1024, 2048):
        x = jr.normal(jr.key(size), (size, size))
        product = jax.jit(lambda x: x @ x)
        product(x).block_until_ready()
        for _ in range(8):
            began = time.perf_counter()
            product(x).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


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
