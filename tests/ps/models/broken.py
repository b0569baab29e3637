"""The classes of the protocol with one guard removed each."""

from typing import Any

import numpy as np

from ps.barrier import Answer, Barrier, Offer, Verdict
from ps.exchange import Exchange
from ps.layout import IntArray, Run
from ps.norms import NormDelivery
from ps.pacing import Windows
from ps.store import Store
from tests.ps.models.member import MemberModel
from tests.ps.models.shard import Mail, Message, Part, ShardModel


class StoreWithOneCopy(Store):
    def params(self, version: int, run: Run) -> Any:
        return super().params(0, run)

    def state(self, version: int, run: Run) -> Any:
        return super().state(0, run)

    def updates(self, version: int, run: Run) -> IntArray:
        return super().updates(0, run)


class StoreWithOneCount(Store):
    def updates(self, version: int, run: Run) -> IntArray:
        return super().updates(0, run)


class StoreWithVolatileOldest(Store):
    volatile = -1

    def attach(self) -> bool:
        self.volatile = -1
        return super().attach()

    def raise_oldest(self, version: int) -> None:
        super().raise_oldest(version)
        self._header[1] = -1

    @property
    def oldest(self) -> int:
        return -1


class StoreThatMarksFirst(Store):
    def record(self, step: int, norms: Any) -> None:
        self._header[2] = step
        self.norms[:] = norms


class StoreReadyTooEarly(Store):
    @property
    def initialised(self) -> bool:
        return bool((self.words >= 0).any())


class BarrierWithoutVersionCheck(Barrier):
    def offer(self, rank: int, step: int, run: Run, prints: Any, weight: float, *, holds_payload: bool = True) -> Offer:
        offer = Offer()
        self._offer_current(offer, rank, run, prints, weight, holds_payload)
        return offer


class BarrierAnswersByVerdict(Barrier):
    def offer(self, rank: int, step: int, run: Run, prints: Any, weight: float, *, holds_payload: bool = True) -> Offer:
        offer = super().offer(rank, step, run, prints, weight, holds_payload=holds_payload)
        offer.actions = [action for action in offer.actions if not isinstance(action, Answer)]
        return offer


class BarrierOwesDuplicatesNothing(Barrier):
    def _offer_current(self, offer: Offer, rank: int, run: Run, prints: Any, weight: float, holds_payload: bool) -> None:
        owed = self._owed[rank].copy()
        super()._offer_current(offer, rank, run, prints, weight, holds_payload)
        if offer.verdict is Verdict.DUPLICATE:
            self._owed[rank] = owed


class BarrierWithoutNextInOrder(Barrier):
    def _take(self, offer: Offer, rank: int, run: Run, prints: Any, weight: float, holds_payload: bool) -> None:
        size = 0 if prints is None else int(self._sizes[run.span].sum())
        if size and self.early_bytes + size > self._bound:
            offer.paused.append(run)
        else:
            super()._take(offer, rank, run, prints, weight, holds_payload)


class BarrierWithoutBound(Barrier):
    def _take(self, offer: Offer, rank: int, run: Run, prints: Any, weight: float, holds_payload: bool) -> None:
        bound, self._bound = self._bound, 1 << 30
        super()._take(offer, rank, run, prints, weight, holds_payload)
        self._bound = bound


class BarrierWithoutFence(Barrier):
    def is_fenced(self, rank: int, incarnation: int, generation: int) -> bool:
        return False


class BarrierThatRemembersQueued(Barrier):
    def join(self, rank: int, incarnation: int) -> list[Run]:
        state, early = self._state[rank].copy(), self.early_bytes
        forgotten = super().join(rank, incarnation)
        self._state[rank], self.early_bytes = state, early
        return forgotten


class BarrierInOrderOfArrival(Barrier):
    def _take(self, offer: Offer, rank: int, run: Run, prints: Any, weight: float, holds_payload: bool) -> None:
        self._next[run.span] = np.where(self._next[run.span] < self.num_workers, rank, self._next[run.span])
        super()._take(offer, rank, run, prints, weight, holds_payload)


class ExchangeWithoutGate(Exchange):
    @property
    def is_done(self) -> bool:
        return bool(self._landed[0].all())


class ExchangeThatKeepsCredits(Exchange):
    def stream_ended(self, shard: int) -> None:
        in_flight = self._in_flight[shard]
        super().stream_ended(shard)
        self._in_flight[shard] = in_flight


