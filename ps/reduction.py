"""The weighted sum of contributions: one accumulator per chunk, ranks added in rank order.

The barrier says when; this says how. Multiplication and addition are separate IEEE operations (no fused
multiply-add), so that neither the slicing nor the CPU changes a bit.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ps.errors import ModelMismatch
from ps.frame import Bytes
from ps.layout import Rule, Run, ShardLayout
from ps.pending import Part

_BLOCK = 65536
"""Elements scaled at a time: the scratch stays in the cache."""
_NOBODY = -1


class Accumulators:
    """Sums of the step in progress, laid out as one copy of the shard's versioned chunks.

    A first contribution that lies in its rank's segment is lent, not copied: the next one is added to it where it lies. Each
    chunk is summed by one thread at a time; `lenders` and `settle` are for whoever must know what is still read there.
    """

    def __init__(self, layout: ShardLayout, num_workers: int) -> None:
        self._layout = layout
        self._num_workers = num_workers
        size = layout.span_bytes(Run(0, layout.num_versioned)).stop if layout.num_versioned else 0
        self._memory: Bytes = np.zeros(size, np.uint8)
        self._lender: npt.NDArray[np.int64] = np.full(layout.num_versioned, _NOBODY)
        """Rank whose segment holds the sum so far of each chunk."""
        self._lent: dict[int, Bytes] = {}
        """The segments, by rank."""

    def of(self, run: Run) -> Bytes:
        """The run's sums, alignment included (always zero there). Settled."""
        return self._memory[self._layout.span_bytes(run)]

    def lenders(self, run: Run) -> set[int]:
        """Ranks in whose segments sums of the run lie."""
        return set(self._lender[run.span].tolist()) - {_NOBODY}

    def settle(self, run: Run, rank: int | None = None) -> None:
        """Copies what is lent of the run (None: by all ranks): no segment is read for it any more."""
        for part, lender in self._by_lender(run):
            if lender != _NOBODY and rank in (None, lender):
                for piece in self._layout.pieces(part):
                    lent = self._lent[lender][piece.flat : piece.flat + piece.num_bytes]
                    self._memory[piece.local : piece.local + piece.num_bytes] = lent
                self._lender[part.span] = _NOBODY

    def add(self, rank: int, contribution: Part, weight: float, *, is_first: bool) -> None:
        """Adds weight * contribution; the first contribution of a step overwrites. Sums of losses come unweighted.

        Raises ModelMismatch if a buffer that must be equal on all ranks differs from the first rank's.
        """
        run = contribution.run
        rule = self._layout.block_of(run).rule
        scale = 1.0 if rule is Rule.SUM else weight
        if is_first and contribution.is_flat and scale == 1.0 and rule is not Rule.EQUAL and rank + 1 < self._num_workers:
            self._lent[rank] = contribution.payload
            self._lender[run.span] = rank
            return
        for part, lender in self._by_lender(run):
            self._add_part(rank, contribution, part, scale, is_first=is_first, base=None if lender == _NOBODY else self._lent[lender])
            self._lender[part.span] = _NOBODY

    def _add_part(self, rank: int, contribution: Part, run: Run, scale: float, *, is_first: bool, base: Bytes | None) -> None:
        """Adds the part `run` of a contribution to `base`, a flat layout, or to what is there."""
        block = self._layout.block_of(run)
        skipped = self._layout.payload_bytes(Run(contribution.run.first, run.first))
        for piece in self._layout.pieces(run):
            total = self._memory[piece.local : piece.local + piece.num_bytes]
            at = piece.flat if contribution.is_flat else skipped + piece.payload
            part = contribution.payload[at : at + piece.num_bytes]
            if block.rule is Rule.EQUAL:
                self._take_equal(rank, total, part, is_first=is_first)
                continue
            so_far = total if base is None else base[piece.flat : piece.flat + piece.num_bytes]
            _add_scaled(total.view(block.dtype), so_far.view(block.dtype), part.view(block.dtype), scale, is_first=is_first)

    def _by_lender(self, run: Run) -> list[tuple[Run, int]]:
        lender = self._lender[run.span]
        cuts = [run.first, *(np.flatnonzero(lender[1:] != lender[:-1]) + run.first + 1).tolist(), run.stop]
        return [(Run(a, b), int(self._lender[a])) for a, b in pairwise(cuts) if a < b]

    def _take_equal(self, rank: int, total: Bytes, part: Bytes, *, is_first: bool) -> None:
        if is_first:
            total[:] = part
        elif not np.array_equal(total, part):
            raise ModelMismatch(f"a buffer that is no mean (an integer one) differs on rank {rank}: make it a function of the step alone")


def _add_scaled(total: np.ndarray, so_far: np.ndarray, part: np.ndarray, weight: float, *, is_first: bool) -> None:
    """So far + weight * part, where `so_far` may be `total`; without it for the first."""
    if is_first and weight == 1.0:
        total[:] = part
    elif is_first:
        np.multiply(part, total.dtype.type(weight), out=total)
    elif weight == 1.0:
        np.add(so_far, part, out=total)
    else:
        scratch = np.empty(min(_BLOCK, len(part)), total.dtype)
        for at in range(0, len(part), _BLOCK):
            piece = part[at : at + _BLOCK]
            scaled = np.multiply(piece, total.dtype.type(weight), out=scratch[: len(piece)])
            np.add(so_far[at : at + _BLOCK], scaled, out=total[at : at + _BLOCK])
