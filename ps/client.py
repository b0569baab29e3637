"""The worker's end of the wire: join, init, pull, and one exchange of gradients for parameters per step.

All or error: a step either lands every chunk of every shard or raises.
"""

import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import grpc
import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import spec_messages
from ps.config import CommConfig, Timeouts
from ps.control import ServerAddress
from ps.errors import PserverError, Stopped, Unreachable, VersionGone, from_rpc_error
from ps.exchange import Exchange
from ps.frame import Bytes
from ps.layout import Layout, Run
from ps.ledger import WIRE_OVERHEAD, ShardTraffic, covered
from ps.norms import NormRelay
from ps.plan import Plan
from ps.security import call_metadata
from ps.store import EMPTY
from ps.transport.rpc import Peer
from ps.transport.shaping import Link

log = logging.getLogger(__name__)

_END = b""


@dataclass
class _Shard:
    """One shard as a worker sees it."""

    index: int
    data: Peer
    control: Peer
    frames: list[Run]
    member: pb.Member
    """Who we are here: with the session of the last Join."""
    outgoing: "queue.SimpleQueue[bytes]" = field(default_factory=queue.SimpleQueue)
    stream: object = None
    ready: bool = False
    sequence: int = 0
    sent: dict[int, int] = field(default_factory=dict)
    """Frame index by sequence number, of this stream."""
    received_s: dict[int, float] = field(default_factory=dict)
    """The server's clock at the receipt of each frame of the step."""
    sent_s: dict[int, float] = field(default_factory=dict)
    """Our clock when each frame of the step was handed to the stream."""
    offset_s: float = math.inf
    """Our clock less the server's, from the quickest receipt seen."""
    on_the_way: list[tuple[float, float, bool]] = field(default_factory=list)
    """Intervals of the step, by our clock, in which a frame (True) or an answer (False) was on its way."""


@dataclass
class StepTiming:
    """Where one exchange spent its time, in seconds of the calling thread, and what each shard moved."""

    copy_s: float = 0.0
    encode_s: float = 0.0
    send_s: float = 0.0
    barrier_wait_s: float = 0.0
    apply_s: float = 0.0
    receive_s: float = 0.0
    waits_for: int | None = None
    shards: list[ShardTraffic] = field(default_factory=list)


