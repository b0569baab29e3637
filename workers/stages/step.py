"""One rank's part of one step, its model split over stages: what `GradientStep` is for a whole one."""

import math

import torch

from workers.batches import Batches
from workers.binding import BoundModel
from workers.pushes import Pushes
from workers.sampler import BatchPlan
from workers.spans import Spans
from workers.stages.blocks import blocks_of, check_composition, check_tied
from workers.stages.pipeline import Pipeline
from workers.stages.split import Split
from workers.stages.stage import Stage
from workers.step import Contribution, loss_not_finite
from workers.task import Samples, Task


class StagedStep:
    """Computes contributions into a bound model's gradient buffer, and pushes them when the last stage has ended. `close` it: it owns threads.

    The bits depend on blocks and micro-batches, not on how many stages there are. `pushes` must not push early.
    """

    def __init__(
        self,
        task: Task,
        data: Samples,
        plan: BatchPlan,
        bound: BoundModel,
        pushes: Pushes,
        dtype: torch.dtype,
        *,
        split: Split,
        rank: int,
        nonfinite: str,
    ) -> None:
        """Raises ConfigError where the model cannot be split so."""
        self._bound = bound
        self._pushes = pushes
        self._rank = rank
        self._nonfinite = nonfinite
        self._blocks = blocks_of(task, bound.model)
        check_tied(bound.model, self._blocks, split)
        self._batches = Batches(task, data, plan, dtype, rank=rank, num_threads=0, device=bound.device)
        self._stages = [
            Stage(task, [self._blocks[i] for i in held], held.start, seed=plan.seed, rank=rank, check=self._check) for held in split.stages
        ]
        self._pipeline = Pipeline(self._stages)
        self._is_checked = False

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Forward and backward over the rank's micro-batches, then the push. Raises NonFinite where that ends the run, ConfigError."""
        micros = list(self._batches.of_step(step, spans))
        with spans.span("copy"):
            self._bound.mover.wait()
        with spans.span("compute"):
            self._bound.model.train()
            self._bound.model.zero_grad(set_to_none=True)
            if micros and not self._is_checked:
                check_composition(self._bound.model, self._blocks, self._stages[0].inputs(step, micros[0]))
                self._is_checked = True
            losses = self._pipeline.run(step, micros)
        loss, weight = sum(mean * weight for mean, weight in losses), sum(weight for _, weight in losses)
        done = Contribution(weight, sum(micro.num_samples for micro in micros), loss / weight if weight else math.nan)
        sums = (loss, weight, float(done.samples), 1.0 if self._rank == 0 else 0.0) if weight else None
        self._pushes.begin(step, sums, weight=weight, divide=len(micros) > 1)
        self._pushes.end()
        return done

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) and self._nonfinite == "error":
            raise loss_not_finite(loss, step, self._rank)

    def close(self) -> None:
        """Ends the threads."""
        self._pipeline.close()
        self._batches.close()
