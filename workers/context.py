"""What a user's own loop works with: `def train(ctx): ...`, called in every worker."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ps.errors import ConfigError
from ps.plan import Plan
from workers.imports import import_attribute
from workers.loop import plan_of
from workers.optimizer import DistributedOptimizer
from workers.sampler import BatchPlan, Indices
from workers.session import Session
from workers.step import Contribution

Loop = Callable[["Context"], None]


class Sampler:
    """The worker's part of every global batch; stateless, so that a step can be computed again."""

    def __init__(self, batches: BatchPlan, rank: int) -> None:
        self._batches = batches
        self._rank = rank

    def __call__(self, step: int) -> Indices:
        """Indices of this worker's samples in `step`, all micro-batches together; may be empty in the last step of an epoch."""
        parts = self._batches.micro_batches(step, self._rank)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

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

    Torch's generators are seeded from `train.seed` before the loop begins, the same on every rank.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._plan: Plan | None = None
        self._bound = False
        self.device = torch.device("cpu")
        """Where the model should be."""

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

    def sampler(self, num_samples: int) -> Sampler:
        """Deals `num_samples` training samples by the `[train]` section; fixes the length of the run."""
        settings = self._session.settings
        batches = BatchPlan.from_config(settings.train, settings.num_workers, num_samples)
        self._plan = plan_of(settings.train, batches)
        return Sampler(batches, self.rank)

    def optimizer(self, model: nn.Module) -> DistributedOptimizer:
        """Joins the servers with the model (the same on every rank) and returns its optimizer. Once.

        Raises ConfigError without a sampler unless `train.max_steps` says how long the run is, and ModelMismatch.
        """
        if self._bound:
            raise ConfigError("ctx.optimizer(model) was called twice: a run trains one model; put several networks into one nn.ModuleDict")
        max_steps = self._session.settings.train.max_steps
        if self._plan is None and max_steps is None:
            raise ConfigError("ctx.optimizer(model) needs the length of the run: call ctx.sampler(len(data)) before it, or set train.max_steps")
        plan = self._plan or Plan(max_steps or 1, max_steps or 1)
        self._plan = Plan(plan.steps_per_epoch, plan.total_steps, own_loop=True)
        self._session.bind(model, self._plan)
        self._bound = True
        return DistributedOptimizer(model, self._step)

    def _step(self, weight: float) -> None:
        session = self._session
        if session.version >= session.plan.total_steps:
            raise ConfigError(f"opt.step() after the last of {session.plan.total_steps} steps: iterate over ctx.steps(), or raise train.epochs")
        session.spans.rest("compute")
        with session.spans.span("copy"):
            sums = (0.0, weight, weight, 1.0 if self.rank == 0 else 0.0) if weight else None
            session.bound.gather(1.0, divide=False, sums=sums)
        session.step(Contribution(weight, int(weight), math.nan))

    def steps(self) -> Iterator[int]:
        """The steps from the version installed to the last one. Raises ConfigError if the body does not call `opt.step` once."""
        if not self._bound:
            raise ConfigError("ctx.steps() before ctx.optimizer(model): the optimizer knows where the run stands")
        while (step := self._session.version) < self._session.plan.total_steps:
            yield step
            if self._session.version != step + 1:
                calls = self._session.version - step
                raise ConfigError(f"opt.step() was called {calls} times in step {step} of rank {self.rank}: call it once in every step")

    def report(self, metrics: Mapping[str, float], weight: float = 1.0) -> bool:
        """Means of `metrics` over all workers, weighted by `weight`, go to the log, to metrics.jsonl and to the decisions
        (`[early_stopping]`, `[plateau]`). True if the loop should end, on all workers alike.

        Collective: every worker calls it after the same step, and all wait for each other; so once per epoch or so.
        """
        if not self._bound:
            raise ConfigError("ctx.report() before ctx.optimizer(model)")
        sums = {f"user.{name}": float(value) * weight if weight else 0.0 for name, value in metrics.items()}
        return self._session.report({**sums, "weight": weight})


def load_loop(name: str) -> Loop:
    """The function "package.module:function" or "path/file.py:function". Raises ConfigError."""
    if ":" not in name:
        raise ConfigError(f"loop {name!r} names no function: write package.module:function or path/file.py:function")
    loop = import_attribute(name, "loop")
    if not callable(loop):
        raise ConfigError(f"loop {name!r} is no function: write def train(ctx): ... and name it module:train")
    return loop
