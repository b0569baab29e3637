"""How long frames are and how many of them may be on their way: from what the link to the servers is worth.

Pure. A frame that takes long to travel makes everything that it carries late, a short one costs as much work as a long one: frames
are as short as a host's processors bear, and no longer than what the link moves in FRAME_S. The window covers the time until a credit
comes back: on the way down it queues behind answers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pydantic import ConfigDict

from ps.comm import CAST_BYTES, EXACT, CommConfig

FRAME_S = 0.011
"""What a frame should take on the link at most."""
FRAME_COST_S, BYTE_COST_S = 1e-3, 2e-9
"""What a host's processors do for a frame and its answer, whatever their length, and for a byte that goes and comes."""
HOST_SHARE = 0.2
"""Of a core, which a host may give to that: what is left beside its bytes is for frames."""
MIN_FRAME_BYTES = 32 << 10
USUAL_FRAME_BYTES = 1 << 20
"""Of frames on a link that nothing is known of, and of those that have no window."""
MAX_FRAME_BYTES = 4 << 20
MAX_WINDOW_BYTES = 32 << 20
"""Frames are longer than the usual ones, and windows wider than they must be, only as far as a window holds no more than this."""
WINDOW = 8
"""At least, where nobody shares a server's link."""
MIN_WINDOW = 3
"""One on its way up, one of which the receipt is on its way, one to follow."""
MAX_WINDOW = 64
PINGS = 3
"""Empty frames that are echoed first, one after the other."""
FIRST_BYTES = 32 << 10
LAST_BYTES = 4 << 20
LONG_ENOUGH_S = 0.03
"""An echo that takes so much longer than an empty one tells the rate: a link's burst is small beside it."""
TRIES = 2
"""Echoes of one size that must take so long, one after the other: a machine that stalls for once is no thin link."""


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """Frames of a member, and why they are so; by default those of a link that nothing is known of."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    frame_bytes: int = USUAL_FRAME_BYTES
    """What a frame carries over the link."""
    window_frames: int = WINDOW
    """Frames on their way to all shards together."""
    wide_frames: int = WINDOW
    """The same once all of a step's are ready."""
    link_bytes_per_s: float = math.inf
    """What the member's link to all shards together was measured to carry up."""
    delay_s: float = 0.0
    """Until an empty frame is echoed."""

    @property
    def is_measured(self) -> bool:
        """Whether the link is known."""
        return math.isfinite(self.link_bytes_per_s)

    def __str__(self) -> str:
        return f"link {self.link_bytes_per_s / 1e6:.3g} MB/s, {self.delay_s * 1e3:.2g} ms: {self.frames}"

    @property
    def frames(self) -> str:
        """For people."""
        in_the_end = f" ({self.wide_frames} in the end)" if self.wide_frames > self.window_frames else ""
        return f"{self.window_frames} frames{in_the_end} of {self.frame_bytes / 1024:.0f} KiB"


class Windows(NamedTuple):
    """Frames that a member must be allowed to have on their way, on a link without delay."""

    least: int
    wide: int
    """Once all frames of a step are ready."""


def windows_of(num_ranks: int, num_servers: int) -> Windows:
    """For every server one frame that it takes and one of which the receipt is on its way. Twice as many hide that a process pauses, but an early
    layer's frame would wait behind them: so only when none is still to come. Windows of ranks that outnumber the servers queue for the servers'
    links, and longer ones overrun the queue."""
    shares_links = num_ranks > num_servers
    least = min(max(2 * num_servers, MIN_WINDOW if shares_links else WINDOW), MAX_WINDOW)
    return Windows(least, least if shares_links else min(2 * least, MAX_WINDOW))


def pacing_of(link_bytes_per_s: float, delay_s: float, windows: Windows, frame_bytes: int | None = None) -> Pacing:
    """Frames for a link of that rate and round trip. `frame_bytes`: of a length that others have chosen."""
    if frame_bytes is None:
        carried = link_bytes_per_s * _frame_s(link_bytes_per_s)
        frame_bytes = min(1 << round(math.log2(max(1.0, carried))), _longest(windows.least))
    frame_bytes = min(max(frame_bytes, MIN_FRAME_BYTES), MAX_FRAME_BYTES)
    covering = math.ceil(2 * link_bytes_per_s * delay_s / frame_bytes)
    window = min(max(covering, windows.least), MAX_WINDOW)
    return Pacing(
        frame_bytes=frame_bytes,
        window_frames=window,
        wide_frames=max(window, min(windows.wide, MAX_WINDOW_BYTES // frame_bytes)),
        link_bytes_per_s=link_bytes_per_s,
        delay_s=delay_s,
    )


def _frame_s(link_bytes_per_s: float) -> float:
    """What a frame should take on the link."""
    for_frames = HOST_SHARE - BYTE_COST_S * link_bytes_per_s
    return FRAME_S if for_frames <= 0 else min(FRAME_S, FRAME_COST_S / for_frames)


def _longest(least: int) -> int:
    """Frame, of which so many are on their way: a power of two."""
    fitting = 1 << (MAX_WINDOW_BYTES // least).bit_length() - 1
    return max(fitting, USUAL_FRAME_BYTES)


def exact_bytes(pacing: Pacing, comm: CommConfig) -> int:
    """Of float32 elements in a frame that travels: twice what the link should carry in one, if they are half as long both ways."""
    return pacing.frame_bytes * (1 if EXACT in (comm.push_format, comm.pull_format) else 4 // CAST_BYTES)


class Probe:
    """Which echoes to ask for, and what they tell: empty ones, then of twice the size each until TRIES of one size take long enough."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._delay_s = self._quickest_s = math.inf
        self._size = 0
        """Of the echoes of which `_quickest_s` is the quickest one."""
        self._rate: float | None = None

    def rounds(self) -> Iterator[int]:
        """Bytes to send to all shards together in the next round; after each one, `echoed`."""
        yield from [0] * PINGS
        size = FIRST_BYTES
        while size <= LAST_BYTES:
            for _ in range(TRIES):
                self._long_enough = False
                yield size
                if not self._long_enough:
                    break
            else:
                return
            size *= 2

    def echoed(self, size: int, seconds: float) -> None:
        """All of a round has come back."""
        if not size:
            self._delay_s = min(self._delay_s, seconds)
            return
        self._quickest_s = min(self._quickest_s, seconds) if size == self._size else seconds
        self._size = size
        # no echo of anything is quicker than an empty one, but for noise
        self._rate = size / max(self._quickest_s - self._delay_s, self._quickest_s / 10)
        self._long_enough = seconds - self._delay_s >= LONG_ENOUGH_S

    @property
    def pacing(self) -> Pacing | None:
        """None before anything has been learnt."""
        return None if self._rate is None else pacing_of(self._rate, self._delay_s, self._windows)
