"""The runs behind the figures: `PRESETS` gives, by preset, the settings of every run by its name.

    cpu            66 small runs: widths, ablations, agents, one change at a time, other blocks
    collapse       agents of three widths, and what causes the collapse: their first 4,000 updates
    scaling        success against width, with control and without: the plan is `scaling.md`
    online         agents that go on in the environment, with resets and without: `online.md`
    pocket         the benchmark: all methods on two tasks, three seeds; on one also larger critics
    search         other values of the setting that says how far a method may leave the dataset
    tuning         the same settings in steps of 1.5, two seeds each, on a task that is not scored
    known-levels   four rivals on a task whose published level is known
    gpu            the paper's four critics on cube-double, the first 30,000 updates, for one GPU
    paper          the paper's four critics on its 25 tasks, for a cluster
    methods-gpu    all methods at the paper's scale on cube-double and scene, one seed
    methods-paper  all methods at the paper's scale on its 25 tasks, eight seeds

A run of a benchmark is called TASK/LABEL-seedK, where LABEL is METHOD, METHOD-CHANGE or
METHOD@SIZE."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tql.analysis.online_study import OnlinePhase
from tql.analysis.study import unchanged
from tql.batch import Transition
from tql.config import AbstractConfig, TQLConfig
from tql.presets import PAPER_TARGETS, SIZES, cpu_flow, cpu_sarsa
from tql.presets import paper as paper_settings
from tql.presets import pocket as pocket_settings
from tql.training.methods import METHODS, method_class
from tql.training.online_config import OnlineConfig
from tql.variants.returns import regression_to_returns

Runs = dict[str, AbstractConfig | OnlinePhase]

SEEDS = (0, 1, 2)
SCALING_SEEDS = (100, 101, 102, 103, 104, 105)
ONLINE_SEEDS = (200, 201, 202)
ONLINE_STEPS, RESET_EVERY = 15_000, 5000
COLLAPSE_TASK = "cube-single-play-singletask-task2-v0"
AGENT_TASK = "cube-single-noisy-singletask-task3-v0"
POCKET_TASKS = (AGENT_TASK, "cube-single-noisy-singletask-task2-v0")
SEARCH_SEED = 10
SEARCHED = {
    "iql": ("alpha", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "rebrac": ("alpha_actor", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "fbrac": ("alpha_bc", (3.0, 10.0, 30.0, 100.0)),
    "ifql": ("candidates", (8, 32, 128)),
    "fql": ("alpha_bc", (3.0, 10.0, 30.0)),
    "floq": ("alpha_bc", (3.0, 10.0, 30.0)),
    "pac": ("alpha_bc", (3.0, 10.0, 30.0)),
    "tql": ("actor.alpha_bc", (3.0, 10.0, 30.0)),
}
"""By method, the setting that says how far it may leave the dataset, and the values tried. With a
larger one it stays closer, but for IQL and IFQL. BC has none; the Q-Transformer's is fixed."""
TUNING_TASK = "cube-single-noisy-singletask-task4-v0"
TUNING_SEEDS = (10, 11)
TUNED = {
    "rebrac": (0.02, 0.03, 0.045, 0.07, 0.1, 0.15),
    "iql": (0.45, 0.67, 1.0, 1.5, 2.2),
    "fql": (4.5, 6.7, 10.0, 15.0, 22.0),
    "floq": (6.7, 10.0, 15.0, 22.0, 33.0),
    "fbrac": (4.5, 6.7, 10.0, 15.0, 22.0),
    "pac": (4.5, 6.7, 10.0, 15.0, 22.0),
    "tql": (4.5, 6.7, 10.0, 15.0, 22.0),
    "ifql": (8, 12, 18, 27, 40),
}
"""Values of the same settings in steps of about 1.5 around the best of the search, because the
window in which a value works can be narrower than a step of the search (ReBRAC's was).

The rule was fixed before the first of these runs: a method gets the value for which the mean over
the value itself and its neighbours, over both seeds, is highest, so that one lucky run does not
decide. The benchmark then scores it on other tasks and seeds."""


