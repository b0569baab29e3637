"""One rank under PyTorch's DistributedDataParallel over gloo: the task's own batches, the config's optimizer."""

import contextlib
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from ps.errors import Unreachable
from ps.plan import Plan
from workers.answers import check_gradient, mean_and_weight
from workers.batches import Batches, MicroBatch
from workers.config import RivalSettings, WorkerSettings
from workers.initial import build_model
from workers.sampler import BatchPlan
from workers.seeds import BlockSeeds
from workers.spans import Spans
from workers.step import Contribution, lower_precision
from workers.task import Task
from workers.torch_optimizer import LocalOptimizer

COLLECTIVE_S = 300.0
"""Until a collective call gives up: a peer that has died is noticed at once, one that is frozen only so."""


@dataclass(frozen=True)
class Variant:
    """How DDP is set up."""

    bucket_mb: int
    views: bool
    """Whether gradients are views of the buckets."""
    find_unused: bool = False
    """Whether parameters may stay without gradient."""

    def __str__(self) -> str:
        return f"bucket {self.bucket_mb} MB, {'views' if self.views else 'copies'}{', unused parameters looked for' if self.find_unused else ''}"


def variants(model_bytes: int) -> list[Variant]:
    """Those worth a trial; beyond the first bucket that holds the whole model nothing changes."""
    sizes = (5, 25, 100)
    useful = [mb for i, mb in enumerate(sizes) if i == 0 or sizes[i - 1] << 20 < model_bytes]
    return [Variant(mb, views) for mb in useful for views in (True, False)]


@contextlib.contextmanager
def gloo(rival: RivalSettings, rank: int, num_workers: int) -> Iterator[TCPStore]:
    """The process group of all ranks, and the store they met at. Raises Unreachable when a peer is lost."""
    host, _, port = rival.store_address.rpartition(":")
    timeout = timedelta(seconds=COLLECTIVE_S)
    os.environ["GLOO_SOCKET_IFNAME"] = _interface_to(host, int(port))
    with _peers_named():
        store = TCPStore(host, int(port), is_master=False, timeout=timeout)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=num_workers, timeout=timeout)
        try:
            yield store
        finally:
            distributed.destroy_process_group()


@contextlib.contextmanager
def _peers_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise Unreachable(f"DDP has lost a peer ({' '.join(str(error).split())}): has a worker died?") from error


def _interface_to(host: str, port: int) -> str:
    """Name of the interface from which this host reaches another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        own = probe.getsockname()[0]
    return next(name for name, addresses in psutil.net_if_addrs().items() if any(a.address == own for a in addresses))


def largest(values: list[float]) -> list[float]:
    """Element by element over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return [float(value) for value in tensor]


class _Loss(nn.Module):
    """Model and loss as one module: DDP reduces what its own `forward` reaches, and a task's loss may use any part of the model."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self._task = task
        self.model = model

    def forward(self, batch: Any) -> Tensor | tuple[Tensor, float]:
        return self._task.loss(self.model, batch)


class DdpStep:
    """Whole steps of one rank, from version 0 on. The model is its own."""

    def __init__(self, settings: WorkerSettings, task: Task, batches: Batches, batch_plan: BatchPlan, plan: Plan, variant: Variant) -> None:
        assert settings.rival
        self._settings = settings
        self._batches = batches
        self._plan = batch_plan
        model = build_model(task, settings.train)
        self._seeds = BlockSeeds(task, model, batch_plan.seed, settings.rank)
        self._ddp = DistributedDataParallel(
            _Loss(task, model), bucket_cap_mb=variant.bucket_mb, gradient_as_bucket_view=variant.views, find_unused_parameters=variant.find_unused
        )
        self._params = dict(model.named_parameters())
        self._optimizer = LocalOptimizer(settings.optimizer, settings.rival.schedule, plan, self._params)
        self._last: MicroBatch | None = None

    def step(self, step: int) -> Contribution:
        """Forward, backward with the reduction, update."""
        self._ddp.train()  # type: ignore[no-untyped-call]
        self._optimizer.zero_grad()
        num_expected = len(self._plan.global_indices(step))
        loss_sum = weight = 0.0
        samples = 0
        weighs_itself = False
        for micro in self._of_step(step):
            is_last = micro.index + 1 >= micro.num_in_step
            with contextlib.nullcontext() if is_last else self._ddp.no_sync():
                loss = self._forward(step, micro)
                mean, its_weight = mean_and_weight(loss, micro.num_samples)
                weighs_itself = isinstance(loss, tuple)
                its_weight = its_weight if micro.num_samples else 0.0
                # DDP takes the mean over ranks: the factor makes it the mean over samples
                (mean * (its_weight * self._settings.num_workers / num_expected)).backward()  # type: ignore[no-untyped-call]
            samples += micro.num_samples
            weight += its_weight
            loss_sum += float(mean.detach()) * its_weight if its_weight else 0.0
        if weighs_itself:
            self._scale(num_expected, weight)
        self._optimizer.step(step)
        return Contribution(weight, samples, loss_sum / weight if weight else math.nan)

    def _of_step(self, step: int) -> Iterator[MicroBatch]:
        """The rank's micro-batches. Without any it computes one again that counts nothing: DDP waits for every rank."""
        has_any = False
        for micro in self._batches.of_step(step, Spans()):
            has_any = True
            self._last = micro
            yield micro
        if not has_any:
            assert self._last, "every rank has samples in step 0"
            yield replace(self._last, index=0, num_in_step=1, num_samples=0)

    def _forward(self, step: int, micro: MicroBatch) -> Tensor | tuple[Tensor, float]:
        self._seeds.begin(step, micro.index)
        with lower_precision(self._settings.train.autocast, torch.device("cpu")):
            loss: Tensor | tuple[Tensor, float] = self._ddp(micro.batch)
        return loss

    def _scale(self, num_expected: int, weight: float) -> None:
        """The task's own weights are known only now."""
        total = torch.tensor(weight, dtype=torch.float64)
        distributed.all_reduce(total)
        for param in self._params.values():
            if param.grad is not None and float(total):
                param.grad.mul_(num_expected / float(total))


def leaves_unused(task: Task, model: nn.Module, batch: Any) -> bool:
    """Whether a parameter gets no gradient from the batch, on any rank: then DDP must look for such."""
    loss, _ = mean_and_weight(task.loss(model, batch), 1)
    check_gradient(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    unused = any(param.requires_grad and param.grad is None for param in model.parameters())
    return largest([float(unused)]) == [1.0]
