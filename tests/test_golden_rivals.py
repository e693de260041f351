"""Eight rivals against the code that their numbers come from: three updates, every draw of noise
given.

`golden/rivals.npz` was written by the published code, none of its lines changed: IQL, IFQL, FQL and
ReBRAC of seohongpark/fql (719d0441), FBRAC of chongyi-zheng/value-flows (01833354), floq and PAC of
khhung-906/floq (8ed15b53), the Q-Transformer of atombot972-svg/rlca (19154ac1). Initial parameters
(targets apart from what they follow), batches and noise are the file's; no weight is 0 or 1. Every
test has a counterpart in which one formula is changed, which the comparison must notice.
"""

import re
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import GOLDEN

from tql import flow_actor
from tql.baselines import fbrac, floq, fql, ifql, iql, pac, q_transformer, rebrac
from tql.batch import Transition
from tql.flow_actor import FlowActor, Noise, velocity

N_S, N_A, UPDATES = 7, 3, 3
PARAMETERS, NUMBERS = 2e-6, 3e-6
"""Tolerances. The file's float32 is within 4.5e-7 of float64."""

COMMON = dict(task="cube-single-play-singletask-task1-v0", hidden=(16, 13), batch_size=5)
ADAM = COMMON | dict(discount=0.97, tau=0.03, lr=1e-3)
FLOW = dict(flow_steps=5, critic_hidden=(16, 13), alpha_bc=3.0)
# With a warm-up of 1 and 5 steps the schedule ends at 4, as in the published code.
SCHEDULED = dict(discount=0.96875, tau=0.03125, weight_decay=0.05, warmup=1, steps=5)
EVERY = dict(updates_per_call=5, log_every=5, checkpoint_every=5, evaluate_every=5)
SIZES = dict(d_model=16, latents=5, latent_blocks=2, v_min=-22.0, flow_steps=5, alpha_bc=3.0)
VALUE_FLOW = dict(velocity_hidden=(16, 16), critic_flow_steps=4, copies=3, coverage=0.2)
# PAC's published code trains its actors at the critic's rate.
RATES = dict(critic_lr=1e-3, actor_lr=1e-3)
BINS = dict(lr=1e-3, d_model=32, layers=2, heads=2, bins=11)
TASK = dict(task=COMMON["task"], batch_size=5)

AGENTS = {
    "iql": (iql.IQL, iql.IQLConfig(**ADAM, kappa=0.9, alpha=3.0)),
    "ifql": (ifql.IFQL, ifql.IFQLConfig(**ADAM, kappa=0.7, flow_steps=5, candidates=11)),
    "fql": (fql.FQL, fql.FQLConfig(**ADAM, **FLOW)),
    "rebrac": (rebrac.ReBRAC, rebrac.ReBRACConfig(**ADAM, alpha_actor=0.7, alpha_critic=0.3)),
    "fbrac": (fbrac.FBRAC, fbrac.FBRACConfig(**ADAM, **FLOW)),
    "floq": (floq.Floq, floq.FloqConfig(**ADAM, **FLOW, **VALUE_FLOW)),
    "pac": (pac.PAC, pac.PACConfig(**COMMON, **SCHEDULED, **EVERY, **RATES, **SIZES)),
    "q_transformer": (
        q_transformer.QTransformer,
        q_transformer.QTransformerConfig(**TASK, **SCHEDULED, **EVERY, **BINS),
    ),
}

