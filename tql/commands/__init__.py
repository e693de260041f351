"""The commands of the command line, one file each. jax and the simulator load only when a command
needs them."""

import sys
import traceback
from pathlib import Path

import tyro

from tql.commands.analyse import Analyse
from tql.commands.check import Check
from tql.commands.data import Data
from tql.commands.evaluate import Evaluate
from tql.commands.exercises import Exercises
from tql.commands.finetune import Finetune
from tql.commands.plot import Plot
from tql.commands.render import Render
from tql.commands.train import Train, parse_train

COMMANDS = {
    "data": Data,
    "train": Train,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "render": Render,
    "plot": Plot,
    "analyse": Analyse,
    "exercises": Exercises,
    "check": Check,
}


def run_command(arguments: list[str]) -> None:
    """Runs what the words of a command line ask for: a command and its options."""
    if arguments[:1] == ["train"]:
        command = parse_train(arguments[1:])  # its options depend on the task, method and preset
    else:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="tql", args=arguments)
    command()


def is_message(error: Exception) -> bool:
    """Whether the error speaks to a user: what `tql` itself says with `raise`, and errors of files,
    unless a reader's own component (`mine.py:Class`) met them."""
    frames = traceback.extract_tb(error.__traceback__)
    raised = frames[-1]
    if Path(__file__).parents[1] in Path(raised.filename).parents:
        if (raised.line or "").startswith("raise "):
            return True
    own = {x.__file__ for name, x in sys.modules.items() if name.startswith("tql_file_")}
    return isinstance(error, OSError) and not any(frame.filename in own for frame in frames)
