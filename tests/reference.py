"""Every equation of TQL once more: float64 NumPy, loops, no jax.

This is the independent route of the tests. It was written from descriptions of the equations, not
from `tql/`, and is meant to be read beside the paper: a loop over layers, heads, queries and keys
where the package has an einsum, a mean that is a loop and a division. `test_reference.py` holds it
against golden numbers, `test_parity.py` holds the package against it.

Parameters are plain dicts, name -> array, with kernels stored (input, output): y = x @ kernel +
bias. Names: `block0/query/kernel` (d_model, heads, d_head), `head1/out/bias`, ...; `init_critic`
lists them all. An actor is an MLP with `layer{i}/kernel|bias` and `norm{i}/scale|bias`. Sizes are
named as in `tql/`.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Params = dict[str, Array]

LAYER_NORM_EPS = 1e-6
ADAM_B1, ADAM_B2, ADAM_EPS = 0.9, 0.999, 1e-8
CRITIC_MAPS = ("query", "key", "value", "attn_out", "mlp_in", "mlp_out")


# ---------------------------------------------------------------- layers


def affine(p: Params, name: str, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def layer_norm(p: Params, name: str, x: Float[Array, " width"]) -> Float[Array, " width"]:
    """(x - mean) / sqrt(var + eps) * scale + bias, with the biased variance."""
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    x = (x - mean) / math.sqrt(variance + LAYER_NORM_EPS)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x: Float[Array, " width"]) -> Float[Array, " width"]:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Float[Array, " width"]) -> Float[Array, " width"]:
    return np.where(x > 0, x, 0.0)


def softmax(logits: Float[Array, " n"]) -> Float[Array, " n"]:
    weights = np.exp(logits - max(logits))
    return weights / sum(weights)


# ---------------------------------------------------------------- the critic


class Critic(NamedTuple):
    """What the critic computes for one (s, a)."""

    q: Float[Array, " ensemble"]
    logits: Float[Array, "layers heads n n"]  # query, key
    tokens_after_block: Float[Array, "layers n d_model"]  # before the final norm
    value_token: Float[Array, " d_model"]  # after the final norm


def count(p: Params, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are."""
    i = 0
    while pattern.format(i) in p:
        i += 1
    return i


def tokens(
    p: Params, s: Float[Array, " n_s"], a: Float[Array, " n_a"]
) -> Float[Array, "n d_model"]:
    """[VALUE], then the state scalars, then the action scalars. [VALUE] gets no embedding."""
    rows = [p["value_token"]]
    for kind, scalars in (("state", s), ("action", a)):
        for scalar in scalars:
            token = affine(p, f"{kind}_projection", np.array([scalar]))
            position = p["position_embedding"][len(rows) - 1]
            rows.append(token + p[f"{kind}_modality_embedding"] + position)
    return np.array(rows)


def logit_scale(d_model: int, heads: int) -> float:
    """1 / sqrt(d_head)."""
    return 1 / math.sqrt(d_model / heads)


def attention(
    p: Params, block: str, x: Float[Array, "n d_model"]
) -> tuple[Float[Array, "n d_model"], Float[Array, "heads n n"]]:
    """Every token attends to every token. Returns Out(concatenated heads) and the logits."""
    n, d_model = x.shape
    _, heads, d_head = p[f"{block}/query/kernel"].shape
    logits = np.zeros((heads, n, n))
    mixed = np.zeros((n, heads * d_head))
    for head in range(heads):

        def project(name: str, token: Float[Array, " d_model"]) -> Float[Array, " d_head"]:
            return token @ p[f"{block}/{name}/kernel"][:, head] + p[f"{block}/{name}/bias"][head]

        keys = [project("key", token) for token in x]
        values = [project("value", token) for token in x]
        for i in range(n):
            query = project("query", x[i])
            for j in range(n):
                logits[head, i, j] = query @ keys[j] * logit_scale(d_model, heads)
            weights = softmax(logits[head, i])
            for j in range(n):
                mixed[i, head * d_head : (head + 1) * d_head] += weights[j] * values[j]
    return np.array([affine(p, f"{block}/attn_out", row) for row in mixed]), logits


def critic(p: Params, s: Float[Array, " n_s"], a: Float[Array, " n_a"]) -> Critic:
    """Pre-norm blocks, final norm, and the [VALUE] token to `ensemble` separate ReLU heads."""
    x = tokens(p, s, a)
    all_logits, all_tokens = [], []
    for layer in range(count(p, "block{}/query/kernel")):
        block = f"block{layer}"
        normed = np.array([layer_norm(p, f"{block}/attn_norm", row) for row in x])
        attended, logits = attention(p, block, normed)
        x = x + attended
        for i, row in enumerate(x):
            hidden = gelu(affine(p, f"{block}/mlp_in", layer_norm(p, f"{block}/mlp_norm", row)))
            x[i] = row + affine(p, f"{block}/mlp_out", hidden)
        all_logits.append(logits)
        all_tokens.append(x.copy())
    value_token = layer_norm(p, "final_norm", x[0])
    q = [
        affine(p, f"head{k}/out", relu(affine(p, f"head{k}/hidden", value_token)))[0]
        for k in range(count(p, "head{}/out/kernel"))
    ]
    return Critic(np.array(q), np.array(all_logits), np.array(all_tokens), value_token)


