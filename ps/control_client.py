"""A process' end of Control: its calls to the driver, and the thread that beats."""

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from protos import pserver_pb2 as pb
from ps.control import EpochSums, ServerAddress
from ps.control_checks import MAX_ERROR, MAX_TRACEBACK
from ps.control_service import address_of
from ps.errors import PserverError, Unreachable
from ps.ledger import RowBuffer
from ps.transport.rpc import Peer


class Progress(NamedTuple):
    """Where a process is, as its heartbeats tell."""

    step: int
    """Step of a worker, version of a server."""
    exchanging: bool = False
    """A worker is pushing and pulling for `step`: it will neither report nor end at that version."""
    doing: str = ""
    """For people."""
    waits_for: Sequence[int] = ()
    """Members that a server waits for, by number."""


def all_stacks() -> str:
    """The stacks of all threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [f"thread {names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame)) for ident, frame in sys._current_frames().items()]
    return "\n".join(stacks)[:MAX_TRACEBACK]


class ControlClient:
    """A process' calls to the driver. Thread-safe after `register`."""

    def __init__(self, peer: Peer, role: Literal["server", "worker"], index: int, stage: int = 0) -> None:
        self._peer = peer
        self._role = pb.SERVER if role == "server" else pb.WORKER
        self._index = index
        self._stage = stage
        self.member = pb.Member(rank=index, stage=stage)
        """Who this process is; incarnation and generation are issued by `register`."""

    def register(
        self, environment: pb.Environment, data_address: str = "", control_address: str = "", *, timeout_s: float | None = None
    ) -> list[ServerAddress]:
        """Announces this process; returns the servers by shard: to a worker, as soon as all have registered."""
        request = pb.RegisterRequest(
            role=self._role,
            index=self._index,
            stage=self._stage,
            environment=environment,
            data_address=data_address,
            control_address=control_address,
        )
        reply = self._peer.call("Control", "Register", request, pb.RegisterReply, timeout_s=timeout_s)
        self.member.incarnation, self.member.generation = reply.incarnation, reply.generation
        return [address_of(server) for server in reply.servers]

    def heartbeat(self, progress: Progress, rows: list[str], stacks: str = "") -> pb.HeartbeatReply:
        """A sign of life."""
        request = pb.HeartbeatRequest(
            role=self._role,
            index=self._index,
            stage=self._stage,
            incarnation=self.member.incarnation,
            step=progress.step,
            exchanging=progress.exchanging,
            doing=progress.doing,
            waits_for=progress.waits_for,
            rows=rows,
            stacks=stacks,
        )
        reply: pb.HeartbeatReply = self._peer.call("Control", "Heartbeat", request, pb.HeartbeatReply)
        return reply

    def locate(self, shard: int) -> ServerAddress | None:
        """Where the shard's server is now; None while it is being started again, or the driver does not answer."""
        try:
            reply = self._peer.call("Control", "Locate", pb.LocateRequest(shard=shard), pb.LocateReply)
        except Unreachable:
            return None
        return address_of(reply.server) if reply.HasField("server") else None

    def locate_stage(self, stage: int) -> str | None:
        """Where another stage of this rank serves the one before it; None while it starts, or the driver does not answer."""
        request = pb.LocateRequest(member=pb.Member(rank=self._index, stage=stage))
        try:
            reply = self._peer.call("Control", "Locate", request, pb.LocateReply)
        except Unreachable:
            return None
        return reply.server.data_address if reply.HasField("server") else None

    def saved(self, report: pb.SavedRequest) -> None:
        """A part of a checkpoint is written, or will not be; the sender is filled in."""
        report.role, report.index, report.stage, report.incarnation = self._role, self._index, self._stage, self.member.incarnation
        self._peer.call("Control", "Saved", report, pb.SavedReply)

    def deposit(self, version: int, offset: int, data: bytes) -> None:
        """Bytes of a part, for the driver to write."""
        request = pb.DepositRequest(
            role=self._role,
            index=self._index,
            stage=self._stage,
            incarnation=self.member.incarnation,
            version=version,
            offset=offset,
            data=data,
        )
        self._peer.call("Control", "Deposit", request, pb.DepositReply)

    def withdraw(self) -> bytes:
        """The member's part of the checkpoint that the run goes on from."""
        found = bytearray()
        while data := self._peer.call("Control", "Withdraw", pb.WithdrawRequest(member=self.member, offset=len(found)), pb.WithdrawReply).data:
            found += data
        return bytes(found)

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
        self._report(pb.ReportRequest(event=pb.FAILED, error_type=error_type, error=error[:MAX_ERROR], traceback=traceback[-MAX_TRACEBACK:]))

    def _report(self, request: pb.ReportRequest) -> pb.ReportReply:
        """Without a deadline, since other ranks may be slow: keepalive ends the call if the driver dies."""
        request.member.CopyFrom(self.member)
        reply: pb.ReportReply = self._peer.call("Control", "Report", request, pb.ReportReply, timeout_s=math.inf)
        return reply

    def close(self) -> None:
        self._peer.close()


class Heart:
    """The thread that beats: sends rows and signs of life, and calls `on_stop` once when the driver says stop or has not
    answered for `orphan_after_s`, `on_fenced` (None: `on_stop`) when it refuses the process, which has a successor or will have one."""

    def __init__(
        self,
        client: ControlClient,
        rows: RowBuffer,
        progress: Callable[[], Progress],
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
        stacks = ""
        while True:
            self._rows.urgent.wait(self._every_s)
            self._rows.urgent.clear()
            last = self._ended.is_set()
            unsent += self._rows.take()
            try:
                left_s = time.time()
                reply = self._client.heartbeat(self._progress(), unsent, stacks)
                self._rows.clocks.add(left_s, reply.came_s, reply.answered_s, time.time())
                answered, unsent, stacks = self._clock(), [], ""
                if reply.stop:
                    self._tell("the driver asks to stop")
                if reply.wants_stacks:
                    stacks = all_stacks()
                    self._rows.urgent.set()
            except Unreachable:
                if self._clock() - answered > self._orphan_after_s:
                    self._tell(f"the driver has not answered for {self._orphan_after_s:g} s")
            except PserverError as error:
                self._tell(str(error), self._on_fenced)
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
