"""Multinomial logistic regression on the digits: one strictly convex loss, so one minimum for every optimizer."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workers.data import TensorData
from workers.tasks.classification import Classification
from workers.tasks.digits import Digits


@dataclass(frozen=True)
class Logistic(Classification):
    """No hidden layer; cross entropy + l2/2 * |w|^2 over weights and biases.

    The penalty makes the Hessian >= l2 in every direction; without it, adding one vector to all classes changes nothing.
    """

    l2: float = 0.01
    """Strength of the penalty, > 0. It is part of the loss, unlike optimizer.weight_decay, so that curves show it."""

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ValueError(f"task.l2 = {self.l2} is out of range: > 0")

    def model(self) -> nn.Module:
        return nn.Linear(64, 10)

    def train_data(self) -> TensorData:
        return Digits().train_data()

    def validation_data(self) -> TensorData:
        return Digits().validation_data()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        penalty = sum((p.square().sum() for p in model.parameters()), start=batch[0].new_zeros(()))
        return super().loss(model, batch) + self.l2 / 2 * penalty
