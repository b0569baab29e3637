"""One rank's part of one step: from a batch to a contribution. A pure function of (parameters, seed, step, rank)."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from ps.errors import NonFinite
from workers.answers import check_gradient, mean_and_weight
from workers.batches import Batches, MicroBatch
from workers.binding import BoundModel
from workers.sampler import BatchPlan, torch_seed
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
        self._rank = rank
        self._nonfinite = nonfinite
        self._autocast = autocast
        self._batches = Batches(task, data, plan, dtype, rank=rank, num_threads=data_workers, device=bound.device)

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Forward and backward over the rank's micro-batches. Raises NonFinite where that ends the run."""
        model = self._bound.model
        with spans.span("compute"):
            model.train()
            model.zero_grad(set_to_none=True)
        loss_sum = weight = 0.0
        samples = 0
        several = False
        for micro in self._batches.of_step(step, spans):
            several = micro.num_in_step > 1
            with spans.span("copy"):
                self._bound.mover.wait()
            with spans.span("compute"):
                mean, its_weight = self._forward(step, micro)
                samples += micro.num_samples
                if its_weight == 0:
                    continue
                check_gradient(mean)
                (mean * its_weight if several else mean).backward()  # type: ignore[no-untyped-call]
                self._check(step, value := float(mean.detach()))  # on a GPU this waits for all of the above
                loss_sum += value * its_weight
                weight += its_weight
        with spans.span("copy"):
            sums = (loss_sum, weight, float(samples), 1.0 if self._rank == 0 else 0.0) if weight else None
            self._bound.gather(weight, divide=several, sums=sums)
        return Contribution(weight, samples, loss_sum / weight if weight else math.nan)

    def close(self) -> None:
        """Ends the threads that load data; returns after the loads in progress."""
        self._batches.close()

    def _forward(self, step: int, micro: MicroBatch) -> tuple[torch.Tensor, float]:
        torch.manual_seed(torch_seed(self._plan.seed, step, self._rank, micro.index))
        with lower_precision(self._autocast, self._bound.device):
            return mean_and_weight(self._task.loss(self._bound.model, micro.batch), micro.num_samples)

    def _check(self, step: int, loss: float) -> None:
        if self._nonfinite == "error" and not math.isfinite(loss):
            raise NonFinite(
                f"loss is {loss} at step {step} on rank {self._rank}: lower optimizer.lr, clip with optimizer.max_grad_norm, "
                'or skip such steps with optimizer.nonfinite = "skip"'
            )


def lower_precision(autocast: str, device: torch.device) -> AbstractContextManager[object]:
    """Torch's autocast on the model's device; weights and gradients keep their type."""
    return nullcontext() if autocast == "none" else torch.autocast(device.type, dtype=getattr(torch, autocast))
