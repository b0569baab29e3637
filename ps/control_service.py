"""The gRPC edge of Control, hosted by the driver, and a process' end of it."""

import math
import threading
from collections.abc import Callable
from typing import Literal

import grpc

from protos import pserver_pb2 as pb
from ps.control import Control, Epoch, EpochSums, Failure, Machine, ServerAddress
from ps.errors import Fenced, MalformedFrame, PserverError, Stopped, Unreachable, as_status
from ps.ledger import RowBuffer
from ps.transport.rpc import Peer, unary

_ROLES = {pb.SERVER: "server", pb.WORKER: "worker"}


class ControlServicer:
    """Methods of `pserver.Control`. `on_epoch` is called once per epoch with its exact sums, before any rank is answered, and
    says whether the run ends there; without the lock; `on_rows` with the ledger rows of every heartbeat; `on_step` with a worker's step."""

    def __init__(
        self,
        control: Control,
        generation: int,
        *,
        on_epoch: Callable[[Epoch], bool],
        on_rows: Callable[[list[str]], None],
        on_step: Callable[[int, int], None],
    ) -> None:
        self._control = control
        self._generation = generation
        self._on_epoch = on_epoch
        self._on_rows = on_rows
        self._on_step = on_step
        self.changed = threading.Condition()
        """Guards the Control object and the fields below; notified at every change."""
        self._answers: dict[int, bool] = {}
        """By version: whether the run ends there."""
        self._stop = False

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "pserver.Control",
            {
                "Register": unary(self.register, pb.RegisterRequest),
                "Heartbeat": unary(self.heartbeat, pb.HeartbeatRequest),
                "Report": unary(self.report, pb.ReportRequest),
                "Locate": unary(self.locate, pb.LocateRequest),
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
        address = None
        if request.role == pb.SERVER:
            address = ServerAddress(request.index, request.data_address, request.control_address)
        with as_status(context), self.changed:
            try:
                incarnation = self._control.register(_role(request.role), request.index, address, machine_of(request.environment))
            finally:
                self.changed.notify_all()
            if request.role == pb.WORKER:
                self.changed.wait_for(lambda: self._stop or self._control.has_all_servers)
                self._check_running()
            servers = [_message(server) for _, server in sorted(self._control.servers.items())]
        return pb.RegisterReply(incarnation=incarnation, generation=self._generation, servers=servers)

    def heartbeat(self, request: pb.HeartbeatRequest, context: grpc.ServicerContext) -> pb.HeartbeatReply:
        with as_status(context), self.changed:
            role = _role(request.role)
            self._control.check_current(role, request.index, request.incarnation)
            self._control.beat(role, request.index, request.step)
            if request.exchanging:
                self._control.exchanges(request.index, request.step)
            stop = self._stop
        self._on_rows(list(request.rows))
        if request.role == pb.WORKER:
            self._on_step(request.index, request.step)
        return pb.HeartbeatReply(stop=stop)

    def report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportReply:
        with as_status(context):
            with self.changed:
                self._control.check_current("worker", request.member.rank, request.member.incarnation)
            if request.event == pb.FAILED:
                self._fail(request)
            elif request.event == pb.EPOCH:
                return pb.ReportReply(version=request.version, stop=self._epoch(request))
            elif request.event == pb.FINISHED:
                self._finish(request)
        return pb.ReportReply(version=request.version)

    def locate(self, request: pb.LocateRequest, context: grpc.ServicerContext) -> pb.LocateReply:
        with as_status(context), self.changed:
            self._check_running()
            found = self._control.locate(request.shard)
        return pb.LocateReply(server=_message(found) if found else None)

    def _fail(self, request: pb.ReportRequest) -> None:
        with self.changed:
            self._control.fail(Failure(request.member.rank, request.error_type, request.error, request.traceback))
            self.changed.notify_all()

    def _epoch(self, request: pb.ReportRequest) -> bool:
        sums = EpochSums(
            request.version,
            dict(zip(request.training_names, request.training_sums, strict=True)),
            dict(zip(request.validation_names, request.validation_sums, strict=True)),
        )
        with self.changed:
            epoch = self._control.report_epoch(request.member.rank, sums)
        if epoch:
            stop = self._on_epoch(epoch)
            with self.changed:
                self._answers[epoch.version] = stop
                self.changed.notify_all()
        with self.changed:
            self.changed.wait_for(lambda: self._stop or request.version in self._answers)
            self._check_running()
            return self._answers[request.version]

    def _finish(self, request: pb.ReportRequest) -> None:
        with self.changed:
            self._control.finish(request.member.rank, request.version)
            self.changed.notify_all()

    def _check_running(self) -> None:
        if self._stop:
            raise Stopped("the run ends")


def _message(server: ServerAddress) -> pb.ServerAddress:
    return pb.ServerAddress(shard=server.shard, data_address=server.data, control_address=server.control)


def _address(message: pb.ServerAddress) -> ServerAddress:
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


class ControlClient:
    """A process' calls to the driver. Thread-safe after `register`."""

    def __init__(self, peer: Peer, role: Literal["server", "worker"], index: int) -> None:
        self._peer = peer
        self._role = pb.SERVER if role == "server" else pb.WORKER
        self._index = index
        self.member = pb.Member(rank=index)
        """Who this process is; incarnation and generation are issued by `register`."""

    def register(
        self, environment: pb.Environment, data_address: str = "", control_address: str = "", *, timeout_s: float | None = None
    ) -> list[ServerAddress]:
        """Announces this process; returns the servers by shard: to a worker, as soon as all have registered."""
        request = pb.RegisterRequest(
            role=self._role,
            index=self._index,
            environment=environment,
            data_address=data_address,
            control_address=control_address,
        )
        reply = self._peer.call("Control", "Register", request, pb.RegisterReply, timeout_s=timeout_s)
        self.member.incarnation, self.member.generation = reply.incarnation, reply.generation
        return [_address(server) for server in reply.servers]

    def heartbeat(self, step: int, rows: list[str], *, exchanging: bool = False) -> bool:
        """A sign of life; True if the process shall stop. `exchanging`: a worker is pushing and pulling for `step`."""
        request = pb.HeartbeatRequest(
            role=self._role,
            index=self._index,
            incarnation=self.member.incarnation,
            step=step,
            exchanging=exchanging,
            rows=rows,
        )
        return bool(self._peer.call("Control", "Heartbeat", request, pb.HeartbeatReply).stop)

    def locate(self, shard: int) -> ServerAddress | None:
        """Where the shard's server is now; None while it is being started again, or the driver does not answer."""
        try:
            reply = self._peer.call("Control", "Locate", pb.LocateRequest(shard=shard), pb.LocateReply)
        except Unreachable:
            return None
        return _address(reply.server) if reply.HasField("server") else None

    def report_epoch(self, sums: EpochSums) -> bool:
        """Returns when every rank has reported and the driver has decided; True if the run ends here."""
        reply = self._report(
            pb.ReportRequest(
                event=pb.EPOCH,
                version=sums.version,
                training_names=list(sums.training),
                training_sums=list(sums.training.values()),
                validation_names=list(sums.validation),
                validation_sums=list(sums.validation.values()),
            )
        )
        return reply.stop

    def report_finished(self, version: int) -> None:
        """The last version has landed."""
        self._report(pb.ReportRequest(event=pb.FINISHED, version=version))

    def report_failed(self, error_type: str, error: str, traceback: str) -> None:
        """The member cannot go on."""
        self._report(pb.ReportRequest(event=pb.FAILED, error_type=error_type, error=error, traceback=traceback))

    def _report(self, request: pb.ReportRequest) -> pb.ReportReply:
        """Without a deadline, since other ranks may be slow: keepalive ends the call if the driver dies."""
        request.member.CopyFrom(self.member)
        reply: pb.ReportReply = self._peer.call("Control", "Report", request, pb.ReportReply, timeout_s=math.inf)
        return reply

    def close(self) -> None:
        self._peer.close()


class Heart:
    """The thread that beats: sends rows and signs of life, and calls `on_stop` once when the driver says stop or has not
    answered for `orphan_after_s`, `on_fenced` (None: `on_stop`) when the process has a successor."""

    def __init__(
        self,
        client: ControlClient,
        rows: RowBuffer,
        progress: Callable[[], tuple[int, bool]],
        on_stop: Callable[[str], None],
        *,
        every_s: float,
        orphan_after_s: float,
        clock: Callable[[], float],
        on_fenced: Callable[[str], None] | None = None,
    ) -> None:
        self._client = client
        self._rows = rows
        self._progress = progress
        self._on_stop = on_stop
        self._on_fenced = on_fenced or on_stop
        self._every_s = every_s
        self._orphan_after_s = orphan_after_s
        self._clock = clock
        self._told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        answered = self._clock()
        unsent: list[str] = []
        while True:
            self._rows.urgent.wait(self._every_s)
            self._rows.urgent.clear()
            last = self._ended.is_set()
            unsent += self._rows.take()
            try:
                step, exchanging = self._progress()
                if self._client.heartbeat(step, unsent, exchanging=exchanging):
                    self._tell("the driver asks to stop")
                answered, unsent = self._clock(), []
            except Unreachable:
                if self._clock() - answered > self._orphan_after_s:
                    self._tell(f"the driver has not answered for {self._orphan_after_s:g} s")
            except Fenced as error:
                self._tell(str(error), self._on_fenced)
            except PserverError as error:
                self._tell(str(error))
            if last:
                return

    def _tell(self, reason: str, how: Callable[[str], None] | None = None) -> None:
        if not self._told and not self._ended.is_set():
            self._told = True
            (how or self._on_stop)(reason)

    def stop(self) -> None:
        """Sends what is left and ends the thread."""
        self._ended.set()
        self._rows.urgent.set()
        self._thread.join()
