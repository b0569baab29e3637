"""kill -9 of servers between any two of their durable writes: a successor goes on with their memory, to the same bits."""

from pathlib import Path

import pytest

from deploy.launch.base import ProcessKey
from ps.failpoints import POINTS
from tests.deploy.killing import S0, S1, W0, W1, Point, bits_of, deaths_of, run, undisturbed

ANY = "adam"
TWO_PHASES = "two phases"
PLACES: list[tuple[str, ProcessKey, list[Point]]] = [
    (ANY, S0, [("server.registered", 1)]),
    (ANY, S1, [("shard.made", 1)]),
    (ANY, S0, [("shard.joined", 1)]),
    (ANY, S1, [("shard.joined", 2)]),
    (ANY, S0, [("shard.init", 1)]),
    (TWO_PHASES, S1, [("shard.init", 1), ("shard.joined", 1)]),
    (ANY, S0, [("shard.taken", 1)]),
    (TWO_PHASES, S1, [("shard.taken", 11)]),
    (ANY, S1, [("shard.summed", 3)]),
    (TWO_PHASES, S0, [("shard.held", 2)]),
    (TWO_PHASES, S1, [("store.recording", 2)]),
    (TWO_PHASES, S0, [("shard.recorded", 3)]),
    (ANY, S0, [("shard.oldest", 4)]),
    (TWO_PHASES, S0, [("shard.oldest", 7)]),
    (ANY, S1, [("shard.written", 5)]),
    (TWO_PHASES, S1, [("shard.written", 8)]),
    (ANY, S0, [("shard.applied", 3)]),
    (TWO_PHASES, S1, [("shard.applied", 6)]),
    (ANY, S1, [("shard.answered", 2)]),
    (TWO_PHASES, S0, [("shard.answered", 5)]),
    (ANY, S0, [("store.deciding", 2)]),
    (ANY, S1, [("shard.decided", 1)]),
    (ANY, S0, [("shard.pulled", 2)]),
    (ANY, S0, [("shard.written", 2), ("server.recovered", 1), ("server.registered", 1), ("shard.joined", 2)]),
]


@pytest.mark.parametrize(("optimizer", "victim", "places"), PLACES, ids=str)
def test_a_server_killed_anywhere_costs_no_bit(optimizer: str, victim: ProcessKey, places: list[Point], tmp_path: Path) -> None:
    result = run(tmp_path, optimizer, {victim: places})
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == [str(victim)] * len(places)


@pytest.mark.parametrize("optimizer", [ANY, TWO_PHASES])
def test_all_processes_die_in_the_same_step_and_some_of_them_again(optimizer: str, tmp_path: Path) -> None:
    faults: dict[ProcessKey, list[Point]] = {
        S0: [("shard.applied", 5), ("shard.taken", 2)],
        S1: [("shard.oldest", 5)],
        W0: [("worker.sent", 11)],
        W1: [("worker.landed", 9), ("worker.installed", 1)],
    }
    result = run(tmp_path, optimizer, faults)
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == ["server 0"] * 2 + ["server 1", "worker 0"] + ["worker 1"] * 2


def test_no_failpoint_of_a_server_is_left_out() -> None:
    assert {name for _, _, places in PLACES for name, _ in places} == {name for name in POINTS if not name.startswith("worker.")}
