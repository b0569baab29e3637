"""Contenders side by side: each has processes of its own that live through the whole benchmark and step, one contender at a time."""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import psutil

from benchmarks.workload import Workload

START_S = 180.0
"""Until the next member of a contender stands at the gate."""


@dataclass(frozen=True)
class Samples:
    """Steps of one contender in one variant, of all rounds together."""

    seconds: list[float] = field(default_factory=list)
    """Of every step, on the slowest member."""
    cpu_s: list[float] = field(default_factory=list)
    """CPU time of all its processes per step, one number per round."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return f"{self.median * 1e3:>8.0f}{f'{low * 1e3:.0f}..{high * 1e3:.0f}':>14}{statistics.median(self.cpu_s):>9.2f}{len(self.seconds):>7}"


HEADER = f"{'':<34}{'median ms':>8}{'quartiles':>13}{'CPU s':>9}{'steps':>7}"
"""Over the columns of Samples; CPU seconds are those of all processes per step."""


class Contender:
    """The processes of `python -m benchmarks.peers.MODULE`, and the lines to its members."""

    def __init__(self, gate: socket.socket, module: str, members: int, **workload: Any) -> None:
        work = Workload(contender=module, gate=gate.getsockname()[1], **workload)
        self.name = module
        self._log = tempfile.NamedTemporaryFile(prefix=f"benchmark-{module}-", suffix=".log")  # noqa: SIM115
        environment = {**os.environ, **work.environment()}
        command = [sys.executable, "-m", f"benchmarks.peers.{module}"]
        self._root = subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True)
        self._members: list[IO[str]] = []
        try:
            while len(self._members) < members:
                self._members.append(self._arrival(gate))
        except BaseException:
            self.stop()
            raise

    def _arrival(self, gate: socket.socket) -> IO[str]:
        """The next member's line."""
        gate.settimeout(1.0)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._root.poll() is None:
            with contextlib.suppress(TimeoutError):
                connection, _ = gate.accept()
                connection.setblocking(True)
                lines = connection.makefile("rw")
                connection.close()  # the file keeps it open
                lines.readline()
                return lines
        raise RuntimeError(f"{self.name} did not start: {self._last_words()}")

    def run(self, into: Samples, *, warmup: int, steps: int, variant: str = "") -> None:
        """Steps, and adds what they took."""
        processes = self._processes()
        before = _cpu_s(processes)
        for member in self._members:
            member.write(json.dumps({"variant": variant, "warmup": warmup, "steps": steps}) + "\n")
            member.flush()
        answers = [member.readline() for member in self._members]
        if not all(answers):
            raise RuntimeError(f"{self.name} has ended: {self._last_words()}")
        into.seconds.extend(max(times) for times in zip(*map(json.loads, answers), strict=True))
        into.cpu_s.append((_cpu_s(processes) - before) / (warmup + steps))

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self._root.pid)
        return [root, *root.children(recursive=True)]

    def _last_words(self) -> str:
        with open(self._log.name, errors="replace") as log:
            return " | ".join(log.read().splitlines()[-8:])

    def stop(self) -> None:
        """Hangs up and ends all processes."""
        processes = self._processes() if self._root.poll() is None else []
        for member in self._members:
            with contextlib.suppress(OSError):
                member.close()
        with contextlib.suppress(ProcessLookupError):
            self._root.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(10)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._root.wait()
        self._log.close()


@contextlib.contextmanager
def arena() -> Iterator[socket.socket]:
    """The gate that members come to."""
    with socket.create_server(("127.0.0.1", 0)) as gate:
        yield gate


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Row:
    """One measure: ours beside the peer's, in seconds per step."""

    measure: str
    ours: float
    peer: float
    must: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def ok(self) -> bool:
        return self.ratio <= self.must


def report(rows: Sequence[Row]) -> None:
    """The table of measures, and as last line the same as one JSON object."""
    print(f"\n{'measure':<44}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'must':>7}  ok")
    for row in rows:
        print(f"{row.measure:<44}{row.ours:>9.3f}{row.peer:>9.3f}{row.ratio:>8.2f}{row.must:>7.2f}  {'yes' if row.ok else 'NO'}")
    keys = ("ours", "peer", "ratio", "must", "ok")
    print(json.dumps({row.measure: {key: _rounded(getattr(row, key)) for key in keys} for row in rows}))


def _rounded(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else round(value, 4)
