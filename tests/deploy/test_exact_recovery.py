"""kill -9 at every place where a process changes state: the run goes on by itself, to the bits of one that was left alone."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.config import OptimizerConfig
from ps.failpoints import POINTS
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.leftovers import nothing_left, segments_of

NOISY = "tests.deploy.own_loops:Noisy"
"""Batch statistics, dropout."""
OPTIMIZERS = {
    "adam": OptimizerConfig(name="adam", lr=0.01),
    "two phases": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, max_grad_norm=0.05),
}
Faults = dict[ProcessKey, list[tuple[str, int]]]
W0, W1, S0, S1 = ProcessKey("worker", 0), ProcessKey("worker", 1), ProcessKey("server", 0), ProcessKey("server", 1)
STEPS = 12


def run(storage: Path, optimizer: str, faults: Faults) -> Result:
    """Two workers, two servers, frames of one tensor each; each process dies where `faults` says."""
    made = trainer(storage, NOISY, batch_size=4, epochs=STEPS // 3, optimizer=OPTIMIZERS[optimizer])

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        launcher.faults = {key: list(its) for key, its in faults.items()}

    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert not segments_of(result.path)
    return result


def bits_of(result: Result) -> dict[str, Any]:
    assert result.error is None, result.error
    summary = json.loads((result.path / "summary.json").read_text())
    history = [{name: value for name, value in row.items() if name != "time_s"} for row in result.history]
    return {"params": summary["params_sha256"], "buffers": summary["buffers_sha256"], "steps": summary["steps"], "history": history}


@cache
def undisturbed(optimizer: str) -> dict[str, Any]:
    return bits_of(run(Path(mkdtemp(prefix="pserver-test-")), optimizer, {}))


def deaths_of(result: Result) -> list[str]:
    return sorted(death["process"] for death in json.loads((result.path / "summary.json").read_text())["failures"])


WORKERS = [
    ("worker.registered", 1),
    ("worker.joined", 1),
    ("worker.installed", 1),
    ("worker.sent", 1),
    ("worker.sent", 2),
    ("worker.sent", 9),
    ("worker.landed", 1),
    ("worker.landed", 12),
    ("worker.reports", 1),
    ("worker.reports", 4),
    ("worker.reported", 2),
]


@pytest.mark.parametrize("point", WORKERS, ids=str)
@pytest.mark.parametrize("victim", [W0, W1], ids=str)
def test_a_worker_killed_at_any_point_costs_no_bit(victim: ProcessKey, point: tuple[str, int], tmp_path: Path) -> None:
    optimizer = "adam" if victim == W0 else "two phases"
    result = run(tmp_path, optimizer, {victim: [point]})
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == [str(victim)]


def test_a_worker_that_dies_after_its_last_step_is_no_failure(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", {W0: [("worker.finished", 1)], W1: [("worker.finished", 1)]})
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == []


def test_both_workers_die_at_once_and_one_again_while_it_comes_back(tmp_path: Path) -> None:
    result = run(tmp_path, "two phases", {W0: [("worker.sent", 5), ("worker.joined", 1), ("worker.sent", 1)], W1: [("worker.sent", 5)]})
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == ["worker 0"] * 3 + ["worker 1"]


def test_every_failpoint_is_hit_here() -> None:
    assert {name for name, _ in WORKERS} | {"worker.finished"} == POINTS
