"""An agent that was trained offline goes on in the environment: after every environment step it
learns from a replay buffer that starts with the dataset.

This is the second phase of FQL's published code: one environment step with the newest agent, whose
policy is as random as in an evaluation, then updates on batches drawn uniformly from all
transitions. `tql/README.md` lists what differs.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from tqdm import tqdm

from tql.agent import AbstractAgent, Metrics
from tql.batch import Transition
from tql.config import AbstractConfig
from tql.ogbench.dataset import load_dataset
from tql.ogbench.environment import Environments
from tql.ogbench.evaluate import (
    Episode,
    act_on_wave,
    as_policy,
    episodes_of,
    recorded_episodes,
)
from tql.ogbench.tasks import Task
from tql.ogbench.workers import WorkerError
from tql.training.chunk import many_updates
from tql.training.methods import differences
from tql.training.online_config import Finetuning, OnlineConfig
from tql.training.replay import Replay
from tql.training.resets import check_reset, reset
from tql.training.run import (
    Interrupted,
    check_count,
    check_finite,
    check_start,
    dataset_of,
    evaluate_to,
    metrics_log,
    progress,
    record,
    stop_signals,
    warn_of_versions,
    write_line,
)
from tql.training.run_directory import (
    RunError,
    check_empty,
    check_files,
    forget_after,
    last_checkpoint,
    newest_state,
    read_settings,
    run_lock,
    save,
    saying_what_is_safe,
    trained_agent,
    write_settings,
)
from tql.training.snapshot import Snapshot, fresh_snapshot

LONGEST_EPISODE = 2000
"""No task of OGBench has longer ones. The buffer holds at least as many transitions, because the
actions of the episode that goes on are read from it."""


# ---- starting and continuing ---------------------------------------------------------------------


def start_online(
    run: Path, out: Path, options: dict[str, Any], dataset: Path | None = None
) -> tuple[Snapshot, Transition]:
    """The agent of the finished run `run` before its first environment step, and its data; makes
    the directory `out`. Nothing in `run` is changed.

    `options` are fields of `OnlineConfig`. Raises `RunError` or `ValueError` for a run that cannot
    go on, for settings that cannot be run, and if there is something in `out`; then nothing is
    written."""
    settings = read_settings(run)
    if settings.online:
        raise RunError(f"{run}: is an online phase itself; give the run that was trained offline.")
    if not settings.policies:
        raise RunError(
            f"{run}: trained a critic only (actor.kind = dataset): it has no policy to act with."
        )
    check_empty(out)
    config, agent = settings.config, trained_agent(run)
    if int(agent.step) < config.steps:
        raise RunError(
            f"{run}: has made {int(agent.step)} of its {config.steps} updates; finish it first "
            f"(tql train {config.task} --resume --out {run})."
        )
    dataset = dataset_of(run, settings, dataset)
    agent, data = _prepared(agent, dataset)
    online = _completed(options, config, len(data.r))
    if online.reset_every:
        check_reset(agent, online.reset)
    state = _first_state(agent, data, Finetuning(config, online))
    with saying_what_is_safe(out):
        out.mkdir(parents=True, exist_ok=True)
        with run_lock(out):
            check_empty(out)
            metrics = settings.metrics | {"environment_steps": ()}
            more = {"online": asdict(online), "trained_in": str(run.resolve())}
            write_settings(out, agent, dataset, metrics, more)
            _copy_episodes(run, out, state)
    return state, data


def resume_online(
    run: Path, out: Path, options: dict[str, Any], dataset: Path | None = None
) -> tuple[Snapshot, Transition]:
    """The newest usable checkpoint of the online phase in `out`, or its beginning if none was
    written, and its data.

    Raises `RunError` if `options` or the run differ from what it began with, and for what
    `resume_run` refuses in a run."""
    settings = read_settings(out)
    if not settings.online:
        raise RunError(f"{out}: is a run of train, not an online phase; choose another --out.")
    began = asdict(settings.online)
    found = [f"{x}: {y} instead of {began[x]}" for x, y in options.items() if y != began[x]]
    found += differences(read_settings(run).config, settings.config)
    if found:
        raise RunError(
            f"{out}: was started with other settings ({'; '.join(found)}); leave them out to "
            "resume, or start another online phase with another --out."
        )
    check_files(out, settings.files, settings.config)
    dataset = dataset_of(out, settings, dataset)
    warn_of_versions(out, settings.versions)
    with run_lock(out):
        state = newest_state(out, settings.whole)
        if state is None:
            agent, data = _prepared(trained_agent(run), dataset)
            state = _first_state(agent, data, settings.whole)
            _copy_episodes(run, out, state)
        else:
            _, data = _prepared(state.agent, dataset)
        forget_after(out, settings.whole, int(state.step))
    return state, data


def _completed(options: dict[str, Any], config: AbstractConfig, rows: int) -> OnlineConfig:
    """The settings, with defaults that depend on the run: its number of episodes, and a buffer that
    forgets nothing. Raises `ValueError` for a buffer that is too small."""
    least = max(rows, LONGEST_EPISODE)
    kept = max(rows + options["environment_steps"], LONGEST_EPISODE)
    online = OnlineConfig(**{"episodes": config.episodes, "buffer_size": kept} | options)
    if online.buffer_size < least:
        raise ValueError(
            f"buffer_size is {online.buffer_size}; it must be at least {least}, to hold the "
            f"{rows} transitions of the dataset and an episode."
        )
    return online


def _prepared(agent: AbstractAgent, dataset: Path) -> tuple[AbstractAgent, Transition]:
    """What the method makes of the dataset. Raises `RunError` for a method that trains on more than
    transitions, because the environment gives no more."""
    data, _ = load_dataset(Task.parse(agent.config.task), dataset)
    agent, data = agent.prepare(data)
    if type(data) is not Transition:
        raise RunError(
            f"{agent.config.method} trains on more than single transitions, and the environment "
            "gives it no more; choose a run of another method."
        )
    return agent, data


def _first_state(agent: AbstractAgent, data: Transition, config: Finetuning) -> Snapshot:
    state = fresh_snapshot(agent, config)
    ring = Replay.start(data, config.online.buffer_size)
    return replace(state, rows=ring.window(len(data.r), len(state.rows.r)))


def _copy_episodes(run: Path, out: Path, state: Snapshot) -> None:
    """The run's last evaluation is the first one of the online phase."""
    rows, step = recorded_episodes(run / "evaluation.jsonl"), int(state.step)
    for name in state.agent.policies:
        if episodes := episodes_of(rows, step, name)[: state.config.online.episodes]:
            record(out / "evaluation.jsonl", step, name, episodes)


