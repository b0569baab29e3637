"""Settings of the worker side, one frozen dataclass per section of the config file."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ps.config import CommConfig, MetricsConfig, OptimizerConfig, Saving, ScheduleConfig, SecurityConfig, Timeouts
from ps.credentials import Credentials, Tls
from workers.stages.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained for how long, on which batches."""

    epochs: int = 10
    """Passes over the training data, >= 1."""
    max_steps: int | None = None
    """Ends the run after so many steps even within an epoch, >= 1. None: `epochs` decides."""
    seed: int = 0
    """Seeds the model, the shuffling and every generator handed to the task, >= 0."""
    batch_size: int | None = None
    """Samples of one worker in one micro-batch, >= 1. Exactly one of this and `global_batch_size`."""
    global_batch_size: int | None = None
    """Samples of all workers in one step, accumulation included, >= 1."""
    accumulate: int = 1
    """Micro-batches of a step whose gradients are added before the push, >= 1."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of the floating-point parameters."""
    num_threads: int = 1
    """Threads that torch uses inside one operation of a worker, >= 1. Another number may change bits."""
    data_workers: int = 0
    """Threads of every worker that prepare batches ahead of their use, >= 0; the bits stay the same. 0: each batch is made when it is needed."""
    autocast: Literal["none", "bfloat16"] = "none"
    """`bfloat16`: training's forward and loss use bf16 where torch's autocast deems it safe; weights, gradients and validation keep `dtype`."""
    exact: bool = True
    """The run ends if a process that was started again computes another gradient than before; on a GPU, if an operation has no deterministic
    form. False: the first contribution stands, and the run's bits may depend on who died when."""
    overlap: bool = True
    """Gradients leave while backward goes on, and the next forward starts layer by layer; the bits stay the same. False: everything after
    backward, and at the start."""
    validate_every: int = 1
    """Epochs or steps, as `validate_unit` says, between two validation phases, >= 1; the run ends with one in any case."""
    validate_unit: Literal["epoch", "step"] = "epoch"
    """What `validate_every` counts."""
    loop: str | None = None
    """The user's own loop in place of a task: "package.module:function" or "path/file.py:function". None: a task."""
    init: str | None = None
    """Safetensors file with the model's initial values by name, readable on every worker's host. None: as the model builds itself from `seed`."""

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.global_batch_size is None):
            raise ValueError("train: set exactly one of train.batch_size (per worker) and train.global_batch_size")
        for name in ("epochs", "max_steps", "batch_size", "global_batch_size", "accumulate", "num_threads", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} = {value} is out of range: >= 1")
        for name in ("seed", "data_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} = {getattr(self, name)} is out of range: >= 0")
        if self.loop is not None:
            self._check_own_loop()
        if self.seed >= 1 << 63:
            raise ValueError(f"train.seed = {self.seed} is out of range: < 2**63")
        if self.autocast != "none" and self.dtype != "float32":
            raise ValueError(f'train.autocast = "{self.autocast}" needs train.dtype = "float32", not "{self.dtype}"')

    def _check_own_loop(self) -> None:
        """What only the loop of a task reads must not seem to act."""
        for name in ("dtype", "data_workers", "autocast", "validate_every", "validate_unit"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"train.{name} is for tasks: an own loop (train.loop) does that itself, leave the key out")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How a model is split over the stages of a rank (`scaling.num_stages`)."""

    balance: Literal["bytes", "time"] | tuple[int, ...] = "bytes"
    """"bytes": the stage with most parameters has as few as can be; "time": the one that computes longest as little, by operations and bytes
    counted on one micro-batch; or the first block of every stage after the first, ascending, for
    example [2, 5]."""
    micro_batches: int = 1
    """Parts into which each micro-batch of `train` is cut once more, >= 1: more of them keep stages busier. Gradients are added up; the step's
    samples stay the same."""
    schedule: Schedule = "1f1b"
    """Order of a stage's passes over micro-batches: "1f1b": one forward, one backward; "gpipe": all forward, then all backward, with the
    activations of all of them held. The same bits."""
    recompute: bool = False
    """Stages before the last keep of each micro-batch only what came in, and compute the rest once more for its backward: less memory, more
    compute, the same bits."""

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ValueError(f"pipeline.micro_batches = {self.micro_batches} is out of range: >= 1")


@dataclass(frozen=True, kw_only=True)
class RivalSettings:
    """What a worker needs to take the same steps under DDP too, for `pserver compare`."""

    store_address: str
    """"host:port" of the store that the driver serves: where ranks meet, and leave their records."""
    num_steps: int
    """Steps of each of the two."""
    schedule: ScheduleConfig
    """As the servers have it."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """All that one worker process needs; travels as JSON on its standard input or through Ray."""

    run_id: str
    """Unique name of the run."""
    generation: int = 1
    """Generation of the run."""
    token: str | None = field(default=None, repr=False)
    """Token of this member. None: it has a certificate."""
    tls: Tls | None = None
    """Certificate of this member. None: it has a token."""
    rank: int
    """This worker, 0 <= rank < num_workers."""
    num_workers: int
    """Ranks of the run."""
    stage: int = 0
    """Part of the rank, 0 <= stage < num_stages."""
    num_stages: int = 1
    """Members that share each rank's model."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    host: str = "127.0.0.1"
    """Address to bind where the stage before calls; unused by first stages."""
    token_before: str | None = field(default=None, repr=False)
    """Token of the stage before. None: there is none, or it has a certificate."""
    num_servers: int
    """Servers of the run."""
    gpus: float = 0.0
    """GPUs that every worker was promised; below 1 a part of one, 0: the model is on the CPU."""
    control_address: str
    """"host:port" of the driver."""
    task: str | None = None
    """Shipped name ("digits") or import path ("package.module:Class") of the task."""
    task_fields: dict[str, Any] = field(default_factory=dict)
    """Values of the task's fields, as the config file gives them."""
    train: TrainConfig
    slowdown: float = 1.0
    """Forward and backward take so many times as long, >= 1."""
    rival: RivalSettings | None = None
    """Compare with DDP in place of training. None: train."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    saving: Saving | None = None
    """None: there are no checkpoints."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def number(self) -> int:
        """By which the run's worker processes are told apart."""
        return self.rank * self.num_stages + self.stage

    @property
    def credentials(self) -> Credentials:
        """What the worker shows to servers and driver."""
        return Credentials(run_id=self.run_id, token=self.token, tls=self.tls)
