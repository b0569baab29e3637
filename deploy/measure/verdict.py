"""Which resource limits the step, from the means of a window. Pure.

The length of a step is that of its slowest rank: all others wait in the barrier. So a verdict looks at the parts of that
rank's step, splits them into what the other ranks spend as well and what only this rank spends, and follows transfers to the
shard, the link or the latency behind them.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.measure.text import megabytes_per_s, seconds, size
from deploy.measure.window import OWN_PARTS, Window

FELT = 0.15
"""Part of the step that one rank must lose by itself to be named: to mend less would not be felt."""
FAULT = 2.0
"""Weight of such a loss against a part that all ranks share: it can be removed whole, a shared part only be reduced."""
DOMINANT = 0.6
"""Part of all ranks' losses that must be one rank's own; noise alternates between ranks."""
APART = 1.5
"""How many times the median of the others a shard's time must be to be named alone; half as much again is no noise."""
EXPLAINS = 0.5
"""Part of the transfers that a time must reach to be their reason."""
LATENCY_BYTES = 64 << 10
"""Payload of one rank to one shard below which bytes do not matter: half a millisecond at 1 Gbit/s, as much as two calls."""
WORTH_A_WORD = 0.01
"""Part of the step below which a log line does not mention a wait."""


@dataclass(frozen=True)
class Verdict:
    """`resource` and `evidence` make one phrase; both are empty if no step has ended."""

    resource: str
    evidence: str
    shares: Mapping[str, float] = field(default_factory=dict)
    """Part of the step by what it was spent on, in the slowest rank; they add up to 1."""

    def __str__(self) -> str:
        return f"{self.resource} {self.evidence}".strip()


def verdict(window: Window) -> Verdict:
    """The bottleneck of the window."""
    step_s = window.steps["step_s"]
    if not step_s:
        return Verdict("", "")
    path = window.path
    path_s = sum(path.values())
    shares = {part: value / path_s for part, value in path.items()}
    rank, loss = _rank_apart(window, step_s)
    candidates = {part: value - window.excess.get((rank, part), 0.0) if rank is not None else value for part, value in path.items()}
    part = max(candidates, key=lambda part: candidates[part])
    if rank is not None and FAULT * loss > candidates[part]:
        return Verdict(*_of_rank(window, rank), shares)
    if part == "transfers":
        return Verdict(*_of_transfers(window, path[part]), shares)
    if part == "apply":
        return Verdict(*_of_apply(window, path[part], step_s), shares)
    return Verdict(part, _of(path[part], step_s), shares)


def log_line(step: int, window: Window) -> str:
    """One line for the log, about the steps of the window."""
    found = verdict(window)
    if not found.resource:
        return f"step {step} | no step has ended since the last line"
    step_s = window.steps["step_s"]
    parts = [f"step {step}", seconds(step_s), f"exposed comm {window.exposed_share:.0%}", f"bottleneck: {found}"]
    if window.waits:
        rank, wait_s = max(window.waits.items(), key=lambda item: item[1])
        if wait_s >= WORTH_A_WORD * step_s:
            parts.append(f"waits for rank {rank}: {seconds(wait_s)}")
    return " | ".join(parts)


def _rank_apart(window: Window, step_s: float) -> tuple[int | None, float]:
    """The rank that loses clearly more than others by itself, outside of transfers, and how many seconds."""
    losses: dict[int, float] = {}
    for (rank, part), value in window.excess.items():
        losses[rank] = losses.get(rank, 0.0) + (value if part in OWN_PARTS else 0.0)
    if not losses:
        return None, 0.0
    rank = max(losses, key=lambda rank: losses[rank])
    loss = losses[rank]
    is_apart = loss >= FELT * step_s and loss >= DOMINANT * sum(losses.values()) and window.is_steady_lag(rank)
    return (rank, loss) if is_apart else (None, 0.0)


def _of_rank(window: Window, rank: int) -> tuple[str, str]:
    part = max(OWN_PARTS, key=lambda part: window.excess[rank, part])
    mean = window.part_s(rank, part)
    others = statistics.median(window.part_s(other, part) for other in window.ranks if other != rank)
    return f"rank {rank}'s {part}", f"{seconds(mean)}, others {seconds(others)}"


def _of_apply(window: Window, apply_s: float, step_s: float) -> tuple[str, str]:
    work = {shard: means["aggregate_s"] + means["apply_s"] for shard, means in window.shards.items()}
    shard = _apart(work)
    return "servers' apply" if shard is None else f"shard {shard}'s apply", _of(apply_s, step_s)