# ---- acting --------------------------------------------------------------------------------------


def acting_key(seed: int) -> PRNGKeyArray:
    """The key of the actions' noise, beside the four of `seed_keys`."""
    return jr.fold_in(jr.key(seed), 4)


def acting_seed(seed: int, episode: int) -> int:
    """The seed of an episode that is learnt from. Evaluations, whose spawn keys have one number,
    share no episodes with it."""
    return int(np.random.SeedSequence(seed, spawn_key=(episode, 1)).generate_state(1)[0])


class Acting:
    """The environment that the agent acts in, one episode after the other."""

    def __init__(self, environments: Environments, seed: int, episode: int):
        self.environments, self.seed, self.key = environments, seed, acting_key(seed)
        self.begin(episode)

    def begin(self, episode: int) -> None:
        """Starts the episode of this number."""
        self.episode, self.length, self.total_reward = episode, 0, 0.0
        (self.s,) = self.environments.reset([acting_seed(self.seed, episode)])

    def act(self, agent: AbstractAgent) -> tuple[Transition, PRNGKeyArray, Episode | None]:
        """One environment step: its transition without a', the key for a', and the episode if it
        ended here; then the next one begins."""
        policy = as_policy(agent.policy(agent.policies[0]), self.key)
        (a,) = act_on_wave(policy, self.s[None], np.array([self.episode]), self.length, 1)
        s, number = self.s, self.episode
        r, ended, success = self.step(a)
        # OGBench ends an episode at once where it is solved, and else at its step limit.
        m = 0.0 if ended and success else 1.0
        row = [jnp.asarray(x, jnp.float32) for x in (s, a, r, m, self.s, np.zeros_like(a))]
        key = jr.fold_in(jr.fold_in(self.key, number), self.length)  # as `as_policy` derives it
        episode = None
        if ended:
            seed = acting_seed(self.seed, number)
            episode = Episode(seed, self.total_reward, self.length, success)
            self.begin(number + 1)
        return Transition(*row), key, episode

    def step(self, a: Float[np.ndarray, " n_a"]) -> tuple[float, bool, bool]:
        """Reward, whether the episode ended, and success."""
        one = np.ones(1, bool)
        (self.s,), (r,), (ended,), (success,) = self.environments.step(a[None], one)
        self.length, self.total_reward = self.length + 1, self.total_reward + float(r)
        return float(r), bool(ended), bool(success)


@contextmanager
def acting(state: Snapshot, replay: Replay, written: int, out: Path) -> Iterator[Acting]:
    """The environment where the snapshot left it: the episode is played again with the same
    actions, which are the last in the buffer. Raises `RunError` if that leads elsewhere."""
    task, seed = Task.parse(state.config.agent.task), state.config.agent.seed
    length = int(state.length)
    with Environments(task, size=1, workers=1) as environments:
        acting = Acting(environments, seed, int(state.episode))
        for a in np.asarray(replay.window(written - length, length).a):
            acting.step(a)
        if state.environment_steps and not np.array_equal(acting.s, state.s):
            raise RunError(
                f"{out}: the environment did not come back to where it was, {length} steps into "
                f"episode {acting.episode}; was another version of the simulator installed?"
            )
        yield acting


