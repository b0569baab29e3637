"""Ctrl-C and SIGTERM: both end a run, and neither is lost."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_APART_S = 1.0
"""What follows an interrupt sooner is the same one: it would only break off what the first has begun to end."""


class _Interrupt:
    """Raises KeyboardInterrupt, but no second one at once; sets the event each time."""

    def __init__(self) -> None:
        self.seen = threading.Event()
        self._again_at = 0.0

    def __call__(self, *_: object) -> None:
        self.seen.set()
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + _APART_S
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Both signals raise KeyboardInterrupt, and set the event: an extension module may have swallowed the exception, or made another error
    of it. Inside another such context the event is that one's."""
    outer = signal.getsignal(signal.SIGINT)
    interrupt = outer if isinstance(outer, _Interrupt) else _Interrupt()
    with _handled_by(interrupt):
        yield interrupt.seen


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C out of impatience does not cost what is written here."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """In the main thread, the only one that Python lets handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handled in former.items():
            signal.signal(number, handled)
