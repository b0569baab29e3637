"""One history: a job, its processes, and whatever goes wrong, all of it from one seed."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ps import failpoints, frame
from ps.errors import VersionGone
from ps.rank_state import RankState
from tests.explore.clock import Clock, Killed, Process
from tests.explore.driver import Driver
from tests.explore.faults import FAULTS, haunt
from tests.explore.job import Job
from tests.explore.member import Member
from tests.explore.server import Memory, Server
from tests.explore.wire import Calls, Wire
from tests.ps.models.core import Violation
from tests.ps.models.member import END

MAX_EVENTS = 60_000
MAX_TIME_S = 3600.0
_RARE = ("shard.held", "shard.recorded", "store.recording", "store.deciding", "shard.decided", "worker.settles")
"""Failpoints that many histories do not have, or once in a step."""
_COPYING = "shard.cut"
"""Where a thread is that others would wait for, which they cannot inside of it."""
_NESTED = 3
"""Events inside events: threads of one server that overtake each other."""


@dataclass(frozen=True)
class Outcome:
    """How a history ended; `problem` is empty if it ended well."""

    seed: int
    problem: str
    counts: Counter[str]
    simulated_s: float
    num_events: int


class World:
    """Everything that exists in a history."""

    def __init__(self, seed: int, *, trace: Callable[[str], object] | None = None, num_stages: int = 1) -> None:
        self._seed = seed
        self.rng = rng = random.Random(seed)
        self.job = Job.draw(rng).split(num_stages)
        self.clock = Clock(rng)
        self.calls = Calls(self.clock, lost=rng.choice((0.0, 0.0, 0.05)))
        self.counts: Counter[str] = Counter()
        self.actors: list[Process] = []
        """Whose code runs, innermost last."""
        self.memories = [Memory(self, shard) for shard in range(self.job.num_servers)]
        self.residuals = [np.zeros(RankState.size_bytes(self.job.layout), np.uint8) for _ in range(self.job.num_workers)]
        self._views = [memory.store() for memory in self.memories]
        self._has_moved = False
        self._violation: Violation | None = None
        """Of an event inside another one."""
        self._trace = trace
        self._ends: dict[Process, Callable[[], object]] = {}
        """What the driver does when it sees a process's end."""
        self.cuts: dict[tuple[int, int], float] = {}
        """Until when rank and shard cannot reach each other."""
        self._faults: dict[int, list[Callable[[World], object]]] = {}
        """By the version at which they begin."""
        self.former: list[Member] = []
        self.compute_s = [rng.choice((0.3, 1.0, 10.0)) for _ in range(self.job.num_workers)]
        """Longest step by rank."""
        self._kills_left = rng.randrange(6)
        """At failpoints."""
        self._kill_rate = rng.choice((0.002, 0.01, 0.05))
        self._again_rate = rng.choice((0.0, 0.05, 0.3))
        self._nest_rate = rng.choice((0.0, 0.1, 0.3))
        self.driver = Driver(self)
        for shard in range(self.job.num_servers):
            self.driver.start_server(shard, within_s=0.1)
        for rank in range(self.job.num_workers):
            if num_stages == 1:
                self.driver.start_worker(rank, within_s=0.1)
            else:
                self.driver.start_group(rank, within_s=0.1)
        self._plan_faults()

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def tell(self, text: str) -> None:
        if self._trace:
            self._trace(f"{self.clock.now:10.4f} {text}")

    # -- processes -------------------------------------------------------------------------------------------

    def alive(self, process: Process, ended: Callable[[], object]) -> None:
        self.tell(f"{process.name} begins")
        self._ends[process] = ended

    def processes(self) -> list[Process]:
        return [process for process in self._ends if not process.is_dead]

    def members(self) -> list[Member]:
        return [process for process in self.processes() if isinstance(process, Member)]

    def locate(self, shard: int) -> Server | None:
        """As the driver says: it may have died a moment ago."""
        return self.driver.servers[shard] if self.driver.control.locate(shard) else None

    def kill(self, process: Process) -> None:
        """Its peers and the driver notice soon."""
        if process.is_dead:
            return
        self.tell(f"KILL {process.name}")
        process.is_dead = True
        for wire in self._wires_of(process):
            wire.break_off()
        self.end_seen(process, self.rng.uniform(0.01, 2.0))

    def end(self, process: Process) -> None:
        """The driver has ended it."""
        if not process.is_dead:
            self.kill(process)
        if process in self._ends:
            self._ends.pop(process)

    def end_seen(self, process: Process, within_s: float) -> None:
        ended = self._ends.pop(process, None)
        if ended:
            if isinstance(process, Member):
                self.former.append(process)
            self.clock.after(within_s, self.driver, ended)

    def give_up(self, member: Member) -> None:
        """A fenced process ends by itself; the driver has gone on without it."""
        self.count("fenced member")
        self.kill(member)

    def has_joined(self, member: Member) -> None:
        """It knows the versions of all shards."""
        if self.rng.random() < 0.8:
            self.clock.after(self.clock.delay(), None, lambda: haunt(self, member))

    def finish(self, member: Member) -> None:
        self.driver.finish(member)

    def _wires_of(self, process: Process) -> list[Wire]:
        if isinstance(process, Server):
            return [wire for wire in process.wires if wire.open_above or wire.open_below]
        return [wire for wire in process.wires if wire] if isinstance(process, Member) else []

    # -- the network -----------------------------------------------------------------------------------------

    def cut_until(self, member: Member, shard: int) -> float:
        return self.cuts.get((member.rank, shard), 0.0)

    def is_cut(self, member: Member, shard: int) -> bool:
        return self.cut_until(member, shard) > self.clock.now

    def push(self, wire: Wire, data: bytes) -> None:
        """A frame leaves: it may arrive damaged, or once more."""
        if self.rng.random() < 0.003 and len(frame.decode(data)[1]):
            self.count("frame damaged")
            wire.up(data[:-1] + bytes([data[-1] ^ 0x10]))  # the payload is last
            return
        wire.up(data)
        if self.rng.random() < self._again_rate:
            self.count("frame again")
            wire.again(data)

    # -- what goes wrong --------------------------------------------------------------------------------------

    def _plan_faults(self) -> None:
        """So many in every step, and before the first one."""
        for version in range(-1, self.job.steps):
            self._faults[version] = [self.rng.choice(FAULTS) for _ in range(self.rng.choice((0, 0, 1, 2, 4)))]
        self._make_faults(-1)

    def _make_faults(self, version: int) -> None:
        for fault in self._faults.pop(version, ()):
            self.clock.after(self.rng.uniform(0, 2.0), None, partial(fault, self))

    def read_all(self, server: Server, version: int) -> None:
        def read() -> None:
            for run in server.shard.layout.frames(self.job.frame_bytes):
                try:
                    data = server.shard.answers.encode_params(version, run)
                except VersionGone:
                    self.count("reader: gone")
                    return
                payload = data[len(data) - server.shard.layout.payload_bytes(run) :]
                if payload != self.job.bytes_of(server.index, run, version):
                    raise Violation(f"a reader of {server.name} gets other bytes than the reference's as version {version}")
                self.count("reader")

        server.run(read)

    # -- inside a process ------------------------------------------------------------------------------------

    def at_point(self, name: str) -> None:
        """A process is at a failpoint: it may die here, or be overtaken by others."""
        if not self.actors:
            return
        actor = self.actors[-1]
        self.counts[f"at {name}"] += 1
        self._has_moved |= name in ("shard.oldest", "shard.applied", "shard.init")
        if self._kills_left and self.rng.random() < self._kill_rate * (5 if name in _RARE else 1):
            self._kills_left -= 1
            self.count(f"died at {name}")
            self.kill(actor)
        elif (
            isinstance(actor, Server)
            and name != _COPYING
            and len(self.actors) < _NESTED
            and not actor.is_locked()
            and self.rng.random() < self._nest_rate
        ):
            self.count("overtaken")
            self._overtake(self.rng.randrange(1, 8))
        if actor.is_dead:
            raise Killed

    def _overtake(self, num_events: int) -> None:
        """Other threads and processes go on. What they violate is no error of the thread that waits here."""
        try:
            for _ in range(num_events):
                self.clock.step()
        except Violation as violation:
            self._violation = self._violation or violation
            raise Killed from violation

    def check(self) -> None:
        """Holds at all times, so it is looked at whenever a shard has moved."""
        if not self._has_moved:
            return
        self._has_moved = False
        versions = [store.version for store in self._views]
        if max(versions) - min(versions) > 1:
            raise Violation(f"shards are at versions {versions}")
        needed = min(versions)
        self._make_faults(needed)
        for shard, store in enumerate(self._views):
            if needed > 0 and not store.readable(needed):
                raise Violation(f"shard {shard} refuses version {needed}, which a restarted rank needs")

    def is_over(self) -> bool:
        control = self.driver.control
        return control.final_version == self.job.steps and all(server and not server.is_dead for server in self.driver.servers)

    def run(self) -> Outcome:
        failpoints.watch(self.at_point)
        problem = ""
        try:
            self._run()
        except Exception as error:  # one of ours, or what a missing guard makes of it
            problem = str(error) if isinstance(error, Violation) else repr(error)
            self.tell(f"VIOLATION {problem}")
        finally:
            failpoints.watch(None)
        return Outcome(self._seed, problem, self.counts, self.clock.now, self.clock.num_events)

    def _run(self) -> None:
        while not self.is_over():
            is_left = self.clock.step()
            if self._violation:
                raise self._violation
            if not is_left:
                raise Violation(f"nothing is left to happen: {self._state()}")
            if self.clock.num_events > MAX_EVENTS or self.clock.now > MAX_TIME_S:
                raise Violation(f"no end is reached: {self._state()}")
        for server in self.driver.servers:
            assert server and server.store.version == self.job.steps
            self.read_all(server, self.job.steps)

    def _state(self) -> str:
        members = ", ".join(f"{m.name} {m.mode} at {m.version}" for m in self.members() if m.mode != END)
        return f"shards at {[view.version for view in self._views]}; {members}"


def run(seed: int, trace: Callable[[str], object] | None = None, num_stages: int = 1) -> Outcome:
    """One history."""
    return World(seed, trace=trace, num_stages=num_stages).run()
