"""The living stream of every member of one shard."""

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
    """At most one stream per member, by its number, and the session it must belong to. Not thread-safe: the shard locks.

    Every Join begins a session. A stream of an older one may arrive late, when its handler was slow: it is refused
    instead of taking the place of the stream that the member works with.
    """

    def __init__(self, num_members: int) -> None:
        self._session = [0] * num_members
        self._living: dict[int, Stream] = {}

    def join(self, member: int) -> tuple[int, Stream | None]:
        """Begins a session; returns it and the stream of the last one, which must be ended."""
        self._session[member] += 1
        return self._session[member], self._living.pop(member, None)

    def is_current(self, member: int, session: int) -> bool:
        """Whether the session is the member's newest."""
        return session == self._session[member]

    def open(self, member: int, stream: Stream) -> Stream | None:
        """Makes `stream` the member's; returns the one before, which must be ended."""
        former = self._living.pop(member, None)
        self._living[member] = stream
        return former

    def close(self, member: int, stream: Stream) -> None:
        """Forgets a stream that has ended."""
        if self._living.get(member) is stream:
            del self._living[member]

    def of(self, member: int) -> Stream | None:
        """The member's stream; None between two."""
        return self._living.get(member)

    def living(self) -> list[Stream]:
        return list(self._living.values())

    def take_all(self) -> list[Stream]:
        """All streams, which must be ended; none is left."""
        streams, self._living = self.living(), {}
        return streams