class ExchangeThatDoesNotPushAgain(Exchange):
    def stream_ended(self, shard: int) -> None:
        ready, queue = list(self._ready[shard]), list(self._queue[shard])
        super().stream_ended(shard)
        self._ready[shard], self._queue[shard] = ready, queue


class ExchangeThatLandsAnything(Exchange):
    def may_land(self, shard: int, version: int, run: Run) -> bool:
        return not self._landed[shard][run.span].all()


class ExchangeThatAsksForNothing(Exchange):
    def overdue(self) -> list[int]:
        return []


class ExchangeThatAwaitsNothing(Exchange):
    def awaits(self, shard: int, frame: int) -> bool:
        return False


class ExchangeWithoutWindow(Exchange):
    def next_frame(self) -> tuple[int, int] | None:
        self._windows = Windows(self.in_flight + 1, self.in_flight + 1)
        return super().next_frame()


class DeliveryOnce(NormDelivery):
    def opened(self, rank: int) -> None:
        self._pushed.pop(rank, None)


class DeliveryBeforePush(NormDelivery):
    def opened(self, rank: int) -> None:
        super().opened(rank)
        self._pushed[rank] = -1

    def due(self, step: int) -> list[int]:
        for rank in self._pushed:
            self._pushed[rank] = step
        return super().due(step)


class ShardWithoutPin(ShardModel):
    def read(self, version: int, chunk: int) -> int | None:
        return self.copy(self.store.version, chunk)


class ShardThatRecordsAfterwards(ShardModel):
    def _record(self, step: int) -> Mail:
        for part, weight in self.held:
            self._begin_apply(part, weight)
        self.held = ()
        return ()

    def _commit(self, step: int, run: Run) -> None:
        vectors = self.norms.all_vectors()
        super()._commit(step, run)
        if self.store.version > step and vectors is not None:
            self.store.record(step, vectors)


class ShardThatClearsAfterwards(ShardModel):
    def _words(self, step: int, run: Run, weight: float) -> Mail:
        self._commit(step, run)
        self.tasks += (("clear", (run.first, run.stop)),)
        return ()

    def work(self, task: int) -> Mail:
        kind, *rest = self.tasks[task]
        if kind != "clear":
            return super().work(task)
        self.tasks = self.tasks[:task] + self.tasks[task + 1 :]
        run = Run(*rest[0])
        self.store.words[run.span] -= 1
        answers = self.barrier.applied(run)
        self.store.words[run.span] += 1
        return self._carry_out(list(answers))


class ShardThatMovesWordsFirst(ShardModel):
    APPLY = ("oldest", "early_words", "overwrite", "write", "words")

    def _early_words(self, step: int, run: Run, weight: float) -> Mail:
        self.store.commit(step, run)
        return ()

    def _apply(self, others: tuple[Message, ...], part: Part, weight: float, phase: int) -> Mail:
        if phase > 1:
            self.store.words[Run(*part).span] -= 1
        mail = super()._apply(others, part, weight, phase)
        if 1 < phase < 4:
            self.store.words[Run(*part).span] += 1
        return mail


class ShardThatDoesNotCopyAbsent(ShardModel):
    def _overwrite(self, step: int, run: Run, weight: float) -> Mail:
        return super()._overwrite(step, run, weight) if weight else ()

    def _write(self, step: int, run: Run, weight: float) -> Mail:
        return super()._write(step, run, weight) if weight else ()


class ShardWithNormsAfterBytes(ShardModel):
    def push(self, rank: int, *arguments: Any) -> Any:
        answer = super().push(rank, *arguments)
        return answer and (answer[0], tuple(sorted(answer[1], key=lambda mail: mail[0] == rank and mail[1][0] == "norms")))


class ShardThatForgetsNormsOnAnswers(ShardModel):
    def _send_norms(self, step: int) -> Mail:
        return () if self.store.recorded_step == step else super()._send_norms(step)


class MemberThatJoinsAtMaximum(MemberModel):
    def _start_version(self, versions: list[int]) -> int:
        return max(versions)


class MemberWithCreditOnLanding(MemberModel):
    def _receipt(self, shard: int, frame: int) -> None:
        pass

    def _land(self, shard: int, version: int, part: tuple[int, int], labels: tuple[int, ...]) -> None:
        for frame, run in enumerate(self.frames[shard]):
            if run.first == part[0]:
                self.exchange.receipt(shard, frame)
        super()._land(shard, version, part, labels)


class MemberThatRelaysOnce(MemberModel):
    def rejoined(self, shard: int, version: int) -> Any:
        messages = super().rejoined(shard, version)
        return () if self.mode == "step" else messages
