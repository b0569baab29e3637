"""A campaign: runs under faults, each compared with a run that was left alone."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.drive import LauncherName, Spec
from tests.chaos.plan import Fault, first
from tests.chaos.run import Outcome, Run

PARTS = (("adam", True), ("two phases", False), ("adam", False), ("two phases", True))
"""Optimizer, and whether payload lies in shared memory."""
TWO_PHASES = "two phases"


@dataclass
class Campaign:
    """Its totals."""

    storage: Path
    launcher: LauncherName
    steps: int
    partitions: bool
    """Whether this process has a network of its own, in which they can be made."""
    hit: list[Fault] = field(default_factory=list)
    seconds_lost: list[float] = field(default_factory=list)
    hangs: int = 0
    orphans: int = 0
    differences: int = 0
    alone: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Bits of the undisturbed run by optimizer."""

    def part(self, index: int, seed: int, size: int) -> None:
        """A run with about `size` faults."""
        optimizer, shared = PARTS[index % len(PARTS)]
        if optimizer not in self.alone:
            self.alone[optimizer] = self._undisturbed(optimizer)
        spec = self._spec(optimizer, shared)
        shape = {"num_workers": spec.num_workers, "num_servers": spec.num_servers}
        faults = first(seed + index, size, **shape, two_phases=optimizer == TWO_PHASES, partitions=self.partitions)
        name = f"chaos-{seed}-{index}"
        outcome = Run(self.storage, name, spec, faults).go()
        self._add(name, outcome, differs=not outcome.hangs and outcome.bits != self.alone[optimizer])

    def _undisturbed(self, optimizer: str) -> dict[str, Any]:
        outcome = Run(self.storage, f"alone-{optimizer.replace(' ', '-')}", self._spec(optimizer, True), []).go()
        if "error" in outcome.bits or outcome.hangs:
            raise RuntimeError(f"the undisturbed run fails: {outcome.bits.get('error') or outcome.hangs}")
        return outcome.bits

    def _spec(self, optimizer: str, shared: bool) -> Spec:
        return Spec(launcher=self.launcher, optimizer=optimizer, shared_memory=shared, steps=self.steps)

    def _add(self, name: str, outcome: Outcome, *, differs: bool) -> None:
        self.hit += outcome.hit
        self.seconds_lost += outcome.seconds_lost
        self.hangs += len(outcome.hangs)
        self.orphans += len(outcome.orphans)
        self.differences += differs
        size = sum(fault.size for fault in outcome.hit)
        print(f"{name}: {size} faults, {'OTHER BITS' if differs else 'the same bits'}", flush=True)
        for line in [*outcome.hangs, *outcome.orphans, *([outcome.bits.get("error", "")] if differs else [])]:
            print(f"  {line}", flush=True)

    # -- totals ----------------------------------------------------------------------------------------------

    @property
    def faults(self) -> int:
        return sum(fault.size for fault in self.hit)

    def table(self) -> str:
        """How often each place was hit, and how."""
        places = Counter(fault.place for fault in self.hit) + Counter(fault.again for fault in self.hit if fault.again)
        kinds = Counter(fault.how if fault.shape == "one" else fault.shape for fault in self.hit)
        inside = sum(fault.is_in_step for fault in self.hit) / max(1, len(self.hit))
        lines = [f"{count:5d}  {name}" for counts in (places, kinds) for name, count in sorted(counts.items())]
        return "\n".join([*lines, f"{inside:5.0%}  aimed inside a step"])

    def totals(self) -> dict[str, float | None]:
        lost = round(statistics.median(self.seconds_lost), 2) if self.seconds_lost else None
        numbers = {"faults": self.faults, "differences": self.differences, "hangs": self.hangs, "orphans": self.orphans}
        return {**numbers, "seconds_lost_median": lost}
