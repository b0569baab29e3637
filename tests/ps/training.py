"""A small job run twice: by members and servers, and by a plain loop of one process over the same global batches."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ps.config import CommConfig, OptimizerConfig, ScheduleConfig
from ps.plan import Plan
from ps.weights import sha256_of, tensors_of
from tests.ps.cluster import Member, cluster, in_threads, start
from workers.answers import mean_and_weight
from workers.config import TrainConfig
from workers.data import TensorData
from workers.layers import Layers
from workers.pushes import Pushes
from workers.sampler import BatchPlan, torch_seed
from workers.spans import Spans
from workers.step import GradientStep
from workers.task import Task

SAMPLES = 50


class Net(nn.Module):
    """A frozen layer, a head that nothing uses, and one that only samples with a mark use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.wide = nn.Linear(8, 1100)
        self.head = nn.Linear(1100, 2)
        self.marked = nn.Linear(1100, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.wide(self.frozen(x))) / 16
        out = self.head(hidden)
        if mark.any():
            out = torch.where(mark[:, None], self.marked(hidden), out)
        return out


@dataclass(frozen=True)
class Marked(Task):
    """Every 17th sample is marked: in most steps one rank at most uses the head of marked samples."""

    def model(self) -> nn.Module:
        return Net()

    def train_data(self) -> TensorData:
        x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(7))
        return TensorData(x, torch.stack([x.sum(1), x.square().sum(1)], 1) / 8, torch.arange(SAMPLES) % 17 == 0)

    def validation_data(self) -> TensorData:
        return self.train_data()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, mark = batch
        return functional.mse_loss(model(x, mark), y)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained how; the defaults are a short float64 run with uneven last batches."""

    task: Task = field(default_factory=Marked)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(global_batch_size=12, max_steps=12, epochs=10, seed=3, dtype="float64"))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.1, momentum=0.9))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    comm: CommConfig = field(default_factory=lambda: CommConfig())
    num_workers: int = 2
    num_servers: int = 2
    shuffle: int | None = None
    """Seeds the order in which ranks push their frames; None: layout order."""
    breaks: bool = False
    """Whether streams break all the time."""
    overlap: bool = True
    """`train.overlap`."""

    def changed(self, **train: Any) -> "Job":
        """With other training settings."""
        return replace(self, train=replace(self.train, **train))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.train.dtype == "float64" else torch.float32

    @property
    def steps(self) -> int:
        assert self.train.max_steps is not None
        return self.train.max_steps

    def model(self) -> nn.Module:
        torch.manual_seed(self.train.seed)
        return self.task.model().to(self.dtype)

    def batches(self) -> BatchPlan:
        return BatchPlan.from_config(self.train, self.num_workers, len(self.task.train_data()))


@dataclass
class Outcome:
    """What a run leaves."""

    weights: dict[str, torch.Tensor]
    params_sha256: str
    buffers_sha256: str
    sums: list[dict[str, float]]
    """Versioned sums after every step."""


def run(job: Job) -> Outcome:
    """The job on real servers, its members in threads."""
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    with cluster(job.num_workers, job.num_servers, optimizer=job.optimizer, schedule=job.schedule, comm=job.comm, plan=plan) as servers:
        members = [servers.member(rank, job.model()) for rank in range(job.num_workers)]
        sums: list[dict[str, float]] = []
        order = list(range(job.num_workers))
        if job.shuffle is not None:
            random.Random(job.shuffle).shuffle(order)
        in_threads([lambda rank=rank: train(job, members[rank], sums if rank == 0 else []) for rank in order])
        reader = servers.reader()
        flat = reader.pull(job.steps)
        reader.close()
        weights = {name: tensor.clone() for name, tensor in tensors_of(members[0].bound.layout, flat).items()}
        for member in members:
            assert all(torch.equal(weights[n].view(-1), t.detach().view(-1)) for n, t in member.bound.model.named_parameters()), "a rank went astray"
        shas = [sha256_of(members[0].bound.layout, flat, buffers=buffers) for buffers in (False, True)]
        return Outcome(weights, *shas, sums)


def _shuffle_frames(member: Member, seed: int) -> None:
    exchange = member.client._state.exchange
    for shard, frames in enumerate(member.client.sender.frames):
        order = list(range(len(frames)))
        random.Random(seed * 100 + member.rank).shuffle(order)
        exchange._at_place[shard] = order
        for place, index in enumerate(order):
            exchange._place[shard][index] = place
    member.client.prioritise = lambda use: None  # type: ignore[method-assign]


class Overlap:
    """What a session does for `Pushes` and `Layers`, without control and ledger."""

    def __init__(self, member: Member, *, overlap: bool = True, is_whole: bool = True) -> None:
        self._client = member.client
        self._bound = member.bound
        self.layers = Layers(member.bound, self, Spans(), layerwise=overlap and is_whole, in_place=is_whole)
        self.pushes = Pushes(member.bound, self, Spans(), early=overlap, own_loop=False, adds_in_place=not is_whole)
        self._open = False
        client = self._client
        self.missing, self.wait, self.ready, self.prioritise, self.share = (
            client.missing,
            client.wait,
            client.ready,
            client.prioritise,
            client.share,
        )

    def enter(self) -> None:
        if self._open and self.layers.is_layerwise:
            self.layers.start()
        else:
            self.settle()

    def begin(self, step: int, weight: float) -> None:
        self.settle()
        self._client.begin(step, weight, self._bound.gradients)

    def step(self, step: int) -> None:
        self._open = True
        self.layers.next(step + 1)

    def settle(self) -> None:
        if self._open:
            self._client.settle()
            self.layers.finish()
            self._open = False


def train(job: Job, member: Member, sums: list[dict[str, float]]) -> None:
    """One rank's steps."""
    overlap = Overlap(member, overlap=job.overlap)
    gradient = GradientStep(
        job.task,
        job.task.train_data(),
        job.batches(),
        member.bound,
        overlap.pushes,
        overlap.layers,
        job.dtype,
        rank=member.rank,
        nonfinite=job.optimizer.nonfinite,
    )
    start(member)
    if job.shuffle is not None:
        _shuffle_frames(member, job.shuffle)
    for step in range(job.steps):
        overlap.enter()
        gradient.compute(step, Spans())
        if job.breaks and (step + member.rank) % 3 == 0:
            line = member.client._state.lines[step % job.num_servers]
            threading.Thread(target=line._stream.cancel, daemon=True).start()
        overlap.step(step)
        if step % 3 == 2 or step + 1 == job.steps:
            overlap.settle()
            sums.append(member.bound.epoch_sums(step + 1))
    gradient.close()