def critic_batch(
    p: Params, states: Float[Array, "batch n_s"], actions: Float[Array, "batch n_a"]
) -> Critic:
    """`critic` for every row; all fields get a leading batch axis."""
    rows = [critic(p, s, a) for s, a in zip(states, actions, strict=True)]
    return Critic(*(np.array(field) for field in zip(*rows, strict=True)))


def parameter_count(n_s: int, n_a: int, d_model: int) -> int:
    """For two layers and two heads: 25 d^2 + (37 + n_s + n_a) d + 2."""
    return 25 * d_model**2 + (37 + n_s + n_a) * d_model + 2


# ---------------------------------------------------------------- attention entropy and its control


def entropy_of_weights(weights: Float[Array, " n"]) -> float:
    """-sum_j p_j log p_j in nats, with 0 log 0 = 0."""
    return -sum(p * math.log(p) for p in weights if p > 0)


def entropy_of_logits(logits: Float[Array, " n"]) -> float:
    """logsumexp(l) - sum_j p_j l_j: the same number, finite for any logits."""
    shifted = logits - max(logits)
    log_sum = math.log(sum(np.exp(shifted)))
    return log_sum - sum(p * l for p, l in zip(softmax(logits), shifted, strict=True))


def group_entropies(logits: Float[Array, "batch layers heads n n"]) -> Float[Array, "layers 2"]:
    """Means over batch and heads: column 0 the [VALUE] query, column 1 all other queries."""
    batch, layers, heads, n, _ = logits.shape
    H = np.zeros((layers, 2))
    for layer in range(layers):
        for b in range(batch):
            for head in range(heads):
                for query in range(n):
                    h = entropy_of_logits(logits[b, layer, head, query])
                    if query == 0:
                        H[layer, 0] += h / (batch * heads)
                    else:
                        H[layer, 1] += h / (batch * heads * (n - 1))
    return H


def attention_loss(temperature: Float[Array, "layers 2"], H: Float[Array, "layers 2"]) -> float:
    """mean(-alpha H). Constant alpha: the fixed penalty. All entries equal: the single
    temperature."""
    return sum(-t * h for t, h in zip(temperature.flat, H.flat, strict=True)) / H.size


def temperature_loss(
    temperature: Float[Array, "layers 2"],
    H: Float[Array, "layers 2"],
    target: Float[Array, "layers 2"],
) -> float:
    """mean(alpha (H - target))."""
    entries = zip(temperature.flat, H.flat, target.flat, strict=True)
    return sum(t * (h - g) for t, h, g in entries) / H.size


def temperature_gradient(
    temperature: Float[Array, "layers 2"],
    H: Float[Array, "layers 2"],
    target: Float[Array, "layers 2"],
) -> Float[Array, "layers 2"]:
    """d temperature_loss / d log alpha = alpha (H - target) / (2 layers), in closed form."""
    return temperature * (H - target) / (2 * len(H))


def default_target(n_s: int, n_a: int, layers: int) -> Float[Array, "layers 2"]:
    """0.8 ln(n), the last layer 0.5 lower."""
    target = np.full((layers, 2), 0.8 * math.log(1 + n_s + n_a))
    target[-1] -= 0.5
    return target


# ---------------------------------------------------------------- actor and losses


def actor(p: Params, *inputs: Float[Array, " _"]) -> Float[Array, " n_a"]:
    """MLP of the concatenated inputs: affine, GELU, LayerNorm, ..., affine. `flow` takes s, x, [t];
    `one_step` s, z."""
    x = np.concatenate(inputs)
    hidden = count(p, "norm{}/scale")
    for i in range(hidden):
        x = layer_norm(p, f"norm{i}", gelu(affine(p, f"layer{i}", x)))
    return affine(p, f"layer{hidden}", x)


def clip(a: Float[Array, " n_a"]) -> Float[Array, " n_a"]:
    return np.array([min(max(x, -1.0), 1.0) for x in a])


def next_actions(
    one_step: Params, next_states: Float[Array, "batch n_s"], z: Float[Array, "batch n_a"]
) -> Float[Array, "batch n_a"]:
    """a' = clip(mu(s', z))."""
    rows = zip(next_states, z, strict=True)
    return np.array([clip(actor(one_step, s, noise)) for s, noise in rows])


