"""`pserver top`: a run while it goes on, from its driver's files only."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from deploy.books import metrics_of
from deploy.console import drawn, numbers
from deploy.measure.ledger_file import LedgerStep, LedgerTail
from deploy.measure.table import tables, without_verdict
from deploy.measure.text import seconds
from deploy.measure.verdict import log_line
from deploy.measure.window import Window
from deploy.rundir import RunDirectory

RECENT_STEPS = 50
"""Steps that what is shown is the mean of."""
LAST_BYTES = 4 << 20
"""Of a ledger, what is read at the start."""
SILENT_S = 10.0
"""Without a step for so long, it is said where to look."""
EVERY_S = 1.0


class Top:
    """What is known of a run now; `poll` it. Not thread-safe."""

    def __init__(self, run: RunDirectory, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._clock = clock
        self._tail = LedgerTail(run.comm, last_bytes=LAST_BYTES)
        self._recent = deque[LedgerStep](maxlen=RECENT_STEPS)
        self._since_s = clock()

    def poll(self) -> bool:
        """Reads what is new; False if the run has ended, or its driver."""
        has_ended = self._run.summary.is_file() or self._run.has_lost_its_driver()  # asked first: the last rows lie there then
        self._recent.extend(self._tail.poll())
        return not has_ended

    def view(self, width: int | None) -> RenderableType:
        """What to show on a terminal of that width; None: in a file or pipe."""
        window = Window()
        for step in self._recent:
            window.add(step.step, step.rows)
        summary = self._run.read_summary()
        lines = [self._title(summary)]
        if summary and summary["error"]:
            lines.append(f"{summary['error_type']}: {summary['error']}")
        if history := self._run.read_metrics():
            lines.append(f"epoch {history[-1].get('epoch')}, step {history[-1].get('step')} | {numbers(metrics_of(history[-1]))}")
        if self._recent:
            told = [step.step + 1 for step in self._recent if step.workers]
            lines.append(log_line(told[-1], window) if told else without_verdict(window))
        if width is None:
            return Text("\n".join([*lines, *(table.plain() for table in tables(window))]))
        return Group(Text("\n".join(lines)), *(part for table in tables(window) for part in drawn(table, width)))

    def _title(self, summary: Mapping[str, Any] | None) -> str:
        parts = [f"run {self._run.name}", str(summary["status"]) if summary else self._state()]
        ends = [max(row.time_s for row in step.rows) for step in self._recent if step.rows]
        if len(ends) > 1 and ends[-1] > ends[0]:
            samples = sum(row.samples for step in list(self._recent)[1:] for row in step.workers)
            parts.append(f"{(len(ends) - 1) / (ends[-1] - ends[0]):.3g} steps/s, {samples / (ends[-1] - ends[0]):.4g} samples/s")
        losses = [(row.loss, row.samples) for row in self._recent[-1].workers if row.loss is not None] if self._recent else []
        if weight := sum(count for _, count in losses):
            parts.append(f"loss {sum(loss * count for loss, count in losses) / weight:.4g}")
        return " | ".join(parts)

    def _state(self) -> str:
        newest = max((row.time_s for step in self._recent for row in step.rows), default=self._since_s)
        silent_s = self._clock() - newest
        if self._run.has_lost_its_driver():
            return f"its driver was killed: the last step ended {seconds(silent_s)} ago" if self._recent else "its driver was killed"
        if silent_s < SILENT_S:
            return "goes on"
        return f"no step for {seconds(silent_s)}: pserver doctor --run {self._run.name} says who waits for whom"


def watch(run: RunDirectory, console: Console, pause: Callable[[float], None] = time.sleep) -> None:
    """On a terminal, shows the run until it ends or Ctrl-C; elsewhere prints once how it stands."""
    top = Top(run)
    goes_on = top.poll()
    if not (console.is_terminal and goes_on):
        console.print(top.view(console.width if console.is_terminal else None), soft_wrap=True)
        return
    with Live(top.view(console.width), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while goes_on:
            pause(EVERY_S)
            goes_on = top.poll()
            live.update(top.view(console.width), refresh=True)
