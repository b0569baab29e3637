"""Every method of every service, called by every role: what comes back is an answer or an error of ours, and nobody notices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import xxhash
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from hypothesis import strategies as st

from deploy.books import means
from protos import pserver_pb2 as pb
from ps.config import CommConfig, OptimizerConfig
from ps.control import Control, Epoch, ServerAddress
from ps.control_client import ControlClient
from ps.control_service import ControlServicer
from ps.credentials import Credentials, token_of
from ps.errors import STATUS
from ps.ledger import ServerRow, WorkerRow, to_line
from ps.roles import ACCESS, DRIVER, READER, Role
from ps.security import RunGuard, call_metadata
from ps.stages.links import StageLinks
from ps.transport.rpc import MAX_MESSAGE_BYTES, Peer, bind, new_server
from tests.fuzz.inputs import message, payloads, varied
from tests.ps.cluster import TIMEOUTS, TOKEN, Cluster, cluster

SERVICES = [*pb.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values()]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
MEMBER = Role("member", 0)
ROLES = [DRIVER, READER, Role("server", 0), MEMBER]
WAIT_S = 0.3
"""Some methods answer late, or when others do: then the call is given up."""
REFUSED_S = 10.0
"""Who may not call is told so at once, on a busy machine too."""

_VALUES = [np.linspace(-1, 1, size, dtype=np.float32) for size in (300, 7)]
_DIGESTS = [xxhash.xxh3_64_intdigest(value.tobytes()) for value in _VALUES]
_TENSORS = [pb.Tensor(name=f"w{i}", shape=[len(v)], dtype="float32", rule=pb.RULE_OPTIMIZER) for i, v in enumerate(_VALUES)]
_ME = pb.Member(incarnation=1, generation=1)
_ENVIRONMENT = pb.Environment(host="h", pid=1, python="3.11.7", torch="2.13.0", pserver="0.1.0", num_threads=1, cpu_capability="AVX2")
_ROWS = [to_line(WorkerRow(rank=0, step=1, time_s=0.0, step_s=0.1)), to_line(ServerRow(shard=0, step=1, time_s=0.0))]


def _frame(kind: "pb.Kind", chunk: int, value: np.ndarray | None, **header: Any) -> pb.Frame:
    if value is not None:
        header |= {"dtype": "float32", "digests": [xxhash.xxh3_64_intdigest(value.tobytes())]}
    made = pb.FrameHeader(kind=kind, first_chunk=chunk, num_chunks=1, weight=1.0, sequence=1, **header)
    return pb.Frame(header=made, payload=b"" if value is None else value.tobytes())


JOIN = pb.JoinRequest(
    member=_ME, tensors=_TENSORS, chunk_digests=_DIGESTS, environment=_ENVIRONMENT, steps_per_epoch=5, total_steps=100, validate_every=3
)
RIGHT: Mapping[str, Sequence[Message]] = {
    "/pserver.Shard/Join": [JOIN],
    "/pserver.Shard/Init": [_frame(pb.INIT, i, value) for i, value in enumerate(_VALUES)],
    "/pserver.Shard/Steps": [
        _frame(pb.PROBE, 0, None),
        _frame(pb.ORDER, 0, None, places=range(len(_TENSORS))),
        _frame(pb.PUSH, 0, _VALUES[0]),
        _frame(pb.ABSENT, 1, None),
        _frame(pb.NORMS, 0, None, norms=[1.0, 2.0]),
    ],
    "/pserver.Shard/Pull": [pb.PullRequest(version=-1)],
    "/pserver.Shard/Restore": [pb.Frame(header=pb.FrameHeader(kind=pb.RESTORE), payload=pb.RestoreRequest(model=JOIN).SerializeToString())],
    "/pserver.Stages/Link": [
        pb.Frame(header=pb.FrameHeader(kind=pb.AGREE, step=3)),
        pb.Frame(
            header=pb.FrameHeader(
                kind=pb.ACTIVATIONS, passed=[pb.Passed(dtype="float32", shape=[7], strides=[1], needs_gradient=True)], digests=[_DIGESTS[1]]
            ),
            payload=_VALUES[1].tobytes(),
        ),
    ],
    "/pserver.Control/Saved": [pb.SavedRequest(role=pb.SERVER, incarnation=1, version=2, size_bytes=9, digests=[1, 2], state_digests=[3])],
    "/pserver.Control/Deposit": [pb.DepositRequest(role=pb.SERVER, incarnation=1, version=2, data=b"bytes")],
    "/pserver.Control/Withdraw": [pb.WithdrawRequest(member=_ME)],
    "/pserver.Control/Register": [pb.RegisterRequest(role=pb.WORKER, environment=_ENVIRONMENT)],
    "/pserver.Control/Heartbeat": [pb.HeartbeatRequest(role=pb.WORKER, incarnation=1, step=1, rows=_ROWS)],
    "/pserver.Control/Report": [
        pb.ReportRequest(
            member=_ME, event=pb.EPOCH, version=1, validation_names=["loss", "weight", "samples", "metric.a"], validation_sums=[1.0, 2.0, 2.0, 1.0]
        )
    ],
}
"""Messages to be changed, of methods whose empty one says little."""


@dataclass
class Target:
    """A server, a driver's service, a stage, and a channel to each of their ports."""

    servers: Cluster
    service: ControlServicer
    channels: list[grpc.Channel]
    home: dict[str, grpc.Channel] = field(default_factory=dict)
    """Of every method: the port that serves it."""

    def call(
        self, channel: grpc.Channel, method: str, role: Role | None, messages: Sequence[bytes], *, wait_s: float = WAIT_S
    ) -> grpc.RpcError | None:
        """How the call ended; None: well, or not in time."""
        metadata: Any = (("pserver-run", self.servers.settings.run_id),)
        if role:
            member = pb.Member.FromString(_ME.SerializeToString()) if role.kind == "member" else None
            if member:
                member.session = self.session
            metadata = call_metadata(Credentials(run_id=self.servers.settings.run_id, token=token_of(TOKEN, role)), member)
        try:
            for _ in channel.stream_stream(method)(iter(messages), metadata=metadata, timeout=wait_s):
                pass
        except grpc.RpcError as error:
            return None if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error
        return None

    session: int = 0

    def join(self) -> None:
        """The member's newest session, for its streams."""
        stub = self.home["/pserver.Shard/Join"].unary_unary("/pserver.Shard/Join", pb.JoinRequest.SerializeToString, pb.JoinReply.FromString)
        metadata = call_metadata(Credentials(run_id=self.servers.settings.run_id, token=token_of(TOKEN, MEMBER)))
        self.session = stub(JOIN, metadata=metadata, timeout=5).session

    def answers(self) -> None:
        """Raises if one of the ports does not, after all that."""
        for method in ("/grpc.health.v1.Health/Check", "/pserver.Shard/Pull", "/pserver.Control/Locate"):
            error = self.call(self.home[method], method, READER, [b""], wait_s=10.0)
            assert error is None or ours(error), f"{method} does not answer any more: {error}"


