"""Carries out what the barrier has given out: sums, updates, answers; outside the lock, each thread on the runs given to it."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from ps.answers import Answers
from ps.barrier import Action, Complete, Sum
from ps.checkpoints.cut import Cuts
from ps.errors import PserverError
from ps.failpoints import hit
from ps.layout import Rule, Run
from ps.noise import NormSamples
from ps.norms import StepFactor
from ps.pending import Part, PendingPayload
from ps.reduction import Accumulators
from ps.shard_state import ShardState
from ps.stats import Spent
from ps.update import PLAIN, Updater

log = logging.getLogger(__name__)

_PASS_BYTES = 4 << 20
"""Summed, averaged and updated in one go where that takes several passes: what one has brought into the cache the next one finds there."""


class Work:
    """Thread-safe. `fail` is called with what goes wrong in the pool: it ends the shard."""

    def __init__(
        self,
        state: ShardState,
        pending: PendingPayload,
        updater: Updater,
        answers: Answers,
        fail: Callable[[PserverError], None],
        cuts: Cuts | None,
        norms: NormSamples,
    ) -> None:
        self._state = state
        self._layout = state.layout
        self._store = state.store
        self._changed = state.changed
        self._pending = pending
        self._updater = updater
        self._answers = answers
        self._fail = fail
        self._cuts = cuts
        self._norms = norms
        self._sums = Accumulators(state.layout, state.barrier.num_workers)
        self._read: Counter[int] = Counter()
        """How many threads add to what each rank has lent."""
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="shard")
        """Sums and updates of contributions in segments: their frames are too quick to keep the readers' threads busy."""

    def carry_out_in_pool(self, actions: list[Action], rank: int, whole: Part) -> None:
        """As `carry_out`, in other threads. Raises RuntimeError once closed."""
        for action in actions:
            self._pool.submit(self._work, action, rank, whole)

    def _work(self, action: Action, rank: int, whole: Part) -> None:
        """A thread of the pool: whatever goes wrong ends the shard."""
        try:
            self.carry_out([action], rank, whole)
        except PserverError as error:
            self._fail(error)
        except Exception as error:
            log.exception("shard %d fails", self._state.index)
            self._fail(PserverError(f"server {self._state.index} failed: {' '.join(repr(error).split())}; see its log"))

    def carry_out(self, actions: list[Action], rank: int, whole: Part) -> None:
        """Sums, updates and answers; sums of other contributions than `whole` take their payload from what is pending."""
        while actions:
            action = actions.pop()
            if isinstance(action, Sum):
                actions += self._sum(action, rank, whole)
            elif isinstance(action, Complete):
                self._completed(action)
            else:
                self._answers.send([action])

    def _sum(self, action: Sum, rank: int, whole: Part) -> list[Action]:
        run = whole.run
        with Spent() as spent:
            if action.rank == rank and run.first <= action.run.first and action.run.stop <= run.stop:
                parts = [self._pending.cut(whole, action.run)]
            else:
                with self._changed:
                    parts = self._pending.take(action.rank, action.run)
            if self._norms.takes(int(self._store.words[action.run.first]), action.run):
                self._state.stats.contributed(sum(map(self._norms.of_part, parts)))
            with self._reading(action.run):
                for part in parts:
                    self._sums.add(action.rank, part, action.weight, is_first=action.is_first)
            hit("shard.summed")
        self._state.stats.aggregated(spent)
        with self._changed:
            actions = self._state.barrier.summed(action.rank, action.run)
            self._changed.notify_all()
        return actions

    @contextmanager
    def _reading(self, run: Run) -> Iterator[None]:
        """Around what reads in the segments of those who have lent of the run."""
        with self._changed:
            lenders = self._sums.lenders(run)
            self._read.update(lenders)
        try:
            yield
        finally:
            if lenders:
                with self._changed:
                    self._read.subtract(lenders)
                    self._changed.notify_all()

    def reads(self, rank: int) -> bool:
        """Whether a thread reads the rank's contributions at this moment. Under the lock."""
        return self._state.barrier.is_summing(rank) or self._read[rank] > 0

    def detach(self, rank: int, stage: int) -> None:
        """Nothing that has been taken of the member is read in its segment any more. Under the lock, while it is not read."""
        for block in self._layout.blocks:
            if block.stage == stage and block.rule is not Rule.FROZEN:
                self._sums.fold(block.run, rank)

    def _completed(self, complete: Complete) -> None:
        step = int(self._store.words[complete.run.first])
        with self._changed:
            decision = self._state.two_phase.recorded(step) if self._state.two_phase.needed else PLAIN
        if decision:
            self._apply(step, complete, decision, self._mean)
        else:
            for run in self._layout.split(complete.run, _PASS_BYTES):
                self._mean(step, run, complete.weight)
            self._hold(step, complete)

    def _mean(self, step: int, run: Run, weight: float) -> None:
        """The run's sums become what is applied."""
        with Spent() as spent:
            with self._reading(run):
                self._sums.fold(run)
            if self._norms.takes(step, run):
                square = self._norms.of_sums(run, self._sums.of(run), weight) if weight else 0.0
                self._state.stats.averaged(square, len(run))
            if weight:
                self._updater.to_mean(step, run, self._sums.of(run), weight)
        self._state.stats.aggregated(spent)

    def _hold(self, step: int, complete: Complete) -> None:
        """Keeps a complete run of a two-phase step until all shards' norms are known."""
        run = complete.run
        squares = None
        if run.stop <= self._layout.num_optimizer:
            squares = self._updater.squares(run, self._sums.of(run)) if complete.weight else np.zeros(len(run))
        with self._changed:
            self._state.two_phase.hold(complete, squares)
        hit("shard.held")
        self._answers.send_norms(step)
        self.release(step)

    def release(self, step: int) -> None:
        """Applies the whole shard once the decision can be taken."""
        with self._changed:
            released = self._state.two_phase.release(step) if self._state.barrier.is_complete() else None
        if released:
            hit("shard.recorded")
            runs, decision = released
            for complete in runs:
                self._apply(step, complete, decision)

    def _apply(self, step: int, complete: Complete, decision: StepFactor, before: Callable[[int, Run, float], None] | None = None) -> None:
        """`before`: what each part of the run goes through first."""
        run, spent = complete.run, Spent()
        with self._changed:
            self._store.raise_oldest(step)
        hit("shard.oldest")
        if self._cuts:
            self._cuts.before_write(step, run)
        if not (before and self._apply_at_once(step, run, complete.weight, spent)):
            for part in self._layout.split(run, _PASS_BYTES):
                if before:
                    before(step, part, complete.weight)
                with spent:
                    self._updater.write(step, part, self._sums.of(part), complete.weight, decision, rate_factor=self._store.rate_factor)
        hit("shard.written")
        with spent:
            with self._changed:
                answers = self._state.barrier.applied(run)
                self._store.commit(step, run)
                hit("shard.applied")
                is_last = self._store.version > step
                if is_last:
                    self._state.two_phase.begin()
                self._changed.notify_all()
            self._answers.send(answers)
        self._state.stats.applied(step, spent, is_last=is_last)

    def _apply_at_once(self, step: int, run: Run, weight: float, spent: Spent) -> bool:
        """Sums and updates in one pass over memory, if that is possible; its time is shared out by the bytes that each has moved."""
        if not weight or self._norms.takes(step, run):
            return False
        with Spent() as both, self._reading(run):
            share = self._updater.write_at_once(step, run, self._sums, weight, rate_factor=self._store.rate_factor)
            if share is None:
                return False
            self._sums.used(run)
        self._state.stats.aggregated(both.split(share))
        spent.wall_s, spent.cpu_s = spent.wall_s + both.wall_s, spent.cpu_s + both.cpu_s
        return True

    def close(self) -> None:
        """No thread of the pool begins anything any more."""
        self._pool.shutdown(wait=False)
