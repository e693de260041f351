"""Transformer Q-Learning in Equinox: one concept per file.

Importing the package turns the shape checks on: jaxtyping's import hook gives every function of `tql` to beartype, so a wrong
shape fails at the door of the function that received it. `JAXTYPING_DISABLE=1` turns the checks off, for stepping with a
debugger through the bare code.
"""

from jaxtyping import install_import_hook

install_import_hook("tql", "beartype.beartype")