def _of_transfers(window: Window, transfer_s: float) -> tuple[str, str]:
    ranks = [_rank_floor_s(window, way) for way in ("push", "pull")]
    floors = {shard: [_floor_s(window, shard, way) for way in ("ingress", "egress")] for shard in window.shards}
    if max(map(sum, (ranks, *floors.values()))) >= EXPLAINS * transfer_s:
        longest = {shard: max(ways) for shard, ways in floors.items()}
        if max(ranks) > max(longest.values(), default=0.0):
            return _rank_links(window, transfer_s)
        shard = _apart(longest) if len(longest) > 1 else next(iter(longest))
        return _all_links(window) if shard is None else _of_shard(window, shard)
    if _payload_bytes(window) < LATENCY_BYTES:
        return "latency of the exchange", f"{size(_payload_bytes(window))} per rank and shard in {seconds(transfer_s)}"
    busy = {shard: means["busy_s"] for shard, means in window.shards.items()}
    shard = _apart(busy)
    if shard is not None and busy[shard] >= EXPLAINS * transfer_s:
        return _of_shard(window, shard)
    return _rank_link(window) or ("transport of all shards", _both_ways(window, transfer_s))


def _of_shard(window: Window, shard: int) -> tuple[str, str]:
    means, link = window.shards[shard], window.links.get(shard)
    times = {
        "ingress": max(means["push_s"], _floor_s(window, shard, "ingress")),
        "egress": max(means["pull_s"], _floor_s(window, shard, "egress")),
    }
    way = max(times, key=lambda way: _floor_s(window, shard, way) if link else times[way])
    rate = means[f"{way}_bytes"] / times[way] if times[way] else 0.0
    return f"shard {shard} {way}", f"{megabytes_per_s(rate)}{f' of {megabytes_per_s(link)}' if link else ''} MB/s"


def _all_links(window: Window) -> tuple[str, str]:
    phrases = [_of_shard(window, shard) for shard in sorted(window.shards)]
    way = phrases[0][0].rpartition(" ")[2]
    return f"{way} of all shards", f"{phrases[0][1]} each"


def _rank_links(window: Window, transfer_s: float) -> tuple[str, str]:
    """The ranks' own links, or one that is thinner than those of the others."""
    assert window.rank_link
    rate = sum(_rank_floor_s(window, way) for way in ("push", "pull")) * window.rank_link / transfer_s / 2
    rank = _apart({rank: 1 / link if link else 0.0 for rank, link in window.rank_links.items()})
    whose = "links of all workers" if rank is None else f"rank {rank}'s link"
    return whose, f"{megabytes_per_s(rate)} of {megabytes_per_s(window.rank_link)} MB/s each way"


def _rank_link(window: Window) -> tuple[str, str] | None:
    """A rank whose transfers take more than twice as long as those of the others, which wait for it."""
    times = {rank: window.part_s(rank, "transfers") for rank in window.ranks}
    rank = _apart(times, 1 / EXPLAINS)
    if rank is None:
        return None
    others = statistics.median(value for other, value in times.items() if other != rank)
    return f"rank {rank}'s transfers", f"{seconds(times[rank])}, others {seconds(others)}"


def _floor_s(window: Window, shard: int, way: str) -> float:
    """Seconds that the shard's bytes take at the rate of its link; 0 if that is not known."""
    link = window.links.get(shard)
    return window.shards[shard][f"{way}_bytes"] / link if link else 0.0


def _rank_floor_s(window: Window, way: str) -> float:
    """Seconds that one rank's bytes take at the rate of its link; 0 if that is not known."""
    num_bytes = sum(means[f"{way}_bytes"] for means in window.shards.values()) / max(1, len(window.ranks))
    return num_bytes / window.rank_link if window.rank_link else 0.0


def _payload_bytes(window: Window) -> float:
    """Of one rank to or from one shard, the larger of the two."""
    names = ("ingress_bytes", "egress_bytes", "push_bytes", "pull_bytes")
    return max((means[name] for means in window.shards.values() for name in names), default=0.0) / max(1, len(window.ranks))


def _both_ways(window: Window, transfer_s: float) -> str:
    rates = [sum(means[f"{way}_bytes"] for means in window.shards.values()) / transfer_s for way in ("ingress", "egress")]
    return f"{megabytes_per_s(rates[0])} MB/s in, {megabytes_per_s(rates[1])} MB/s out"


def _apart(times: Mapping[int, float], factor: float = APART) -> int | None:
    """The key whose time is `factor` times the median of the others; None if there is none, or nothing to compare with."""
    if len(times) < 2:
        return None
    longest = max(times, key=lambda key: times[key])
    others = statistics.median(value for key, value in times.items() if key != longest)
    return longest if times[longest] > factor * others else None


def _of(value: float, step_s: float) -> str:
    return f"{seconds(value)} of {seconds(step_s)}"
