"""kill -9 of workers wherever they change state: the run goes on by itself, to the bits of one that was left alone."""

from pathlib import Path

import pytest

from deploy.launch.base import ProcessKey
from ps.failpoints import POINTS
from tests.deploy.killing import W0, W1, Point, bits_of, deaths_of, run, undisturbed

PLACES: list[Point] = [
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


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("victim", [W0, W1], ids=str)
def test_a_worker_killed_anywhere_costs_no_bit(victim: ProcessKey, place: Point, tmp_path: Path) -> None:
    optimizer = "adam" if victim == W0 else "two phases"
    result = run(tmp_path, optimizer, {victim: [place]})
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == [str(victim)]


def test_workers_that_die_after_their_last_step_are_no_failures(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", {W0: [("worker.finished", 1)], W1: [("worker.finished", 1)]})
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == []


def test_both_workers_die_at_once_and_one_again_while_it_comes_back(tmp_path: Path) -> None:
    result = run(tmp_path, "two phases", {W0: [("worker.sent", 5), ("worker.joined", 1), ("worker.sent", 1)], W1: [("worker.sent", 5)]})
    assert bits_of(result) == undisturbed("two phases")
    assert deaths_of(result) == ["worker 0"] * 3 + ["worker 1"]


def test_no_failpoint_of_a_worker_is_left_out() -> None:
    assert {name for name, _ in PLACES} | {"worker.finished"} == {name for name in POINTS if name.startswith("worker.")}