# ---- learning ------------------------------------------------------------------------------------


@eqx.filter_jit(donate="all-except-first")
def learn(
    step: tuple[Transition, PRNGKeyArray, int], agent: AbstractAgent, replay: Replay
) -> tuple[AbstractAgent, Replay, Metrics]:
    """Puts a transition into the buffer, then makes a number of updates on it. Agent and buffer are
    consumed.

    a' is what the policy does in s' before these updates, with the noise of the next environment
    step. Few methods look at it."""
    row, key, updates = step
    a_next = agent.policy(agent.policies[0])(row.s_next, key)
    replay = replay.add(replace(row, a_next=jnp.clip(a_next, -1, 1)))
    agent, metrics = many_updates(agent, replay, updates, Replay.draw)
    return agent, replay, metrics


def finetune(state: Snapshot, data: Transition, out: Path, *, workers: int) -> AbstractAgent:
    """Acts and learns until all environment steps are made, with metrics, episodes, checkpoints and
    evaluations on the way. Raises what `train` raises; signals are obeyed after every `log_every`
    environment steps."""
    online, agent = state.config.online, state.agent
    t, end, first = state.environment_steps, online.environment_steps, len(data.r)
    replay = Replay.start(data, online.buffer_size).with_window(first, state.rows, first + t)
    file = out / "evaluation.jsonl"
    with run_lock(out):
        check_start(state, out)
        log, bar = metrics_log(out), _bar(state)
        with stop_signals() as stop, acting(state, replay, first + t, out) as act, bar, log as log:
            while True:
                if online.episodes and (t % online.evaluate_every == 0 or t == end):
                    bar.clear()
                    how = dict(episodes=online.episodes, workers=workers, stop=stop)
                    evaluate_to(agent, file, **how)
                if t >= end:
                    return agent
                with _saying_what_stopped(stop, out):
                    agent, replay, line = _stretch(agent, replay, act, online, t, out, log)
                t += online.log_every
                check_count(agent, state.config.agent.steps + t * online.updates_per_step)
                bar.set_postfix_str(progress(agent, line), refresh=False)
                planned = (online.checkpoint_every, online.evaluate_every)
                if stop or t == end or any(t % every == 0 for every in planned):
                    save(out, _snapshot(agent, replay, act, state, first), log)
                if stop:
                    saved = f"stopped by {stop[0]} at environment step {t}; saved."
                    raise Interrupted(f"{saved} Go on with --resume.")
                bar.update(online.log_every)


def _stretch(
    agent: AbstractAgent, replay: Replay, acting: Acting, online: OnlineConfig, t: int, out: Path,
    log: Any,
) -> tuple[AbstractAgent, Replay, dict]:
    """The environment steps `t`, `t + 1`, ... up to the next line of metrics, which it writes and
    returns. A reset comes before the agent acts."""
    all_metrics, ended, before, updates = [], [], int(agent.step), online.updates_per_step
    for now in range(t, t + online.log_every):
        if online.reset_every and now and now % online.reset_every == 0:
            agent = reset(agent, online.reset, now)
        number = acting.episode
        row, key, episode = acting.act(agent)
        agent, replay, metrics = learn((row, key, updates), agent, replay)
        all_metrics.append(metrics)
        if episode:
            ended.append((before + (now + 1 - t) * updates, episode, number))
    metrics = jax.tree.map(lambda *x: np.concatenate(x), *all_metrics)
    check_finite(out, before, metrics)
    metrics = {"environment_steps": np.full(1, float(t + online.log_every))} | metrics
    line = write_line(log, out, before + online.log_every * updates, metrics, time.time())
    for step, episode, number in ended:
        record(out / "episodes.jsonl", step, agent.policies[0], [episode], number)
    return agent, replay, line


def _snapshot(
    agent: AbstractAgent, replay: Replay, acting: Acting, begun: Snapshot, first: int
) -> Snapshot:
    """Where agent, buffer and environment are now."""
    rows = replay.window(first, len(begun.rows.r))
    place = [jnp.asarray(x) for x in (acting.episode, acting.length, acting.s)]
    return Snapshot(agent, rows, *place, begun.config)


@contextmanager
def _saying_what_stopped(stop: Sequence[str], out: Path) -> Iterator[None]:
    """A signal to the whole process group ends the simulator too."""
    try:
        yield
    except WorkerError as error:
        if not stop:
            raise
        raise Interrupted(
            f"stopped by {stop[0]}; the last checkpoint is {last_checkpoint(out)}. Go on with "
            "--resume."
        ) from error


def _bar(state: Snapshot) -> tqdm:
    online = state.config.online
    options = dict(total=online.environment_steps, initial=state.environment_steps, unit="step")
    return tqdm(desc="finetune", **options, dynamic_ncols=True, smoothing=0.05)
