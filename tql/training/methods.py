"""Methods by their names, and their settings as they are written to files and read back."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from tql.agent import AbstractAgent
from tql.components import build, find_class
from tql.config import AbstractConfig
from tql.ogbench.validate import sha256
from tql.training.online_config import AnyConfig
from tql.training.whole_file import MISSING, typed

METHODS = {
    "tql": "tql.loop:TQL",
    "bc": "tql.baselines.bc:BC",
    "iql": "tql.baselines.iql:IQL",
    "rebrac": "tql.baselines.rebrac:ReBRAC",
    "fbrac": "tql.baselines.fbrac:FBRAC",
    "ifql": "tql.baselines.ifql:IFQL",
    "fql": "tql.baselines.fql:FQL",
    "floq": "tql.baselines.floq:Floq",
    "q-transformer": "tql.baselines.q_transformer:QTransformer",
    "pac": "tql.baselines.pac:PAC",
}
"""Methods by the short names that settings may use, each imported when it is asked for.
`file.py:Class` names one of your own."""


def method_class(name: str) -> type[AbstractAgent]:
    """The class of that method. Raises `ValueError` for an unknown name, and for a class
    without settings."""
    found = find_class(name, METHODS, AbstractAgent)
    config, presets = getattr(found, "Config", None), getattr(found, "presets", None)
    if not (isinstance(config, type) and issubclass(config, AbstractConfig)):
        raise ValueError(
            f"{name} needs `Config = ...`, its dataclass of settings (AbstractConfig)."
        )
    if not (isinstance(presets, dict) and presets):
        raise ValueError(
            f"{name} needs `presets = {{...}}`: settings by name, functions of the task."
        )
    return found


def new_agent(n_s: int, n_a: int, config: AbstractConfig) -> AbstractAgent:
    """A fresh agent of the method that `config` names. Raises `ValueError` for an unknown method,
    and for the settings of another one."""
    method = method_class(config.method)
    if type(config) is not method.Config:
        raise ValueError(
            f"the method '{config.method}' takes settings of class {method.Config.__name__}, not "
            f"{type(config).__name__}; give the settings the name of their own method (method=...)."
        )
    agent = build(method.create, n_s, n_a, config)
    if not isinstance(agent, method):
        raise ValueError(
            f"{method.__name__}.create(n_s, n_a, config) returned a {type(agent).__name__}; it "
            f"must return a {method.__name__}."
        )
    return agent


def method_in(content: Any) -> str:
    """The method that settings read from JSON name. Raises `ValueError` if they name none."""
    name = typed(typed(content, dict, "config").get("method", MISSING), str, "config.method")
    if name not in METHODS and ".py:" not in name:
        raise ValueError(f"config.method is '{name}'; it must be one of {', '.join(METHODS)}")
    return name


def config_from_dict(content: Any) -> AbstractConfig:
    """The inverse of `dataclasses.asdict` after a trip through JSON. Raises `ValueError` that names
    the setting that is missing, unknown or wrong."""
    return typed(content, method_class(method_in(content)).Config, "config")


def differences(ours: AbstractConfig, theirs: AbstractConfig) -> list[str]:
    """Settings that differ, each as `name: ours instead of theirs`."""
    found = different(as_json(ours), as_json(theirs))
    return [f"{name}: {a} instead of {b}" for name, a, b in found]


def as_json(config: AnyConfig) -> dict:
    """The settings as they are after a trip through JSON."""
    return json.loads(json.dumps(asdict(config)))


def different(ours: dict, theirs: dict) -> list[tuple[str, Any, Any]]:
    """The dotted name and both values of every setting that differs. Where the method differs, only
    the method, because another method has other settings."""
    found = list(_different(ours, theirs, ""))
    return [triple for triple in found if triple[0] == "method"] or found


def _different(ours: dict, theirs: dict, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _different(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def component_files(settings: Any) -> list[Path]:
    """The reader's own files that settings, or one of them, name, as in `mine.py:Fourier`."""
    files: list[Path] = []
    _map_files(settings, lambda place: files.append(Path(place)) or place)
    return list(dict.fromkeys(files))


def with_absolute_paths(config: AbstractConfig) -> AbstractConfig:
    """The same settings, in which every such file has its absolute path, so that it is found from
    any folder."""
    return _map_files(config, lambda place: str(Path(place).resolve()))


def _map_files(value: Any, f: Callable[[str], str]) -> Any:
    """The value with `f` of every path of a `path.py:Class` in it."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: _map_files(getattr(value, name), f) for name in names})
    if isinstance(value, tuple):
        return tuple(_map_files(inner, f) for inner in value)
    if isinstance(value, str) and ".py:" in value:
        parts = [part.rpartition(":") for part in value.split("+")]
        return "+".join(f(x) + c + y if x.endswith(".py") else x + c + y for x, c, y in parts)
    return value


def checksums(config: AbstractConfig) -> dict[str, str]:
    """The SHA-256 of every file that `component_files` lists."""
    return {str(path): sha256(path) for path in component_files(config)}
