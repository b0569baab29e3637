"""kill -9 of workers wherever they change state: the run goes on by itself, to the bits of one that was left alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from ps.errors import ConfigError
from ps.failpoints import POINTS
from tests.deploy.faults import S1, W0, W1, Faults, Point
from tests.deploy.killing import bits_of, deaths_of, recovering_steps, run, undisturbed

PLACES: list[tuple[str, Point, Point]] = [
    ("adam", ("worker.registered", 1), ("worker.joined", 1)),
    ("two phases", ("worker.brought", 1), ("worker.installed", 1)),
    ("adam", ("worker.installed", 1), ("worker.sent", 2)),
    ("two phases", ("worker.sent", 2), ("worker.sent", 1)),
    ("adam", ("worker.sent", 9), ("worker.landed", 12)),
    ("two phases", ("worker.landed", 1), ("worker.reports", 1)),
    ("adam", ("worker.reported", 2), ("worker.sent", 9)),
]
"""Where workers 0 and 1 die."""


@pytest.mark.parametrize(("optimizer", "first", "second"), PLACES, ids=str)
def test_workers_killed_anywhere_cost_no_bit(optimizer: str, first: Point, second: Point, tmp_path: Path) -> None:
    faults = Faults().kill(W0, first).kill(W1, second)
    result = run(tmp_path, optimizer, faults)
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == faults.victims
    assert 1 <= len(recovering_steps(result)) <= 2


LAST_REPORT = ("worker.reports", 4)


@pytest.mark.parametrize("place", [("worker.landed", 9), LAST_REPORT], ids=str)
def test_a_step_recovers_from_a_death_unless_it_was_after_the_last_one(place: Point, tmp_path: Path) -> None:
    result = run(tmp_path, "two phases", Faults().kill(W1, place))
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == ["worker 1"]
    assert len(recovering_steps(result)) == (place != LAST_REPORT)


def test_workers_that_die_after_their_last_step_are_no_failures(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", Faults().kill(W0, ("worker.finished", 1)).kill(W1, ("worker.finished", 1)))
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == []


@pytest.mark.parametrize("victim", [W0, S1], ids=str)
def test_a_process_killed_before_it_has_registered_is_started_again(victim: ProcessKey, tmp_path: Path) -> None:
    result = run(tmp_path, "adam", Faults(), killed_at_once=victim)
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == [str(victim)]


IN_RECOVERY = {
    "worker.pulled": Faults().kill(W1, ("worker.sent", 9), ("worker.pulled", 1)),
    "worker.rejoined": Faults().kill(S1, ("shard.summed", 9)).kill(W0, ("worker.rejoined", 1)),
}


@pytest.mark.parametrize("place", IN_RECOVERY)
def test_a_worker_killed_in_recovery_costs_no_bit(place: str, tmp_path: Path) -> None:
    result = run(tmp_path, "two phases", IN_RECOVERY[place])
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == IN_RECOVERY[place].victims


def test_both_workers_die_at_once_and_one_again_while_it_comes_back(tmp_path: Path) -> None:
    faults = Faults().kill(W0, ("worker.sent", 5), ("worker.joined", 1), ("worker.sent", 1)).kill(W1, ("worker.sent", 5))
    result = run(tmp_path, "two phases", faults)
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == faults.victims


def test_a_task_that_writes_to_a_parameter_late_costs_a_worker_its_process_but_no_bit(tmp_path: Path) -> None:
    """The model lies in its one server's memory by then; the successor sees the write in its first step, and keeps a copy."""
    how: dict[str, Any] = {"task": "tests.deploy.broken:Broken", "fields": {"how": "writes late"}, "num_servers": 1, "batch_size": 32, "epochs": 2}
    result = run(tmp_path / "shared", "adam", Faults(), **how)
    assert bits_of(result) == bits_of(run(tmp_path / "apart", "adam", Faults(), shared_memory=False, **how))
    assert deaths_of(result) == ["worker 0", "worker 1"]
    said = (
        r'worker 0 was killed by SIGSEGV at step \d \(Fatal Python error: Segmentation fault in ".*broken\.py", line \d+ in loss\): starting it again'
    )
    assert re.search(said, (result.path / "logs" / "driver.log").read_text())
    assert "ends this process by SIGSEGV; if it must be, set comm.shared_memory = false" in (result.path / "logs" / "worker-0.log").read_text()


REPORTING = "tests.deploy.own_loops:noisy_with_reports"


IN_A_LOOP: list[tuple[Point, Point]] = [
    (("worker.sent", 9), ("worker.reports", 2)),
    (("worker.reported", 2), ("worker.sent", 1)),
    (("worker.sent", 1), ("worker.reports", 5)),
]


@pytest.mark.parametrize(("first", "second"), IN_A_LOOP, ids=str)
def test_workers_killed_in_an_own_loop_cost_neither_a_bit_nor_a_report(first: Point, second: Point, tmp_path: Path) -> None:
    faults = Faults().kill(W0, first).kill(W1, second)
    result = run(tmp_path, "adam", faults, REPORTING)
    assert bits_of(result) == undisturbed("adam", REPORTING)
    assert deaths_of(result) == faults.victims


def test_a_loop_that_counts_its_own_steps_is_refused_when_it_is_started_again(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", Faults().kill(W1, ("worker.sent", 9)), "tests.deploy.own_loops:counts_its_own_steps", max_steps=12)
    assert isinstance(result.error, ConfigError)
    assert "rank 1 was started again and goes on at step" in str(result.error)
    assert str(result.error).endswith("iterate over ctx.steps()")


def test_no_failpoint_of_a_worker_is_left_out() -> None:
    elsewhere = {"worker.encoded", "worker.settles"}  # tests/deploy/test_lossy_deaths.py
    places = {name for _, *two in PLACES for name, _ in two}
    assert places | {"worker.finished", *IN_RECOVERY} | elsewhere == {name for name in POINTS if name.startswith("worker.")}
