"""What holds up the exchange between workers and servers, from the means of a window: a link, a processor, the layout, or latency. Pure."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploy.measure.text import megabytes_per_s, seconds, size
from deploy.measure.window import Window

APART = 1.5
"""How many times the median of the others a shard's time must be to be named alone; half as much again is no noise."""
KNOWN_APART = 1.15
"""The same for times that follow from bytes and the rates of links."""
NEAR = 1.08
"""And below which they are as good as equal: tensors cannot be dealt more evenly."""
EXPLAINS = 0.5
"""Part of the transfers that a time must reach to be their reason."""
LATENCY_BYTES = 64 << 10
"""Payload of one rank to one shard below which bytes do not matter: half a millisecond at 1 Gbit/s, as much as two calls."""
USED_UP = 0.75
"""Part of its processors that a server must use to lack them: some of the step it waits for ranks."""
STARVED = 2.0
"""How many times as long as it is on a processor a server's work must take for want of one."""


@dataclass(frozen=True)
class Finding:
    """A resource by name, its evidence, and how many times the weight of whatever else might be named it has."""

    resource: str
    evidence: str
    margin: float


def of_apply(window: Window, apply_s: float) -> Finding:
    """The servers' sums and updates hold up the step for so long."""
    work = {shard: means["aggregate_s"] + means["apply_s"] for shard, means in window.shards.items()}
    shard = _apart(work)
    if starved := _starved(window):
        return starved
    whose = "servers' apply" if shard is None else f"shard {shard}'s apply"
    return Finding(whose, f"{seconds(apply_s)} of {seconds(window.steps['step_s'])}", _clearness(work, APART))


def of_transfers(window: Window, transfer_s: float) -> Finding:
    """Bytes on their way hold up the step for so long."""
    shards = {shard: [_floor_s(window, shard, way) for way in ("ingress", "egress")] for shard in window.shards}
    ranks = {rank: [_rank_floor_s(window, rank, way) for way in ("push", "pull")] for rank in window.ranks}
    longest = max((sum(ways) for ways in (*shards.values(), *ranks.values())), default=0.0)
    if longest >= EXPLAINS * transfer_s:
        busier = [{key: max(ways) for key, ways in of.items()} for of in (shards, ranks)]
        found = _of_links(window, busier[0], busier[1], transfer_s)
        explained = max(max(of.values(), default=0.0) for of in busier)
        return found if explained >= EXPLAINS * transfer_s else replace(found, margin=1.0)  # each way is idle for more than half of the time
    busy = {shard: means["busy_s"] for shard, means in window.shards.items()}
    shard = _apart(busy)
    if starved := _starved(window):
        return starved
    if _payload_bytes(window) < LATENCY_BYTES:
        evidence = f"{size(_payload_bytes(window))} per rank and shard in {seconds(transfer_s)}"
        return Finding("latency of the exchange", evidence, LATENCY_BYTES / _payload_bytes(window) if _payload_bytes(window) else APART)
    if shard is not None and busy[shard] >= EXPLAINS * transfer_s:
        return Finding(*_of_shard(window, shard), _clearness(busy, APART))
    times = {rank: window.part_s(rank, "transfers") for rank in window.ranks}
    rank = _apart(times, 1 / EXPLAINS)
    if rank is not None:
        others = statistics.median(value for other, value in times.items() if other != rank)
        return Finding(f"{window.name(rank)}'s transfers", f"{seconds(times[rank])}, others {seconds(others)}", _clearness(times, 1 / EXPLAINS))
    margin = min(_clearness(busy, APART), _clearness(times, 1 / EXPLAINS))
    if max(_stretch(window).values(), default=0.0) >= STARVED:
        margin = 1.0  # it may as well be the processors that they all share
    return Finding("transport of all shards", _both_ways(window, transfer_s), margin)


