"""kill -9 of servers between any two of their durable writes: a successor goes on with their memory, to the same bits."""

from pathlib import Path

import pytest

from deploy.launch.base import ProcessKey
from ps.failpoints import POINTS
from tests.deploy.faults import S0, S1, W0, W1, Faults, Point
from tests.deploy.killing import bits_of, deaths_of, recovering_steps, run, undisturbed

ANY = "adam"
TWO_PHASES = "two phases"
PLACES: list[tuple[str, list[Point], list[Point]]] = [
    (ANY, [("server.registered", 1)], [("shard.made", 1)]),
    (ANY, [("shard.joined", 1)], [("shard.joined", 2)]),
    (ANY, [("shard.opened", 2)], [("shard.pulled", 2)]),
    (TWO_PHASES, [("shard.init", 1)], [("shard.init", 1), ("shard.joined", 1)]),
    (ANY, [("shard.taken", 1)], [("shard.summed", 3)]),
    (TWO_PHASES, [("shard.held", 2)], [("store.recording", 2)]),
    (TWO_PHASES, [("shard.recorded", 3)], [("store.recording", 1), ("shard.taken", 11)]),
    (ANY, [("shard.oldest", 4)], [("shard.written", 5)]),
    (TWO_PHASES, [("shard.answered", 5)], [("shard.applied", 6)]),
    (ANY, [("store.deciding", 2)], [("shard.decided", 1)]),
    (ANY, [("shard.cut", 2)], [("checkpoint.written", 1)]),
    (ANY, [("shard.written", 2), ("server.recovered", 1), ("server.registered", 1), ("shard.joined", 2)], []),
]
"""Where the incarnations of servers 0 and 1 die."""


@pytest.mark.parametrize(("optimizer", "first", "second"), PLACES, ids=str)
def test_servers_killed_anywhere_cost_no_bit(optimizer: str, first: list[Point], second: list[Point], tmp_path: Path) -> None:
    faults = Faults().kill(S0, *first).kill(S1, *second)
    result = run(tmp_path, optimizer, faults)
    assert bits_of(result) == undisturbed(optimizer)
    assert deaths_of(result) == faults.victims
    in_joining = first[:1] in ([("server.registered", 1)], [("shard.joined", 1)])  # before there is a stream
    assert recovering_steps(result) or in_joining


def test_all_processes_die_in_the_same_step_and_some_of_them_again(tmp_path: Path) -> None:
    faults = Faults().kill(S0, ("shard.applied", 5), ("shard.taken", 2)).kill(S1, ("shard.oldest", 5))
    faults.kill(W0, ("worker.sent", 11)).kill(W1, ("worker.landed", 9), ("worker.installed", 1))
    result = run(tmp_path, TWO_PHASES, faults)
    assert bits_of(result) == undisturbed(TWO_PHASES)
    assert deaths_of(result) == faults.victims


def test_a_server_that_holds_nothing_may_die_too(tmp_path: Path) -> None:
    """Of eleven servers for ten chunks."""
    result = run(tmp_path, ANY, Faults().kill(ProcessKey("server", 10), ("shard.joined", 1)), num_servers=11)
    assert bits_of(result) == undisturbed(ANY)
    assert deaths_of(result) == ["server 10"]


def test_no_failpoint_of_a_server_is_left_out() -> None:
    elsewhere = {"store.restored"}  # tests/deploy/test_checkpoint_runs.py
    places = {name for _, first, second in PLACES for name, *_ in [*first, *second]}
    assert places | elsewhere == {name for name in POINTS if not name.startswith(("worker.", "stage."))}
