"""A task with all that makes a comparison hard: dropout, batch statistics, an unused parameter, weights of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.data import TensorData
from workers.task import Task


class _Net(nn.Module):
    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32) if normalise else nn.Identity(), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(32, 1)
        self.unused = nn.Linear(4, 4)


@dataclass(frozen=True)
class Odd(Task):
    """Weights samples by their first number, if `weighs`."""

    weighs: bool = True
    samples: int = 70
    normalise: bool = True
    """By batch statistics, which a batch of one sample has not."""

    def model(self) -> nn.Module:
        return _Net(self.normalise)

    def train_data(self) -> TensorData:
        inputs = torch.randn(self.samples, 6, generator=torch.Generator().manual_seed(7))
        return TensorData(inputs, inputs.sum(1, keepdim=True))

    def validation_data(self) -> TensorData:
        return self.train_data()

    def loss(self, model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, float]:
        inputs, targets = batch
        squares = (model.head(model.body(inputs)) - targets).square()  # not the model's forward, which it has not
        if not self.weighs:
            return squares.mean()
        weights = 1 + inputs[:, :1].abs()
        return (squares * weights).sum() / weights.sum(), float(weights.sum())
