"""What a process does with freed memory."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Memory that this process frees stays its own, where the C library is glibc.

    Every step makes the same large gradients and frames. glibc maps each anew and gives it back, and the kernel clears every page
    again: 100 MB of them cost 25,000 page faults per step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
