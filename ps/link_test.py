"""Measures a member's link at Join: asks all its shards at once for echoes, over the streams that will carry the frames."""

import threading
import time
from collections.abc import Callable, Sequence

from ps.line import Line
from ps.pacing import Pacing, Probe, Windows


class LinkTest:
    """One test at a time. `changed` guards it and the lines; it is notified when an echo has come."""

    def __init__(self, changed: threading.Condition, windows: Windows) -> None:
        self._changed = changed
        self._windows = windows
        self._awaited = 0
        """Echoes of the round that have not come back."""

    def run(self, lines: Sequence[Line], wait: Callable[[Callable[[], bool]], None], is_broken: Callable[[], bool]) -> Pacing | None:
        """Frames that suit the link to these lines; None if a stream broke before anything was learnt. `wait` waits under the lock."""
        probe = Probe(self._windows)
        for size in probe.rounds():
            started = time.monotonic()
            with self._changed:
                self._awaited = len(lines)
                for line in lines:
                    line.probe(size // len(lines))
                wait(lambda: not self._awaited or is_broken())
                if is_broken():
                    break
            probe.echoed(size, time.monotonic() - started)
        return probe.pacing

    def echoed(self) -> None:
        """The receipt of a probe has come."""
        self._awaited -= 1
