"""What a run may leave behind: nothing but its directory."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_OURS = ("ps.server", "workers.worker")


@contextlib.contextmanager
def nothing_left(within_s: float = 2.0) -> Iterator[None]:
    """Fails if processes or memory segments that were not there before are there `within_s` after the block."""
    before = _things()
    yield
    deadline = time.monotonic() + within_s
    while left := _things() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def _things() -> set[str]:
    segments = {str(path) for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("pserver-*-g*")}
    return segments | {f"process {process.pid}" for process in psutil.Process().children(recursive=True) if _is_of_a_run(process)}


def _is_of_a_run(process: psutil.Process) -> bool:
    """Whether it serves or works, started by its module's name or forked."""
    try:
        parent = process.parent()
        forked = parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and (forked or any(name in process.cmdline() for name in _OURS))
    except psutil.NoSuchProcess:
        return False
