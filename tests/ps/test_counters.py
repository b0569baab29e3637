"""Bytes on links, by the kernel's counters."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from ps.config import CommConfig
from ps.transport.counters import HEADER_BYTES, Interface, WireMeter
from tests.ps.cluster import cluster, exchange, start

DEVICES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0
  eth0: {} {} 0 0 0 0 0 0 {} {} 0 0 0 0 0 0
"""


def test_headers_are_counted_as_the_interface_counts_them() -> None:
    """Up, a header for every 1448 bytes; down, nothing but acknowledgements, which carry nothing."""
    now = 0.0
    first, full = DEVICES.format(500, 5, 700, 7), DEVICES.format(500 + 60 * HEADER_BYTES, 65, 700 + 100 * (1448 + HEADER_BYTES), 107)
    texts = [full, first]
    interface = Interface("eth0", first, lambda: now, lambda: texts[0])
    up, down = interface.bytes_per_payload()
    assert up == pytest.approx((1448 + HEADER_BYTES) / 1448) and down == 1.0
    del texts[0]
    assert interface.bytes_per_payload()[0] == up, "within a second it is not asked again"
    now = 1.0
    assert interface.bytes_per_payload() == (1.0, 1.0)


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()) as ours:
            theirs, _ = listener.accept()
            with theirs:
                yield ours, theirs, address


def send(source: socket.socket, target: socket.socket, num_bytes: int) -> None:
    thread = threading.Thread(target=source.sendall, args=(bytes(num_bytes),))
    thread.start()
    while num_bytes:
        num_bytes -= len(target.recv(num_bytes))
    thread.join()


def test_a_connection_is_found_among_our_files_and_told_once() -> None:
    meter = WireMeter()
    with connected() as (ours, theirs, address):
        send(ours, theirs, 5_000_000)
        send(theirs, ours, 3_000_000)
        up, down = meter.take(address)
        assert 5_000_000 < up < 5_300_000 and 3_000_000 < down < 3_200_000
        assert meter.take(address) == (0, 0)
        send(ours, theirs, 1_000_000)
        assert 1_000_000 < meter.take(address).up < 1_060_000
        ours.sendall(b"still open")
        assert theirs.recv(10) == b"still open"
    assert meter.take(address) == (0, 0)


def test_headers_of_all_packets_so_far_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface has counted a header for a byte at first, for little came, and then hardly any."""
    ratios = [(1.0, 2.0), (1.0, 1.1), (1.0, 1.05), (1.0, 1.1)]
    monkeypatch.setattr(Interface, "bytes_per_payload", lambda self: ratios.pop(0))
    meter = WireMeter()
    with connected() as (ours, theirs, address):
        found = []
        for num_bytes in (100_000, 900_000, 0, 0):
            send(theirs, ours, num_bytes)
            found.append(meter.take(address).down)
    assert found == [200_000, 900_000, 0, 0], "1.1 times all bytes, and what was told is not taken back"


def test_a_connection_that_takes_the_place_of_another_is_counted_from_its_beginning() -> None:
    meter = WireMeter()
    with connected() as (ours, theirs, address):
        send(ours, theirs, 1_000_000)
        meter.take(address)
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))) as listener, socket.create_connection((host, int(port))) as ours:
        theirs, _ = listener.accept()
        with theirs:
            send(ours, theirs, 2_000_000)
            assert 2_000_000 < meter.take(address).up < 2_120_000


def test_gradients_and_parameters_of_a_step_are_on_the_wire_once() -> None:
    with cluster(1, 2, comm=CommConfig(shared_memory=False)) as servers:
        member = servers.member(0, nn.Linear(500, 1000))
        start(member)
        first, second = exchange(member, 0, 1.0), exchange(member, 1, 1.0)
        for traffic in second.shards:
            assert traffic.push_bytes > 900_000
            assert traffic.push_bytes < traffic.push_wire_bytes < 1.1 * traffic.push_bytes
            assert traffic.pull_bytes < traffic.pull_wire_bytes < 1.1 * traffic.pull_bytes
        assert all(traffic.push_wire_bytes > 2 * traffic.push_bytes for traffic in first.shards), "version 0 was brought before"


def test_of_payload_in_shared_memory_only_headers_are_on_the_wire() -> None:
    with cluster(1, 1) as servers:
        member = servers.member(0, nn.Linear(500, 1000))
        start(member)
        exchange(member, 0, 1.0)
        traffic = exchange(member, 1, 1.0).shards[0]
        assert traffic.push_bytes > 1_900_000 and 0 < traffic.push_wire_bytes < 20_000 and 0 < traffic.pull_wire_bytes < 20_000
