"""Settings of the server side and of the wire, one frozen dataclass per section of the config file."""

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule, applied on the servers."""

    name: Literal["sgd", "adam"] = "sgd"
    """`sgd` (with `momentum` if that is above 0) or `adam` (Kingma & Ba 2015)."""
    lr: float | None = None
    """Learning rate, > 0. None: 0.01 for sgd, 0.001 for adam."""
    momentum: float = 0.0
    """Factor of the old velocity in sgd, 0 <= momentum < 1."""
    momentum_form: Literal["torch", "ema"] = "torch"
    """`torch`: v = m*v + g. `ema`: v = m*v + (1 - m)*g. Then w = w - lr*v."""
    beta1: float = 0.9
    """adam: decay of the mean of gradients, 0 <= beta1 < 1."""
    beta2: float = 0.999
    """adam: decay of the mean of squared gradients, 0 <= beta2 < 1."""
    eps: float = 1e-8
    """adam: added to the denominator, > 0."""
    weight_decay: float = 0.0
    """L2 penalty, >= 0: weight_decay * w is added to the gradient."""
    max_grad_norm: float | None = None
    """Global norm to which the mean gradient is clipped, > 0. None: no clipping."""
    nonfinite: Literal["error", "skip"] = "error"
    """What a NaN or infinity in the mean gradient does: end the run, or skip the step on every server."""

    def __post_init__(self) -> None:
        for name in ("momentum", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "0 <= value < 1")
        _require(self.lr is None or self.lr > 0, "optimizer.lr", self.lr, "> 0")
        _require(self.eps > 0, "optimizer.eps", self.eps, "> 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, ">= 0")
        _require(self.max_grad_norm is None or self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "> 0")

    @property
    def two_phase(self) -> bool:
        """Whether a step needs the norms of all shards before any of them may apply it."""
        return self.max_grad_norm is not None or self.nonfinite == "skip"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate as a function of the version."""

    name: Literal["constant", "cosine"] = "constant"
    """`constant`, or `cosine`: half a cosine from the full rate to `min_factor` of it (Loshchilov & Hutter 2017)."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value, >= 0."""
    min_factor: float = 0.0
    """cosine: last rate as a fraction of the full one, 0 <= min_factor <= 1."""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, ">= 0")
        _require(0 <= self.min_factor <= 1, "schedule.min_factor", self.min_factor, "0 <= value <= 1")


@dataclass(frozen=True, kw_only=True)
class CommConfig:
    """How frames travel."""

    frame_bytes: int = 1 << 20
    """Payload of a frame, 4 KiB to 4 MiB; rounded down to whole chunks, at least one."""
    window_frames: int = 8
    """Frames a worker may have on their way to all shards together, >= 1."""
    out_of_order_bytes: int = 256 << 20
    """Payload a shard keeps of ranks whose turn in the sum has not come, >= 0; when full it stops reading from them."""
    bandwidth: str | None = None
    """Rate of every process's link in each direction, for example "200mbit", kept by a token bucket in the streams. None: not shaped."""
    server_bandwidth: dict[int, str] = field(default_factory=dict)
    """Rate of single servers by shard, in place of `bandwidth`."""

    def __post_init__(self) -> None:
        _require(4096 <= self.frame_bytes <= 4 << 20, "comm.frame_bytes", self.frame_bytes, "4096 <= value <= 4194304")
        _require(self.window_frames >= 1, "comm.window_frames", self.window_frames, ">= 1")
        _require(self.out_of_order_bytes >= 0, "comm.out_of_order_bytes", self.out_of_order_bytes, ">= 0")
        for key, rate in [("comm.bandwidth", self.bandwidth), *((f"comm.server_bandwidth.{i}", r) for i, r in self.server_bandwidth.items())]:
            if rate is not None:
                try:
                    parse_rate(rate)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error

    def link_bytes_per_s(self, shard: int | None = None) -> float | None:
        """Rate of the link of server `shard` (None: of a worker) in bytes/s; None if it is not shaped."""
        rate = self.bandwidth if shard is None else self.server_bandwidth.get(shard, self.bandwidth)
        return None if rate is None else parse_rate(rate)


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """Who may talk to the run's processes."""

    allow_plaintext: bool = False
    """Serve without encryption on addresses other than loopback."""


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
    token: str
    """Secret of the run; every call must carry it."""
    shard: int
    """Shard to hold."""
    num_servers: int
    """Servers of the run."""
    num_workers: int
    """Ranks of the run."""
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
    security: SecurityConfig = field(default_factory=SecurityConfig)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        _require(0 <= self.shard < self.num_servers, "shard", self.shard, f"0 <= value < {self.num_servers}")
        _require(self.num_workers >= 1, "num_workers", self.num_workers, ">= 1")


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


def to_json(value: object) -> str:
    """JSON text of a settings dataclass."""
    return TypeAdapter(type(value)).dump_json(value).decode()


def from_json(cls: type[T], text: str | bytes) -> T:
    """The settings dataclass `cls` from JSON text, checked."""
    return TypeAdapter(cls).validate_json(text)


def _require(ok: bool, name: str, value: object, limit: str) -> None:
    if not ok:
        raise ValueError(f"{name} = {value!r} is out of range: {limit}")
