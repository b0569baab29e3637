"""The weighted sum of contributions: one accumulator per chunk, ranks added in rank order.

The barrier says when; this says how. Multiplication and addition are separate IEEE operations (no fused
multiply-add), so that neither the slicing nor the CPU changes a bit.
"""

import numpy as np

from ps.errors import ModelMismatch
from ps.frame import Bytes
from ps.layout import Rule, Run, ShardLayout
from ps.pending import Part

_BLOCK = 65536
"""Elements scaled at a time: the scratch stays in the cache."""


class Accumulators:
    """Sums of the step in progress, laid out as one copy of the shard's versioned chunks."""

    def __init__(self, layout: ShardLayout) -> None:
        self._layout = layout
        size = layout.span_bytes(Run(0, layout.num_versioned)).stop if layout.num_versioned else 0
        self._memory: Bytes = np.zeros(size, np.uint8)

    def of(self, run: Run) -> Bytes:
        """The run's sums, alignment included (always zero there)."""
        return self._memory[self._layout.span_bytes(run)]

    def add(self, rank: int, contribution: Part, weight: float, *, is_first: bool) -> None:
        """Adds weight * contribution; the first contribution of a step overwrites. Sums of losses come unweighted.

        Raises ModelMismatch if a buffer that must be equal on all ranks differs from the first rank's.
        """
        block = self._layout.block_of(contribution.run)
        for piece in self._layout.pieces(contribution.run):
            total = self._memory[piece.local : piece.local + piece.num_bytes]
            at = piece.flat if contribution.is_flat else piece.payload
            part = contribution.payload[at : at + piece.num_bytes]
            if block.rule is Rule.EQUAL:
                self._take_equal(rank, total, part, is_first=is_first)
            else:
                scale = 1.0 if block.rule is Rule.SUM else weight
                _add_scaled(total.view(block.dtype), part.view(block.dtype), scale, is_first=is_first)

    def _take_equal(self, rank: int, total: Bytes, part: Bytes, *, is_first: bool) -> None:
        if is_first:
            total[:] = part
        elif not np.array_equal(total, part):
            raise ModelMismatch(f"a buffer that is no mean (an integer one) differs on rank {rank}: make it a function of the step alone")


def _add_scaled(total: np.ndarray, part: np.ndarray, weight: float, *, is_first: bool) -> None:
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
