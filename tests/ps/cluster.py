"""Real servers on free ports and members in threads, in one process."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch
from torch import nn

from protos import pserver_pb2 as pb
from ps.certificates import Authority
from ps.client import Client
from ps.codecs import is_lossy
from ps.config import CommConfig, OptimizerConfig, ScheduleConfig, ServerSettings, Timeouts
from ps.control import ServerAddress
from ps.credentials import Credentials, token_of
from ps.layout import Layout, Rule
from ps.plan import Plan
from ps.rank_state import RankState
from ps.reader import Reader
from ps.roles import DRIVER, Role
from ps.server import Server, build_server, environment
from ps.shared import member_segment
from ps.step_clock import StepTiming
from ps.weights import sha256_of, tensors_of
from workers.binding import BoundModel, specs_of

TOKEN = "t" * 64
TIMEOUTS = Timeouts(connect_s=5, control_s=5)


@dataclass
class Member:
    """One rank: its bound model and its client."""

    rank: int
    bound: BoundModel
    client: Client
    plan: Plan


def exchange(member: Member, step: int, weight: float, *, present: Callable[[int], bool] = lambda tensor: True) -> StepTiming:
    """Pushes what is in the member's gradients, all at once, and lands the next version."""
    member.client.begin(step, weight, member.bound.gradients)
    specs = member.bound.layout.specs
    for wanted in (True, False):
        tensors = [i for i, spec in enumerate(specs) if spec.rule is not Rule.FROZEN and present(i) is wanted]
        member.client.ready(tensors, present=wanted)
    return member.client.settle()


@dataclass
class Cluster:
    """`num_servers` real servers; members are made by `member`."""

    num_workers: int
    num_servers: int
    plan: Plan
    settings: ServerSettings
    authority: Authority | None = None
    servers: list[Server] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    def credentials(self, role: Role) -> Credentials:
        """What a process of that role shows."""
        tls = self.authority.issue(role) if self.authority else None
        return Credentials(run_id=self.settings.run_id, token=None if tls else token_of(TOKEN, role), tls=tls)

    @property
    def addresses(self) -> list[ServerAddress]:
        return [ServerAddress(i, s.data_address, s.control_address) for i, s in enumerate(self.servers)]

    def member(
        self,
        rank: int,
        model: nn.Module,
        *,
        stage: int = 0,
        stages: Mapping[str, int] | None = None,
        incarnation: int = 1,
        comm: CommConfig | None = None,
        copies: bool | None = None,
    ) -> Member:
        layout = Layout(specs_of(model, self.settings.optimizer.groups, stages), self.num_servers)
        member = pb.Member(rank=rank, stage=stage, incarnation=incarnation, generation=self.settings.generation)
        comm = comm or self.settings.comm
        segment = None
        if comm.may_share:
            segment = member_segment(self.settings.run_id, member, layout.flat_bytes, None if stages is None else layout.spans_of_stage(stage))
        bound = BoundModel(
            model, layout, copies=copies, gradients=segment.contributions if segment else None, stage=None if stages is None else stage
        )
        client = Client(
            member=member,
            credentials=self.credentials(Role("member", rank, stage)),
            layout=bound.layout,
            servers=self.addresses,
            comm=comm,
            timeouts=TIMEOUTS,
            landing=bound.landing,
            num_workers=self.num_workers,
            segment=segment,
            rank_state=self._rank_state(member, layout, comm),
        )
        self.clients.append(client)
        return Member(rank, bound, client, self.plan)

    def _rank_state(self, member: pb.Member, layout: Layout, comm: CommConfig) -> RankState | None:
        if not is_lossy(comm.push_format):
            return None
        skip_nonfinite = self.settings.optimizer.nonfinite == "skip"
        return RankState.open(self.settings.run_id, member, layout, comm, seed=3, skip_nonfinite=skip_nonfinite)

    def reader(self) -> Reader:
        return Reader(self.credentials(DRIVER), self.num_servers, lambda shard: self.addresses[shard], TIMEOUTS)

    def weights(self, version: int) -> dict[str, torch.Tensor]:
        reader = self.reader()
        try:
            return {name: t.clone() for name, t in tensors_of(reader.layout, reader.pull(version)).items()}
        finally:
            reader.close()

    def sha256(self, version: int) -> str:
        reader = self.reader()
        try:
            return sha256_of(reader.layout, reader.pull(version), buffers=False)
        finally:
            reader.close()


@contextmanager
def cluster(
    num_workers: int,
    num_servers: int,
    *,
    num_stages: int = 1,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
    comm: CommConfig | None = None,
    plan: Plan | None = None,
    exact: bool = True,
    run_id: str = "test-run",
    authority: Authority | None = None,
) -> Iterator[Cluster]:
    base = ServerSettings(
        run_id=f"{run_id}-{os.getpid()}-{threading.get_ident()}",
        secret=TOKEN,
        shard=0,
        num_servers=num_servers,
        num_workers=num_workers,
        num_stages=num_stages,
        optimizer=optimizer or OptimizerConfig(),
        schedule=schedule or ScheduleConfig(),
        comm=comm or CommConfig(),
        exact=exact,
    )
    made = Cluster(num_workers, num_servers, plan or Plan(steps_per_epoch=5, total_steps=1000), base, authority)
    try:
        for shard in range(num_servers):
            proof = {"secret": None, "tls": authority.issue(Role("server", shard))} if authority else {}
            made.servers.append(build_server(dataclasses.replace(base, shard=shard, **proof)))  # type: ignore[arg-type]
        yield made
    finally:
        for client in made.clients:
            client.close()
        for server in made.servers:
            server.stop(0.2)


def in_threads(calls: Sequence[Callable[[], object]], timeout_s: float = 50.0) -> None:
    """Runs the calls side by side; raises the first error of any at once, others may still wait for that one then."""
    ends: SimpleQueue[Exception | None] = SimpleQueue()

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
            ends.put(None)
        except Exception as error:
            ends.put(error)

    for call in calls:
        threading.Thread(target=guarded, args=(call,), daemon=True).start()
    deadline = time.monotonic() + timeout_s
    for _ in calls:
        try:
            error = ends.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise AssertionError("a member hangs") from None
        if error:
            raise error


def await_taken(client: Client, timeout_s: float = 20.0) -> None:
    """Returns when the servers have all that is ready, or the client has failed. A question behind it on each stream brings all receipts."""
    state, probed = client._state, dict[int, int]()

    def is_taken() -> bool:
        if state.error:
            return True
        if state.exchange.has_ready or state.broken or not client.sender.is_idle:
            return False
        for line in state.lines:
            if probed.get(line.index) != line.opened:
                probed[line.index] = line.opened
                line.ask()
        return state.exchange.in_flight == 0

    with state.changed:
        assert state.changed.wait_for(is_taken, timeout_s), f"rank {client.member.rank} gets no receipts"


def start(member: Member) -> int:
    """Joins, brings version 0 if that is missing, opens the streams and installs the version."""
    version = member.client.join(member.bound.initial_digests(), member.plan, environment(1))
    if version == -1 and member.rank == 0:
        member.client.init(member.bound.landing[0])
    member.client.open()
    version = max(version, 0)
    if version:
        member.client.pull(version, member.bound.landing[version % 2])
        member.bound.copy_across(version)
    member.bound.install(version)
    return version
