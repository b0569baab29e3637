import threading

import pytest

from ps.ledger import RowBuffer, ServerRow, from_line
from ps.stats import ServerStats, Spent


def spent(wall_s: float, cpu_s: float = 0.0) -> Spent:
    its = Spent()
    its.wall_s, its.cpu_s = wall_s, cpu_s
    return its


def rows_of(buffer: RowBuffer) -> list[ServerRow]:
    rows = [from_line(line) for line in buffer.take()]
    assert all(isinstance(row, ServerRow) for row in rows)
    return rows  # type: ignore[return-value]


def test_a_steps_row_holds_its_bytes_and_comes_when_the_step_is_applied() -> None:
    buffer = RowBuffer()
    stats = ServerStats(2, 2, buffer, 1e6)
    for rank in (1, 0):
        stats.received(rank, 5, 100)
    stats.decoded(spent(0.125, 0.125))
    stats.aggregated(spent(0.5, 0.25))
    stats.applied(5, spent(0.25), is_last=False)
    stats.sent(5, 70)
    assert buffer.take() == []
    stats.applied(5, spent(0.25), is_last=True)
    (row,) = rows_of(buffer)
    assert (row.shard, row.step, row.ingress_bytes, row.egress_bytes, row.aggregate_s, row.apply_s) == (2, 5, 200, 70, 0.5, 0.5)
    assert row.work_cpu_s == 0.375 and row.decode_s == 0.125
    assert row.waits_for == 0 and row.wait_s >= 0 and row.link_bytes_per_s == 1e6
    assert row.first_s is not None and row.complete_s is not None
    assert row.first_s - row.complete_s == pytest.approx(row.wait_s)


def test_time_of_a_thread_without_a_processor_is_told_apart() -> None:
    its = Spent()
    with its:
        threading.Event().wait(0.02)
    assert its.wall_s >= 0.02 and its.cpu_s < its.wall_s / 2
    before = its.wall_s
    with its:
        sum(range(1000))
    assert its.wall_s > before


def test_repeated_contributions_and_answers_to_a_finished_step_open_no_row() -> None:
    buffer = RowBuffer()
    stats = ServerStats(0, 1, buffer, None)
    stats.received(0, 0, 10)
    stats.applied(0, spent(0.1), is_last=True)
    stats.received(0, 0, 10)
    stats.sent(0, 10)
    stats.received(0, 1, 20)
    stats.applied(1, spent(0.1), is_last=True)
    assert [(row.step, row.ingress_bytes, row.egress_bytes) for row in rows_of(buffer)] == [(0, 10, 0), (1, 20, 0)]


def test_the_end_of_an_epoch_is_urgent() -> None:
    buffer = RowBuffer()
    stats = ServerStats(0, 1, buffer, None)
    stats.steps_per_epoch = 2
    stats.applied(0, spent(0.0), is_last=True)
    assert not buffer.urgent.is_set()
    stats.applied(1, spent(0.0), is_last=True)
    assert buffer.urgent.is_set()


def test_a_late_part_of_a_finished_step_makes_no_second_row() -> None:
    """Two threads apply the last two runs of a step; the one that is not last may be counted after the other."""
    buffer = RowBuffer()
    stats = ServerStats(0, 1, buffer, None)
    stats.applied(0, spent(0.1), is_last=True)
    stats.applied(0, spent(0.1), is_last=False)
    stats.applied(1, spent(0.1), is_last=True)
    assert [row.step for row in rows_of(buffer)] == [0, 1]
    assert stats._open == {}


def test_the_newest_contribution_is_known_by_rank() -> None:
    stats = ServerStats(0, 3, RowBuffer(), None)
    threads = [threading.Thread(target=stats.received, args=(rank, 0, 1)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
        thread.join()
    stats.received(2, 0, 1)
    rank, at = stats.last_contribution()
    assert rank == 2 and at > 0
