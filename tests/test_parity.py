"""The package computes what the loop reference computes, equation by equation, in float64.

Every axis has its own size, mostly primes, and no weight is 0 or 1, so that a swapped axis or a
forgotten term cannot pass. Tolerance EXACT for what both compute; SLOPE where the reference has
only finite differences of a directional derivative.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import reference as ref
from flax_names import critic_from_arrays

from tql import attention, loop
from tql.batch import Transition
from tql.config import ActorConfig, ControlConfig, CriticConfig, TQLConfig
from tql.critic import Critic
from tql.entropy_controller import (
    FixedPenalty,
    NoControl,
    SingleTemperature,
    TemperaturePerGroup,
    default_target,
)
from tql.flow_actor import Noise, actor_loss, velocity
from tql.layers import MLP, decayed
from tql.optimise import schedule, value_and_grad

BATCH, N_S, N_A, LAYERS, HEADS, D_HEAD, ENSEMBLE, HIDDEN = 17, 11, 2, 3, 5, 7, 4, (19, 23)
N, D_MODEL = 1 + N_S + N_A, HEADS * D_HEAD
TARGET = ((1.9, 1.7), (1.4, 2.2), (1.2, 0.7))
CONFIG = TQLConfig(
    task="cube-single-play-singletask-task1-v0",
    steps=8,
    warmup=2,
    discount=0.9,
    tau=0.05,
    critic_lr=1e-2,
    temperature_lr=3e-2,
    actor_lr=2e-2,
    weight_decay=0.05,
    critic=CriticConfig(d_model=D_MODEL, layers=LAYERS, heads=HEADS, ensemble=ENSEMBLE),
    actor=ActorConfig(hidden=HIDDEN, alpha_bc=10.0),
    control=ControlConfig(target=TARGET),
    updates_per_call=1,
)
EXACT = dict(rtol=1e-12, atol=1e-12)
SLOPE = dict(rtol=1e-7, atol=1e-8)

pytestmark = pytest.mark.usefixtures("x64")


# ------------------------------------------- the package's leaves under the reference's names


def critic_leaves(critic: Critic) -> ref.Params:
    """Also for what has a critic's structure: its gradients, its decay mask (as arrays of True and
    False)."""
    t = critic.tokenizer
    p = {"position_embedding": t.p, "value_token": t.v}
    for kind, w, b, e in (("state", t.w_s, t.b_s, t.e_s), ("action", t.w_a, t.b_a, t.e_a)):
        p |= {f"{kind}_projection/kernel": w[None], f"{kind}_projection/bias": b}
        p |= {f"{kind}_modality_embedding": e}
    maps, norms = {}, {"final_norm": critic.final_norm}
    for i, block in enumerate(critic.blocks):
        for name in ("query", "key", "value"):
            linear = getattr(block.attention, name)
            p[f"block{i}/{name}/kernel"] = linear.weight.T.reshape(D_MODEL, HEADS, D_HEAD)
            p[f"block{i}/{name}/bias"] = linear.bias.reshape(HEADS, D_HEAD)
        maps |= {f"block{i}/attn_out": block.attention.out, f"block{i}/mlp_in": block.mlp_in}
        maps |= {f"block{i}/mlp_out": block.mlp_out}
        norms |= {f"block{i}/attn_norm": block.attention_norm}
        norms |= {f"block{i}/mlp_norm": block.mlp_norm}
    for k, head in enumerate(critic.q_heads):
        maps |= {f"head{k}/hidden": head.hidden, f"head{k}/out": head.out}
    return as_numpy(p | kernels(maps) | scales(norms))


def mlp_leaves(mlp: MLP) -> ref.Params:
    maps = {f"layer{i}": layer for i, layer in enumerate(mlp.layers)}
    return as_numpy(kernels(maps) | scales({f"norm{i}": norm for i, norm in enumerate(mlp.norms)}))


def kernels(maps):
    biases = {f"{name}/bias": m.bias for name, m in maps.items()}
    return {f"{name}/kernel": m.weight.T for name, m in maps.items()} | biases


def scales(norms):
    biases = {f"{name}/bias": m.bias for name, m in norms.items()}
    return {f"{name}/scale": m.weight for name, m in norms.items()} | biases


def as_numpy(leaves):
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def agent_leaves(agent: loop.TQL) -> dict[str, ref.Params]:
    return {
        "critic": critic_leaves(agent.critic.model),
        "target_critic": critic_leaves(agent.target_critic),
        "flow": mlp_leaves(agent.actor.model.flow),
        "one_step": mlp_leaves(agent.actor.model.one_step),
        "temperature": {"log_alpha": np.asarray(agent.controller.model.log_alpha)},
    }


# --------------------------------------------------- one agent, one batch, one draw of noise


@pytest.fixture(scope="module")
def agent():
    """An agent whose every weight is drawn: no bias is 0, no scale 1, no two copies are equal."""
    rng = np.random.default_rng(7)

    def weights(leaf):
        if leaf.ndim == 2:
            return jnp.array(rng.normal(size=leaf.shape) / math.sqrt(leaf.shape[-1]))
        return jnp.array(rng.uniform(-1.5, 1.5, leaf.shape))

    def rest(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jr.key(0)
        # optax counts in int32, and JAX rounds quotients of int32 to float32.
        return jnp.zeros(leaf.shape, jnp.int64 if leaf.dtype == jnp.int32 else leaf.dtype)

    def fill(fill_leaf, model):
        is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.tree.map(lambda leaf: fill_leaf(leaf) if is_shape(leaf) else leaf, model)

    where = lambda a: (a.critic.model, a.target_critic, a.actor.model, a.controller.model)
    with jax.enable_x64(True):
        shapes = eqx.filter_eval_shape(loop.TQL.create, N_S, N_A, CONFIG)
        return fill(rest, eqx.tree_at(where, shapes, fill(weights, where(shapes))))


@pytest.fixture(scope="module")
def critic(agent):
    return agent.critic.model


@pytest.fixture(scope="module")
def actor(agent):
    return agent.actor.model


@pytest.fixture(scope="module")
def controller(agent):
    return agent.controller.model


@pytest.fixture(scope="module")
def p(agent):
    return agent_leaves(agent)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        return Transition(
            s=jnp.array(rng.normal(size=(BATCH, N_S))),
            a=jnp.array(rng.uniform(-1, 1, size=(BATCH, N_A))),
            r=jnp.array(rng.normal(size=BATCH) - 1),
            m=jnp.array(rng.integers(0, 2, size=BATCH).astype(float)),
            s_next=jnp.array(rng.normal(size=(BATCH, N_S))),
            a_next=jnp.array(rng.uniform(-1, 1, size=(BATCH, N_A))),
        )


@pytest.fixture(scope="module")
def noise():
    with jax.enable_x64(True):
        return draw(np.random.default_rng(1))


def draw(rng) -> Noise:
    next_action, x_0, z = (jnp.array(rng.normal(size=(BATCH, N_A))) for _ in range(3))
    return Noise(next_action=next_action, x_0=x_0, t=jnp.array(rng.uniform(size=BATCH)), z=z)


@pytest.fixture(scope="module")
def seen(p, batch):
    """The reference's critic at the batch's (s, a)."""
    return ref.critic_batch(p["critic"], np.asarray(batch.s), np.asarray(batch.a))


@eqx.filter_jit
def rows(function, *arguments):
    """`function` of every row of the arguments."""
    return jax.vmap(function)(*arguments)


# ---------------------------------------------------------------- the critic


def test_tokens(critic, p, batch):
    s, a = batch.s[0], batch.a[0]
    tokens = critic.tokenizer(s, a)
    assert tokens.shape == (N, D_MODEL)
    theirs = ref.tokens(p["critic"], np.asarray(s), np.asarray(a))
    np.testing.assert_allclose(tokens, theirs, **EXACT)


def test_attention(critic, p):
    x = np.random.default_rng(2).normal(size=(N, D_MODEL))
    out, logits = ref.attention(p["critic"], "block1", x)
    ours = critic.blocks[1].attention
    x = jnp.array(x)
    np.testing.assert_allclose(ours.logits(x, x), logits, **EXACT)
    np.testing.assert_allclose(ours.logits(x[3:5], x), logits[:, 3:5], **EXACT)
    np.testing.assert_allclose(ours.mix(jnp.array(logits), x), out, **EXACT)


def test_blocks(critic, p, batch):
    """The whole block, and the last block's two ways of computing row 0 only."""
    s, a = np.asarray(batch.s[0]), np.asarray(batch.a[0])
    one = ref.critic(p["critic"], s, a)
    x = jnp.array(ref.tokens(p["critic"], s, a))
    for layer, block in enumerate(critic.blocks):
        row, row_logits = block.first_row_all_logits(x)
        np.testing.assert_allclose(block.first_row(x), one.tokens_after_block[layer, 0], **EXACT)
        np.testing.assert_allclose(row, one.tokens_after_block[layer, 0], **EXACT)
        x, logits = block(x)
        np.testing.assert_allclose(x, one.tokens_after_block[layer], **EXACT)
        for l in (logits, row_logits):
            np.testing.assert_allclose(l, one.logits[layer], **EXACT)


