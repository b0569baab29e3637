"""The ledger as a Chrome trace, which Perfetto opens: where every worker and server was at every moment. Pure.

A worker's row tells how long its training thread spent on what, but not when: within a step its spans are drawn in the order
of SPANS. From when to when bytes were on their way, and a server had contributions, is measured. Times are by the driver's clock.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deploy.measure.ledger_file import LedgerStep
from deploy.measure.window import SPANS
from ps.ledger import ServerRow, ShardTraffic, WorkerRow

MAX_EVENTS = 200_000
"""Of a trace, about 25 MB: browsers open that, and a run does not end seconds later for it."""
Event = dict[str, Any]

_NAMES = {span: span.removesuffix("_s").replace("_", " ") for span in SPANS}
_TRAINING, _STEPS = 0, 0
"""Threads of a worker and of a server."""


def trace(steps: Iterable[LedgerStep], failures: Sequence[Mapping[str, Any]] = (), *, first: int | None = None) -> dict[str, Any]:
    """The object of a trace file, with at most MAX_EVENTS: of the last steps, or of those from step `first` on.

    `failures`: deaths as in summary.json; each stands where the process had its last row before it.
    """
    kept = _first_that_fit(step for step in steps if step.step >= first) if first is not None else _last_that_fit(steps)
    rows = sorted((row for step in kept for row in step.rows), key=lambda row: row.time_s)
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "steps": f"{kept[0].step} to {kept[-1].step}" if kept else "none",
            "clocks": _clocks(rows),
            "order": "the spans of a training thread are drawn in a fixed order within their step",
        },
        "traceEvents": list(_events(rows, failures)),
    }


def _clocks(rows: Sequence[WorkerRow | ServerRow]) -> str:
    errors = [row.clock_error_s for row in rows if row.clock_error_s is not None]
    if len(errors) < len(rows):
        return "some hosts' own"
    return f"the driver's, to {1e3 * max(errors, default=0.0):.2g} ms"


def _first_that_fit(steps: Iterable[LedgerStep]) -> list[LedgerStep]:
    kept: list[LedgerStep] = []
    left = MAX_EVENTS
    for step in steps:
        left -= _num_events(step)
        if left < 0 and kept:
            break
        kept.append(step)
    return kept


def _last_that_fit(steps: Iterable[LedgerStep]) -> list[LedgerStep]:
    kept = deque[LedgerStep]()
    left = MAX_EVENTS
    for step in steps:
        kept.append(step)
        left -= _num_events(step)
        while left < 0 and len(kept) > 1:
            left += _num_events(kept.popleft())
    return list(kept)


def _num_events(step: LedgerStep) -> int:
    """At most: a slice per span, two between steps, two slices, four levels and three points of an arrow per shard."""
    return sum(3 + len(SPANS) + 9 * len(row.shards) for row in step.workers) + 4 * len(step.servers)


def _events(rows: Sequence[WorkerRow | ServerRow], failures: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    if not rows:
        return
    workers = sorted({row.rank for row in rows if isinstance(row, WorkerRow)})
    shards = sorted(
        {row.shard for row in rows if isinstance(row, ServerRow)} | {t.shard for row in rows if isinstance(row, WorkerRow) for t in row.shards}
    )
    drawing = _Drawing(min(_start_s(row) for row in rows), max(workers, default=-1) + 1)
    for rank in workers:
        yield from drawing.worker(rank, shards)
    for shard in shards:
        yield from drawing.server(shard)
    for row in rows:
        yield from drawing.worker_row(row) if isinstance(row, WorkerRow) else drawing.server_row(row)
    yield from drawing.arrows()
    for failure in failures:
        yield from drawing.death(failure, rows)


def _start_s(row: WorkerRow | ServerRow) -> float:
    return row.time_s - (row.step_s if isinstance(row, WorkerRow) else row.first_s or 0.0)


class _Drawing:
    """Where things stand in the trace: a process for every worker and server, times in microseconds from `origin_s` on."""

    def __init__(self, origin_s: float, num_workers: int) -> None:
        self._origin_s = origin_s
        self._num_workers = num_workers
        self._arrows: defaultdict[tuple[int, int, int], dict[str, tuple[int, int, float]]] = defaultdict(dict)
        """By (step, rank, shard) and phase: process, thread and time of a point."""
        self._ends_us: dict[tuple[int, int], float] = {}  # of the last slice, by track

    def worker(self, rank: int, shards: Sequence[int]) -> Iterator[Event]:
        yield from _process(pid := 1 + rank, f"worker {rank}", {_TRAINING: "training thread"})
        for shard in shards:
            yield from _threads(pid, {_up(shard): f"to shard {shard}", _down(shard): f"from shard {shard}"})

    def server(self, shard: int) -> Iterator[Event]:
        yield from _process(self._server(shard), f"server {shard}", {_STEPS: "steps"})

    def worker_row(self, row: WorkerRow) -> Iterator[Event]:
        pid = 1 + row.rank
        arguments = {"step": row.step, "samples": row.samples, "loss": row.loss, "waits_for": row.waits_for, "exposed_s": row.exposed_s}
        parts = [(_NAMES[span], getattr(row, span)) for span in SPANS]
        start = self._us(row.time_s) - row.step_s * 1e6
        yield from self._between(pid, "report", row.step, start - row.report_s * 1e6, start)
        yield from self._tiled(pid, _TRAINING, f"step {row.step}", start, row.step_s * 1e6, parts, arguments)
        yield from self._between(pid, "validation", row.step, self._us(row.time_s), self._us(row.time_s + row.validation_s))
        for traffic in row.shards:
            yield from self._traffic(pid, row, traffic)

    def server_row(self, row: ServerRow) -> Iterator[Event]:
        if row.first_s is None or row.complete_s is None:
            return
        wait_s = min(row.wait_s, row.first_s - row.complete_s)
        parts = [
            ("contributions", row.first_s - row.complete_s - wait_s),
            (f"waits for rank {row.waits_for}", wait_s),
            ("last sums and updates", row.complete_s),
        ]
        pid, start = self._server(row.shard), self._us(row.time_s - row.first_s)
        fields = ("ingress_bytes", "egress_bytes", "decode_s", "aggregate_s", "apply_s", "cpu_s", "waits_for")
        arguments = {"step": row.step, **{name: getattr(row, name) for name in fields}}
        yield from self._tiled(pid, _STEPS, f"step {row.step}", start, row.first_s * 1e6, parts, arguments)
        for rank in range(self._num_workers):
            self._arrows[row.step, rank, row.shard]["t"] = pid, _STEPS, self._us(row.time_s - row.complete_s)

    def arrows(self) -> Iterator[Event]:
        """Of all rows so far that pushed. No point comes before the former one, though clocks jitter."""
        for way, points in self._arrows.items():
            at = points["s"][2] if "s" in points else None
            for phase in "stf":
                if at is not None and phase in points:
                    pid, tid, own = points[phase]
                    at = max(at, min(own, points.get("f", points[phase])[2]))
                    yield _arrow(phase, way, pid, tid, at)

    def death(self, failure: Mapping[str, Any], rows: Sequence[WorkerRow | ServerRow]) -> Iterator[Event]:
        """An instant on the track of the process that died."""
        role, _, index = str(failure["process"]).partition(" ")
        kind, own = (WorkerRow, "rank") if role == "worker" else (ServerRow, "shard")
        before = [row.time_s for row in rows if isinstance(row, kind) and getattr(row, own) == int(index) and row.step < failure["step"]]
        pid = 1 + int(index) if role == "worker" else self._server(int(index))
        at = self._us(max(before)) if before else 0.0
        yield {"ph": "i", "s": "p", "name": f"dies: {failure['reason']}", "pid": pid, "tid": 0, "ts": at, "args": dict(failure)}

    def _server(self, shard: int) -> int:
        return 1 + self._num_workers + shard

    def _us(self, time_s: float) -> float:
        return (time_s - self._origin_s) * 1e6

    def _tiled(
        self, pid: int, tid: int, name: str, start: float, length: float, parts: Sequence[tuple[str, float]], arguments: Mapping[str, Any]
    ) -> Iterator[Event]:
        """A slice, and within it slices of so many seconds one after the other; the last one has the rest.

        It begins where the track's former one ended if the clock says earlier: the row was written a moment after its step had ended.
        """
        start = round(max(start, self._ends_us.get((pid, tid), 0.0)), 3)
        end = self._ends_us[pid, tid] = round(start + length, 3)
        yield _slice(pid, tid, name, start, end, arguments)
        at, seconds = start, 0.0
        for number, (part, part_s) in enumerate(parts, 1):
            seconds += part_s
            until = end if number == len(parts) else min(end, max(at, round(start + seconds * 1e6, 3)))
            if until > at:
                yield _slice(pid, tid, part, at, until, {"step": arguments["step"]})
            at = until

    def _between(self, pid: int, name: str, step: int, start: float, end: float) -> Iterator[Event]:
        """A slice of the training thread outside of the steps, as far as there is time between them."""
        start, end = round(max(start, self._ends_us.get((pid, _TRAINING), 0.0)), 3), round(end, 3)
        if end > start:
            self._ends_us[pid, _TRAINING] = end
            yield _slice(pid, _TRAINING, name, start, end, {"step": step})

    def _traffic(self, pid: int, row: WorkerRow, traffic: ShardTraffic) -> Iterator[Event]:
        """Two slices, the levels of what is on its way, and both ends of the arrow through the server."""
        for tid, way, first_s, last_s in (
            (_up(traffic.shard), "push", traffic.push_from_s, traffic.push_to_s),
            (_down(traffic.shard), "pull", traffic.pull_from_s, traffic.pull_to_s),
        ):
            if first_s is None or last_s is None:
                continue
            start = round(max(self._us(row.time_s - first_s), self._ends_us.get((pid, tid), 0.0)), 3)
            end = self._ends_us[pid, tid] = max(start, round(self._us(row.time_s - last_s), 3))
            sizes = {name: getattr(traffic, f"{way}_{name}") for name in ("bytes", "wire_bytes")}
            yield _slice(pid, tid, f"{way} step {row.step}", start, end, {"step": row.step, **sizes, "busy_s": getattr(traffic, f"{way}_s")})
            counter = {"ph": "C", "name": f"{way} in flight, shard {traffic.shard}", "pid": pid}
            yield {**counter, "ts": start, "args": {"bytes": round(getattr(traffic, f"{way}_in_flight_bytes"))}}
            yield {**counter, "ts": end, "args": {"bytes": 0}}
            point = ("s", start) if way == "push" else ("f", max(start, end - 1))
            self._arrows[row.step, row.rank, traffic.shard][point[0]] = pid, tid, point[1]


def _up(shard: int) -> int:
    return 1 + 2 * shard


def _down(shard: int) -> int:
    return 2 + 2 * shard


def _process(pid: int, name: str, threads: Mapping[int, str]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    yield from _threads(pid, threads)


def _threads(pid: int, names: Mapping[int, str]) -> Iterator[Event]:
    for tid, name in names.items():
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _slice(pid: int, tid: int, name: str, start: float, end: float, arguments: Mapping[str, Any]) -> Event:
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start, "dur": round(end - start, 3), "args": dict(arguments)}


def _arrow(phase: str, way: tuple[int, int, int], pid: int, tid: int, at: float) -> Event:
    """Part of the arrow push -> apply -> pull of a (step, rank, shard)."""
    return {
        "ph": phase,
        "bp": "e",
        "name": "push, apply, pull",
        "cat": "step",
        "id": "-".join(map(str, way)),
        "pid": pid,
        "tid": tid,
        "ts": round(at, 3),
    }
