"""The sections that belong to the driver, and the config as a whole; one frozen dataclass per section."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ps.codecs import is_lossy
from ps.config import CheckpointConfig, CommConfig, MetricsConfig, OptimizerConfig, ScheduleConfig, SecurityConfig
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from workers.config import PipelineConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is trained: the user's part."""

    name: str
    """Shipped name ("digits"), "package.module:Class" or "path/file.py:Class"."""
    fields: dict[str, Any] = field(default_factory=dict)
    """All other keys of the section: fields of the task's dataclass."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """How many processes, and what each of them gets."""

    num_workers: int = 2
    """Ranks, >= 1."""
    num_stages: int = 1
    """Worker processes of every rank, >= 1, which split its model between them; only of tasks that have `blocks`."""
    num_servers: int = 2
    """Server processes, one shard each, >= 1."""
    use_gpu: bool = False
    """One GPU for every worker; with resources_per_worker = { GPU = 0.5 } two share one."""
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    """Ray resources of one worker by name, >= 0, for example { CPU = 2 }."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: together or apart, as far as possible or strictly. Servers are spread, with STRICT_PACK all are on one node."""
    slowdown: dict[int, float] = field(default_factory=dict)
    """Ranks whose forward and backward take so many times as long, >= 1, for they wait in between: simulates slow hosts."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "num_stages", "num_servers"):
            if getattr(self, name) < 1:
                raise ValueError(f"scaling.{name} = {getattr(self, name)} is out of range: >= 1")
        for name, amount in self.resources_per_worker.items():
            if amount < 0:
                raise ValueError(f"scaling.resources_per_worker.{name} = {amount} is out of range: >= 0")
        for rank, factor in self.slowdown.items():
            if not 0 <= rank < self.num_workers:
                raise ValueError(f"scaling.slowdown.{rank} names no rank: 0 <= rank < scaling.num_workers = {self.num_workers}")
            if factor < 1:
                raise ValueError(f"scaling.slowdown.{rank} = {factor} is out of range: >= 1")

    @property
    def num_members(self) -> int:
        """Worker processes."""
        return self.num_workers * self.num_stages

    @property
    def gpus_per_worker(self) -> float:
        """Below 1: workers share a GPU."""
        return self.resources_per_worker.get("GPU", 1.0 if self.use_gpu else 0.0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run leaves its files."""

    name: str | None = None
    """Name of the run directory: letters, digits, "-", "_" and ".", the first no ".". None: date, time and task."""
    storage_path: str = "runs"
    """Folder of run directories, absolute or from the working directory."""
    shared_storage: bool = True
    """Whether every node of a Ray cluster must see `storage_path`. False: logs of processes on nodes that do not stay there, in Ray's logs,
    and parts of checkpoints travel to the driver."""
    resume: Literal["never", "auto"] = "never"
    """"auto": the run `name` (None: the newest one in `storage_path`) goes on from its last good checkpoint; without such a run a new one
    begins."""
    allow_drift: bool = False
    """A run may be resumed with settings or versions that change its bits, for example another number of workers."""
    callbacks: tuple[str, ...] = ()
    """Who is told the metrics: "tensorboard", or "package.module:make" or "path/file.py:make", a function that takes the run directory and
    returns a callable (metrics, step)."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f'run.name = {self.name!r} is no name of a folder: letters, digits, "-", "_" and ".", the first no "."')
        if not self.storage_path:
            raise ValueError('run.storage_path = "" names no folder: for example "runs"')


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """How many deaths of its processes a run outlives."""

    max_failures: int | None = None
    """Deaths of workers and servers that are made good by starting the process again, >= 0; the next one ends the run. None: any number,
    unless one process dies ten times at the same step."""

    def __post_init__(self) -> None:
        if self.max_failures is not None and self.max_failures < 0:
            raise ValueError(f"failure.max_failures = {self.max_failures} is out of range: >= 0; leave it out for any number")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole config file, checked."""

    task: TaskConfig | None = None
    train: TrainConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    failure: FailureConfig = field(default_factory=FailureConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.task is None and self.train.loop is None:
            raise ValueError('say what is trained: either a task (task.name = "digits") or your own loop (train.loop = "mine.py:train")')
        if self.task and self.train.loop is not None:
            raise ValueError(
                f'train.loop = "{self.train.loop}" with task.name = "{self.task.name}": an own loop trains without a task, '
                "leave train.loop or the section [task] out"
            )
        if self.task:
            self._check_watched()
        if self.scaling.num_stages > 1:
            self._check_stages()
        for shard in self.comm.server_bandwidth:
            if not 0 <= shard < self.scaling.num_servers:
                raise ValueError(f"comm.server_bandwidth.{shard} names no server: 0 <= shard < scaling.num_servers = {self.scaling.num_servers}")
        for number in self.comm.worker_bandwidth:
            if not 0 <= number < self.scaling.num_members:
                most = f"scaling.num_workers{' * num_stages' if self.scaling.num_stages > 1 else ''} = {self.scaling.num_members}"
                raise ValueError(f"comm.worker_bandwidth.{number} names no worker: 0 <= number < {most}")

    def _check_stages(self) -> None:
        """What ranks of one worker can do, and split ones cannot."""
        cannot = {
            "train.loop": self.train.loop is not None,
            'train.autocast = "bfloat16"': self.train.autocast != "none",
            "scaling.use_gpu or a GPU in scaling.resources_per_worker": self.scaling.gpus_per_worker > 0,
            f'comm.push_format = "{self.comm.push_format}"': is_lossy(self.comm.push_format),
        }
        for what, is_set in cannot.items():
            if is_set:
                raise ValueError(
                    f"scaling.num_stages = {self.scaling.num_stages} with {what}: ranks of several stages cannot do that, take one stage"
                )

    def _check_watched(self) -> None:
        """The names of a task's metrics begin alike, so that a wrong one shows before the first epoch has passed."""
        for key, metric in (("early_stopping.metric", self.early_stopping.metric), ("plateau.metric", self.plateau.metric)):
            if metric not in (None, "train_loss") and not str(metric).startswith("validation_"):
                raise ValueError(
                    f'{key} = "{metric}" is no metric of a task: did you mean "validation_{metric}"? '
                    "There is train_loss, validation_loss, and validation_NAME for each of its own"
                )
