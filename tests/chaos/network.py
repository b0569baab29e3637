"""Partitions: what a process sends and what is sent to it vanishes for a while, in a network of the campaign's own."""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterable

import psutil

_CLONE_NEWNET = 0x40000000
_LOOK_EVERY_S = 0.02
_RULE = "pref 10 ipproto tcp"


def enter_own_network() -> None:
    """Moves this thread, and whatever it starts from now on, into a network that has a loopback only. Needs root and iproute2."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network of one's own needs root")
    # rules that are looked at before the one for local addresses, which else comes first
    _ip(["link set lo up", "rule add pref 100 lookup local", "rule del pref 0 lookup local"])


def partition(process: psutil.Process, seconds: float) -> None:
    """Returns when it is over, or the process is gone. Connections that are there stay and say nothing; new ones fail or say nothing."""
    deadline = time.monotonic() + seconds
    cut: set[int] = set()
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                found = {connection.laddr.port for connection in process.net_connections("tcp")} - cut
                cut |= found
                _ip(_rules("add", found))
            time.sleep(_LOOK_EVERY_S)
    finally:
        _ip(_rules("del", cut))


def _rules(what: str, ports: Iterable[int]) -> list[str]:
    return [f"rule {what} {_RULE} {end} {port} blackhole" for port in ports for end in ("sport", "dport")]


def _ip(commands: list[str]) -> None:
    if commands:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, env=os.environ)
