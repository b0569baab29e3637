"""Reports, decisions and restarts: the real Control, and the real Store's durable decisions. Steps are whole here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ps.control import Control, Epoch, EpochSums
from ps.errors import Fenced
from ps.layout import Layout, TensorSpec
from ps.store import Store
from tests.ps.models.core import Component, Edge, Violation

STEPS = 2
"""Every version after 0 is one at which the driver decides."""


def factor_of(version: int) -> float:
    """What the driver decides."""
    return 0.5**version


class ControlModel(Component):
    """The driver's Control, rebuilt through its own methods."""

    def __init__(self, kind: type[Control], num_workers: int, num_servers: int) -> None:
        super().__init__()
        self.kind, self.sizes = kind, (num_workers, num_servers)
        self.load(((0,) * num_workers, (), ()))
        for rank in range(num_workers):
            self.register(rank)

    def save(self) -> Any:
        return self.registered, self.reports, tuple(sorted(self.finished))

    def load(self, saved: Any) -> None:
        self.control = self.kind(*self.sizes)
        self.registered, self.reports, self.finished = (0,) * self.sizes[0], (), ()
        registered, reports, finished = saved
        for rank, times in enumerate(registered):
            for _ in range(times):
                self.register(rank)
        for rank, version in reports:
            self.control.report_epoch(rank, _sums(rank, version))
        self.reports = reports
        for rank in finished:
            self.finish(rank)

    def register(self, rank: int) -> int:
        self.registered = tuple(n + (i == rank) for i, n in enumerate(self.registered))
        return self.control.register("worker", rank)

    def report(self, rank: int, incarnation: int, version: int) -> Epoch | None:
        """The epoch if it is whole. Raises Violation if the newest incarnation is fenced, or the sums are wrong."""
        try:
            self.control.check_current("worker", rank, incarnation)
        except Fenced as error:
            raise Violation(str(error)) from error
        epoch = self.control.report_epoch(rank, _sums(rank, version))
        self.reports = (*self.reports, (rank, version))
        if epoch and epoch.validation != {"loss": sum(10.0**r for r in range(self.sizes[0]))}:
            raise Violation(f"epoch at {version} has the sums {epoch.validation}")
        return epoch

    def finish(self, rank: int) -> int | None:
        self.control.finish(rank, STEPS)
        self.finished = (*self.finished, rank)
        return self.control.final_version


def _sums(rank: int, version: int) -> EpochSums:
    return EpochSums(version, {}, {"loss": 10.0**rank})


class _DiesWhenRead:
    def __float__(self) -> float:
        raise KeyboardInterrupt


class DecisionModel(Component):
    """A shard's durable decision."""

    def __init__(self, kind: type[Store]) -> None:
        super().__init__()
        layout = Layout([TensorSpec(name="t", shape=(1,), dtype="float64")], 1).shards[0]
        self.memory = np.zeros(Store.size_bytes(layout, slots=0, num_norms=0), np.uint8)
        self.store = kind(self.memory, layout, slots=0, num_norms=0, key=bytes(32))
        self.store.format()

    def save(self) -> Any:
        return self.memory.tobytes()

    def load(self, saved: Any) -> None:
        self.memory[:] = np.frombuffer(saved, np.uint8)

    def decide(self, version: int) -> None:
        if self.store.decided < version:
            self.store.decide(version, factor_of(version))

    def kill_in_decide(self, version: int) -> None:
        try:
            self.store.decide(version, _DiesWhenRead())  # type: ignore[arg-type]
        except KeyboardInterrupt:
            assert self.store.attach()
            if self.store.decided == version - 1 and self.store.rate_factor != (factor_of(version - 1) if version > 1 else 1.0):
                raise Violation(f"a kill in the decision for {version} loses the one before") from None

    def check_step(self, step: int) -> None:
        """A push of the step needs its decision."""
        if step and self.store.decided < step:
            raise Violation(f"a push of step {step} reaches a shard that knows the decision for {self.store.decided}")
        if step and self.store.rate_factor != factor_of(step):
            raise Violation(f"step {step} is applied with the factor {self.store.rate_factor}")


@dataclass(frozen=True)
class Rank:
    """One rank: "step" (pushing, `mask` of shards), "report", "wait" or "end" at a version."""

    incarnation: int
    version: int = 0
    phase: str = "step"
    mask: int = 0


@dataclass(frozen=True)
class State:
    control: int
    stores: tuple[int, ...]
    words: tuple[int, ...]
    pushed: tuple[int, ...]
    ranks: tuple[Rank, ...]
    told: tuple[int, int] | None = None
    """Version decided and mask of the shards that know."""
    answered: int = 0
    epochs: int = 0
    """Mask of versions whose epoch has been whole."""
    kills: int = 1


