"""Which resource limits the step, from the means of a window. Pure.

The length of a step is that of its slowest rank: all others wait in the barrier. So a verdict looks at the parts of that
rank's step, splits them into what the other ranks spend as well and what only this rank spends, and follows transfers to the
shard, the link, the processor or the latency behind them (`exchange.py`).
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.measure.exchange import Finding, of_apply, of_transfers
from deploy.measure.pipeline import of_pipeline
from deploy.measure.text import counted, seconds
from deploy.measure.window import FELT, OWN_PARTS, Window

FAULT = 2.0
"""Weight of such a loss against a part that all ranks share: it can be removed whole, a shared part only be reduced."""
DOMINANT = 0.6
"""Part of all ranks' losses that must be one rank's own; noise alternates between ranks."""
WORTH_A_WORD = 0.01
"""Part of the step below which a log line does not mention a wait."""
SURE = 1.2
"""How many times the weight of whatever else might be named a verdict must have to be sure."""
SURE_STEPS = 8
"""Steps below which no verdict is sure."""


@dataclass(frozen=True)
class Verdict:
    """`resource` and `evidence` make one phrase; both are empty if no step has ended."""

    resource: str
    evidence: str
    shares: Mapping[str, float] = field(default_factory=dict)
    """Part of the step by what it was spent on, in the slowest rank; they add up to 1."""
    is_sure: bool = False
    """There are enough steps, and nothing else comes close."""

    def __str__(self) -> str:
        return f"{self.resource} {self.evidence}".strip()


def verdict(window: Window) -> Verdict:
    """The bottleneck of the window."""
    step_s = window.steps["step_s"]
    if not step_s:
        return Verdict("", "")
    path = window.path
    path_s = sum(path.values())
    found = _finding(window, path, step_s)
    shares = {part: value / path_s for part, value in path.items()}
    return Verdict(found.resource, found.evidence, shares, found.margin >= SURE and window.num_steps >= SURE_STEPS)


def _finding(window: Window, path: Mapping[str, float], step_s: float) -> Finding:
    rank, loss = _rank_apart(window, step_s)
    shared = {part: value - window.excess.get((rank, part), 0.0) if rank is not None else value for part, value in path.items()}
    part, second = sorted(shared, key=lambda part: -shared[part])[:2]
    if rank is not None:
        own = max(OWN_PARTS, key=lambda part: window.excess.get((rank, part), 0.0))
        other = shared[part] if part != own else shared[second]
        if FAULT * loss > other:  # what it does beyond the others is more of the same as they do, or outweighs what they do
            return Finding(*_of_rank(window, rank, own), FAULT * loss / other if other else SURE)
    if window.num_stages > 1 and (of_stages := of_pipeline(window, shared)):
        return of_stages
    if part == "transfers":
        found = of_transfers(window, path[part])
    elif part == "apply":
        found = of_apply(window, path[part])
    else:
        found = Finding(part, f"{seconds(path[part])} of {seconds(step_s)}", SURE)
    return Finding(found.resource, found.evidence, min(found.margin, shared[part] / shared[second] if shared[second] else SURE))


def log_line(step: int, window: Window) -> str:
    """One line for the log, about the steps of the window."""
    found = verdict(window)
    if not found.resource:
        came_back = [f"a process came back in {counted(len(window.recoveries), 'step')}"] if window.recoveries else []
        return " | ".join([f"step {step}", *(came_back or ["no step has ended since the last line"])])
    step_s = window.steps["step_s"]
    parts = [f"step {step}", seconds(step_s), f"exposed comm {window.exposed_share:.0%}", f"bottleneck: {found}"]
    if window.waits:
        rank, wait_s = max(window.waits.items(), key=lambda item: item[1])
        if wait_s >= WORTH_A_WORD * step_s:
            parts.append(f"waits for {window.name(rank)}: {seconds(wait_s)}")
    return " | ".join(parts)


def _rank_apart(window: Window, step_s: float) -> tuple[int | None, float]:
    """The rank that loses clearly more than others by itself, outside of transfers, and how many seconds."""
    losses: dict[int, float] = {}
    for (rank, part), value in window.excess.items():
        losses[rank] = losses.get(rank, 0.0) + (value if part in OWN_PARTS else 0.0)
    if not losses:
        return None, 0.0
    rank = max(losses, key=lambda rank: (window.is_felt_lag(rank), losses[rank]))
    loss = losses[rank]
    is_its_own = window.is_felt_lag(rank) or (loss >= DOMINANT * sum(losses.values()) and window.is_steady_lag(rank))
    return (rank, loss) if window.lag_s(rank) >= FELT * step_s and is_its_own else (None, 0.0)


def _of_rank(window: Window, rank: int, part: str) -> tuple[str, str]:
    mean = window.part_s(rank, part)
    others = statistics.median(window.part_s(other, part) for other in window.ranks if other != rank and (other - rank) % window.num_stages == 0)
    return f"{window.name(rank)}'s {part}", f"{seconds(mean)}, others {seconds(others)}"
