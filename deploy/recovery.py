"""What becomes of a run when its processes die or fall silent. Pure: counts, steps and times are handed in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.launch.base import ProcessKey

DEATHS_AT_ONE_STEP = 10
"""A process that dies so often while the run stands at one step will die there for ever."""
NAMED_AFTER = 1 / 3
"""Part of the time to a silent process' end after which it is named."""
_LONGEST_TICK_S = 1.0
"""Longer gaps between two ticks are the driver's own: it was stopped itself."""
_BUSY_CPU_S = 0.1
"""Processor seconds by which a silent process proves that it works."""


@dataclass
class Death:
    """A process that has ended before its time."""

    key: ProcessKey
    reason: str
    """Continues the sentence "worker 0 ..."."""
    step: int
    """The newest step known then."""
    seen_s: float
    """When it was seen, by the watch's clock."""
    back_after_s: float | None = None
    """Until its successor was at that step; None: not yet."""


class Recovery:
    """Counts deaths and says which process is started again."""

    def __init__(self, max_failures: int | None) -> None:
        self._max_failures = max_failures
        self.deaths: list[Death] = []

    def died(self, key: ProcessKey, reason: str, step: int, now_s: float) -> str | None:
        """Takes note of a death; None: the process shall be started again, else why the run ends (may be empty)."""
        self.deaths.append(Death(key, reason, step, now_s))
        if self._max_failures is not None:
            if len(self.deaths) <= self._max_failures:
                return None
            return f"failure.max_failures = {self._max_failures} is used up" if self._max_failures else ""
        times = self._times_in_a_row(key, step)
        return f"it has died {times} times at step {step}" if times >= DEATHS_AT_ONE_STEP else None

    def _times_in_a_row(self, key: ProcessKey, step: int) -> int:
        own = [death for death in self.deaths if death.key == key]
        return next((i for i, death in enumerate(reversed(own)) if death.step != step), len(own))

    def told(self, key: ProcessKey, step: int, now_s: float) -> Death | None:
        """A process has told its step: the last of its deaths that this makes good."""
        waiting = [death for death in self.deaths if death.key == key and death.back_after_s is None and step >= death.step]
        for death in waiting:
            death.back_after_s = now_s - death.seen_s
        return waiting[-1] if waiting else None

    def to_dicts(self) -> list[dict[str, Any]]:
        """The deaths as in summary.json."""
        return [{"process": str(d.key), "reason": d.reason, "step": d.step, "back_after_s": d.back_after_s} for d in self.deaths]


@dataclass
class _Silence:
    beats: int
    silent_s: float = 0.0
    cpu_s: float | None = None
    """Processor seconds that the process had used when it was looked at last."""
    is_named: bool = False


class Pulse:
    """Tells processes that are stopped from those that are slow: signs of life come from a thread of their own, and a
    process that uses the processor works, even if that thread does not get through."""

    def __init__(self, frozen_after_s: float) -> None:
        self._frozen_after_s = frozen_after_s
        self._known: dict[ProcessKey, _Silence] = {}
        self._ticked_s: float | None = None

    def tick(
        self, now_s: float, beats: Mapping[ProcessKey, int], cpu_s: Callable[[ProcessKey], float | None]
    ) -> tuple[list[ProcessKey], list[ProcessKey]]:
        """`beats`: signs of life so far of every process that should give them. The silent processes to be named now, and
        those to be killed now."""
        passed_s = min(now_s - self._ticked_s, _LONGEST_TICK_S) if self._ticked_s is not None else 0.0
        self._ticked_s = now_s
        self._known = {key: self._known.get(key) or _Silence(count) for key, count in beats.items()}
        named, frozen = [], []
        for key, silence in self._known.items():
            if beats[key] != silence.beats:
                self._known[key] = _Silence(beats[key])
                continue
            silence.silent_s += passed_s
            if silence.silent_s >= self._frozen_after_s * NAMED_AFTER and not silence.is_named:
                silence.is_named, silence.cpu_s = True, cpu_s(key)
                named.append(key)
            if silence.silent_s >= self._frozen_after_s and not self._works(silence, cpu_s(key)):
                frozen.append(key)
        return named, frozen

    def _works(self, silence: _Silence, cpu_s: float | None) -> bool:
        """Whether the process has used the processor since it was named; then it is given the same time again."""
        if cpu_s is None or silence.cpu_s is None or cpu_s - silence.cpu_s < _BUSY_CPU_S:
            return False
        silence.cpu_s, silence.silent_s = cpu_s, self._frozen_after_s * NAMED_AFTER
        return True
