"""Places where a test may end or stop the process: named, at changes of state. Nothing happens at any of them unless a test has armed it."""

import os
import signal

POINTS = frozenset(
    {
        "worker.registered",
        "worker.joined",
        "worker.installed",
        "worker.sent",
        "worker.landed",
        "worker.settles",
        "worker.reports",
        "worker.reported",
        "worker.finished",
        "server.recovered",
        "server.registered",
        "shard.made",
        "shard.joined",
        "shard.init",
        "shard.taken",
        "shard.summed",
        "shard.held",
        "store.recording",
        "shard.recorded",
        "shard.oldest",
        "shard.written",
        "shard.applied",
        "shard.answered",
        "shard.pulled",
        "store.deciding",
        "shard.decided",
        "shard.cut",
        "checkpoint.written",
        "store.restored",
    }
)

_left: dict[str, tuple[int, int]] = {}


def arm(name: str, hits: int, number: int = signal.SIGKILL) -> None:
    """The process gets the signal when it comes to the place for the `hits`-th time."""
    assert name in POINTS, name
    _left[name] = hits, number


def hit(name: str) -> None:
    """The process is at the place `name`."""
    if name in _left:
        hits, number = _left[name]
        _left[name] = hits - 1, number
        if hits == 1:
            os.kill(os.getpid(), number)
