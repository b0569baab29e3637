"""A stage's connections to its neighbours over gRPC: it calls the one after it and serves the one before."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from protos import pserver_pb2 as pb
from ps.config import CommConfig, Timeouts
from ps.control_client import ControlClient
from ps.credentials import Credentials
from ps.errors import Fenced, NeighbourLost, PserverError, Unreachable, as_status
from ps.roles import Role
from ps.security import RunGuard, call_metadata, check_plaintext, member_of
from ps.stages.messages import Message
from ps.stages.neighbour import Neighbour
from ps.transport.delay import delayed
from ps.transport.rpc import Peer, bind_within, new_server
from ps.transport.shaping import Link

_END = b""
_ASK_AGAIN_S = 0.1
_Queue = queue.SimpleQueue[bytes]


class StageLinks:
    """Of one incarnation of a stage. `connect` comes before anything is put or taken; `close` ends both connections."""

    def __init__(
        self,
        control: ControlClient,
        num_stages: int,
        *,
        host: str,
        credentials: Credentials,
        token_before: str | None,
        comm: CommConfig,
        timeouts: Timeouts,
        allow_plaintext: bool,
    ) -> None:
        """Listens on `host` if there is a stage before it, whose token is `token_before` (None: it has a certificate)."""
        self._control = control
        self._member = control.member
        self._credentials = credentials
        self._timeouts = timeouts
        rank, stage = self._member.rank, self._member.stage
        self._latency_s = comm.latency_s
        self.link = Link(comm.bucket_bytes_per_s(worker=rank * num_stages + stage))
        """The process's, which it shares with the streams to servers."""
        self._to_earlier: _Queue = queue.SimpleQueue()
        self._to_later: _Queue = queue.SimpleQueue()
        self.earlier = Neighbour(self._to_earlier.put) if stage else None
        """The stage before; None: this is the first."""
        self.later = Neighbour(self._to_later.put) if stage + 1 < num_stages else None
        """The stage after; None: this is the last."""
        self.address = ""
        """Where the stage before reaches us."""
        self._is_called = threading.Lock()
        self._server: grpc.Server | None = None
        self._peer: Peer | None = None
        self._stream: Any = None
        if stage:
            check_plaintext(host, allowed=allow_plaintext, tls=credentials.tls)
            callers = None if token_before is None else {Role("member", rank, stage - 1): token_before}
            self._server = new_server("stage", RunGuard(credentials.run_id, callers), num_roles=1, streams_on=host)
            self._server.add_generic_rpc_handlers((self._handlers(),))
            self.address = f"{host}:{bind_within(self._server, host, comm.ports, credentials.tls)}"
            self._server.start()

    def connect(self, idle: Callable[[], None]) -> None:
        """Calls the stage after us, once that can be found. `idle` is called while we wait for a neighbour, now and later; what it raises
        ends the wait."""
        for neighbour in (self.earlier, self.later):
            if neighbour:
                neighbour.idle = idle
        while self.later and self._stream is None:
            if not self._call_later(self.later):
                idle()
                time.sleep(_ASK_AGAIN_S)

    def _call_later(self, later: Neighbour) -> bool:
        """False if it is not there yet, or not any more."""
        stage = self._member.stage + 1
        address = self._control.locate_stage(stage)
        if address is None:
            return False
        peer = Peer(Role("member", self._member.rank, stage), address, self._credentials, self._timeouts)
        try:
            peer.wait_ready()
        except Unreachable:
            peer.close()
            return False
        self._peer = peer
        metadata = call_metadata(self._credentials, self._member)
        self._stream = peer.open_stream("Link", self._to_send(iter(self._to_later.get, _END)), metadata, service="Stages")
        threading.Thread(target=self._receive, args=(self._stream, later, stage), name="later", daemon=True).start()
        return True

    def _travelling(self, frames: Iterable[bytes]) -> Iterable[bytes]:
        """Frames that have a way to go as long as the settings say."""
        return delayed(frames, self._latency_s) if self._latency_s else frames

    def _to_send(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        for data in frames:
            self.link.send(len(data))
            yield data

    def _receive(self, frames: Iterable[bytes], neighbour: Neighbour, stage: int) -> None:
        """Until they end, or a wrong one comes."""
        error: PserverError = NeighbourLost(f"stage {stage} of the rank has gone")
        try:
            for data in self._travelling(frames):
                self.link.receive(len(data))
                neighbour.received(data)
        except PserverError as wrong:
            error = wrong
        except grpc.RpcError:
            pass
        neighbour.lost(error)

    def agree(self, version: int) -> int:
        """The smallest version that a stage of the rank has joined at. Collective. Raises NeighbourLost."""
        if self.earlier:
            version = min(version, self.earlier.take(pb.AGREE).step)
        if self.later:
            self.later.put(Message(pb.AGREE, version))
            version = self.later.take(pb.AGREE).step
        if self.earlier:
            self.earlier.put(Message(pb.AGREE, version))
        return version

    @property
    def sent_bytes(self) -> int:
        """Put to both neighbours so far, headers included."""
        return sum(neighbour.sent_bytes for neighbour in (self.earlier, self.later) if neighbour)

    def close(self) -> None:
        """Ends both connections, after what has been put."""
        self._to_later.put(_END)
        self._to_earlier.put(_END)
        if self._peer:
            self._stream.cancel()
            self._peer.close()
        if self._server:
            self._server.stop(1).wait()

    # -- the stage before ------------------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler("pserver.Stages", {"Link": grpc.stream_stream_rpc_method_handler(self._link)})

    def _link(self, requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        own, caller = self._member, member_of(context)
        with as_status(context):
            if (caller.rank, caller.stage + 1, caller.generation) != (own.rank, own.stage, own.generation):
                raise Fenced(f"rank {caller.rank} stage {caller.stage} calls rank {own.rank} stage {own.stage}, which is not the one after it")
            if not self._is_called.acquire(blocking=False):
                raise Fenced(f"rank {own.rank} stage {own.stage} is called already")
        assert self.earlier
        threading.Thread(target=self._receive, args=(requests, self.earlier, caller.stage), name="earlier", daemon=True).start()
        yield from self._to_send(put_while(context, self._to_earlier))


def put_while(context: grpc.ServicerContext, frames: _Queue) -> Iterator[bytes]:
    """What is put, until the end is put or the call ends. Nothing of a call that has ended already."""
    if context.add_callback(lambda: frames.put(_END)):
        yield from iter(frames.get, _END)
