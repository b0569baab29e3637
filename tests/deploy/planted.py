"""Tasks with a planted bottleneck."""

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.data import TensorData
from workers.sampler import sample_rng, torch_seed
from workers.task import Task

_SAMPLES = 512
_MOST_STEPS = 200


@dataclass(frozen=True)
class Planted(Task):
    """A small perceptron; the last field of every sample is the number of the sample."""

    width: int = 64
    loss_s: float = 0.0
    """Every rank waits so long in a step's loss."""
    slow_rank: int = -1
    """This rank ..."""
    slow_loss_s: float = 0.0
    """... waits so long in a step's loss ..."""
    slow_data_s: float = 0.0
    """... and so long for a step's data."""
    sample_s: float = 0.0
    """Every rank waits so long for a sample."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, 1))

    def train_data(self) -> Any:
        return Waiting(self.sample_s)

    def validation_data(self) -> TensorData:
        return TensorData(*_samples())

    def augment(self, samples: list[Any], rng: np.random.Generator) -> list[Any]:
        if self.slow_data_s and rng.bit_generator.state in _states(self.slow_rank):
            time.sleep(self.slow_data_s)
        return samples

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        if model.training:
            time.sleep(self.loss_s + (self.slow_loss_s if torch.initial_seed() in _seeds(self.slow_rank) else 0.0))
        return (model(inputs).squeeze(1) - targets).square().mean()


class Waiting:
    """Samples that take their time."""

    def __init__(self, sample_s: float) -> None:
        self._sample_s = sample_s
        self._data = TensorData(*_samples())

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int, /) -> tuple[Tensor, ...]:
        time.sleep(self._sample_s)
        return self._data[index]


def _samples() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(_SAMPLES, 64, generator=torch.Generator().manual_seed(7))
    return inputs, inputs.sum(1)


@functools.cache
def _seeds(rank: int) -> set[int]:
    """What torch is seeded with in the steps of a rank: a task is not told which it serves."""
    return {torch_seed(0, step, rank, 0) for step in range(_MOST_STEPS)} if rank >= 0 else set()


@functools.cache
def _states(rank: int) -> list[Any]:
    return [sample_rng(0, step, rank, 0).bit_generator.state for step in range(_MOST_STEPS)]
