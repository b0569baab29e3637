"""What a process does with freed memory."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_NEVER = 2**31 - 1

SPARE_BYTES = 64 << 20
"""Free memory that a process may keep however long it lies idle."""
LOOKS = 5
"""So often in a row more must be found idle."""


def keep_freed_memory(below_bytes: int | None = None) -> None:
    """Memory that this process frees stays its own, where the C library is glibc. `below_bytes`: smaller pieces only, <= 32 MiB.

    Every step makes the same large gradients and frames. glibc maps each anew and gives it back, and the kernel clears every page
    again: 100 MB of them cost 25,000 page faults per step. But an aligned piece does not fit where one of its size has been, so the place
    of several stays taken.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if below_bytes is None:
            mallopt(_M_MMAP_MAX, 0)
        else:
            mallopt(_M_MMAP_THRESHOLD, below_bytes)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


class Idle:
    """Tells free memory that lies idle from what the next step takes again. Pure."""

    def __init__(self, free_bytes: int) -> None:
        self.given_back(free_bytes)

    def lies_idle(self, free_bytes: int) -> bool:
        """At the next look: whether much more than can stay has been free at each of the last ones."""
        self._seen.append(free_bytes)
        return len(self._seen) == LOOKS and min(self._seen) > self._rest_bytes + SPARE_BYTES

    def given_back(self, free_bytes: int) -> None:
        """So much is left: it is not malloc's to give."""
        self._rest_bytes = free_bytes
        self._seen: deque[int] = deque(maxlen=LOOKS)


class SpareMemory:
    """Gives memory that malloc keeps free back to the system, if it is looked at now and then: a flood of strangers would leave megabytes
    for each of their connections. Where the C library is not glibc, nothing happens.

    Threads that have not begun yet get no arena of their own, of whose end nothing could be given back.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_ARENA_MAX, 1)
        self._trim = getattr(libc, "malloc_trim", None)
        self._info = getattr(libc, "mallinfo2", None)
        if self._info:
            self._info.restype = _MallocInfo
        self._idle = Idle(self._free_bytes())

    def look(self) -> None:
        """Takes milliseconds if there is something to give back."""
        if self._trim and self._idle.lies_idle(self._free_bytes()):
            self._trim(0)
            self._idle.given_back(self._free_bytes())

    def _free_bytes(self) -> int:
        """Resident memory of this process alone that nobody has asked malloc for: what malloc keeps, code and data, Python's small objects."""
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
        found = self._info() if self._info else _MallocInfo()
        return (int(resident) - int(shared)) * mmap.PAGESIZE - int(found.uordblks + found.hblkhd)


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, all sizes in bytes; `uordblks` and `hblkhd` are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]
