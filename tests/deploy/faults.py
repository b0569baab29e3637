"""Deaths and stops at named places: a plan that can be chained, travels to the processes, and knows what has happened."""

import os
import signal
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from deploy.launch.base import ProcessKey
from ps import failpoints

W0, W1, S0, S1 = ProcessKey("worker", 0), ProcessKey("worker", 1), ProcessKey("server", 0), ProcessKey("server", 1)
Point = tuple[str, int]
"""A failpoint, and at which hit something happens there."""
Armed = tuple[str, int, int, str]
"""Failpoint, hits, signal, and the file that notes that it has happened."""


class Faults:
    """What happens to the incarnations of each process, one after the other."""

    def __init__(self) -> None:
        self._planned: list[tuple[ProcessKey, Point, int]] = []
        self._folder: Path | None = None

    def kill(self, victim: ProcessKey, *points: Point) -> Self:
        """The next incarnations of `victim` die there: one at each point."""
        self._planned += [(victim, point, signal.SIGKILL) for point in points]
        return self

    def stop(self, victim: ProcessKey, *points: Point) -> Self:
        """They stop there (SIGSTOP)."""
        self._planned += [(victim, point, signal.SIGSTOP) for point in points]
        return self

    def pass_by(self, process: ProcessKey, point: Point) -> Self:
        """Nothing happens to the next incarnation there, but it is noted."""
        self._planned.append((process, point, 0))
        return self

    def have_fired(self) -> bool:
        """Whether all have happened."""
        assert self._folder
        return all((self._folder / f"fired-{index}").exists() for index in range(len(self._planned)))

    def arm(self, folder: Path) -> dict[str, list[Armed]]:
        """By the name of the process, "worker-1"; what fires is noted in a folder inside of `folder`."""
        self._folder = Path(mkdtemp(prefix=".fired-", dir=folder))
        armed: dict[str, list[Armed]] = {}
        for index, (victim, (place, hits), number) in enumerate(self._planned):
            armed.setdefault(f"{victim.role}-{victim.index}", []).append((place, hits, number, str(self._folder / f"fired-{index}")))
        return armed

    def check_fired(self) -> None:
        """Each fault has happened, once."""
        assert self._folder
        files = [self._folder / f"fired-{index}" for index in range(len(self._planned))]
        counts = [len(file.read_bytes()) if file.exists() else 0 for file in files]
        assert counts == [1] * len(files), f"fired {counts} times: {self}"

    @property
    def victims(self) -> list[str]:
        """As the run's summary names the processes that died."""
        return sorted(str(victim) for victim, _, _ in self._planned)

    def __repr__(self) -> str:
        hows = {0: "pass", signal.SIGKILL: "kill", signal.SIGSTOP: "stop"}
        return "; ".join(f"{hows[number]} {victim} at {place} {hits}" for victim, (place, hits), number in self._planned)


def arm(fault: Armed) -> None:
    """In the process itself."""
    place, hits, number, note = fault
    failpoints.arm(place, hits, partial(_fire, number, note))


def _fire(number: int, note: str) -> None:
    with Path(note).open("ab") as file:
        file.write(b"x")
    os.kill(os.getpid(), number)
