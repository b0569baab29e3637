"""The state of a run that ends because a process has died: saved if memory still has all of it."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from functools import partial

import numpy as np

from deploy.checkpoints import CheckpointKeeper
from deploy.config import Config
from deploy.launch.base import Launcher, ProcessKey, kill_all
from ps.checkpoints.parts import chunk_digests, optimizer_chunks
from ps.codecs import is_lossy
from ps.control import Control
from ps.errors import PserverError, Unreachable, VersionGone
from ps.rank_state import RankState
from ps.reader import Reader

log = logging.getLogger(__name__)

_WITHIN_S = 60.0
_WRITTEN_WITHIN_S = 20.0
_POLL_S = 0.1
_TRIES = 5
"""Servers may still come to the end of the step in which the process died."""


@dataclass(frozen=True)
class LastState:
    """Saves once, when nobody tends the processes any more. `changed`: the lock of `control`; `start` starts a process."""

    keeper: CheckpointKeeper
    reader: Reader
    control: Control
    changed: threading.Condition
    launcher: Launcher
    start: Callable[[ProcessKey], None]
    config: Config
    run_id: str
    generation: int

    def save(self) -> int | None:
        """The version that is saved; None if that cannot be, and the log says why. Returns within some time, whatever dies meanwhile.
        Workers are killed first, so that nothing moves; servers that have died are started once more, for the sake of their memory."""
        if not self.keeper.is_saving:
            return None
        pool = ThreadPoolExecutor(1, thread_name_prefix="last-state")
        try:
            return pool.submit(self._save).result(_WITHIN_S)
        except TookTooLong:
            log.warning("the state of the run is not saved within %g s", _WITHIN_S)
        except (PserverError, OSError) as error:
            log.warning("the state of the run is not saved: %s", error)
        finally:
            pool.shutdown(wait=False)
        return None

    def _save(self) -> int | None:
        self._kill_workers()
        self._revive_servers()
        for _ in range(_TRIES):
            version = self.reader.version()
            with self.changed:
                may_report = self.reader.model[1].own_loop and not self.control.is_past(version)
            if version < 1 or may_report:
                return None
            try:
                self.keeper.save_now(version)
            except VersionGone:
                continue
            if is_lossy(self.config.comm.push_format):
                self._save_residuals(version)
            return version if self.keeper.wait(_WRITTEN_WITHIN_S, version) else None
        return None

    def _kill_workers(self) -> None:
        workers = [ProcessKey("worker", worker) for worker in range(self.control.num_members)]
        kill_all(self.launcher, workers, self._pause)

    def _pause(self) -> None:
        with self.changed:
            self.changed.wait(_POLL_S)

    def _revive_servers(self) -> None:
        ended, servers = self.launcher.ended(), [ProcessKey("server", shard) for shard in range(self.control.num_servers)]
        with self.changed:
            dead = [key for key in servers if key in ended or self.control.locate(key.index) is None]
            for key in dead:
                self.control.lose(key.role, key.index)
        for key in dead:
            log.info("%s is started again, for the state of the run", key)
            self.start(key)
        deadline = time.monotonic() + _WITHIN_S
        while any(self.control.locate(key.index) is None for key in dead):
            for key in dead:
                if ending := self.launcher.ended().get(key):
                    raise Unreachable(f"{key} was started again for its memory, and {ending.reason}")
            if time.monotonic() > deadline:
                raise Unreachable(f"{' and '.join(map(str, dead))} did not come back")
            with self.changed:
                self.changed.wait(_POLL_S)

    def _save_residuals(self, version: int) -> None:
        """In place of the workers, whose memory outlives them where they were."""
        layout, config = self.reader.layout, self.config
        sizes = layout.chunk_bytes[optimizer_chunks(layout)].tolist()
        seed, skips = config.train.seed, config.optimizer.nonfinite == "skip"
        for rank in range(self.control.num_workers):
            read = partial(self.launcher.memory_of, ProcessKey("worker", rank))
            left = RankState.left_behind(read, self.run_id, self.generation, rank, version, layout, config.comm, seed=seed, skip_nonfinite=skips)
            self.keeper.save_here(("worker", rank), version, left, chunk_digests(left, sizes), np.zeros(0, np.uint64))
