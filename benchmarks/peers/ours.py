"""pserver with default settings: the driver of a run of plain processes, each with a loop of its own."""

import tempfile

import torch

from benchmarks.workload import Step, Workload, take_part
from deploy.config import RunConfig, ScalingConfig
from deploy.trainer import Trainer
from ps.config import OptimizerConfig
from workers.config import TrainConfig
from workers.context import Context
from workers.step import Contribution


def main() -> None:
    workload = Workload.here()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            loop="benchmarks.peers.ours:train",
            train_config=TrainConfig(batch_size=workload.batch, max_steps=1_000_000),
            optimizer=OptimizerConfig(name="adam", lr=1e-3),
            scaling_config=ScalingConfig(num_workers=workload.workers, num_servers=workload.servers),
            run_config=RunConfig(storage_path=folder),
            launcher="process",
            quiet=True,
        ).fit()


def train(ctx: Context) -> None:
    """The loop of one worker."""
    workload = Workload.here()
    step = _training(ctx, workload) if workload.compute else _exchanging(ctx, workload)
    take_part(workload, ctx.rank, lambda variant: step)


def _training(ctx: Context, workload: Workload) -> Step:
    model = workload.model()
    optimizer = ctx.optimizer(model)
    steps = ctx.steps()

    def step() -> None:
        next(steps)
        optimizer.zero_grad()
        workload.loss(model, ctx.rank).backward()
        optimizer.step(weight=workload.batch)

    return step


def _exchanging(ctx: Context, workload: Workload) -> Step:
    """Pushes what one backward pass has left, and pulls: no compute, no gathering."""
    model = workload.model()
    ctx.optimizer(model)
    session = ctx._session
    workload.loss(model, ctx.rank).backward()
    session.bound.gather(1.0, divide=False, sums=(0.0, 1.0, 1.0, 1.0))
    return lambda: session.step(Contribution(1.0, 1, 0.0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
