"""Writes a process' parts of checkpoints, in a thread of its own, and tells the driver."""

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protos import pserver_pb2 as pb
from ps.checkpoints.parts import Digests, PartShape
from ps.config import Saving
from ps.control_client import ControlClient
from ps.errors import PserverError
from ps.failpoints import hit
from ps.frame import Bytes

log = logging.getLogger(__name__)

_PIECE_BYTES = 4 << 20
"""Of one write, or of one message to the driver."""


@dataclass(frozen=True)
class Part:
    """What is to be saved of `version`; `release` is called when its memory is not needed any more."""

    version: int
    shape: PartShape
    memory: Bytes = field(repr=False)
    digests: Callable[[], tuple[Digests, Digests]] = field(repr=False)
    """Of the chunks' values, and of their optimizer state."""
    release: Callable[[], None] = field(repr=False)


class Saver:
    """Whatever goes wrong is told to the driver and logged: training goes on. Thread-safe."""

    def __init__(self, control: ControlClient, saving: Saving) -> None:
        self._control = control
        self._saving = saving
        self._left: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    def save(self, part: Part) -> None:
        """Returns at once."""
        self._left.put(lambda: self._save(part))

    def abandon(self, version: int, why: str) -> None:
        """There will be no part of `version`; returns at once."""
        self._left.put(lambda: self._control.saved(pb.SavedRequest(version=version, error=why)))

    def close(self) -> None:
        """Returns when all has been written."""
        self._left.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._left.get()) is not None:
            try:
                job()
            except PserverError as error:
                log.warning("the driver does not hear of a checkpoint: %s", error)
            except Exception:
                log.exception("a part of a checkpoint is lost")

    def _save(self, part: Part) -> None:
        header = np.frombuffer(part.shape.header(part.version), np.uint8)
        report = pb.SavedRequest(version=part.version, size_bytes=len(header) + len(part.memory))
        try:
            values, state = part.digests()
            self._write(part.version, [header, part.memory])
            hit("checkpoint.written")
            report.digests.extend(values.tolist())
            report.state_digests.extend(state.tolist())
        except OSError as error:
            report.error = f"{error.filename or 'its part'} cannot be written ({error.strerror or error})"
        finally:
            part.release()
        self._control.saved(report)

    def _write(self, version: int, parts: list[Bytes]) -> None:
        if self._saving.file is None:
            self._deposit(version, parts)
            return
        before, after = self._saving.file
        write_part(Path(f"{before}{version}{after}"), parts)

    def _deposit(self, version: int, parts: list[Bytes]) -> None:
        offset = 0
        for part in parts:
            for at in range(0, len(part), _PIECE_BYTES):
                data = part[at : at + _PIECE_BYTES].tobytes()
                self._control.deposit(version, offset, data)
                offset += len(data)


def write_part(path: Path, parts: Sequence[Bytes]) -> None:
    """Beside, then under its name, when all of it is on the disk. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("wb", buffering=0) as file:
        for part in parts:
            for at in range(0, len(part), _PIECE_BYTES):
                _write_all(file.fileno(), part[at : at + _PIECE_BYTES])
        os.fsync(file.fileno())
    beside.replace(path)


def _write_all(file: int, data: Bytes) -> None:
    view = data.data
    while len(view):
        view = view[os.write(file, view) :]
