"""The gRPC edge of Control, hosted by the driver."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from protos import pserver_pb2 as pb
from ps.control import Control, Epoch, EpochSums, Failure, Machine, ServerAddress
from ps.control_checks import check_deposit, check_heartbeat, check_register, check_report, check_saved, printable
from ps.errors import MalformedFrame, Stopped, as_status
from ps.inspection import Inspection
from ps.transport.rpc import unary

Process = tuple[str, int]
"""Role ("server", "worker") and index: the shard, or of a worker rank * num_stages + stage."""


@dataclass(frozen=True)
class SavedPart:
    """What a process says of its part of a checkpoint."""

    version: int
    size_bytes: int = 0
    digests: Sequence[int] = ()
    """xxh3-64 of every chunk's values, in the part's order."""
    state_digests: Sequence[int] = ()
    """Of every chunk's optimizer state, likewise."""
    error: str = ""
    """Why there is no part; empty if there is."""


class Checkpoints(Protocol):
    """What the driver does with the parts of checkpoints. Thread-safe."""

    def saved(self, sender: Process, part: SavedPart) -> None:
        """A part is written, or will not be. Raises MalformedFrame."""

    def deposit(self, sender: Process, version: int, offset: int, data: bytes) -> None:
        """Bytes of a part. Raises MalformedFrame."""

    def withdraw(self, rank: int, offset: int) -> bytes:
        """Bytes of a rank's part of the checkpoint that the run goes on from; empty at its end."""


_STACKS_S = 3.0
"""Until the stacks of a process are given up: it brings them with its second next heartbeat."""
_ROLES = {pb.SERVER: "server", pb.WORKER: "worker"}


