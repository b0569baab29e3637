"""What a run has recorded, read back from its directory: whole, failed, still going on, or left by a driver that was killed."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError, safe_open

from deploy.measure.ledger_file import LedgerStep, read_ledger
from deploy.measure.text import counted, seconds
from deploy.measure.window import BETWEEN, SPANS, TRAFFIC, Window
from deploy.rundir import WEIGHTS, RunDirectory

_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element by safetensors' name of its type."""


class Series:
    """Values by step, and sums over all steps; of a step in which a process came back, only bytes. Bytes are payload."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.time_s: list[float] = []
        """When the step's last row was made, seconds since the epoch."""
        self.step_s: list[float] = []
        """Of the mean rank, as `spans`."""
        self.spans: dict[str, list[float]] = {span: [] for span in SPANS}
        self.between: dict[str, list[float]] = {span: [] for span in BETWEEN}
        """Likewise, of the time between steps."""
        self.ingress: defaultdict[int, list[int]] = defaultdict(list)
        """By shard: bytes of each step, as `egress`."""
        self.egress: defaultdict[int, list[int]] = defaultdict(list)
        self.up: defaultdict[int, list[int]] = defaultdict(list)
        """By rank: bytes of each step that left its host, as `down`."""
        self.down: defaultdict[int, list[int]] = defaultdict(list)
        self.rows: defaultdict[int, int] = defaultdict(int)
        """By rank: steps that it has told of."""
        self.traffic: defaultdict[tuple[int, int], dict[str, int]] = defaultdict(lambda: dict.fromkeys(TRAFFIC, 0))
        """By rank and shard: bytes of all steps by the name of the way."""
        self.waits: defaultdict[tuple[int, int], float] = defaultdict(float)
        """By rank and the rank it waited for: seconds in the barrier."""

    def add(self, step: LedgerStep) -> None:
        """A step without rows of workers counts in the bytes of shards only."""
        known = len(self.steps)
        self.steps.append(step.step)
        self.time_s.append(max((row.time_s for row in step.rows), default=0.0))
        typical = [] if step.recovers else step.workers
        self.step_s.append(statistics.fmean(row.step_s for row in typical) if typical else 0.0)
        for span, values in (*self.spans.items(), *self.between.items()):
            values.append(statistics.fmean(getattr(row, span) for row in typical) if typical else 0.0)
        for server in step.servers:
            _append(self.ingress[server.shard], known, server.ingress_bytes)
            _append(self.egress[server.shard], known, server.egress_bytes)
        for worker in step.workers:
            self.rows[worker.rank] += 1
            away = [traffic for traffic in worker.shards if not traffic.local]
            _append(self.up[worker.rank], known, sum(traffic.push_bytes for traffic in away))
            _append(self.down[worker.rank], known, sum(traffic.pull_bytes for traffic in away))
            for traffic in worker.shards:
                sums = self.traffic[worker.rank, traffic.shard]
                for name in TRAFFIC:
                    sums[name] += getattr(traffic, name)
            if worker.waits_for is not None and not step.recovers:
                self.waits[worker.rank, worker.waits_for] += worker.barrier_wait_s

    def close(self) -> None:
        """No step follows: all columns have the same length."""
        for ways in (self.ingress, self.egress, self.up, self.down):
            for column in ways.values():
                column.extend([0] * (len(self.steps) - len(column)))


def _append(column: list[int], known: int, value: int) -> None:
    """After `known` steps, of which some rows may be lost."""
    column.extend([0] * (known - len(column)))
    column.append(value)


@dataclass(frozen=True)
class Tensor:
    """A parameter or buffer, as the run's weights have it."""

    name: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class Recorded:
    """One run."""

    run: RunDirectory
    config_text: str
    summary: Mapping[str, Any] | None
    """None if the run goes on, or its driver was killed."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl."""
    window: Window = field(default_factory=Window)
    series: Series = field(default_factory=Series)
    tensors: list[Tensor] = field(default_factory=list)
    """The largest first; empty if the run has kept no weights."""

    @property
    def status(self) -> str:
        if self.summary:
            return str(self.summary["status"])
        return f"without an end: {'its driver was killed' if self.run.has_lost_its_driver() else 'it goes on, or its driver was killed'}"

    def typical_step(self) -> LedgerStep | None:
        """The one whose length is the median's nearest; None if no step has ended."""
        lengths = self.series.step_s
        if not any(lengths):
            return None
        middle = statistics.median_low(value for value in lengths if value)
        wanted = lengths.index(middle)
        return next(step for number, step in enumerate(read_ledger(self.run.comm)) if number == wanted)


def how_ended(recorded: Recorded) -> str:
    """The end of a sentence that begins with the run."""
    summary = recorded.summary
    if summary is None:
        return f"is {recorded.status} ({counted(recorded.window.num_all, 'step')} in its ledger)"
    said = f"{'is ' if summary['status'] == 'interrupted' else 'has '}{summary['status']} after {counted(summary['steps'], 'step')}"
    said += f" and {seconds(summary['wall_s'])}"
    if summary["error"]:
        said += f": {summary['error_type']}: {summary['error']}"
    return said


def read_run(run: RunDirectory) -> Recorded:
    """Raises ConfigError if a file of the run is damaged."""
    window, series = Window(), Series()
    for step in read_ledger(run.comm):
        window.add(step.step, step.rows)
        series.add(step)
    series.close()
    return Recorded(run, run.config.read_text(), run.read_summary(), run.read_metrics(), window, series, _tensors(run))


def _tensors(run: RunDirectory) -> list[Tensor]:
    for which in WEIGHTS:
        try:
            with safe_open(run.weights(which), framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
                found = [
                    Tensor(name, tuple(its.get_shape()), math.prod(its.get_shape()) * _WIDTHS.get(its.get_dtype(), 4)) for name, its in slices.items()
                ]
        except (OSError, SafetensorError):
            continue
        return sorted(found, key=lambda tensor: (-tensor.num_bytes, tensor.name))
    return []