# Our path of an array, as regular expressions, and the file's name; all that match are applied.
CRITIC = {
    r"^critic\.model": "modules_critic/value_net",
    r"^target_critic": "modules_target_critic/value_net",
}
VALUE = {r"^value\.model": "modules_value/value_net"}
MEAN = {
    r"^actor\.model": "modules_actor",
    r"^target_actor": "modules_target_actor",
    r"\.net\.layers\[2\]": "/mean_net",
    r"\.net": "/actor_net",
}
FLOW_ACTOR = {
    r"^actor\.model\.flow": "modules_actor_bc_flow/mlp",
    r"^actor\.model\.one_step": "modules_actor_onestep_flow/mlp",
}
FLOW_ALONE = {r"^flow\.model": "modules_actor_flow/mlp"}
PERCEIVER = {
    r"^critic\.model": "modules_ac",
    r"^target_critic": "modules_target_ac",
    r"\.state_map": "/backbone/obs_tok/obs_token_proj",
    r"\.positions": "/backbone/obs_tok/obs_pos",
    r"ac\.latents": "ac/backbone/perceiver/latents",
    r"\.latent_norm": "/backbone/perceiver/latent_final_ln",
    r"\.latent_blocks\[(\d)\]": r"/backbone/perceiver/latent_block_\1",
    r"\.encode": "/backbone/perceiver/enc_xattn",
    r"\.decode": "/q_decode_xattn",
    r"\.action_map": "/action_query/action_token_proj",
    r"\.action_query": "/action_query/action_query_proj",
    r"ac\.query_norm": "ac/action_query/action_query_ln",
    r"ac\.out_norm": "ac/q_rep_ln",
    r"ac\.hidden": "ac/q_head_h",
    r"ac\.out\b": "ac/q_head_out",
    r"\.attention\.(\w+)": r"/\1",
    r"\.attention_norm": "/attn_ln",
    r"\.query_norm": "/q_ln",
    r"\.context_norm": "/kv_ln",
    r"\.mlp_norm": "/mlp_ln",
    r"\.mlp_in": "/mlp_fc1",
    r"\.mlp_out": "/mlp_fc2",
}
BINNED = {
    r"^net\.model": "modules_critic",
    r"^target_net": "modules_target_critic",
    r"\.state_map": "/obs_proj",
    r"\.start": "/head/start_token",
    r"\.embeddings": "/head/action_in_embed",
    r"\.positions": "/head/pos_embed",
    r"\.final_norm": "/head/final_ln",
    r"\.U": "/head/action_out_embed",
    r"\.c$": "/head/action_out_bias",
    r"\.blocks\[(\d)\]": r"/head/block_\1",
    r"\.attention_norm": "/LayerNorm_0",
    r"\.mlp_norm": "/LayerNorm_1",
    r"\.mlp_in": "/Dense_0",
    r"\.mlp_out": "/Dense_1",
    r"\.attention\.inner\.inner\.(q|k)\w+\.norm": r"/SelfAttention_0/\1_norm",
    r"\.attention\.inner\.inner\.(\w+)(\.inner)?": r"/SelfAttention_0/\1",
}
PSI = {r"^psi\.model": "modules_floq/mlp", r"^target_psi": "modules_target_floq/mlp"}
LAYERS = {r"\.layers\[(\d)\]": r"/Dense_\1", r"\.norms\[(\d)\]": r"/LayerNorm_\1"}
NAMES = {
    "iql": VALUE | CRITIC | MEAN | LAYERS,
    "ifql": VALUE | CRITIC | FLOW_ALONE | LAYERS,
    "fql": CRITIC | FLOW_ACTOR | LAYERS,
    "rebrac": CRITIC | MEAN | LAYERS,
    "fbrac": CRITIC | FLOW_ALONE | LAYERS,
    "floq": CRITIC | PSI | FLOW_ACTOR | LAYERS,
    "pac": PERCEIVER | FLOW_ACTOR | LAYERS,
    "q_transformer": BINNED,
}

# Our metric and the file's.
OF_Q = {"td_loss": "loss/critic/critic_loss"}
OF_VALUE = {"value_loss": "loss/value/value_loss", "v_mean": "metric/value/v_mean"}
OF_ACTOR = {
    "flow_loss": "loss/actor/bc_flow_loss",
    "distillation_loss": "loss/actor/distill_loss",
    "actor_q": "metric/actor/q",
}
METRICS = {
    "iql": OF_Q | OF_VALUE | {"actor_loss": "loss/actor/actor_loss"},
    "ifql": OF_Q | OF_VALUE | {"flow_loss": "loss/actor/actor_loss"},
    "fql": OF_Q | OF_ACTOR,
    "rebrac": OF_Q | {"actor_objective": "loss/actor/total_loss"},
    "fbrac": OF_Q | {"flow_loss": "loss/actor/bc_flow_loss", "actor_q": "metric/actor/q"},
    "floq": OF_ACTOR
    | {
        "velocity_loss": "loss/critic/floq_loss",
        "critic_loss": "loss/critic/distilled_critic_loss",
    },
    "pac": OF_ACTOR
    | {"cross_entropy_loss": "loss/critic/critic_loss", "q_mean": "metric/critic/q_mean"},
    "q_transformer": {
        "td_loss": "loss/critic/td_loss",
        "conservative_loss": "loss/critic/conservative_loss",
        "q_mean": "metric/critic/q_pred_mean",
    },
}


