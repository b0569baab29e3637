"""Settings of the server side, one frozen dataclass per section of the config file; those of the wire and of the recipe have files of their own."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ps.checks import require
from ps.comm import CommConfig, PullFormat, PushFormat
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
    "to_json",
]

T = TypeVar("T")


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
