"""Settings of the wire: the section `comm` of the config file."""

import re
from dataclasses import dataclass, field
from typing import Literal

from ps.addresses import check_interface, parse_ports
from ps.checks import require

LONGEST_FRAME_BYTES = 12 << 20
"""That may be asked for: a message of gRPC holds it, headers included."""
SHARED_FRAME_BYTES = 16 << 20
PushFormat = Literal["fp32", "bf16", "fp16", "int8", "topk"]
PullFormat = Literal["fp32", "bf16", "fp16"]
EXACT = "fp32"
"""The format that is none: elements in their own type. Empty in a frame's header."""
CAST_BYTES = 2
"""Of every element in bf16 and fp16."""


@dataclass(frozen=True, kw_only=True)
class CommConfig:
    """How frames travel."""

    frame_bytes: int | None = None
    """Payload of a frame, 4 KiB to 12 MiB; rounded down to whole chunks, at least one. None: 16 MiB where it stays in shared memory, else
    what suits the link: 32 KiB to 4 MiB, from its rate as each worker measures it when it joins."""
    window_frames: int | None = None
    """Frames a worker may have on their way to all shards together, >= 1; where all payload stays in shared memory there is no bound.
    None: what suits the link, 8 to 64, from its rate and delay."""
    out_of_order_bytes: int = 32 << 20
    """Payload a shard keeps of ranks whose turn in the sum has not come, >= 0; when full it stops reading from them."""
    push_format: PushFormat = "fp32"
    """How gradients travel: as they are ("fp32", whatever their type), cast to 2 bytes each ("fp16" saturates at ±65504), as one byte
    each beside a scale per chunk ("int8", rounded at random), or the largest of every chunk only ("topk"). What int8 and topk leave out is
    added to the next step's. Sums and updates keep the parameters' type."""
    topk_fraction: float = 0.01
    """Part of the elements that "topk" sends, about, 0 < topk_fraction <= 1; 6 bytes each, so below 0.6 to save any."""
    pull_format: PullFormat = "fp32"
    """How updated parameters travel to the workers, which compute and validate with what arrives; servers, checkpoints and exports stay exact."""
    shared_memory: bool = True
    """Payload between a worker and a server on one host stays in /dev/shm; not where `bandwidth` stands in for a link."""
    bandwidth: str | None = None
    """Rate of every process's link in each direction, for example "200mbit", kept by what `shaping` says. None: not shaped."""
    server_bandwidth: dict[int, str] = field(default_factory=dict)
    """Rate of single servers by shard, in place of `bandwidth`."""
    worker_bandwidth: dict[int, str] = field(default_factory=dict)
    """Rate of single workers by number (rank, or rank * stages + stage), in place of `bandwidth`."""
    shaping: Literal["streams", "links"] = "streams"
    """What keeps to these rates: "streams": a token bucket in each process's streams, which stands in for a link; "links": the hosts' links,
    which have these rates by themselves, as in `pserver simulate`, so that bottlenecks are named by them."""
    latency: str | None = None
    """How much longer every frame travels, one way, for example "2ms": it waits so long in the worker. Not between processes that share
    memory, nor for calls that are no frames. None: as long as it travels."""
    interface: str | None = None
    """Where processes listen: an interface's name ("eth1"), an IPv4 address or a network ("10.1.0.0/16"). None: loopback, or Ray's node address."""
    port_range: str | None = None
    """Ports they listen on, for example "20000-20100": two per server and one for the driver on each host. None: any free ones."""

    def __post_init__(self) -> None:
        if self.frame_bytes is not None:
            require(4096 <= self.frame_bytes <= LONGEST_FRAME_BYTES, "comm.frame_bytes", self.frame_bytes, "4096 <= value <= 12582912")
        if self.window_frames is not None:
            require(self.window_frames >= 1, "comm.window_frames", self.window_frames, ">= 1")
        require(0 < self.topk_fraction <= 1, "comm.topk_fraction", self.topk_fraction, "0 < value <= 1")
        require(self.out_of_order_bytes >= 0, "comm.out_of_order_bytes", self.out_of_order_bytes, ">= 0")
        for key, rate in self._rates():
            try:
                parse_rate(rate)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        if self.latency is not None:
            try:
                parse_seconds(self.latency)
            except ValueError as error:
                raise ValueError(f"comm.latency: {error}") from error
        if self.interface is not None:
            check_interface(self.interface)
        try:
            _ = self.ports
        except ValueError as error:
            raise ValueError(f"comm.port_range: {error}") from error

    def _rates(self) -> list[tuple[str, str]]:
        """All rates that are set, by key."""
        single = {"server_bandwidth": self.server_bandwidth, "worker_bandwidth": self.worker_bandwidth}
        found = [(f"comm.{key}.{index}", rate) for key, rates in single.items() for index, rate in rates.items()]
        return found if self.bandwidth is None else [("comm.bandwidth", self.bandwidth), *found]

    @property
    def ports(self) -> range | None:
        """The ports of `port_range`."""
        return None if self.port_range is None else parse_ports(self.port_range)

    @property
    def measures_link(self) -> bool:
        """Whether a worker must know its link to choose its frames."""
        return self.frame_bytes is None or self.window_frames is None

    @property
    def may_share(self) -> bool:
        """Whether payload may stay in shared memory: streams that stand in for a link would be bypassed."""
        return self.shared_memory and not self.shapes_streams

    @property
    def shapes_streams(self) -> bool:
        """Whether token buckets keep streams to a rate."""
        return self.shaping == "streams" and bool(self._rates())

    def link_bytes_per_s(self, shard: int | None = None, *, worker: int | None = None) -> float | None:
        """Rate of the link of server `shard`, of `worker` by its number or of any worker in bytes/s; None if it is not shaped."""
        single = self.server_bandwidth.get(shard) if shard is not None else None if worker is None else self.worker_bandwidth.get(worker)
        rate = single or self.bandwidth
        return None if rate is None else parse_rate(rate)

    def bucket_bytes_per_s(self, shard: int | None = None, *, worker: int | None = None) -> float | None:
        """Rate to which the process keeps its streams itself; None if it does not."""
        return self.link_bytes_per_s(shard, worker=worker) if self.shapes_streams else None

    @property
    def latency_s(self) -> float:
        """Seconds that frames wait, one way."""
        return 0.0 if self.latency is None else parse_seconds(self.latency)


def parse_rate(text: str) -> float:
    """Bytes/s of a rate such as "200mbit", "1gbit", "500kbit" (decimal units, as `tc` reads them)."""
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    for unit, factor in units.items():
        number = text.strip().lower().removesuffix(unit)
        if number != text.strip().lower():
            try:
                rate = float(number) * factor / 8
            except ValueError:
                break
            if rate > 0:
                return rate
    raise ValueError(f"{text!r} is no rate: write a number above 0 and kbit, mbit or gbit, for example 200mbit")


def parse_seconds(text: str) -> float:
    """Seconds of a time such as "2ms", "500us" or "0.1s"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no time: write a number and us, ms or s, for example 2ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
