"""Compute of stages, and what they pass on, from the ledger of a run whose ranks are split. Pure."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from deploy.measure.ledger_file import LedgerStep
from deploy.predict.scenario import Scenario
from ps.ledger import WorkerRow


def with_stages(steps: Sequence[LedgerStep], run: Scenario) -> Scenario:
    """`run` with the compute of each stage on the typical rank, as processors did it (while stages wait for each other, others have theirs),
    data it waits for included, and what it passes on."""
    assert run.pipeline
    stages = range(run.num_stages)
    data, forward, backward, on_processor = (
        [_typical(steps, run, stage, lambda row, name=name: getattr(row, name)) for stage in stages]  # type: ignore[misc]
        for name in ("data_wait_s", "forward_s", "backward_s", "compute_cpu_s")
    )
    parts = [min(1.0, cpu / (f + b)) if cpu and f + b else 1.0 for cpu, f, b in zip(on_processor, forward, backward, strict=True)]
    forward = [data_s + part * s for data_s, part, s in zip(data, parts, forward, strict=True)]
    backward = [part * s for part, s in zip(parts, backward, strict=True)]
    rows = [row for step in steps for row in step.workers]
    pipeline = replace(
        run.pipeline,
        forward_shares=tuple(value / sum(forward) for value in forward),
        backward_shares=tuple(value / sum(backward) for value in backward),
        passed_bytes=_passed(steps, run),
    )
    samples = sum(row.samples for row in rows) / len(steps) / run.num_workers
    return replace(run, forward_s=sum(forward), backward_s=sum(backward), samples=samples, pipeline=pipeline)


def _passed(steps: Sequence[LedgerStep], run: Scenario) -> tuple[float, ...]:
    """Behind each stage but the last: the first sends activations only, each other one also as many gradients as it got activations."""
    found: list[float] = []
    for stage in range(run.num_stages - 1):
        sent = _typical(steps, run, stage, lambda row: float(row.passed_bytes))
        found.append(max(0.0, sent - (found[-1] if found else 0.0)))
    return tuple(found)


def _typical(steps: Sequence[LedgerStep], run: Scenario, stage: int, value: Callable[[WorkerRow], float]) -> float:
    """Of that stage of the typical rank; the lower of two, for the other one may be slow."""
    by_rank = [
        statistics.median(value(row) for step in steps for row in step.workers if row.rank == rank * run.num_stages + stage)
        for rank in range(run.num_workers)
    ]
    return statistics.median_low(by_rank)
