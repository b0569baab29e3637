"""Ranks whose members are the stages of a split model: they begin at one version, and none goes on before all have landed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.layout import Layout, Run
from tests.ps.models.core import Edge, Violation
from tests.ps.models.member import END, Habits, MemberModel
from tests.ps.models.world import Setup, State, World

AGREE, PIPE = "agree", "pipe"
"""Has joined; has landed a version. Waits for the rank's other stages."""


class StageModel(MemberModel):
    """One stage of one rank."""

    def __init__(self, habits: Habits, layout: Layout, rank: int, steps: int, stage: int) -> None:
        self.stage = stage
        super().__init__(habits, layout, rank, steps, stage)

    def _cut(self, layout: Layout, habits: Habits) -> list[list[Run]]:
        return [shard.frames(1, self.stage) for shard in layout.shards]

    def _own(self, layout: Layout) -> list[npt.NDArray[np.bool_]]:
        return [shard.stage == self.stage for shard in layout.shards]

    def _begin_join(self) -> None:
        super()._begin_join()
        self.has_agreed = False
        self.met = -1
        """Newest version that all stages of the rank have landed."""

    def save(self) -> Any:
        return super().save(), (self.has_agreed, self.met)

    def load(self, saved: Any) -> None:
        inner, (self.has_agreed, self.met) = saved
        super().load(inner)

    def _go_on_from(self) -> None:
        if self.version >= 0 and not self.has_agreed:
            self.mode = AGREE
        else:
            super()._go_on_from()

    def agreed_on(self, version: int) -> None:
        """All stages of the rank begin there, which all can read."""
        self.has_agreed, self.version = True, version
        self._go_on_from()

    def pulled(self, shard: int, chunk: int, label: int | None) -> None:
        if label is None:
            raise Violation(f"rank {self.rank} cannot read version {self.version}, at which its stages begin")
        super().pulled(shard, chunk, label)

    def _begin(self) -> None:
        self._once_all_have_landed(super()._begin)

    def _has_landed(self) -> None:
        self._once_all_have_landed(super()._has_landed)

    def _once_all_have_landed(self, go_on: Callable[[], None]) -> None:
        if self.met < self.version:
            self.mode = PIPE
        else:
            go_on()

    def all_landed(self, version: int) -> None:
        """All stages of the rank have."""
        self.met = version
        self._has_landed()

    def rejoined(self, shard: int, version: int) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        if self.mode not in (AGREE, PIPE):
            return super().rejoined(shard, version)
        self.exchange.stream_ended(shard)
        return tuple((shard, ("norms", self.exchange.step, source, squares)) for source, squares in sorted(self.relay.known().items()))


class Groups(World):
    """Members are numbered rank * num_stages + stage. What a rank's stages tell each other is one event, after which each may be as slow as any."""

    def __init__(self, setup: Setup) -> None:
        assert not (setup.zombies or setup.late)
        super().__init__(replace(setup, member=StageModel, rejoins_in=(*setup.rejoins_in, AGREE, PIPE)))

    def _who(self, r: int) -> str:
        return "rank {} stage {}".format(*divmod(r, self.setup.num_stages))

    def _stages_of(self, rank: int) -> range:
        return range(rank * self.setup.num_stages, (rank + 1) * self.setup.num_stages)

    def edges(self, state: State) -> Iterator[Edge]:
        yield from super().edges(state)
        for rank in range(self.setup.num_workers):
            its = {m: self._member_facts(m, state[1][m][-1][1]) for m in self._stages_of(rank)}
            modes, versions = {facts[0] for facts in its.values()}, {m: facts[1] for m, facts in its.items()}
            if modes == {AGREE}:
                yield f"rank {rank}'s stages agree", self._tell(state, "agreed_on", self._agreed(versions)), True
            elif modes == {PIPE} and len(set(versions.values())) == 1:
                yield f"rank {rank}'s stages go on at {max(versions.values())}", self._tell(state, "all_landed", versions), True

    def _agreed(self, found: dict[int, int]) -> dict[int, int]:
        return dict.fromkeys(found, min(found.values()))

    def _tell(self, state: State, event: str, versions: dict[int, int]) -> State:
        for m, version in versions.items():
            state = self._at_member(state, m, 0, event, version)
        return state

    def _restarts(self, state: State) -> Iterator[Edge]:
        """A rank's stages die together: the driver ends those that live before it starts any."""
        for rank in range(self.setup.num_workers):
            its = self._stages_of(rank)
            has_ended = all(self._member_facts(m, state[1][m][-1][1])[0] == END for m in its)
            if state[1][its[0]][-1][0] < self.setup.restarts[rank] and not has_ended:
                after = state
                for m in its:
                    after = self._restart(after, m)
                yield f"RESTART rank {rank}", after, False


class GroupsThatBeginApart(Groups):
    """Each stage begins at the version that it has found itself."""

    def _agreed(self, found: dict[int, int]) -> dict[int, int]:
        return found


class GroupsWithoutGate(Groups):
    """A stage goes on as soon as it has landed a version itself."""

    def edges(self, state: State) -> Iterator[Edge]:
        yield from super().edges(state)
        for m, its in enumerate(state[1]):
            mode, version, *_ = self._member_facts(m, its[-1][1])
            if mode == PIPE:
                yield f"{self._who(m)} goes on at {version}", self._tell(state, "all_landed", {m: version}), True


class GroupsThatLeaveTheirOwn(Groups):
    """A stage that dies is started again alone; those that live go on where they are."""

    def _restarts(self, state: State) -> Iterator[Edge]:
        for m, its in enumerate(state[1]):
            if its[-1][0] < self.setup.restarts[m // self.setup.num_stages] and self._member_facts(m, its[-1][1])[0] != END:
                yield f"RESTART {self._who(m)}", self._restart(state, m), False
