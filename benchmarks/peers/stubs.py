"""Many ranks of one server in one process: streams without a model behind them. Variant "stopped": rank 0 neither pushes nor reads
until all others have pushed what the server takes.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.workload import Step, Workload, take_part
from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import spec_messages
from ps.config import Timeouts
from ps.credentials import Credentials, Tls, token_of
from ps.layout import Layout, Rule, Run, TensorSpec
from ps.roles import Role
from ps.security import call_metadata
from ps.transport.rpc import Peer

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
]
WINDOW = 8
STILL_S = 1.0
"""Without a receipt for so long, a server takes no more."""


class Stub:
    """One rank; `frames` are the runs it pushes, each as one frame, and is answered for."""

    def __init__(self, member: pb.Member, data: str, credentials: Credentials, layout: Layout, frames: list[Run]) -> None:
        self._member = member
        self._layout = layout.shards[0]
        self._frames = frames
        self._values = np.ones(layout.flat_bytes // 4, np.float32).view(np.uint8)
        self._channel = _channel(data, credentials.tls)
        steps: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream("/pserver.Shard/Steps")
        self._call = steps(metadata=call_metadata(credentials, member))
        self._window = asyncio.Semaphore(WINDOW)
        self.receipts = 0

    async def _read(self) -> bytes:
        data = await self._call.read()
        assert isinstance(data, bytes), "the stream has ended"
        return data

    async def ready(self) -> None:
        header, _ = frame.decode(await self._read())
        assert header.kind == pb.READY

    async def push(self, step: int) -> None:
        """Sends everything, as the window allows."""
        for run in self._frames:
            await self._window.acquire()
            header = pb.FrameHeader(
                kind=pb.PUSH,
                member=self._member,
                step=step,
                first_chunk=run.first,
                num_chunks=len(run),
                weight=1.0,
                sequence=1,
                receipt_may_wait=len(self._frames) <= WINDOW,
            )
            await self._call.write(frame.encode_run(header, self._values, self._layout, run, flat=True))

    async def land(self) -> None:
        """Reads until everything is answered."""
        missing = sum(map(len, self._frames))
        while missing:
            data = await self._read()
            receipts, at = frame.receipts_of(data)
            header, _ = frame.decode(data, at) if at < len(data) else (pb.FrameHeader(), None)
            for receipt in [*receipts, header] if header.kind == pb.RECEIPT else receipts:
                assert receipt.verdict == pb.ACCEPTED, receipt
                self.receipts += 1
                self._window.release()
            if header.kind == pb.PARAMS:
                missing -= header.num_chunks

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


def _credentials(stub: dict[str, Any], rank: int) -> Credentials:
    if stub["tls"]:
        return Credentials(run_id=stub["run_id"], tls=Tls(**stub["tls"][rank]))
    return Credentials(run_id=stub["run_id"], token=token_of(stub["secret"], Role("member", rank)))


def _channel(data: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(data, options=OPTIONS)
    proof = grpc.ssl_channel_credentials(tls.authority.encode(), tls.key.encode(), tls.certificate.encode())
    return grpc.aio.secure_channel(data, proof, options=[*OPTIONS, ("grpc.ssl_target_name_override", Role("server", 0).host_name)])


class Stubs:
    """All ranks of a server that runs by itself."""

    def __init__(self, workload: Workload) -> None:
        self._loop = asyncio.new_event_loop()
        self._step = 0
        specs = [TensorSpec(name=f"w{i}", shape=(size,), dtype="float32", rule=Rule.OPTIMIZER) for i, size in enumerate(workload.sizes())]
        layout = Layout(specs, 1)
        values = np.zeros(layout.flat_bytes, np.uint8)
        request = pb.JoinRequest(
            tensors=spec_messages(specs),
            chunk_digests=frame.chunk_digests(values, layout.shards[0], Run(0, len(layout)), flat=True),
            steps_per_epoch=1000,
            total_steps=1_000_000,
        )
        frames = layout.shards[0].frames(1 << 20)
        self._stubs: list[Stub] = []
        for rank in range(workload.workers):
            member = pb.Member(rank=rank, incarnation=1, generation=1)
            credentials = _credentials(workload.stub, rank)
            control, data = (Peer(Role("server", 0), workload.stub[end], credentials, Timeouts()) for end in ("control", "data"))
            request.member.CopyFrom(member)
            member.session = control.call("Shard", "Join", request, pb.JoinReply).session
            if rank == 0:
                headers = [pb.FrameHeader(kind=pb.INIT, member=member, first_chunk=run.first, num_chunks=len(run)) for run in frames]
                initial = (frame.encode_run(h, values, layout.shards[0], run, flat=True) for h, run in zip(headers, frames, strict=True))
                data.send_frames("Init", initial, pb.InitReply, call_metadata(credentials, member), timeout_s=60.0)
            self._run(self._add(member, workload.stub["data"], credentials, layout, frames))
            control.close()
            data.close()

    def _run(self, what: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(what)

    async def _add(self, member: pb.Member, data: str, credentials: Credentials, layout: Layout, frames: list[Run]) -> None:
        stub = Stub(member, data, credentials, layout, frames)
        await stub.ready()
        self._stubs.append(stub)

    def step(self) -> None:
        """One step of all ranks."""
        self._run(self._together(self._stubs))
        self._step += 1

    async def _together(self, stubs: list[Stub]) -> None:
        await asyncio.gather(*(work for stub in stubs for work in (stub.push(self._step), stub.land())))

    def step_with_one_stopped(self) -> None:
        """The others push and wait; rank 0 follows when the server takes no more from them."""
        self._run(self._one_stopped())
        self._step += 1

    async def _one_stopped(self) -> None:
        others = asyncio.ensure_future(self._together(self._stubs[1:]))
        taken = -1
        while taken < (taken := sum(stub.receipts for stub in self._stubs)):
            await asyncio.sleep(STILL_S)
        await self._together(self._stubs[:1])
        await others

    def close(self) -> None:
        for stub in self._stubs:
            self._run(stub.close())
        self._loop.close()


def main() -> None:
    workload = Workload.here()
    stubs = Stubs(workload)

    def step_of(variant: str) -> Step:
        return stubs.step_with_one_stopped if variant == "stopped" else stubs.step

    take_part(workload, 0, step_of)
    stubs.close()


if __name__ == "__main__":
    main()