@contextmanager
def target() -> Iterator[Target]:
    control = Control(num_workers=1, num_servers=1)
    control.register("server", 0, ServerAddress(0, "h:1", "h:2"))
    control.register("worker", 0)
    service = ControlServicer(control, 1, on_epoch=_ends, on_rows=lambda sender, rows: None, on_step=lambda rank, step: None)
    with cluster(1, 1, optimizer=OptimizerConfig(max_grad_norm=1.0), run_id="fuzz") as servers:
        driver = new_server("driver", RunGuard(servers.settings.run_id, TOKEN), num_roles=4)
        driver.add_generic_rpc_handlers((service.handlers(),))
        addresses = [servers.addresses[0].data, servers.addresses[0].control, f"127.0.0.1:{bind(driver, '127.0.0.1', 0, None)}"]
        driver.start()
        stage = _stage(servers, addresses[2])
        addresses.append(stage.address)
        channels = [grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for address in addresses]
        made = Target(servers, service, channels)
        try:
            made.home = {method: _home(made, method) for method in METHODS}
            made.join()
            made.call(made.home["/pserver.Shard/Init"], "/pserver.Shard/Init", MEMBER, [m.SerializeToString() for m in RIGHT["/pserver.Shard/Init"]])
            yield made
        finally:
            for channel in channels:
                channel.close()
            stage.close()
            service.stop()
            driver.stop(0).wait()


