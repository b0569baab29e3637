"""A task whose parts take as long as they are told to, without using a processor: for bottlenecks that are planted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.idle import Idle
from workers.data import TensorData
from workers.device import Mover
from workers.sampler import Indices
from workers.task import Task


@dataclass(frozen=True)
class Planted(Task):
    """Layers that take time and learn nothing."""

    sizes: list[int] = field(default_factory=lambda: [65536] * 8)
    """Elements of every layer."""
    compute_s: float = 0.0
    """Forward and backward of a step."""
    data_s: float = 0.0
    """Until a batch is there."""
    copy_s: float = 0.0
    """What the copies of a step take longer, between the device and host memory."""
    samples: int = 1024

    def model(self) -> nn.Module:
        if self.copy_s:
            _slow_copies(self.copy_s / len(self.sizes))
        return nn.Sequential(*(Idle(size, self.compute_s / len(self.sizes) / 3) for size in self.sizes))

    def train_data(self) -> TensorData:
        return Slow(self.data_s, torch.zeros(self.samples, 1))

    def validation_data(self) -> TensorData:
        return TensorData(torch.zeros(1, 1))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch[0].requires_grad_())
        return outputs.square().mean()


class Slow(TensorData):
    """Batches take their time."""

    def __init__(self, seconds: float, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self._seconds = seconds

    def batch(self, indices: Indices) -> tuple[Tensor, ...]:
        time.sleep(self._seconds)
        return super().batch(indices)


def _slow_copies(seconds: float) -> None:
    """Every copy of this process takes so much longer, as over a slow bus."""
    quick = Mover.copies

    @contextmanager
    def slow(self: Mover) -> Iterator[None]:
        with quick(self):
            yield
            time.sleep(seconds)

    Mover.copies = slow  # type: ignore[method-assign]
