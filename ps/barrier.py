"""Who has contributed to which chunk of which step.

Pure decisions, no payload, no clock, no thread: events go in, actions come out. The shard carries the
actions out and reports back. Contributions are summed in rank order, so that the bits do not depend on the
order of arrival; a contribution that is next in that order is always taken, others as far as the bound allows.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.layout import IntArray, Run

Prints = npt.NDArray[np.uint64]
"""What identifies the bytes of chunks."""


class Verdict(IntEnum):
    """Answer to a push, from good to bad; the numbers are those of the protocol."""

    ACCEPTED = 1
    DUPLICATE = 2
    ALREADY_APPLIED = 3
    EARLY = 4
    FENCED = 5
    DIVERGED = 6
    FOREIGN_RUN = 7
    MALFORMED = 8


_NONE, _QUEUED, _SUMMING, _SUMMED = range(4)
"""State of a contribution to a chunk."""


@dataclass(frozen=True)
class Sum:
    """Add rank's contribution to the run, then call `summed`; `is_first`: nothing has been added for this step yet."""

    rank: int
    run: Run
    weight: float
    """In units of the first contribution's weight, so that equal weights are 1 and need no multiplication."""
    is_first: bool


@dataclass(frozen=True)
class Complete:
    """All ranks are in: the run may be applied."""

    run: Run
    weight: float
    """Of all ranks, in the units of the sums; 0 if every rank was absent (or weighed nothing)."""


@dataclass(frozen=True)
class Answer:
    """Send rank the run's bytes of `version` as soon as possible."""

    rank: int
    run: Run
    version: int


Action = Sum | Complete | Answer


@dataclass
class Offer:
    """What became of a contribution."""

    verdict: Verdict = Verdict.ACCEPTED
    """The worst of its chunks."""
    actions: list[Action] = field(default_factory=list)
    queued: list[Run] = field(default_factory=list)
    """Parts whose payload must be kept until a Sum asks for it."""
    paused: list[Run] = field(default_factory=list)
    """Parts not taken because the bound on early payload is reached: offer them again after the next `summed`."""

    def worst(self, verdict: Verdict) -> None:
        self.verdict = max(self.verdict, verdict)


