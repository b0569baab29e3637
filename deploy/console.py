"""What a run shows while it goes on and when it ends: drawn on a terminal, plain lines elsewhere."""

import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

import rich.box
import rich.table
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from deploy.measure.table import Table

PLAIN_EVERY_S = 10.0
"""Between two lines of progress where nothing can be drawn."""
CURVE_HEIGHT = 6
CURVE_WIDTH = 60
_EIGHTHS = " ▁▂▃▄▅▆▇█"


class _RichConsole(RichConsole):
    def on_broken_pipe(self) -> None:
        """Whoever read the lines has gone: the run goes on, and its log has them too. Rich itself would end the process."""
        self.quiet = True


class Console:
    """Only the driver has one. `stderr`: keep standard output for others; `quiet`: show nothing. Thread-safe."""

    def __init__(self, quiet: bool, stderr: bool, *, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rich = _RichConsole(file=file or (sys.stderr if stderr else sys.stdout), quiet=quiet, highlight=False)
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total_steps = 0
        self._epochs = 0
        self._said_at = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self, total_steps: int, epochs: int, step: int = 0) -> None:
        """Shows the progress from `step` on."""
        with self._lock:
            self._total_steps, self._epochs = total_steps, epochs
            if self._rich.is_terminal and not self._rich.quiet:
                columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
                self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self._rich, transient=True)
                self._task = self._progress.add_task("training", total=total_steps, completed=step, numbers="")
                self._progress.start()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps have ended; `metrics`: last values by name, for example epoch, loss, samples_per_s, lr."""
        with self._lock:
            named = dict(metrics)
            epoch = f"epoch {named.pop('epoch'):.0f}/{self._epochs}" if "epoch" in named else "training"
            shown = numbers(named)
            if self._progress is not None:
                self._progress.update(self._task, completed=step, description=epoch, numbers=shown)
            elif self._clock() - self._said_at >= PLAIN_EVERY_S:
                self._said_at = self._clock()
                self._print(f"{epoch} | step {step}/{self._total_steps} | {shown}")

    def line(self, text: str) -> None:
        """One line, above the progress."""
        with self._lock:
            self._print(text)

    def epoch(self, epoch: int, metrics: Mapping[str, float], mid_epoch_step: int | None = None) -> None:
        """Epoch `epoch` (from 1) has ended, or so many steps of the run within it, with the validation there."""
        where = "" if mid_epoch_step is None else f", step {mid_epoch_step}"
        self.line(f"epoch {epoch}/{self._epochs}{where} | {numbers(metrics)}")

    def table(self, table: Table) -> None:
        with self._lock:
            if not self._rich.is_terminal:
                self._print(table.plain())
                return
            self._rich.print(*drawn(table, self._rich.width), soft_wrap=True)

    def curve(self, name: str, values: Sequence[float]) -> None:
        """A small plot of one value per epoch; nothing to see below two of them."""
        if len(values) >= 2:
            self.line(plot(name, values, unicode="utf" in self._rich.encoding))

    def close(self) -> None:
        """Takes the progress off the terminal. Idempotent; lines and tables may still follow."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _print(self, text: str) -> None:
        self._rich.print(Text(text), soft_wrap=True)


def drawn(table: Table, width: int) -> tuple[Text, rich.table.Table]:
    """Title and table for a terminal of that width; with a column for every row where that is narrower and must be."""
    if table.width > width:
        table = min(table, table.transposed(), key=lambda form: form.width)
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, column in enumerate(table.columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        made.add_row(*row)
    return Text(f"\n{table.title}", "italic"), made


def plot(name: str, values: Sequence[float], unicode: bool = True) -> str:
    """Columns of text, one per value or per mean of neighbours; the axis names the largest and the smallest value."""
    values = _squeezed(values, CURVE_WIDTH)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    heights = [1 + round((CURVE_HEIGHT * 8 - 1) * (value - low) / span) if math.isfinite(value) else 0 for value in values]
    labels = [f"{high:.4g}", *[""] * (CURVE_HEIGHT - 2), f"{low:.4g}"]
    width = max(map(len, labels))
    lines = [name]
    for row, label in enumerate(labels):
        floor = (CURVE_HEIGHT - 1 - row) * 8
        eighths = [max(0, min(8, height - floor)) for height in heights]
        bars = "".join(_EIGHTHS[filled] if unicode else "#" if filled else " " for filled in eighths)
        lines.append(f"  {label.rjust(width)} |{bars}".rstrip())
    return "\n".join(lines)


def _squeezed(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * column // width for column in range(width + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]


def numbers(metrics: Mapping[str, float]) -> str:
    """Names and values on one line."""
    return "  ".join(f"{name.replace('_per_s', '/s')} {value:.4g}" for name, value in metrics.items())