def test_critic(critic, batch, seen):
    np.testing.assert_allclose(rows(critic, batch.s, batch.a), seen.q, **EXACT)
    q, logits = rows(critic.with_attention, batch.s, batch.a)
    assert logits.shape == (BATCH, LAYERS, HEADS, N, N) and q.shape == (BATCH, ENSEMBLE)
    np.testing.assert_allclose(q, seen.q, **EXACT)
    np.testing.assert_allclose(logits, seen.logits, **EXACT)


def test_critic_from_arrays(batch):
    """Weights that come as plain arrays: the names and layouts are the reference's own."""
    sizes = dict(n_s=N_S, n_a=N_A, d_model=D_MODEL, heads=HEADS, layers=LAYERS, ensemble=ENSEMBLE)
    p = ref.init_critic(np.random.default_rng(8), **sizes)
    q = ref.critic_batch(p, np.asarray(batch.s), np.asarray(batch.a)).q
    ours = critic_from_arrays(p, HEADS, N_S, LAYERS, ENSEMBLE)
    np.testing.assert_allclose(rows(ours, batch.s, batch.a), q, **EXACT)


def test_dq_da(critic, p, batch):
    states, actions = np.asarray(batch.s[:3]), np.asarray(batch.a[:3])
    q = lambda s: lambda a: ref.critic(p["critic"], s, a).q.mean()
    theirs = [ref.gradient(q(s), a) for s, a in zip(states, actions, strict=True)]
    ours = rows(jax.grad(lambda a, s: jnp.mean(critic(s, a))), actions, states)
    np.testing.assert_allclose(ours, theirs, **SLOPE)


