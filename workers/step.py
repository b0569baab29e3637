"""One rank's part of one step: from a batch to a contribution. A pure function of (parameters, seed, step, rank)."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ps.errors import ConfigError, NonFinite
from workers.answers import check_gradient, mean_and_weight
from workers.batches import Batches, MicroBatch
from workers.binding import BoundModel
from workers.layers import Layers
from workers.pushes import Pushes
from workers.sampler import BatchPlan
from workers.seeds import BlockSeeds
from workers.spans import Spans
from workers.task import Samples, Task


@dataclass(frozen=True)
class Contribution:
    """What the step's push carries beside the gradients."""

    weight: float
    samples: int
    loss: float
    """Weighted mean over the rank's samples; NaN without any."""


class GradientStep:
    """Computes contributions into a bound model's gradient buffer. `close` it: it may own threads."""

    def __init__(
        self,
        task: Task,
        data: Samples,
        plan: BatchPlan,
        bound: BoundModel,
        pushes: Pushes,
        layers: Layers,
        dtype: torch.dtype,
        *,
        rank: int,
        nonfinite: str,
        data_workers: int = 0,
        autocast: Literal["none", "bfloat16"] = "none",
    ) -> None:
        self._task = task
        self._plan = plan
        self._bound = bound
        self._pushes = pushes
        self._layers = layers
        self._rank = rank
        self._nonfinite = nonfinite
        self._autocast = autocast
        self._seeds = BlockSeeds(task, bound.model, plan.seed, rank)
        self._batches = Batches(task, data, plan, dtype, rank=rank, num_threads=data_workers, device=bound.device)

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Forward and backward over the rank's micro-batches; gradients leave meanwhile. Raises NonFinite where that ends the run."""
        done = Contribution(0.0, 0, 0.0)
        with spans.span("forward"):  # and what no span within names
            self._bound.model.train()
            self._bound.model.zero_grad(set_to_none=True)
            for micro in self._batches.of_step(step, spans):
                several = micro.num_in_step > 1
                with spans.span("copy"):
                    self._bound.mover.wait()
                with self._layers.traced():
                    mean, weight = self._forward(step, micro)
                if weight:
                    check_gradient(mean)
                    value = float(mean.detach())  # on a GPU this waits for all of the above
                    self._check(step, value, micro)
                    done = Contribution(done.weight + weight, done.samples, done.loss + value * weight)
                done = replace(done, samples=done.samples + micro.num_samples)
                is_last = micro.index + 1 == micro.num_in_step
                if is_last:
                    self._begin(step, done, several)
                with spans.span("backward"):
                    if weight:
                        (mean * weight if several else mean).backward()  # type: ignore[no-untyped-call]
                    if is_last:
                        self._pushes.end()
            if not done.samples:
                self._begin(step, done, several=False)
                self._pushes.end()
        return replace(done, loss=done.loss / done.weight if done.weight else math.nan)

    def _begin(self, step: int, done: Contribution, several: bool) -> None:
        sums = (done.loss, done.weight, float(done.samples), 1.0 if self._rank == 0 else 0.0) if done.weight else None
        self._pushes.begin(step, sums, weight=done.weight, divide=several)

    def close(self) -> None:
        """Ends the threads that load data; returns after the loads in progress."""
        self._batches.close()

    def _forward(self, step: int, micro: MicroBatch) -> tuple[torch.Tensor, float]:
        self._seeds.begin(step, micro.index)
        with lower_precision(self._autocast, self._bound.device):
            return mean_and_weight(self._task.loss(self._bound.model, micro.batch), micro.num_samples)

    def _check(self, step: int, loss: float, micro: MicroBatch) -> None:
        if math.isfinite(loss):
            return
        if name := self._layers.unproven(lambda: self._forward(step, micro)):
            raise ConfigError(
                f"loss is {loss} at step {step} on rank {self._rank}, perhaps because {name} was used where the first step did not use it: "
                "set train.overlap = false"
            )
        if self._nonfinite == "error":
            raise loss_not_finite(loss, step, self._rank)


def loss_not_finite(loss: float, step: int, rank: int) -> NonFinite:
    """The end of a run whose loss is NaN or infinite, with what helps."""
    return NonFinite(
        f"loss is {loss} at step {step} on rank {rank}: lower optimizer.lr, clip with optimizer.max_grad_norm, "
        'or skip such steps with optimizer.nonfinite = "skip"'
    )


def lower_precision(autocast: str, device: torch.device) -> AbstractContextManager[object]:
    """Torch's autocast on the model's device; weights and gradients keep their type."""
    return nullcontext() if autocast == "none" else torch.autocast(device.type, dtype=getattr(torch, autocast))
