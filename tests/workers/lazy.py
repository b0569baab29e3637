"""The other side of one rank that is alone, which lets nothing land before it is waited for."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ps.layout import Layout, Rule
from ps.plan import Plan
from tests.ps.cluster import Member
from tests.ps.training import Job, Overlap
from workers.binding import BoundModel, specs_of
from workers.spans import Spans
from workers.step import GradientStep

LR = 0.1


class Lazy:
    """What a Client does for a session. A step is one of plain SGD; its tensors land one by one, when they are waited for."""

    def __init__(self, bound: BoundModel) -> None:
        self._bound = bound
        self._step = -1
        self._away: set[int] = set()
        """Tensors that have not landed."""
        self._present: dict[int, bool] = {}
        self.log: list[Any] = []
        """("ready", names) and ("wait", names), and what others write."""

    def _names(self, tensors: Sequence[int]) -> list[str]:
        return [self._bound.layout.specs[i].name for i in tensors]

    @property
    def away(self) -> set[str]:
        return set(self._names(sorted(self._away)))

    def begin(self, step: int, weight: float, gradients: Any) -> None:
        assert not self._away, "first-push gate"
        self._step, self._present = step, {}
        self._away = {i for i, spec in enumerate(self._bound.layout.specs) if spec.rule is not Rule.FROZEN}
        for i in self._away:
            view = self._bound._views[(step + 1) % 2][i]
            view.fill_(math.nan if view.is_floating_point() else 77)

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        self.log.append(("ready", self._names(tensors)))
        for i in tensors:
            assert i not in self._present, "named twice"
            self._present[i] = present

    def missing(self) -> list[int]:
        return sorted(self._away)

    def wait(self, tensors: Sequence[int]) -> None:
        self.log.append(("wait", self._names(tensors)))
        for i in self._away.intersection(tensors):
            self._land(i)

    def _land(self, i: int) -> None:
        before, after, contribution = (self._bound._views[place][i] for place in (self._step % 2, (self._step + 1) % 2, 2))
        after.copy_(before)
        if self._present[i]:
            if self._bound.layout.specs[i].rule is Rule.OPTIMIZER:
                after.add_(contribution, alpha=-LR)
            else:
                after.copy_(contribution)
        self._away.discard(i)

    def settle(self) -> None:
        for i in list(self._away):
            self._land(i)

    def prioritise(self, order: dict[int, int]) -> None:
        self.order = self._names(sorted(order, key=lambda i: order[i]))

    def share(self) -> None:
        return None


class Alone:
    """A job of one rank, step by step."""

    def __init__(self, job: Job, *, prepare: Callable[[nn.Module], object] = lambda model: None) -> None:
        model = job.model()
        self.bound = BoundModel(model, Layout(specs_of(model), 1))
        self.bound.install(0)
        self.lazy = Lazy(self.bound)
        prepare(model)
        self.overlap = Overlap(Member(0, self.bound, self.lazy, Plan(1, 1)), overlap=job.overlap)  # type: ignore[arg-type]
        self._step = 0
        self.gradient = GradientStep(
            job.task,
            job.task.train_data(),
            job.batches(),
            self.bound,
            self.overlap.pushes,
            self.overlap.layers,
            job.dtype,
            rank=0,
            nonfinite=job.optimizer.nonfinite,
        )

    def step(self) -> float:
        """One step; returns the loss."""
        self.overlap.enter()
        done = self.gradient.compute(self._step, Spans())
        self.overlap.step(self._step)
        self._step += 1
        return done.loss

    def weights(self) -> dict[str, torch.Tensor]:
        self.overlap.settle()
        return {name: tensor.detach().clone() for name, tensor in self.bound.model.state_dict().items()}
