"""What the processes of a run have told in their last heartbeats, for people who wonder why it stands still."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protos import pserver_pb2 as pb
from ps.config import Timeouts
from ps.control_checks import printable
from ps.credentials import Credentials
from ps.roles import DRIVER
from ps.transport.rpc import Peer

_Key = tuple[int, int]


@dataclass(frozen=True)
class ProcessState:
    """A process as the driver knows it."""

    role: Literal["server", "worker"]
    index: int
    """Shard, or number of a worker: rank * num_stages + stage."""
    host: str
    pid: int
    step: int
    """Version of a server, -1 before version 0."""
    doing: str = ""
    """Of a worker: continues the sentence "worker 0 ..."."""
    waits_for: tuple[int, ...] = ()
    """Workers that a server waits for."""
    silent_s: float = 0.0
    """Since its last sign of life."""
    stacks: str = ""
    """Of all its threads; empty if they did not come."""
    is_away: bool = False
    """It has ended."""

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


def inspect(address: str, credentials: Credentials) -> list[ProcessState]:
    """All processes of the run whose driver listens at `address`, servers first. Raises Unreachable."""
    peer = Peer(DRIVER, address, credentials, Timeouts())
    try:
        return [_state(message) for message in peer.call("Control", "Inspect", pb.InspectRequest(), pb.InspectReply).processes]
    finally:
        peer.close()


def _state(message: pb.ProcessState) -> ProcessState:
    return ProcessState(
        role="server" if message.role == pb.SERVER else "worker",
        index=message.index,
        host=message.environment.host,
        pid=message.environment.pid,
        step=message.step,
        doing=printable(message.doing),
        waits_for=tuple(message.waits_for),
        silent_s=message.silent_s,
        stacks=printable(message.stacks),
        is_away=message.is_away,
    )


class Inspection:
    """Not thread-safe: the service locks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[_Key, pb.ProcessState] = {}
        self._told_s: dict[_Key, float] = {}
        self._asked: set[_Key] = set()
        """Who has not been told yet that stacks are wanted."""
        self._owed: set[_Key] = set()
        """Who has not brought them."""

    def registered(self, request: pb.RegisterRequest, index: int) -> None:
        """`index`: of the process, as it is shown."""
        key = (request.role, index)
        self._states[key] = pb.ProcessState(role=request.role, index=index, environment=request.environment)
        self._told_s[key] = self._clock()

    def told(self, request: pb.HeartbeatRequest, index: int) -> bool:
        """A heartbeat; whether its sender shall bring stacks."""
        key = (request.role, index)
        if (state := self._states.get(key)) is None:
            return False
        self._told_s[key] = self._clock()
        state.step, state.doing = request.step, request.doing
        state.waits_for[:] = request.waits_for
        if request.stacks:
            state.stacks = request.stacks
            self._owed.discard(key)
        is_asked = key in self._asked
        self._asked.discard(key)
        return is_asked

    def ask(self) -> None:
        """Stacks are wanted of all."""
        for state in self._states.values():
            state.stacks = ""
        self._asked, self._owed = set(self._states), set(self._states)

    @property
    def has_all_stacks(self) -> bool:
        return not self._owed

    def states(self, is_away: Callable[[pb.ProcessState], bool]) -> list[pb.ProcessState]:
        """All processes, servers first."""
        now_s = self._clock()
        for key, state in self._states.items():
            state.silent_s, state.is_away = now_s - self._told_s[key], is_away(state)
        return [self._states[key] for key in sorted(self._states)]
