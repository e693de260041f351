"""The runs of a preset as jobs of a cluster, one run a job: `python figures/run.py paper --cluster
slurm --partition NAME`. It needs `pip install -e ".[cluster]"` and a folder that all machines see.

The runner submits, waits and records. Each run's job is remembered in `.jobs/NAME.json`, so a
runner that was stopped finds the jobs of Slurm again; a job that was killed or ran out of time goes
on from its run's newest checkpoint when the same command submits it again. A run's lock keeps two
jobs apart.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presets import change_of

from tql.analysis.study import complete
from tql.config import AbstractConfig
from tql.training.whole_file import whole_file

Runs = dict[str, AbstractConfig]
SECONDS = 2
"""Between two looks at the jobs."""


@dataclass(frozen=True)
class Cluster:
    """Where jobs are submitted, and what each of them asks for."""

    kind: str
    """`slurm`, or `local` for processes of this machine."""
    folder: Path
    """Of the runs; the jobs' files go to `.jobs` in it."""
    partition: str
    hours: float
    at_once: int
    """Jobs submitted and not yet over, at most."""

    def executor(self) -> Any:
        """What submits. Raises `SystemExit` where submitit or the cluster is missing."""
        try:
            import submitit
        except ImportError:
            words = '--cluster needs submitit: pip install -e ".[cluster]".'
            raise SystemExit(words) from None
        try:
            executor = submitit.AutoExecutor(self.folder / ".jobs" / "%j", cluster=self.kind)
        except RuntimeError as error:
            raise SystemExit(f"--cluster {self.kind}: {error}") from None
        wanted = dict(cpus_per_task=4, gpus_per_node=1) if self.kind == "slurm" else {}
        if self.partition:
            wanted["slurm_partition"] = self.partition
        executor.update_parameters(timeout_min=round(60 * self.hours), name="tql", **wanted)
        return executor

    def found(self, name: str) -> Any:
        """The job of a run that an earlier runner submitted, if it is not over; otherwise None."""
        import submitit

        file = self._file(name)
        if not file.exists():
            return None
        kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[self.kind]
        job = kind(self.folder / ".jobs" / "%j", json.loads(file.read_text())["job"])
        return None if job.done(force_check=True) else job

    def remember(self, name: str, job: Any) -> None:
        """Writes down which job makes a run."""
        self._file(name).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._file(name)) as file:
            file.write(json.dumps({"job": job.job_id}).encode() + b"\n")

    def _file(self, name: str) -> Path:
        return self.folder / ".jobs" / f"{name}.json"


def make_on_cluster(
    cluster: Cluster,
    missing: Runs,
    until: int | None,
    *,
    data_of: Callable[[AbstractConfig], Path],
    ending: Callable[[], bool],
    made: Callable[[str], None],
) -> dict[str, str]:
    """Makes the missing runs, each in a job; returns those that failed, and why.

    `made(name)` is called for each run that is done. Once `ending()` is true nothing more is
    submitted or waited for; jobs go on, and the next runner finds them."""
    executor, waiting, running, failed = cluster.executor(), list(missing.items()), {}, {}
    while (waiting or running) and not ending():
        if waiting and len(running) < cluster.at_once:
            name, config = waiting.pop(0)
            try:
                running[name] = cluster.found(name) or submit(
                    executor, config, data_of(config), cluster.folder / name, name, until
                )
            except Exception as error:  # of the simulator or of the cluster; other runs go on
                failed[name] = f"it could not be submitted: {error}"
                continue
            cluster.remember(name, running[name])
            continue
        for name in [name for name, job in running.items() if job.done()]:
            if error := running.pop(name).exception():
                # The last line of the other process's traceback says what was wrong.
                failed[name] = str(error).strip().splitlines()[-1]
            else:
                made(name)
        time.sleep(SECONDS if running else 0)
    if running:
        print(f"{len(running)} jobs go on; the same command finds them again.")
    return failed


def submit(
    executor: Any, config: AbstractConfig, data: Path, run: Path, name: str, until: int | None
) -> Any:
    """A job that makes the run, from its newest checkpoint if there is one."""
    how = dict(workers=2, until=until, change=change_of(name, config))
    return executor.submit(complete, config, data.resolve(), run.resolve(), **how)