def _stage(servers: Cluster, driver: str) -> StageLinks:
    """The one after the member's."""
    run_id, role = servers.settings.run_id, Role("member", 0, 1)
    credentials = Credentials(run_id=run_id, token=token_of(TOKEN, role))
    control = ControlClient(Peer(DRIVER, driver, credentials, TIMEOUTS), "worker", 0, 1)
    control.member.generation = 1
    of_member = token_of(TOKEN, MEMBER)
    options: dict[str, Any] = {"comm": CommConfig(), "timeouts": TIMEOUTS, "allow_plaintext": False}
    return StageLinks(control, 2, host="127.0.0.1", credentials=credentials, token_before=of_member, **options)


def _ends(epoch: Epoch) -> bool:
    means(epoch)
    return False


def _home(made: Target, method: str) -> grpc.Channel:
    """By asking: who does not serve a method says so, to a role that may call it."""
    role = next((role for role in ROLES if role.kind in ACCESS[method].kinds), None)
    if role is None or METHODS[method].name == "Stop":
        return made.channels[1]
    for channel in made.channels:
        error = made.call(channel, method, role, [b""])
        if error is None or error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            return channel
    raise AssertionError(f"nobody serves {method}")


def ours(error: grpc.RpcError) -> bool:
    """Whether the status is one of our tree's errors, and not the one that stands for a bug."""
    name = (error.details() or "").partition(": ")[0]
    codes = {cls.__name__: code for cls, code in STATUS.items()}
    return codes.get(name) is error.code() and error.code() is not grpc.StatusCode.INTERNAL


def calls(method: str) -> st.SearchStrategy[tuple[Role | None, list[bytes]]]:
    """A caller and what it sends: one message, or a few where they are streamed."""
    descriptor = METHODS[method]
    right = RIGHT.get(method, [GetMessageClass(descriptor.input_type)()])
    one = st.sampled_from(right).flatmap(varied) | message(descriptor.input_type)
    sent = one.map(lambda made: made.SerializeToString()) | st.sampled_from(right).flatmap(lambda made: payloads(made.SerializeToString()))
    most = 3 if descriptor.client_streaming else 1
    allowed = [role for role in ROLES if role.kind in ACCESS[method].kinds]
    return st.tuples(st.sampled_from([*allowed, *allowed, *ROLES, None]), st.lists(sent, min_size=min(most, 1), max_size=most))


def _of_this_life(data: bytes) -> bytes:
    """A Join of a later incarnation would be right, and fence the member out that the other calls are made by."""
    try:
        request = pb.JoinRequest.FromString(data)
    except DecodeError:
        return data
    if request.member.incarnation <= _ME.incarnation:
        return data
    request.member.incarnation = _ME.incarnation
    return request.SerializeToString()


def try_call(made: Target, method: str, role: Role | None, sent: list[bytes]) -> None:
    """Raises AssertionError for an end that is neither an answer nor an error of ours."""
    if method == "/pserver.Shard/Join":
        sent = list(map(_of_this_life, sent))
    if role == MEMBER and ACCESS[method].streams:
        made.join()
    is_allowed = role is not None and role.kind in ACCESS[method].kinds
    error = made.call(made.home[method], method, role, sent, wait_s=WAIT_S if is_allowed else REFUSED_S)
    is_unknown = method.startswith("/grpc.health") and error is not None and error.code() is grpc.StatusCode.NOT_FOUND  # as its specification has it
    is_too_long = (
        max(map(len, sent), default=0) > MAX_MESSAGE_BYTES and error is not None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    )  # in gRPC's words
    assert error is None or is_unknown or is_too_long or ours(error), f"{method} by {role}: {error.code().name}: {error.details()}"
    if not is_allowed and not is_too_long:
        refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        assert error is not None and error.code() in refusals, f"{role} may call {method}"