class ControlServicer:
    """Methods of `pserver.Control`. `on_epoch` is called once per epoch with its exact sums, before any rank is answered, and
    says whether the run ends there; without the lock; `on_rows` with the sender ("worker" or "server", index) and the ledger rows of
    every heartbeat; `on_step` with a worker's step."""

    def __init__(
        self,
        control: Control,
        generation: int,
        *,
        on_epoch: Callable[[Epoch], bool],
        on_rows: Callable[[tuple[str, int], list[str]], None],
        on_step: Callable[[int, int], None],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._control = control
        self._generation = generation
        self._on_epoch = on_epoch
        self._on_rows = on_rows
        self._on_step = on_step
        self._checkpoints = checkpoints
        self.changed = threading.Condition()
        """Guards the Control object and the fields below; notified at every change."""
        self._answers: dict[int, bool] = {}
        """By version: whether the run ends there."""
        self._stop = False
        self._inspection = Inspection(time.monotonic)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "pserver.Control",
            {
                "Register": unary(self.register, pb.RegisterRequest),
                "Heartbeat": unary(self.heartbeat, pb.HeartbeatRequest),
                "Report": unary(self.report, pb.ReportRequest),
                "Saved": unary(self.saved, pb.SavedRequest),
                "Deposit": unary(self.deposit, pb.DepositRequest),
                "Withdraw": unary(self.withdraw, pb.WithdrawRequest),
                "Locate": unary(self.locate, pb.LocateRequest),
                "Inspect": unary(self.inspect, pb.InspectRequest),
            },
        )

    def stop(self) -> None:
        """Every process is told to stop at its next heartbeat, and waiting reports end."""
        with self.changed:
            self._stop = True
            self.changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Returns after so long. Raises Stopped as soon as the run ends."""
        with self.changed:
            self.changed.wait_for(lambda: self._stop, seconds)
            self._check_running()

    def register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        address: ServerAddress | str = request.data_address
        if request.role == pb.SERVER:
            address = ServerAddress(request.index, request.data_address, request.control_address)
        with as_status(context), self.changed:
            check_register(request)
            try:
                sender = self._sender(request)
                incarnation = self._control.register(*sender, address, machine_of(request.environment))
            finally:
                self.changed.notify_all()
            self._inspection.registered(request, sender[1])
            if request.role == pb.WORKER:
                self._wait(context, lambda: self._control.has_all_servers and not self._control.restores)
            servers = [_message(server) for _, server in sorted(self._control.servers.items())]
        return pb.RegisterReply(incarnation=incarnation, generation=self._generation, servers=servers)

    def heartbeat(self, request: pb.HeartbeatRequest, context: grpc.ServicerContext) -> pb.HeartbeatReply:
        came_s = time.time()
        with as_status(context):
            role, index = sender = self._sender(request)
            check_heartbeat(request, self._control.num_members, self._control.num_servers)
            with self.changed:
                self._control.check_current(role, index, request.incarnation)
                self._control.beat(role, index, request.step)
                if request.exchanging:
                    self._control.exchanges(index, request.step)
                reply = pb.HeartbeatReply(stop=self._stop, wants_stacks=self._inspection.told(request, index))
                if request.stacks:
                    self.changed.notify_all()
            self._on_rows(sender, list(request.rows))
            if request.role == pb.WORKER:
                self._on_step(index, request.step)
            reply.came_s, reply.answered_s = came_s, time.time()
        return reply

    def report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportReply:
        with as_status(context):
            check_report(request)
            with self.changed:
                self._control.check_current("worker", self._worker(request.member), request.member.incarnation)
            if request.event == pb.FAILED:
                self._fail(request)
            elif request.event == pb.EPOCH:
                return pb.ReportReply(version=request.version, stop=self._epoch(request, context))
            elif request.event == pb.FINISHED:
                self._finish(request)
        return pb.ReportReply(version=request.version)

    def saved(self, request: pb.SavedRequest, context: grpc.ServicerContext) -> pb.SavedReply:
        with as_status(context):
            sender = self._sender(request)
            check_saved(request)
            part = SavedPart(request.version, request.size_bytes, request.digests, request.state_digests, printable(request.error))
            self._keeper(*sender, request.incarnation).saved(sender, part)
        return pb.SavedReply()

    def deposit(self, request: pb.DepositRequest, context: grpc.ServicerContext) -> pb.DepositReply:
        with as_status(context):
            sender = self._sender(request)
            check_deposit(request)
            self._keeper(*sender, request.incarnation).deposit(sender, request.version, request.offset, request.data)
        return pb.DepositReply()

    def withdraw(self, request: pb.WithdrawRequest, context: grpc.ServicerContext) -> pb.WithdrawReply:
        data = b""
        with as_status(context):
            worker = self._worker(request.member)
            data = self._keeper("worker", worker, request.member.incarnation).withdraw(worker, request.offset)
        return pb.WithdrawReply(data=data)

    def _sender(self, request: Any) -> Process:
        """Who sends a message with role, index and stage. Raises MalformedFrame."""
        role = _role(request.role)
        return role, self._worker(pb.Member(rank=request.index, stage=request.stage)) if role == "worker" else request.index

    def _worker(self, member: pb.Member) -> int:
        """Raises MalformedFrame."""
        if not 0 <= member.stage < self._control.num_stages:
            raise MalformedFrame(f"stage {member.stage} of a run of {self._control.num_stages} stages")
        return member.rank * self._control.num_stages + member.stage

    def _keeper(self, role: str, index: int, incarnation: int) -> Checkpoints:
        """Raises Fenced, MalformedFrame in a run without checkpoints."""
        with self.changed:
            self._control.check_current(role, index, incarnation)
        if self._checkpoints is None:
            raise MalformedFrame(f"{role} {index} speaks of checkpoints in a run without them")
        return self._checkpoints

    def locate(self, request: pb.LocateRequest, context: grpc.ServicerContext) -> pb.LocateReply:
        with as_status(context), self.changed:
            self._check_running()
            if request.HasField("member"):
                stage = self._control.locate_stage(self._worker(request.member))
                return pb.LocateReply(server=None if stage is None else pb.ServerAddress(data_address=stage))
            found = self._control.locate(request.shard)
        return pb.LocateReply(server=_message(found) if found else None)

    def inspect(self, request: pb.InspectRequest, context: grpc.ServicerContext) -> pb.InspectReply:
        """Waits a while for the stacks of all processes that beat."""
        with as_status(context), self.changed:
            self._inspection.ask()
            self.changed.wait_for(lambda: self._stop or self._inspection.has_all_stacks, _STACKS_S)
            alive = self._control.beats
            states = self._inspection.states(lambda state: (_ROLES[state.role], state.index) not in alive)
        return pb.InspectReply(processes=states)

    def _fail(self, request: pb.ReportRequest) -> None:
        with self.changed:
            self._control.fail(Failure(self._worker(request.member), request.error_type, printable(request.error), printable(request.traceback)))
            self.changed.notify_all()

    def _epoch(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> bool:
        sums = EpochSums(
            request.version,
            dict(zip(request.training_names, request.training_sums, strict=True)),
            dict(zip(request.validation_names, request.validation_sums, strict=True)),
        )
        with self.changed:
            epoch = self._control.report_epoch(self._worker(request.member), sums)
        if epoch:
            stop = self._on_epoch(epoch)
            with self.changed:
                self._answers[epoch.version] = stop
                self.changed.notify_all()
        with self.changed:
            self._wait(context, lambda: request.version in self._answers)
            return self._answers[request.version]

    def _finish(self, request: pb.ReportRequest) -> None:
        with self.changed:
            self._control.finish(self._worker(request.member), request.version)
            self.changed.notify_all()

    def _wait(self, context: grpc.ServicerContext, done: Callable[[], bool]) -> None:
        """Waits under the lock. Raises Stopped if the run ends, or the call does: its process has died, and a thread is not kept for it."""
        context.add_callback(self._wake)
        self.changed.wait_for(lambda: self._stop or not context.is_active() or done())
        self._check_running()
        if not context.is_active():
            raise Stopped("the caller has gone")

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _check_running(self) -> None:
        if self._stop:
            raise Stopped("the run ends")


def _message(server: ServerAddress) -> pb.ServerAddress:
    return pb.ServerAddress(shard=server.shard, data_address=server.data, control_address=server.control)


def address_of(message: pb.ServerAddress) -> ServerAddress:
    return ServerAddress(message.shard, message.data_address, message.control_address)


def _role(number: pb.Role) -> str:
    if number not in _ROLES:
        raise MalformedFrame(f"role {number} is neither server nor worker: is the sender's version of pserver the same?")
    return _ROLES[number]


def machine_of(environment: pb.Environment) -> Machine | None:
    """None if the process does not say. Builds of one torch version for different devices count as the same."""
    if not environment.pserver:
        return None
    python = ".".join(environment.python.split(".")[:2])
    return Machine(environment.host, {"pserver": environment.pserver, "torch": environment.torch.partition("+")[0], "python": python})