@cache
def golden(method: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "rivals.npz", allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith(f"{method}/")]
        return {name.partition("/")[2]: file[name] for name in names}


def path_of(path) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def arrays_of(agent):
    """Every array of the networks, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(agent, eqx.is_inexact_array))
    of_network = lambda path: re.match(r"target_|\w+\.model", path_of(path))
    return {path_of(path): leaf for path, leaf in leaves if of_network(path)}


def name_in_file(method: str, path: str) -> tuple[str, tuple[int, ...]]:
    """The file's name of the array at `path`, and the member of an ensemble, its first axis."""
    member = tuple(int(k) for k in re.findall(r"\.members\[(\d)\]", path))
    path = re.sub(r"\.members\[\d\]", "", path)
    for ours, theirs in NAMES[method].items():
        path = re.sub(ours, theirs, path)
    is_norm = re.search(r"LayerNorm|_ln|_norm", path)
    return path.replace(".weight", "/scale" if is_norm else "/kernel").replace(".", "/"), member


def from_file(method: str, k: int, path: str, like) -> np.ndarray:
    """The array after k updates, in our layout: a matrix is (out, in), heads are side by side."""
    name, member = name_in_file(method, path)
    array = golden(method)[f"params{k}/{name}"][member]
    if name.endswith("kernel"):
        array = array.reshape(like.shape[::-1] if like.ndim == 2 else like.shape).T
    return array.reshape(like.shape)


def start(method: str):
    """An agent with the file's initial parameters."""
    cls, config = AGENTS[method]
    agent = cls.create(N_S, N_A, config)
    ours = arrays_of(agent)

    def replaced(path, leaf):
        path = path_of(path)
        return jnp.asarray(from_file(method, 0, path, leaf)) if path in ours else leaf

    agent = jax.tree_util.tree_map_with_path(replaced, agent)
    if method == "floq":
        agent = replace(agent, r_low=jnp.array(-1.0), r_high=jnp.array(0.0))
    if method == "q_transformer":
        ends = (
            golden(method)[f"config/action_{end}"].astype(np.float32) for end in ("low", "high")
        )
        rewards = jnp.array(-1.0), jnp.array(0.0)
        extremes = q_transformer.DataStatistics(*rewards, *(jnp.asarray(end) for end in ends))
        agent = replace(agent, statistics=extremes)
    return agent


def batch_of(method: str, k: int) -> Transition:
    x = lambda name: jnp.asarray(golden(method)[f"batch/{name}"][k])
    a_next = x("next_actions") if method == "rebrac" else jnp.zeros((5, N_A))
    names = ("observations", "actions", "rewards", "masks", "next_observations")
    columns = [x(name) for name in names]
    if method != "q_transformer":
        return Transition(*columns, a_next)
    G = (x("mc_returns") + 32) / 32  # rewards -1 to 0 at a discount of 1 - 1/32
    return q_transformer.TransitionAndReturn(*columns, G, x("terminals"))


def noise_of(method: str, k: int) -> tuple:
    """What `update_with_noise` gets besides the batch."""
    x = lambda name: jnp.asarray(golden(method)[f"noise/{name}"][k])
    unused = jnp.zeros((5, N_A))
    flow = lambda a_next, z: Noise(a_next, x("flow_x0"), x("flow_t")[:, 0], z)
    match method:
        case "iql" | "q_transformer":
            return ()
        case "rebrac":
            return (x("next_action"),)
        case "ifql":
            return (flow(unused, unused),)
        case "fbrac":
            return (flow(x("next_action"), x("flow_action")),)
        case "floq":
            low = golden(method)["config/noise_min"].astype(np.float32)  # the largest is 0
            starts = (low * (1 - x(name)) for name in ("z_next", "z"))
            copies = floq.FloqNoise(x("next_action"), *starts, x("t"))
            return copies, flow(unused, x("one_step"))
    return (flow(x("next_action"), x("one_step")),)