class Barrier:
    """Contributions to the versioned chunks of one shard. Not thread-safe: the shard locks.

    `words` are the version words (owned by the store), `sizes` the payload bytes per chunk. A chunk's row in the
    tables belongs to the step of its word; it is cleared before the new word is visible. Unless `exact`, a contribution that
    comes again with other bytes is owed an answer as if it were the same.

    A rank is `num_stages` members, of which `stages` names the one that pushes each chunk (None: each rank is one member). Who pushes is
    fenced by member, number rank * num_stages + stage; who has contributed is counted by rank.
    """

    def __init__(
        self,
        words: IntArray,
        sizes: IntArray,
        num_workers: int,
        generation: int,
        out_of_order_bytes: int,
        *,
        exact: bool = True,
        stages: IntArray | None = None,
        num_stages: int = 1,
    ) -> None:
        chunks = len(sizes)
        self._words = words
        self._sizes = sizes
        self._bytes_before: list[int] = [0, *np.cumsum(sizes).tolist()]
        self._generation = generation
        self._bound = out_of_order_bytes
        self._exact = exact
        self.num_workers = num_workers
        self.early_bytes = 0
        """Payload queued out of order."""
        self._state: npt.NDArray[np.uint8] = np.zeros((num_workers, chunks), np.uint8)
        self._absent = np.zeros((num_workers, chunks), np.bool_)
        self._held = np.zeros((num_workers, chunks), np.bool_)
        self._print: Prints = np.zeros((num_workers, chunks), np.uint64)
        self._unmarked = np.zeros((num_workers, chunks), np.bool_)
        """Whether each contribution lies in its member's segment, and nobody has made its prints yet."""
        self._weight = np.zeros((num_workers, chunks))
        self._owed = np.zeros((num_workers, chunks), np.bool_)
        self._next: IntArray = np.zeros(chunks, np.int64)
        self._total = np.zeros(chunks)
        self._present = np.zeros(chunks, np.bool_)
        self._unit = np.ones(chunks)
        """Weight of the first contribution."""
        self.num_stages = num_stages
        self._stages: IntArray = np.zeros(chunks, np.int64) if stages is None else stages
        self._incarnation = [0] * num_workers * num_stages

    # -- members ---------------------------------------------------------------------------------------------

    def is_fenced(self, member: int, incarnation: int, generation: int) -> bool:
        """Whether a newer incarnation of the member, or another generation of the run, has joined."""
        return incarnation != self._incarnation[member] or generation != self._generation

    def may_join(self, member: int, incarnation: int, generation: int) -> Verdict:
        """ACCEPTED, or FENCED for an old incarnation or another generation."""
        old = incarnation < self._incarnation[member] or generation != self._generation
        return Verdict.FENCED if old else Verdict.ACCEPTED

    def is_summing(self, rank: int) -> bool:
        """Whether a sum over a contribution of the rank runs: a higher incarnation must wait for it."""
        return bool((self._state[rank] == _SUMMING).any())

    def join(self, member: int, incarnation: int) -> list[Run]:
        """Fences older incarnations and forgets what they queued (the runs returned); answers owed to them are dropped."""
        rank, stage = divmod(member, self.num_stages)
        own = self._stages == stage
        self._owed[rank][own] = False
        if incarnation == self._incarnation[member]:
            return []
        self._incarnation[member] = incarnation
        queued = own & (self._state[rank] == _QUEUED)
        self.early_bytes -= int(self._sizes[queued & self._held[rank]].sum())
        self._state[rank][queued] = _NONE
        self._unmarked[rank][queued] = False
        return [part for part in _alike(Run(0, len(queued)), queued) if queued[part.first]]

    # -- contributions ---------------------------------------------------------------------------------------

    def offer(self, rank: int, step: int, run: Run, prints: Prints | None, weight: float, *, holds_payload: bool = True) -> Offer:
        """A contribution of `rank` to `run` for `step`; `prints` identify its bytes, None means absent.

        The caller has checked that the sender is not fenced. Every part that is accepted, a duplicate or
        already applied is owed the bytes of step + 1. Only payload that the shard itself must hold counts against
        the bound: what stays in the member's segment does not, and its `prints` count only where it comes again.
        """
        offer = Offer()
        for part in _alike(run, self._words[run.span]):
            lead = self._words[part.first] - step
            if lead < 0:
                offer.worst(Verdict.EARLY)
            elif lead > 0:
                offer.worst(Verdict.ALREADY_APPLIED)
                offer.actions.append(Answer(rank, part, step + 1))
            else:
                self._offer_current(offer, rank, part, _cut(prints, run, part), weight, holds_payload)
        return offer

    def _offer_current(self, offer: Offer, rank: int, run: Run, prints: Prints | None, weight: float, holds_payload: bool) -> None:
        for part in _alike(run, self._state[rank][run.span] != _NONE):
            marks = _cut(prints, run, part)
            if self._state[rank, part.first] != _NONE:
                same = self._is_same(rank, part, marks, weight)
                offer.worst(Verdict.DUPLICATE if same else Verdict.DIVERGED)
                self._owed[rank][part.span] |= same or not self._exact
            else:
                self._take(offer, rank, part, marks, weight, holds_payload)

    def _is_same(self, rank: int, run: Run, prints: Prints | None, weight: float) -> bool:
        assert not self._unmarked[rank][run.span].any(), "prints are made before they are compared"
        absent = self._absent[rank][run.span]
        if (self._weight[rank][run.span] != weight).any() or (absent != (prints is None)).any():
            return False
        return prints is None or bool((self._print[rank][run.span] == prints).all())

    def _take(self, offer: Offer, rank: int, run: Run, prints: Prints | None, weight: float, holds_payload: bool) -> None:
        for part in _alike(run, self._next[run.span] == rank):
            is_next = self._next[part.first] == rank
            holds = holds_payload and prints is not None
            size = self._bytes_before[part.stop] - self._bytes_before[part.first] if holds else 0
            if not is_next and size and self.early_bytes + size > self._bound:
                offer.paused.append(part)
                continue
            self._owed[rank][part.span] = True
            self._absent[rank][part.span] = prints is None
            self._held[rank][part.span] = holds
            self._unmarked[rank][part.span] = prints is not None and not holds_payload
            self._weight[rank][part.span] = weight
            if prints is not None:
                self._print[rank][part.span] = _cut(prints, run, part)
            self._state[rank][part.span] = _QUEUED
            if is_next:
                for done in self._claim(offer.actions, rank, part):
                    offer.actions += self.summed(*done)
            else:
                self.early_bytes += size
                offer.queued.append(part)

    def summed(self, rank: int, run: Run) -> list[Action]:
        """The rank's contribution has been added: what can be done next."""
        actions: list[Action] = []
        done = [(rank, run)]
        while done:
            rank, run = done.pop()
            self._state[rank][run.span] = _SUMMED
            self._next[run.span] = rank + 1
            if rank + 1 == self.num_workers:
                parts = _alike(run, self._present[run.span], self._total[run.span], self._unit[run.span])
                actions += [self._complete(part) for part in parts]
                continue
            for part in _alike(run, self._state[rank + 1][run.span]):
                if self._state[rank + 1, part.first] == _QUEUED:
                    self.early_bytes -= int(self._sizes[part.span][self._held[rank + 1][part.span]].sum())
                    done += self._claim(actions, rank + 1, part)
        return actions

    def _claim(self, actions: list[Action], rank: int, run: Run) -> list[tuple[int, Run]]:
        """Starts the sum of a contribution whose turn has come; returns the absent parts, which are done at once."""
        done = []
        tables = self._absent[rank], self._weight[rank], self._present, self._unit
        for part in _alike(run, *(table[run.span] for table in tables)):
            weight = float(self._weight[rank, part.first])
            self._total[part.span] += weight
            if self._absent[rank, part.first]:
                done.append((rank, part))
            else:
                self._state[rank][part.span] = _SUMMING
                is_first = not self._present[part.first]
                if is_first:
                    self._unit[part.span] = weight or 1.0
                actions.append(Sum(rank, part, weight / float(self._unit[part.first]), is_first))
                self._present[part.span] = True
        return done

    def _complete(self, run: Run) -> Complete:
        return Complete(run, float(self._total[run.first] / self._unit[run.first]) if self._present[run.first] else 0.0)

    def applied(self, run: Run) -> list[Answer]:
        """Clears the run's table: call before its new words are visible, then send the answers returned."""
        version = int(self._words[run.first]) + 1
        answers = []
        for rank in np.flatnonzero(self._owed[:, run.span].any(axis=1)).tolist():
            owed = self._owed[rank]
            answers += [Answer(rank, part, version) for part in _alike(run, owed[run.span]) if owed[part.first]]
        for table in (self._state, self._owed, self._absent, self._unmarked):
            table[:, run.span] = 0
        self._next[run.span] = 0
        self._total[run.span] = 0
        self._present[run.span] = False
        self._unit[run.span] = 1.0
        return answers

    # -- questions -------------------------------------------------------------------------------------------

    def has_contributed(self, rank: int, step: int, run: Run) -> bool:
        """Whether a contribution of the rank to any chunk of the run is in for a step in progress."""
        return bool(((self._words[run.span] == step) & (self._state[rank][run.span] != _NONE)).any())

    def unmarked(self, rank: int, run: Run) -> list[Run]:
        """Parts of the run of which a contribution of the rank is in whose prints nobody has made."""
        unmarked = self._unmarked[rank][run.span]
        return [part for part in _alike(run, unmarked) if unmarked[part.first - run.first]]

    def mark(self, rank: int, run: Run, prints: Prints) -> None:
        """These are the prints of what the rank has contributed to the run."""
        self._print[rank][run.span] = prints
        self._unmarked[rank][run.span] = False

    def missing(self) -> dict[int, int]:
        """Members that some chunk waits for, with the number of chunks."""
        awaited = self._state == _NONE
        counts = np.stack([(awaited & (self._stages == stage)).sum(axis=1) for stage in range(self.num_stages)], axis=1)
        return {member: int(count) for member, count in enumerate(counts.flat) if count}

    def is_complete(self) -> bool:
        """Whether all ranks are in for every chunk."""
        return bool((self._next == self.num_workers).all())


def _alike(run: Run, *values: npt.NDArray[Any]) -> list[Run]:
    """Longest parts of `run` within which each of `values` (one entry per chunk of the run) is constant."""
    if not len(run):
        return []
    if all(map(_is_constant, values)):
        return [run]
    differs = np.zeros(len(run) - 1, np.bool_)
    for array in values:
        differs |= array[1:] != array[:-1]
    bounds = [run.first, *(np.flatnonzero(differs) + run.first + 1).tolist(), run.stop]
    return [Run(a, b) for a, b in pairwise(bounds)]


def _is_constant(array: npt.NDArray[Any]) -> bool:
    """Of the same bytes throughout: a tenth of what comparing the elements costs, and most runs are."""
    data, size = array.tobytes(), array.itemsize
    return data[size:] == data[:-size]


def _cut(prints: Prints | None, run: Run, part: Run) -> Prints | None:
    return None if prints is None else prints[part.first - run.first : part.stop - run.first]