class OverQueries(attention.AbstractAttention):
    """Softmax over queries instead of keys: every shape is right."""

    whole: attention.SoftmaxAttention
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def logits(self, queries, x):
        return self.whole.logits(queries, x)

    def mix(self, logits, x):
        return self.whole.mix(jax.nn.log_softmax(logits, axis=1), x)


def epsilon(block):
    arrays = lambda norm: (norm.weight, norm.bias)
    other = eqx.nn.LayerNorm(D_MODEL, eps=1e-5)
    other = eqx.tree_at(arrays, other, arrays(block.mlp_norm))
    return eqx.tree_at(lambda b: b.mlp_norm, block, other)


def query_for_key(block):
    where = lambda b: (b.attention.query, b.attention.key)
    return eqx.tree_at(where, block, where(block)[::-1])


def over_queries(block):
    return eqx.tree_at(lambda b: b.attention, block, OverQueries(block.attention, D_MODEL, HEADS))


BROKEN = [(epsilon, 1e-8), (query_for_key, 1e-2), (over_queries, 1e-2)]


@pytest.mark.parametrize(("broken", "deviation"), BROKEN)
def test_broken_block_is_seen(critic, batch, seen, broken, deviation):
    """One wrong detail in the first of three blocks moves Q by at least `deviation`; `test_critic`
    allows 1e-12."""
    broken_critic = eqx.tree_at(lambda c: c.blocks[0], critic, broken(critic.blocks[0]))
    q = rows(broken_critic, batch.s, batch.a)
    assert np.abs(q - seen.q).max() > deviation


