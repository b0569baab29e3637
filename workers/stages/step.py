"""One stage's part of one step of its rank: what `GradientStep` is for a whole model."""

import math
from collections.abc import Iterable

from ps.stages.neighbour import Neighbour
from workers.batches import Batches, MicroBatch
from workers.binding import BoundModel
from workers.pushes import Pushes
from workers.sampler import BatchPlan
from workers.spans import Spans
from workers.stages.schedule import Schedule, passes
from workers.stages.stage import Stage
from workers.step import Contribution


class StageStep:
    """Computes the contributions of a stage's tensors into a bound model's gradient buffer. `close` it: it may own threads.

    The bits depend on blocks and micro-batches, not on how many stages there are. Nothing is put to a neighbour before all of the step's
    version is installed, so that a backward of the step proves that all stages of the rank have landed it.
    """

    def __init__(
        self,
        stage: Stage,
        batches: Batches | None,
        plan: BatchPlan,
        bound: BoundModel,
        pushes: Pushes,
        *,
        place: tuple[int, int],
        schedule: Schedule,
        earlier: Neighbour | None,
        later: Neighbour | None,
        rank: int,
    ) -> None:
        """`place`: the stage, and how many there are. `batches`: of the first and the last stage, which need data."""
        self._stage = stage
        self._batches = batches
        self._plan = plan
        self._bound = bound
        self._pushes = pushes
        self._place = place
        self._schedule = schedule
        self._earlier = earlier
        self._later = later
        self._rank = rank
        self._losses: list[tuple[float, float]] = []
        """Loss and weight of the step's micro-batches, as far as they are known; only the last stage knows losses."""

    def compute(self, step: int, spans: Spans) -> Contribution:
        """Forward and backward over the rank's micro-batches; gradients leave during the last backward. Raises NonFinite where that ends the
        run, ConfigError, NeighbourLost."""
        with spans.span("forward"):
            self._bound.model.train()
            self._bound.model.zero_grad(set_to_none=True)
        micros = list(self._micros(step, spans))
        with spans.span("copy"):
            self._bound.mover.wait()
        self._stage.begin()
        self._losses = []
        for op in passes(self._schedule, *self._place, len(micros)):
            if op.kind == "forward":
                self._forward(step, micros[op.micro], spans)
            else:
                self._backward(step, micros, op.micro, spans)
        if not micros:
            self._pass_nothing(step, spans)
            self._begin(step, micros)
        self._pushes.end()
        loss, weight = self._totals()
        samples = 0 if self._later else sum(micro.num_samples for micro in micros)  # a rank's are counted once
        return Contribution(weight, samples, loss / weight if weight and not self._later else math.nan)

    def _micros(self, step: int, spans: Spans) -> Iterable[MicroBatch]:
        if self._batches:
            return self._batches.of_step(step, spans)
        parts = self._plan.micro_batches(step, self._rank)
        return [MicroBatch(index, len(parts), len(indices), None) for index, indices in enumerate(parts)]

    def _forward(self, step: int, micro: MicroBatch, spans: Spans) -> None:
        inputs = None
        if self._earlier:
            with spans.span("bubble"):
                inputs = self._earlier.take_activations(step, micro.index)
        with spans.span("forward"):
            if inputs is None:
                inputs = self._stage.inputs(step, micro)
            if self._later:
                self._later.put_activations(step, micro.index, self._stage.forward(step, micro, inputs))
            else:
                self._losses.append(self._stage.forward_to_loss(step, micro, inputs, several=micro.num_in_step > 1))

    def _backward(self, step: int, micros: list[MicroBatch], index: int, spans: Spans) -> None:
        gradients = None
        if self._later:
            with spans.span("bubble"):
                gradients, weight = self._later.take_gradients(step, index)
            self._losses.append((0.0, weight))
        if index + 1 == len(micros):
            self._begin(step, micros)
        with spans.span("backward"):
            back = self._stage.backward(index, gradients)
            if self._earlier:
                self._earlier.put_gradients(step, index, back, self._losses[index][1])

    def _pass_nothing(self, step: int, spans: Spans) -> None:
        """A rank without samples: its stages wait for each other all the same."""
        with spans.span("bubble"):
            if self._earlier:
                self._earlier.take_activations(step, 0)
            if self._later:
                self._later.put_activations(step, 0, ())
                self._later.take_gradients(step, 0)
            if self._earlier:
                self._earlier.put_gradients(step, 0, (), 0.0)

    def _totals(self) -> tuple[float, float]:
        return sum(mean * weight for mean, weight in self._losses), sum(weight for _, weight in self._losses)

    def _begin(self, step: int, micros: list[MicroBatch]) -> None:
        loss, weight = self._totals()
        samples = float(sum(micro.num_samples for micro in micros))
        sums = (loss, weight, samples, 1.0 if self._rank == 0 else 0.0) if weight else None
        self._pushes.begin(step, sums, weight=weight, divide=len(micros) > 1)

    def close(self) -> None:
        """Ends the threads that load data; returns after the loads in progress."""
        if self._batches:
            self._batches.close()