def with_critic(config: TQLConfig, control: str, seed: int, **critic) -> TQLConfig:
    """TQL's settings with another control, seed and critic (`d_model=64`); the target stays."""
    control = replace(config.control, kind=control)
    return replace(config, seed=seed, critic=replace(config.critic, **critic), control=control)


def cpu() -> Runs:
    """Critics of three widths on the dataset's own next actions (sarsa), without control and with
    it; agents; and one change at a time to a critic without control. Every name is
    STUDY-CONTROL-WIDTH-seedK."""
    sarsa, flow = cpu_sarsa(COLLAPSE_TASK), cpu_flow(COLLAPSE_TASK)
    agent = replace(pocket_settings(AGENT_TASK), evaluate_every=18_000)
    long = dict(steps=4000, evaluate_every=4000, checkpoint_every=1000)
    studies = {f"sarsa-{control}-{d}": sarsa for control in ("none", "tql") for d in (32, 64, 128)}
    studies |= {f"sarsa-{control}-128": sarsa for control in ("fixed", "single")}
    studies |= {f"flow-{control}-64": replace(flow, episodes=0) for control in ("none", "tql")}
    studies |= {f"agent-{control}-32": agent for control in ("none", "tql")}
    studies |= {f"returns-none-{d}": sarsa for d in (32, 128)}
    studies |= {
        "slow-none-128": replace(sarsa, critic_lr=sarsa.critic_lr / 4),
        "fast-none-32": replace(sarsa, critic_lr=sarsa.critic_lr * 4),
        "long-none-32": replace(sarsa, **long),
    }
    runs = {}
    for study, config in studies.items():
        _, control, width = study.rsplit("-", 2)
        for seed in SEEDS:
            runs[f"{study}-seed{seed}"] = with_critic(config, control, seed, d_model=int(width))
    changes = {
        "qk-norm-none-128": dict(attention="qk-norm"),
        "sigma-reparam-none-128": dict(changes=("sigma-reparam",)),
        "modern-none-128": dict(
            attention="qk-norm", block="sandwich+swiglu", changes=("rms-norm",)
        ),
        "depth4-none-64": dict(layers=4),
        "depth4-tql-64": dict(layers=4),
    }
    for study, critic in changes.items():
        _, control, width = study.rsplit("-", 2)
        for seed in SEEDS:
            changed = with_critic(sarsa, control, seed, d_model=int(width), **critic)
            runs[f"{study}-seed{seed}"] = changed
    return runs


def collapse() -> Runs:
    """Whole agents of growing width with control and without, other controls, and at most one
    change at a time to an agent without control. `UNTIL` cuts them off. Every seed has a dataset of
    its own, and nobody acts. Every name is STUDY-CONTROL-WIDTH-seedK."""
    agent = replace(pocket_settings(AGENT_TASK), episodes=0, checkpoint_every=500)
    studies = {f"agent-{control}-{d}": agent for d in (32, 64, 128) for control in ("none", "tql")}
    studies |= {
        "slow-none-128": replace(agent, critic_lr=agent.critic_lr / 4),
        "fast-none-32": replace(agent, critic_lr=agent.critic_lr * 4),
        "returns-none-128": agent,
        "sarsa-none-128": replace(agent, actor=replace(agent.actor, kind="dataset")),
    }
    studies |= {f"agent-{control}-128": agent for control in ("fixed", "single")}
    studies |= {f"agent-{control}-256": agent for control in ("none", "tql")}
    runs = {}
    for study, config in studies.items():
        _, control, width = study.rsplit("-", 2)
        for seed in SEEDS:
            run = with_critic(config, control, seed, d_model=int(width))
            runs[f"{study}-seed{seed}"] = replace(run, dataset_seed=seed)
    return runs


