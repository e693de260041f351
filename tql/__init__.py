"""Transformer Q-Learning in Equinox: one concept per file.

Importing the package turns the shape checks on: a wrong shape fails at the door of the function
that received it, with both shapes in the message. `JAXTYPING_DISABLE=1` turns them off, to step
through the bare code with a debugger.
"""

import os

from jaxtyping import install_import_hook

if os.environ.get("JAXTYPING_DISABLE", "0").lower() not in ("1", "true"):
    # The tower lets an int stand where a float is asked for, as in alpha_bc=300.
    tower = "beartype.BeartypeConf(is_pep484_tower=True)"
    install_import_hook("tql", f"beartype.beartype(conf={tower})")
