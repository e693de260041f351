"""PAC's projection and support by hand, and a decision process whose distributions of values are
known. Its losses and updates are held by golden numbers (test_golden_rivals.py)."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tql.baselines import pac
from tql.baselines.pac import PAC, project
from tql.batch import Transition
from tql.training.chunk import train_chunk

N_S, N_A = 3, 2
TASK = "cube-single-play-singletask-task1-v0"
SIZES = dict(d_model=32, latents=3, latent_blocks=1, v_min=-5.0, hidden=(7,), flow_steps=2)
RATES = dict(critic_lr=3e-3, actor_lr=1e-2, weight_decay=0.3, warmup=1, alpha_bc=0.1)
EVERY = dict(batch_size=13, discount=0.5, tau=0.1, steps=2000, updates_per_call=1)
CONFIG = replace(pac.paper(TASK), **SIZES, **RATES, **EVERY)


@pytest.mark.parametrize(
    "r, gamma, expected", [(-1.0, 0.99, [0.296, 0.301, 0.403, 0]), (0.0, 0.0, [0, 0, 0, 1])]
)
def test_golden_projection(x64, r, gamma, expected):
    p, z = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([-3.0, -2, -1, 0])
    np.testing.assert_allclose(project(p, z, jnp.array(r), jnp.array(gamma)), expected, atol=1e-12)


def loop_project(p, v_min, r, gamma):
    """Every p_i to the index below where it lands and to the one above, by distance."""
    target = np.zeros(len(p))
    for i in range(len(p)):
        b = min(max(r + gamma * (v_min + i), v_min), 0.0) - v_min
        lower = int(np.floor(b))
        target[lower] += p[i] * (1 - (b - lower))
        target[min(lower + 1, len(p) - 1)] += p[i] * (b - lower)
    return target / sum(target)


@pytest.mark.parametrize("r", [0.0, -0.3, -2.0, -4.7, -16.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_the_projection_is_that_of_a_loop(x64, r, gamma):
    p, z = np.random.default_rng(3).dirichlet(np.ones(8)), np.arange(-7.0, 1)
    found = project(jnp.asarray(p), jnp.asarray(z), jnp.array(r), jnp.array(gamma))
    np.testing.assert_allclose(found, loop_project(p, -7, r, gamma), atol=1e-12)
    if r + gamma * -7 >= -7:  # nothing is cut off: the mean is that of r + gamma z
        np.testing.assert_allclose(found @ z, r + gamma * (p @ z), atol=1e-12)
    if r == -16:
        np.testing.assert_allclose(found, np.eye(8)[0], atol=1e-12)


def test_distributions_of_a_chain():
    """s0 (reward -2) to s1 (-1) to s2, solved (0, mask 0), from which the data go on to s0. At
    discount .5 Q is -2.5, -1, 0. The last two are values of the support, and -2.5 lies half way
    between two."""
    rng, which = np.random.default_rng(17), np.arange(60) % 3
    one_hot, f = np.eye(3), lambda x: jnp.asarray(x, jnp.float32)
    a, after = f(rng.uniform(-1, 1, (60, N_A))), one_hot[(which + 1) % 3]
    r, m = np.array([-2.0, -1, 0])[which], np.array([1.0, 1, 0])[which]
    data = Transition(f(one_hot[which]), a, f(r), f(m), f(after), a)
    agent = PAC.create(N_S, N_A, CONFIG)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            agent, _ = train_chunk((data, 150), agent)
    # Values -5, -4, -3, -2, -1, 0.
    distributions = [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]
    for s, Q, p in zip(f(one_hot), (-2.5, -1, 0), distributions):
        a, critic = jnp.array([0.1, -0.3]), agent.critic.model
        np.testing.assert_allclose(critic(s, a)[0], Q, atol=0.15)
        np.testing.assert_allclose(jax.nn.softmax(critic.logits(s, a)), p, atol=0.15)


@pytest.mark.parametrize("d_model, heads", [(80, 2), (160, 5), (320, 10), (640, 20)])
def test_heads_of_the_scaling_study(d_model, heads):
    config = replace(pac.paper("cube-double-play-singletask-task2-v0"), d_model=d_model)
    critic = eqx.filter_eval_shape(lambda: PAC.create(N_S, N_A, config)).critic.model
    blocks = critic.encode, critic.decode, *critic.latent_blocks
    assert {block.attention.heads for block in blocks} == {heads}
    assert critic.out.weight.shape == (201, d_model // 2)


@pytest.mark.parametrize("v_min", [0.0, 3.0, -2.5])
def test_settings_that_cannot_be_are_refused(v_min):
    with pytest.raises(ValueError, match="v_min is .* whole number below 0"):
        replace(CONFIG, v_min=v_min)
    with pytest.raises(ValueError, match="d_model is 97; it must be a multiple of 3"):
        replace(CONFIG, d_model=97)


SMALLEST = {"cube-single": -100, "cube-double": -200, "cube-triple": -300}
SMALLEST |= {"scene": -500, "puzzle-3x3": -900, "puzzle-4x4": -1600}


@pytest.mark.parametrize("domain", SMALLEST)
def test_the_whole_range_ends_at_the_return_of_failing_for_ever(domain):
    task = f"{domain}-play-singletask-task4-v0"
    whole = PAC.presets["paper-whole-range"](task)
    assert whole == replace(pac.paper(task), v_min=float(SMALLEST[domain]))
    assert whole.v_min <= pac.paper(task).v_min
