"""Components in a reader's own file: trained, evaluated and resumed by `file.py:Class`, and one
line for what cannot be trained, before a run directory is made."""

import json
from dataclasses import replace

import pytest
from conftest import MAZE, TINY_OPTIONS, tiny_settings
from test_main import command_line, is_one_line  # noqa: F401 (the fixture `tql`)

from tql.training.methods import (
    METHODS,
    as_json,
    component_files,
    config_from_dict,
    method_class,
    new_agent,
    with_absolute_paths,
)
from tql.training.run import resume_run, start_run, train
from tql.training.run_directory import read_settings

pytestmark = pytest.mark.usefixtures("optax_promotion", "no_simulator")

MINE = '''
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from tql.agent import AbstractAgent
from tql.attention import AbstractAttention, SoftmaxAttention
from tql.config import AbstractConfig
from tql.entropy_controller import AbstractEntropyController
from tql.layers import Linear, glorot_uniform
from tql.tokenizer import AbstractTokenizer


class Fourier(AbstractTokenizer):
    """Sines of every scalar."""

    w: jax.Array
    v: jax.Array
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)

    def __init__(self, n_s, n_a, d_model, *, key):
        self.w = jr.normal(key, (n_s + n_a, d_model))
        self.v, self.n_s, self.n_a, self.d_model = jnp.ones(d_model), n_s, n_a, d_model

    def __call__(self, s, a):
        x = jnp.sin(jnp.concatenate([s, a])[:, None] * self.w)
        return jnp.concatenate([self.v[None], x])


class Forgets(Fourier):
    """No [VALUE]."""

    def __call__(self, s, a):
        return Fourier.__call__(self, s, a)[1:]


class Raises(Fourier):
    def __call__(self, s, a):
        raise ValueError("my own mistake")


class Reads(Fourier):
    def __init__(self, n_s, n_a, d_model, *, key):
        open("/no/such/file")


class Another(AbstractTokenizer):
    n_s: int
    n_a: int
    d_model: int

    def __init__(self, width, *, key):
        pass

    def __call__(self, s, a):
        return s


class Sigmoid(AbstractAttention):
    inner: AbstractAttention
    d_model: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, d_model, heads, *, key):
        self.inner = SoftmaxAttention(d_model, heads, key=key)
        self.d_model, self.heads = d_model, heads

    def logits(self, queries, x):
        return jnp.log(jax.nn.sigmoid(self.inner.logits(queries, x)))

    def mix(self, logits, x):
        return self.inner.mix(logits, x)


class Annealed(AbstractEntropyController):
    target: tuple = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def alpha(self):
        return 0.5 * jnp.ones((len(self.target), 2))


class Nothing:
    pass


@dataclass(frozen=True)
class CloneConfig(AbstractConfig):
    width: int = 8
    """Width of the only matrix."""


class Clone(AbstractAgent):
    """Imitates with one matrix."""

    Config = CloneConfig
    presets = {"only": lambda task: CloneConfig(task, steps=10, updates_per_call=5, episodes=2,
               log_every=5, checkpoint_every=5, evaluate_every=10, batch_size=3)}
    net: Linear
    step: jax.Array
    key: jax.Array
    n_s: int = eqx.field(static=True)
    n_a: int = eqx.field(static=True)
    config: CloneConfig = eqx.field(static=True)

    @classmethod
    def create(cls, n_s, n_a, config):
        k_net, key = jr.split(jr.key(config.seed))
        net = Linear(glorot_uniform, n_s, n_a, key=k_net)
        return cls(net, jnp.zeros((), int), key, n_s, n_a, config)

    def update(self, batch, key):
        loss = lambda net: jnp.mean((net(batch.s) - batch.a) ** 2)
        value, gradient = jax.value_and_grad(loss)(self.net)
        net = jax.tree.map(lambda w, g: w - 0.1 * g, self.net, gradient)
        agent = type(self)(net, self.step + 1, self.key, self.n_s, self.n_a, self.config)
        return agent, {"clone_loss": value}

    def policy(self, name):
        return eqx.Partial(lambda net, s, key: jnp.clip(net(s), -1, 1), self.net)


class NoPair(Clone):
    def update(self, batch, key):
        return Clone.update(self, batch, key)[0]


class Grows(Clone):
    def update(self, batch, key):
        agent, metrics = Clone.update(self, batch, key)
        return eqx.tree_at(lambda x: x.net.bias, agent, jnp.zeros(7)), metrics


class Wide(Clone):
    def policy(self, name):
        return eqx.Partial(lambda net, s, key: jnp.zeros(9), self.net)


class NoSettings(Clone):
    Config = None
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with mine.py, from which the commands are given."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


OWN = (
    "--critic.tokenizer mine.py:Fourier --critic.attention mine.py:Sigmoid "
    "--control.kind mine.py:Annealed"
)


def test_own_components_are_trained_recorded_evaluated_and_resumed(
    tql,
    mine,
    maze_file,
    monkeypatch,
    tmp_path,
):
    run = tmp_path / "run"
    command = ["train", MAZE, *TINY_OPTIONS, *OWN.split(), "--data", maze_file, "--out", run]
    status, text = tql(*command)
    assert status == 0, text
    about = read_settings(run)
    assert about.config.critic.tokenizer == f"{mine}:Fourier" and list(about.files) == [str(mine)]
    monkeypatch.chdir("/")  # from any folder
    assert tql("evaluate", run, "--episodes", "5")[0] == 0
    assert tql("train", MAZE, "--resume", "--out", run)[0] == 0
    assert tql("analyse", run)[0] == 0
    original = mine.read_text()
    for change, words in ((original + "\n", "has changed since"), (None, "is missing")):
        mine.unlink() if change is None else mine.write_text(change)
        for again in (
            ["evaluate", run],
            ["train", MAZE, "--resume", "--out", run],
            ["analyse", run],
        ):
            answer = is_one_line(tql(*again))
            assert answer.startswith(f"tql: {mine}: {words}"), answer


def test_an_own_method_is_trained_and_resumed(
    tql,
    mine,
    maze_file,
    monkeypatch,
    tmp_path,
):
    run = tmp_path / "run"
    status, text = tql("train", MAZE, "--method", "mine.py:Clone", "--help")
    assert status == 0 and "--width INT" in text and "Width of the only matrix" in text
    command = ["train", MAZE, "--method", "mine.py:Clone", "--width", "9", "--data", maze_file]
    status, text = tql(*command, "--out", run)
    assert status == 0 and "policy: solved" in text, text
    about = read_settings(run)
    assert about.config.method == f"{mine}:Clone" and about.config.width == 9
    monkeypatch.chdir("/")
    assert tql("train", MAZE, "--resume", "--out", run)[0] == 0
    assert tql("evaluate", run, "--episodes", "3")[0] == 0
    mine.write_text(MINE + "\n")
    assert f"{mine}: has changed since" in is_one_line(tql("evaluate", run))
    mine.unlink()
    assert f"{mine}: is missing" in is_one_line(tql("train", MAZE, "--resume", "--out", run))


def test_the_folder_of_an_own_method(tql, mine, maze_file, tmp_path):
    assert tql("train", MAZE, "--method", "mine.py:Clone", "--data", maze_file)[0] == 0
    assert (tmp_path / "runs" / f"{MAZE}-Clone-only-seed0").is_dir()


WRONG = {
    "no.py: there is no such file": ["--critic.tokenizer", "no.py:Fourier"],
    "mine.py has no class Gone": ["--critic.tokenizer", "mine.py:Gone"],
    "is not a subclass of AbstractTokenizer": ["--critic.tokenizer", "mine.py:Nothing"],
    "is not a subclass of AbstractAttention": ["--critic.attention", "mine.py:Fourier"],
    "is not a subclass of AbstractEntropyController": ["--control.kind", "mine.py:Nothing"],
    "Another(width, *, key)": ["--critic.tokenizer", "mine.py:Another"],
    "it must be an array of shape (5, 32)": ["--critic.tokenizer", "mine.py:Forgets"],
}
WRONG_METHODS = {
    "is not a subclass of AbstractAgent": "mine.py:Nothing",
    "needs `Config = ...`": "mine.py:NoSettings",
    "NoPair.update(batch, key) must return the pair (agent, metrics)": "mine.py:NoPair",
    "whose 'net.bias' is float32[7]; before the update it was float32[2]": "mine.py:Grows",
    "Wide.policy('policy')(s, key) returned": "mine.py:Wide",
}


@pytest.mark.parametrize("words", [*WRONG, *WRONG_METHODS])
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(
    words,
    tql,
    mine,
    maze_file,
    tmp_path,
):
    own = [*TINY_OPTIONS, *WRONG[words]] if words in WRONG else ["--method", WRONG_METHODS[words]]
    answer = is_one_line(tql("train", MAZE, *own, "--data", maze_file, "--out", tmp_path / "run"))
    assert words in answer and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "error"), [("Raises", ValueError), ("Reads", OSError), ("Broken", ZeroDivisionError)]
)
def test_what_the_reader_s_own_file_raises_shows_its_traceback(
    name,
    error,
    tql,
    mine,
    maze_file,
    tmp_path,
):
    if name == "Broken":
        mine.write_text("1 / 0")
    own = ["--critic.tokenizer", f"mine.py:{name}"]
    with pytest.raises(error):
        tql("train", MAZE, *TINY_OPTIONS, *own, "--data", maze_file, "--out", tmp_path / "run")


def test_the_same_from_python(mine, maze_file, tmp_path):
    tiny = tiny_settings("cpu")
    critic = replace(tiny.critic, tokenizer="mine.py:Fourier")
    run = tmp_path / "run"
    agent, data = start_run(replace(tiny, critic=critic), maze_file, run)
    assert agent.config.critic.tokenizer == f"{mine}:Fourier"
    assert type(agent.critic.model.tokenizer).__name__ == "Fourier"
    train(agent, data, run, workers=1, until=10)
    assert int(resume_run(run, replace(tiny, critic=critic))[0].step) == 10


def test_paths_in_settings(mine):
    tiny = tiny_settings("cpu")
    critic = replace(tiny.critic, attention="softcap+mine.py:Sigmoid", tokenizer="mine.py:Fourier")
    config = with_absolute_paths(replace(tiny, critic=critic))
    assert config.critic.attention == f"softcap+{mine}:Sigmoid" and component_files(config) == [
        mine
    ]
    assert with_absolute_paths(config) == config and with_absolute_paths(tiny) == tiny
    assert component_files(tiny) == []


# Methods by name.


def test_settings_of_another_method_are_refused():
    for method in ("iql", "fql"):
        with pytest.raises(
            ValueError, match=f"the method '{method}' takes settings of class .*Config"
        ):
            new_agent(2, 2, replace(tiny_settings("cpu"), method=method))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_named_by_its_settings_and_they_come_back_from_json(name):
    method = method_class(name)
    config = method.presets["pocket"](MAZE)
    assert config.method == name and type(config) is method.Config
    assert config_from_dict(json.loads(json.dumps(as_json(config)))) == config