def scaling() -> Runs:
    """Four widths with control and without, 36,000 updates, a dataset for every seed. The plan,
    `scaling.md`, was committed before the runs."""
    config, runs = pocket_settings(AGENT_TASK), {}
    config = replace(config, steps=36_000, checkpoint_every=6000)
    for seed in SCALING_SEEDS:
        for d_model in (128, 64, 32, 16):
            for control in ("none", "tql"):
                critic = dict(d_model=d_model, heads=max(1, d_model // 32))
                run = with_critic(config, control, seed, **critic)
                runs[f"scaling-{control}-{d_model}-seed{seed}"] = replace(run, dataset_seed=seed)
    return runs


def online() -> Runs:
    """Agents trained offline, called before-CONTROL-seedK, and what follows each of them online,
    online-CONTROL-xU-RESET-seedK: U updates a step, no reset or the critic's. Every seed has a
    dataset of its own. The plan, `online.md`, was committed before the runs."""
    config, runs = replace(pocket_settings(AGENT_TASK), evaluate_every=18_000), {}
    room = 1000 * config.dataset_episodes + ONLINE_STEPS
    how = OnlineConfig(ONLINE_STEPS, room, checkpoint_every=1000, evaluate_every=RESET_EVERY)
    for seed in ONLINE_SEEDS:
        offline = {
            f"before-{control}-seed{seed}": replace(
                with_critic(config, control, seed), dataset_seed=seed
            )
            for control in ("none", "tql")
        }
        runs |= offline
        for updates in (1, 4):
            for reset, every in (("never", 0), ("critic", RESET_EVERY)):
                for before, settings in offline.items():
                    own = replace(how, updates_per_step=updates, reset_every=every)
                    name = f"online-{settings.control.kind}-x{updates}-{reset}-seed{seed}"
                    runs[name] = OnlinePhase(before, settings, own)
    return runs


def change_of(name: str, config: AbstractConfig) -> Callable[[Transition], Transition]:
    """What is done to the training data of a run: regression to returns, if its name says so."""
    if name.startswith("returns-"):
        return partial(regression_to_returns, gamma=config.discount)
    return unchanged


def pocket() -> Runs:
    """All methods, TQL without control, and the Q-Transformer with a correct lower bound; on the
    first task also larger critics, whose label says the size."""
    runs = {}
    for task in POCKET_TASKS:
        for seed in SEEDS:
            of = {method: _settings(method, "pocket", task, seed) for method in METHODS}
            of["tql-none"] = with_critic(of["tql"], "none", seed)
            of["q-transformer-bound"] = replace(of["q-transformer"], mc_mode="lower_bound")
            if task == POCKET_TASKS[0]:
                of["tql@64"] = with_critic(of["tql"], "tql", seed, d_model=64)
                of["tql-none@64"] = with_critic(of["tql"], "none", seed, d_model=64)
                of["fql@512"] = replace(of["fql"], critic_hidden=(512, 512, 512))
                of["floq@256"] = replace(of["floq"], velocity_hidden=(256, 256))
                of["pac@64"] = replace(of["pac"], d_model=64)
            runs |= {f"{task}/{label}-seed{seed}": config for label, config in of.items()}
    return runs


def search() -> Runs:
    """One run per method and value, METHOD@VALUE, with a seed that `pocket` does not have."""
    runs = {}
    for method, (name, values) in SEARCHED.items():
        config = _settings(method, "pocket", POCKET_TASKS[0], SEARCH_SEED)
        for value in values:
            label = f"{POCKET_TASKS[0]}/{method}@{value:g}-seed{SEARCH_SEED}"
            runs[label] = _with_setting(config, name, value)
    return runs


def tuning() -> Runs:
    """One run per method, value and seed, METHOD@VALUE, each seed with a dataset of its own."""
    runs = {}
    for method, values in TUNED.items():
        for value in values:
            for seed in TUNING_SEEDS:
                config = _settings(method, "pocket", TUNING_TASK, seed)
                config = replace(config, dataset_seed=seed, evaluate_every=config.steps)
                label = f"{TUNING_TASK}/{method}@{value:g}-seed{seed}"
                runs[label] = _with_setting(config, SEARCHED[method][0], value)
    return runs


def known_levels() -> Runs:
    """Four rivals with the settings of `paper`, but for smaller networks and fewer data."""
    smaller = dict(steps=80_000, evaluate_every=20_000, dataset_episodes=300, hidden=(256,) * 3)
    runs = {}
    for method in ("bc", "iql", "rebrac", "fql"):
        own = dict(steps=120_000, critic_hidden=(256,) * 3) if method == "fql" else {}
        config = replace(_settings(method, "paper", COLLAPSE_TASK, 0), **(smaller | own))
        runs[f"{COLLAPSE_TASK}/{method}-seed0"] = config
    return runs


def gpu() -> Runs:
    """The paper's critics on cube-double task 2, without control and with it, the widest first.

    `UNTIL` cuts them off. Their schedules are those of 1,000,000 updates, so these are the first
    3 % of the paper's runs. They are not evaluated: the paper's success begins at 100,000
    updates."""
    runs = {}
    how = dict(episodes=0, updates_per_call=50, log_every=500, checkpoint_every=5000)
    for size, d_model in reversed(SIZES.items()):
        config = replace(paper_settings("cube-double-play-singletask-task2-v0", size), **how)
        for control in ("none", "tql"):
            name = f"cube-double-task2-{control}-{d_model}-seed0"
            runs[name] = with_critic(config, control, 0)
    return runs


def paper() -> Runs:
    """Five domains, five tasks, four sizes, without control and with it; the ablations at the
    largest size on cube-double."""
    runs = {}
    for domain in PAPER_TARGETS:
        for number in range(1, 6):
            task = f"{domain}-play-singletask-task{number}-v0"
            for size, d_model in SIZES.items():
                ablated = (domain, size) == ("cube-double", "26M")
                config = replace(paper_settings(task, size), updates_per_call=50)
                for control in ("none", "tql", "fixed", "single") if ablated else ("none", "tql"):
                    for seed in SEEDS:
                        name = f"{domain}-task{number}-{control}-{d_model}-seed{seed}"
                        runs[name] = with_critic(config, control, seed)
    return runs


def methods_at_paper_scale(domains: tuple[str, ...], seeds: int) -> Runs:
    """All methods on the five tasks of these domains; TQL at its largest size."""
    runs = {}
    for domain in domains:
        for number in range(1, 6):
            task = f"{domain}-play-singletask-task{number}-v0"
            for method in METHODS:
                preset = "paper-26M" if method == "tql" else "paper"
                for seed in range(seeds):
                    config = _settings(method, preset, task, seed)
                    runs[f"{task}/{method}-seed{seed}"] = replace(config, updates_per_call=50)
    return runs


def _with_setting(config: AbstractConfig, name: str, value: float) -> AbstractConfig:
    """The same settings but for one, whose name may have a dot (`actor.alpha_bc`)."""
    part, _, inner = name.partition(".")
    changed = replace(getattr(config, part), **{inner: value}) if inner else value
    return replace(config, **{part: changed})


def _settings(method: str, preset: str, task: str, seed: int) -> AbstractConfig:
    return replace(method_class(method).presets[preset](task), seed=seed)


PRESETS: dict[str, Callable[[], Runs]] = {
    "cpu": cpu,
    "collapse": collapse,
    "scaling": scaling,
    "online": online,
    "pocket": pocket,
    "search": search,
    "tuning": tuning,
    "known-levels": known_levels,
    "gpu": gpu,
    "paper": paper,
    "methods-gpu": partial(methods_at_paper_scale, ("cube-double", "scene"), 1),
    "methods-paper": partial(methods_at_paper_scale, tuple(PAPER_TARGETS), 8),
}

UNTIL = {"gpu": 30_000, "collapse": 4000}
"""Updates after which a preset's runs are cut off; they make all of theirs unless named here."""
