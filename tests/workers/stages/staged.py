"""A job of `tests.ps.training` whose ranks are split over stages, on real servers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ps.errors import NeighbourLost
from ps.plan import Plan
from ps.stages.neighbour import Neighbour
from ps.weights import sha256_of, tensors_of
from tests.ps.cluster import Member, cluster, in_threads, start
from tests.ps.training import Job, Marked, Outcome, Overlap
from workers.batches import Batches
from workers.config import PipelineConfig
from workers.spans import Spans
from workers.stages.place import Place, placed
from workers.stages.stage import Stage
from workers.stages.step import StageStep
from workers.step import loss_not_finite


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


@dataclass
class Ends:
    """One stage's neighbours, and what it tells them when it ends in the middle."""

    earlier: Neighbour | None = None
    later: Neighbour | None = None
    tell: list[Neighbour] = field(default_factory=list)


def linked(num_stages: int, neighbour: Callable[[Callable[[bytes], None]], Neighbour] = Neighbour) -> list[Ends]:
    """Stages of one process: what is put to one end has been received by the other."""
    ends = [Ends() for _ in range(num_stages)]
    for before, after in pairwise(ends):
        queued: list[Neighbour] = []
        before.later = neighbour(lambda data, queued=queued: queued[0].received(data))
        after.earlier = neighbour(before.later.received)
        queued.append(after.earlier)
        before.tell.append(after.earlier)
        after.tell.append(before.later)
    return ends


def run(
    job: Job,
    num_stages: int,
    balance: Sequence[int] | None = None,
    link: Callable[[int], list[Ends]] = linked,
    spans: Callable[[int], Spans] = lambda stage: Spans(),
) -> Outcome:
    """W ranks of P members each, on real servers, in threads. `spans`: of a stage."""
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    pipeline = PipelineConfig(balance="bytes" if balance is None else tuple(balance))
    options: dict[str, Any] = {"optimizer": job.optimizer, "schedule": job.schedule, "comm": job.comm, "plan": plan}
    with cluster(job.num_workers, job.num_servers, num_stages=num_stages, **options) as servers:
        sums: list[dict[str, float]] = []
        members, calls = [], []
        for rank in range(job.num_workers):
            for stage, ends in enumerate(link(num_stages)):
                model = job.model()
                place = placed(job.task, model, pipeline, stage, num_stages, tuple)
                members.append(servers.member(rank, model, stage=stage, stages=place.stages(model)))
                calls.append(partial(_train, job, place, members[-1], ends, sums if rank == 0 else [], spans(stage)))
        in_threads(calls)
        reader = servers.reader()
        flat = reader.pull(job.steps)
        reader.close()
        layout = members[0].bound.layout
        weights = {name: tensor.clone() for name, tensor in tensors_of(layout, flat).items()}
        return Outcome(weights, *[sha256_of(layout, flat, buffers=buffers) for buffers in (False, True)], sums)


def _train(job: Job, place: Place, member: Member, ends: Ends, sums: list[dict[str, float]], spans: Spans) -> None:
    try:
        train(job, place, member, ends, sums, spans)
    except Exception as error:
        for neighbour in ends.tell:
            neighbour.lost(NeighbourLost(f"stage {place.stage} has failed"))
        if not isinstance(error, NeighbourLost):
            raise


def train(job: Job, place: Place, member: Member, ends: Ends, sums: list[dict[str, float]], spans: Spans) -> None:
    """One stage's steps; the last stage knows the sums."""
    batches = job.batches()

    def check(step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise loss_not_finite(loss, step, member.rank)

    stage = Stage(job.task, place.own, place.first, seed=batches.seed, rank=member.rank, check=check)
    needs_data = not (ends.earlier and ends.later)
    loaded = Batches(job.task, job.task.train_data(), batches, job.dtype, rank=member.rank, num_threads=0) if needs_data else None
    start(member)
    overlap = Overlap(member, overlap=job.overlap, is_whole=False)
    at = (place.stage, len(place.split.stages))
    ours = {"place": at, "schedule": "1f1b", "earlier": ends.earlier, "later": ends.later, "rank": member.rank}
    step = StageStep(stage, loaded, batches, member.bound, overlap.pushes, **ours)  # type: ignore[arg-type]
    for version in range(job.steps):
        overlap.enter()
        step.compute(version, spans)
        overlap.step(version)
    overlap.settle()
    if not ends.later:
        sums.append(member.bound.epoch_sums(job.steps))
