"""The driver's service and a process' end of it, over real gRPC."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from protos import pserver_pb2 as pb
from ps.control import EpochSums, ServerAddress
from ps.control_client import ControlClient, Heart, Progress
from ps.errors import Fenced, MalformedFrame, PserverError, Stopped
from ps.ledger import RowBuffer, ServerRow
from ps.roles import Role
from ps.security import CALLS_AT_ONCE
from tests.ps.cluster import in_threads
from tests.ps.driver import Driver
from tests.waiting import until


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


def test_registering_issues_identities_and_tells_where_servers_are(driver: Driver) -> None:
    driver.client(0, "server")
    first, again = driver.client(1), driver.client(1)
    assert [(c.member.rank, c.member.incarnation, c.member.generation) for c in (first, again)] == [(1, 1, 3), (1, 2, 3)]
    (address,) = again.register(pb.Environment())
    assert (address.shard, address.data, address.control) == (0, "data:1", "control:2")


def test_a_place_or_role_that_does_not_exist_is_refused(driver: Driver) -> None:
    with pytest.raises(MalformedFrame, match="worker 2 registers in a run of 2"):
        driver.client(2)
    split = ControlClient(driver.peer(Role("member", 0, 1)), "worker", 0, 1)
    with pytest.raises(MalformedFrame, match="stage 1 of a run of 1 stages"):
        split.register(pb.Environment())
    split.close()
    peer = driver.peer(Role("member", 0))
    for method, request, reply in (
        ("Register", pb.RegisterRequest(), pb.RegisterReply),
        ("Heartbeat", pb.HeartbeatRequest(role=7), pb.HeartbeatReply),  # type: ignore[arg-type]
    ):
        with pytest.raises(MalformedFrame, match="is neither server nor worker"):
            peer.call("Control", method, request, reply)
    peer.close()


def test_an_epoch_is_answered_to_all_ranks_when_the_last_has_reported(driver: Driver) -> None:
    clients = [driver.client(rank) for rank in range(2)]
    for version, ends in ((4, False), (8, True)):
        answers: list[bool] = []
        calls = [lambda c=c, v=version, a=answers: a.append(c.report_epoch(EpochSums(v, {"loss": 3.0}, {"loss": 1.5}))) for c in clients]
        in_threads(calls)
        assert answers == [ends, ends]
    assert [(e.version, e.training, e.validation) for e in driver.epochs] == [(v, {"loss": 3.0}, {"loss": 3.0}) for v in (4, 8)]
    assert clients[0].report_epoch(EpochSums(8, {}, {})) is True, "a restarted rank is answered at once"
    assert len(driver.epochs) == 2


def test_a_waiting_report_ends_when_the_run_stops(driver: Driver) -> None:
    client = driver.client(0)
    ended: SimpleQueue[PserverError] = SimpleQueue()
    in_thread(ended, lambda: client.report_epoch(EpochSums(4, {}, {})))
    driver.servicer.stop()
    assert str(ended.get(timeout=10)) == "the run ends"
    assert client.heartbeat(Progress(0), []).stop


def test_no_thread_is_kept_for_a_process_that_has_died_in_its_report(driver: Driver) -> None:
    """A worker that waits for others, dies, and comes back many times."""
    role, other = Role("member", 0), driver.client(1)
    for incarnation in range(1, 2 * CALLS_AT_ONCE):
        client = driver.client(0)
        assert client.member.incarnation == incarnation
        ended: SimpleQueue[PserverError] = SimpleQueue()
        in_thread(ended, lambda c=client: c.report_epoch(EpochSums(4, {}, {})))
        until(lambda: driver.guard._guard._running[role] == 1, 10)
        client.close()
        assert ended.get(timeout=10)
        until(lambda: driver.guard._guard._running[role] == 0, 10)
    in_thread(SimpleQueue(), lambda: other.report_epoch(EpochSums(4, {}, {})))
    assert driver.client(0).report_epoch(EpochSums(4, {}, {})) is False


def in_thread(ended: "SimpleQueue[PserverError]", call: Callable[[], object]) -> None:
    def run() -> None:
        try:
            call()
        except PserverError as error:
            ended.put(error)

    threading.Thread(target=run, daemon=True).start()


def test_a_server_is_located_where_its_newest_incarnation_is_and_nowhere_between_two(driver: Driver) -> None:
    worker = driver.client(0)
    assert worker.locate(0) == ServerAddress(0, "data:1", "control:2")
    driver.control.lose("server", 0)
    assert worker.locate(0) is None
    driver.control.register("server", 0, ServerAddress(0, "data:3", "control:4"))
    assert worker.locate(0) == ServerAddress(0, "data:3", "control:4")
    driver.servicer.stop()
    with pytest.raises(Stopped):
        worker.locate(0)
    driver.server.stop(0).wait()
    assert worker.locate(0) is None, "a driver that does not answer may do so later"


def test_who_pauses_is_woken_by_the_end_of_the_run(driver: Driver) -> None:
    driver.servicer.pause(0.01)
    threading.Timer(0.05, driver.servicer.stop).start()
    with pytest.raises(Stopped):
        driver.servicer.pause(50.0)


def test_an_older_incarnation_is_fenced_from_reports_and_heartbeats(driver: Driver) -> None:
    old, _ = driver.client(0), driver.client(0)
    for call in (lambda: old.heartbeat(Progress(1), []), lambda: old.report_finished(1), lambda: old.report_failed("E", "x", "")):
        with pytest.raises(Fenced, match="worker 0 incarnation 1 is not the newest, 2"):
            call()
    assert driver.control.failure is None


def test_failures_and_ends_reach_the_driver(driver: Driver) -> None:
    clients = [driver.client(rank) for rank in range(2)]
    clients[1].report_failed("NonFinite", "loss is nan at step 7", "stack")
    clients[0].report_failed("Unreachable", "server 0", "")
    for client in clients:
        client.report_finished(8)
    failure = driver.control.failure
    assert failure is not None and (failure.worker, failure.error_type, failure.error) == (1, "NonFinite", "loss is nan at step 7")
    assert driver.control.final_version == 8


# -- the heart -----------------------------------------------------------------------------------------------------


class Chest:
    """A heart at the driver, its clock in our hands; `reasons` is what it was told to stop for."""

    def __init__(self, driver: Driver, **settings: object) -> None:
        self.rows = RowBuffer()
        self.now = 0.0
        self.step = 5
        self.reasons: SimpleQueue[str] = SimpleQueue()
        self.client = driver.client(0)
        options = {"every_s": 0.01, "orphan_after_s": 20.0, "clock": lambda: self.now} | settings
        self.heart = Heart(self.client, self.rows, lambda: Progress(self.step, doing="rests"), self.reasons.put, **options)  # type: ignore[arg-type]
        self.heart.start()


def test_rows_are_sent_when_they_are_urgent_and_the_last_ones_at_the_end(driver: Driver) -> None:
    chest = Chest(driver, every_s=1000.0)
    chest.rows.add(ServerRow(shard=0, step=1, time_s=0.0))
    chest.heart.stop()
    assert len(driver.rows) == 1 and '"step":1' in driver.rows[0]
    assert set(driver.steps) == {(0, 5)}
    assert chest.reasons.empty()


def test_the_process_is_told_once_that_the_run_ends(driver: Driver) -> None:
    chest = Chest(driver)
    driver.servicer.stop()
    assert chest.reasons.get(timeout=10) == "the driver asks to stop"
    beats = len(driver.steps)
    while len(driver.steps) < beats + 3:
        chest.rows.urgent.set()
    chest.heart.stop()
    assert chest.reasons.empty()


def test_a_fenced_process_is_told_so(driver: Driver) -> None:
    chest = Chest(driver)
    driver.client(0)
    assert "incarnation 1 is not the newest" in chest.reasons.get(timeout=10)
    chest.heart.stop()


def test_a_fenced_process_may_end_in_another_way_than_at_the_end_of_the_run(driver: Driver) -> None:
    fenced: SimpleQueue[str] = SimpleQueue()
    chest = Chest(driver, on_fenced=fenced.put)
    driver.client(0)
    assert "incarnation 1 is not the newest" in fenced.get(timeout=10)
    chest.heart.stop()
    assert chest.reasons.empty()


def test_a_process_that_a_living_driver_refuses_makes_room_for_a_successor(driver: Driver) -> None:
    refused: SimpleQueue[str] = SimpleQueue()
    chest = Chest(driver, on_fenced=refused.put)
    chest.step = 1 << 62
    assert "a step or version 4611686018427387904" in refused.get(timeout=10)
    chest.heart.stop()
    assert chest.reasons.empty()


def test_an_orphan_is_told_after_its_time_and_keeps_its_rows(driver: Driver) -> None:
    chest = Chest(driver, clock=iter(float(i) for i in range(10**6)).__next__, orphan_after_s=3.0)
    chest.rows.add(ServerRow(shard=0, step=1, time_s=0.0))
    driver.server.stop(0).wait()
    assert chest.reasons.get(timeout=10) == "the driver has not answered for 3 s"
    chest.heart.stop()
