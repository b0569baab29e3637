"""Ledgers of runs on virtual hosts, kept as they end: what is there is not run again, so that a campaign goes on where it was left."""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.config import Config
from deploy.measure.ledger_file import LedgerStep, read_ledger
from deploy.predict.inputs import scenario_of_config
from deploy.predict.scenario import Scenario
from deploy.rundir import RunDirectory
from deploy.simulation.run import simulate as train_on_hosts
from deploy.simulation.wishes import Wishes


@contextmanager
def ledgers_in(folder: Path | None, campaign: str) -> Iterator[Path]:
    """Where a campaign's ledgers are kept: in the folder, or in one that goes when the campaign is complete. The next one measures anew."""
    kept = folder or Path("build", campaign)
    kept.mkdir(parents=True, exist_ok=True)
    yield kept
    if folder is None:
        shutil.rmtree(kept)


def ledger_of(kept: Path, config_in: Callable[[str], Config]) -> list[LedgerStep]:
    """Of the file, or of a run that fills it. `config_in`: with run directories in the folder that it is given."""
    if not kept.exists():
        with tempfile.TemporaryDirectory() as storage:
            outcome = train_on_hosts(config_in(storage), Wishes(), quiet=True)
            if outcome.error is not None or outcome.path is None:
                raise RuntimeError(f"{kept.stem} has failed: {outcome.error}")
            shutil.copy(RunDirectory(Path(outcome.path)).comm, partial := kept.with_suffix(".partial"))
            partial.rename(kept)
        print(f"{kept.stem}: {step_s(list(read_ledger(kept))) * 1e3:.0f} ms a step", file=sys.stderr, flush=True)
    return list(read_ledger(kept))


def step_s(steps: Sequence[LedgerStep]) -> float:
    """Of the typical step, mean of all workers."""
    return statistics.median(statistics.fmean(row.step_s for row in step.workers) for step in steps)


def on_hosts(config: Config, steps: Sequence[LedgerStep]) -> Scenario:
    """Every process has a host of its own: the configuration says so, whatever the run has found."""
    return replace(scenario_of_config(config, steps), hosts="apart")
