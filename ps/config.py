"""Settings of the server side and of the wire, one frozen dataclass per section of the config file."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from ps.addresses import check_interface, parse_ports
from ps.checks import require
from ps.credentials import Credentials, Tls, token_of
from ps.groups import GroupConfig
from ps.recipe import OptimizerConfig, ScheduleConfig
from ps.roles import Role

__all__ = [
    "CheckpointConfig",
    "CommConfig",
    "GroupConfig",
    "MetricsConfig",
    "OptimizerConfig",
    "PullFormat",
    "PushFormat",
    "Saving",
    "ScheduleConfig",
    "SecurityConfig",
    "ServerSettings",
    "Timeouts",
    "from_json",
    "parse_rate",
    "parse_seconds",
    "to_json",
]

T = TypeVar("T")
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


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """Who may talk to the run's processes."""

    allow_plaintext: bool = False
    """Talk in the clear on addresses other than loopback too, with tokens in place of certificates."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the whole state of the run is saved, for `run.resume` to go on from."""

    every_steps: int | None = None
    """Steps between two checkpoints, >= 1. None: `every_epochs` says."""
    every_epochs: int = 1
    """Epochs between two checkpoints, >= 0; 0: there are none."""
    num_to_keep: int = 2
    """The newest ones that are kept, >= 1; the one of the best version, if there is such, besides."""

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            require(self.every_steps >= 1, "checkpoint.every_steps", self.every_steps, ">= 1")
        require(self.every_epochs >= 0, "checkpoint.every_epochs", self.every_epochs, ">= 0")
        require(self.num_to_keep >= 1, "checkpoint.num_to_keep", self.num_to_keep, ">= 1")

    def is_due(self, version: int, steps_per_epoch: int) -> bool:
        """Whether there shall be a checkpoint of `version`."""
        every = self.every_steps or self.every_epochs * steps_per_epoch
        return every > 0 and version > 0 and version % every == 0


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Endpoints for monitoring; unencrypted, for whoever reaches them."""

    port: int | None = None
    """The driver serves http://host:port/metrics for Prometheus, server S the S-th port after it, worker R the R-th after those; inside Ray,
    servers and workers hand their metrics to Ray's own agent instead. None: there are none."""
    host: str = "127.0.0.1"
    """Address to listen on; "0.0.0.0": all of a host."""

    def __post_init__(self) -> None:
        if self.port is not None:
            require(1 <= self.port <= 65535, "metrics.port", self.port, "1 <= value <= 65535")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where a process leaves its part of checkpoints."""

    config: CheckpointConfig
    file: tuple[str, str] | None
    """Path of the part, before the version and after it. None: it is brought to the driver."""
    restored: int | None = None
    """Version that the run goes on from. None: it begins at 0."""

    def is_due(self, version: int, steps_per_epoch: int) -> bool:
        """Whether the process saves its part of `version`."""
        return self.config.is_due(version, steps_per_epoch) and version != self.restored


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Every deadline of the system, in seconds."""

    connect_s: float = 10.0
    """Until a channel to a living server stands."""
    control_s: float = 10.0
    """One call to the driver or to a server's control port."""
    heartbeat_s: float = 1.0
    """Between two signs of life of a process."""
    orphan_after_s: float = 20.0
    """A process that cannot reach the driver for so long ends and removes its memory."""
    frozen_after_s: float = 30.0
    """A process that exists but gives no sign of life for so long, nor uses the processor, is killed and started again; named after a third."""
    barrier_log_s: float = 10.0
    """A barrier that waits longer logs who is missing; it never gives up while all members live."""
    start_s: float = 120.0
    """Until all processes of a run have registered."""
    stop_s: float = 3.0
    """From the request to stop to kill -9."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """All that one server process needs; travels as JSON on its standard input or through Ray."""

    run_id: str
    """Unique name of the run; every call must carry it."""
    generation: int = 1
    """Generation of the run."""
    secret: str | None = field(default=None, repr=False)
    """Secret of the run: the tokens of all roles are made from it. Exactly one of this and `tls`."""
    tls: Tls | None = None
    """The server's certificate: every caller must have one of the same authority."""
    shard: int
    """Shard to hold."""
    num_servers: int
    """Servers of the run."""
    num_workers: int
    """Ranks of the run."""
    num_stages: int = 1
    """Members that share each rank's model, >= 1."""
    control_address: str | None = None
    """"host:port" of the driver. None: started by hand, lives until SIGTERM or Stop."""
    host: str = "127.0.0.1"
    """Address to bind."""
    data_port: int = 0
    """Port of the data streams; 0: any free one."""
    control_port: int = 0
    """Port of health, Join and Stop; 0: any free one."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    exact: bool = True
    """`train.exact`: a contribution that comes again with other bytes ends the run. False: the first one stands."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    saving: Saving | None = None
    """None: there are no checkpoints."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        require(0 <= self.shard < self.num_servers, "shard", self.shard, f"0 <= value < {self.num_servers}")
        for name in ("num_workers", "num_stages"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        if bool(self.secret) == (self.tls is not None):
            raise ValueError("set exactly one of secret (callers have tokens) and tls (callers have certificates)")

    @property
    def num_members(self) -> int:
        """Processes that push."""
        return self.num_workers * self.num_stages

    @property
    def credentials(self) -> Credentials:
        """What the server shows to the driver."""
        token = None if self.secret is None else token_of(self.secret, Role("server", self.shard))
        return Credentials(run_id=self.run_id, token=token, tls=self.tls)


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


def to_json(value: object) -> str:
    """JSON text of a settings dataclass."""
    return _adapter(type(value)).dump_json(value).decode()


def from_json(cls: type[T], text: str | bytes) -> T:
    """The settings dataclass `cls` from JSON text, checked."""
    found: T = _adapter(cls).validate_json(text)
    return found


_adapters: dict[type[Any], TypeAdapter[Any]] = {}
"""One for each class: to make one takes far longer than what it does."""


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]