# ---------------------------------------------------------------- entropy and its control


def test_row_entropy():
    """Also where a probability underflows, and at 1e4."""
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(2, N)) * [[3], [300]]
    for row in (*drawn, np.eye(N)[2] * 1e4, np.zeros(N) - 1e4):
        ours = attention.row_entropy(jnp.array(row))
        np.testing.assert_allclose(ours, ref.entropy_of_logits(row), **EXACT)
        np.testing.assert_allclose(ours, ref.entropy_of_weights(ref.softmax(row)), **EXACT)


def test_group_entropy(seen):
    ours = jax.vmap(jax.vmap(attention.group_entropy))(jnp.array(seen.logits))
    np.testing.assert_allclose(ours.mean(axis=0), ref.group_entropies(seen.logits), **EXACT)


def test_controllers(controller, seen):
    """Both losses and the gradient of the temperatures' own, for all four."""
    H, T = ref.group_entropies(seen.logits), np.array(TARGET)
    log_alpha = np.asarray(controller.log_alpha)
    single = eqx.tree_at(lambda c: c.log_alpha, SingleTemperature(TARGET, N), jnp.array(0.3))
    alphas = [
        (controller, np.exp(log_alpha)),
        (single, np.full((LAYERS, 2), math.exp(0.3))),
        (FixedPenalty(TARGET, N), np.ones((LAYERS, 2))),
        (NoControl(TARGET, N), np.zeros((LAYERS, 2))),
    ]
    for one, alpha in alphas:
        np.testing.assert_allclose(one.alpha(), alpha, **EXACT)
        ours = one.attention_loss(jnp.array(H)), one.temperature_loss(jnp.array(H))
        theirs = ref.attention_loss(alpha, H), ref.temperature_loss(alpha, H, T)
        np.testing.assert_allclose(ours, theirs, **EXACT)

    def gradient(controller):
        _, grads = value_and_grad(loop.temperature_loss)(controller, jnp.array(H))
        return grads.log_alpha

    theirs = ref.temperature_gradient(np.exp(log_alpha), H, T)
    np.testing.assert_allclose(gradient(controller), theirs, **EXACT)
    of_one = ref.temperature_gradient(np.full((LAYERS, 2), math.exp(0.3)), H, T).sum()
    np.testing.assert_allclose(gradient(single), of_one, **EXACT)
    np.testing.assert_array_equal(TemperaturePerGroup(TARGET, N).alpha(), np.ones((LAYERS, 2)))


def test_default_target():
    theirs = ref.default_target(N_S, N_A, LAYERS)
    np.testing.assert_allclose(default_target(N, LAYERS), theirs, **EXACT)


# ---------------------------------------------------------------- the actor


