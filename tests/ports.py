"""Ports that nobody else takes between their choice and their use."""

import itertools
import os
import socket

_PER_PROCESS = 1000
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.count(21000 + _process * _PER_PROCESS)


def free_ports(count: int) -> range:
    """Neighbours that are free, each given out once.

    They lie below the ports that the kernel gives away by itself, in a part of its own for each process that shares the tests.
    """
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with socket.socket() as probe:
            found = [*found, port] if probe.connect_ex(("127.0.0.1", port)) else []
    return range(found[0], found[0] + count)


def free_port() -> int:
    return free_ports(1)[0]
