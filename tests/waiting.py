"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable


def until(done: Callable[[], bool], timeout_s: float) -> None:
    """Returns as soon as `done`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
