import logging

import pytest

from ps.ledger import ServerRow
from ps.server_log import EVERY_S, ServerLog


def row(step: int, **fields: object) -> ServerRow:
    return ServerRow(shard=1, step=step, time_s=0.0, **fields)  # type: ignore[arg-type]


def test_a_server_logs_its_link_its_work_and_whom_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    written = ServerLog(clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for step, waits_for in enumerate([2, 0, 2]):
            now[0] += 1.0
            fields = {"ingress_bytes": 4_000_000, "egress_bytes": 2_000_000, "aggregate_s": 0.01, "apply_s": 0.02}
            written.add(row(step, waits_for=waits_for, wait_s=0.3, link_bytes_per_s=5e6, **fields), ends_epoch=step == 2)
    (line,) = caplog.messages
    assert line == "shard 1 step 3 | 1000.0 ms | in 4.0 of 5.0 MB/s, out 2.0 of 5.0 MB/s | sum and apply 30.0 ms | waits for rank 2: 200.0 ms"


def test_without_the_end_of_an_epoch_a_line_comes_every_so_often(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    written = ServerLog(clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for step in range(7):
            now[0] += EVERY_S / 3
            written.add(row(step), ends_epoch=False)
    assert [message.split(" | ")[0] for message in caplog.messages] == ["shard 1 step 3", "shard 1 step 6"]
