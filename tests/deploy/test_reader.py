"""Rows of all processes on their way to one ledger: joined by step, written, and refused where they are none of the run's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.measure import reader
from deploy.measure.ledger_file import read_ledger
from deploy.measure.reader import LedgerWriter
from ps.errors import MalformedFrame
from ps.ledger import ServerRow, ShardTraffic, WorkerRow, to_line
from tests.deploy.ledgers import MB, step_of


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerWriter]:
    ledger = LedgerWriter(tmp_path / "comm.jsonl", num_workers=2, num_servers=1)
    try:
        yield ledger
    finally:
        ledger.close()


def lines_of(who: str, index: int, *steps: int) -> list[str]:
    made = [step_of(step, 2, 1) for step in steps]
    return [to_line((step.workers if who == "worker" else step.servers)[index]) for step in made]


def written(path: Path) -> list[tuple[int, int]]:
    return [(step.step, len(step.rows)) for step in read_ledger(path / "comm.jsonl")]


def test_a_step_is_written_when_all_have_reported_it_or_a_later_one(ledger: LedgerWriter, tmp_path: Path) -> None:
    ledger.add(("worker", 0), lines_of("worker", 0, 0, 1, 2))
    ledger.add(("server", 0), lines_of("server", 0, 0, 2))  # lost the row of step 1
    assert written(tmp_path) == []
    ledger.add(("worker", 1), lines_of("worker", 1, 0, 1))
    assert written(tmp_path) == [(0, 3), (1, 2)]
    ledger.add(("worker", 1), lines_of("worker", 1, 1, 2))
    assert written(tmp_path) == [(0, 3), (1, 2), (2, 3)]


def test_a_window_holds_the_steps_since_the_last_one_and_the_total_all(ledger: LedgerWriter) -> None:
    for who, index in (("worker", 0), ("worker", 1), ("server", 0)):
        ledger.add((who, index), lines_of(who, index, 0, 1))
    window = ledger.take_window()
    assert (window.num_steps, window.first_step, window.last_step) == (2, 0, 1)
    assert ledger.take_window().num_steps == 0
    total = ledger.close()
    assert total.totals()["push_bytes"] == 4 * MB
    assert total.totals()["shards"]["0"]["pull_bytes"] == 4 * MB


def test_close_writes_what_is_incomplete(ledger: LedgerWriter, tmp_path: Path) -> None:
    ledger.add(("worker", 1), lines_of("worker", 1, 0))
    assert ledger.close().num_steps == 1
    ledger.close()
    ledger.add(("worker", 1), lines_of("worker", 1, 1))  # a heartbeat that was late
    assert written(tmp_path) == [(0, 1)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        '{"kind": "server", "shard": 0}',
        '{"kind": "worker", "shards": [1], "rank": 0}',
        '{"kind":"server","shard":0,"step":0,"time_s":NaN}',
        '{"kind":"server","shard":0,"step":0,\n"time_s":0.0}',
        '{"kind":"server","shard":0,"step":0,"time_s":0.0,"more":1}',
        '{"kind":"server","shard":0,"step":"0","time_s":0.0}',
        '{"kind":"server","shard":0,"step":-1,"time_s":0.0}',
        '{"kind":"server","shard":0,"step":99999999999999999999,"time_s":0.0}',
        '{"kind":"server","shard":0,"step":0,"time_s":' + "[" * 100_000,
        to_line(WorkerRow(rank=0, step=0, time_s=0.0, step_s=0.0)),
        to_line(ServerRow(shard=9, step=0, time_s=0.0)),
        to_line(ServerRow(shard=0, step=0, time_s=0.0, waits_for=7)),
        to_line(ServerRow(shard=0, step=0, time_s=0.0, ingress_bytes=1 << 53)),
    ],
)
def test_what_is_no_row_of_the_run_is_refused(ledger: LedgerWriter, line: str) -> None:
    with pytest.raises(MalformedFrame, match="ledger row"):
        ledger.add(("server", 0), [line])


def test_a_row_about_a_shard_that_the_run_does_not_have_is_refused(ledger: LedgerWriter) -> None:
    with pytest.raises(MalformedFrame, match="a ledger row of worker 0 about shards"):
        ledger.add(("worker", 0), [to_line(WorkerRow(rank=0, step=0, time_s=0.0, step_s=0.0, shards=[ShardTraffic(shard=7)]))])
    with pytest.raises(MalformedFrame, match="a ledger row of worker 0 about shards"):
        ledger.add(("worker", 0), [to_line(WorkerRow(rank=0, step=0, time_s=0.0, step_s=0.0, shards=[ShardTraffic(shard=0)] * 2))])


def test_a_process_that_claims_to_be_ahead_fills_no_memory(ledger: LedgerWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_STEPS", 3)
    for step in range(0, 100, 10):
        ledger.add(("server", 0), [to_line(ServerRow(shard=0, step=step, time_s=0.0))])
    assert written(tmp_path) == [(step, 1) for step in range(0, 70, 10)]
