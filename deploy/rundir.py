"""The run directory: the only file that knows the names inside it, but for those of checkpoints (schemas: docs/run-directory.md)."""

import fcntl
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from safetensors import SafetensorError, safe_open

from deploy.checkpoint_folder import CheckpointFolder
from deploy.config.suggest import hint
from deploy.files import append_line, finite, line_of, write_atomic
from ps.config import from_json, to_json
from ps.credentials import Credentials
from ps.errors import ConfigError
from ps.key_files import read_private, write_private

Weights = Literal["last", "best"]
WEIGHTS: tuple[Weights, ...] = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class _Control:
    """What lies in `.control.json`."""

    address: str
    credentials: Credentials


class RunDirectory:
    """Paths of one run, and the writes that must be whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints")
        self._lock: int | None = None

    @classmethod
    def create(cls, storage_path: str | Path, name: str | None, task: str) -> "RunDirectory":
        """A new directory; `name` None: date, time and `task`. Raises ConfigError if it exists or cannot be made."""
        storage = Path(storage_path)
        try:
            storage.mkdir(parents=True, exist_ok=True)
            run = cls(storage / name if name else _unused(storage, generated_name(task, datetime.now())))
            run.path.mkdir()
            run.logs.mkdir()
            run.weights_folder.mkdir()
            run.checkpoints.path.mkdir()
        except FileExistsError as error:
            raise ConfigError(f"{error.filename} exists: choose another run.name, or remove it") from error
        except OSError as error:
            raise ConfigError(f'run.storage_path = "{storage}" cannot be written ({error.strerror}): choose another folder') from error
        return run

    @classmethod
    def open(cls, run: str | Path | None = None, storage_path: str | Path = "runs") -> "RunDirectory":
        """An existing one: a directory, a name under `storage_path`, or None for the newest there. Raises ConfigError."""
        runs = _runs(storage_path)
        if run is None:
            if not runs:
                raise ConfigError(f"there is no run under {storage_path}: start one with pserver run, or name a run directory")
            return runs[-1]
        for found in (cls(Path(run)), cls(Path(storage_path) / run)):
            if found.exists():
                return found
        raise ConfigError(f"{run} is no run: {hint(str(run), (found.name for found in runs), kind=f'the runs under {storage_path} are')}")

    @classmethod
    def open_with(cls, which: Weights, storage_path: str | Path = "runs") -> "RunDirectory":
        """The newest run that has such weights; the newest one if none has. Raises ConfigError."""
        runs = _runs(storage_path)
        return next((run for run in reversed(runs) if run.weights(which).is_file()), None) or cls.open(None, storage_path)

    @classmethod
    def to_resume(cls, storage_path: str | Path, name: str | None) -> "RunDirectory | None":
        """The run of that name, or the newest one; None if there is none."""
        if name is None:
            return next(reversed(_runs(storage_path)), None)
        found = cls(Path(storage_path) / name)
        return found if found.exists() or (found.path / ".lock").exists() else None

    def lock(self) -> None:
        """Keeps other drivers out until `unlock`, or the end of the process. Raises ConfigError if one has the run."""
        file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 1000, 0).decode(errors="replace")
            os.close(file)
            raise ConfigError(f"{self.path} is still going on (driver {owner}): wait for it, or end it first") from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._lock = file

    def unlock(self) -> None:
        """Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has_lost_its_driver(self) -> bool:
        """Whether the driver has ended without a summary, as far as this host can tell: one on another host may go on."""
        try:
            pid, _, host = (self.path / ".lock").read_text().partition(" on ")
            is_gone = host == socket.gethostname() and not psutil.pid_exists(int(pid))
        except (OSError, ValueError):  # it is just being written
            return False
        return is_gone and not self.summary.is_file()

    def next_generation(self) -> int:
        """One more than that of the last driver of the run, durable; under the lock."""
        path = self.path / ".generation"
        generation = int(path.read_text()) + 1 if path.exists() else 1
        write_atomic(path, str(generation).encode())
        return generation

    def has_finished(self) -> bool:
        """Whether a driver has brought the run to its end."""
        return self.summary.is_file() and json.loads(self.summary.read_text())["status"] == "finished"

    def rewind(self, rows: Sequence[Mapping[str, Any]], version: int) -> None:
        """Takes back what came after step `version`: metrics.jsonl has `rows` only, comm.jsonl the steps before; no summary any more."""
        self.summary.unlink(missing_ok=True)
        self.rewrite_metrics(rows)
        if self.comm.exists():
            with self.comm.open("rb") as file:
                lines = file.read().splitlines(keepends=True)
            write_atomic(self.comm, b"".join(line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] < version))

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def comm(self) -> Path:
        return self.path / "comm.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def weights_folder(self) -> Path:
        return self.path / "weights"

    def driver_log(self) -> Path:
        return self.logs / "driver.log"

    def process_log(self, role: Literal["worker", "server"], index: int) -> Path:
        return self.logs / f"{role}-{index}.log"

    @property
    def control(self) -> Path:
        """Where the driver listens, and what a reader shows: for the run's owner only, while it goes on."""
        return self.path / ".control.json"

    def write_control(self, address: str, credentials: Credentials) -> None:
        self.control.unlink(missing_ok=True)  # of a driver that was killed
        write_private(self.control, to_json(_Control(address=address, credentials=credentials)))

    def read_control(self) -> tuple[str, Credentials]:
        """Raises ConfigError if the run has ended, or its driver, or the file is not what that has written."""
        if self.has_lost_its_driver():
            raise ConfigError(f"{self.path} is not going on: its driver was killed; see {self.driver_log()}, and go on with --resume")
        try:
            found = from_json(_Control, read_private(self.control))
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} is not going on: its driver has ended; see {self.driver_log()}") from error
        except ValueError as error:
            raise ConfigError(f"{self.control} is not what the run's driver has written: remove it") from error
        return found.address, found.credentials

    def weights(self, which: Weights) -> Path:
        return self.weights_folder / f"{which}.safetensors"

    def write_config(self, text: str) -> None:
        """Marks the directory as a run."""
        write_atomic(self.config, text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomic(self.summary, (json.dumps(finite(summary), indent=2, allow_nan=False) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """None if the run goes on, or its driver was killed. Raises ConfigError for what is no summary."""
        if not self.summary.is_file():
            return None
        try:
            found = json.loads(self.summary.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{self.summary} is damaged ({error})") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.summary} is damaged: it holds no object")
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a last line that is not whole is left out. Raises ConfigError for any other that is no row."""
        text = self.metrics.read_text() if self.metrics.is_file() else ""
        try:
            return [dict(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.metrics} is damaged: {error}") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        append_line(self.metrics, row)

    def rewrite_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomic(self.metrics, b"".join(map(line_of, rows)))

    def export(self, file: Path, which: Weights) -> None:
        """Copies weights to `file`. Raises ConfigError if the run has none, they are damaged, or `file` cannot be written."""
        source = self.weights(which)
        if not source.is_file():
            others = [other for other in WEIGHTS if self.weights(other).is_file()]
            remedy = f"it has the {others[0]} ones" if others else "it ended before it wrote any"
            raise ConfigError(f"{self.path} has no {which} weights: {remedy}")
        try:
            with safe_open(source, framework="np"):
                write_atomic(file, source.read_bytes())
        except SafetensorError as error:
            raise ConfigError(f"{source} is damaged ({error}): take the run's other weights, or a checkpoint") from error
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror}): choose another file") from error

    def started(self) -> tuple[int, str]:
        """Orders runs by age."""
        return self.config.stat().st_mtime_ns, self.name


def _runs(storage_path: str | Path) -> list[RunDirectory]:
    """The oldest first."""
    return sorted((run for run in map(RunDirectory, Path(storage_path).glob("*")) if run.exists()), key=RunDirectory.started)


def generated_name(task: str, now: datetime) -> str:
    """For example 20261123-204423-digits; of an import path only the class remains."""
    return f"{now:%Y%m%d-%H%M%S}-{re.sub('[^A-Za-z0-9_-]+', '-', task.rpartition(':')[2])}"


def _unused(storage: Path, name: str) -> Path:
    names = [name, *(f"{name}-{count}" for count in range(2, 100))]
    return next((storage / free for free in names if not (storage / free).exists()), storage / name)
