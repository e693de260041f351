"""Components by name: how a word in the settings becomes a class, and what the class must return.

A component is a tokenizer, an attention, a block, a controller, an actor or a whole method. The
settings name it by a short name, such as `softmax`, which a dictionary beside the classes lists, or
by `file.py:Class`, for a class in a file of the reader's own.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Array


def find_class(name: str, known: Mapping[str, Any], seam: type) -> Callable[..., Any]:
    """The class that `name` stands for: what builds the component.

    `known` gives the short names; a value is the class, or `module:Class` where it is imported only
    when it is asked for. Wrappers combine with `+`, the outermost first: `softcap+qk-norm` is
    `softcap` with `inner=qk-norm`. Raises `ValueError` if there is no such name, file or class, or
    if the class is not a subclass of `seam`.
    """
    outer, plus, inner = name.partition("+")
    if plus:
        make, make_inner = find_class(outer, known, seam), find_class(inner, known, seam)
        if "inner" not in inspect.signature(make).parameters:
            raise ValueError(f"'{outer}' does not take `inner`, so it cannot wrap '{inner}'.")
        return functools.partial(make, inner=make_inner)
    found = known.get(name, name)
    if isinstance(found, str):
        place, _, attribute = found.rpartition(":")
        if name not in known and not place.endswith(".py"):
            choices = ", ".join([*known, "or a class in your own file as file.py:Class"])
            raise ValueError(f"there is no {seam.__name__} named '{name}'; choose {choices}.")
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, attribute, None)
        if found is None:
            raise ValueError(f"{place} has no class {attribute}; the settings ask for '{name}'.")
    if not (isinstance(found, type) and issubclass(found, seam)):
        raise ValueError(f"'{name}' is not a subclass of {seam.__name__}; let it inherit from it.")
    if missing := ", ".join(sorted(found.__abstractmethods__)):
        raise ValueError(f"'{name}' does not define {missing}, as {seam.__name__} demands.")
    return found


def _load_file(place: str) -> ModuleType:
    """The module in a reader's own file, loaded once."""
    file = Path(place).resolve()
    if not file.is_file():
        raise ValueError(f"{place}: there is no such file (looked for {file}).")
    name = f"tql_file_{file.stem}_{abs(hash(file))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def build(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`make(*arguments, **options)`. Raises `ValueError` if it does not take these arguments."""
    signature, called = inspect.signature(make), getattr(make, "__name__", "the component")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        given = ", ".join([*map(repr, arguments), *(f"{option}=..." for option in options)])
        message = f"{called}{signature} is built as {called}({given:.200}) but {error}"
        raise ValueError(f"{message}; change its constructor.") from None
    return make(*arguments, **options)


def checked(value: Any, shape: tuple[int, ...], call: str) -> Array:
    """`value`, which `call` returned. Raises `ValueError` unless it is an array of this shape.

    A class does not inherit the types of the abstract method that it overrides, so the library
    checks what a component returns where it calls it. Compiled programs do not contain the check.
    """
    if not isinstance(value, Array) or value.shape != shape:
        of = f"shape {value.shape}" if isinstance(value, Array) else f"type {type(value).__name__}"
        raise ValueError(f"{call} returned {of}; it must be an array of shape {shape}.")
    return value
