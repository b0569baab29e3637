"""In which order a stage computes its micro-batches.

"1f1b": one forward, one backward (Narayanan et al., "PipeDream", SOSP 2019; flushed every step). "gpipe": all forward passes, then all
backward ones (Huang et al., "GPipe", NeurIPS 2019): as long a bubble, and the activations of all micro-batches are held.
"""

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["1f1b", "gpipe"]


@dataclass(frozen=True)
class Op:
    """A pass of one stage over one micro-batch."""

    kind: Literal["forward", "backward"]
    micro: int


def passes(schedule: Schedule, stage: int, num_stages: int, num_micro: int) -> list[Op]:
    """What `stage` does in a step, in order: it holds the activations of `most_held` micro-batches at most.

    Every stage goes backward over micro-batch 0 first, then 1, …: gradients are added up in the order of a single process.
    """
    ahead = min(num_stages - 1 - stage, num_micro) if schedule == "1f1b" else num_micro
    ops = [Op("forward", micro) for micro in range(ahead)]
    for micro in range(num_micro - ahead):
        ops += [Op("forward", ahead + micro), Op("backward", micro)]
    return ops + [Op("backward", micro) for micro in range(num_micro - ahead, num_micro)]


def most_held(schedule: Schedule, stage: int, num_stages: int, num_micro: int) -> int:
    """Micro-batches whose activations a stage holds at once."""
    return min(num_stages - stage, num_micro) if schedule == "1f1b" else num_micro
