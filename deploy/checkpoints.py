"""The driver's part of checkpoints: parts come in from every process, and when all are there the manifest makes them one."""

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import Config, to_dict
from deploy.files import fsync_folder, write_atomic
from deploy.result import versions
from deploy.resume import Beginning
from ps.checkpoints.manifest import Manifest, PartRecord, digest_of, from_hex, records_of, to_hex
from ps.checkpoints.parts import Digests, PartShape, optimizer_chunks, rank_shape, shard_shape
from ps.checkpoints.saver import write_part
from ps.codecs import is_lossy
from ps.control_service import Process, SavedPart
from ps.errors import MalformedFrame, PserverError
from ps.frame import Bytes
from ps.optimizers import num_slots
from ps.reader import Reader

log = logging.getLogger(__name__)

_MOST_OPEN = 4
"""Versions whose parts are awaited at once: more are a sign that one will never be whole."""
_MOST_CLOSED = 64
_WITHDRAW_BYTES = 4 << 20


@dataclass(frozen=True)
class Standing:
    """What the books say of a version."""

    history: list[dict[str, Any]]
    decided: int
    rate_factor: float
    best: int | None
    """The best version."""


class CheckpointKeeper:
    """Thread-safe. `books` says how the run stood at a version; `say` tells the user."""

    def __init__(
        self,
        config: Config,
        beginning: Beginning,
        *,
        reader: Callable[[], Reader],
        books: Callable[[int], Standing],
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._run = beginning.rundir.name
        self._folder = beginning.rundir.checkpoints
        self._generation = beginning.generation
        self._reader = reader
        self._books = books
        self._restored = restored = beginning.checkpoint
        self._say = say
        scaling = config.scaling
        ranks = range(scaling.num_workers) if is_lossy(config.comm.push_format) else ()
        self._expected: set[Process] = {("server", s) for s in range(scaling.num_servers)} | {("worker", r) for r in ranks}
        self._changed = threading.Condition()  # guards everything below
        self._open: dict[int, dict[Process, PartRecord]] = {}
        """Parts that have come, by version."""
        self._asked: set[int] = set()
        """Versions beside those that are due."""
        self._closed: deque[int] = deque([] if restored is None else [restored.version], _MOST_CLOSED)
        """Versions of which no part is awaited any more."""
        self._finishing = 0
        self.newest: int | None = None if restored is None else restored.version
        """The newest checkpoint that is whole."""

    # -- parts -----------------------------------------------------------------------------------------------

    def saved(self, sender: Process, part: SavedPart) -> None:
        version = part.version
        with self._changed:
            self._check_awaited(sender, version)
            if version in self._closed:
                return
            parts = self._open.setdefault(version, {})
            if part.error:
                self._give_up(version, f"{_name(sender)}: {part.error}")
                return
            self._check_digests(sender, part)
            parts[sender] = PartRecord(
                file=self._folder.part_name(*sender),
                size_bytes=part.size_bytes,
                digests=_hex(part.digests),
                state_digests=_hex(part.state_digests),
            )
            for older in sorted(v for v, its in self._open.items() if v < version and sender not in its):
                self._give_up(older, f"{_name(sender)} has brought no part of it")
            whole = set(parts) == self._expected
            if whole:
                self._close(version)
                self._finishing += 1
            elif len(self._open) > _MOST_OPEN:
                self._give_up(min(self._open), "not all of its parts have come")
        if whole:
            self._finish(version, parts)
        elif len(parts) == 1:
            self._cut_idle(version)

    def _check_awaited(self, sender: Process, version: int) -> None:
        plan = self._reader().model[1]
        if sender not in self._expected or not (self._config.checkpoint.is_due(version, plan.steps_per_epoch) or version in self._asked):
            raise MalformedFrame(f"{_name(sender)} brings a part of a checkpoint of version {version}, which is not due")

    def _check_digests(self, sender: Process, part: SavedPart) -> None:
        layout, (role, index) = self._reader().layout, sender
        shard = layout.shards[index] if role == "server" else None
        expected = (len(optimizer_chunks(layout)), 0) if shard is None else (len(shard), shard.num_optimizer)
        if (len(part.digests), len(part.state_digests)) != expected:
            raise MalformedFrame(f"{_name(sender)} brings digests of another number of chunks than its part of a checkpoint has")

    def _close(self, version: int) -> None:
        self._open.pop(version, None)
        self._closed.append(version)
        self._changed.notify_all()

    def _give_up(self, version: int, why: str) -> None:
        """Under the lock."""
        self._close(version)
        self._say(f"no checkpoint of step {version}: {why}; {self._stands()}")
        shutil.rmtree(self._folder.unfinished(version, self._generation), ignore_errors=True)

    def _stands(self) -> str:
        return "there is none yet" if self.newest is None else f"the last one is of step {self.newest}"

    def _cut_idle(self, version: int) -> None:
        """Shards without anything that changes are never written over, so they have to be asked."""
        layout = self._reader().layout
        for shard in layout.shards:
            if not shard.num_versioned:
                self._reader().snapshot(shard.index, version)

    def deposit(self, sender: Process, version: int, offset: int, data: bytes) -> None:
        with self._changed:
            self._check_awaited(sender, version)
            if version in self._closed:
                return
        shape = self._shape(sender)
        if offset + len(data) > len(shape.header(version)) + shape.data_bytes:
            raise MalformedFrame(f"{_name(sender)} brings more of a part of a checkpoint than that has")
        path = self._folder.unfinished(version, self._generation) / self._folder.part_name(*sender)
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("r+b" if offset else "wb") as file:
                if offset != file.seek(0, os.SEEK_END):
                    raise MalformedFrame(f"{_name(sender)} brings byte {offset} of a part of a checkpoint of which there are {file.tell()}")
                file.write(data)
        except OSError as error:
            with self._changed:
                self._give_up(version, f"{path} cannot be written ({error.strerror or error})")

    def _shape(self, sender: Process) -> PartShape:
        layout, (role, index) = self._reader().layout, sender
        if role == "worker":
            return rank_shape(layout, index, self._config.scaling.num_workers)
        return shard_shape(layout, index, num_slots(self._config.optimizer))

    def withdraw(self, rank: int, offset: int) -> bytes:
        return b"" if self._restored is None else self._restored.residual(rank)[offset : offset + _WITHDRAW_BYTES].tobytes()

    # -- whole checkpoints -----------------------------------------------------------------------------------

    def _finish(self, version: int, parts: Mapping[Process, PartRecord]) -> None:
        unfinished, final = self._folder.unfinished(version, self._generation), self._folder.whole(version)
        try:
            manifest = self._manifest(version, parts)
            self._check_sizes(unfinished, version, parts)
            write_atomic(self._folder.manifest(unfinished), manifest.to_json())
            fsync_folder(unfinished)
            if final.exists():
                raise OSError(f"{final} exists")
            unfinished.rename(final)
            fsync_folder(final.parent)
        except (OSError, PserverError, ValueError) as error:
            with self._changed:
                self._give_up(version, " ".join(str(error).split()))
        else:
            log.info("checkpoint of step %d: %s", version, final)
            self.newest = version if self.newest is None else max(version, self.newest)
            self._prune()
        finally:
            with self._changed:
                self._finishing -= 1
                self._changed.notify_all()

    def _check_sizes(self, folder: Path, version: int, parts: Mapping[Process, PartRecord]) -> None:
        for sender, part in parts.items():
            path, shape = folder / part.file, self._shape(sender)
            if not part.size_bytes == path.stat().st_size == len(shape.header(version)) + shape.data_bytes:
                raise OSError(f"{path} is not whole")
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _manifest(self, version: int, parts: Mapping[Process, PartRecord]) -> Manifest:
        layout, plan = self._reader().model
        books = self._books(version)
        shards = [parts["server", s] for s in range(layout.num_servers)]
        ranks = [parts["worker", r] for r in range(self._config.scaling.num_workers) if ("worker", r) in parts]
        return Manifest(
            run=self._run,
            version=version,
            epoch=version // plan.steps_per_epoch,
            step_in_epoch=version % plan.steps_per_epoch,
            generation=self._generation,
            time_s=time.time(),
            versions=versions(),
            config=to_dict(self._config),
            tensors=records_of(layout.specs),
            initial_digests=to_hex(self._reader().initial_digests),
            plan=plan,
            slots=num_slots(self._config.optimizer),
            decided=books.decided,
            rate_factor=books.rate_factor,
            history=books.history,
            shards=tuple(shards),
            ranks=tuple(ranks),
            digest=digest_of(layout, version, [from_hex(s.digests) for s in shards], [from_hex(s.state_digests) for s in shards]),
        )

    def _prune(self) -> None:
        """Keeps the newest ones, and that of the best version."""
        found = self._folder.versions()
        best = self._books(found[-1]).best if found else None
        for version in found[: -self._config.checkpoint.num_to_keep]:
            if version != best:
                self._folder.remove(version)

    # -- the end ---------------------------------------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """Whether the run has checkpoints."""
        return bool(self._config.checkpoint.every_steps or self._config.checkpoint.every_epochs)

    def save_now(self, version: int) -> None:
        """Has every server cut a version in which nothing moves. Raises VersionGone, Unreachable."""
        with self._changed:
            self._asked.add(version)
        for shard in range(self._config.scaling.num_servers):
            self._reader().snapshot(shard, version)

    def save_here(self, sender: Process, version: int, memory: Bytes, digests: Digests, state_digests: Digests) -> None:
        """Writes a part in place of a process that has died. Raises OSError."""
        header = np.frombuffer(self._shape(sender).header(version), np.uint8)
        write_part(self._folder.unfinished(version, self._generation) / self._folder.part_name(*sender), [header, memory])
        self.saved(sender, SavedPart(version, len(header) + len(memory), digests.tolist(), state_digests.tolist()))

    def wait(self, timeout_s: float, version: int | None = None) -> bool:
        """Whether all that is awaited (`version` at least) became whole, or was given up, in time; the rest is given up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open and not self._finishing and version in (None, *self._closed), timeout_s)
            for left in sorted(self._open):
                self._give_up(left, "the run has ended before all of its parts had come")
        return version is None or self._folder.whole(version).is_dir()


def _name(process: Process) -> str:
    role, index = process
    return f"{role} {index}"


def _hex(digests: Sequence[int]) -> str:
    return "".join(f"{digest:016x}" for digest in digests)