def _of_links(window: Window, shards: Mapping[int, float], ranks: Mapping[int, float], transfer_s: float) -> Finding:
    """By the seconds that bytes take on every member's link: the longest is the limit, and whoever is near it limits too."""
    limit = max(*shards.values(), *ranks.values())
    near_shards, near_ranks = (sorted(key for key, floor_s in of.items() if floor_s * KNOWN_APART > limit) for of in (shards, ranks))
    ratios = sorted(limit / floor_s for floor_s in (*shards.values(), *ranks.values()) if floor_s)
    if len(near_shards) + len(near_ranks) == 1:
        margin = ratios[1] if len(ratios) > 1 else APART
        return Finding(*(_of_shard(window, near_shards[0]) if near_shards else _of_rank(window, near_ranks[0], transfer_s)), margin)
    margin = APART if all(not NEAR < ratio < KNOWN_APART for ratio in ratios) else 1.0
    if max(ranks.values(), default=0.0) > max(shards.values(), default=0.0):
        rank = near_ranks[0] if len(near_ranks) == 1 and len(ranks) > 1 else None
        whose, evidence = _of_rank(window, near_ranks[0] if rank is None else rank, transfer_s)
        return Finding("links of all workers" if rank is None else whose, evidence, margin)
    phrases = [_of_shard(window, shard) for shard in sorted(window.shards)]
    if len(phrases) == 1:
        return Finding(*phrases[0], margin)
    way = phrases[0][0].rpartition(" ")[2]
    return Finding(f"{way} of all shards", f"{phrases[0][1]} each", margin)


def _of_shard(window: Window, shard: int) -> tuple[str, str]:
    """Its link, or the layout if it has more bytes than the others rather than less of a link."""
    means, link = window.shards[shard], window.links.get(shard)
    times = {
        "ingress": max(means["push_s"], _floor_s(window, shard, "ingress")),
        "egress": max(means["pull_s"], _floor_s(window, shard, "egress")),
    }
    way = max(times, key=lambda way: _floor_s(window, shard, way) if link else times[way])
    rate = _away(window, shard, f"{way}_bytes") / times[way] if times[way] else 0.0
    phrase = f"{megabytes_per_s(rate)}{f' of {megabytes_per_s(link)}' if link else ''} MB/s"
    held = {other: its["push_bytes"] for other, its in window.shards.items()}
    others = [num_bytes for other, num_bytes in held.items() if other != shard]
    if others and held[shard] > KNOWN_APART * max(others) and not _is_thinner(window, shard):
        return "layout", f"shard {shard} has {size(held[shard])} of a step, others {size(statistics.median(others))}: {way} {phrase}"
    return f"shard {shard} {way}", phrase


def _is_thinner(window: Window, shard: int) -> bool:
    """Whether a shard's link is thinner than those of others, which may have no limit, by more than it has more bytes than they."""
    if not (link := window.links.get(shard)):
        return False
    rates = [rate or math.inf for other, rate in window.links.items() if other != shard]
    sizes = [means["push_bytes"] for other, means in window.shards.items() if other != shard]
    return statistics.median(rates) / link > window.shards[shard]["push_bytes"] / statistics.median(sizes)


def _of_rank(window: Window, rank: int, transfer_s: float) -> tuple[str, str]:
    link = window.rank_links[rank]
    assert link
    floors = [_rank_floor_s(window, rank, way) for way in ("push", "pull")]
    rate = sum(floors) * link / max(transfer_s, *floors) / 2  # what is hidden behind compute takes its time too
    return f"{window.name(rank)}'s link", f"{megabytes_per_s(rate)} of {megabytes_per_s(link)} MB/s each way"


