"""A GradientStep without servers."""

from collections.abc import Sequence
from typing import Any

from workers.binding import BoundModel
from workers.layers import Layers
from workers.pushes import Pushes
from workers.spans import Spans
from workers.step import GradientStep


class Nobody:
    """The other side of a rank that is alone: takes everything, and has everything at once."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[int], bool]] = []
        """What was named `ready`, and whether it was present, in the order of the calls of this step."""

    def begin(self, step: int, weight: float) -> None:
        self.taken = []

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        self.taken.append((list(tensors), present))

    def missing(self) -> Sequence[int]:
        return ()

    def wait(self, tensors: Sequence[int]) -> None:
        pass

    def prioritise(self, order: dict[int, int]) -> None:
        pass

    def share(self) -> None:
        return None


def gradient_step(task: Any, data: Any, plan: Any, bound: BoundModel, dtype: Any, *, early: bool = True, **options: Any) -> GradientStep:
    """Its gradients are in `bound.gradients` after `compute`."""
    nobody, spans = Nobody(), Spans()
    pushes = Pushes(bound, nobody, spans, early=early, own_loop=True)
    return GradientStep(task, data, plan, bound, pushes, Layers(bound, nobody, spans, layerwise=early, in_place=early), dtype, **options)
