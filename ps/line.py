"""A worker's line to one shard: two channels, the session, and the training stream with its receiving thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.comm import EXACT, CommConfig
from ps.config import Timeouts
from ps.contribution import Contribution, Encoded, Encoder
from ps.control import ServerAddress
from ps.credentials import Credentials
from ps.errors import PserverError, Unreachable, from_rpc_error
from ps.frame import Bytes
from ps.layout import Run, ShardLayout
from ps.order import Order
from ps.rank_state import RankState
from ps.roles import Role
from ps.security import call_metadata
from ps.shared import StoreView, map_store
from ps.transport.delay import delayed
from ps.transport.rpc import Peer
from ps.transport.shaping import Link

_END = b""
_NO_PAYLOAD = np.empty(0, np.uint8)
PROBED, ASKED = -2, -3
"""In place of a frame's index: the receipt is for a probe of the link, or for one that only asks for receipts."""

OnFrame = Callable[["Line", pb.FrameHeader, Bytes], None]
"""(line, header, payload): called in the line's receiving thread."""
OnEnd = Callable[["Line", PserverError], None]
"""The stream that was open has ended: Unreachable if the connection broke, else what the server raised."""


class Joined(NamedTuple):
    """What a shard answers a member."""

    version: int
    skipped: bool
    """Whether the step before was not applied."""


