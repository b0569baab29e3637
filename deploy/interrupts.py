"""Ctrl-C and SIGTERM: both end a run, and neither is lost."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Both signals raise KeyboardInterrupt, and set the event: an extension module may have swallowed the exception."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield interrupted


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
