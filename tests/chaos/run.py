"""One run under faults: the driver in a process of its own, the faults from here."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deploy.rundir import RunDirectory
from tests.chaos.armed import VARIABLE, wish
from tests.chaos.drive import Spec
from tests.chaos.network import partition
from tests.chaos.plan import Fault
from tests.chaos.processes import Table, kill_all, send
from tests.deploy.leftovers import segments_of

_POLL_S = 0.02
_LOOK_EVERY_S = 0.5
"""The whole table of processes is read then."""
_START_S = 120.0
_STOPS_WITHIN_S = 60.0
_BACK_WITHIN_S = 120.0
_GONE_WITHIN_S = 10.0
_SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSEGV": signal.SIGSEGV, "SIGTERM": signal.SIGTERM}


@dataclass
class Outcome:
    """What became of a run."""

    hit: list[Fault] = field(default_factory=list)
    """Faults that took place."""
    seconds_lost: list[float] = field(default_factory=list)
    """From each fault until the run went on."""
    hangs: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    bits: dict[str, Any] = field(default_factory=dict)
    """What must be as in the undisturbed run; its error if it has failed."""


class HasEnded(Exception):
    """The run has ended before the fault."""


class Hangs(Exception):
    """The run stands still."""


class Run:
    """A run and its injector. `go` may be called once."""

    def __init__(self, storage: Path, name: str, spec: Spec, faults: list[Fault]) -> None:
        self._rundir = RunDirectory(storage / name)
        self._storage = storage
        self._wishes = storage / f"{name}.wishes"
        self._spec = spec
        self._faults = faults
        self._table = Table(self._rundir.logs)
        self._looked_s = 0.0
        self._seen: set[psutil.Process] = set()
        self._outcome = Outcome()

    def go(self) -> Outcome:
        self._wishes.mkdir()
        command = [sys.executable, "-m", "tests.chaos.drive", str(self._storage), self._rundir.name, self._spec.to_json()]
        with (self._storage / f"{self._rundir.name}.out").open("wb") as out:
            self._driver = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, VARIABLE: str(self._wishes)})
        try:
            self._inject()
            self._wait("the run to end", lambda: False, _BACK_WITHIN_S + self._spec.steps / 10)
        except HasEnded:
            pass
        except Hangs as hang:
            self._outcome.hangs.append(str(hang))
        finally:
            self._clear()
        self._outcome.bits = self._bits()
        return self._outcome

    # -- faults ----------------------------------------------------------------------------------------------

    def _inject(self) -> None:
        self._wait("the first step", lambda: self._newest_step() > 0, _START_S)
        for index, fault in enumerate(self._faults):
            due = self._spec.steps * (index + 1) // (len(self._faults) + 1)
            self._wait(f"step {due}", lambda due=due: self._newest_step() >= due, _BACK_WITHIN_S)  # type: ignore[misc]
            self._make(fault)

    def _make(self, fault: Fault) -> None:
        wish(self._wishes, fault.victim, fault.place, fault.hits)
        pid = self._stopped(fault.victim)
        started, step = time.monotonic(), self._newest_step()
        if fault.shape == "again in recovery" and fault.again:
            wish(self._wishes, fault.victim, fault.again, 1)
        self._strike(fault, pid)
        self._outcome.hit.append(fault)
        if fault.again:
            send(self._stopped(fault.victim, other_than=pid), signal.SIGKILL)
        self._wait(f"a step after {fault}", lambda: self._newest_step() > step, _BACK_WITHIN_S)
        self._outcome.seconds_lost.append(time.monotonic() - started)

    def _strike(self, fault: Fault, pid: int) -> None:
        if fault.how == "pause":
            time.sleep(fault.hold_s)
            send(pid, signal.SIGCONT)
        elif fault.how == "partition":
            send(pid, signal.SIGCONT)
            with contextlib.suppress(psutil.NoSuchProcess):
                partition(psutil.Process(pid), fault.hold_s)
        elif fault.how == "freeze":
            self._wait(f"the end of {fault.victim}, which is frozen", lambda: not psutil.pid_exists(pid), _BACK_WITHIN_S)
        else:
            send(pid, _SIGNALS[fault.how], signal.SIGCONT)
        if fault.other:
            time.sleep(fault.delay_s)
            other = self._table.pid(fault.other)
            if other:
                send(other, signal.SIGKILL)

    def _stopped(self, name: str, other_than: int | None = None) -> int:
        deadline = time.monotonic() + _STOPS_WITHIN_S
        while time.monotonic() < deadline:
            self._look()
            pid = self._table.wait_stopped(name, 0.2, other_than=other_than)
            if pid:
                return pid
        raise Hangs(f"{name} did not come to where it should stop")

    def _newest_step(self) -> int:
        """Which every process has reported; -1 before the first."""
        with contextlib.suppress(OSError, IndexError), self._rundir.comm.open("rb") as file:
            file.seek(max(0, self._rundir.comm.stat().st_size - 16384))
            return int(json.loads(file.read().rpartition(b"\n")[0].splitlines()[-1])["step"])
        return -1

    # -- waiting and cleaning --------------------------------------------------------------------------------

    def _wait(self, what: str, done: Callable[[], bool], timeout_s: float) -> None:
        """Raises HasEnded when the run has, Hangs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self._look()
            if time.monotonic() > deadline:
                raise Hangs(f"waited {timeout_s:g} s for {what}")
            time.sleep(_POLL_S)

    def _look(self) -> None:
        """Notes the driver's processes. Raises HasEnded."""
        if self._driver.poll() is not None:
            raise HasEnded
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen |= set(psutil.Process(self._driver.pid).children(recursive=True))

    def _clear(self) -> None:
        """Ends what is left, and names it if it had no reason to be there."""
        hung = self._driver.poll() is None
        if hung:
            self._driver.kill()
            self._driver.wait()
            kill_all(set(self._table.pids()))
        _, alive = psutil.wait_procs(self._seen, _GONE_WITHIN_S)
        left = {process.pid for process in alive} | set(self._table.pids())
        memory = segments_of(self._rundir.path)
        if not hung:
            self._outcome.orphans += [f"process {pid}" for pid in sorted(left)] + [f"memory {path}" for path in memory]
        kill_all(left)
        for path in memory:
            path.unlink(missing_ok=True)

    def _bits(self) -> dict[str, Any]:
        if not self._rundir.summary.exists():
            return {"error": f"no summary.json; see {self._rundir.path}"}
        summary = json.loads(self._rundir.summary.read_text())
        if summary["error"]:
            return {"error": summary["error"]}
        history = [{k: v for k, v in json.loads(row).items() if k != "time_s"} for row in self._rundir.metrics.read_text().splitlines()]
        return {"params": summary["params_sha256"], "buffers": summary["buffers_sha256"], "steps": summary["steps"], "history": history}