class Line:
    """One shard as a worker sees it. The client locks; only the stream's queue is used by several threads."""

    def __init__(
        self,
        address: ServerAddress,
        layout: ShardLayout,
        link: Link,
        *,
        member: pb.Member,
        credentials: Credentials,
        timeouts: Timeouts,
        comm: CommConfig,
        rank_state: RankState | None = None,
    ) -> None:
        self.index = address.shard
        self.layout = layout
        self.member = pb.Member.FromString(member.SerializeToString())
        """Who we are here: with the session of the last Join."""
        self.ready = False
        """Whether the stream may be used."""
        self.opened = 0
        """How many streams there have been."""
        self.local = False
        """Whether the shard finds our segment: it is on our host."""
        self.pushes_shared = False
        """Whether the shard reads contributions in our segment."""
        self.store: StoreView | None = None
        """The shard's memory, if we read it."""
        self._credentials = credentials
        self._timeouts = timeouts
        self._connect(address)
        self._link = link
        self._latency_s = comm.latency_s
        self._encoder = Encoder(layout, comm.push_format, rank_state)
        self._push_format, self.pull_format = comm.push_format, comm.pull_format
        self._outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stream: Any = None
        self._sequence = 0
        self._frames: dict[int, int] = {}

    def _connect(self, address: ServerAddress) -> None:
        self.address = address
        """Where the shard is served."""
        role = Role("server", address.shard)
        self._data = Peer(role, address.data, self._credentials, self._timeouts)
        self._control = Peer(role, address.control, self._credentials, self._timeouts)

    def move(self, address: ServerAddress) -> None:
        """The shard is served there now; a stream to another place ends."""
        if address != self.address:
            self._data.close()
            self._control.close()
            self._connect(address)

    def join(self, request: pb.JoinRequest, num_servers: int, *, may_move: bool = False) -> Joined:
        """Joins the shard. Raises ModelMismatch, Fenced, Unreachable: at once if nobody listens and the
        server `may_move`."""
        if may_move:
            reply = self._control.call("Shard", "Join", request, pb.JoinReply)
        elif self.member.session:  # not `wait_ready`: gRPC's thread behind it fails if the channel is closed soon after
            reply = self._control.call("Shard", "Join", request, pb.JoinReply, connects=True)
        else:
            self._control.wait_ready()
            reply = self._control.call("Shard", "Join", request, pb.JoinReply)
        expected = (self.index, num_servers, len(self.layout))
        if (reply.shard, reply.num_servers, reply.num_chunks) != expected:
            raise Unreachable(f"{self._control} is shard {reply.shard} of {reply.num_servers}, expected {expected[0]} of {expected[1]}")
        self.member.session = reply.session
        self.local = reply.reads_shared
        self.pushes_shared = self.local and self._push_format == EXACT
        reads_store = reply.HasField("store") and self.pull_format == EXACT
        self.store = map_store(self._credentials.run_id, reply.store, self.layout) if reads_store else None
        self.member.lands_shared = self.store is not None
        return Joined(int(reply.version), reply.skipped)

    def init(self, values: Bytes) -> None:
        """Brings version 0 of the member's tensors from a flat layout."""
        contribution = Contribution(0, 0.0, values, np.ones(0, np.bool_))
        frames = (self.encode(pb.INIT, run, contribution).data for run in self.layout.frames(1 << 20, self.member.stage))
        self._data.send_frames("Init", frames, pb.InitReply, call_metadata(self._credentials, self.member), timeout_s=600.0)

    def pull(self, version: int, into: Bytes) -> int:
        """The shard's bytes of the member's tensors of `version` into a flat layout; returns the version. Raises VersionGone."""
        for span in self.layout.spans(self.member.stage):
            version = self._pull(version, span, into)
        return version

    def _pull(self, version: int, span: Run, into: Bytes) -> int:
        pulled = version
        wanted = "" if self.pull_format == EXACT else self.pull_format
        request = pb.PullRequest(member=self.member, version=version, first_chunk=span.first, num_chunks=len(span), format=wanted)
        for data in self._data.receive_frames("Pull", request):
            self._link.receive(len(data))
            header, payload = frame.decode(data)
            run = frame.checked_run(header, payload, self.layout, with_payload=True, wire=self.pull_format)
            frame.land(frame.exact_payload(header, payload, self.layout, run), into, self.layout, run, flat=True)
            if run.stop <= self.layout.num_versioned:
                pulled = int(header.step)
        return pulled

    def encode(self, kind: pb.Kind, run: Run, contribution: Contribution, sequence: int = 0, *, receipt_may_wait: bool = False) -> Encoded:
        """A frame of a run, as this line sends it."""
        return self._encoder.encode(self.member, kind, run, contribution, sequence, shared=self.pushes_shared, receipt_may_wait=receipt_may_wait)

    # -- the stream ------------------------------------------------------------------------------------------

    def open(self, on_frame: OnFrame, on_end: OnEnd) -> None:
        """Opens the training stream, after Join; a former one is dropped."""
        self.opened += 1
        self._outgoing = queue.SimpleQueue()
        self.ready, self._sequence, self._frames = False, 0, {}
        self._stream = self._data.open_stream("Steps", self._to_send(self._outgoing), call_metadata(self._credentials, self.member))
        arguments = (self._stream, self._outgoing, on_frame, on_end)
        threading.Thread(target=self._receive, args=arguments, name=f"receive-{self.index}", daemon=True).start()

    def next_sequence(self, frame_index: int) -> int:
        """A number for the next frame; its receipt gives `frame_index` back."""
        self._sequence += 1
        self._frames[self._sequence] = frame_index
        return self._sequence

    def frame_of(self, sequence: int) -> int | None:
        """The frame that a receipt is for, once; None if the stream does not know it."""
        return self._frames.pop(sequence, None)

    def forget_frames(self) -> None:
        """Receipts that are on their way are for frames of another plan."""
        self._frames = {}

    def probe(self, num_bytes: int) -> None:
        """Queues bytes without meaning, whose receipt gives PROBED back."""
        self._send_probe(PROBED, num_bytes)

    def ask(self) -> None:
        """Queues a message that brings all receipts of frames before it."""
        self._send_probe(ASKED, 0)

    def _send_probe(self, index: int, num_bytes: int) -> None:
        header = pb.FrameHeader(kind=pb.PROBE, member=self.member, sequence=self.next_sequence(index))
        self.send(frame.encode(header, [np.zeros(num_bytes, np.uint8)]))

    def send_order(self, order: Order) -> None:
        """Queues rank 0's order of pushes."""
        header = pb.FrameHeader(kind=pb.ORDER, member=self.member)
        order.write(header)
        self.send(frame.encode(header))

    def send(self, data: bytes) -> None:
        """Queues a frame."""
        self._outgoing.put(data)

    def _travelling(self, frames: Iterable[bytes]) -> Iterable[bytes]:
        """Frames that have a way to go as long as the settings say."""
        return frames if self.local or not self._latency_s else delayed(frames, self._latency_s)

    def _to_send(self, frames: "queue.SimpleQueue[bytes]") -> Iterator[bytes]:
        for data in self._travelling(iter(frames.get, _END)):
            self._link.send(len(data))
            yield data

    def _receive(self, stream: Any, outgoing: "queue.SimpleQueue[bytes]", on_frame: OnFrame, on_end: OnEnd) -> None:
        error: PserverError = Unreachable(f"{self._data} has ended the stream")
        try:
            for data in self._travelling(stream):
                self._link.receive(len(data))
                receipts, at = frame.receipts_of(data)
                for receipt in receipts:
                    on_frame(self, receipt, _NO_PAYLOAD)
                if at < len(data):
                    on_frame(self, *frame.decode(data, at))
        except grpc.RpcError as broken:
            error = from_rpc_error(broken, str(self._data))
        except PserverError as ours:
            error = ours
        outgoing.put(_END)
        if stream is self._stream:
            on_end(self, error)

    def close(self) -> None:
        """Ends the stream and the channels."""
        self._outgoing.put(_END)
        if self._stream is not None:
            self._stream.cancel()
        self._data.close()
        self._control.close()
