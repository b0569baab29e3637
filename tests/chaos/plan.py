"""Which faults a campaign makes. Pure: a seed goes in, faults come out."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["worker", "server"]
Name = str
"""Of a process, as its log has it: "worker-1"."""
How = Literal["SIGKILL", "SIGSEGV", "SIGTERM", "pause", "freeze", "partition"]
"""A pause ends before the driver takes the process for dead, a freeze does not; a partition cuts a process off that goes on."""
Shape = Literal["one", "two at once", "again in recovery", "another in recovery"]

IN_STEP: dict[Role, tuple[str, ...]] = {
    "worker": ("worker.sent", "worker.landed"),
    "server": ("shard.taken", "shard.summed", "shard.oldest", "shard.written", "shard.applied", "shard.answered"),
}
IN_TWO_PHASES = ("shard.held", "shard.recorded", "store.recording")
"""Places of a server's step only if norms come before the update."""
BETWEEN_STEPS: dict[Role, tuple[str, ...]] = {
    "worker": ("worker.reports", "worker.reported"),
    "server": ("store.deciding", "shard.decided", "shard.cut", "checkpoint.written"),
}
"""Visited once per epoch, or a few times."""
IN_RECOVERY: dict[Role, tuple[str, ...]] = {
    "worker": ("worker.registered", "worker.joined", "worker.installed"),
    "server": ("server.recovered", "server.registered", "shard.joined"),
}
_OUTSIDE_STEPS = 7
"""One fault of so many is between two steps."""
_MOST_HITS = 6
_PARTITION = 6
"""How much longer than a pause a partition lasts: some heal within TCP's patience, in some the driver gives the process up."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The victim stops at the `hits`-th visit to `place`; there it gets the fault."""

    victim: Name
    place: str
    hits: int
    how: How
    hold_s: float
    """How long a pause or partition lasts."""
    shape: Shape = "one"
    other: Name | None = None
    """Who is killed too."""
    again: str | None = None
    """Where the victim's successor is killed."""
    delay_s: float = 0.0
    """From the victim's death to that of `other`."""

    @property
    def is_in_step(self) -> bool:
        return self.place in (*IN_STEP["worker"], *IN_STEP["server"], *IN_TWO_PHASES)

    @property
    def size(self) -> int:
        """Processes that are ended, stopped or cut off."""
        return 1 if self.shape == "one" else 2


def faults(seed: int, *, num_workers: int, num_servers: int, two_phases: bool, partitions: bool) -> Iterator[Fault]:
    """Without end; every place inside a step comes equally often, those of two-phase steps twice, since not every run has them."""
    rng = random.Random(f"{seed} {two_phases}")
    in_step = _places(IN_STEP) + ([("server", place) for place in 2 * IN_TWO_PHASES] if two_phases else [])
    counts: dict[Role, int] = {"worker": num_workers, "server": num_servers}
    names = [f"{role}-{index}" for role, count in counts.items() for index in range(count)]
    inside, outside = _shuffled(rng, in_step), _shuffled(rng, _places(BETWEEN_STEPS))
    again: dict[Role, Iterator[str]] = {role: (place for _, place in _shuffled(rng, _places({role: its}))) for role, its in IN_RECOVERY.items()}
    for index in itertools.count(1):
        role, place = next(outside if index % _OUTSIDE_STEPS == 0 else inside)
        yield _fault(rng, f"{role}-{rng.randrange(counts[role])}", place, names, again[role], partitions=partitions)


def _fault(rng: random.Random, victim: Name, place: str, names: list[Name], again: Iterator[str], *, partitions: bool) -> Fault:
    shape: Shape = rng.choices(("one", "two at once", "again in recovery", "another in recovery"), (56, 8, 26, 10))[0]
    hows: tuple[How, ...] = ("SIGKILL", "SIGSEGV", "SIGTERM", "pause", "freeze", "partition")
    how: How = rng.choices(hows, (34, 12, 12, 14, 12, 16 if partitions else 0))[0] if shape == "one" else "SIGKILL"
    others = [name for name in names if name != victim]
    return Fault(
        victim=victim,
        place=place,
        hits=1 if place in (*BETWEEN_STEPS["worker"], *BETWEEN_STEPS["server"]) else rng.randint(1, _MOST_HITS),
        how=how,
        hold_s=rng.uniform(0.1, 0.8) * (_PARTITION if how == "partition" else 1),
        shape=shape,
        other=rng.choice(others) if shape in ("two at once", "another in recovery") else None,
        again=next(again) if shape == "again in recovery" else None,
        delay_s=rng.uniform(0.0, 2.0) if shape == "another in recovery" else 0.0,
    )


def _places(by_role: dict[Role, tuple[str, ...]]) -> list[tuple[Role, str]]:
    return [(role, place) for role, its in by_role.items() for place in its]


def _shuffled(rng: random.Random, places: list[tuple[Role, str]]) -> Iterator[tuple[Role, str]]:
    while True:
        yield from rng.sample(places, len(places))


def first(seed: int, size: int, *, num_workers: int, num_servers: int, two_phases: bool, partitions: bool) -> list[Fault]:
    """As many as strike `size` processes."""
    taken: list[Fault] = []
    drawn = faults(seed, num_workers=num_workers, num_servers=num_servers, two_phases=two_phases, partitions=partitions)
    while sum(fault.size for fault in taken) < size:
        taken.append(next(drawn))
    return taken