def test_actor(actor, p, batch, noise):
    """Velocity, policy, the Euler integral, and the clipped actions; some are outside [-1, 1]
    before the clip."""
    states, z = np.asarray(batch.s), np.asarray(noise.z)
    t = np.asarray(noise.t)
    pairs = list(zip(states, z, strict=True))
    v = [ref.actor(p["flow"], s, x, t[b : b + 1]) for b, (s, x) in enumerate(pairs)]
    ours = rows(partial(velocity, actor.flow), batch.s, noise.z, noise.t)
    np.testing.assert_allclose(ours, v, **EXACT)
    mu = np.array([ref.actor(p["one_step"], s, x) for s, x in zip(states, z, strict=True)])
    assert 0.1 < np.mean(np.abs(mu) > 1) < 0.9
    np.testing.assert_allclose(rows(actor.mu, batch.s, noise.z), mu, **EXACT)
    acts = ref.next_actions(p["one_step"], states, z)
    np.testing.assert_allclose(rows(actor.act, batch.s, noise.z), acts, **EXACT)
    next_acts = rows(actor.next_action, batch.s, batch.a_next, noise.z)
    np.testing.assert_allclose(next_acts, acts, **EXACT)
    flow = np.array([ref.flow_action(p["flow"], s, x) for s, x in zip(states, z, strict=True)])
    assert 0.1 < np.mean(np.abs(flow) == 1) < 0.9
    np.testing.assert_allclose(rows(actor.behaviour, batch.s, noise.z), flow, **EXACT)


# ---------------------------------------------------------------- losses and their gradients


def td_target(p, batch, noise):
    next_states = np.asarray(batch.s_next)
    a_next = ref.next_actions(p["one_step"], next_states, np.asarray(noise.next_action))
    next_q = ref.critic_batch(p["target_critic"], next_states, a_next).q
    return ref.td_targets(np.asarray(batch.r), np.asarray(batch.m), next_q, CONFIG.discount)


def teacher(p, batch, noise):
    pairs = zip(np.asarray(batch.s), np.asarray(noise.z), strict=True)
    return np.array([ref.flow_action(p["flow"], s, z) for s, z in pairs])


def critic_loss(critic: ref.Params, alpha, y, batch) -> float:
    seen = ref.critic_batch(critic, np.asarray(batch.s), np.asarray(batch.a))
    return ref.td_loss(seen.q, y) + ref.attention_loss(alpha, ref.group_entropies(seen.logits))


def flow_loss(flow: ref.Params, batch, noise) -> float:
    states, actions = np.asarray(batch.s), np.asarray(batch.a)
    return ref.flow_matching_loss(flow, states, actions, np.asarray(noise.x_0), np.asarray(noise.t))


def one_step_loss(one_step: ref.Params, critic: ref.Params, taught, batch, noise) -> float:
    states, z = np.asarray(batch.s), np.asarray(noise.z)
    distillation = ref.distillation_loss(one_step, states, z, taught)
    return CONFIG.actor.alpha_bc * distillation + ref.actor_q_loss(one_step, critic, states, z)


@eqx.filter_jit
def gradients(agent, batch, noise):
    """The package's losses with the gradients of what each of them moves."""
    critic, actor, controller = agent.critic.model, agent.actor.model, agent.controller.model
    held = (agent.target_critic, actor, controller, batch, noise, CONFIG.discount)
    of_critic = value_and_grad(loop.critic_loss)(critic, *held)
    of_actor = value_and_grad(actor_loss)(actor, critic, batch, noise, CONFIG.actor.alpha_bc)
    return of_critic, of_actor


def assert_slopes(loss, params, grads, rng):
    for _ in range(3):
        unit = lambda g: rng.normal(size=g.shape) / math.sqrt(g.size)
        direction = {name: unit(g) for name, g in grads.items()}
        ours = sum(np.sum(g * direction[name]) for name, g in grads.items())
        np.testing.assert_allclose(ours, ref.slope(loss, params, direction), **SLOPE)


