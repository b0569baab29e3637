"""A run whose driver dies, or that has failed, goes on from its last checkpoint to the bits of an undisturbed one."""

import json
import os
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.config import Timeouts
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from ps.errors import ConfigError, ProcessDied
from tests.deploy.faults import S0, W0, W1, Faults, Point
from tests.deploy.forked import CONTEXT
from tests.deploy.killing import bits_of, run
from tests.deploy.leftovers import nothing_left
from tests.waiting import until

FAILS: dict[str, Any] = {"every_steps": 2, "num_to_keep": 20, "max_failures": 0, "name": "run"}
SKIPS = {"optimizer": "skip", "task": "tests.deploy.broken:Broken", "fields": {"how": "nan"}, "batch_size": 11, "epochs": 1}
CASES: dict[str, tuple[dict[str, Any], ProcessKey, Point]] = {
    "a server dies": ({"optimizer": "adam", "every_steps": 3}, S0, ("shard.written", 40)),
    "in validation, two phases over gRPC": ({"optimizer": "two phases", "shared_memory": False}, W1, ("worker.reports", 3)),
    "int8, skipped steps": ({**SKIPS, "push_format": "int8"}, W1, ("worker.settles", 10)),
    "topk, two phases": ({"optimizer": "two phases", "push_format": "topk", "topk_fraction": 0.1}, W1, ("worker.settles", 7)),
    "own loop": ({"optimizer": "adam", "loop": "tests.deploy.own_loops:noisy_with_reports"}, W1, ("worker.reports", 3)),
    "frozen tensors, parts travel": (
        {"optimizer": "adam", "task": "tests.deploy.own_loops:HalfFrozen", "push_format": "int8", "shared_storage": False},
        W0,
        ("worker.sent", 50),
    ),
    "stops early": (
        {"optimizer": "adam", "epochs": 30, "early_stopping": EarlyStoppingConfig(patience=2, min_delta=0.05)},
        W0,
        ("worker.reports", 5),
    ),
    "plateau": (
        {"optimizer": "adam", "epochs": 8, "plateau": PlateauConfig(patience=0, threshold=0.2, factor=0.5)},
        W0,
        ("worker.reports", 6),
    ),
}


@cache
def undisturbed(case: str) -> dict[str, Any]:
    with TemporaryDirectory() as storage:
        return bits_of(run(Path(storage), faults=Faults(), **CASES[case][0]))


def resume(storage: Path, **options: Any) -> Result:
    return run(storage, faults=Faults(), resume="auto", **{**FAILS, **options})


def failed(storage: Path, case: str, **changes: Any) -> Result:
    """A run of the case whose victim's first death ends it."""
    options, victim, place = CASES[case]
    result = run(storage, faults=Faults().kill(victim, place), **{**FAILS, **options, **changes})
    assert isinstance(result.error, ProcessDied), result.error
    return result


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_has_failed_goes_on_to_the_same_bits(case: str, tmp_path: Path) -> None:
    failed(tmp_path, case)
    result = resume(tmp_path, **CASES[case][0])
    assert bits_of(result) == undisturbed(case)
    assert steps_of(result.path) == list(range(undisturbed(case)["steps"]))
    assert "resumed from step" in (result.path / "logs" / "driver.log").read_text()


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "comm.jsonl").read_text().splitlines()]


def test_on_other_numbers_of_servers_too(tmp_path: Path) -> None:
    for num_servers, sent in ((5, 30), (1, 12), (3, 20)):
        result = run(tmp_path, "adam", Faults().kill(W0, ("worker.sent", sent)), **{**FAILS, "num_servers": num_servers, "resume": "auto"})
        assert isinstance(result.error, ProcessDied), result.error
    result = resume(tmp_path, optimizer="adam", num_servers=2)
    assert bits_of(result) == undisturbed("a server dies")
    assert json.loads((result.path / "summary.json").read_text())["generation"] == 4


def _drive(storage: Path) -> None:
    """A driver in a process of its own, with none of our pytest."""
    from tests.deploy.killing import run

    run(storage, "adam", Faults(), name="run", every_steps=2, timeouts=Timeouts(heartbeat_s=0.2, orphan_after_s=1.0), epochs=20)


def test_a_driver_killed_in_mid_run_and_another_one_goes_on(tmp_path: Path) -> None:
    driver = CONTEXT.Process(target=_drive, args=(tmp_path,))
    driver.start()
    rundir = RunDirectory(tmp_path / "run")
    until(lambda: len(versions := rundir.checkpoints.versions()) >= 2 and versions[-1] >= 8, 60)
    with pytest.raises(ConfigError, match=f"run is still going on \\(driver {driver.pid} on "):
        resume(tmp_path, optimizer="adam", epochs=20)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    at = rundir.checkpoints.versions()[-1]
    with nothing_left(within_s=10):
        result = resume(tmp_path, optimizer="adam", epochs=20, max_failures=None)
    with TemporaryDirectory() as storage:
        assert bits_of(result) == bits_of(run(Path(storage), "adam", Faults(), epochs=20))
    assert steps_of(result.path) == list(range(60))
    assert f"resumed from step {at}, generation 2" in (result.path / "logs" / "driver.log").read_text()