def run(method: str):
    """The agents before and after every update, and the metrics of the updates."""

    @eqx.filter_jit
    def update(agent, batch, noise):
        if noise:
            return agent.update_with_noise(batch, *noise)
        return agent.update(batch, jr.key(0))

    agents, history = [start(method)], []
    with jax.numpy_dtype_promotion("standard"):
        for k in range(UPDATES):
            agent, metrics = update(agents[-1], batch_of(method, k), noise_of(method, k))
            agents.append(agent)
            history.append(metrics)
    return agents, history


def excluded(method: str, path: str) -> bool:
    """PAC's key biases have an exact gradient of 0, whose rounding Adam scales up to whole steps;
    and the published code decays its position vectors, which we do not."""
    return method == "pac" and path.endswith(("key.bias", "positions"))


def compare(method: str, agents, history) -> None:
    for k in range(UPDATES):
        for name, theirs in METRICS[method].items():
            expected = golden(method)[theirs][k]
            if not np.isnan(expected):  # the published update did not compute it
                error = f"{name} in update {k + 1}"
                np.testing.assert_allclose(
                    history[k][name], expected, NUMBERS, NUMBERS, err_msg=error
                )
        for path, ours in arrays_of(agents[k + 1]).items():
            if not excluded(method, path):
                expected = from_file(method, k + 1, path, ours)
                error = f"{path} after update {k + 1}"
                np.testing.assert_allclose(ours, expected, 0, PARAMETERS, err_msg=error)


ACTIONS = {
    "ifql": lambda a, s, z: ifql.best_of(a.flow.model, a.critic.model, s, z, 5),
    "fbrac": lambda a, s, z: flow_actor.euler(a.flow.model, s, z, 5),
    **dict.fromkeys(("fql", "floq", "pac"), lambda a, s, z: a.actor.model.act(s, z)),
    **dict.fromkeys(("iql", "rebrac"), lambda a, s, z: a.policy("policy")(s, jr.key(0))),
}


@pytest.mark.parametrize("method", AGENTS)
def test_three_updates_are_those_of_the_published_code(method):
    agents, history = run(method)
    names = {name_in_file(method, path)[0] for path in arrays_of(agents[0])}
    of_file = {name[8:] for name in golden(method) if name.startswith("params0/")}
    assert names == of_file, "every array of the file is used"
    compare(method, agents, history)

    s = jnp.asarray(golden(method)["act/observations"])
    if method == "q_transformer":
        for k in (0, 3):
            actions = jax.vmap(lambda s: agents[k].policy("policy")(s, jr.key(0)))(s)
            np.testing.assert_allclose(actions, golden(method)[f"act/greedy{k}"], 0, NUMBERS)
    else:
        z = jnp.asarray(golden(method).get("act/noise", s))
        actions = jax.vmap(lambda s, z: ACTIONS[method](agents[-1], s, z))(s, z)
        np.testing.assert_allclose(actions, golden(method)["act/actions"], 0, NUMBERS)


def late_euler(v, s, z, N):
    """At the times 1/N, ..., 1."""
    for i in range(N):
        z = z + velocity(v, s, z, jnp.array((i + 1) / N, jnp.float32)) / N
    return jnp.clip(z, -1, 1)


def to_the_lower_value(p, z, r, gamma):
    Tz = jnp.floor(jnp.clip(r + gamma * z, z[0], z[-1]))
    return jnp.sum(p[:, None] * (Tz[:, None] == z[None]).astype(p.dtype), axis=0)


def without_the_cut(row, best_next, data, gamma, mc_mode):
    return data.reward(row.r, gamma) + gamma * row.m * best_next


MUTANTS = {
    "iql": (iql, "LARGEST_WEIGHT", np.inf),
    "ifql": (iql, "expectile_loss", lambda u, kappa: jnp.where(u >= 0, kappa, 1 - kappa) * abs(u)),
    "fql": (FlowActor, "act", lambda actor, s, z: actor.mu(s, z)),
    "rebrac": (rebrac, "NOISE_CLIP", 10.0),
    "fbrac": (fbrac, "euler", late_euler),
    "floq": (floq, "SIGMA_IN_BINS", 15.0),
    "pac": (pac, "project", to_the_lower_value),
    "q_transformer": (q_transformer, "last_target", without_the_cut),
}


@pytest.mark.parametrize("method", MUTANTS)
def test_one_changed_formula_is_noticed(method, monkeypatch):
    monkeypatch.setattr(*MUTANTS[method])
    with pytest.raises(AssertionError, match="in update|after update"):
        compare(method, *run(method))