def test_critic_loss(agent, p, batch, noise, seen):
    ((loss, (H, metrics)), grads), _ = gradients(agent, batch, noise)
    alpha, y = np.exp(p["temperature"]["log_alpha"]), td_target(p, batch, noise)
    np.testing.assert_allclose(H, ref.group_entropies(seen.logits), **EXACT)
    np.testing.assert_allclose(metrics["td_loss"], ref.td_loss(seen.q, y), **EXACT)
    theirs = ref.attention_loss(alpha, ref.group_entropies(seen.logits))
    np.testing.assert_allclose(metrics["attention_loss"], theirs, **EXACT)
    np.testing.assert_allclose(metrics["target_mean"], y.mean(), **EXACT)
    np.testing.assert_allclose(loss, critic_loss(p["critic"], alpha, y, batch), **EXACT)
    of_critic = lambda c: critic_loss(c, alpha, y, batch)
    assert_slopes(of_critic, p["critic"], critic_leaves(grads), np.random.default_rng(4))


def test_actor_loss(agent, p, batch, noise):
    _, ((loss, metrics), grads) = gradients(agent, batch, noise)
    taught, states, z = teacher(p, batch, noise), np.asarray(batch.s), np.asarray(noise.z)
    flow = flow_loss(p["flow"], batch, noise)
    policy = lambda m: one_step_loss(m, p["critic"], taught, batch, noise)
    parts = {
        "flow_loss": flow,
        "distillation_loss": ref.distillation_loss(p["one_step"], states, z, taught),
        "actor_q": -ref.actor_q_loss(p["one_step"], p["critic"], states, z),
    }
    for name, theirs in parts.items():
        np.testing.assert_allclose(metrics[name], theirs, **EXACT, err_msg=name)
    np.testing.assert_allclose(loss, flow + policy(p["one_step"]), **EXACT)
    rng = np.random.default_rng(5)
    assert_slopes(lambda f: flow_loss(f, batch, noise), p["flow"], mlp_leaves(grads.flow), rng)
    assert_slopes(policy, p["one_step"], mlp_leaves(grads.one_step), rng)


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize("peak", [1e-4, 5e-4])
def test_schedule(peak):
    """Paper's length, at every corner and in between."""
    config = TQLConfig(task=CONFIG.task)
    ours, end = schedule(peak, config), 990_000
    for made in (0, 1, 9_999, 10_000, 10_001, 500_000, end - 1, end, end + 1, 999_999):
        theirs = ref.learning_rate(made, peak, config.warmup, config.steps)
        np.testing.assert_allclose(ours(jnp.array(made)), theirs, rtol=1e-12, err_msg=str(made))


def test_decay_mask(actor, critic):
    def marked(leaves):
        assert all(mask.all() or not mask.any() for mask in leaves.values())
        return {name for name, mask in leaves.items() if mask.all()}

    def fill(model):
        arrays = eqx.filter(model, eqx.is_array)
        return jax.tree.map(jnp.full_like, arrays, decayed(arrays))

    assert marked(critic_leaves(fill(critic))) == ref.critic_decayed(LAYERS, ENSEMBLE)
    for mlp in (actor.flow, actor.one_step):
        assert marked(mlp_leaves(fill(mlp))) == ref.actor_decayed(len(HIDDEN))


