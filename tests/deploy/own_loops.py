"""A task, and the loop that a user would write for the same training; and loops that go wrong."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig
from ps.config import OptimizerConfig, ScheduleConfig, Timeouts
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from tests.deploy.forked import ForkedTrainer
from workers.config import TrainConfig
from workers.context import Context
from workers.data import TensorData
from workers.task import Task

HERE = __name__


@dataclass(frozen=True)
class Noisy(Task):
    """Batch statistics, dropout, and a loss that may weigh its samples."""

    weighted: bool = False

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(24, 3))

    def train_data(self) -> TensorData:
        x = torch.randn(23, 2, 6, generator=torch.Generator().manual_seed(1))
        return TensorData(x, (x.sum((1, 2)) > 0).long(), torch.arange(23) % 3 + 0.5)

    def validation_data(self) -> TensorData:
        return self.train_data()

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, weights = batch
        if not self.weighted:
            return functional.cross_entropy(model(x), y)
        total = weights.sum()
        return (functional.cross_entropy(model(x), y, reduction="none") * weights).sum() / total, float(total)


@dataclass(frozen=True, kw_only=True)
class Blocks(Noisy):
    """`Noisy` in blocks, which a rank's stages share."""

    dropout: float = 0.3

    def model(self) -> nn.Module:
        model = super().model()
        next(m for m in model.modules() if isinstance(m, nn.Dropout)).p = self.dropout
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        x, y, _ = batch
        return {"accuracy": float((model(x).argmax(1) == y).sum())}


@dataclass(frozen=True, kw_only=True)
class HalfFrozen(Noisy):
    """`Noisy` whose convolution is not trained."""

    def model(self) -> nn.Module:
        model = super().model()
        next(model.children()).requires_grad_(False)
        return model


def noisy(ctx: Context) -> None:
    """`Noisy`, one backward per step."""
    _train_noisy(ctx, weighted=False)


def noisy_telling_later(ctx: Context) -> None:
    """`Noisy`; every step but the first two, and every fourth, tells its weight before its forward, which changes buffers."""
    _train_noisy(ctx, weighted=False, tells=lambda step: step > 1 and step % 4 != 0)


def noisy_weighted(ctx: Context) -> None:
    """`Noisy(weighted=True)`."""
    _train_noisy(ctx, weighted=True)


def _train_noisy(ctx: Context, *, weighted: bool, tells: Callable[[int], bool] = lambda step: False) -> None:
    task = Noisy(weighted)
    model, data = task.model(), task.train_data()
    sampler = ctx.sampler(len(data))
    opt = ctx.optimizer(model)
    for step in ctx.steps():
        batch = data.batch(sampler(step))
        opt.zero_grad(weight=len(batch[0]) if tells(step) else None)
        weight = 0.0
        if len(batch[0]):
            loss, weight = task.loss(model, batch) if weighted else (task.loss(model, batch), len(batch[0]))
            loss.backward()
        opt.step(weight=weight)


def noisy_accumulated(ctx: Context) -> None:
    """`Noisy` with `train.accumulate`."""
    task = Noisy()
    model, data = task.model(), task.train_data()
    sampler = ctx.sampler(len(data))
    opt = ctx.optimizer(model)
    for step in ctx.steps():
        opt.zero_grad()
        for part in sampler.micro_batches(step):
            (task.loss(model, data.batch(part)) * len(part)).backward()
        opt.step(weight=len(sampler(step)), divide=True)


def noisy_with_reports(ctx: Context) -> None:
    """`Noisy`, with a report after every third step and one after the last."""
    task = Noisy()
    model, data = task.model(), task.train_data()
    sampler = ctx.sampler(len(data))
    opt = ctx.optimizer(model)
    for step in ctx.steps():
        batch = data.batch(sampler(step))
        opt.zero_grad()
        if len(batch[0]):
            task.loss(model, batch).backward()
        opt.step(weight=len(batch[0]))
        if step % 3 == 1:
            ctx.report({"size": float(sum(p.detach().abs().sum() for p in model.parameters())), "rank": ctx.rank})
    ctx.report({"end": 1.0})


class Slow(nn.Linear):
    """Takes its time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(x)


def takes_its_time(ctx: Context) -> None:
    """20 ms for a batch, for a forward, and for a loss; 30 ms of validation after every third step."""
    sampler = ctx.sampler(60)
    model = Slow(2, 1)
    opt = ctx.optimizer(model)
    for step in ctx.steps():
        time.sleep(0.02)
        opt.zero_grad()
        loss = model(torch.ones(len(sampler(step)), 2)).sum()
        time.sleep(0.02)
        loss.backward()
        opt.step(weight=len(sampler(step)))
        if step % 3 == 2:
            time.sleep(0.03)
            ctx.report({"seen": 1.0})


def counts_its_own_steps(ctx: Context) -> None:
    """Does not ask where the run stands."""
    opt = ctx.optimizer(nn.Linear(2, 1))
    for _ in range(12):
        opt.step(weight=0)


def leaves_without_training(ctx: Context) -> None:
    """Joins, and looks on."""
    ctx.sampler(10)
    ctx.optimizer(nn.Linear(2, 1))


def never_joins(ctx: Context) -> None:
    """Forgets the optimizer."""


def fails(ctx: Context) -> None:
    """Raises on one rank."""
    opt = ctx.optimizer(nn.Linear(2, 1))
    for step in ctx.steps():
        if (ctx.rank, step) == (1, 2):
            raise KeyError("no such\ncolumn")
        opt.step(weight=0)


def idle(ctx: Context) -> None:
    """No worker ever has a sample."""
    optimizer = ctx.optimizer(nn.Linear(2, 1))
    for step in ctx.steps():
        optimizer.zero_grad()
        optimizer.step(weight=0)
        if step % 2:
            ctx.report({"seen": 1.0})


def hill(ctx: Context) -> None:
    """Reports after every step a metric that is highest at version 4; does not look at what the driver says."""
    opt = ctx.optimizer(nn.Linear(2, 1))
    for step in ctx.steps():
        opt.step(weight=0)
        ctx.report({"hill": -float((step - 3) ** 2)}, weight=ctx.rank + 1)


def fit(
    storage: Path,
    what: Task | str,
    *,
    train: dict[str, Any],
    num_workers: int = 2,
    num_servers: int = 2,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
    early_stopping: EarlyStoppingConfig | None = None,
    plateau: PlateauConfig | None = None,
) -> Any:
    """A whole run of a task of a module, or of one of the loops here."""
    loop = what if isinstance(what, str) else None
    config = Config(
        task=None if isinstance(what, str) else TaskConfig(name=f"{type(what).__module__}:{type(what).__name__}", fields=vars(what)),
        train=TrainConfig(**train, loop=loop),
        optimizer=optimizer or OptimizerConfig(),
        schedule=schedule or ScheduleConfig(),
        scaling=ScalingConfig(num_workers=num_workers, num_servers=num_servers),
        early_stopping=early_stopping or EarlyStoppingConfig(),
        plateau=plateau or PlateauConfig(),
        run=RunConfig(storage_path=str(storage)),
    )
    trainer = ForkedTrainer.from_config(config, quiet=True, timeouts=Timeouts(heartbeat_s=0.2))
    return trainer.fit()
