"""Run directories with a ledger of made-up steps, as real runs leave them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig, to_toml
from deploy.measure.ledger_file import LedgerStep
from deploy.measure.reader import LedgerWriter
from deploy.measure.table import closing_line
from deploy.result import Summary, versions
from deploy.rundir import RunDirectory
from ps.ledger import ServerRow, ShardTraffic, WorkerRow, to_line
from workers.config import TrainConfig

MB = 1_000_000
BEGIN_S = 1_700_000_000.0


def step_of(step: int, num_workers: int = 2, num_servers: int = 2, *, scale: float = 1.0, at: float | None = None, length: float = 0.1) -> LedgerStep:
    """One step of `length` s that ends at `at`; rank 1 computes longest, the others wait for it. `scale`: of the seconds of compute."""
    end = BEGIN_S + (step + 1) * length if at is None else at
    workers, servers = [], []
    for rank in range(num_workers):
        compute_s = scale * length * (0.5 if rank == 1 else 0.4)
        wait_s = scale * length * 0.1 * (rank != 1)
        known = compute_s + wait_s + length * 0.3
        traffics = [
            ShardTraffic(
                shard=shard,
                push_bytes=(shard + 1) * MB,
                pull_bytes=(shard + 1) * MB,
                push_wire_bytes=(shard + 1) * MB + 1000 * rank,
                pull_wire_bytes=(shard + 1) * MB,
                push_s=length * 0.2,
                pull_s=length * 0.1,
                busy_s=length * 0.3,
                push_in_flight_bytes=(shard + 1) * MB / 4,
                pull_in_flight_bytes=(shard + 1) * MB / 2,
                push_from_s=length * 0.6,
                push_to_s=length * 0.25,
                pull_from_s=length * 0.2,
                pull_to_s=length * 0.01,
                wait_s=wait_s,
            )
            for shard in range(num_servers)
        ]
        spans = {
            "data_wait_s": length * 0.05,
            "forward_s": compute_s / 4,
            "backward_s": compute_s * 0.75,
            "copy_s": length * 0.05,
            "send_s": length * 0.05,
        }
        waits = {"barrier_wait_s": wait_s, "apply_s": length * 0.1, "receive_s": length * 0.05, "other_s": length - known}
        exposed_s = length - compute_s - length * 0.05
        workers.append(
            WorkerRow(rank=rank, step=step, time_s=end, step_s=length, **spans, **waits, exposed_s=exposed_s,
                      waits_for=1 if wait_s else None, samples=32, loss=2.0 / (1 + step), shards=traffics)
        )  # fmt: skip
    for shard in range(num_servers):
        moved = num_workers * (shard + 1) * MB
        servers.append(
            ServerRow(shard=shard, step=step, time_s=end - length * 0.02, ingress_bytes=moved, egress_bytes=moved, ingress_s=length * 0.3,
                      aggregate_s=length * 0.05, apply_s=length * 0.1, cpu_s=length * 0.2, wait_s=length * 0.1, waits_for=1,
                      first_s=length * 0.5, complete_s=length * 0.12)
        )  # fmt: skip
    return LedgerStep(step, workers, servers)


def write_run(
    storage: Path,
    name: str,
    steps: Sequence[LedgerStep],
    *,
    history: Sequence[dict[str, Any]] = (),
    config: Config | None = None,
    **summary: Any,
) -> RunDirectory:
    """A run directory; `summary`: fields of summary.json, or none at all for a run whose driver was killed."""
    run = RunDirectory.create(storage, name, "digits")
    num_workers, num_servers = (max([1, *map(len, of)]) for of in ([s.workers for s in steps], [s.servers for s in steps]))
    scaling = ScalingConfig(num_workers=num_workers, num_servers=num_servers)
    task = TaskConfig(name="digits")
    run.write_config(
        to_toml(config or Config(task=task, train=TrainConfig(batch_size=32), scaling=scaling, run=RunConfig(storage_path=str(storage))))
    )
    writer = LedgerWriter(run.comm, num_workers, num_servers)
    for step in steps:
        for worker in step.workers:
            writer.add(("worker", worker.rank), [to_line(worker)])
        for server in step.servers:
            writer.add(("server", server.shard), [to_line(server)])
    window = writer.close()
    for row in history:
        run.append_metrics(row)
    if summary:
        totals = {"comm": window.totals(), "verdict": closing_line(window)} if steps else {}
        scaling_summary = {"num_workers": num_workers, "num_servers": num_servers, "imbalance": 1.0}
        run.write_summary(
            Summary(
                name=name,
                **{"versions": versions(), "scaling": scaling_summary, "steps": sum(1 for step in steps if step.workers), **totals, **summary},
            ).to_dict()
        )
    return run


def history_of(*validation: float) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl with such validation losses, one per epoch."""
    return [
        {"epoch": i, "step": 4 * i, "time_s": BEGIN_S + i, "train_loss": 2.0 / i, "validation_loss": loss, "validation_accuracy": 1 - loss / 3}
        for i, loss in enumerate(validation, 1)
    ]
