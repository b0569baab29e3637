"""The gRPC edge of a shard: decode, call, encode, under one error translator. No decisions."""

import logging
import queue
import threading
import time
from collections.abc import Iterator

import grpc

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Verdict
from ps.codecs import CASTS
from ps.config import CommConfig
from ps.errors import Diverged, EarlyPush, Fenced, MalformedFrame, PserverError, as_status
from ps.host import ShardHost
from ps.layout import Run
from ps.security import member_of
from ps.shard import Shard
from ps.streams import Stream
from ps.transport.rpc import unary
from ps.transport.shaping import Link

log = logging.getLogger(__name__)

_VERDICTS: dict[type[PserverError], Verdict] = {
    EarlyPush: Verdict.EARLY,
    Fenced: Verdict.FENCED,
    Diverged: Verdict.DIVERGED,
    MalformedFrame: Verdict.MALFORMED,
}
_Item = bytes | PserverError | None


class ShardServicer:
    """Methods of `pserver.Shard`."""

    def __init__(self, host: ShardHost, link: Link, comm: CommConfig) -> None:
        self._host = host
        self._link = link
        self._comm = comm

    def data_handlers(self) -> grpc.GenericRpcHandler:
        """Methods of the data port, which move bulk bytes."""
        return grpc.method_handlers_generic_handler(
            "pserver.Shard",
            {
                "Init": grpc.stream_unary_rpc_method_handler(self.init, response_serializer=lambda reply: reply.SerializeToString()),
                "Steps": grpc.stream_stream_rpc_method_handler(self.steps),
                "Pull": grpc.unary_stream_rpc_method_handler(self.pull, request_deserializer=pb.PullRequest.FromString),
            },
        )

    def control_handlers(self) -> grpc.GenericRpcHandler:
        """Methods of the control port, which stuck data streams must not keep anybody from."""
        methods = {
            "Join": unary(self.join, pb.JoinRequest),
            "Describe": unary(self.describe, pb.DescribeRequest),
            "Decide": unary(self.decide, pb.DecideRequest),
            "Stop": unary(self.stop, pb.StopRequest),
        }
        return grpc.method_handlers_generic_handler("pserver.Shard", methods)

    def join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        with as_status(context):
            return self._host.join(request)
        raise AssertionError("unreachable")

    def describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        with as_status(context):
            return self._host.describe()
        raise AssertionError("unreachable")

    def decide(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideReply:
        with as_status(context):
            self._host.shard().decide(request.version, request.rate_factor)
        return pb.DecideReply()

    def stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopReply:
        with as_status(context):
            self._host.request_stop(request.reason)
        return pb.StopReply()

    def init(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> pb.InitReply:
        stored = 0
        with as_status(context):
            shard = self._host.shard()
            shard.check_member(member_of(context))
            for data in requests:
                self._link.receive(len(data))
                header, payload = frame.decode(data)
                if header.kind != pb.INIT:
                    raise MalformedFrame(f"frame of kind {header.kind} on the Init stream")
                run = frame.checked_run(header, payload, shard.layout, with_payload=True)
                self._host.check_initial(run, list(header.digests))
                stored += len(run) * shard.init(run, payload)
        return pb.InitReply(num_stored=stored)

    def pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        with as_status(context):
            shard = self._host.shard()
            version = shard.pull_version(request.version)
            wire = request.format or frame.EXACT
            if wire not in CASTS:
                raise MalformedFrame(f"a pull in format {wire!r}, which is not one of {', '.join(CASTS)}")
            stop = request.first_chunk + request.num_chunks if request.num_chunks else len(shard.layout)
            for frame_run in shard.layout.frames(self._comm.frame_bytes):
                run = Run(max(frame_run.first, request.first_chunk), min(frame_run.stop, stop))
                if run.first < run.stop:
                    data = shard.encode_params(version, run, wire)
                    self._link.send(len(data))
                    yield data

    def steps(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with as_status(context):
            shard = self._host.shard()
            member = member_of(context)
            outbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
            stream = Stream(send=outbox.put, end=outbox.put, lands_shared=member.lands_shared)
            shard.open_stream(member, stream)
            context.add_callback(lambda: outbox.put(None))
            reader = threading.Thread(target=self._read, args=(shard, member, requests, stream), name=f"steps-{member.rank}", daemon=True)
            reader.start()
            try:
                while (item := outbox.get()) is not None:
                    if isinstance(item, PserverError):
                        raise item
                    self._link.send(len(item))
                    yield item
            finally:
                shard.close_stream(member, stream)

    def _read(self, shard: Shard, member: pb.Member, requests: Iterator[bytes], stream: Stream) -> None:
        """Takes the stream's frames until it ends; an error ends it, after a receipt that names the verdict."""
        header = pb.FrameHeader()
        try:
            for data in requests:
                self._link.receive(len(data))
                header, payload = frame.decode(data)
                self._take(shard, member, header, payload, stream)
            stream.end(None)
        except PserverError as error:
            log.warning("stream of rank %d ends: %s", member.rank, error)
            verdict = _VERDICTS.get(type(error))
            if verdict:
                stream.send(_receipt(header, verdict, str(error)))
            stream.end(error)
        except grpc.RpcError:  # the peer is gone; the iterator says so by an exception without details
            stream.end(None)
        except Exception as error:
            log.exception("stream of rank %d fails", member.rank)
            reason = " ".join(repr(error).split())
            shard.end(PserverError(f"server {shard.layout.index} failed on a frame of rank {member.rank}: {reason}; see its log"))

    def _take(self, shard: Shard, member: pb.Member, header: pb.FrameHeader, payload: frame.Bytes, stream: Stream) -> None:
        if header.HasField("member") and header.member != member:
            raise Fenced(f"a frame of rank {header.member.rank} incarnation {header.member.incarnation} on the stream of rank {member.rank}")
        if header.kind == pb.NORMS:
            shard.learn_norms(member, header)
        elif header.kind in (pb.PUSH, pb.ABSENT):
            wire = self._comm.push_format
            may_share = wire == frame.EXACT
            run = frame.checked_run(header, payload, shard.layout, with_payload=header.kind == pb.PUSH, wire=wire, may_share=may_share)
            if run.stop > shard.layout.num_versioned:
                raise MalformedFrame(f"chunks {run.first}..{run.stop - 1} of shard {shard.layout.index} are frozen: nothing may be pushed to them")
            if header.step < 0:
                raise MalformedFrame(f"step {header.step} of a run that starts at 0")
            if not 0.0 <= header.weight < float("inf"):
                raise MalformedFrame(f"weight {header.weight} is not a number from 0")
            shard.push(member, header, run, payload, lambda verdict: stream.send(_receipt(header, verdict)))
        else:
            raise MalformedFrame(f"frame of kind {header.kind} on the Steps stream")


def _receipt(header: pb.FrameHeader, verdict: Verdict, detail: str = "") -> bytes:
    reply = pb.FrameHeader(
        kind=pb.RECEIPT, step=header.step, sequence=header.sequence, verdict=pb.Verdict.Name(verdict), detail=detail, clock_s=time.monotonic()
    )
    return frame.encode(reply)
