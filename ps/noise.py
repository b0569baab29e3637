"""Squared norms of a step's gradients, now and then: what the gradient noise scale is estimated from."""

import numpy as np

from ps.layout import Layout, Rule, Run, ShardLayout
from ps.pending import Part

LEAST_EVERY, MOST_EVERY = 10, 100
_BLOCK = 1 << 16
_STEPS_PER_BYTE = 2 / (1 << 20)
"""A norm costs 0.1 ms for a MB of each rank, on a step that takes some milliseconds for it: less than half a percent on average."""


class NormSamples:
    """Of which steps a shard takes norms, and how."""

    def __init__(self, layout: Layout, shard: ShardLayout, num_workers: int, *, exact: bool) -> None:
        """`exact`: contributions are gradients, not what a lossy format makes of them and keeps back for later."""
        self._shard = shard
        self._every = min(MOST_EVERY, max(LEAST_EVERY, int(_STEPS_PER_BYTE * sum(layout.shard_bytes) / layout.num_servers)))
        self._is_on = exact and num_workers > 1

    def takes(self, step: int, run: Run) -> bool:
        """Whether norms of the run, which lies in one block, count in this step: the same steps on all shards."""
        return self._is_on and step % self._every == 0 and self._shard.block_of(run).rule is Rule.OPTIMIZER

    def of_part(self, part: Part) -> float:
        """Of one rank's contribution."""
        dtype = self._shard.block_of(part.run).dtype
        total = 0.0
        for piece in self._shard.pieces(part.run):
            at = piece.flat if part.is_flat else piece.payload
            total += square(part.payload[at : at + piece.num_bytes].view(dtype))
        return total

    def of_sums(self, run: Run, sums: np.ndarray, weight: float) -> float:
        """Of the mean, from the sums over all ranks."""
        return square(sums.view(self._shard.block_of(run).dtype)) / (weight * weight)


def square(values: np.ndarray) -> float:
    """Squared norm, float64 between blocks. Not `np.dot`, which has threads of its own."""
    blocks = (values[at : at + _BLOCK] for at in range(0, len(values), _BLOCK))
    return sum(float(np.einsum("i,i->", block, block)) for block in blocks)