class Decisions:
    """A model for `explore`: two ranks, two shards."""

    reports_after_join = True
    tells_before_answer = True

    def __init__(self, control: type[Control] = Control, store: type[Store] = Store) -> None:
        self.control = ControlModel(control, 2, 2)
        self.stores = DecisionModel(store)
        number = self.stores.number()
        self.initial = State(self.control.number(), (number, number), (0, 0), (0, 0), (Rank(1), Rank(1)))

    def check(self, state: State) -> None:
        if max(state.words) - min(state.words) > 1:
            raise Violation(f"shards are at versions {state.words}")

    def is_end(self, state: State) -> bool:
        return all(rank.phase == "end" for rank in state.ranks)

    def edges(self, state: State) -> Iterator[Edge]:
        for r, rank in enumerate(state.ranks):
            yield from getattr(self, f"_{rank.phase}")(state, r, rank)
            if rank.incarnation == 1 and rank.phase != "end":
                yield f"RESTART rank {r}", self._restart(state, r), False
        if state.told:
            yield from self._tell(state, *state.told)

    def _restart(self, state: State, r: int) -> State:
        number, incarnation = self.control.call(state.control, "register", r)
        version = min(state.words)
        begins = "report" if version and self.reports_after_join else "step"
        return replace(_with(state, r, Rank(incarnation, version, begins)), control=number)

    def _step(self, state: State, r: int, rank: Rank) -> Iterator[Edge]:
        for s, word in enumerate(state.words):
            if rank.mask >> s & 1:
                continue
            self.stores.call(state.stores[s], "check_step", rank.version)
            after = _with(state, r, replace(rank, mask=rank.mask | 1 << s))
            if word == rank.version:
                mask = state.pushed[s] | 1 << r
                full = mask == 3
                after = replace(after, words=_put(state.words, s, word + full), pushed=_put(state.pushed, s, 0 if full else mask))
            yield f"rank {r}.{rank.incarnation} pushes step {rank.version} to shard {s}", after, True
        if rank.mask == 3 and min(state.words) > rank.version:
            yield f"rank {r} lands {rank.version + 1}", _with(state, r, Rank(rank.incarnation, rank.version + 1, "report")), True

    def _report(self, state: State, r: int, rank: Rank) -> Iterator[Edge]:
        number, epoch = self.control.call(state.control, "report", r, rank.incarnation, rank.version)
        after = replace(_with(state, r, replace(rank, phase="wait")), control=number)
        if epoch:
            if state.epochs >> epoch.version & 1:
                raise Violation(f"the epoch at {epoch.version} is whole twice")
            after = replace(after, told=(epoch.version, 0), epochs=state.epochs | 1 << epoch.version)
            if not self.tells_before_answer:
                after = replace(after, answered=epoch.version)
        yield f"rank {r}.{rank.incarnation} reports {rank.version}", after, True

    def _wait(self, state: State, r: int, rank: Rank) -> Iterator[Edge]:
        if state.answered < rank.version:
            return
        if rank.version < STEPS:
            yield f"rank {r} goes on", _with(state, r, replace(rank, phase="step", mask=0)), True
        else:
            number, _ = self.control.call(state.control, "finish", r)
            yield f"rank {r} ends", replace(_with(state, r, replace(rank, phase="end")), control=number), True

    def _end(self, state: State, r: int, rank: Rank) -> Iterator[Edge]:
        yield from ()

    def _tell(self, state: State, version: int, mask: int) -> Iterator[Edge]:
        for s in range(2):
            if mask >> s & 1:
                continue
            number, _ = self.stores.call(state.stores[s], "decide", version)
            told = mask | 1 << s
            after = replace(state, stores=_put(state.stores, s, number), told=(version, told))
            if told == 3:
                after = replace(after, told=None, answered=version)
            yield f"driver tells shard {s} its decision for {version}", after, True
            if state.kills:
                number, _ = self.stores.call(state.stores[s], "kill_in_decide", version)
                yield (
                    f"KILL shard {s} while it writes",
                    replace(state, stores=_put(state.stores, s, number), pushed=_put(state.pushed, s, 0), kills=0),
                    False,
                )


class DecisionsWithoutReportAfterJoin(Decisions):
    reports_after_join = False


class DecisionsAnsweredFirst(Decisions):
    tells_before_answer = False


class ControlThatCounts(Control):
    """Counts reports, whoever they are of."""

    def report_epoch(self, rank: int, sums: EpochSums) -> Epoch | None:
        reports = self._reports.setdefault(sums.version, {})
        return super().report_epoch(rank if rank not in reports else len(reports), sums)


class ControlThatRepeats(Control):
    def report_epoch(self, rank: int, sums: EpochSums) -> Epoch | None:
        super().report_epoch(rank, sums)
        return self._epoch(sums.version) if len(self._reports[sums.version]) == self.num_workers else None


class StoreThatMarksDecisionsFirst(Store):
    def decide(self, version: int, rate_factor: float) -> None:
        at = 8 - self._newest_decision()
        self._header[at] = version
        self._header[at + 1 : at + 2].view(np.float64)[0] = rate_factor


def _put(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _with(state: State, r: int, rank: Rank) -> State:
    return replace(state, ranks=_put(state.ranks, r, rank))
