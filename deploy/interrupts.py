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


class Interrupt:
    """Handles both signals: raises KeyboardInterrupt, but no second one at once. Without a lock, for it may come in the midst of itself."""

    def __init__(self) -> None:
        self.seen = False
        """Whether one has come; an extension module may have swallowed the exception, or made another error of it."""
        self._again_at = 0.0

    def __call__(self, *_: object) -> None:
        self.seen = True
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + _APART_S
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Both signals interrupt what is done here. Inside another such context it is that one's."""
    outer = signal.getsignal(signal.SIGINT)
    interrupt = outer if isinstance(outer, Interrupt) else Interrupt()
    with _handled_by(interrupt):
        yield interrupt


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
