"""What a worker of a split rank computes: its stage's part of steps and validation phases."""

import logging
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ps.plan import Plan
from workers.batches import Batches
from workers.sampler import BatchPlan
from workers.session import Session
from workers.spans import Spans
from workers.stages.building import build, check_blocks
from workers.stages.model_call import inputs_of
from workers.stages.stage import Stage
from workers.stages.step import StageStep
from workers.stages.validate import StageValidation
from workers.step import Contribution, loss_not_finite
from workers.task import Samples, Task

log = logging.getLogger(__name__)


class StagePart:
    """Of one stage, which has its own blocks of the model."""

    def __init__(self, session: Session, task: Task, plan: Plan, batches: BatchPlan, data: Samples, validation_data: Samples) -> None:
        """Raises ConfigError where the model cannot be split so."""
        settings, config = session.settings, session.settings.train
        self._session = session
        self._nonfinite = settings.optimizer.nonfinite
        self._batch_size = batches.micro_batch_size()
        batches = replace(batches, accumulate=batches.accumulate * settings.pipeline.micro_batches)
        dtype = getattr(torch, config.dtype)
        inputs = partial(_first_inputs, task, data, batches, dtype)
        links = session.links
        assert links, "a stage has neighbours"
        is_first = session.rank == 0 and not links.earlier
        if is_first:
            check_blocks(task, config, inputs)
        built = build(task, config, settings.pipeline, settings.stage, settings.num_stages, inputs)
        place = built.place
        if is_first:
            log.info("%s", place.split)
        recompute = settings.pipeline.recompute
        stage = Stage(task, place.own, place.first, seed=config.seed, rank=session.rank, check=self._check, recompute=recompute)
        needs_data = not (links.earlier and links.later)
        loaded = Batches(task, data, batches, dtype, rank=session.rank, num_threads=config.data_workers) if needs_data else None
        bound = session.bind(built.model, plan, stages=place.stages(built.model), digests=built.digests)
        self._validation = StageValidation(task, validation_data, stage, bound.model, dtype, rank=session.rank, num_workers=settings.num_workers)
        self._step = StageStep(
            stage,
            loaded,
            batches,
            bound,
            session.pushes,
            place=(settings.stage, settings.num_stages),
            schedule=settings.pipeline.schedule,
            earlier=links.earlier,
            later=links.later,
            rank=session.rank,
        )

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Raises NonFinite where that ends the run, ConfigError, NeighbourLost."""
        return self._step.compute(step, spans)

    def validate(self, version: int) -> dict[str, float]:
        """Sums of the rank's part; none on stages before the last."""
        links = self._session.links
        assert links
        return self._validation.run(version, self._batch_size, links.earlier, links.later)

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) and self._nonfinite == "error":
            raise loss_not_finite(loss, step, self._session.rank)

    def close(self) -> None:
        """Ends the threads that load data."""
        self._step.close()


def _first_inputs(task: Task, data: Samples, batches: BatchPlan, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of rank 0's first micro-batch, which always has samples."""
    first = Batches(task, data, batches, dtype, rank=0, num_threads=0)
    return inputs_of(task, next(iter(first.of_step(0, Spans()))).batch)
