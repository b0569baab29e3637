"""The gRPC edge of a shard's data port: decode, call, encode, under one error translator, on the process's event loop.

What is small is done on the loop; what may take long, or wait for other ranks, in a thread.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Verdict
from ps.codecs import CASTS
from ps.comm import EXACT, CommConfig
from ps.errors import Diverged, EarlyPush, Fenced, MalformedFrame, PserverError, as_stream_status
from ps.failpoints import hit
from ps.frame import Bytes
from ps.host import ShardHost
from ps.layout import Run
from ps.pacing import USUAL_FRAME_BYTES
from ps.receipts import ANSWERED, HeldReceipts, Receipt
from ps.security import member_of
from ps.shard import Shard
from ps.stats import Spent
from ps.streams import Stream
from ps.transport.shaping import Link
from ps.transport.streams import Outbox

log = logging.getLogger(__name__)

INLINE_BYTES = 1 << 17
"""Up to so many bytes of a shard a contribution is digested, summed and applied on the loop: to wake a thread takes longer."""

UNREAD_BYTES = 64 << 20
"""Beyond one version of the shard, which a rank may be owed: with more answers unread, its stream is not read either."""

_VERDICTS: dict[type[PserverError], Verdict] = {
    EarlyPush: Verdict.EARLY,
    Fenced: Verdict.FENCED,
    Diverged: Verdict.DIVERGED,
    MalformedFrame: Verdict.MALFORMED,
}
_Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class DataPort:
    """Methods of `pserver.Shard` that move bulk bytes."""

    def __init__(self, host: ShardHost, link: Link, comm: CommConfig, num_members: int) -> None:
        self._host = host
        self._link = link
        self._comm = comm
        # every stream may wait in one thread for its rank's turn, and the rank whose turn it is must still find one
        self._threads = ThreadPoolExecutor(num_members + (os.cpu_count() or 1), thread_name_prefix="data")

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "pserver.Shard",
            {
                "Init": grpc.stream_unary_rpc_method_handler(self.init, response_serializer=lambda reply: reply.SerializeToString()),
                "Restore": grpc.stream_unary_rpc_method_handler(self.restore, response_serializer=lambda reply: reply.SerializeToString()),
                "Steps": grpc.stream_stream_rpc_method_handler(self.steps),
                "Pull": grpc.unary_stream_rpc_method_handler(self.pull, request_deserializer=pb.PullRequest.FromString),
            },
        )

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def init(self, requests: AsyncIterator[bytes], context: _Context) -> pb.InitReply:
        stored = 0
        async with as_stream_status(context):
            shard = self._host.shard()
            shard.check_member(member_of(context))
            async for data in requests:
                await self._link.receiving(len(data))
                stored += await self._in_thread(self._store_initial, shard, data)
        return pb.InitReply(num_stored=stored)

    async def restore(self, requests: AsyncIterator[bytes], context: _Context) -> pb.RestoreReply:
        async with as_stream_status(context):
            restoring, begun = None, False
            async for data in requests:
                await self._link.receiving(len(data))
                header, payload = frame.decode(data)
                if not begun and header.kind == pb.RESTORE:
                    restoring, begun = await self._in_thread(self._host.begin_restore, payload), True
                elif restoring:
                    await self._in_thread(restoring.take, header, payload)
                elif not begun:
                    raise MalformedFrame(f"frame of kind {header.kind} begins the Restore stream")
            if restoring:
                await self._in_thread(self._host.end_restore, restoring)
        return pb.RestoreReply()

    def _store_initial(self, shard: Shard, data: bytes) -> int:
        header, payload = frame.decode(data)
        if header.kind != pb.INIT:
            raise MalformedFrame(f"frame of kind {header.kind} on the Init stream")
        run = frame.checked_run(header, payload, shard.layout, with_payload=True)
        self._host.check_initial(run, list(header.digests))
        return len(run) * shard.init(run, payload)

    async def pull(self, request: pb.PullRequest, context: _Context) -> AsyncIterator[bytes]:
        async with as_stream_status(context):
            shard = self._host.shard()
            version = shard.answers.pull_version(request.version)
            wire = request.format or EXACT
            if wire not in CASTS:
                raise MalformedFrame(f"a pull in format {wire!r}, which is not one of {', '.join(CASTS)}")
            stop = request.first_chunk + request.num_chunks if request.num_chunks else len(shard.layout)
            for frame_run in shard.layout.frames(self._comm.frame_bytes or USUAL_FRAME_BYTES):
                run = Run(max(frame_run.first, request.first_chunk), min(frame_run.stop, stop))
                if run.first < run.stop:
                    data = await self._in_thread(shard.answers.encode_params, version, run, wire)
                    await self._link.sending(len(data))
                    yield data
                    hit("shard.pulled")

    # -- training streams ------------------------------------------------------------------------------------

    async def steps(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        async with as_stream_status(context):
            shard = self._host.shard()
            member = member_of(context)
            outbox: Outbox[bytes | Receipt | PserverError | None] = Outbox()
            held = HeldReceipts(partial(outbox.put, b""))
            stream = Stream(send=outbox.put, end=outbox.put, lands_shared=member.lands_shared)
            shard.open_stream(member, stream)
            unread_bytes = shard.layout.size_bytes + UNREAD_BYTES
            reader = asyncio.create_task(self._read(shard, member, requests, stream, outbox.put, partial(outbox.below, unread_bytes)))
            try:
                while (item := await outbox.get()) is not None:
                    if isinstance(item, PserverError):
                        raise item
                    if isinstance(item, Receipt):
                        held.hold(item)
                        continue
                    for data in held.before(item):
                        await self._link.sending(len(data))
                        await context.write(data)
            finally:
                reader.cancel()
                shard.close_stream(member, stream)

    async def _read(
        self,
        shard: Shard,
        member: pb.Member,
        requests: AsyncIterator[bytes],
        stream: Stream,
        hold: Callable[[Receipt], None],
        answers_are_read: Callable[[], Awaitable[None]],
    ) -> None:
        """Takes the stream's frames until it ends; an error ends it, after a receipt that names the verdict."""
        header = pb.FrameHeader()
        try:
            async for data in requests:
                await answers_are_read()
                await self._link.receiving(len(data))
                header, payload = frame.decode(data)
                await self._take(shard, member, header, payload, stream, hold)
            stream.end(None)
        except PserverError as error:
            log.warning("stream of rank %d ends: %s", member.rank, error)
            verdict = _VERDICTS.get(type(error))
            if verdict:
                stream.send(frame.encode(_receipt(header, verdict, str(error))))
            stream.end(error)
        except Exception as error:
            log.exception("stream of rank %d fails", member.rank)
            reason = " ".join(repr(error).split())
            shard.end(PserverError(f"server {shard.layout.index} failed on a frame of rank {member.rank}: {reason}; see its log"))

    async def _take(
        self, shard: Shard, member: pb.Member, header: pb.FrameHeader, payload: Bytes, stream: Stream, hold: Callable[[Receipt], None]
    ) -> None:
        if header.HasField("member") and header.member != member:
            raise Fenced(f"a frame of rank {header.member.rank} incarnation {header.member.incarnation} on the stream of rank {member.rank}")
        if header.kind == pb.PROBE:
            stream.send(frame.encode(_receipt(header, Verdict.ACCEPTED)))
        elif header.kind == pb.ORDER:
            shard.share_order(member, header)
        elif header.kind == pb.NORMS:
            await self._in_thread(shard.learn_norms, member, header)
        elif header.kind not in (pb.PUSH, pb.ABSENT):
            raise MalformedFrame(f"frame of kind {header.kind} on the Steps stream")
        else:
            is_brief = self._is_brief(shard, header)

            def receipt(verdict: Verdict) -> None:
                made, for_answer = _receipt(header, verdict), header.receipt_may_wait and verdict in ANSWERED
                if is_brief or for_answer:
                    hold(Receipt(made.SerializeToString(), for_answer))
                else:
                    stream.send(frame.encode(made))

            if not is_brief:
                await self._in_thread(self._push, shard, member, header, payload, receipt)
            elif rest := self._push(shard, member, header, payload, receipt, may_wait=False):
                await self._in_thread(rest)

    def _is_brief(self, shard: Shard, header: pb.FrameHeader) -> bool:
        if header.shared:
            return True  # its sums and updates are the pool's
        size = len(shard.layout)
        run = Run(min(header.first_chunk, size), min(header.first_chunk + header.num_chunks, size))
        return not shard.is_two_phase and shard.layout.payload_bytes(run) <= INLINE_BYTES

    def _push(
        self,
        shard: Shard,
        member: pb.Member,
        header: pb.FrameHeader,
        payload: Bytes,
        receipt: Callable[[Verdict], None],
        may_wait: bool = True,
    ) -> Callable[[], object] | None:
        """A checked contribution; with `may_wait` false, what is left to be done where waiting is allowed."""
        wire = self._comm.push_format
        may_share = wire == EXACT
        with Spent() as spent:
            run = frame.checked_run(header, payload, shard.layout, with_payload=header.kind == pb.PUSH, wire=wire, may_share=may_share)
        self._host.stats.decoded(spent)
        if run.stop > shard.layout.num_versioned:
            raise MalformedFrame(f"chunks {run.first}..{run.stop - 1} of shard {shard.layout.index} are frozen: nothing may be pushed to them")
        if (owner := int(shard.layout.stage[run.first])) != member.stage:
            raise MalformedFrame(f"chunks {run.first}..{run.stop - 1} of shard {shard.layout.index} are stage {owner}'s, not stage {member.stage}'s")
        if header.step < 0:
            raise MalformedFrame(f"step {header.step} of a run that starts at 0")
        if not 0.0 <= header.weight < float("inf"):
            raise MalformedFrame(f"weight {header.weight} is not a number from 0")
        return shard.push(member, header, run, payload, receipt, may_wait=may_wait)


def _receipt(header: pb.FrameHeader, verdict: Verdict, detail: str = "") -> pb.FrameHeader:
    name = pb.Verdict.Name(verdict)
    return pb.FrameHeader(kind=pb.RECEIPT, step=header.step, sequence=header.sequence, verdict=name, detail=detail, clock_s=time.monotonic())
