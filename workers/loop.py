"""The training loop of one rank."""

import time

from ps.client import StepTiming
from ps.ledger import WorkerRow
from workers.context import Context
from workers.spans import Spans
from workers.step import Contribution


def train(context: Context) -> None:
    """Runs from the version installed to the last one. Every step: data, forward, backward, push, pull, install."""
    spans = Spans()
    for step in range(context.version, context.plan.total_steps):
        contribution = context.gradient.compute(step, spans)
        exchange_started = time.perf_counter()
        timing = context.client.exchange(step, contribution.weight, context.bound.gradients, context.bound.is_present)
        with spans.span("install"):
            context.bound.install(step + 1)
        context.version = step + 1
        exposed_s = time.perf_counter() - exchange_started
        context.rows.add(_row(context.rank, step, contribution, timing, spans, exposed_s))
        if context.is_epoch_end(step + 1):
            context.rows.urgent.set()
            context.end_epoch(step + 1)
            spans.take()


def _row(rank: int, step: int, contribution: Contribution, timing: StepTiming, spans: Spans, exposed_s: float) -> WorkerRow:
    step_s, seconds = spans.take()
    return WorkerRow(
        rank=rank,
        step=step,
        time_s=time.time(),
        step_s=step_s,
        data_wait_s=seconds.get("data_wait", 0.0),
        compute_s=seconds.get("compute", 0.0),
        copy_s=seconds.get("copy", 0.0),
        encode_s=timing.encode_s,
        send_s=timing.send_s,
        barrier_wait_s=timing.barrier_wait_s,
        apply_s=timing.apply_s,
        receive_s=timing.receive_s,
        install_s=seconds.get("install", 0.0),
        exposed_s=seconds.get("copy", 0.0) + exposed_s,
        waits_for=timing.waits_for,
        samples=contribution.samples,
        loss=contribution.loss if contribution.weight else None,
        shards=timing.shards,
    )
