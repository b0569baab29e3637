"""One rank's part of one step: from sample indices to a contribution. A pure function of (parameters, seed, step, rank)."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ps.errors import NonFinite
from workers.binding import BoundModel
from workers.data import cast, fetch, mean_and_weight
from workers.sampler import BatchPlan, sample_rng, torch_seed
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
    """Computes contributions into a bound model's gradient buffer."""

    def __init__(self, task: Task, data: Samples, plan: BatchPlan, bound: BoundModel, dtype: torch.dtype, *, rank: int, nonfinite: str) -> None:
        self._task = task
        self._data = data
        self._plan = plan
        self._bound = bound
        self._dtype = dtype
        self._rank = rank
        self._nonfinite = nonfinite

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Forward and backward over the rank's micro-batches. Raises NonFinite where that ends the run."""
        with spans.span("data_wait"):
            micro = self._plan.micro_batches(step, self._rank)
        model = self._bound.model
        model.train()
        model.zero_grad(set_to_none=True)
        loss_sum = weight = 0.0
        samples = 0
        for i, indices in enumerate(micro):
            batch = self._fetch(step, i, indices, spans)
            with spans.span("compute"):
                torch.manual_seed(torch_seed(self._plan.seed, step, self._rank, i))
                mean, its_weight = mean_and_weight(self._task.loss(model, batch), len(indices))
                samples += len(indices)
                if its_weight == 0:
                    continue
                self._check(step, value := float(mean.detach()))
                (mean if len(micro) == 1 else mean * its_weight).backward()  # type: ignore[no-untyped-call]
                loss_sum += value * its_weight
                weight += its_weight
        with spans.span("copy"):
            sums = (loss_sum, weight, float(samples), 1.0 if self._rank == 0 else 0.0) if weight else None
            self._bound.gather(weight, divide=len(micro) > 1, sums=sums)
        return Contribution(weight, samples, loss_sum / weight if weight else math.nan)

    def _fetch(self, step: int, micro: int, indices: Any, spans: Spans) -> Any:
        with spans.span("data_wait"):
            rng = sample_rng(self._plan.seed, step, self._rank, micro)
            return cast(fetch(self._task, self._data, indices, rng, training=True), self._dtype)

    def _check(self, step: int, loss: float) -> None:
        if self._nonfinite == "error" and not math.isfinite(loss):
            raise NonFinite(
                f"loss is {loss} at step {step} on rank {self._rank}: lower optimizer.lr, clip with optimizer.max_grad_norm, "
                'or skip such steps with optimizer.nonfinite = "skip"'
            )
