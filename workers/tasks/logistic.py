"""Multinomial logistic regression on the digits: one strictly convex loss, so one minimum for every optimizer."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from workers.data import TensorData
from workers.task import Task
from workers.tasks.digits import Digits


@dataclass(frozen=True)
class Logistic(Task):
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
        pixels, digits = batch
        penalty = sum((p.square().sum() for p in model.parameters()), start=pixels.new_zeros(()))
        return functional.cross_entropy(model(pixels), digits) + self.l2 / 2 * penalty

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        pixels, digits = batch
        return {"accuracy": float((model(pixels).argmax(1) == digits).sum())}
