"""How long training stands still when processes are killed: one worker, one server, all of them; until the driver sees it, until training goes
on, and beside that the bare start of the same processes. `make bench-recovery ARGS="--rounds 5"`.

Everything is read from outside: processes are killed by pid, steps are those of the ledger, by the clock of this host.
"""

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.harness import Row, report
from benchmarks.workload import ENDS, model_bytes_of, parse_size, width_of
from deploy.config import RunConfig, ScalingConfig
from deploy.console import Console
from deploy.launch.base import Launcher, ProcessKey
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps.config import CheckpointConfig, OptimizerConfig
from ps.errors import Stopped
from workers.config import TrainConfig
from workers.tasks.synthetic_mlp import SyntheticMLP

SEEN_S = 5.0
BACK_S = {"worker": 10.0, "server": 10.0, "all": 30.0}
"""Promised from when a death was seen, by who has died."""
MUST_START = 2.0
STEPS = 20
"""Between two faults."""
_POLL_S = 0.1
_TAIL_BYTES = 1 << 16
_PATIENCE_S = 120.0


def main() -> None:
    arguments = _arguments()
    print(f"perceptron of {model_bytes_of(arguments.width) / 1e6:.0f} MB and Adam, {arguments.workers} workers, {arguments.servers} servers")
    rows: list[Row] = []
    for launcher in arguments.launchers:
        rows += _of_launcher(launcher, arguments)
    report(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--model-bytes", type=parse_size, default=parse_size("25MB"))
    parser.add_argument("--rounds", type=int, default=3, help="deaths of each kind; the slowest counts")
    parser.add_argument("--launchers", nargs="+", choices=("process", "ray"), default=["process", "ray"])
    arguments = parser.parse_args()
    arguments.width = width_of(arguments.model_bytes)
    return arguments


def _of_launcher(launcher: str, arguments: argparse.Namespace) -> list[Row]:
    alone = _Run(launcher, 1, 1, arguments.width, []).go()
    run = _Run(launcher, arguments.workers, arguments.servers, arguments.width, list(BACK_S) * arguments.rounds).go()
    bare_s = {"worker": alone.start_s, "server": alone.start_s, "all": run.start_s}
    rows: list[Row] = []
    for victims, limit_s in BACK_S.items():
        found = [one for one in run.standstills if one.victims == victims]
        for one in found:
            print(f"{launcher}, {victims} killed: seen after {one.seen_s:.2f} s, a step {one.back_s:.2f} s later; bare start {bare_s[victims]:.2f} s")
        seen_s, back_s = max(one.seen_s for one in found), max(one.back_s for one in found)
        name = f"{launcher}, {victims} killed"
        rows.append(Row(f"{name}: s until it is seen / promised", seen_s, SEEN_S, 1.0))
        rows.append(Row(f"{name}: s from there to a step / promised", back_s, limit_s, 1.0))
        rows.append(Row(f"{name}: s without a step / bare start", max(one.seen_s + one.back_s for one in found), bare_s[victims], MUST_START))
    return rows


@dataclass(frozen=True)
class Standstill:
    """What one fault has cost."""

    victims: str
    seen_s: float
    """From the kill until the last of the dead was started again."""
    back_s: float
    """From there to the end of the first step of all."""


@dataclass
class Measured:
    """A run."""

    start_s: float = 0.0
    """From its first process to the end of its first step: a bare start of all its processes at once."""
    standstills: list[Standstill] = field(default_factory=list)


class _Noting(Trainer):
    """Notes when its launcher starts a process."""

    starts: list[float]

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> Launcher:
        launcher = super()._make_launcher(rundir, console)
        start = launcher.start

        def noted(key: ProcessKey, settings_json: str) -> None:
            self.starts.append(time.time())
            start(key, settings_json)

        launcher.start = noted  # type: ignore[method-assign]
        return launcher


class _Run:
    """A run and who kills its processes; it is stopped when all faults are made good."""

    def __init__(self, launcher: str, workers: int, servers: int, width: int, faults: Sequence[str]) -> None:
        self._keys = [ProcessKey("worker", rank) for rank in range(workers)] + [ProcessKey("server", shard) for shard in range(servers)]
        self._launcher, self._workers, self._servers, self._width = launcher, workers, servers, width
        self._faults = faults
        self._kills: list[tuple[float, str]] = []
        self._is_over = threading.Event()

    def go(self) -> Measured:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
            self._rundir = RunDirectory(Path(folder, "run"))
            trainer = _Noting(
                SyntheticMLP(inputs=ENDS, width=self._width, depth=2, classes=ENDS, samples=1024 * self._workers),
                train_config=TrainConfig(epochs=10**6, batch_size=8, validate_every=10**6),
                optimizer=OptimizerConfig(name="adam", lr=1e-4),
                scaling_config=ScalingConfig(num_workers=self._workers, num_servers=self._servers),
                run_config=RunConfig(storage_path=folder, name="run"),
                checkpoint=CheckpointConfig(every_epochs=0),
                launcher=self._launcher,  # type: ignore[arg-type]
                quiet=True,
            )
            trainer.starts = []
            injected = pool.submit(self._inject)
            try:
                error = trainer.fit().error
            finally:
                self._is_over.set()
            if error and not isinstance(error, Stopped):
                raise error
            injected.result()
            ends = ends_of(self._rundir.comm)
        starts = trainer.starts
        return Measured(ends[0] - starts[0], [self._standstill(at, victims, starts, ends) for at, victims in self._kills])

    def _standstill(self, killed: float, victims: str, starts: Sequence[float], ends: Sequence[float]) -> Standstill:
        again = [at for at in starts if at > killed][: len(self._victims(victims))]
        return Standstill(victims, again[-1] - killed, back_at(killed, ends) - again[-1])

    def _victims(self, victims: str) -> list[ProcessKey]:
        return self._keys if victims == "all" else [key for key in self._keys if key.role == victims][-1:]

    # -- faults ----------------------------------------------------------------------------------------------

    def _inject(self) -> None:
        try:
            self._wait(lambda: self._newest_step() >= 0)
            for victims in self._faults:
                step = self._newest_step()
                self._wait(lambda step=step: self._newest_step() > step + STEPS)  # type: ignore[misc]
                pids = self._pids()
                keys = self._victims(victims)
                self._kills.append((time.time(), victims))
                for key in keys:
                    os.kill(pids[key], signal.SIGKILL)
                self._wait(lambda pids=pids, keys=keys: all(self._pids().get(key, pids[key]) != pids[key] for key in keys))  # type: ignore[misc]
            step = self._newest_step()
            self._wait(lambda: not self._faults or self._newest_step() > step + STEPS)
        finally:
            if not self._is_over.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not done():
            if self._is_over.wait(_POLL_S) or time.monotonic() > deadline:
                raise TimeoutError(f"the run has ended, or not gone on within {_PATIENCE_S:g} s")

    def _newest_step(self) -> int:
        """In the ledger; -1 before the first."""
        with contextlib.suppress(OSError, IndexError), self._rundir.comm.open("rb") as file:
            file.seek(max(0, self._rundir.comm.stat().st_size - _TAIL_BYTES))
            return int(json.loads(file.read().rpartition(b"\n")[0].splitlines()[-1])["step"])
        return -1

    def _pids(self) -> dict[ProcessKey, int]:
        """The run's processes, told by the log that their output goes to."""
        found = {}
        logs = {self._rundir.process_log(key.role, key.index).resolve(): key for key in self._keys}
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                key = logs.get(Path(os.readlink(f"/proc/{pid}/fd/1")))
                if key:
                    found[key] = pid
        return found


def ends_of(ledger: Path) -> list[float]:
    """When each step had ended everywhere, in order."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for line in ledger.read_text().splitlines():
        step = json.loads(line)
        found[step["step"]] += [row["time_s"] for row in step["rows"] if row["kind"] == "worker"]
    return [max(times) for _, times in sorted(found.items()) if times]


def back_at(killed: float, ends: Sequence[float]) -> float:
    """When the first step ended that the dead were needed for: the end of the longest time without one. (A step may end without them,
    if they had pushed all of it.)"""
    after = [killed, *(end for end in ends if end > killed)]
    return max(pairwise(after[:3]), key=lambda gap: gap[1] - gap[0])[1]


if __name__ == "__main__":
    main()
