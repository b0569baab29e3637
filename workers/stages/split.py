"""Which blocks a stage holds: consecutive ones, cut where the largest stage is smallest, or where the user says."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from ps.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Blocks 0 … n − 1 over stages 0 … P − 1."""

    cuts: tuple[int, ...]
    """First blocks of the stages after the first, ascending."""
    costs: tuple[float, ...]
    """Of every block, >= 0: bytes or seconds."""

    @property
    def stages(self) -> list[range]:
        """The blocks of every stage; none is empty."""
        return [range(first, end) for first, end in pairwise((0, *self.cuts, len(self.costs)))]

    @property
    def stage_costs(self) -> list[float]:
        """Sum of the costs of each stage's blocks."""
        return [sum(self.costs[i] for i in blocks) for blocks in self.stages]

    @property
    def imbalance(self) -> float:
        """The largest stage over the mean: 1 is even."""
        costs = self.stage_costs
        return max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0

    def __str__(self) -> str:
        total = sum(self.costs) or 1.0
        parts = (f"{blocks.start}–{blocks.stop - 1} ({cost / total:.0%})" for blocks, cost in zip(self.stages, self.stage_costs, strict=True))
        return f"{len(self.costs)} blocks on {len(self.stages)} stages: {', '.join(parts)}; largest {self.imbalance:.3f} of the mean"


def balanced(costs: Sequence[float], num_stages: int, *, together: Collection[tuple[int, int]] = ()) -> Split:
    """The split whose largest stage costs least; among equals the one with the earliest cuts.

    `together`: (i, j) of blocks that share a parameter and so must be on one stage. Raises ConfigError where there is no such split.
    """
    num_blocks = len(costs)
    _check_count(num_blocks, num_stages)
    # best[first]: largest stage and cuts of blocks first … on the stages looked at so far, counted from the last one
    best: list[tuple[float, tuple[int, ...]]] = [(sum(costs[first:]), ()) for first in range(num_blocks)]
    allowed = [cut for cut in range(1, num_blocks) if not any(i < cut <= j for i, j in together)]
    for _ in range(num_stages - 1):
        best = [
            min(((max(sum(costs[first:cut]), best[cut][0]), (cut, *best[cut][1])) for cut in allowed if cut > first), default=(inf, ()))
            for first in range(num_blocks)
        ]
    if best[0][0] == inf:
        raise ConfigError(
            f"blocks that share parameters must be on one stage, which leaves {len(allowed) + 1} parts for {num_stages} stages: "
            "untie them, or take fewer stages"
        )
    return Split(best[0][1], tuple(costs))


def cut_at(cuts: Sequence[int], costs: Sequence[float], num_stages: int) -> Split:
    """The split that the user wants. Raises ConfigError."""
    _check_count(len(costs), num_stages)
    edges = (0, *cuts, len(costs))
    if len(cuts) != num_stages - 1 or any(a >= b for a, b in pairwise(edges)):
        raise ConfigError(
            f"cuts {list(cuts)} do not make {num_stages} stages of {len(costs)} blocks: "
            f"give {num_stages - 1} ascending first blocks, each 1 … {len(costs) - 1}"
        )
    return Split(tuple(cuts), tuple(costs))


def _check_count(num_blocks: int, num_stages: int) -> None:
    if not 1 <= num_stages <= num_blocks:
        raise ConfigError(f"{num_stages} stages of {num_blocks} blocks: take 1 … {num_blocks} stages, or cut the model into more blocks")
