"""The checkers of flow matching, of the Euler integral and of its measured order: right answers in
several styles pass, and every wrong answer is told what is wrong with it."""

import itertools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tql import flow_actor
from tql.contracts.contract import Wrong
from tql.contracts.flow import (
    EULER,
    FIELDS,
    MATCHING,
    check_euler,
    check_flow_matching,
    check_order,
    expected_euler,
    expected_matching,
    mistaken_integrals,
    mistaken_matchings,
)
from tql.layers import MLP

HERE = Path(__file__).parent
sg = jax.lax.stop_gradient
clip = lambda x: jnp.clip(x, -1, 1)


@pytest.fixture(autouse=True)
def as_a_student():
    """JAX as it is when nothing is set, which is more forgiving than in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Wrapped(MLP):
    """Stands for the library's network: it takes (s, x, t) apart and asks `v`."""

    v: object
    n_s: int

    def __init__(self, v, n_s):
        self.v, self.n_s = v, n_s
        self.layers = self.norms = ()
        self.d_in = self.d_out = 0

    def __call__(self, x):
        return self.v(x[: self.n_s], x[self.n_s : -1], x[-1])


def passes(check, right, strict):
    if strict:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return check(right)
    return check(right)


# ---------------------------------------------------------------- flow matching


def library_matching(v, s, a, x_0, t):
    return flow_actor.flow_matching(Wrapped(v, s.shape[0]), s, a, x_0, t)


def matching(v, s, a, x_0, t):
    x_t = (1 - t) * x_0 + t * a
    return jnp.mean((v(s, x_t, t) - (a - x_0)) ** 2)


def matching_from_the_way(v, s, a, x_0, t):
    way = jnp.subtract(a, x_0)
    return jnp.average(jnp.square(way - v(s, x_0 + t * way, t)))


def matching_by_loop(v, s, a, x_0, t):
    velocity = v(s, jnp.stack([(1 - t) * x_0[i] + t * a[i] for i in range(len(a))]), t)
    total = 0.0
    for i in range(a.shape[0]):
        total = total + (velocity[i] - a[i] + x_0[i]) ** 2
    return total / a.shape[0]


def matching_by_derivative(v, s, a, x_0, t):
    """The velocity of the line is its derivative in time."""
    line = lambda t: (1 - t) * x_0 + t * a
    x_t, way = jax.jvp(line, (t,), (jnp.ones_like(t),))
    error = v(s, x_t, t) - way
    return jnp.einsum("i,i->", error, error) / error.size


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("right", [library_matching, matching])
def test_right_matchings_pass(right, strict):
    passes(check_flow_matching, right, strict)


STYLES = (matching_from_the_way, matching_by_loop, matching_by_derivative)


@pytest.mark.parametrize("right", [*STYLES, jax.jit(matching, static_argnums=0)])
def test_matchings_in_other_styles_pass(right):
    check_flow_matching(right)


@pytest.mark.parametrize("right", [matching, matching_by_loop])
def test_matchings_pass_in_float64(x64, right):
    check_flow_matching(right)


def off(point=None, target=None, time=lambda t: t, reduce=lambda e: jnp.mean(e**2)):
    """Flow matching with one place that can be made wrong."""

    def flow_matching(v, s, a, x_0, t):
        x_t = (1 - t) * x_0 + t * a if point is None else point(a, x_0, t)
        way = a - x_0 if target is None else target(a, x_0, x_t)
        return reduce(v(s, x_t, time(t)) - way)

    return flow_matching


def clips_the_noise(v, s, a, x_0, t):
    return matching(v, s, a, clip(x_0), t)


def with_numpy(v, s, a, x_0, t):
    x_t = (1 - np.asarray(t)) * np.asarray(x_0) + np.asarray(t) * np.asarray(a)
    return jnp.mean((v(s, jnp.asarray(x_t), t) - (a - x_0)) ** 2)


def not_written(*arguments):
    raise NotImplementedError


