"""What a user's own loop works with: `def train(ctx): ...`, called in every worker."""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ps.errors import ConfigError
from ps.plan import Plan
from workers.answers import check_parameters, named, number_of
from workers.config import TrainConfig
from workers.imports import absolute_name, import_attribute
from workers.initial import load_initial
from workers.loop import plan_of
from workers.loop_spans import LoopSpans
from workers.optimizer import DistributedOptimizer
from workers.sampler import BatchPlan, Indices, sample_rng, torch_seed
from workers.session import Session
from workers.step import Contribution

Loop = Callable[["Context"], None]

_NO_METRICS = ("epoch", "step", "time_s", "digest")
"""Names that a row of metrics.jsonl has already."""


class Sampler:
    """The worker's part of every global batch; stateless, so that a step can be computed again."""

    def __init__(self, batches: BatchPlan, rank: int) -> None:
        self._batches = batches
        self._rank = rank

    def __call__(self, step: int) -> Indices:
        """Indices of this worker's samples in `step`, all micro-batches together; may be empty in the last step of an epoch."""
        parts = self._batches.micro_batches(step, self._rank)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def micro_batches(self, step: int) -> Iterator[Indices]:
        """The same samples in the parts that `train.accumulate` says, none of them empty: one backward of `loss * len(part)`
        for each, then `opt.step(weight=..., divide=True)`. Torch's generator is seeded before each of them, as for a task."""
        for index, part in enumerate(self._batches.micro_batches(step, self._rank)):
            torch.manual_seed(torch_seed(self._batches.seed, step, self._rank, index))
            yield part

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch()


class Context:
    """One worker. Call `sampler`, then `optimizer`, then iterate over `steps`; `report` is collective.

        def train(ctx):
            model = Net().to(ctx.device)
            sampler = ctx.sampler(len(data))
            opt = ctx.optimizer(model)
            for step in ctx.steps():
                batch = data[sampler(step)]
                opt.zero_grad()
                if len(batch):
                    loss_of(model, batch).backward()
                opt.step(weight=len(batch))

    Torch's generators are seeded from `train.seed` before the loop begins, the same on every rank, and by `steps` for every
    step, different on every rank.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._batches: BatchPlan | None = None
        self._optimizer: DistributedOptimizer | None = None
        self._spans: LoopSpans
        self._current: int | None = None
        """The step in whose body the loop over `steps` is."""
        self._reported: int | None = None
        """Version of the last report."""
        self._ends = False
        """The driver has said that no step follows."""

    @property
    def device(self) -> torch.device:
        """Where the model must be, and its batches: this worker's GPU with `scaling.use_gpu`, else the CPU."""
        return self._session.device

    @property
    def rank(self) -> int:
        """Logical worker, 0 <= rank < num_workers."""
        return self._session.rank

    @property
    def num_workers(self) -> int:
        """Workers of the run."""
        return self._session.settings.num_workers

    @property
    def seed(self) -> int:
        """`train.seed`: derive every generator from it and the step, so that a step can be computed again."""
        return self._session.settings.train.seed

    def rng(self, step: int, part: int = 0) -> np.random.Generator:
        """The worker's generator for augmentation in `step` (and micro-batch `part`): the one that a task's `augment` gets."""
        return sample_rng(self.seed, step, self.rank, part)

    def sampler(self, num_samples: int) -> Sampler:
        """Deals `num_samples` training samples by the `[train]` section; fixes the length of the run."""
        try:
            num_samples = operator.index(num_samples)
        except TypeError as error:
            raise ConfigError(f"ctx.sampler({named(num_samples)}): give the number of training samples, ctx.sampler(len(data))") from error
        if num_samples < 1:
            raise ConfigError(f"ctx.sampler({num_samples}): the training data is empty")
        if self._batches and self._batches.num_samples != num_samples:
            raise ConfigError(
                f"ctx.sampler({num_samples}) after ctx.sampler({self._batches.num_samples}): it deals the training samples, which fix the length "
                "of the run; to validate, take every ctx.num_workers-th sample from ctx.rank on"
            )
        settings = self._session.settings
        self._batches = BatchPlan.from_config(settings.train, settings.num_workers, num_samples)
        return Sampler(self._batches, self.rank)

    def optimizer(self, model: nn.Module) -> DistributedOptimizer:
        """Joins the servers with the model (the same on every rank) and returns its optimizer. Once.

        The model takes the values of `train.init`, if that is set. Raises ConfigError without a sampler unless
        `train.max_steps` says how long the run is, and ModelMismatch.
        """
        if self._optimizer:
            raise ConfigError("ctx.optimizer(model) was called twice: a run trains one model; put several networks into one nn.ModuleDict")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"ctx.optimizer({named(model)}): give the model itself, ctx.optimizer(model); what it updates has requires_grad")
        check_parameters(model)
        init = self._session.settings.train.init
        plan = self._plan()
        if init is not None:
            load_initial(model, Path(init))
        self._session.bind(model, plan, own_loop=True)
        self._spans = LoopSpans(model, self._session.spans)
        self._optimizer = DistributedOptimizer(model, self._begin, self._step)
        return self._optimizer

    def _plan(self) -> Plan:
        config = self._session.settings.train
        if self._batches:
            plan = plan_of(config, self._batches)
            return Plan(plan.steps_per_epoch, plan.total_steps, own_loop=True)
        if config.max_steps is None:
            raise ConfigError("ctx.optimizer(model) needs the length of the run: call ctx.sampler(len(data)) before it, or set train.max_steps")
        return Plan(config.max_steps, config.max_steps, own_loop=True)

    def _begin(self, weight: float, divide: bool) -> None:
        session = self._session
        self._check_may_step()
        self._spans.begins()
        sums = (0.0, weight, weight, 1.0 if self.rank == 0 else 0.0) if weight else None
        session.pushes.begin(session.version, sums, weight=weight, divide=divide)

    def _step(self, weight: float) -> None:
        session = self._session
        session.bound.mover.wait_for_compute()
        self._spans.ends()
        session.pushes.end()
        session.step(Contribution(weight, int(weight), math.nan))
        session.settle()

    def _check_may_step(self) -> None:
        version, total = self._session.version, self._session.plan.total_steps
        if self._current not in (None, version):
            raise ConfigError(f"opt.step() was called twice in step {self._current} of rank {self.rank}: call it once in every step")
        if self._ends:
            raise ConfigError("opt.step() after ctx.report had returned True: the run ends there, leave the loop")
        if self._current is None and self._session.started_at:
            raise ConfigError(
                f"rank {self.rank} was started again and goes on at step {version}, which a loop without ctx.steps() cannot do: "
                "iterate over ctx.steps()"
            )
        if version >= total:
            raise ConfigError(f"opt.step() after the last of {total} steps: iterate over ctx.steps(), or raise train.epochs")

    def steps(self) -> Iterator[int]:
        """The steps from the version installed to the last one, or to the `report` that returned True. In a worker that was started
        again after a death they begin where it died: once more with the step before, if that can be had.

        Before each, torch's generator (dropout) is seeded from (seed, step, rank), as for a task. Raises ConfigError if the body
        does not call `opt.step` once.
        """
        session = self._session
        if not self._optimizer:
            raise ConfigError("ctx.steps() before ctx.optimizer(model): the optimizer knows where the run stands")
        while not self._ends and (step := session.version) < session.plan.total_steps:
            torch.manual_seed(torch_seed(self.seed, step, self.rank))
            self._current = step
            try:
                yield step
            finally:
                self._current = None
            if session.version == step and not self._ends:
                raise ConfigError(
                    f"opt.step() was not called in step {step} of rank {self.rank}: call it in every step, weight=0 if it has no samples"
                )

    def report(self, metrics: Mapping[str, float], weight: float = 1.0) -> bool:
        """Means of `metrics` over all workers, weighted by `weight`, go to the log, to metrics.jsonl and to the decisions
        (`[early_stopping]`, `[plateau]`). True if the loop should end, on all workers alike.

        Collective: every worker calls it after the same step, and all wait for each other; so once per epoch or so. A metric
        that only some workers name is the mean over these.
        """
        if not self._optimizer:
            raise ConfigError("ctx.report() before ctx.optimizer(model)")
        version = self._session.version
        if self._reported == version:
            raise ConfigError(f"ctx.report() was called twice at version {version} on rank {self.rank}: give it all metrics in one call")
        sums = _report_sums(metrics, weight)
        self._reported = version
        self._ends = self._session.report(sums)
        return self._ends


