"""What a run may leave behind: nothing but its directory."""

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ps.segments import SHM, run_prefix

_OURS = ("ps.server", "workers.worker")


@contextlib.contextmanager
def nothing_left(within_s: float = 2.0) -> Iterator[None]:
    """Fails if processes below this one that were not there before are there `within_s` after the block."""
    before = _processes()
    yield
    deadline = time.monotonic() + within_s
    while left := _processes() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def _processes() -> set[str]:
    return {f"process {process.pid}" for process in psutil.Process().children(recursive=True) if _is_of_a_run(process)}


def _is_of_a_run(process: psutil.Process) -> bool:
    """Whether it serves or works, started by its module's name or forked."""
    try:
        parent = process.parent()
        forked = parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and (forked or any(name in process.cmdline() for name in _OURS))
    except psutil.NoSuchProcess:
        return False


def segments_of(rundir: Path) -> list[Path]:
    """Memory of the run's servers that is still there."""
    runs = {found[1] for log in rundir.glob("logs/server-*.log") for found in re.finditer(r"of run (\S+) listens", log.read_text())}
    return [path for run in runs for folder in (SHM, Path(tempfile.gettempdir())) for path in folder.glob(f"{run_prefix(run)}*")]
