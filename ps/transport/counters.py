"""Bytes of this process' connections on their links, from the kernel's counters.

gRPC keeps its sockets to itself, so they are looked for among the process' open files, and a duplicate of the descriptor is asked (`TCP_INFO`):
two system calls for each connection. The kernel's list of sockets (`sock_diag`) needs no descriptor, but is of the whole host, and closed in
some containers. TCP counts what it carries, repetitions included; the headers are in proportion to those that the interface has counted.
"""

import contextlib
import math
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

_INFO_BYTES = 216
_RECEIVED_AT, _SENT_AT = 128, 200
"""Offsets in the kernel's struct tcp_info of `tcpi_bytes_received` and `tcpi_bytes_sent` (Linux 4.19)."""
HEADER_BYTES = 66
"""Ethernet, IPv4, and TCP with time stamps."""
MOST = 1.0 + HEADER_BYTES
"""Bytes on the link for one of TCP's, at most: packets of one byte."""
REFRESH_S = 1.0
_DEVICES = Path("/proc/self/net/dev")


class Sent(NamedTuple):
    """Bytes both ways."""

    up: int
    down: int


@dataclass
class _Connection:
    """A TCP connection of ours; `inode` tells its socket from a later one with the same descriptor."""

    descriptor: int
    inode: int
    up: int = 0
    """What has been told of it, as `down`: TCP's bytes."""
    down: int = 0

    def read(self) -> tuple[int, int] | None:
        """All of TCP's bytes up and down; None if the connection is gone, or the kernel does not count."""
        with contextlib.suppress(OSError), _duplicate(self.descriptor, self.inode) as ours:
            info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            if len(info) == _INFO_BYTES:
                return struct.unpack_from("=Q", info, _SENT_AT)[0], struct.unpack_from("=Q", info, _RECEIVED_AT)[0]
        return None


class WireMeter:
    """What travels between this process and the addresses that it has connected to. One thread uses it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = _DEVICES.read_text()
        self._connections: dict[str, dict[int, _Connection]] = {}
        self._all: dict[str, tuple[int, int]] = {}
        """By address: TCP's bytes so far, up and down."""
        self._told: dict[str, Sent] = {}
        """Sum of what `take` has returned."""
        self._interfaces: dict[str, Interface] = {}
        """By address: what the connections go through."""

    def take(self, address: str) -> Sent:
        """Bytes on the link to `address` ("host:port") since the last call; from a connection's beginning on when it is new."""
        known = self._connections.setdefault(address, {})
        found = {inode: bytes_now for inode, one in known.items() if (bytes_now := one.read())}
        if not found or len(found) < len(known):
            for one in _connections_to(address):
                known.setdefault(one.inode, one)
            found = {inode: bytes_now for inode, one in known.items() if (bytes_now := one.read())}
            self._connections[address] = known = {inode: known[inode] for inode in found}
        up = down = 0
        for inode, (all_up, all_down) in found.items():
            one = known[inode]
            up, down = up + all_up - one.up, down + all_down - one.down
            one.up, one.down = all_up, all_down
        if not found:
            return Sent(0, 0)
        if address not in self._interfaces:
            self._interfaces[address] = Interface(_interface_of(next(iter(known.values()))), self._before, self._clock)
        of_up, of_down = self._interfaces[address].bytes_per_payload()
        before, told = self._all.get(address, (0, 0)), self._told.get(address, Sent(0, 0))
        self._all[address] = all_up, all_down = before[0] + up, before[1] + down
        # the interface's headers are of all packets so far: so is the product, or steps of short packets would get the headers of long ones before
        new = Sent(max(0, round(all_up * of_up) - told.up), max(0, round(all_down * of_down) - told.down))
        self._told[address] = Sent(told.up + new.up, told.down + new.down)
        return new


class Interface:
    """What an interface counts for a byte of TCP: headers of every packet, or of every piece of some kilobytes where something behind it cuts
    packets. By its counters since `before`, read at most once a second."""

    def __init__(self, name: str, before: str, clock: Callable[[], float], read: Callable[[], str] = _DEVICES.read_text) -> None:
        self._name = name
        self._clock = clock
        self._read = read
        self._first = self._counters(before)
        self._asked_s = -math.inf
        self._found = 1.0, 1.0

    def bytes_per_payload(self) -> tuple[float, float]:
        """Up and down, from 1 on."""
        if (now := self._clock()) - self._asked_s >= REFRESH_S:
            self._asked_s = now
            up, up_packets, down, down_packets = (new - old for new, old in zip(self._counters(self._read()), self._first, strict=True))
            self._found = _ratio(up, up_packets), _ratio(down, down_packets)
        return self._found

    def _counters(self, text: str) -> tuple[int, int, int, int]:
        """Bytes and packets out, bytes and packets in; zeros if there is no such interface."""
        for line in text.splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._name:
                fields = [int(number) for number in numbers.split()]
                return fields[8], fields[9], fields[0], fields[1]
        return 0, 0, 0, 0


def _ratio(num_bytes: int, packets: int) -> float:
    payload = num_bytes - HEADER_BYTES * packets
    return min(MOST, num_bytes / payload) if payload > 0 else 1.0


def _connections_to(address: str) -> Iterator[_Connection]:
    """Ours, among this process' open files."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        wanted = socket.gethostbyname(host), int(port)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                status = os.fstat(int(name))
                if stat.S_ISSOCK(status.st_mode) and _ends(int(name), status.st_ino)[1] == wanted:
                    yield _Connection(int(name), status.st_ino)


def _interface_of(connection: _Connection) -> str:
    """Name of the interface that has our end's address; "lo" if both ends have it."""
    with contextlib.suppress(OSError):
        (own, _), (others, _) = _ends(connection.descriptor, connection.inode)
        if own != others:
            for name, addresses in psutil.net_if_addrs().items():
                if any(one.address == own for one in addresses):
                    return name
    return "lo"


def _ends(descriptor: int, inode: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """Addresses of both ends, as IPv4 if they are. Raises OSError if it is no connection, or gone."""
    with _duplicate(descriptor, inode) as ours:
        if ours.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError("no connection over IP")
        own, others = ours.getsockname(), ours.getpeername()
    return (own[0].removeprefix("::ffff:"), own[1]), (others[0].removeprefix("::ffff:"), others[1])


def _duplicate(descriptor: int, inode: int) -> socket.socket:
    """The same socket; closing ours leaves gRPC's open. Raises OSError if the descriptor is another's by now."""
    copy = os.dup(descriptor)
    if os.fstat(copy).st_ino != inode:
        os.close(copy)
        raise OSError("the connection is gone")
    return socket.socket(fileno=copy)