def test_eight_updates(agent, p, batch):
    """Warm-up, peak, cosine and flat end; new noise every time. The reference's AdamW and Polyak
    get the package's gradients."""
    rng = np.random.default_rng(6)
    rates = {"critic": CONFIG.critic_lr, "temperature": CONFIG.temperature_lr}
    rates |= dict.fromkeys(("flow", "one_step"), CONFIG.actor_lr)
    decay = {"critic": ref.critic_decayed(LAYERS, ENSEMBLE), "temperature": set()}
    decay |= dict.fromkeys(("flow", "one_step"), ref.actor_decayed(len(HIDDEN)))
    state, target = {name: ref.adam_start(p[name]) for name in rates}, p["target_critic"]
    update = eqx.filter_jit(loop.TQL.update_with_noise)
    for made in range(8):
        noise = draw(rng)
        (((_, (H, _)), critic), ((_, _), actor)) = gradients(agent, batch, noise)
        alpha = np.exp(state["temperature"].params["log_alpha"])
        of_log_alpha = ref.temperature_gradient(alpha, np.asarray(H), np.array(TARGET))
        grads = {
            "critic": critic_leaves(critic),
            "flow": mlp_leaves(actor.flow),
            "one_step": mlp_leaves(actor.one_step),
            "temperature": {"log_alpha": of_log_alpha},
        }
        target = ref.polyak(target, state["critic"].params, CONFIG.tau)
        for name, peak in rates.items():
            rate = ref.learning_rate(made, peak, CONFIG.warmup, CONFIG.steps)
            how = (rate, CONFIG.weight_decay, decay[name])
            state[name] = ref.adamw_step(state[name], grads[name], *how)
        with jax.numpy_dtype_promotion("standard"):  # optax takes a float to an integer power
            agent, _ = update(agent, batch, noise)
        assert int(agent.step) == made + 1
        theirs = {name: s.params for name, s in state.items()} | {"target_critic": target}
        for network, ours in agent_leaves(agent).items():
            for name, leaf in ours.items():
                # Looser than EXACT for the key biases: their gradient is round-off, which Adam
                # divides by its own size.
                close = dict(rtol=1e-10, atol=1e-10, err_msg=f"{network}/{name}, update {made}")
                np.testing.assert_allclose(leaf, theirs[network][name], **close)


# ---------------------------------------------------------------- the start, and the rest


def test_initial_weights():
    """Spreads of the paper's initialisation (Flax's): 4 standard errors of each leaf, and the cut
    of the normal."""
    sizes = dict(critic=CriticConfig(d_model=128, heads=4), actor=ActorConfig(hidden=(128, 128)))
    agent = loop.TQL.create(37, 5, TQLConfig(task=CONFIG.task, **sizes))
    for critic in (agent.critic.model, agent.target_critic):
        for block in critic.blocks:
            of = block.attention
            for linear in (of.query, of.key, of.value, of.out, block.mlp_in, block.mlp_out):
                std, limit = ref.lecun_normal_std(linear.d_in), ref.lecun_normal_limit(linear.d_in)
                assert_spread(linear.weight, std, limit)
                assert not linear.bias.any()
        t = critic.tokenizer
        for w in (t.w_s, t.w_a):
            assert_spread(w, ref.lecun_normal_std(1), ref.lecun_normal_limit(1))
        for embedding in (t.p, t.v, t.e_s, t.e_a):
            assert_spread(embedding, 0.02, math.inf)
    for mlp in (agent.actor.model.flow, agent.actor.model.one_step):
        for linear in mlp.layers:
            std = ref.glorot_uniform_std(linear.d_in, linear.d_out)
            assert_spread(linear.weight, std, math.sqrt(3) * std)
            assert not linear.bias.any()
    same = jax.tree.map(jnp.array_equal, agent.critic.model, agent.target_critic)
    assert all(jax.tree.leaves(same))


def assert_spread(leaf, std, limit):
    leaf = np.asarray(leaf)
    assert np.sqrt(np.mean(leaf**2)) == pytest.approx(std, rel=4 / math.sqrt(2 * leaf.size))
    assert np.abs(leaf).max() <= limit


PUBLISHED_SIZES = [
    *((37, 5, 128, 419_714), (37, 5, 256, 1_658_626), (37, 5, 512, 6_594_050)),
    *((37, 5, 1024, 26_295_298), (40, 5, 128, 420_098), (46, 5, 256, 1_660_930)),
    *((55, 5, 512, 6_603_266), (83, 5, 1024, 26_342_402)),
]


@pytest.mark.parametrize(("n_s", "n_a", "d_model", "count"), PUBLISHED_SIZES)
def test_parameter_count(n_s, n_a, d_model, count):
    make = lambda key: Critic(n_s, n_a, d_model=d_model, key=key)
    leaves = jax.tree.leaves(eqx.filter_eval_shape(make, jr.key(0)))
    assert sum(leaf.size for leaf in leaves) == ref.parameter_count(n_s, n_a, d_model) == count
