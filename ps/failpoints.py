"""Places where a test may end or stop the process: named, at changes of state. Nothing happens at any of them unless a test has armed it."""

import os
import signal
from collections.abc import Callable

POINTS = frozenset(
    {
        "worker.registered",
        "worker.joined",
        "worker.brought",
        "worker.pulled",
        "worker.rejoined",
        "worker.installed",
        "worker.encoded",
        "worker.sent",
        "worker.landed",
        "worker.settles",
        "worker.reports",
        "worker.reported",
        "worker.finished",
        "stage.took",
        "stage.put",
        "server.recovered",
        "server.registered",
        "shard.made",
        "shard.joined",
        "shard.opened",
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

_left: dict[str, tuple[int, Callable[[], object]]] = {}
_watcher: Callable[[str], object] | None = None


def die() -> None:
    """Kills the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, hits: int, act: Callable[[], object] = die) -> None:
    """`act` is called when the process comes to the place for the `hits`-th time."""
    assert name in POINTS, name
    _left[name] = hits, act


def watch(watcher: Callable[[str], object] | None) -> None:
    """`watcher` is told every place that the process comes to; None: nobody."""
    global _watcher
    _watcher = watcher


def hit(name: str) -> None:
    """The process is at the place `name`."""
    if _watcher:
        _watcher(name)
    if name in _left:
        hits, act = _left[name]
        _left[name] = hits - 1, act
        if hits == 1:
            act()
