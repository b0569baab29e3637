"""What a launcher is: starts the processes of a run somewhere, tells which have ended, and leaves none behind."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ps.errors import Unreachable
from ps.frame import Bytes

Role = Literal["server", "worker"]

LAST_WORDS_LINES = 5
_TAIL_BYTES = 8192
_CRASH, _CRASH_ENDS = "Fatal Python error: ", ("  File ", "Extension modules: ")


@dataclass(frozen=True, order=True)
class ProcessKey:
    """One process of the run."""

    role: Role
    index: int
    """Shard of a server, rank of a worker."""

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


LogPath = Callable[[ProcessKey], Path]
"""Where a process writes its standard output and error; the directory exists."""


@dataclass(frozen=True)
class Ending:
    """How a process has ended."""

    code: int | None
    """Exit code; None if a signal or the loss of its host ended it."""
    reason: str
    """Continues the sentence "worker 0 ...", for example "was killed by SIGKILL"."""
    last_words: str
    """Last lines that are not empty of its log; may be empty."""
    lost_host: bool = False
    """Whether its host has gone with it, and the memory there."""

    @property
    def has_crashed(self) -> bool:
        """Whether its last words are where a crash was."""
        return self.last_words.startswith(_CRASH)


class Launcher(Protocol):
    """`check` comes first, `stop` last, whatever happens between."""

    def check(self) -> None:
        """Makes ready to start. Raises ResourcesMissing at once if the request cannot be met."""

    def control_host(self) -> str:
        """Address on which the driver must serve Control so that all processes reach it."""

    def bind_host(self, key: ProcessKey) -> str:
        """Address that server `key` must bind; empty if that is decided where it starts."""

    def start(self, key: ProcessKey, settings_json: str) -> None:
        """Returns at once; a process that cannot start is found in `ended`. One that is there may be started again."""

    def ended(self) -> dict[ProcessKey, Ending]:
        """All processes that have ended so far and were not started again. Nothing is left of them that could still write. Does not block."""

    def kill(self, key: ProcessKey) -> None:
        """Ends a process that may be stopped; it is found in `ended`."""

    def cpu_s(self, key: ProcessKey) -> float | None:
        """Processor seconds that the process has used; None if that is not known here."""

    def memory_of(self, key: ProcessKey, name: str) -> Bytes | None:
        """A copy of the segment of that name that a process which has ended has left on its host; None if there is none, or the host
        does not answer. Raises OSError."""

    def stop(self, grace_s: float) -> None:
        """Gives running processes `grace_s` to end, then kills. None is left when it returns. Idempotent."""


_KILLED_WITHIN_S = 10.0


def kill_all(launcher: Launcher, keys: Sequence[ProcessKey], pause: Callable[[], None]) -> None:
    """Returns when all of them have ended; waits for those on other hosts in `pause`. Raises Unreachable."""
    for key in keys:
        launcher.kill(key)
    deadline = time.monotonic() + _KILLED_WITHIN_S
    while not set(keys) <= set(launcher.ended()):
        if time.monotonic() > deadline:
            raise Unreachable("workers on other hosts do not end")
        pause()


ENVIRONMENT = {"GRPC_VERBOSITY": "ERROR", "GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x200000"}
"""Of processes, where the user's has nothing else. gRPC would write a line to the log for every stranger whose handshake fails. Copies of
2 MiB and more, longer than frames, go past the cache: a step copies more than it holds, and glibc would begin near the cache's size."""


def module_path() -> list[str]:
    """Where the driver finds modules, so that a process finds the user's task too."""
    return list(dict.fromkeys(path or os.getcwd() for path in [*sys.path, ""]))


def last_words(path: Path) -> str:
    """The last few lines that are not empty, of a crash where it was; empty if there is no such file on this host."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return _crash(lines) or "\n".join(lines[-LAST_WORDS_LINES:])


def _crash(lines: Sequence[str]) -> str | None:
    """What `faulthandler` has written last, as one line: the innermost place outside of what is installed."""
    starts = [i for i, line in enumerate(lines) if line.startswith(_CRASH)]
    if not starts or not lines[-1].startswith(_CRASH_ENDS):
        return None
    places = [line.strip() for line in lines[starts[-1] :] if line.startswith("  File ")]
    place = next((place for place in places if "-packages" not in place), "an unknown place")
    return f"{lines[starts[-1]]} in {place.removeprefix('File ')}"
