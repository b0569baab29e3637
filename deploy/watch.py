"""Watches the processes of a run: waits for things, and says what has gone wrong by its cause, not by its echo."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.launch.base import Ending, Launcher, ProcessKey
from deploy.rundir import RunDirectory
from ps.control import Control
from ps.control_service import ControlServicer
from ps.errors import ProcessDied, Unreachable, by_name

POLL_S = 0.1
_DEATH_S = 5.0
"""An unreachable peer is given so long to turn out to have died, which says more."""


class Watch:
    """The driver's eyes. `on_tick` is called now and then while it waits."""

    def __init__(
        self,
        launcher: Launcher,
        control: Control,
        service: ControlServicer,
        rundir: RunDirectory,
        interrupted: threading.Event,
        on_tick: Callable[[], None],
    ) -> None:
        self._launcher = launcher
        self._control = control
        self._service = service
        self._rundir = rundir
        self._interrupted = interrupted
        self._on_tick = on_tick

    def wait(self, what: str, done: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Polls until `done`. Raises as soon as a process has died or a member has failed, Unreachable after `timeout_s`, and
        KeyboardInterrupt once the run is interrupted."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self.by_cause():
                if done():
                    return
            with self._service.changed:
                self._service.changed.wait(POLL_S)
                failure = self._control.failure
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            if failure:
                error = by_name(failure.error_type, _named(failure.rank, failure.error))
                error.add_note(failure.traceback)
                with self.by_cause():
                    raise error
            self._raise_deaths()
            if deadline and time.monotonic() > deadline:
                raise Unreachable(f"waited {timeout_s:g} s for {what}: {self._unregistered()}; see {self._rundir.logs}")
            self._on_tick()

    def wait_for_ends(self, timeout_s: float) -> None:
        """Returns when all processes have ended, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        expected = self._control.num_workers + self._control.num_servers
        while len(self._launcher.ended()) < expected and time.monotonic() < deadline:
            time.sleep(POLL_S)

    @contextmanager
    def by_cause(self) -> Iterator[None]:
        """Raises the death of a process in place of the Unreachable that it caused."""
        try:
            yield
        except Unreachable:
            deadline = time.monotonic() + _DEATH_S
            while time.monotonic() < deadline:
                self._raise_deaths()
                time.sleep(POLL_S)
            raise

    def _raise_deaths(self) -> None:
        finished = self._control.final_version is not None
        for key, ending in self._launcher.ended().items():
            if ending.code != 0 or not (finished or self._has_finished(key)):
                with self._service.changed:  # a member that failed said so before it ended
                    failure = self._control.failure
                if failure is None or failure.rank != key.index or key.role != "worker":
                    raise self._death(key, ending)

    def _has_finished(self, key: ProcessKey) -> bool:
        return key.role == "worker" and self._control.has_finished(key.index)

    def _death(self, key: ProcessKey, ending: Ending) -> ProcessDied:
        log_file = self._rundir.process_log(key.role, key.index)
        words = ending.last_words.splitlines()
        last = f"; its last words: {words[-1].strip()}" if words else ""
        return ProcessDied(f"{key} {ending.reason}{last}; see {log_file}")

    def _unregistered(self) -> str:
        keys = [("server", i) for i in range(self._control.num_servers)] + [("worker", i) for i in range(self._control.num_workers)]
        missing = [f"{role} {index}" for role, index in keys if (role, index) not in self._control.incarnations]
        return f"{', '.join(missing)} did not register"


def _named(rank: int | None, text: str) -> str:
    return text if rank is None or f"rank {rank}" in text else f"rank {rank}: {text}"
