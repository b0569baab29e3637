"""What tasks have in common whose batches are (inputs, classes), and whose models give a score for every class."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from workers.task import Task


class Classification(Task):
    """Mean cross entropy, and how many are right."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, classes = batch
        return functional.cross_entropy(model(inputs), classes)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        inputs, classes = batch
        return {"accuracy": float((model(inputs).argmax(1) == classes).sum())}
