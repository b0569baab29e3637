"""Watches the processes of a run: waits for things, has dead processes started again, and says what has gone wrong by its
cause, not by its echo."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.interrupts import Interrupt
from deploy.launch.base import Ending, Launcher, ProcessKey, kill_all
from deploy.recovery import NAMED_AFTER, Pulse, Recovery
from deploy.rundir import RunDirectory
from ps.config import Timeouts
from ps.control import Control
from ps.control_service import ControlServicer
from ps.errors import MISCONFIGURED, ConfigError, ProcessDied, PserverError, Unreachable, by_name

POLL_S = 0.1
_DEATH_S = 5.0
"""An unreachable peer is given so long to turn out to have died, which says more."""


class Watch:
    """The driver's eyes. `on_tick` is called now and then while it waits, `restart` to start a process again."""

    def __init__(
        self,
        launcher: Launcher,
        control: Control,
        service: ControlServicer,
        rundir: RunDirectory,
        interrupt: Interrupt,
        *,
        recovery: Recovery,
        timeouts: Timeouts,
        restart: Callable[[ProcessKey], None],
        on_tick: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._control = control
        self._service = service
        self._rundir = rundir
        self._interrupt = interrupt
        self._recovery = recovery
        self._pulse = Pulse(timeouts.frozen_after_s)
        self._timeouts = timeouts
        self._restart = restart
        self._on_tick = on_tick
        self._say = say
        self._restarted: dict[ProcessKey, tuple[int, float]] = {}
        """The incarnation before each restart, and when that was."""
        self._killed: dict[ProcessKey, str] = {}
        """Why a process was killed from here."""

    def wait(self, what: str, done: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Polls until `done`, and tends the processes. Raises as soon as a member has failed or a death cannot be made good,
        Unreachable after `timeout_s`, and KeyboardInterrupt once the run is interrupted."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if done():
                return
            with self._service.changed:
                self._service.changed.wait(POLL_S)
                failure = self._control.failure
            if self._interrupt.seen:
                raise KeyboardInterrupt
            if failure:
                error = by_name(failure.error_type, self._named(failure.worker, failure.error))
                error.add_note(failure.traceback)
                with self._by_cause():
                    raise error
            self._tend()
            if deadline and time.monotonic() > deadline:
                raise Unreachable(f"waited {timeout_s:g} s for {what}: {self._unregistered()}; see {self._rundir.logs}")
            self._on_tick()

    def wait_for_ends(self, timeout_s: float) -> None:
        """Returns when all processes have ended, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        expected = self._control.num_members + self._control.num_servers
        while len(self._launcher.ended()) < expected and time.monotonic() < deadline:
            time.sleep(POLL_S)

    @contextmanager
    def _by_cause(self) -> Iterator[None]:
        """Raises the death of a process in place of the Unreachable that it caused."""
        try:
            yield
        except Unreachable:
            deadline = time.monotonic() + _DEATH_S
            while time.monotonic() < deadline:
                for key, ending in self._deaths():
                    raise self._death(key, ending.reason, ending, "") from None
                time.sleep(POLL_S)
            raise

    def _pause(self, seconds: float) -> None:
        with self._service.changed:
            self._service.changed.wait(seconds)

    # -- deaths ----------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Starts what has died again, kills what is frozen, and says so."""
        begun: set[ProcessKey] = set()
        for key, ending in self._deaths():
            if self._control.failure:
                return  # which ends the run
            if key not in begun:
                self._make_good(key, ending)
                begun.update(self._group(key))
        with self._service.changed:
            beats = {key: self._control.beats[key.role, key.index] for key in self._expected() if (key.role, key.index) in self._control.beats}
            steps = {key: step for key in beats if (step := self._control.steps.get((key.role, key.index))) is not None}
        for key, step in steps.items():
            death = self._recovery.told(key, step, time.monotonic())
            if death:
                self._say(f"{key} is back at step {step}, {death.back_after_s:.1f} s after its death was seen")
        self._kill_silent(beats)

    def _deaths(self) -> list[tuple[ProcessKey, Ending]]:
        """Processes that have ended before their time. A member that failed said so before it ended: that is no death."""
        ended = self._launcher.ended()
        with self._service.changed:
            failure = self._control.failure
            failed = ProcessKey("worker", failure.worker) if failure and failure.worker is not None else None
            return [(key, ending) for key, ending in ended.items() if key != failed and not self._has_finished(key)]

    def _make_good(self, key: ProcessKey, ending: Ending) -> None:
        with self._service.changed:
            has_registered = self._has_registered(key)
            step = self._control.newest_step
            self._control.lose(key.role, key.index)
        reason = self._killed.pop(key, ending.reason)
        if ending.code and not has_registered:
            raise self._refusal(key, reason, ending)  # it would only fail again
        if ending.lost_host and key.role == "server":
            raise self._death(key, reason, ending, "its part of the parameters was in that host's memory")
        why_not = self._recovery.died(key, reason, step, time.monotonic())
        if why_not is not None:
            raise self._death(key, reason, ending, why_not)
        crash = f" ({ending.last_words})" if ending.has_crashed else ""
        group = self._group(key)
        others = f", with {' and '.join(map(str, group[1:]))} of the same rank" if group[1:] else ""
        self._say(f"{key} {reason} at step {step}{crash}: starting it again{others}")
        self._begin_again(group)

    def _group(self, key: ProcessKey) -> list[ProcessKey]:
        """The process, and the other stages of its rank: they do the step again together."""
        if key.role == "server":
            return [key]
        first = key.index - key.index % self._control.num_stages
        stages = [ProcessKey("worker", first + stage) for stage in range(self._control.num_stages)]
        return [key, *(other for other in stages if other != key)]

    def _begin_again(self, group: Sequence[ProcessKey]) -> None:
        """Nobody of the group finds a former incarnation of another one: all have ended before the first is started."""
        if group[1:]:
            kill_all(self._launcher, group[1:], lambda: self._pause(POLL_S))
        with self._service.changed:
            for key in group:
                self._restarted[key] = self._control.incarnations.get((key.role, key.index), 0), time.monotonic()
                self._control.lose(key.role, key.index)
        for key in group:
            self._restart(key)

    def _refusal(self, key: ProcessKey, reason: str, ending: Ending) -> PserverError:
        """A process has ended before it could begin."""
        if key.role == "server" and ending.code == MISCONFIGURED and ending.last_words:
            return ConfigError(f"{key}: {ending.last_words.splitlines()[-1].removeprefix('error: ')}")
        return self._death(key, reason, ending, "")

    def _has_registered(self, key: ProcessKey) -> bool:
        """Whether the process that runs under this name has."""
        before, _ = self._restarted.get(key, (0, 0.0))
        return self._control.incarnations.get((key.role, key.index), 0) > before

    def _has_finished(self, key: ProcessKey) -> bool:
        return key.role == "worker" and self._control.has_finished(key.index)

    def _expected(self) -> list[ProcessKey]:
        """Processes that have something left to do."""
        servers = [ProcessKey("server", shard) for shard in range(self._control.num_servers)]
        return servers + [key for worker in range(self._control.num_members) if not self._has_finished(key := ProcessKey("worker", worker))]

    def _kill_silent(self, beats: dict[ProcessKey, int]) -> None:
        named, frozen = self._pulse.tick(time.monotonic(), beats, self._launcher.cpu_s)
        frozen_s = self._timeouts.frozen_after_s
        for key in named:
            self._say(f"{key} has given no sign of life for {frozen_s * NAMED_AFTER:.2g} s: is it stopped, or its host overloaded?")
        for key in frozen:
            self._kill(key, f"gave no sign of life for {frozen_s:g} s and was killed")
        for key, (_, since) in self._restarted.items():
            if time.monotonic() - since > self._timeouts.start_s and not self._has_registered(key):
                raise ProcessDied(f"{key} was started again, but did not register within {self._timeouts.start_s:g} s; see {self._log(key)}")

    def _kill(self, key: ProcessKey, reason: str) -> None:
        self._killed[key] = reason
        self._launcher.kill(key)

    def _death(self, key: ProcessKey, reason: str, ending: Ending, why: str) -> ProcessDied:
        words = ending.last_words.splitlines()
        last = f"; its last words: {words[-1].strip()}" if words else ""
        return ProcessDied(f"{key} {reason}{last}{f' ({why})' if why else ''}; see {self._log(key)}")

    def _log(self, key: ProcessKey) -> Path:
        return self._rundir.process_log(key.role, key.index)

    def _unregistered(self) -> str:
        missing = [str(key) for key in self._expected() if (key.role, key.index) not in self._control.incarnations]
        return f"{', '.join(missing)} did not register"

    def _named(self, worker: int | None, text: str) -> str:
        name = None if worker is None else self._control.name(worker)
        return text if name is None or name in text else f"{name}: {text}"
