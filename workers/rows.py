"""A worker's rows of the ledger: one per step, handed on when nothing can be added to it any more."""

import math
import time

from ps.cores import usable_cores
from ps.ledger import RowBuffer, WorkerRow
from ps.pacing import Pacing
from ps.stages.links import StageLinks
from ps.stages.memory import peak_bytes
from ps.step_clock import StepTiming
from workers.config import WorkerSettings
from workers.spans import Spans
from workers.step import Contribution

OWN = ("data_wait", "forward", "backward", "bubble", "copy", "install", "checkpoint", "ledger")
"""Spans of the training thread that are in the row as they are."""
WAITS = ("send", "barrier_wait", "apply", "receive")
"""What the exchange waited for; the rest of it is encoding."""


class StepRows:
    """Of one session, which says where steps, validations and reports end. One thread uses it."""

    def __init__(self, settings: WorkerSettings, spans: Spans, out: RowBuffer, links: StageLinks | None) -> None:
        """`spans`: everything since `begin` is a step's, a validation's or a report's. `links`: to the neighbouring stages, if the rank is split."""
        self._settings = settings
        self._spans = spans
        self._out = out
        self._links = links
        self._held: WorkerRow | None = None
        """Row of the last step, while a validation of its version may follow."""
        self._report_s = 0.0
        """Seconds of the last report that are in no row yet."""
        self._passed_bytes = 0
        """What had been sent to other stages when the step began."""
        self._cpu_s = 0.0
        """CPU seconds of the process at the last row."""

    def begin(self) -> None:
        """The first step begins."""
        self._spans.take()
        self._take_passed_bytes()
        self._cpu_s = time.process_time()

    def end_step(self, step: int, contribution: Contribution, timing: StepTiming, *, came_back: bool, joined: Pacing | None) -> None:
        """All of version `step` + 1 is here, and all of `step` was when the last one ended. `came_back`: it is the first step of a process that was
        started again. `joined`: the frames that the process has chosen, in its first step."""
        step_s, seconds = self._spans.take()
        cpu_s, self._cpu_s = -self._cpu_s, time.process_time()
        now, time_s = time.monotonic(), time.time()
        timing.end(now)
        own = {f"{name}_s": seconds.get(name, 0.0) for name in OWN}
        waits = {f"{name}_s": getattr(timing, f"{name}_s") for name in WAITS}
        report_s, self._report_s = self._report_s, 0.0
        exchange = {"encode_s": seconds.get("exchange", 0.0) - sum(waits.values()), **waits}
        settings = self._settings
        self._held = WorkerRow(
            rank=settings.number,
            step=step,
            time_s=time_s,
            step_s=step_s,
            **own,
            **exchange,
            other_s=step_s - sum(own.values()) - sum(exchange.values()),
            exposed_s=own["copy_s"] + own["install_s"] + seconds.get("exchange", 0.0),
            waits_for=timing.waits_for,
            num_stages=settings.num_stages,
            micro_batches=settings.train.accumulate * settings.pipeline.micro_batches,
            rejoined=timing.rejoined or came_back,
            cpu_s=cpu_s + self._cpu_s,
            compute_cpu_s=self._spans.compute_cpu_s,
            report_s=report_s,
            samples=contribution.samples,
            loss=contribution.loss if math.isfinite(contribution.loss) else None,
            shards=timing.shards,
            link_bytes_per_s=settings.comm.link_bytes_per_s(worker=settings.number),
            passed_bytes=self._take_passed_bytes(),
            peak_bytes=peak_bytes() if self._links else None,
            cores=usable_cores() if joined else None,
            pacing=joined if joined and joined.is_measured else None,
        )

    def end_validation(self) -> None:
        """Of the last step's version, or of none: what has passed since the step is in its row."""
        if self._held:
            self._held.validation_s = self._spans.take()[0]
        self.hand_on()

    def end_report(self) -> None:
        """What has passed since is in the next step's row; what was sent to other stages, by a validation, in none."""
        self._report_s = self._spans.take()[0]
        self._take_passed_bytes()

    def hand_on(self) -> None:
        """What the last step's row says is complete: no validation of its version follows any more."""
        if self._held:
            self._out.add(self._held)
            self._held = None

    def send_at_once(self) -> None:
        """What has been handed on goes to the driver without waiting for the next heartbeat."""
        self._out.urgent.set()

    def _take_passed_bytes(self) -> int:
        sent = self._links.sent_bytes if self._links else 0
        before, self._passed_bytes = self._passed_bytes, sent
        return sent - before
