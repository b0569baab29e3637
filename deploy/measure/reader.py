"""Rows of the ledger as they reach the driver: joined by step, written to `comm.jsonl`, and summed up for the log."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from deploy.measure.window import Window
from ps.errors import MalformedFrame
from ps.ledger import ServerRow, WorkerRow, from_line

Reporter = tuple[str, int]  # ("worker", rank) or ("server", shard)

MAX_OPEN_STEPS = 1 << 14
"""Steps that wait for rows; with more, the oldest are written as they are."""


class LedgerWriter:
    """Writes a step when every rank and shard has reported it or a later one. Thread-safe."""

    def __init__(self, path: Path, num_workers: int, num_servers: int, first_step: int = 0) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._path = path
        self._file = path.open("ab", buffering=0)
        self.defect: str | None = None
        """Why nothing is written any more: training goes on without."""
        self._newest: dict[Reporter, int] = {("worker", rank): first_step - 1 for rank in range(num_workers)}
        self._newest |= {("server", shard): first_step - 1 for shard in range(num_servers)}
        self._open: defaultdict[int, dict[Reporter, tuple[str, WorkerRow | ServerRow]]] = defaultdict(dict)
        self._written = first_step - 1
        self._window = Window()
        self._total = Window()

    def add(self, sender: Reporter, lines: Sequence[str]) -> None:
        """Lines of one process, in its order; ignored after `close`. A step that comes again counts once. Raises MalformedFrame."""
        parsed = [(line, *_parse(line)) for line in lines]
        for _, reporter, row in parsed:
            if reporter != sender or reporter not in self._newest:  # its keys never change
                raise MalformedFrame(f"a ledger row of {reporter[0]} {reporter[1]} from {sender[0]} {sender[1]}")
            shards = [traffic.shard for traffic in row.shards] if isinstance(row, WorkerRow) else []
            if len(set(shards)) < len(shards) or any(("server", shard) not in self._newest for shard in shards):
                raise MalformedFrame(f"a ledger row of {reporter[0]} {reporter[1]} about shards {shards}")
            if row.waits_for is not None and ("worker", row.waits_for) not in self._newest:
                raise MalformedFrame(f"a ledger row of {reporter[0]} {reporter[1]} that waits for rank {row.waits_for}")
        with self._lock:
            if self._file.closed:
                return
            for line, reporter, row in parsed:
                self._newest[reporter] = max(self._newest[reporter], row.step)
                if row.step > self._written:
                    self._open[row.step][reporter] = line, row
            self._write_up_to(min(self._newest.values()))
            if len(self._open) > MAX_OPEN_STEPS:
                self._write_up_to(sorted(self._open)[-MAX_OPEN_STEPS - 1])

    @property
    def written(self) -> int:
        """The last step written; the one before the first if there is none."""
        with self._lock:
            return self._written

    def take_window(self) -> Window:
        """The steps written since the last call."""
        with self._lock:
            window, self._window = self._window, Window()
        return window

    def close(self) -> Window:
        """Writes what is left, also of steps that lack rows, and returns the whole run. Idempotent."""
        with self._lock:
            if not self._file.closed:
                self._write_up_to(max(self._open, default=self._written))
                self._file.close()
            return self._total

    def _write_up_to(self, last: int) -> None:
        lines: list[str] = []
        for step in sorted(step for step in self._open if step <= last):
            found = self._open.pop(step)
            ordered = [found[reporter] for reporter in self._newest if reporter in found]
            lines.append(f'{{"step":{step},"rows":[{",".join(line for line, _ in ordered)}]}}\n')
            for window in (self._window, self._total):
                window.add(step, [row for _, row in ordered])
        self._written = max(self._written, last)
        try:
            left = b"" if self.defect else "".join(lines).encode()
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            self.defect = f"{self._path} ends before step {self._written}: {error.strerror or error}"


def _parse(line: str) -> tuple[Reporter, WorkerRow | ServerRow]:
    try:
        row = from_line(line)
        return (("worker", row.rank) if isinstance(row, WorkerRow) else ("server", row.shard)), row
    except ValueError as error:
        raise MalformedFrame(f"a line that is no ledger row: {line[:80]!r}: is the sender's version of pserver the same?") from error