def plain(
    job: Job, make: Callable[[Any], torch.optim.Optimizer], before_step: Callable[[nn.Module], object] = lambda model: None
) -> dict[str, torch.Tensor]:
    """The plain loop over the same global batches; `before_step` may clip gradients."""
    model, data, batches = job.model(), job.task.train_data(), job.batches()
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
    for step in range(job.steps):
        batch = tuple(t.to(job.dtype) if t.is_floating_point() else t for t in data.batch(batches.global_indices(step)))
        optimizer.zero_grad()
        mean, weight = mean_and_weight(job.task.loss(model, batch), len(batch[0]))
        if weight == 0:
            continue
        mean.backward()
        before_step(model)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def as_ranks(job: Job, make: Callable[[Any], torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """One process that does what the ranks do: each part of a batch with its seed and its own batch statistics, then their weighted mean."""
    model, data, batches = job.model(), job.task.train_data(), job.batches()
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
    for step in range(job.steps):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        parts = [batches.micro_batches(step, rank) for rank in range(job.num_workers)]
        total = sum(len(indices) for micro in parts for indices in micro)
        after = {name: torch.zeros_like(buffer) for name, buffer in before.items()}
        optimizer.zero_grad()
        for rank, micro in enumerate(parts):
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
            for index, indices in enumerate(micro):
                batch = tuple(t.to(job.dtype) if t.is_floating_point() else t for t in data.batch(indices))
                torch.manual_seed(torch_seed(job.train.seed, step, rank, index))
                mean, _ = mean_and_weight(job.task.loss(model, batch), len(indices))
                (mean * (len(indices) / total)).backward()
            share = sum(len(indices) for indices in micro) / total
            for name, buffer in model.named_buffers():
                if not micro:
                    continue
                if buffer.is_floating_point():
                    after[name] += buffer * share
                else:
                    after[name] = buffer.clone()
        for name, buffer in model.named_buffers():
            buffer.copy_(after[name])
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of any element of the tensors that both have, of which there must be all of one."""
    assert set(a) <= set(b) or set(b) <= set(a)
    return max(float((a[name].detach().double() - b[name].detach().double()).abs().max()) for name in set(a) & set(b))


def moved(job: Job, weights: dict[str, torch.Tensor]) -> float:
    """How far the element that moved most is from where it began."""
    return difference(dict(job.model().named_parameters()), weights)
