"""What a run says of its bottleneck while it goes on."""

import time
from collections.abc import Callable, Mapping, Sequence

from deploy.callbacks import comm_metrics
from deploy.measure.formats import format_advice
from deploy.measure.reader import LedgerWriter
from deploy.measure.text import counted
from deploy.measure.verdict import log_line

_EVERY_S = 30.0


class BottleneckLog:
    """A line every so often, and one per epoch as soon as the ledger has its last step."""

    def __init__(
        self, ledger: LedgerWriter, push_format: str, *, say: Callable[[str], None], tell: Callable[[Mapping[str, float], int], None]
    ) -> None:
        self._ledger, self._push_format = ledger, push_format
        self._say, self._tell = say, tell
        self._said_s = time.monotonic()
        self._shard_bytes: Sequence[int] | None = None
        """None before training."""
        self._due: int | None = None
        """Version of the last epoch that has ended without a line."""
        self._lacks_ledger = False
        """Whether it has been said that the ledger cannot be written."""
        self._advised = False
        """Whether it has been said that the push format does not pay."""

    def begin(self, shard_bytes: Sequence[int]) -> None:
        """Training begins, with shards of these sizes."""
        self._said_s, self._shard_bytes = time.monotonic(), shard_bytes

    def epoch_ended(self, version: int) -> None:
        self._due = version

    def now_and_then(self) -> None:
        """Says what is due; may be called as often as one likes."""
        epoch_ended = self._due is not None and self._ledger.written >= self._due - 1
        is_training = self._shard_bytes is not None
        if epoch_ended or (is_training and time.monotonic() - self._said_s > _EVERY_S):
            self._say_now()

    def end(self) -> None:
        """Training has ended: the line of its last epoch."""
        if self._due is not None:
            self._say_now()

    def _say_now(self) -> None:
        self._due = None
        self._said_s = time.monotonic()
        if self._ledger.defect and not self._lacks_ledger:
            self._lacks_ledger = True
            self._say(f"warning: training goes on, but {self._ledger.defect}")
        window = self._ledger.take_window()
        self._say(log_line(self._ledger.written + 1, window))
        self._tell(comm_metrics(window), self._ledger.written + 1)
        if window.diverged:
            frames = counted(window.diverged, "frame")
            self._say(f"warning: {frames} came again with other bytes than before; the first ones stand (train.exact = false)")
        if not self._advised and self._shard_bytes and (advice := format_advice(window, self._push_format, self._shard_bytes)):
            self._advised = True
            self._say(advice)