class Client:
    """A member's connection to all shards. One thread calls join, init, pull and exchange; `abort` may come from any.

    `landing` holds two flat layouts; version v lands in landing[v % 2].
    """

    def __init__(
        self,
        *,
        member: pb.Member,
        run_id: str,
        token: str,
        layout: Layout,
        servers: Sequence[ServerAddress],
        comm: CommConfig,
        timeouts: Timeouts,
        landing: tuple[Bytes, Bytes],
    ) -> None:
        self.member = member
        self.layout = layout
        self._landing = landing
        self._timeouts = timeouts
        self._call_metadata = functools.partial(call_metadata, run_id, token)
        self._link = Link(comm.link_bytes_per_s())
        plain = self._call_metadata()
        self._shards = [
            _Shard(
                address.shard,
                Peer(f"server {address.shard}", address.data, plain, timeouts),
                Peer(f"server {address.shard}", address.control, plain, timeouts),
                [run for run in layout.shards[address.shard].frames(comm.frame_bytes) if run.stop <= layout.shards[address.shard].num_versioned],
                pb.Member.FromString(member.SerializeToString()),
            )
            for address in servers
        ]
        frames = [shard.frames for shard in self._shards]
        # guards everything below and the shards' fields; notified by the receiving threads
        self._changed = threading.Condition()
        self._exchange = Exchange(member.rank, frames, [s.num_versioned for s in layout.shards], comm.window_frames)
        self._relay = NormRelay(len(self._shards))
        self._error: PserverError | None = None
        self._broken: set[int] = set()
        self._traffic: list[ShardTraffic] = []
        self._last: dict[int, pb.FrameHeader] = {}
        self._landed_s: dict[int, float] = {}

    # -- join, init, pull ------------------------------------------------------------------------------------

    def join(self, digests: Sequence[int], plan: Plan, environment: pb.Environment) -> int:
        """Joins all shards and returns the smallest version; -1 if version 0 must be brought first.

        `digests`: xxh3-64 of every chunk of version 0 in layout order. Raises ModelMismatch, Fenced, Unreachable.
        """
        self._request = pb.JoinRequest(
            member=self.member,
            tensors=spec_messages(self.layout.specs),
            chunk_digests=digests,
            environment=environment,
            steps_per_epoch=plan.steps_per_epoch,
            total_steps=plan.total_steps,
            validate_every=plan.validate_every,
            own_loop=plan.own_loop,
        )
        versions = [self._join_shard(shard) for shard in self._shards]
        return min((version for version in versions if version != EMPTY), default=0)

    def _join_shard(self, shard: _Shard) -> int:
        shard.control.wait_ready()
        reply = shard.control.call("Shard", "Join", self._request, pb.JoinReply)
        expected = (shard.index, len(self._shards), len(self.layout.shards[shard.index]))
        if (reply.shard, reply.num_servers, reply.num_chunks) != expected:
            raise Unreachable(f"{shard.control} is shard {reply.shard} of {reply.num_servers}, expected {expected[0]} of {expected[1]}")
        shard.member.session = reply.session
        return int(reply.version)

    def init(self, values: Bytes) -> None:
        """Brings version 0 to all shards from a flat layout; repeating it changes nothing."""
        for shard in self._shards:
            runs = self.layout.shards[shard.index].frames(1 << 20)
            frames = (self._encode(pb.INIT, shard.index, run, values, 0, 0.0) for run in runs)
            shard.data.send_frames("Init", frames, pb.InitReply, self._call_metadata(shard.member), timeout_s=600.0)

    def pull(self, version: int, into: Bytes) -> int:
        """All tensors of one version, pinned, into a flat layout; returns the version. Raises VersionGone: join again."""
        pulled = version
        for shard in self._shards:
            for data in shard.data.receive_frames("Pull", pb.PullRequest(member=self.member, version=pulled)):
                self._link.receive(len(data))
                header, payload = frame.decode(data)
                mine = self.layout.shards[shard.index]
                run = frame.checked_run(header, payload, mine, with_payload=True)
                frame.land(payload, into, mine, run, flat=True)
                if run.stop <= mine.num_versioned:
                    pulled = int(header.step)
        return pulled

    def open(self) -> None:
        """Opens the training streams; returns when every shard is ready (rank 0 may still be bringing version 0)."""
        for shard in self._shards:
            self._open_stream(shard)
        while True:
            with self._changed:
                self._wait(lambda: bool(self._broken) or all(shard.ready for shard in self._shards))
                broken = sorted(self._broken)
            if not broken:
                return
            for index in broken:
                self._reopen(self._shards[index])

    # -- one step --------------------------------------------------------------------------------------------

    def exchange(self, step: int, weight: float, gradients: Bytes, present: Callable[[int], bool]) -> StepTiming:
        """Pushes the step's contribution and returns when all of version step + 1 has landed.

        `gradients` is a flat layout, `present(i)` whether tensor i has a contribution in it; it must not change
        until this returns. Frames without any contribution are pushed as absent. Raises what the servers raise.
        """
        timing = StepTiming()
        with self._changed:
            self._exchange.begin(step)
            self._relay.begin()
            self._traffic = [ShardTraffic(shard=shard.index) for shard in self._shards]
            self._last.clear()
            self._landed_s.clear()
            for shard in self._shards:
                for records in (shard.received_s, shard.sent_s, shard.on_the_way):
                    records.clear()
        started = time.monotonic()
        while True:
            waited = time.monotonic()
            with self._changed:
                self._check()
                broken = sorted(self._broken)
                send = None if broken else self._exchange.next_frame()
                if not (broken or send):
                    if self._exchange.is_done:
                        break
                    has_ready = self._exchange.has_ready
                    self._changed.wait(1.0)
                    if has_ready:
                        timing.send_s += time.monotonic() - waited
                    continue
            for index in broken:
                self._reopen(self._shards[index])
            if send:
                shard = self._shards[send[0]]
                self._send(shard, send[1], step, weight, gradients, present, timing)
        self._attribute(timing, started)
        return timing

    def _send(
        self, shard: _Shard, index: int, step: int, weight: float, gradients: Bytes, present: Callable[[int], bool], timing: StepTiming
    ) -> None:
        run = shard.frames[index]
        started = time.monotonic()
        parts = self._split_absent(shard.index, run, present)
        frames = []
        for kind, part in parts:
            with self._changed:
                shard.sequence += 1
                sequence = shard.sequence
                shard.sent[sequence] = index if part.stop == run.stop else -1  # the last part's receipt returns the credit
            frames.append(self._encode(kind, shard.index, part, gradients, step, weight, sequence))
        with self._changed:
            shard.sent_s[index] = time.monotonic()
        timing.encode_s += shard.sent_s[index] - started
        for data in frames:
            traffic = self._traffic[shard.index]
            traffic.push_wire_bytes += int(len(data) * WIRE_OVERHEAD)
            shard.outgoing.put(data)
        mine = self.layout.shards[shard.index]
        self._traffic[shard.index].push_bytes += sum(mine.payload_bytes(part) for kind, part in parts if kind == pb.PUSH)

    def _split_absent(self, shard: int, run: Run, present: Callable[[int], bool]) -> list[tuple[pb.Kind, Run]]:
        """A frame's run, cut where present and absent tensors meet."""
        mine = self.layout.shards[shard]
        flags = [present(int(tensor)) for tensor in mine.tensor[run.span]]
        cuts = [run.first, *(run.first + i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), run.stop]
        return [(pb.PUSH if flags[a - run.first] else pb.ABSENT, Run(a, b)) for a, b in pairwise(cuts)]

    def _encode(self, kind: pb.Kind, shard: int, run: Run, values: Bytes, step: int, weight: float, sequence: int = 0) -> bytes:
        layout = self.layout.shards[shard]
        header = pb.FrameHeader(
            kind=kind, member=self._shards[shard].member, step=step, first_chunk=run.first, num_chunks=len(run), weight=weight, sequence=sequence
        )
        if kind == pb.ABSENT:
            return frame.encode(header)
        header.dtype = layout.block_of(run).dtype
        header.digests.extend(frame.chunk_digests(values, layout, run, flat=True))
        return frame.encode(header, frame.payload_parts(values, layout, run, flat=True))

    def _attribute(self, timing: StepTiming, started: float) -> None:
        """Splits the wait for the answers by the clock of the shard that landed last: for other ranks, for its work, for bytes."""
        ended = time.monotonic()
        wait = max(0.0, ended - started - timing.encode_s - timing.send_s)
        for shard in self._shards:
            traffic, header = self._traffic[shard.index], self._last.get(shard.index)
            if header is None:
                continue
            arrived = max(shard.received_s.values(), default=header.complete_s)
            traffic.wait_s = max(0.0, header.complete_s - arrived)
            intervals = sorted(shard.on_the_way)
            traffic.push_s = covered([(start, end) for start, end, is_up in intervals if is_up])
            traffic.pull_s = covered([(start, end) for start, end, is_up in intervals if not is_up])
            traffic.busy_s = covered([(start, end) for start, end, _ in intervals])
        timing.shards = self._traffic
        if self._landed_s:
            last = max(self._landed_s, key=self._landed_s.__getitem__)
            header = self._last[last]
            timing.barrier_wait_s = min(wait, self._traffic[last].wait_s)
            timing.apply_s = min(wait - timing.barrier_wait_s, max(0.0, header.clock_s - header.complete_s))
            if timing.barrier_wait_s > 0 and header.last_rank != self.member.rank:
                timing.waits_for = header.last_rank
        timing.receive_s = wait - timing.barrier_wait_s - timing.apply_s

    # -- streams ---------------------------------------------------------------------------------------------

    def _open_stream(self, shard: _Shard) -> None:
        outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._changed:
            shard.outgoing, shard.ready, shard.sequence, shard.sent = outgoing, False, 0, {}
        stream = shard.data.open_stream("Steps", self._outgoing(outgoing), self._call_metadata(shard.member))
        shard.stream = stream
        threading.Thread(target=self._receive, args=(shard, stream), name=f"receive-{shard.index}", daemon=True).start()

    def _outgoing(self, frames: "queue.SimpleQueue[bytes]") -> Iterator[bytes]:
        while (data := frames.get()) is not _END:
            self._link.send(len(data))
            yield data

    def _reopen(self, shard: _Shard) -> None:
        """A stream broke: joins that shard again (same incarnation) and pushes again what has not landed."""
        log.warning("stream to server %d broke: joining again", shard.index)
        version = self._join_shard(shard)
        if version < self._exchange.step:
            raise VersionGone(f"server {shard.index} came back with version {version} instead of {self._exchange.step}: its memory is lost")
        with self._changed:
            self._broken.discard(shard.index)
            self._exchange.stream_ended(shard.index)
        self._open_stream(shard)
        with self._changed:
            known = self._relay.known()
            self._wait(lambda: shard.ready or shard.index in self._broken)
        for source, squares in known.items():
            self._relay_norms(shard, self._exchange.step, source, squares.tolist())

    def _receive(self, shard: _Shard, stream: object) -> None:
        """Takes the frames of one stream until it ends."""
        try:
            for data in stream:  # type: ignore[attr-defined]
                self._link.receive(len(data))
                header, payload = frame.decode(data)
                self._take(shard, header, payload, len(data))
            self._stream_ended(shard, stream, None)
        except grpc.RpcError as error:
            self._stream_ended(shard, stream, from_rpc_error(error, str(shard.data)))
        except PserverError as error:
            self._stream_ended(shard, stream, error)

    def _stream_ended(self, shard: _Shard, stream: object, error: PserverError | None) -> None:
        with self._changed:
            if shard.stream is not stream or self._error:
                return
            shard.outgoing.put(_END)
            if error is None or isinstance(error, Unreachable):
                self._broken.add(shard.index)
            else:
                self._error = error
            self._changed.notify_all()

    def _take(self, shard: _Shard, header: pb.FrameHeader, payload: Bytes, wire_bytes: int) -> None:
        if header.kind == pb.PARAMS:
            self._land(shard, header, payload, wire_bytes)
        elif header.kind == pb.RECEIPT:
            with self._changed:
                index = shard.sent.pop(header.sequence, -1)
                if index >= 0:
                    self._time_receipt(shard, index, header.clock_s)
                    self._exchange.receipt(shard.index, index)
                    self._changed.notify_all()
        elif header.kind == pb.NORMS:
            self._learn_norms(header)
        elif header.kind == pb.READY:
            with self._changed:
                shard.ready = True
                self._changed.notify_all()

    def _time_receipt(self, shard: _Shard, index: int, clock_s: float) -> None:
        now = time.monotonic()
        shard.received_s[index] = clock_s
        shard.offset_s = min(shard.offset_s, now - clock_s)
        if index in shard.sent_s:
            shard.on_the_way.append((shard.sent_s[index], max(shard.sent_s[index], clock_s + shard.offset_s), True))

    def _land(self, shard: _Shard, header: pb.FrameHeader, payload: Bytes, wire_bytes: int) -> None:
        layout = self.layout.shards[shard.index]
        run = frame.checked_run(header, payload, layout, with_payload=True)
        with self._changed:
            if not self._exchange.may_land(shard.index, int(header.step), run):
                return
        frame.land(payload, self._landing[header.step % 2], layout, run, flat=True)
        with self._changed:
            traffic = self._traffic[shard.index]
            traffic.pull_bytes += len(payload)
            traffic.pull_wire_bytes += int(wire_bytes * WIRE_OVERHEAD)
            self._last[shard.index] = header
            now = time.monotonic()
            self._landed_s[shard.index] = now
            shard.on_the_way.append((min(now, header.clock_s + shard.offset_s), now, False))
            self._exchange.landed(shard.index, run)
            self._changed.notify_all()

    def _learn_norms(self, header: pb.FrameHeader) -> None:
        with self._changed:
            if header.step != self._exchange.step:
                return
            targets = self._relay.learn(header.norms_shard, np.array(header.norms))
        for index in targets:
            self._relay_norms(self._shards[index], int(header.step), header.norms_shard, list(header.norms))

    def _relay_norms(self, shard: _Shard, step: int, source: int, squares: list[float]) -> None:
        header = pb.FrameHeader(kind=pb.NORMS, member=shard.member, step=step, norms_shard=source, norms=squares)
        shard.outgoing.put(frame.encode(header))

    # -- ends ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _wait(self, done: Callable[[], bool]) -> None:
        """Waits under the lock for `done` or an error."""
        self._changed.wait_for(lambda: bool(self._error) or done())
        self._check()

    def abort(self, reason: str) -> None:
        """Makes the call in progress, and every later one, raise Stopped."""
        with self._changed:
            self._error = self._error or Stopped(reason)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all streams and channels."""
        with self._changed:
            self._error = self._error or Stopped("closed")
        for shard in self._shards:
            shard.outgoing.put(_END)
            if shard.stream is not None:
                shard.stream.cancel()  # type: ignore[attr-defined]
            shard.data.close()
            shard.control.close()
