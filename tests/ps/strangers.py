"""Strangers who speak HTTP/2 without gRPC's library, and read what they are told."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.peers.flood import HELLO

HEADERS, RESET, SETTINGS, PING, GOAWAY = 1, 3, 4, 6, 7
END_STREAM = 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4


class Told(NamedTuple):
    """A frame."""

    kind: int
    flags: int
    stream: int
    body: bytes

    @property
    def settings(self) -> dict[int, int]:
        return {
            int.from_bytes(self.body[at : at + 2], "big"): int.from_bytes(self.body[at + 2 : at + 6], "big") for at in range(0, len(self.body), 6)
        }


class Stranger:
    """A connection that has introduced itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self.send(HELLO)

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def told(self) -> Iterator[Told]:
        """Until the connection ends."""
        while head := self._lines.read(9):
            yield Told(head[3], head[4], int.from_bytes(head[5:], "big"), self._lines.read(int.from_bytes(head[:3], "big")))


@contextmanager
def stranger(address: str) -> Iterator[Stranger]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield Stranger(connection)
