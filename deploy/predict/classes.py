"""Equal members taken together: a class of workers or servers is simulated as one member that counts several times. Pure.

A class is a stretch of consecutive ranks (or shards) with the same links, speed and neighbours, so that the order of ranks stays
what it is. Members rotate: rank r begins with shard r mod S, so in one turn every server of a class hears from equally many workers. Members
of one kind make several classes all the same: servers answer one rank after the other, so the first begin their next step before the last,
and drift apart until some servers have more to do at once than others.
"""

import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import NamedTuple

from deploy.predict.scenario import Layers, Scenario
from ps.codecs import wire_bytes
from ps.layout import Rule

MOST_FRAMES = 128
"""Of a server, about: more than these are simulated several at a time."""
MANY = 256
"""Workers, or servers: members of so many differ less from each other than those of few."""
MOST_PAIRS, MOST_PUSHED = 64 * 16, 1 << 15
"""Workers times servers, and frames that all workers push in a step. Up to so many, every member is simulated alone."""


class Parts(NamedTuple):
    """Classes that equal workers, and equal servers, are divided into, if there are so many."""

    workers: int
    servers: int


EVERY = Parts(sys.maxsize, sys.maxsize)
"""Every member alone, and every frame."""
FINE = Parts(16, 16)
"""Half as many of a kind that has more than MANY members."""
ROUGH = Parts(8, 4)
"""To compare scenarios with: some are a few percent off, and take a sixth of the events."""


@dataclass(frozen=True)
class Frame:
    """One frame of every server of a class."""

    exact_bytes: float
    push_bytes: float
    """Payload as it travels."""
    pull_bytes: float
    layers: tuple[int, ...]
    """Of its tensors: backward completes it with the first of them, which is also the first to need it."""
    stage: int = 0
    """Who pushes it."""

    together: int = 1
    """It stands for so many frames, one after the other; sizes are those of one."""


@dataclass(frozen=True)
class WorkerClass:
    """Workers `first`, `first + apart`, …, so many: of consecutive ranks, or the same stage of them."""

    first: int
    count: int
    slowness: float
    """How many times as long its compute takes."""
    link_bytes_per_s: float
    host: int
    """Hosts of the class, by their number; its link is the host's."""
    stage: int = 0
    apart: int = 1


@dataclass(frozen=True)
class ServerClass:
    """Shards `first` to `first + count − 1`."""

    first: int
    count: int
    slowness: float
    """How many times as long its work takes."""
    link_bytes_per_s: float
    host: int
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class RackClass:
    """Racks `first` to `first + count − 1`."""

    first: int
    count: int
    workers: tuple[int, ...]
    """Classes of workers in these racks, in rank order."""


@dataclass(frozen=True)
class Classes:
    """All members; class 0 of either kind comes first in rank order."""

    workers: tuple[WorkerClass, ...]
    servers: tuple[ServerClass, ...]
    """Those that hold something."""
    hosts: tuple[int, ...]
    """How many hosts every host class has."""
    cores: tuple[float, ...]
    """Of each host of the class."""
    racks: tuple[RackClass, ...] = ()


