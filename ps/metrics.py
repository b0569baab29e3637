"""What monitoring is told of a process: counters and gauges, made of its ledger's rows. Where they go is injected."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from ps.config import MetricsConfig
from ps.ledger import ServerRow, WorkerRow

SPANS = (
    "data_wait", "forward", "backward", "bubble", "copy", "encode", "send", "barrier_wait", "apply", "receive", "install", "checkpoint", "ledger",
    "other",
)  # fmt: skip
"""Of a worker's row: they add up to the step."""
BETWEEN = ("validation", "report")
"""Likewise, after and before the step."""


@dataclass(frozen=True)
class Metric:
    """One family of time series. Names of counters get `_total` where they are shown."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str


STEPS = Metric("pserver_steps", "counter", ("rank",), "Steps that the worker has ended.")
STEP_SECONDS = Metric("pserver_step_seconds", "counter", ("rank",), "Seconds of these steps.")
SPAN_SECONDS = Metric(
    "pserver_span_seconds",
    "counter",
    ("rank", "span"),
    "Seconds of the training thread by what it did: they add up to the steps, but for validation and reports.",
)
EXPOSED_SECONDS = Metric("pserver_exposed_seconds", "counter", ("rank",), "Seconds of communication that compute did not hide.")
SAMPLES = Metric("pserver_samples", "counter", ("rank",), "Samples that the worker has computed gradients of.")
LOSS = Metric("pserver_loss", "gauge", ("rank",), "Mean loss of the worker's last step.")
BYTES = Metric("pserver_bytes", "counter", ("rank", "shard", "way"), "Payload pushed and pulled.")
WIRE_BYTES = Metric("pserver_wire_bytes", "counter", ("rank", "shard", "way"), "Bytes on the worker's connections, headers included.")
VERSION = Metric("pserver_version", "gauge", ("shard",), "Version of the parameters that the shard holds.")
SERVER_BYTES = Metric("pserver_server_bytes", "counter", ("shard", "way"), "Payload that the server has received and sent.")
SERVER_SECONDS = Metric(
    "pserver_server_seconds", "counter", ("shard", "work"), "Thread seconds of checks, of sums and of updates; CPU seconds of all."
)
SERVER_WAIT_SECONDS = Metric("pserver_server_wait_seconds", "counter", ("shard",), "Seconds from the first rank complete to the last.")
RUN = Metric("pserver_run", "gauge", ("name",), "The run's metrics as in metrics.jsonl, and of its mean step; told by the driver.")
RUN_STEP = Metric("pserver_run_step", "gauge", (), "Step that these are of.")


class Meter(Protocol):
    """Where metrics go. Thread-safe."""

    def tell(self, metric: Metric, value: float, *labels: str) -> None:
        """Adds to a counter (nothing below 0), or sets a gauge; values of the labels in the metric's order."""


def tell_row(meter: Meter, row: WorkerRow | ServerRow) -> None:
    """What a row of the ledger says."""
    if isinstance(row, WorkerRow):
        _tell_worker(meter, row)
    else:
        _tell_server(meter, row)


def _tell_worker(meter: Meter, row: WorkerRow) -> None:
    rank = str(row.rank)
    meter.tell(STEPS, 1, rank)
    meter.tell(STEP_SECONDS, row.step_s, rank)
    meter.tell(EXPOSED_SECONDS, row.exposed_s, rank)
    meter.tell(SAMPLES, row.samples, rank)
    for span in (*SPANS, *BETWEEN):
        meter.tell(SPAN_SECONDS, getattr(row, f"{span}_s"), rank, span)
    if row.loss is not None:
        meter.tell(LOSS, row.loss, rank)
    for traffic in row.shards:
        shard = str(traffic.shard)
        for way in ("push", "pull"):
            meter.tell(BYTES, getattr(traffic, f"{way}_bytes"), rank, shard, way)
            meter.tell(WIRE_BYTES, getattr(traffic, f"{way}_wire_bytes"), rank, shard, way)


def _tell_server(meter: Meter, row: ServerRow) -> None:
    shard = str(row.shard)
    meter.tell(VERSION, row.step + 1, shard)
    meter.tell(SERVER_BYTES, row.ingress_bytes, shard, "in")
    meter.tell(SERVER_BYTES, row.egress_bytes, shard, "out")
    for work in ("decode", "aggregate", "apply", "cpu"):
        meter.tell(SERVER_SECONDS, getattr(row, f"{work}_s"), shard, work)
    meter.tell(SERVER_WAIT_SECONDS, row.wait_s, shard)


def tell_run(meter: Meter, metrics: Mapping[str, float], step: int) -> None:
    """What the driver knows."""
    meter.tell(RUN_STEP, step)
    for name, value in metrics.items():
        meter.tell(RUN, value, name)


@contextmanager
def metered(config: MetricsConfig, offset: int, injected: Meter | None = None) -> Iterator[Meter | None]:
    """The meter of a process: `injected`, or an endpoint for Prometheus at the configured port + `offset`; None if there shall be none.

    Raises ConfigError if it may not listen there.
    """
    if config.port is None or injected:
        yield injected if config.port is not None else None
        return
    from ps.prometheus import Endpoint  # brings an HTTP server

    with Endpoint(config.host, config.port + offset) as endpoint:
        yield endpoint
