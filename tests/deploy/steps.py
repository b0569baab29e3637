"""Made-up steps as rows of the ledger, each with a bottleneck planted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deploy.measure.window import Window
from ps.ledger import ServerRow, ShardTraffic, WorkerRow

MB = 1_000_000
TIMES = ("push_s", "pull_s", "busy_s")
"""Of a shard as its ranks see it."""
COMPUTE = {"data_wait_s": 0.01, "compute_s": 0.30, "apply_s": 0.02, "receive_s": 0.04}
THIN = {"compute_s": 0.05, "send_s": 0.25, "receive_s": 0.10, "apply_s": 0.01}
EVEN = {"forward_s": 0.02, "backward_s": 0.04, "bubble_s": 0.03, "receive_s": 0.005}
"""Of a rank that mostly computes, of one that mostly sends, and of a stage, which waits for others."""


def step_of(
    workers: Sequence[dict[str, float]],
    shards: Sequence[dict[str, Any]] = ({"push_s": 0.02}, {"push_s": 0.02}),
    shard_bytes: int = MB,
) -> list[WorkerRow | ServerRow]:
    """One step; ranks that are done early wait for the slowest. `busy_s` of a shard: what every rank saw of it."""
    lengths = [sum(value for name, value in spans.items() if name != "link_bytes_per_s") for spans in workers]
    slowest = lengths.index(max(lengths))
    rows: list[WorkerRow | ServerRow] = []
    for rank, spans in enumerate(workers):
        wait_s = max(lengths) - lengths[rank]
        traffic = [
            ShardTraffic(
                shard=shard, push_bytes=shard_bytes, pull_bytes=shard_bytes, **({"busy_s": 0.04} | {k: v for k, v in fields.items() if k in TIMES})
            )
            for shard, fields in enumerate(shards)
        ]
        rows.append(
            WorkerRow(
                rank=rank,
                step=0,
                time_s=0.0,
                step_s=max(lengths),
                barrier_wait_s=wait_s,
                waits_for=slowest if wait_s else None,
                exposed_s=max(lengths) - spans.get("compute_s", 0.0) - spans.get("data_wait_s", 0.0),
                shards=traffic,
                **{"backward_s" if name == "compute_s" else name: value for name, value in spans.items()},  # type: ignore[arg-type]
            )
        )
    for shard, fields in enumerate(shards):
        own = {name: value for name, value in fields.items() if name not in TIMES}
        moved = {"ingress_bytes": shard_bytes * len(workers), "egress_bytes": shard_bytes * len(workers)}
        rows.append(ServerRow(shard=shard, step=0, time_s=0.0, **(moved | own)))
    return rows


def window_of(*steps: list[WorkerRow | ServerRow]) -> Window:
    window = Window()
    for number, rows in enumerate(steps):
        window.add(number, rows)
    return window


def ranks(number: int, **spans: float) -> list[dict[str, float]]:
    return [dict(spans) for _ in range(number)]


def with_bytes(rows: list[WorkerRow | ServerRow], sizes: Sequence[int]) -> list[WorkerRow | ServerRow]:
    """The step with so many bytes of each shard, of every rank and both ways."""
    changed: list[WorkerRow | ServerRow] = []
    for row in rows:
        if isinstance(row, WorkerRow):
            changed.append(replace(row, shards=[replace(t, push_bytes=sizes[t.shard], pull_bytes=sizes[t.shard]) for t in row.shards]))
        else:
            moved = sizes[row.shard] * sum(isinstance(other, WorkerRow) for other in rows)
            changed.append(replace(row, ingress_bytes=moved, egress_bytes=moved))
    return changed


def staged(*stages: dict[str, float], num_workers: int = 2, micro_batches: int = 2, samples: int = 64) -> list[WorkerRow | ServerRow]:
    """One step of ranks of these stages, of which the last counts samples."""
    rows = step_of([*stages] * num_workers)
    for row in rows:
        if isinstance(row, WorkerRow):
            row.num_stages, row.micro_batches = len(stages), micro_batches
            row.samples = samples if row.rank % len(stages) == len(stages) - 1 else 0
    return rows
