"""The examples of the two READMEs, run as a reader runs them."""

import re
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tql.batch import Transition
from tql.config import ActorConfig, ControlConfig, CriticConfig
from tql.loop import TQL
from tql.presets import PRESETS
from tql.training.methods import method_class, new_agent

pytestmark = pytest.mark.usefixtures("optax_promotion")

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = re.compile(r"### [^\n]*`--(\S+) mine\.py:(\w+)`\n(.*?)```python\n(.*?)```", re.DOTALL)
EXAMPLES = EXAMPLE.findall((REPOSITORY / "tql" / "README.md").read_text())
TASK = "cube-single-noisy-singletask-task3-v0"
N_S, N_A, BATCH = 7, 3, 5


def batch(key) -> Transition:
    k_s, k_a, k_next = jr.split(key, 3)
    s, s_next = jr.normal(k_s, (BATCH, N_S)), jr.normal(k_next, (BATCH, N_S))
    a = jr.uniform(k_a, (BATCH, N_A), minval=-1, maxval=1)
    return Transition(s, a, -jnp.ones(BATCH), jnp.ones(BATCH), s_next, a)


def settings(option: str, name: str):
    """Small settings in which one component is the reader's."""
    if option == "method":
        return replace(method_class(name).presets["pocket"](TASK), method=name)
    parts = {
        "critic": CriticConfig(d_model=32),
        "actor": ActorConfig(hidden=(11,), flow_steps=2),
        "control": ControlConfig(),
    }
    part, _, field = option.partition(".")
    parts[part] = replace(parts[part], **{field: name})
    return replace(PRESETS["pocket"](TASK), **parts)


def test_there_is_an_example_of_every_part():
    options = [option for option, *_ in EXAMPLES]
    components = ["critic.tokenizer", "critic.attention", "critic.block", "control.kind"]
    assert options == [*components, "actor.kind", "method"]


@pytest.mark.parametrize("option, name, _text, code", EXAMPLES, ids=lambda x: x.split("\n")[0])
def test_an_example_makes_an_update(option, name, _text, code, tmp_path, getkey):
    file = tmp_path / "mine.py"
    file.write_text(code)
    agent = new_agent(N_S, N_A, settings(option, f"{file}:{name}"))
    after, metrics = eqx.filter_jit(agent.update)(batch(getkey()), getkey())
    assert int(after.step) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert isinstance(agent, TQL) == (option != "method")
    a = after.policy("policy")(jnp.zeros(N_S), getkey())
    assert a.shape == (N_A,) and np.all(np.abs(a) <= 1)


def test_the_readmes_lines_are_python():
    text = (REPOSITORY / "README.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "README.md", "exec")
