"""pserver with default settings: the driver of a run of plain processes, each with a loop of its own."""

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.hosts import run_in_hosts
from benchmarks.workload import LEARNING_RATE, Step, Workload, take_part
from deploy.config import Config, RunConfig, ScalingConfig
from deploy.trainer import Trainer
from ps.config import CommConfig, OptimizerConfig, SecurityConfig
from ps.plan import Plan
from workers.config import TrainConfig
from workers.context import Context
from workers.data import TensorData
from workers.sampler import BatchPlan
from workers.step import Contribution, GradientStep
from workers.task import Task

ALONE = "compute alone"
"""The variant without communication."""


def main() -> None:
    workload = Workload.here()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(workload, folder)
        if workload.places:
            run_in_hosts(config, workload.places)
        else:
            Trainer.from_config(config, launcher="process", quiet=True).fit()


def config_of(workload: Workload, folder: str, loop: str = "benchmarks.peers.ours:train") -> Config:
    """`loop`: trains a worker."""
    return Config(
        train=TrainConfig(loop=loop, batch_size=workload.batch, max_steps=1_000_000),
        optimizer=OptimizerConfig(name="adam", lr=LEARNING_RATE),
        scaling=ScalingConfig(num_workers=workload.workers, num_servers=workload.servers),
        comm=CommConfig(**workload.comm),
        security=SecurityConfig(allow_plaintext=bool(workload.places)),
        run=RunConfig(storage_path=folder),
    )


def train(ctx: Context) -> None:
    """The loop of one worker."""
    workload = Workload.here()
    step = training(ctx, workload) if workload.compute else _exchanging(ctx, workload)
    alone = _computing(workload, ctx.rank)
    take_part(workload, ctx.rank, lambda variant: alone if variant == ALONE else step)


@dataclass(frozen=True)
class Perceptron(Task):
    """The workload as a user's task."""

    def model(self) -> nn.Module:
        return Workload.here().model()

    def train_data(self) -> TensorData:
        workload = Workload.here()
        parts = [workload.batch_of(rank) for rank in range(workload.workers)]
        return TensorData(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def validation_data(self) -> TensorData:
        return self.train_data()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, classes = batch
        return functional.cross_entropy(model(inputs), classes)


def _computing(workload: Workload, rank: int) -> Step:
    """The same forward and backward with communication off."""
    model = workload.model()

    def step() -> None:
        model.zero_grad()
        workload.loss(model, rank).backward()  # type: ignore[no-untyped-call]

    return step


def training(ctx: Context, workload: Workload) -> Step:
    """As `workers.loop` trains a task."""
    session, task = ctx._session, Perceptron()
    train = session.settings.train
    bound = session.bind(task.model(), Plan(train.max_steps or 1, train.max_steps or 1, own_loop=True))
    data = task.train_data()
    batches = BatchPlan.from_config(train, workload.workers, len(data))
    gradient = GradientStep(
        task, data, batches, bound, session.pushes, session.layers, torch.float32, rank=ctx.rank, nonfinite=session.settings.optimizer.nonfinite
    )

    def step() -> None:
        session.enter()
        session.step(gradient.compute(session.version, session.spans))

    return step


def _exchanging(ctx: Context, workload: Workload) -> Step:
    """Pushes the same gradients again and again, and pulls: no compute, no gathering."""
    ctx.optimizer(workload.model())
    session = ctx._session
    session.bound.gradients[:] = 0
    tensors = range(len(session.bound.layout.specs))

    def step() -> None:
        session.begin(session.version, 1.0)
        session.ready(tensors, present=True)
        session.step(Contribution(1.0, 1, 0.0))
        session.settle()

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
