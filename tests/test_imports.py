"""Which file may import which, held over the syntax trees of all files."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import tql
from tql.variants.qk_norm import NormedPerHead
from tql.variants.returns import returns

TQL = Path(tql.__file__).parent
ROOT = TQL.parent

PAPER = (
    *("layers", "components", "batch", "tokenizer", "attention", "critic", "entropy_controller"),
    *("flow_actor", "config", "presets", "optimise", "agent", "loop"),
)
"""The paper's files in the order in which they are read. Each imports only those before it."""

ROOMS = {
    "variants": {"paper"},
    "baselines": {"paper", "variants"},
    "ogbench": {"tql.batch"},
    "training": {"paper", "ogbench"},
    "analysis": {"paper", "variants", "ogbench", "training"},
    "contracts": {"paper"},
    "commands": {
        *("paper", "variants", "baselines", "contracts", "ogbench", "training", "analysis")
    },
}
"""What a room may import besides itself: a room, or one file."""

SIMULATOR = {"mujoco", "gymnasium", "ogbench", "dm_control"}
PAPER_USES = {"jax", "equinox", "optax", "jaxtyping", "numpy", *sys.stdlib_module_names}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {name_of(path): ast.parse(path.read_text()) for path in sorted(TQL.rglob("*.py"))}
"""Every module of tql by its name."""


def room(module: str) -> str:
    """The folder that a module lies in; the files beside each other are the paper."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "paper"


def imports(tree: ast.AST) -> set[str]:
    """The modules that are imported anywhere in a tree, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written with the whole name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in TREES else node.module for name in inner}
    return found


def wrong_imports(module: str, tree: ast.AST) -> set[str]:
    """The imports of a module that the layout forbids."""
    here, found = room(module), imports(tree)
    own = {name for name in found if name.split(".")[0] == "tql"}
    packages = {name.split(".")[0] for name in found - own}
    wrong = packages & {"figures", "walkthrough", "tests"}
    if here != "commands":
        wrong |= packages & {"tyro"}
    if here != "ogbench":
        wrong |= packages & SIMULATOR
    if module == "tql.__main__":
        return wrong | {name for name in own if room(name) != "commands"}
    if here == "paper":
        wrong |= packages - PAPER_USES - ({"beartype"} if module == "tql" else set())
        before = PAPER[: PAPER.index(module[4:])] if module[4:] in PAPER else ()
        return wrong | (own - {f"tql.{name}" for name in before})
    allowed = ROOMS[here] | {here}
    return wrong | {name for name in own if name not in allowed and room(name) not in allowed}


def test_imports_point_one_way():
    assert {module[4:] for module in TREES if room(module) == "paper"} == {*PAPER, "", "__main__"}
    wrong = {module: wrong_imports(module, tree) for module, tree in TREES.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("tql.batch", "from tql.loop import TQL"),
        ("tql.loop", "import tql.variants.softcap"),
        ("tql.critic", "import matplotlib"),
        ("tql.critic", "import beartype"),
        ("tql.variants.softcap", "from tql import baselines"),
        ("tql.baselines.iql", "def f():\n    from tql.training import chunk"),
        ("tql.ogbench.tasks", "from tql.agent import Policy"),
        ("tql.training.run", "import tql.analysis.plot"),
        ("tql.training.run", "import mujoco"),
        ("tql.analysis.plot", "from tql.commands import train"),
        ("tql.analysis.plot", "import tyro"),
        ("tql.commands.train", "from figures import run"),
    ],
)
def test_a_wrong_import_is_seen(module, code):
    assert wrong_imports(module, ast.parse(code))


def test_the_simulator_is_imported_where_it_is_used():
    """Inside functions, so that `import tql.ogbench...` is cheap and works without it."""
    at_the_top = {
        module: imports(ast.Module([node], [])) & SIMULATOR
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert not any(at_the_top.values()), at_the_top


def test_nothing_of_figures_or_walkthrough_is_imported_by_the_other():
    for folder, other in (("figures", "walkthrough"), ("walkthrough", "figures")):
        for path in (ROOT / folder).rglob("*.py"):
            packages = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
            assert not packages & {other, "tests"}, path


def test_a_class_is_abstract_or_final():
    """No class of tql inherits from a concrete class of tql, apart from errors, which are caught by
    kind."""
    classes = [
        node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    names = {node.name for node in classes}
    concrete = {name for name in names if not name.startswith("Abstract")}
    concrete = {name for name in concrete if not name.endswith("Error")}
    bases = {(node.name, ast.unparse(base)) for node in classes for base in node.bases}
    assert {(name, base) for name, base in bases if base in concrete} == set()


def loaded_by(module: str, packages: set[str], variables: dict[str, str] = {}) -> str:
    code = f"import sys, {module}; print(sorted({packages!r} & set(sys.modules)))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    how = dict(cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return subprocess.run([sys.executable, "-c", code], **how).stdout.strip()


def test_what_an_import_loads():
    assert loaded_by("tql.loop", SIMULATOR | {"matplotlib", "tyro"}) == "[]"
    # The simulator's processes go without the shape checks, which would load jax.
    simulation = "tql.ogbench.environment, tql.ogbench.scripted"
    unchecked = dict(JAXTYPING_DISABLE="1")
    assert loaded_by(simulation, {"jax", "matplotlib", "tyro"}, unchecked) == "[]"


def test_a_wrong_shape_fails_at_the_door_of_a_sub_package():
    with pytest.raises(TypeCheckError, match="NormedPerHead"):
        NormedPerHead(jnp.ones(3), 2)
    with pytest.raises(TypeCheckError, match="returns"):
        returns(jnp.ones(3), jnp.ones(3), jnp.ones(3), 0.9)
