"""The losses of trained weights: on the data they were trained on, on data they have not seen, and a step beside them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from workers.answers import data_of
from workers.task import Samples, Task
from workers.validate import validate

RELATIVE = 0.1
"""Standard deviation of a perturbation, in parts of each weight."""
DRAWS = 8
"""Perturbations of which the mean is taken; each from its own seed, the same for all weights that are compared."""


@dataclass(frozen=True)
class Landscape:
    """Means over samples, in eval mode."""

    train_loss: float
    validation_loss: float
    rise: float
    """How much higher the validation loss is with every weight w at w·(1 + RELATIVE·ξ), ξ normal: small where the minimum is flat."""

    @property
    def gap(self) -> float:
        """Of generalisation."""
        return self.validation_loss - self.train_loss


def landscape(task: Task, model: nn.Module, *, batch_size: int = 256) -> Landscape:
    """Of the weights in `model`, which come back as they were."""
    validation = data_of(task, "validation")

    def loss(data: Samples) -> float:
        dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
        sums = validate(task, data, model, dtype, device=torch.device("cpu"), rank=0, num_workers=1, batch_size=batch_size)
        return sums["loss"] / sums["weight"] if sums["weight"] else math.nan

    at_rest = loss(validation)
    rises = []
    for seed in range(DRAWS):
        with _perturbed(model, seed):
            rises.append(loss(validation) - at_rest)
    return Landscape(loss(data_of(task, "train")), at_rest, sum(rises) / len(rises))


@contextmanager
def _perturbed(model: nn.Module, seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1 + RELATIVE * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)
