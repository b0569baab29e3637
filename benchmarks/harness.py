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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.workload import Workload

START_S = 180.0
"""Until the next member of a contender stands at the gate."""
Start = Callable[[list[str], dict[str, str], IO[bytes]], subprocess.Popen[bytes]]
"""Starts a contender: (command, what to add to the environment, log)."""


@dataclass(frozen=True)
class Samples:
    """Steps of one contender in one variant, of all rounds together."""

    seconds: list[float] = field(default_factory=list)
    """Of every step, mean of the members: where one runs ahead within a step, another lags, and they take turns."""
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


def start_here(command: list[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process of this host, in a session of its own."""
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Who takes part in a comparison."""

    module: str
    """Of benchmarks.peers."""
    members: int
    """Processes that step."""
    variants: Sequence[str] = ("",)
    work: Mapping[str, object] = field(default_factory=dict)
    """Fields of its Workload in place of everybody's."""


class Contender:
    """The processes of `python -m benchmarks.peers.MODULE`, and the lines to its members."""

    def __init__(self, at: socket.socket, name: str, entry: Entry, start: Start, **work: Any) -> None:
        workload = Workload(contender=name, gate=at.getsockname(), **{**work, **entry.work})
        self.name = name
        self._log = tempfile.NamedTemporaryFile(prefix=f"benchmark-{entry.module}-", suffix=".log")  # noqa: SIM115
        self._root = start([sys.executable, "-m", f"benchmarks.peers.{entry.module}"], workload.environment(), self._log.file)
        self._members: list[IO[str]] = []
        try:
            while len(self._members) < entry.members:
                self._members.append(self._arrival(at))
        except BaseException:  # Ctrl-C in a wait of minutes too leaves no processes behind
            self.stop()
            raise

    def _arrival(self, at: socket.socket) -> IO[str]:
        """The next member's line."""
        at.settimeout(1.0)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._root.poll() is None:
            with contextlib.suppress(TimeoutError):
                connection, _ = at.accept()
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
        into.seconds.extend(statistics.fmean(times) for times in zip(*map(json.loads, answers), strict=True))
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


def compete(
    entries: Mapping[str, Entry], *, rounds: int, warmup: int, steps: int, title: str, start: Start = start_here, **work: object
) -> dict[tuple[str, str], Samples]:
    """All contenders live at once and take turns, round by round, every second one backwards; samples by name and variant."""
    samples = {(name, variant): Samples() for name, entry in entries.items() for variant in entry.variants}
    contenders: dict[str, Contender] = {}
    with gate() as at:
        try:
            for name, entry in entries.items():
                print(f"starting {name}", file=sys.stderr, flush=True)
                contenders[name] = Contender(at, name, entry, start, **work)
            for number in range(rounds):
                turns = list(samples)
                for name, variant in reversed(turns) if number % 2 else turns:  # who comes after whom is no advantage
                    contenders[name].run(samples[name, variant], warmup=warmup, steps=steps, variant=variant)
        finally:
            for contender in contenders.values():
                contender.stop()
    print(f"\n{title}\n{HEADER}")
    for (name, variant), found in samples.items():
        print(f"{name + (f' {variant}' if variant else ''):<34}{found}", flush=True)
    return samples


@contextlib.contextmanager
def gate() -> Iterator[socket.socket]:
    """Where members report: a path, which is the same in every network namespace."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as at:
        at.bind(str(Path(folder, "gate")))
        at.listen()
        yield at


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Row:
    """One measure: ours beside the peer's, or a limit; in seconds per step unless the measure says otherwise."""

    measure: str
    ours: float
    peer: float
    must: float
    least: float = 0.0
    """A smaller ratio cannot be: something is measured wrong."""

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def ok(self) -> bool:
        return self.least <= self.ratio <= self.must


def report(rows: Sequence[Row]) -> None:
    """The table of measures, and as last line the same as one JSON object."""
    print(f"\n{'measure':<56}{'ours':>9}{'peer':>9}{'ratio':>8}{'must':>7}  ok")
    for row in rows:
        print(f"{row.measure:<56}{row.ours:>9.4g}{row.peer:>9.4g}{row.ratio:>8.2f}{row.must:>7.2f}  {_judgement(row)}")
    keys = ("ours", "peer", "ratio", "must", "ok")
    print(json.dumps({row.measure: {key: _rounded(getattr(row, key)) for key in keys} for row in rows}))


def _judgement(row: Row) -> str:
    if row.ratio < row.least:
        return f"NO: below {row.least:.2f}, a leak"
    return "yes" if row.ok else "NO"


def _rounded(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else round(value, 4)
