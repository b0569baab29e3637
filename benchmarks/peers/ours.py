"""pserver with default settings: the driver of a run of plain processes, each with a loop of its own."""

import tempfile

import torch

from benchmarks.hosts import run_in_hosts
from benchmarks.workload import Step, Workload, take_part
from deploy.config import Config, RunConfig, ScalingConfig
from deploy.trainer import Trainer
from ps.config import CommConfig, OptimizerConfig, SecurityConfig
from workers.config import TrainConfig
from workers.context import Context
from workers.step import Contribution


def main() -> None:
    workload = Workload.here()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(workload, folder)
        if workload.places:
            run_in_hosts(config, workload.places)
        else:
            Trainer.from_config(config, launcher="process", quiet=True).fit()


def _config(workload: Workload, folder: str) -> Config:
    return Config(
        train=TrainConfig(loop="benchmarks.peers.ours:train", batch_size=workload.batch, max_steps=1_000_000),
        optimizer=OptimizerConfig(name="adam", lr=1e-3),
        scaling=ScalingConfig(num_workers=workload.workers, num_servers=workload.servers),
        comm=CommConfig(**workload.comm),
        security=SecurityConfig(allow_plaintext=bool(workload.places)),
        run=RunConfig(storage_path=folder),
    )


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
        optimizer.zero_grad(weight=workload.batch)
        workload.loss(model, ctx.rank).backward()
        optimizer.step(weight=workload.batch)

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
