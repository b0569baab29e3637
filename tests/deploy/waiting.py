"""Waiting for processes to end."""

import time

from deploy.launch.base import Ending, Launcher, ProcessKey


def ending_of(launcher: Launcher, key: ProcessKey, timeout_s: float = 20.0) -> Ending:
    """The ending of `key`, asked for again and again, as the Trainer does."""
    deadline = time.monotonic() + timeout_s
    while key not in (ended := launcher.ended()):
        assert time.monotonic() < deadline, f"{key} has not ended"
        time.sleep(0.01)
    return ended[key]
