"""Joins shards wherever they are served now: a server that was started again has other ports."""

import time
from collections.abc import Callable
from typing import TypeVar

from protos import pserver_pb2 as pb
from ps.config import Timeouts
from ps.control import ServerAddress
from ps.errors import Fenced, NotInitialised, PserverError, Stopped, Unreachable
from ps.line import Joined, Line
from ps.patience import Patience

T = TypeVar("T")

Locate = Callable[[int], ServerAddress | None]
"""Where a shard is served now; None while its server is being started again."""
GONE = (Unreachable, Stopped, NotInitialised, Fenced)
"""How calls to a server end whose process has ended, or has just begun. Whether we are fenced is for Join to say."""


class Rejoin:
    """Asks again and again while a server is away; one thread does. Without `locate` a server that goes away is waited for at
    its address, for `connect_s`. `pause` waits a moment, and raises if the member is to end.
    """

    def __init__(self, num_servers: int, timeouts: Timeouts, locate: Locate | None, pause: Callable[[], None]) -> None:
        self._num_servers = num_servers
        self._locate = locate
        self._pause = pause
        self._patience = [Patience(timeouts.frozen_after_s + timeouts.connect_s) for _ in range(num_servers)]
        self.request = pb.JoinRequest()
        """What to join with."""

    def is_gone(self, error: PserverError) -> bool:
        """Whether a stream that ended with `error` shall be opened again."""
        return isinstance(error, GONE if self._locate else Unreachable)

    def join(self, line: Line) -> Joined:
        """Joins a shard. Raises what Join raises."""
        while self._locate:
            address = self._locate(line.index)
            if address:
                line.move(address)
                try:
                    return line.join(self.request, self._num_servers, may_move=True)
                except Unreachable as error:
                    self._failed(line, error)
            self._pause()
        return line.join(self.request, self._num_servers)

    def persist(self, line: Line, call: Callable[[], T]) -> T:
        """A call to a shard that may be repeated: after another Join, if its server went away meanwhile."""
        while True:
            try:
                result = call()
            except GONE as error:
                if not self._locate:
                    raise
                self.stream_failed(line, error)
                self.join(line)
            else:
                self.succeeded(line)
                return result

    def succeeded(self, line: Line) -> None:
        """The shard has answered."""
        self._patience[line.index].succeeded()

    def stream_failed(self, line: Line, error: PserverError) -> None:
        """It has not, though it was joined. Raises `error` after too long a time."""
        self._failed(line, error)
        self._pause()

    def _failed(self, line: Line, error: PserverError) -> None:
        self._patience[line.index].failed(line.address, error, time.monotonic())