line = lambda a, x_0, t: (1 - t) * x_0 + t * a
WRONG_MATCHINGS = {
    "not a function": (None, "must be a function"),
    "not written": (not_written, "not written yet"),
    "per dimension": (off(reduce=lambda e: e**2), "wrong shape"),
    "sum": (off(reduce=lambda e: jnp.sum(e**2)), "summed over action dimensions"),
    "half": (off(reduce=lambda e: jnp.mean(e**2) / 2), "factor 1/2"),
    "absolute": (off(reduce=lambda e: jnp.mean(jnp.abs(e))), "not squared"),
    "mean first": (off(reduce=lambda e: jnp.mean(e) ** 2), "averaged before"),
    "norm": (off(reduce=jnp.linalg.norm), "square root"),
    "for two dimensions": (off(reduce=lambda e: jnp.sum(e**2) / 2), "summed|values are wrong"),
    "x_0 - x_1": (off(target=lambda a, x_0, x: x_0 - a), "difference is reversed"),
    "the action": (off(target=lambda a, x_0, x: a), "target is the action a"),
    "the noise": (off(target=lambda a, x_0, x: x_0), "target is the noise"),
    "the rest of the way": (off(target=lambda a, x_0, x: a - x), "whole way"),
    "ends exchanged": (off(lambda a, x_0, t: line(x_0, a, t)), "ends of the line are exchanged"),
    "time backwards": (
        off(lambda a, x_0, t: line(x_0, a, t), lambda a, x_0, x: x_0 - a),
        "reversed|backwards",
    ),
    "at the noise": (off(lambda a, x_0, t: x_0), "asked at the noise"),
    "at the action": (off(lambda a, x_0, t: a), "asked at the action"),
    "no 1 - t": (off(lambda a, x_0, t: x_0 + t * a), "factor 1 - t of the noise is missing"),
    "clipped point": (off(lambda a, x_0, t: clip(line(a, x_0, t))), "point x_t is clipped"),
    "clipped noise": (clips_the_noise, "noise x_0 is clipped"),
    "1 - t": (off(time=lambda t: 1 - t), "time 1 - t"),
    "no time": (off(time=lambda t: 0 * t), "time 0"),
    "time of shape (1,)": (off(time=lambda t: t[None]), r"a time of shape \(\).*\(1,\)"),
    "stopped": (lambda v, *x: matching(lambda *y: sg(v(*y)), *x), "no gradient reaches"),
    "NaN at the fit": (
        off(reduce=lambda e: jnp.linalg.norm(e) ** 2 / e.size), "not finite where v fits"
    ),
    "numpy": (with_numpy, "use jax.numpy"),
    "integer": (lambda *x: matching(*x).astype(int), "expected floats"),
    "branches on the time": (
        lambda v, s, a, x_0, t: matching(v, s, a, x_0, t) if t > 0.5 else matching(v, s, a, x_0, t),
        "jnp.where",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MATCHINGS)
def test_wrong_matchings_are_told_what_is_wrong(name):
    wrong, said = WRONG_MATCHINGS[name]
    with pytest.raises(Wrong, match=f"(?s){said}"):
        check_flow_matching(wrong)


# ---------------------------------------------------------------- the Euler integral


def library_euler(v, s, z, N):
    return flow_actor.euler(Wrapped(v, s.shape[0]), s, z, N)


def euler(v, s, z, N):
    x = z
    for k in range(N):
        x = x + v(s, x, k / N) / N
    return clip(x)


def euler_by_fori_loop(v, s, z, N):
    step = lambda k, x: x + v(s, x, k / N) / N
    return jnp.minimum(jnp.maximum(jax.lax.fori_loop(0, N, step, z), -1.0), 1.0)


def euler_by_while_loop(v, s, z, N):
    step = lambda at: (at[0] + 1, at[1] + v(s, at[1], at[0] / N) / N)
    return clip(jax.lax.while_loop(lambda at: at[0] < N, step, (0, z))[1])


def euler_by_linspace(v, s, z, N):
    x, h = z, 1 / N
    for t in jnp.linspace(0, 1, N, endpoint=False):
        x = x + h * v(s, x, t)
    return jnp.where(x > 1, 1.0, jnp.where(x < -1, -1.0, x)).astype(z.dtype)


def euler_by_recursion(v, s, z, N, k=0):
    return clip(z) if k == N else euler_by_recursion(v, s, z + v(s, z, k / N) / N, N, k + 1)


def euler_adding_up_times(v, s, z, N):
    x, t = z, 0
    for _ in range(N):
        x, t = x + v(s, x, t) / N, t + 1 / N
    return clip(x)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("right", [library_euler, euler])
def test_right_integrals_pass(right, strict):
    passes(check_euler, right, strict)


@pytest.mark.parametrize(
    "right",
    [
        euler_by_fori_loop,
        euler_by_while_loop,
        euler_by_linspace,
        euler_by_recursion,
        euler_adding_up_times,
    ],
)
def test_integrals_in_other_styles_pass(right):
    check_euler(right)


@pytest.mark.parametrize("right", [library_euler, euler, euler_by_fori_loop])
def test_integrals_pass_in_float64(x64, right):
    check_euler(right)


def stepping(
    times=lambda N: np.arange(N) / N, step=lambda N: 1 / N, start=lambda z: z, way=lambda x: x,
    end=clip
):  # fmt: skip
    """Euler's rule with one place that can be made wrong."""

    def euler(v, s, z, N):
        x = start(z)
        for t in times(N):
            x = way(x + v(s, x, float(t)) * step(N))
        return end(x)

    return euler


def counts_with_floats(v, s, z, N):
    x, t = z, 0.0
    while t < 1:
        x, t = x + v(s, x, t) / N, t + 1 / N
    return clip(x)


def float32_while(v, s, z, N):
    step = lambda at: (at[0] + 1 / N, at[1] + v(s, at[1], at[0]) / N)
    return clip(jax.lax.while_loop(lambda at: at[0] < 1, step, (jnp.float32(0), z))[1])


def always_from_z(v, s, z, N):
    return clip(z + sum(v(s, z, k / N) / N for k in range(N)))


def midpoint(v, s, z, N):
    x = z
    for k in range(N):
        x = x + v(s, x + v(s, x, k / N) / (2 * N), (k + 0.5) / N) / N
    return clip(x)


def only_the_first_row(v, s, z, N):
    x = np.asarray(z)
    for k in range(N):
        x = x + np.asarray(v(s, jnp.asarray(x), k / N)) / N
    return jnp.asarray(np.clip(x, -1, 1))


def ten_steps(v, s, z, N):
    return euler(v, s, z, 10)


def forgets_s(v, s, z, N):
    return euler(lambda s, x, t: v(0 * s, x, t), s, z, N)


WRONG_INTEGRALS = {
    "not a function": ("euler", "must be a function"),
    "not written": (not_written, "not written yet"),
    "no division": (stepping(step=lambda N: 1), "not divided by N"),
    "one step": (stepping(times=lambda N: [0.0], step=lambda N: 1), "one single step"),
    "one too few": (stepping(times=lambda N: np.arange(N - 1) / N), "one step too few"),
    "one too many": (stepping(times=lambda N: np.arange(N + 1) / N), "one step too many"),
    "subtracted": (stepping(step=lambda N: -1 / N), "velocity is subtracted"),
    "ends of steps": (stepping(times=lambda N: np.arange(1, N + 1) / N), "end of every step"),
    "middles": (stepping(times=lambda N: (np.arange(N) + 0.5) / N), "middle of every step"),
    "linspace": (stepping(times=lambda N: np.linspace(0, 1, N)), "linspace"),
    "backwards": (stepping(times=lambda N: 1 - np.arange(N) / N), "backwards|end of every step"),
    "backwards from 1 - 1/N": (stepping(times=lambda N: np.arange(N)[::-1] / N), "backwards"),
    "no time": (stepping(times=lambda N: np.zeros(N)), "time stands still"),
    "whole numbers": (stepping(times=np.arange), "number of the step"),
    "from 0": (stepping(start=lambda z: 0 * z), "start z is missing"),
    "always from z": (always_from_z, "in every step, not at the point that was reached"),
    "midpoint": (midpoint, "midpoint rule"),
    "all stopped": (
        lambda v, s, z, N: jax.lax.stop_gradient(euler(v, s, z, N)),
        "no gradient passes through the steps",
    ),
    "64 steps at most": (lambda v, s, z, N: euler(v, s, z, min(N, 64)), "N = 100"),
    "not clipped": (stepping(end=lambda x: x), "not clipped"),
    "tanh": (stepping(end=jnp.tanh), "tanh"),
    "start clipped": (stepping(start=clip), "start z is clipped"),
    "way clipped": (stepping(way=clip), "points on the way are clipped"),
    "both clipped": (stepping(start=clip, way=clip), "clipped; only the result is"),
    "floats": (counts_with_floats, "one step too many.*N = 10"),
    "float32": (float32_while, "one step too many.*N = 12"),
    "arange": (stepping(times=lambda N: np.arange(0, 1, 1 / N)), "one step too many.*N = 49"),
    "ten steps": (ten_steps, "values are wrong"),
    "without s": (forgets_s, "values are wrong"),
    "numpy": (only_the_first_row, "use jax.numpy"),
    "all points": (lambda *x: jnp.stack([euler(*x)] * 2), "wrong shape"),
}


@pytest.mark.parametrize("name", WRONG_INTEGRALS)
def test_wrong_integrals_are_told_what_is_wrong(name):
    wrong, said = WRONG_INTEGRALS[name]
    with pytest.raises(Wrong, match=f"(?s){said}"):
        check_euler(wrong)


# ---------------------------------------------------------------- the order

bends = lambda s, x, t: -x


def errors(integrate, N, v=bends, z=0.8, end=0.8 * np.exp(-1)):
    return [abs(float(integrate(v, jnp.zeros(1), jnp.full(1, z), int(n))[0]) - end) for n in N]


def fitted(N, **options):
    return lambda integrate: -np.polyfit(np.log(N), np.log(errors(integrate, N, **options)), 1)[0]


def halved(integrate):
    coarse, fine = errors(integrate, (16, 32))
    return float(np.log2(coarse / fine))


def in_numpy(integrate):
    """Plain floats, a field that depends on time too, and many steps."""
    v, end = lambda s, x, t: -2 * t * x, 0.9 * np.exp(-1)
    coarse, fine = (abs(integrate(v, None, 0.9, N) - end) for N in (100, 200))
    return np.log(coarse / fine) / np.log(2)


def against_many_steps(integrate):
    """The truth is the same integral with many steps."""
    v, s, z = lambda s, x, t: -x * (1 + t) / 2, jnp.zeros(1), jnp.full(1, 0.9)
    end = integrate(v, s, z, 1024)[0]
    coarse, fine = (jnp.abs(integrate(v, s, z, N)[0] - end) for N in (8, 16))
    return jnp.log2(coarse / fine)


def batched(integrate):
    z = jnp.linspace(-0.9, 0.9, 8)[:, None]
    act = lambda N: jax.jit(jax.vmap(lambda z: integrate(bends, jnp.zeros(1), z, N)))(z)
    coarse, fine = (jnp.mean(jnp.abs(act(N) - z * jnp.exp(-1))) for N in (10, 20))
    return jnp.log2(coarse / fine)


RIGHT_ORDERS = {
    "fitted": fitted((4, 8, 16, 32)),
    "halved": halved,
    "in NumPy": in_numpy,
    "against many steps": against_many_steps,
    "batched": batched,
}


@pytest.mark.parametrize("name", RIGHT_ORDERS)
def test_right_orders_pass(name):
    check_order(RIGHT_ORDERS[name])


@pytest.mark.parametrize("name", ["fitted", "batched"])
def test_orders_pass_in_float64(x64, name):
    check_order(RIGHT_ORDERS[name])


constant = dict(v=lambda s, x, t: 0 * x - 0.5, end=0.3)
only_time = dict(v=lambda s, x, t: 0 * x + t / 4, end=0.925)
outside = dict(v=lambda s, x, t: x, end=0.8 * np.e)
WRONG_ORDERS = {
    "not a function": (1.0, "must be a function"),
    "not written": (not_written, "not written yet"),
    "always 1": (lambda integrate: 1.0, "does not depend on the integrator"),
    "of its own Euler": (lambda integrate: halved(euler), "does not depend on the integrator"),
    "always 2": (lambda integrate: 2.0, "factor by which the error falls"),
    "slope": (lambda integrate: -halved(integrate), "sign is wrong"),
    "factor": (lambda integrate: 2 ** halved(integrate), "factor by which"),
    "natural logarithm": (lambda integrate: np.log(2) * halved(integrate), "natural logarithm"),
    "constant field": (fitted((4, 8, 16), **constant), "not finite|hardly|order is wrong|not fall"),
    "field of time alone": (fitted((4, 8, 16), **only_time), "not finite|order is wrong"),
    "outside": (fitted((4, 8, 16, 32), **outside), "does not fall with N.*inside"),
    "against itself": (fitted((1000, 2000, 4000)), "rounding"),
    "a list": (lambda integrate: [1.0], "gave list"),
    "1 or 2": (lambda integrate: 1.0 if errors(integrate, [8])[0] > 0.01 else 2.0, "order"),
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
@pytest.mark.filterwarnings("ignore")
def test_wrong_orders_are_told_what_is_wrong(name):
    wrong, said = WRONG_ORDERS[name]
    with pytest.raises(Wrong, match=f"(?s){said}"):
        check_order(wrong)


# ---------------------------------------------------------------- the exercise


def test_the_answer_of_the_book_passes():
    above, _, _ = (HERE / "answers" / "06_flow.py").read_text().partition("# %% Check")
    namespace = {}
    exec(compile(above, "06_flow.py", "exec"), namespace)
    check_flow_matching(namespace["flow_matching"])
    check_euler(namespace["euler"])
    check_order(namespace["order"])


def test_a_stub_is_told_that_it_is_one():
    file = HERE.parent / "walkthrough" / "exercises" / "06_flow.py"
    with pytest.raises(Wrong, match="flow_matching.*not written yet"):
        runpy.run_path(str(file))


def confused(examples):
    """Mistakes that have the same result in the example that first sees them, and mistakes that no
    example sees. `examples` are pairs of a right result and the results of mistakes."""
    seen, pairs = set(), []
    for right, known in examples:
        fresh = {said: x for said, x in known.items() if said not in seen}
        wrong = {said: x for said, x in fresh.items() if not np.allclose(x, right, atol=1e-3)}
        for one, other in itertools.combinations(wrong, 2):
            if np.allclose(wrong[one], wrong[other], atol=1e-3):
                pairs.append((one, other))
        seen |= set(wrong)
    return pairs, set(known) - seen


def test_no_two_mistakes_are_confused_and_all_are_seen():
    integrals = [
        (expected_euler(FIELDS[name], *rest), mistaken_integrals(FIELDS[name], *rest))
        for name, *rest in EULER
    ]
    clipped = [said for said in mistaken_integrals(FIELDS["v = 0"], [0], [0], 1) if "z" in said]
    pairs, unseen = confused(integrals)
    assert len(pairs) == 1 and set(pairs[0]) <= set(clipped) and not unseen
    matchings = [
        (expected_matching(FIELDS[name], *rest), mistaken_matchings(FIELDS[name], *rest))
        for name, *rest in MATCHING
    ]
    pairs, unseen = confused(matchings)
    # With v = 0 a reversed time shows in the target alone; with v = x, x_t is the velocity.
    first_words = [tuple(said.partition(":")[0].partition(" is ")[0] for said in x) for x in pairs]
    alike = [("the difference", "time runs backwards"), ("the point x_t", "the velocity")]
    assert first_words == alike and not unseen
