"""Where the time of one exchange went, and what each shard moved."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from protos import pserver_pb2 as pb
from ps.ledger import ShardTraffic, covered


@dataclass
class StepTiming:
    """Exclusive spans of the training thread, in seconds, and the traffic by shard."""

    encode_s: float = 0.0
    send_s: float = 0.0
    barrier_wait_s: float = 0.0
    apply_s: float = 0.0
    receive_s: float = 0.0
    waits_for: int | None = None
    shards: list[ShardTraffic] = field(default_factory=list)
    ways: list[tuple[tuple[float, float] | None, tuple[float, float] | None]] = field(default_factory=list)
    """By shard and our clock: from when to when anything was on its way up, and down; None if nothing was."""
    rejoined: bool = False
    """A shard was joined again since the step before."""

    def end(self, now: float) -> None:
        """The step ends now, by our clock: its traffic is told how long before."""
        for traffic, (up, down) in zip(self.shards, self.ways, strict=True):
            if up:
                traffic.push_from_s, traffic.push_to_s = now - up[0], now - up[1]
            if down:
                traffic.pull_from_s, traffic.pull_to_s = now - down[0], now - down[1]


@dataclass
class _ShardClock:
    traffic: ShardTraffic
    offset_s: float
    """Our clock less the server's, from the quickest receipt or answer ever seen: receipts may have waited."""
    sent: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Our clock when each frame was handed to the stream, and its payload."""
    received_s: float = -math.inf
    """The server's clock at the last receipt."""
    taken: list[tuple[float, float, int]] = field(default_factory=list)
    """Frames of which the receipt has come: our clock when they were sent, the server's when they had been received, and their payload."""
    intervals: list[tuple[float, float, bool, int]] = field(default_factory=list)
    """By our clock: when a frame (True) or an answer (False) of so many bytes was on its way."""
    last: pb.FrameHeader | None = None
    """Header of the answer that landed last."""
    landed_s: float = 0.0


class StepClock:
    """Times the steps of one member, by its number, one after the other. Not thread-safe: the client locks."""

    def __init__(self, number: int, num_servers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._number = number
        self._clock = clock
        self._shards = [_ShardClock(ShardTraffic(shard=i), math.inf) for i in range(num_servers)]
        self.rejoined = False
        """A shard was joined again since the last `finish`."""
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._shards = [_ShardClock(ShardTraffic(shard=i), shard.offset_s) for i, shard in enumerate(self._shards)]
        self.encode_s = 0.0
        """Spent by the training thread on digests and frames."""
        self._send_s = self._wait_s = 0.0

    def waited(self, seconds: float, *, blocked: bool) -> None:
        """The training thread has waited: blocked by the window, or for answers."""
        if blocked:
            self._send_s += seconds
        else:
            self._wait_s += seconds

    def sent(self, shard: int, frame: int, payload_bytes: int, encode_s: float = 0.0) -> None:
        """A frame has been handed to the stream, after it took `encode_s` to make."""
        its = self._shards[shard]
        its.traffic.encode_s += encode_s
        its.sent[frame] = self._clock(), payload_bytes
        its.traffic.push_bytes += payload_bytes

    def received(self, shard: int, frame: int, server_clock_s: float) -> None:
        """The receipt of a frame has come."""
        its = self._shards[shard]
        its.offset_s = min(its.offset_s, self._clock() - server_clock_s)
        if frame in its.sent:
            sent_s, payload_bytes = its.sent[frame]
            its.received_s = max(its.received_s, server_clock_s)
            its.taken.append((sent_s, server_clock_s, payload_bytes))

    def landed(self, shard: int, header: pb.FrameHeader, payload_bytes: int) -> None:
        """An answer is in place."""
        its = self._shards[shard]
        its.traffic.pull_bytes += payload_bytes
        its.last = header
        its.landed_s = self._clock()
        its.offset_s = min(its.offset_s, its.landed_s - header.clock_s)
        its.intervals.append((min(its.landed_s, header.clock_s + its.offset_s), its.landed_s, False, payload_bytes))

    def finish(self) -> StepTiming:
        """Splits the wait for the answers by the clock of the shard that landed last: for other ranks, for its work, for bytes."""
        wait = self._wait_s
        timing = StepTiming(encode_s=self.encode_s, send_s=self._send_s, shards=[shard.traffic for shard in self._shards], rejoined=self.rejoined)
        self.rejoined = False
        for shard in self._shards:
            shard.intervals += [(sent_s, max(sent_s, server_s + shard.offset_s), True, size) for sent_s, server_s, size in shard.taken]
            up, down = _ends(shard, up=True), _ends(shard, up=False)
            _close(shard)
            shard.traffic.push_in_flight_bytes = _in_flight_bytes(shard, up, is_up=True)
            shard.traffic.pull_in_flight_bytes = _in_flight_bytes(shard, down, is_up=False)
            timing.ways.append((up, down))
        last = max(self._shards, key=lambda shard: shard.landed_s)
        if last.last is not None:
            header = last.last
            timing.barrier_wait_s = min(wait, last.traffic.wait_s)
            timing.apply_s = min(wait - timing.barrier_wait_s, max(0.0, header.clock_s - header.complete_s))
            if timing.barrier_wait_s > 0 and header.last_rank != self._number:
                timing.waits_for = header.last_rank
        timing.receive_s = wait - timing.barrier_wait_s - timing.apply_s
        return timing


def _close(shard: _ShardClock) -> None:
    if shard.last is None:
        return
    arrived_s = shard.received_s if math.isfinite(shard.received_s) else shard.last.complete_s
    traffic, intervals = shard.traffic, sorted(shard.intervals)
    traffic.wait_s = max(0.0, shard.last.complete_s - arrived_s)
    traffic.push_s = covered([(start, end) for start, end, is_up, _ in intervals if is_up])
    traffic.pull_s = covered([(start, end) for start, end, is_up, _ in intervals if not is_up])
    traffic.busy_s = covered([(start, end) for start, end, _, _ in intervals])


def _ends(shard: _ShardClock, *, up: bool) -> tuple[float, float] | None:
    """The first start and the last end of what was on its way up, or down; None if nothing was."""
    spans = [(start, end) for start, end, is_up, _ in shard.intervals if is_up is up]
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None


def _in_flight_bytes(shard: _ShardClock, ends: tuple[float, float] | None, *, is_up: bool) -> float:
    """On their way up, or down, at a moment between these ends, mean; 0 if nothing was."""
    if ends is None or ends[1] <= ends[0]:
        return 0.0
    return sum((end - start) * size for start, end, way, size in shard.intervals if way is is_up) / (ends[1] - ends[0])
