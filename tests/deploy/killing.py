"""Runs in which processes are killed at named places, and the bits that they must have."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.launch.base import ProcessKey
from deploy.measure.ledger_file import read_ledger
from deploy.measure.recorded import read_run
from deploy.report.page import page
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.config import OptimizerConfig
from tests.deploy.faults import Faults
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.leftovers import nothing_left, segments_of

NOISY = "tests.deploy.own_loops:Noisy"
"""Batch statistics, dropout."""
OPTIMIZERS = {
    "adam": OptimizerConfig(name="adam", lr=0.01),
    "two phases": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, max_grad_norm=0.05),
    "skip": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, nonfinite="skip"),
}


def run(
    storage: Path,
    optimizer: str,
    faults: Faults,
    loop: str | None = None,
    *,
    task: str = NOISY,
    fields: dict[str, Any] | None = None,
    killed_at_once: ProcessKey | None = None,
    **options: Any,
) -> Result:
    """Two workers, two servers, twelve steps in four epochs, of the task above or an own loop; all `faults` happen."""
    sizes = {"batch_size": 4, "epochs": 4, "optimizer": OPTIMIZERS[optimizer], "loop": loop}
    made = trainer(storage, None if loop else task, fields, **{**sizes, **options})

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        launcher.faults = faults.arm(storage)
        launcher.victim = killed_at_once

    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert not segments_of(result.path)
    faults.check_fired()
    assert_shown(result.path)
    return result


def assert_shown(path: Path) -> None:
    """The run's trace and its report have every death, whether it was made good or not; no step recovers from none."""
    run = RunDirectory(path)
    deaths = (run.read_summary() or {})["failures"]
    if run.trace.exists():  # not of a run that ended before its first step
        marks = [event["args"] for event in json.loads(run.trace.read_text())["traceEvents"] if event["ph"] == "i"]
        assert marks == deaths, (marks, deaths)
    recorded = read_run(run)
    assert deaths or not recorded.window.recoveries
    shown = page(recorded)
    assert all(f"<li>{death['process']} " in shown for death in deaths)


def bits_of(result: Result) -> dict[str, Any]:
    """Everything that a death must not change."""
    assert result.error is None, result.error
    summary = json.loads((result.path / "summary.json").read_text())
    history = [{name: value for name, value in row.items() if name != "time_s"} for row in result.history]
    return {"params": summary["params_sha256"], "buffers": summary["buffers_sha256"], "steps": summary["steps"], "history": history}


@cache
def undisturbed(optimizer: str, loop: str | None = None) -> dict[str, Any]:
    """The bits of the run in which nobody dies."""
    with TemporaryDirectory() as storage:
        return bits_of(run(Path(storage), optimizer, Faults(), loop))


def recovering_steps(result: Result) -> list[int]:
    """Steps in which, by the ledger, a process came back."""
    return [step.step for step in read_ledger(result.path / "comm.jsonl") if step.recovers]


def deaths_of(result: Result) -> list[str]:
    """The processes that died, as often as they did."""
    return sorted(death["process"] for death in json.loads((result.path / "summary.json").read_text())["failures"])
