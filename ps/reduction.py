"""The weighted sum of contributions: one accumulator per chunk, ranks added in rank order.

The barrier says when; this says how. Multiplication and addition are separate IEEE operations (no fused
multiply-add), so that neither the slicing nor the CPU changes a bit.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ps.errors import ModelMismatch
from ps.frame import Bytes
from ps.layout import Rule, Run, ShardLayout
from ps.pending import Part

_BLOCK = 65536
"""Elements scaled or added up at a time: what is reused of them stays in the cache."""


class Accumulators:
    """Sums of the step in progress, laid out as one copy of the shard's versioned chunks.

    Contributions that lie in their ranks' segments are lent, not copied: `fold` adds them up where they lie, all in one pass. Each
    chunk is summed by one thread at a time; `lenders` and `fold` are for whoever must know what is still read there.
    """

    def __init__(self, layout: ShardLayout, num_workers: int) -> None:
        self._layout = layout
        size = layout.span_bytes(Run(0, layout.num_versioned)).stop if layout.num_versioned else 0
        self._memory: Bytes = np.zeros(size, np.uint8)
        self._begun = np.zeros(layout.num_versioned, np.bool_)
        """Whether the sum of each chunk has begun in our memory."""
        self._lent = np.zeros((num_workers, layout.num_versioned), np.bool_)
        """Whether each rank's contribution to each chunk lies in its segment, and is to be added to that."""
        self._segments: dict[tuple[int, int], Bytes] = {}
        """By rank and stage, of those that have lent anything; none where all payload travels, and then there is nothing to look for."""

    def of(self, run: Run) -> Bytes:
        """The run's sums, alignment included (always zero there). Folded."""
        return self._memory[self._layout.span_bytes(run)]

    def lenders(self, run: Run) -> list[int]:
        """Ranks in whose segments contributions to the run lie."""
        return np.flatnonzero(self._lent[:, run.span].any(axis=1)).tolist() if self._segments else []

    def fold(self, run: Run, through: int | None = None) -> None:
        """Adds what is lent of the run (None: by all ranks; else where this rank lends, by it and those before): no segment is read for
        that any more."""
        if not self._segments:
            return
        stop = len(self._lent) if through is None else through + 1
        for part in self._alike(run, stop):
            ranks = np.flatnonzero(self._lent[:stop, part.first]).tolist()
            if ranks and through in (None, ranks[-1]):
                self._fold_part(part, ranks)

    def _fold_part(self, run: Run, ranks: Sequence[int]) -> None:
        dtype = self._layout.block_of(run).dtype
        for span, terms in self._terms_of(run, ranks):
            _add_up(self._memory[span].view(dtype), [term.view(dtype) for term in terms])
        self._lent[ranks, run.span] = False
        self._begun[run.span] = True

    def terms(self, run: Run) -> Iterator[tuple[slice, list[Bytes]]]:
        """What adds up to the run's sums, from left to right, piece by piece: where each lies in the shard's memory, and all terms of it.
        Alignment is left out where contributions are lent."""
        if not self._segments:
            yield self._layout.span_bytes(run), [self.of(run)]
            return
        for part in self._alike(run, len(self._lent)):
            yield from self._terms_of(part, np.flatnonzero(self._lent[:, part.first]).tolist())

    def _terms_of(self, run: Run, ranks: Sequence[int]) -> Iterator[tuple[slice, list[Bytes]]]:
        """Likewise of a run of which these ranks lend everything."""
        stage, begun = self._layout.block_of(run).stage, bool(self._begun[run.first])
        for piece in self._layout.pieces(run):
            span = slice(piece.local, piece.local + piece.num_bytes)
            lent = [self._segments[rank, stage][piece.flat : piece.flat + piece.num_bytes] for rank in ranks]
            yield span, [self._memory[span], *lent] if begun else lent

    def used(self, run: Run) -> None:
        """The run's terms have been added up where they lay: nothing of it is lent any more."""
        self._lent[:, run.span] = False

    def add(self, rank: int, contribution: Part, weight: float, *, is_first: bool) -> None:
        """Adds weight * contribution; the first contribution of a step overwrites. Sums of losses come unweighted.

        Raises ModelMismatch if a buffer that must be equal on all ranks differs from the first rank's.
        """
        run = contribution.run
        block = self._layout.block_of(run)
        scale = 1.0 if block.rule is Rule.SUM else weight
        if is_first:
            self._begun[run.span] = False
        if contribution.is_flat and scale == 1.0 and block.rule is not Rule.EQUAL:
            self._segments[rank, block.stage] = contribution.payload
            self._lent[rank, run.span] = True
            return
        self.fold(run)
        self._add_now(rank, contribution, scale, is_first=is_first)
        self._begun[run.span] = True

    def _add_now(self, rank: int, contribution: Part, scale: float, *, is_first: bool) -> None:
        block = self._layout.block_of(contribution.run)
        for piece in self._layout.pieces(contribution.run):
            total = self._memory[piece.local : piece.local + piece.num_bytes]
            at = piece.flat if contribution.is_flat else piece.payload
            part = contribution.payload[at : at + piece.num_bytes]
            if block.rule is Rule.EQUAL:
                self._take_equal(rank, total, part, is_first=is_first)
            else:
                _add_scaled(total.view(block.dtype), part.view(block.dtype), scale, is_first=is_first)

    def _alike(self, run: Run, stop: int) -> list[Run]:
        """Parts of the run of which the same of the first ranks lend everything."""
        columns = np.vstack((self._begun[run.span], self._lent[:stop, run.span]))
        cuts = np.flatnonzero((columns[:, 1:] != columns[:, :-1]).any(axis=0)) + run.first + 1
        return [Run(a, b) for a, b in pairwise([run.first, *cuts.tolist(), run.stop]) if a < b]

    def _take_equal(self, rank: int, total: Bytes, part: Bytes, *, is_first: bool) -> None:
        if is_first:
            total[:] = part
        elif not np.array_equal(total, part):
            raise ModelMismatch(f"a buffer that is no mean (an integer one) differs on rank {rank}: make it a function of the step alone")


def _add_up(total: np.ndarray, terms: Sequence[np.ndarray]) -> None:
    """The sum of the terms, from left to right, of which the first may be `total`."""
    if len(terms) == 1:
        total[:] = terms[0]
        return
    block = len(total) if len(terms) == 2 else _BLOCK
    for at in range(0, len(total), block):
        first, second, *others = (term[at : at + block] for term in terms)
        so_far = np.add(first, second, out=total[at : at + block])
        for other in others:
            np.add(so_far, other, out=so_far)


def _add_scaled(total: np.ndarray, part: np.ndarray, weight: float, *, is_first: bool) -> None:
    """Total + weight * part; without the total for the first."""
    if is_first and weight == 1.0:
        total[:] = part
    elif is_first:
        np.multiply(part, total.dtype.type(weight), out=total)
    elif weight == 1.0:
        np.add(total, part, out=total)
    else:
        scratch = np.empty(min(_BLOCK, len(part)), total.dtype)
        for at in range(0, len(part), _BLOCK):
            piece = part[at : at + _BLOCK]
            scaled = np.multiply(piece, total.dtype.type(weight), out=scratch[: len(piece)])
            np.add(total[at : at + _BLOCK], scaled, out=total[at : at + _BLOCK])
