"""What a server counts of each step for the ledger."""

import math
import threading
import time

from ps.cores import usable_cores
from ps.ledger import RowBuffer, ServerRow, covered
from ps.server_log import ServerLog


class Spent:
    """Seconds of one thread, by the clock and on a processor: `with` it around every stretch of its work."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0
        self._began = 0.0, 0.0

    def __enter__(self) -> "Spent":
        self._began = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._began[0]
        self.cpu_s += time.thread_time() - self._began[1]

    def split(self, share: float) -> "Spent":
        """So much of the time goes to the one that is returned, the rest stays."""
        other = Spent()
        other.wall_s, other.cpu_s = share * self.wall_s, share * self.cpu_s
        self.wall_s, self.cpu_s = self.wall_s - other.wall_s, self.cpu_s - other.cpu_s
        return other


class ServerStats:
    """Counts of the steps in progress; a step's row is handed on when it has been applied. Thread-safe."""

    def __init__(self, shard: int, num_members: int, rows: RowBuffer, link_bytes_per_s: float | None) -> None:
        self._shard = shard
        self._rows = rows
        self._link = link_bytes_per_s
        self._lock = threading.Lock()  # guards everything below
        self._open: dict[int, ServerRow] = {}
        self._first: list[float | None] = [None] * num_members
        self._last = [0.0] * num_members
        self._last_member = 0
        self._newest = -1
        self._decode_s = self._aggregate_s = self._work_cpu_s = 0.0
        self._squares = [0.0, 0.0, 0]
        """Of the ranks' gradients and of the mean; chunks of the mean that are in it."""
        self._cpu_s = time.process_time()
        """At the last row."""
        self._cores = usable_cores()
        self._log = ServerLog()
        self.steps_per_epoch = 1
        """Set by the first member that joins, as `num_optimizer`."""
        self.num_optimizer = 0
        """Chunks of the shard that an optimizer updates."""

    def _row(self, step: int) -> ServerRow:
        if step not in self._open:
            self._open[step] = ServerRow(shard=self._shard, step=step, time_s=0.0, link_bytes_per_s=self._link)
        return self._open[step]

    def received(self, member: int, step: int, num_bytes: int) -> None:
        """A contribution has been taken."""
        now = time.monotonic()
        with self._lock:
            if self._first[member] is None:
                self._first[member] = now
            self._last[member] = now
            self._last_member = member
            if step > self._newest:
                self._row(step).ingress_bytes += num_bytes

    def diverged(self, step: int) -> None:
        """A contribution came again with other bytes."""
        with self._lock:
            if step > self._newest:
                self._row(step).diverged += 1

    def last_contribution(self) -> tuple[int, float]:
        """Who brought the newest contribution, and when (monotonic clock)."""
        with self._lock:
            return self._last_member, self._last[self._last_member]

    def sent(self, step: int, num_bytes: int) -> None:
        """An answer to `step` has been queued; repeated ones, after the step's row has gone, are not counted."""
        with self._lock:
            if step in self._open:
                self._open[step].egress_bytes += num_bytes

    def decoded(self, spent: Spent) -> None:
        """Contributions have been checked and made into what can be summed."""
        with self._lock:
            self._decode_s += spent.wall_s
            self._work_cpu_s += spent.cpu_s

    def aggregated(self, spent: Spent) -> None:
        with self._lock:
            self._aggregate_s += spent.wall_s
            self._work_cpu_s += spent.cpu_s

    def contributed(self, square: float) -> None:
        """The squared norm of one contribution, of those steps in which norms are taken."""
        with self._lock:
            self._squares[0] += square

    def averaged(self, square: float, num_chunks: int) -> None:
        """The squared norm of so many chunks of the mean, likewise."""
        with self._lock:
            self._squares[1] += square
            self._squares[2] += num_chunks

    def applied(self, step: int, spent: Spent, *, is_last: bool) -> None:
        """A run has been applied and its answers encoded; `is_last`: the shard has the next version."""
        with self._lock:
            if step <= self._newest:
                return  # the row went with the run that another thread applied last
            row = self._row(step)
            row.apply_s += spent.wall_s
            self._work_cpu_s += spent.cpu_s
            if is_last:
                self._close(row)
                self._rows.add(self._open.pop(step))
                ends_epoch = (step + 1) % self.steps_per_epoch == 0
                self._log.add(row, ends_epoch=ends_epoch)
                if ends_epoch:
                    self._rows.urgent.set()

    def _close(self, row: ServerRow) -> None:
        self._newest = row.step
        ended, row.time_s = time.monotonic(), time.time()
        row.decode_s, row.aggregate_s, row.work_cpu_s = self._decode_s, self._aggregate_s, self._work_cpu_s
        self._decode_s = self._aggregate_s = self._work_cpu_s = 0.0
        ranks, mean, chunks = self._squares
        if chunks and chunks == self.num_optimizer and math.isfinite(ranks + mean):  # else a former process has seen the rest
            row.rank_squares, row.mean_square = ranks, mean
        self._squares = [0.0, 0.0, 0]
        row.cores = self._cores
        row.cpu_s, self._cpu_s = (now := time.process_time()) - self._cpu_s, now
        spans = sorted((first, last) for first, last in zip(self._first, self._last, strict=True) if first is not None)
        row.ingress_s = covered(spans)
        if spans:
            row.first_s, row.complete_s = ended - spans[0][0], ended - max(last for _, last in spans)
        ends = sorted((last, member) for member, last in enumerate(self._last) if self._first[member] is not None)
        if len(ends) > 1:
            row.wait_s = ends[-1][0] - ends[0][0]
            row.waits_for = ends[-1][1]
        self._first = [None] * len(self._first)