def _starved(window: Window) -> Finding | None:
    """The server whose work waits for a processor, if that is why its ranks wait: it has used up what it may have, or its processor time, stretched
    like its work, fills their waits."""
    if used_up := _used_up(window):
        return used_up
    stretch = _stretch(window)
    shard = max(stretch, key=lambda shard: stretch[shard], default=None)
    if shard is None or stretch[shard] < STARVED or (len(stretch) > 1 and _apart(stretch) is None):
        return None
    means = window.shards[shard]
    if means["cpu_s"] * stretch[shard] < EXPLAINS * window.steps["exposed_s"]:
        return None
    work_s, took_s = means["work_cpu_s"], stretch[shard] * means["work_cpu_s"]
    evidence = f"{seconds(work_s)} of checks, sums and updates take {seconds(took_s)} for want of a processor"
    return Finding(f"CPU of shard {shard}'s host", evidence, _clearness(stretch, APART))


def _stretch(window: Window) -> dict[int, float]:
    """By shard: how many times as long as it is on a processor its work takes."""
    works = {shard: means["decode_s"] + means["aggregate_s"] + means["apply_s"] for shard, means in window.shards.items()}
    return {shard: work / window.shards[shard]["work_cpu_s"] for shard, work in works.items() if window.shards[shard]["work_cpu_s"]}


def _used_up(window: Window) -> Finding | None:
    """The server, or all of them, whose work takes all that it may have of processors."""
    used = {shard: means["used"] for shard, means in window.shards.items()}
    shard = max(used, key=lambda shard: used[shard], default=None)
    if shard is None or used[shard] < USED_UP:
        return None
    is_alone = len(used) == 1 or _apart(used) is not None
    if not is_alone and min(used.values()) < USED_UP:
        return None
    means = window.shards[shard]
    evidence = f"{seconds(means['cpu_s'])} of work for {means['cores']:.2g} of a processor: {used[shard]:.0%} of the step"
    return Finding(f"CPU of shard {shard}'s host" if is_alone else "CPU of all servers' hosts", evidence, _clearness(used, APART))


def _floor_s(window: Window, shard: int, way: str) -> float:
    """Seconds that the shard's bytes take at the rate of its link; 0 if that is not known."""
    link = window.links.get(shard)
    return _away(window, shard, f"{way}_bytes") / link if link else 0.0


def _rank_floor_s(window: Window, rank: int, way: str) -> float:
    """Seconds that one rank's bytes take at the rate of its link; 0 if that is not known."""
    link = window.rank_links.get(rank)
    num_bytes = sum(_away(window, shard, f"{way}_bytes") for shard in window.shards) / max(1, len(window.ranks))
    return num_bytes / link if link else 0.0


def _away(window: Window, shard: int, name: str) -> float:
    """Of a shard's bytes, those of ranks that are not on its host."""
    means = window.shards[shard]
    return means[name] * (1 - means["local"])


def _payload_bytes(window: Window) -> float:
    """Of one rank to or from one shard, the larger of the two."""
    names = ("ingress_bytes", "egress_bytes", "push_bytes", "pull_bytes")
    return max((means[name] for means in window.shards.values() for name in names), default=0.0) / max(1, len(window.ranks))


def _both_ways(window: Window, transfer_s: float) -> str:
    rates = [sum(means[f"{way}_bytes"] for means in window.shards.values()) / transfer_s for way in ("ingress", "egress")]
    return f"{megabytes_per_s(rates[0])} MB/s in, {megabytes_per_s(rates[1])} MB/s out"


def _apart(times: Mapping[int, float], factor: float = APART) -> int | None:
    """The key whose time is `factor` times the median of the others; None if there is none, or nothing to compare with."""
    ratio, key = _lead(times)
    return key if ratio > factor else None


def _clearness(times: Mapping[int, float], factor: float) -> float:
    """How far from `factor` the lead of the longest is, either way; 1 is undecided."""
    ratio, _ = _lead(times)
    return max(ratio / factor, factor / ratio)


def _lead(times: Mapping[int, float]) -> tuple[float, int | None]:
    """How many times the median of the others the longest is, and whose it is; 1 and None without others."""
    if len(times) < 2:
        return 1.0, None
    longest = max(times, key=lambda key: times[key])
    others = statistics.median(value for key, value in times.items() if key != longest)
    return (times[longest] / others if others else math.inf if times[longest] else 1.0), longest
