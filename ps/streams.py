"""The living stream of every rank of one shard."""

from collections.abc import Callable
from dataclasses import dataclass

from ps.errors import PserverError


@dataclass
class Stream:
    """A way down to one member."""

    send: Callable[[bytes], None]
    """Queues a frame; never blocks."""
    end: Callable[[PserverError | None], None]
    """Ends the stream, with an error or without."""
    lands_shared: bool = False
    """The member takes payload from the shard's memory: frames bring none."""


class Streams:
    """At most one stream per rank, and the session it must belong to. Not thread-safe: the shard locks.

    Every Join begins a session. A stream of an older one may arrive late, when its handler was slow: it is refused
    instead of taking the place of the stream that the member works with.
    """

    def __init__(self, num_workers: int) -> None:
        self._session = [0] * num_workers
        self._living: dict[int, Stream] = {}

    def join(self, rank: int) -> tuple[int, Stream | None]:
        """Begins a session; returns it and the stream of the last one, which must be ended."""
        self._session[rank] += 1
        return self._session[rank], self._living.pop(rank, None)

    def is_current(self, rank: int, session: int) -> bool:
        """Whether the session is the rank's newest."""
        return session == self._session[rank]

    def open(self, rank: int, stream: Stream) -> Stream | None:
        """Makes `stream` the rank's; returns the one before, which must be ended."""
        former = self._living.pop(rank, None)
        self._living[rank] = stream
        return former

    def close(self, rank: int, stream: Stream) -> None:
        """Forgets a stream that has ended."""
        if self._living.get(rank) is stream:
            del self._living[rank]

    def of(self, rank: int) -> Stream | None:
        """The rank's stream; None between two."""
        return self._living.get(rank)

    def living(self) -> list[Stream]:
        return list(self._living.values())

    def take_all(self) -> list[Stream]:
        """All streams, which must be ended; none is left."""
        streams, self._living = self.living(), {}
        return streams
