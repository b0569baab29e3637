"""Waiting for things to happen in other processes."""

import time
from collections.abc import Callable

from deploy.launch.base import Ending, Launcher, ProcessKey


def ending_of(launcher: Launcher, key: ProcessKey, timeout_s: float = 20.0) -> Ending:
    """The ending of `key`, asked for again and again, as the Trainer does."""
    deadline = time.monotonic() + timeout_s
    while key not in (ended := launcher.ended()):
        assert time.monotonic() < deadline, f"{key} has not ended"
        time.sleep(0.01)
    return ended[key]


def until(done: Callable[[], bool], timeout_s: float) -> None:
    """Returns as soon as `done`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)
