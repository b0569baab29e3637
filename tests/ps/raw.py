"""A member that knows the protocol file and gRPC only: nothing of the client, of frames or of layouts."""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import grpc
import numpy as np
import xxhash

from protos import pserver_pb2 as pb
from tests.ps.cluster import TOKEN

Spec = tuple[str, int, str, "pb.Rule"]
"""Name, elements (at most one chunk's), dtype and rule of a vector."""


class Raw:
    """One member and its channels to one server, whose shard holds one chunk per tensor."""

    def __init__(self, data: str, control: str, run_id: str, rank: int = 0, *, secret: str = TOKEN, incarnation: int = 1) -> None:
        self.member = pb.Member(rank=rank, incarnation=incarnation, generation=1)
        proof = hmac.new(secret.encode(), f"member-{rank}.0".encode(), "sha256").hexdigest()
        self.metadata = (("pserver-token", f"member-{rank}.0:{proof}"), ("pserver-run", run_id))
        self._data, self._control = grpc.insecure_channel(data), grpc.insecure_channel(control)
        self._up: SimpleQueue[pb.Frame | None] = SimpleQueue()
        self._down: Iterator[pb.Frame] = iter(())
        self._backlog: list[pb.Frame] = []
        self._sequence = 0

    def _call(self, method: str, request: object, reply: type) -> object:
        stub = self._control.unary_unary(f"/pserver.Shard/{method}", type(request).SerializeToString, reply.FromString)
        return stub(request, metadata=self.metadata, timeout=10)

    def join(self, specs: list[Spec], values: list[np.ndarray]) -> pb.JoinReply:
        tensors = [pb.Tensor(name=name, shape=[size], dtype=dtype, rule=rule) for name, size, dtype, rule in specs]
        digests = [xxhash.xxh3_64_intdigest(value.tobytes()) for value in values]
        request = pb.JoinRequest(member=self.member, tensors=tensors, chunk_digests=digests, steps_per_epoch=5, total_steps=100)
        reply = self._call("Join", request, pb.JoinReply)
        assert isinstance(reply, pb.JoinReply)
        self.member.session = reply.session
        return reply

    @property
    def _as_member(self) -> tuple[tuple[str, str | bytes], ...]:
        return (*self.metadata, ("pserver-member-bin", self.member.SerializeToString()))

    def init(self, values: list[np.ndarray]) -> int:
        frames = [self.frame(pb.INIT, i, value, step=0) for i, value in enumerate(values)]
        stub = self._data.stream_unary("/pserver.Shard/Init", pb.Frame.SerializeToString, pb.InitReply.FromString)
        return int(stub(iter(frames), metadata=self._as_member, timeout=10).num_stored)

    def open(self) -> None:
        self._up = SimpleQueue()
        stub = self._data.stream_stream("/pserver.Shard/Steps", pb.Frame.SerializeToString, pb.Frame.FromString)
        self._down = stub(iter(self._up.get, None), metadata=self._as_member, timeout=20)

    def frame(self, kind: "pb.Kind", chunk: int, value: np.ndarray | None, *, step: int, weight: float = 1.0, **header: object) -> pb.Frame:
        """A frame of one chunk; `header` replaces fields."""
        self._sequence += 1
        fields: dict[str, object] = {
            "kind": kind,
            "member": self.member,
            "step": step,
            "first_chunk": chunk,
            "num_chunks": 1,
            "weight": weight,
            "sequence": self._sequence,
        }
        if value is not None:
            fields |= {"dtype": str(value.dtype), "digests": [xxhash.xxh3_64_intdigest(value.tobytes())]}
        return pb.Frame(header=pb.FrameHeader(**(fields | header)), payload=b"" if value is None else value.tobytes())  # type: ignore[arg-type]

    def push(self, step: int, chunk: int, value: np.ndarray | None, **header: object) -> None:
        self.send(self.frame(pb.PUSH if value is not None else pb.ABSENT, chunk, value, step=step, **header))  # type: ignore[arg-type]

    def send(self, frame: pb.Frame) -> None:
        self._up.put(frame)

    def receive(self, kind: "pb.Kind") -> pb.Frame:
        """The next frame of a kind; others are kept. Raises what the stream ended with."""
        for i, frame in enumerate(self._backlog):
            if frame.header.kind == kind:
                return self._backlog.pop(i)
        for message in self._down:
            self._backlog += [pb.Frame(header=receipt) for receipt in message.receipts]
            self._backlog.append(message)
            if any(frame.header.kind == kind for frame in self._backlog):
                return self.receive(kind)
        raise EOFError("the stream has ended without an error")

    def verdict(self) -> str:
        """The next receipt's verdict; it must be the one of the frame sent last."""
        header = self.receive(pb.RECEIPT).header
        assert header.sequence == self._sequence
        return pb.Verdict.Name(header.verdict)

    def ending(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends."""
        try:
            for _ in self._down:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def pull(self, version: int = -1, **request: int) -> list[pb.Frame]:
        stub = self._data.unary_stream("/pserver.Shard/Pull", pb.PullRequest.SerializeToString, pb.Frame.FromString)
        return list(stub(pb.PullRequest(version=version, **request), metadata=self.metadata, timeout=10))

    def close(self) -> None:
        self._up.put(None)
        self._data.close()
        self._control.close()


@contextmanager
def closing(*members: Raw) -> Iterator[None]:
    try:
        yield
    finally:
        for member in members:
            member.close()
