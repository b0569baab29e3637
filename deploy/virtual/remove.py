"""Removal of virtual clusters: one's own, and those whose owner was killed.

As a program it waits until its standard input ends, which is when the owner of the tag in its argument does, and then removes what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.virtual import quota
from deploy.virtual.owner import claim, known_tags, owner_of

NAMESPACES = Path("/run/netns")
_GONE_S = 10.0
_DYING_S = 1.0
"""Until a dead owner's lock is free: its files are closed in any order."""


def remove_abandoned() -> list[int]:
    """Removes every cluster without a living owner; their tags."""
    removed = []
    for tag in sorted(_tags()):
        if owned := claim(tag):
            try:
                remove(tag)
            finally:
                owned.release()
            removed.append(tag)
    return removed


def _tags() -> set[int]:
    """Of all clusters that there are."""
    return {*known_tags(), *(tag for name in _names() if (tag := owner_of(name)) is not None)}


def remove(tag: int) -> None:
    """Kills every process in the cluster's hosts, and deletes namespaces, links and quotas. The caller owns `tag`."""
    names = [name for name in _names() if owner_of(name) == tag]
    _kill_all(names)
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=True, capture_output=True)
    quotas = quota.find()
    if quotas:
        for folder in quotas.root.glob("pserver-*"):
            if owner_of(folder.name) == tag:
                _remove_folder(folder)


def pids_in(namespace: str) -> Iterator[int]:
    """Processes whose network is that of `namespace`."""
    network = (NAMESPACES / namespace).stat()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                its = (entry / "ns" / "net").stat()
                if (its.st_dev, its.st_ino) == (network.st_dev, network.st_ino):
                    yield int(entry.name)


def _kill_all(names: list[str]) -> None:
    """Again and again, for a process may have forked since it was listed."""
    deadline = time.monotonic() + _GONE_S
    while pids := [pid for name in names for pid in pids_in(name)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} outlive SIGKILL: are they waiting for a disk?")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _remove_folder(folder: Path) -> None:
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            return folder.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _names() -> list[str]:
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def main() -> None:
    """Entry point of the program that outlives the owner."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _DYING_S
    while True:
        remove_abandoned()
        if int(sys.argv[1]) not in _tags() or time.monotonic() > deadline:
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()
