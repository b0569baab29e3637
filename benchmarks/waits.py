"""A rank's stages whose compute is a wait of known length: how much of the time they wait for each other."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Row
from deploy.config import RunConfig, ScalingConfig
from deploy.measure.ledger_file import read_ledger
from deploy.predict.floors import bubble
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from workers.config import PipelineConfig, TrainConfig
from workers.data import TensorData
from workers.task import Task

WITHIN = 0.1
STEPS = 10
WIDTH = 4


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient, None


class Waiting(nn.Linear):
    """Waits so long in forward, and again in backward."""

    def __init__(self, seconds: float) -> None:
        super().__init__(WIDTH, WIDTH)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        return _Wait.apply(super().forward(x), self.seconds)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Waits(Task):
    """A block for each stage."""

    stages: int = 2
    seconds: float = 0.05
    samples: int = 16

    def model(self) -> nn.Module:
        return nn.Sequential(*(Waiting(self.seconds) for _ in range(self.stages)))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def train_data(self) -> TensorData:
        return TensorData(torch.randn(self.samples * STEPS, WIDTH), torch.randn(self.samples * STEPS, WIDTH))

    def validation_data(self) -> TensorData:
        return TensorData(torch.ones(1, WIDTH), torch.ones(1, WIDTH))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return functional.mse_loss(model(x), y)


def measured(stages: int, micro_batches: int) -> Row:
    """The first stage's part of a median step, beside the closed form."""
    task = Waits(stages=stages, samples=micro_batches)
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(
            task,
            train_config=TrainConfig(epochs=1, batch_size=task.samples),
            scaling_config=ScalingConfig(num_workers=1, num_servers=1, num_stages=stages),
            pipeline=PipelineConfig(micro_batches=micro_batches, balance=tuple(range(1, stages))),
            run_config=RunConfig(storage_path=folder),
            launcher="process",
            quiet=True,
        ).fit()
        if result.error:
            raise result.error
        rows = [row for step in read_ledger(RunDirectory(result.path).comm) for row in step.workers if row.rank == 0]
    share = statistics.median(row.bubble_s / (row.bubble_s + row.compute_s) for row in rows)
    return Row(f"bubble of {stages} stages, {micro_batches} micro-batches", share, bubble(stages, micro_batches), 1 + WITHIN, least=1 - WITHIN)