def td_targets(
    r: Float[Array, " batch"],
    m: Float[Array, " batch"],
    next_q: Float[Array, "batch K"],
    gamma: float,
) -> Float[Array, " batch"]:
    """y = r + gamma * m * mean_k Q_target_k(s', a')."""
    rows = zip(r, m, next_q, strict=True)
    return np.array([r + gamma * m * sum(q) / len(q) for r, m, q in rows])


def td_loss(q: Float[Array, "batch ensemble"], y: Float[Array, " batch"]) -> float:
    """Mean over batch and heads of (Q_k(s, a) - y)^2."""
    rows = zip(q, y, strict=True)
    return sum((q_k - target) ** 2 for heads, target in rows for q_k in heads) / q.size


def mean_squared(x: Float[Array, "batch n_a"], y: Float[Array, "batch n_a"]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / x.size


def flow_matching_loss(
    flow: Params,
    states: Float[Array, "batch n_s"],
    actions: Float[Array, "batch n_a"],
    x_0: Float[Array, "batch n_a"],
    t: Float[Array, " batch"],
) -> float:
    """x_t = (1 - t) x_0 + t a; mean over batch and action dimensions of |v(s, x_t, t) - (a -
    x_0)|^2."""
    velocity = []
    for b in range(len(states)):
        x_t = (1 - t[b]) * x_0[b] + t[b] * actions[b]
        velocity.append(actor(flow, states[b], x_t, t[b : b + 1]))
    return mean_squared(np.array(velocity), actions - x_0)


def flow_action(
    flow: Params, s: Float[Array, " n_s"], z: Float[Array, " n_a"], steps: int = 10
) -> Float[Array, " n_a"]:
    """Euler's method from x = z with t = i / steps, nothing clipped on the way; the end is
    clipped."""
    x = z
    for i in range(steps):
        x = x + actor(flow, s, x, np.array([i / steps])) / steps
    return clip(x)


def distillation_loss(
    one_step: Params,
    states: Float[Array, "batch n_s"],
    z: Float[Array, "batch n_a"],
    teacher: Float[Array, "batch n_a"],
) -> float:
    """Mean over batch and action dimensions of |mu(s, z) - teacher|^2; the student is not
    clipped."""
    student = [actor(one_step, s, noise) for s, noise in zip(states, z, strict=True)]
    return mean_squared(np.array(student), teacher)


def actor_q_loss(
    one_step: Params,
    critic_params: Params,
    states: Float[Array, "batch n_s"],
    z: Float[Array, "batch n_a"],
) -> float:
    """- mean over batch and heads of Q_k(s, clip(mu(s, z)))."""
    q = critic_batch(critic_params, states, next_actions(one_step, states, z)).q
    return -sum(q.flat) / q.size


# ---------------------------------------------------------------- optimiser


def critic_decayed(layers: int, ensemble: int) -> set[str]:
    """Weight decay touches these leaves of the critic and no others."""
    blocks = {f"block{i}/{name}/kernel" for i in range(layers) for name in CRITIC_MAPS}
    heads = range(ensemble)
    return blocks | {f"head{k}/{name}/kernel" for k in heads for name in ("hidden", "out")}


def actor_decayed(hidden_layers: int) -> set[str]:
    return {f"layer{i}/kernel" for i in range(hidden_layers + 1)}


def learning_rate(updates_made: int, peak: float, warmup: int, total: int) -> float:
    """1 % to 100 % in `warmup` updates, cosine to 10 %, flat. The cosine ends at total - warmup, as
    in the paper's code."""
    if updates_made < warmup:
        return peak * (0.01 + 0.99 * updates_made / warmup)
    progress = min((updates_made - warmup) / (total - 2 * warmup), 1.0)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


class Adam(NamedTuple):
    """One network under AdamW; `updates` is the number of steps made."""

    params: Params
    mean: Params
    square: Params
    updates: int


def adam_start(p: Params) -> Adam:
    zeros = {name: np.zeros(x.shape) for name, x in p.items()}
    return Adam(p, zeros, dict(zeros), 0)


def adamw_step(state: Adam, gradient: Params, rate: float, decay: float, decayed: set[str]) -> Adam:
    """p <- p - rate (m_hat / (sqrt(v_hat) + eps) + decay p), the last term for decayed leaves
    only."""
    step = state.updates + 1
    params, mean, square = {}, {}, {}
    for name, g in gradient.items():
        mean[name] = ADAM_B1 * state.mean[name] + (1 - ADAM_B1) * g
        square[name] = ADAM_B2 * state.square[name] + (1 - ADAM_B2) * g**2
        m_hat = mean[name] / (1 - ADAM_B1**step)
        v_hat = square[name] / (1 - ADAM_B2**step)
        change = m_hat / (np.sqrt(v_hat) + ADAM_EPS)
        if name in decayed:
            change = change + decay * state.params[name]
        params[name] = state.params[name] - rate * change
    return Adam(params, mean, square, step)


def polyak(target: Params, critic_before_update: Params, tau: float) -> Params:
    """target <- tau * critic + (1 - tau) * target, with the critic from *before* the update's
    optimiser step."""
    online = critic_before_update
    return {name: tau * online[name] + (1 - tau) * old for name, old in target.items()}


# ---------------------------------------------------------------- initialisation


def lecun_normal_std(fan_in: int) -> float:
    """Critic kernels. The two input maps have fan_in 1, hence standard deviation 1."""
    return math.sqrt(1 / fan_in)


def lecun_normal_limit(fan_in: int) -> float:
    """The largest possible entry: the normal is cut at 2 sigma and then widened to the standard
    deviation above."""
    normal = NormalDist()
    variance_after_cut = 1 - 2 * 2 * normal.pdf(2) / (normal.cdf(2) - normal.cdf(-2))
    return 2 * lecun_normal_std(fan_in) / math.sqrt(variance_after_cut)


def glorot_uniform_std(fan_in: int, fan_out: int) -> float:
    """Actor kernels; the uniform's limit is sqrt(3) times this."""
    return math.sqrt(2 / (fan_in + fan_out))


def init_critic(
    rng: np.random.Generator,
    *,
    n_s: int,
    n_a: int,
    d_model: int,
    heads: int,
    layers: int,
    ensemble: int,
) -> Params:
    """Every leaf of a critic by name, all drawn: no bias is 0 and no scale 1, so that no term can
    vanish in a test."""
    d, d_head = d_model, d_model // heads
    shapes = {f"{kind}_projection": (1, d) for kind in ("state", "action")}
    for i in range(layers):
        shapes |= {f"block{i}/{name}": (d, heads, d_head) for name in ("query", "key", "value")}
        shapes |= {
            f"block{i}/attn_out": (d, d),
            f"block{i}/mlp_in": (d, 4 * d),
            f"block{i}/mlp_out": (4 * d, d),
        }
    for k in range(ensemble):
        shapes |= {f"head{k}/hidden": (d, d // 2), f"head{k}/out": (d // 2, 1)}
    p = {}
    for name, shape in shapes.items():
        p[f"{name}/kernel"] = rng.normal(size=shape) * lecun_normal_std(shape[0])
        p[f"{name}/bias"] = rng.normal(size=shape[1:]) * 0.3
    p["position_embedding"] = rng.normal(size=(n_s + n_a, d)) * 0.5
    for name in ("state_modality_embedding", "action_modality_embedding", "value_token"):
        p[name] = rng.normal(size=d) * 0.5
    for name in ["final_norm"] + [
        f"block{i}/{norm}" for i in range(layers) for norm in ("attn_norm", "mlp_norm")
    ]:
        p[f"{name}/scale"] = rng.uniform(0.5, 1.5, size=d)
        p[f"{name}/bias"] = rng.normal(size=d) * 0.3
    return p


# ---------------------------------------------------------------- analysis


def roughness(grid: Float[Array, "rows columns"]) -> float:
    """Mean squared second difference along both axes, divided by the (biased) variance over the
    grid."""
    squares = []
    for lines in (grid, grid.T):
        for line in lines:
            for i in range(1, len(line) - 1):
                squares.append((line[i - 1] - 2 * line[i] + line[i + 1]) ** 2)
    mean = sum(grid.flat) / grid.size
    variance = sum((x - mean) ** 2 for x in grid.flat) / grid.size
    return sum(squares) / len(squares) / variance


def turning_points(line: Float[Array, " points"]) -> int:
    """How often the slope changes sign along a line; flat steps are skipped."""
    signs = [math.copysign(1, step) for step in np.diff(line) if step != 0]
    return sum(before != after for before, after in zip(signs[:-1], signs[1:], strict=True))


# ---------------------------------------------------------------- derivatives


def gradient(
    f: Callable[[Array], float], x: Float[Array, " n"], step: float = 1e-5
) -> Float[Array, " n"]:
    """Central differences, one coordinate at a time; good to about 1e-9 where f is smooth."""
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def slope(f: Callable[[Params], float], p: Params, direction: Params, step: float = 1e-5) -> float:
    """d/dh f(p + h * direction) at 0 by central differences: checks a gradient with many entries at
    once."""

    def moved(h: float) -> Params:
        return {
            name: value + h * direction[name] if name in direction else value
            for name, value in p.items()
        }

    return (f(moved(step)) - f(moved(-step))) / (2 * step)