def _report_sums(metrics: Mapping[str, float], weight: float) -> dict[str, float]:
    """Each metric times its weight, and the weight, for all ranks to be added up."""
    if not 0 <= weight < math.inf:
        raise ConfigError(f"ctx.report(..., weight={weight}) is out of range: finite and >= 0")
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"ctx.report({named(metrics)}): give metrics by name, for example ctx.report({{'accuracy': 0.9}}, weight=100)")
    sums = {}
    for name, value in metrics.items():
        number = number_of(value)
        if number is None:
            raise ConfigError(f"ctx.report: {name} is {named(value)}: give a number, or a tensor with one element")
        if name in _NO_METRICS:
            raise ConfigError(f"ctx.report: a metric may not be called {name}, as a row of metrics.jsonl has its own: choose another name")
        sums[f"user.{name}"] = number * weight if weight else 0.0
        sums[f"weight.{name}"] = float(weight)
    return sums


def run_loop(name: str, session: Session) -> None:
    """The user's loop from its first line to its last. Raises ConfigError if it has trained nothing, and what it raises."""
    torch.manual_seed(session.settings.train.seed)
    context = Context(session)
    try:
        load_loop(name)(context)
    except SystemExit as error:
        raise ConfigError(f"the loop {name} called sys.exit({error.code}): return from it, or raise an error") from error
    if not context._optimizer:
        raise ConfigError(f"the loop {name} has returned without ctx.optimizer(model): there is no model to train")


def load_loop(name: str) -> Loop:
    """The function "package.module:function" or "path/file.py:function". Raises ConfigError."""
    if ":" not in name:
        raise ConfigError(f"train.loop = {name!r} names no function: write package.module:function or path/file.py:function")
    loop = import_attribute(name, "train.loop")
    remedy = "write def train(ctx): ... and name it module:train"
    if not callable(loop) or isinstance(loop, type):
        raise ConfigError(f"train.loop = {name!r} is no function: {remedy}")
    if inspect.isgeneratorfunction(loop) or inspect.iscoroutinefunction(loop):
        raise ConfigError(f"train.loop = {name!r} is a generator or async, which a call does not run: {remedy}")
    try:
        inspect.signature(loop).bind(None)
    except TypeError as error:
        raise ConfigError(f"train.loop = {name!r} cannot be called with the context alone ({error}): {remedy}") from error
    except ValueError:  # written in C: nothing is known of it
        pass
    return loop


def for_any_process(train: TrainConfig) -> TrainConfig:
    """The section with the paths of its files absolute, since workers may have another working directory."""
    return replace(
        train,
        loop=None if train.loop is None else absolute_name(train.loop),
        init=None if train.init is None else str(Path(train.init).expanduser().resolve()),
    )