def fine_parts(scenario: Scenario) -> Parts:
    """With more classes the step is the same to a percent."""
    if _are_few(scenario):
        return EVERY
    counts = scenario.num_workers, scenario.num_servers
    return Parts(*(parts if count <= MANY else parts // 2 for parts, count in zip(FINE, counts, strict=True)))


def classes_of(scenario: Scenario, layers: Layers, parts: Parts) -> Classes:
    together = parts != EVERY
    colocated = scenario.hosts == "colocated"
    num_stages = scenario.num_stages

    def worker_key(number: int) -> Hashable:
        shard = number if colocated and number < scenario.num_servers else None
        return scenario.worker_link(number), shard is None or scenario.server_link(shard), shard is None

    def rank_key(rank: int) -> Hashable:
        alone = None if together and (num_stages == 1 or not colocated) else rank
        return scenario.stragglers.get(rank, 1.0), *map(worker_key, range(rank * num_stages, (rank + 1) * num_stages)), alone

    def server_key(shard: int) -> Hashable:
        alone = None if together else shard
        return scenario.server_link(shard), scenario.slow_servers.get(shard, 1.0), scenario.server_cores.get(shard), alone

    keys = [rank_key(rank) for rank in range(scenario.num_workers)]
    racks = rack_classes(keys, scenario.racks.size, parts.workers, together=together) if scenario.racks else ()
    ranks = [group for groups, _ in racks for group in groups] if racks else _groups(keys, parts.workers)
    worker_groups = [(rank * num_stages + stage, count) for rank, count in ranks for stage in range(num_stages)]
    server_groups = _groups([server_key(shard) for shard in range(scenario.num_servers)], parts.servers)
    if colocated:  # a host's worker and server are of one class each
        server_groups = [group for group in worker_groups if group[0] < scenario.num_servers]
    hosts: list[int] = [1] if scenario.hosts == "one" else [count for _, count in worker_groups]
    cores = [scenario.cores_per_host] * len(hosts)
    workers = []
    for i, (first, count) in enumerate(worker_groups):
        link = scenario.worker_link(first)
        if colocated and first < scenario.num_servers:
            link = min(link, scenario.server_link(first))
        slowness, host = scenario.stragglers.get(first // num_stages, 1.0), 0 if scenario.hosts == "one" else i
        workers.append(WorkerClass(first, count, slowness, link, host, first % num_stages, num_stages))
    servers = []
    for first, count in server_groups:
        if colocated:
            host = next(worker.host for worker in workers if worker.first == first)
        elif scenario.hosts == "one":
            host = 0
        else:
            host = len(hosts)
            hosts.append(count)
            cores.append(scenario.server_cores.get(first, scenario.cores_per_host))
        if frames := _frames(scenario, layers, range(first, first + count)):
            servers.append(ServerClass(first, count, scenario.slow_servers.get(first, 1.0), scenario.server_link(first), host, frames))
    return Classes(tuple(workers), tuple(servers), tuple(hosts), tuple(cores), _numbered(racks))


def _are_few(scenario: Scenario) -> bool:
    """Whether all members can be simulated one by one, in about a minute at most."""
    if scenario.num_members * scenario.num_servers > MOST_PAIRS:
        return False
    frames = sum(len(shard.frames(scenario.pacing.frame_bytes)) for shard in scenario.layout.shards)
    return scenario.num_workers * frames <= MOST_PUSHED


def rack_classes(keys: Sequence[Hashable], size: int, num_parts: int, *, together: bool) -> Sequence[tuple[list[tuple[int, int]], tuple[int, int]]]:
    """Of every class of racks: its classes of workers, and itself, each by first and count. Racks of equal workers make a class; a rack that is
    a class by itself may have several classes of workers."""
    whole = [keys[start : start + size] for start in range(0, len(keys), size)]
    alike = [(len(rack), rack[0]) if together and len(set(rack)) == 1 else number for number, rack in enumerate(whole)]
    found = []
    for first, count in _groups(alike, num_parts):
        start, members = first * size, sum(map(len, whole[first : first + count]))
        within = math.ceil(2 * num_parts / len(whole)) if count == 1 else 1
        groups = _groups(keys[start : start + members], within)
        found.append(([(start + at, length) for at, length in groups], (first, count)))
    return found


def _numbered(racks: Sequence[tuple[list[tuple[int, int]], tuple[int, int]]]) -> tuple[RackClass, ...]:
    found, number = [], 0
    for groups, (first, count) in racks:
        found.append(RackClass(first, count, tuple(range(number, number + len(groups)))))
        number += len(groups)
    return tuple(found)


def coarse(classes: Classes) -> Classes:
    """With neighbouring frames of servers that have very many taken together."""
    return replace(classes, servers=tuple(replace(cls, frames=_together(cls.frames)) for cls in classes.servers))


def _together(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    size = math.ceil(len(frames) / MOST_FRAMES)
    found = []
    for _, alike in groupby(frames, key=lambda frame: (frame.stage, frame.push_bytes / frame.exact_bytes, frame.pull_bytes / frame.exact_bytes)):
        its = list(alike)
        for start in range(0, len(its), size):
            group = its[start : start + size]
            mean = {name: sum(getattr(frame, name) for frame in group) / len(group) for name in ("exact_bytes", "push_bytes", "pull_bytes")}
            layers = tuple(sorted({layer for frame in group for layer in frame.layers}))
            found.append(Frame(**mean, layers=layers, stage=group[0].stage, together=len(group)))
    return tuple(found)


def _groups(keys: Sequence[Hashable], most_parts: int) -> list[tuple[int, int]]:
    """First and length of every stretch of equal keys, in up to so many parts of about the same length."""
    found, first = [], 0
    for _, members in groupby(keys):
        count = len(list(members))
        num_parts = min(count, most_parts)
        starts = [first + i * count // num_parts for i in range(num_parts + 1)]
        found += [(start, stop - start) for start, stop in pairwise(starts)]
        first += count
    return found


def _frames(scenario: Scenario, layers: Layers, shards: range) -> tuple[Frame, ...]:
    """Those of the class's largest shard, scaled so that all bytes of the class are there."""
    layout, comm = scenario.layout, scenario.comm
    sizes = [layout.shard_bytes[shard] for shard in shards]
    if not any(sizes):
        return ()
    shard = layout.shards[shards[sizes.index(max(sizes))]]
    scale = sum(sizes) / len(sizes) / max(sizes)
    frames = []
    for run in shard.frames(scenario.pacing.frame_bytes):
        if run.stop > shard.num_versioned:
            continue
        block = shard.block_of(run)
        exact = shard.payload_bytes(run) * scale
        formats = (comm.push_format, comm.pull_format) if block.rule is Rule.OPTIMIZER else ("fp32", "fp32")
        push, pull = (wire_bytes(exact, block.dtype, wire_format, comm) for wire_format in formats)
        used = tuple(sorted({layers.of_tensor[tensor] for tensor in shard.tensor[run.span].tolist()}))
        frames.append(Frame(exact, push, pull, used, block.stage))
    return tuple(frames)
