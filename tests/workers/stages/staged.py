"""A job of `tests.ps.training` whose ranks are split over stages, on real servers."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ps.plan import Plan
from ps.weights import sha256_of, tensors_of
from tests.ps.cluster import Member, cluster, in_threads, start
from tests.ps.training import Job, Marked, Outcome, Overlap
from workers.spans import Spans
from workers.stages.blocks import blocks_of, sizes_of
from workers.stages.split import Split, balanced
from workers.stages.step import StagedStep


class First(nn.Module):
    """Frozen in part; its input goes on beside what it makes of it: a skip connection that crosses cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.wide = nn.Linear(8, 70)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.tanh(self.wide(self.frozen(x))), x, mark


class Middle(nn.Module):
    """A residual layer with dropout; hands the skip on."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(70, width)
        self.outer = nn.Linear(width, 70)
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(dropout)

    def forward(self, y: torch.Tensor, x: torch.Tensor, mark: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return y + self.drop(torch.tanh(self.outer(torch.tanh(self.inner(y))))), x, mark


class Last(nn.Module):
    """Joins the skip to the rest; only marked samples use one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(78, 2)
        self.marked = nn.Linear(78, 2)

    def forward(self, y: torch.Tensor, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        both = torch.cat([y / 16, x], 1)
        out = self.head(both)
        return torch.where(mark[:, None], self.marked(both), out) if mark.any() else out


class Net(nn.Module):
    """Five blocks of different sizes."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.parts = nn.ModuleList([First(), Middle(40, dropout), Middle(100, dropout), Middle(10, dropout), Last()])

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        out: Any = (x, mark)
        for part in self.parts:
            out = part(*out)
        return out  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Split5(Marked):
    """Every 17th sample is marked, as in `Marked`."""

    dropout: float = 0.0

    def model(self) -> nn.Module:
        return Net(self.dropout)

    def blocks(self, model: nn.Module) -> list[nn.Module] | None:
        return list(model.parts)  # type: ignore[arg-type]

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, mark = batch
        return functional.mse_loss(model(x, mark), y)


def split_of(job: Job, num_stages: int) -> Split:
    blocks = blocks_of(job.task, job.model())
    return balanced(sizes_of(blocks), num_stages)


def run(job: Job, split: Split) -> Outcome:
    """W ranks, each with the split's stages in threads."""
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    job = replace(job, overlap=False)
    with cluster(job.num_workers, job.num_servers, optimizer=job.optimizer, schedule=job.schedule, comm=job.comm, plan=plan) as servers:
        members = [servers.member(rank, job.model()) for rank in range(job.num_workers)]
        sums: list[dict[str, float]] = []
        in_threads([lambda rank=rank: train(job, split, members[rank], sums if rank == 0 else []) for rank in range(job.num_workers)])
        reader = servers.reader()
        flat = reader.pull(job.steps)
        reader.close()
        layout = members[0].bound.layout
        weights = {name: tensor.clone() for name, tensor in tensors_of(layout, flat).items()}
        return Outcome(weights, *[sha256_of(layout, flat, buffers=buffers) for buffers in (False, True)], sums)


def train(job: Job, split: Split, member: Member, sums: list[dict[str, float]]) -> None:
    """One rank's steps."""
    overlap = Overlap(member, overlap=False)
    data, batches = job.task.train_data(), job.batches()
    staged = StagedStep(
        job.task,
        data,
        batches,
        member.bound,
        overlap.pushes,
        job.dtype,
        split=split,
        rank=member.rank,
        nonfinite=job.optimizer.nonfinite,
    )
    try:
        start(member)
        for step in range(job.steps):
            overlap.enter()
            staged.compute(step, Spans())
            overlap.step(step)
        overlap.settle()
        sums.append(member.bound.epoch_sums(job.steps))
    finally:
        staged.close()
