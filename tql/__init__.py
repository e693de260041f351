"""Transformer Q-Learning in Equinox: one concept per file.

Importing the package turns the shape checks on: the functions of `tql` are given to beartype, so a wrong shape fails at the door of
the function that received it, with both shapes in the message. `JAXTYPING_DISABLE=1` turns the checks off, for stepping with
a debugger through the bare code.
"""

import os

from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

_WITHOUT_JAX = (
    *("tql.config", "tql.collect", "tql.scripted", "tql.publish", "tql.validate", "tql.environment"),
    *("tql.workspace", "tql.whole_file"),
)
"""Modules that run in the simulator's worker processes too. jaxtyping's hook loads jax; plain beartype does not."""

_WITH_JAX = (
    *("tql.linear", "tql.tokenizer", "tql.attention", "tql.critic", "tql.entropy_controller", "tql.flow_actor"),
    *("tql.data", "tql.loop", "tql.evaluate", "tql.render", "tql.checkpoint", "tql.run", "tql.run_directory", "tql.analysis"),
    *("tql.bench", "tql.plot", "tql.portrait", "tql.study", "tql.variants", "tql.sigma_reparam", "tql.agent", "tql.optimise", "tql.mlp"),
    *("tql.implicit_value", "tql.value_flow", "tql.perceiver", "tql.autoregressive_q", "tql.return_bound"),
    *("tql.baselines", "tql.benchmark", "tql.benchmark_presets", "tql.together", "tql.statistics"),
)

if os.environ.get("JAXTYPING_DISABLE", "0").lower() not in ("1", "true"):
    install_import_hook(_WITH_JAX, "beartype.beartype")
    # An int where a float is asked for is fine: alpha_bc=300.
    beartype_packages(_WITHOUT_JAX, conf=BeartypeConf(is_pep484_tower=True))
