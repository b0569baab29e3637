"""The processes of a run, as the system's table of processes shows them; no help from the run."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

_POLL_S = 0.002
_SEARCH_S = 0.05


class Table:
    """Finds processes by the log that their standard output goes to."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs.resolve()

    def pids(self) -> dict[int, str]:
        """Name ("worker-1") of every process."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                out = Path(os.readlink(folder / "fd" / "1"))
                if out.parent == self._logs and out.suffix == ".log":
                    found[int(folder.name)] = out.stem
        return found

    def pid(self, name: str) -> int | None:
        return next((pid for pid, its in self.pids().items() if its == name), None)

    def wait_stopped(self, name: str, timeout_s: float, *, other_than: int | None = None) -> int | None:
        """Pid of the process under that name once it is stopped; None if it is not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid = self.pid(name)
            while pid and pid != other_than and time.monotonic() < deadline and (status := _status(pid)):
                if status == psutil.STATUS_STOPPED:
                    return pid
                time.sleep(_POLL_S)
            time.sleep(_SEARCH_S)
        return None


def send(pid: int, *signals: int) -> bool:
    """False if the process is gone."""
    try:
        for number in signals:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _status(pid: int) -> str | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        status: str = psutil.Process(pid).status()
        return None if status == psutil.STATUS_ZOMBIE else status
    return None


def kill_all(pids: set[int]) -> None:
    for pid in pids:
        send(pid, signal.SIGKILL)
