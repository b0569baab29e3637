"""What a worker computes of its rank: the whole model's part of steps and validation phases, or that of one stage."""

from typing import Protocol

import torch
from torch import nn

from ps.plan import Plan
from workers.sampler import BatchPlan
from workers.session import Session
from workers.spans import Spans
from workers.step import Contribution, GradientStep
from workers.task import Samples, Task
from workers.validate import validate


class Part(Protocol):
    """Bound to its session. `close` it: it may own threads."""

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Pushes the step's contribution. Raises NonFinite where that ends the run, ConfigError."""

    def validate(self, version: int) -> dict[str, float]:
        """Sums of the rank's part of a validation phase."""

    def close(self) -> None:
        """Ends the threads; returns after what they do."""


class WholePart:
    """Of a rank that is not split."""

    def __init__(
        self, session: Session, task: Task, model: nn.Module, plan: Plan, batches: BatchPlan, data: Samples, validation_data: Samples
    ) -> None:
        settings, config = session.settings, session.settings.train
        self._session = session
        self._task = task
        self._validation_data = validation_data
        self._batch_size = batches.micro_batch_size()
        self._dtype = getattr(torch, config.dtype)
        bound = session.bind(model, plan)
        self._gradient = GradientStep(
            task,
            data,
            batches,
            bound,
            session.pushes,
            session.layers,
            self._dtype,
            rank=session.rank,
            nonfinite=settings.optimizer.nonfinite,
            data_workers=config.data_workers,
            autocast=config.autocast,
        )
        self.compute = self._gradient.compute
        self.close = self._gradient.close

    def validate(self, version: int) -> dict[str, float]:
        bound = self._session.bound
        return validate(
            self._task,
            self._validation_data,
            bound.model,
            self._dtype,
            device=bound.device,
            rank=self._session.rank,
            num_workers=self._session.settings.num_workers,
            batch_size=self._batch_size,
        )
