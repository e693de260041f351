"""`tql plot`: one picture of a run."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Plot:
    """Draw a run: losses, entropy and temperatures against their targets, Q, success."""

    run: Positional[Path]
    """Run directory."""

    def __call__(self) -> None:
        from tql.analysis.plot import plot_run

        print(plot_run(self.run))
