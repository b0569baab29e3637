"""What a server writes to its own log: its link, its work, and whom it waits for."""

import logging
import time
from collections.abc import Callable

from ps.ledger import ServerRow

log = logging.getLogger(__name__)

EVERY_S = 30.0


class ServerLog:
    """One line per epoch and every 30 s, from the rows of the steps between. Not thread-safe: the stats lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: list[ServerRow] = []
        self._since_s = clock()

    def add(self, row: ServerRow, *, ends_epoch: bool) -> None:
        """A step has been applied."""
        self._rows.append(row)
        if ends_epoch or self._clock() - self._since_s >= EVERY_S:
            log.info("%s", line(self._rows, self._clock() - self._since_s))
            self._rows, self._since_s = [], self._clock()


def line(rows: list[ServerRow], seconds: float) -> str:
    """Means per step over `rows`, which took `seconds` together."""
    count, seconds = len(rows), max(seconds, 1e-9)
    link = rows[-1].link_bytes_per_s
    of_link = f" of {link / 1e6:.1f}" if link else ""
    rates = [f"{way} {sum(sizes) / seconds / 1e6:.1f}{of_link} MB/s" for way, sizes in _ways(rows).items()]
    work_s = sum(row.aggregate_s + row.apply_s for row in rows) / count
    text = (
        f"shard {rows[-1].shard} step {rows[-1].step + 1} | {seconds / count * 1e3:.1f} ms | {', '.join(rates)} | sum and apply {work_s * 1e3:.1f} ms"
    )
    waits: dict[int, float] = {}
    for row in rows:
        if row.waits_for is not None:
            waits[row.waits_for] = waits.get(row.waits_for, 0.0) + row.wait_s
    if not waits:
        return text
    rank = max(waits, key=lambda rank: waits[rank])
    return f"{text} | waits for rank {rank}: {waits[rank] / count * 1e3:.1f} ms"


def _ways(rows: list[ServerRow]) -> dict[str, list[int]]:
    return {"in": [row.ingress_bytes for row in rows], "out": [row.egress_bytes for row in rows]}
