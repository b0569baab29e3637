"""A stage's memory: the places of other stages' tensors take none, and what the whole model took goes back."""

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

from ps.frame import Bytes

LARGE_BYTES_AT_START, LARGE_BYTES = 4 << 20, 16 << 20
"""A stage gives pieces of so many bytes back as soon as they are free. At the start they are tensors that it will not need again; later also
activations, for which to ask the system again takes longer than what is computed with them, so only what is larger than these mostly are."""


def give_back_freed_memory() -> None:
    """What this process has freed so far, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak() -> None:
    """The peak begins anew with what is taken now, where Linux allows that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """The most memory that this process has had at once, shared memory included. None: unknown."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


def untouched(size: int) -> Bytes:
    """Zeros, aligned to pages, each of which takes memory from its first write on."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # of shared memory a page that is read takes memory too
    return np.frombuffer(mmap.mmap(-1, size, flags=private), np.uint8) if size else np.empty(0, np.uint8)
