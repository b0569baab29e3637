"""The driver: the real Control and Decider; it starts processes again and tells servers what was decided."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ps.control import Control, EpochSums, ServerAddress
from ps.decisions import Decision
from ps.errors import Fenced
from tests.explore.clock import Process
from tests.explore.group import Group
from tests.explore.member import Member
from tests.explore.server import Server

if TYPE_CHECKING:
    from tests.explore.world import World

FROZEN_S = 30.0
START_S = 3.0
"""Longest start of a process."""


class Driver(Process):
    """Lives as long as the run."""

    def __init__(self, world: "World") -> None:
        super().__init__("driver")
        self.world = world
        self.control = Control(world.job.num_workers, world.job.num_servers, world.job.num_stages)
        self.decider = world.job.new_decider()
        self.servers: list[Server | None] = [None] * world.job.num_servers
        self.groups: list[Group] = []
        """The stages of every rank that are the newest, if ranks are split."""
        self._told: dict[int, set[int]] = {}
        """Servers that know the decision, by version."""
        self._waiting: dict[int, list[Callable[[Any], object]]] = {}

    # -- processes -------------------------------------------------------------------------------------------

    def start_server(self, index: int, *, within_s: float = START_S) -> None:
        """It attaches to its memory, then registers; it may die in between."""

        def registered(server: Server) -> None:
            self.control.register("server", index, ServerAddress(index, server.name, server.name))
            self.servers[index] = server
            self._tell_all()

        def attached() -> None:
            server = Server(self.world, index)
            self.world.alive(server, lambda: self._lost("server", index, lambda: self.start_server(index)))
            self.world.clock.after(self.world.clock.delay(), server, lambda: registered(server))

        self.world.clock.after(self.world.rng.uniform(0, within_s), self, attached)

    def start_worker(self, rank: int, *, within_s: float = START_S) -> None:
        def registered() -> None:
            incarnation = self.control.register("worker", rank)
            member = Member(self.world, rank, incarnation)
            self.world.alive(member, lambda: self._lost("worker", rank, lambda: self.start_worker(rank)))
            self.world.clock.after(self.world.clock.delay(), member, member.go_on)

        self.world.clock.after(self.world.rng.uniform(0, within_s), self, registered)

    def start_group(self, rank: int, *, within_s: float = START_S) -> None:
        """All stages of a rank."""
        group = Group(self.world, rank)
        self.groups[rank : rank + 1] = [group]

        def registered(stage: int) -> None:
            if self.groups[rank] is not group:
                return  # it was killed before
            number = rank * self.world.job.num_stages + stage
            group.members[stage] = member = Member(self.world, rank, self.control.register("worker", number), stage, group)
            self.world.alive(member, lambda: self._lost_stage(member))
            self.world.clock.after(self.world.clock.delay(), member, member.go_on)

        for stage in range(self.world.job.num_stages):
            self.world.clock.after(self.world.rng.uniform(0, within_s), self, partial(registered, stage))

    def _lost_stage(self, member: Member) -> None:
        """The other stages are ended, before any is started again."""
        group = member.group
        assert group
        if self.control.has_finished(member.number) or self.groups[group.rank] is not group:
            return
        self.world.count("group again")
        for other in group.members.values():
            if other is not member:  # which may wake beside its successor
                self.world.end(other)
        for stage in range(self.world.job.num_stages):
            self.control.lose("worker", group.rank * self.world.job.num_stages + stage)
        self.start_group(group.rank)

    def _lost(self, role: str, index: int, start: Callable[[], object]) -> None:
        """A process has ended, or is taken for dead."""
        if role == "worker" and self.control.has_finished(index):
            return
        self.control.lose(role, index)
        if role == "server":
            self.servers[index] = None
        start()

    # -- calls -----------------------------------------------------------------------------------------------

    def report(self, member: Member, version: int, sums: Sequence[float], answer: Callable[[Any], object]) -> None:
        """Answers when every rank has reported, and every server knows what was decided."""
        incarnation = member.members[0].incarnation
        try:
            self.control.check_current("worker", member.number, incarnation)
        except Fenced as error:
            answer(error)
            return
        training = {"train_loss": sums[0]} if member.stage + 1 == self.world.job.num_stages else {}
        epoch = self.control.report_epoch(member.number, EpochSums(version, training, {}))
        self._waiting.setdefault(version, []).append(answer)
        if epoch:
            self._told[version] = set()
            self.decider.decide(version, epoch.training, validated=True)
        self._tell_all()

    def finish(self, member: Member) -> None:
        if self.control.incarnations["worker", member.number] == member.members[0].incarnation:
            self.control.finish(member.number, member.version)

    def _tell_all(self) -> None:
        for decision in self.decider.log:
            told = self._told[decision.version]
            for server in self.servers:
                if server and server.index not in told:
                    self._tell(decision, server)
            if len(told) == len(self.servers):
                for answer in self._waiting.pop(decision.version, ()):
                    answer(None)

    def _tell(self, decision: Decision, server: Server) -> None:
        def done(_: Any) -> None:
            self._told[decision.version].add(server.index)
            self._tell_all()

        def again() -> None:
            self.world.clock.after(0.1, self, lambda: self._tell(decision, server))

        if server.is_dead or server.index in self._told[decision.version]:
            return
        self.world.calls.call(self, server, lambda answer: server.decide(decision.version, decision.rate_factor, answer), done, again)
