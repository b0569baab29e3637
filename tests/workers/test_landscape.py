import math

import pytest
import torch
from torch import nn

from workers.landscape import RELATIVE, landscape
from workers.tasks.digits import Digits
from workers.tasks.logistic import Logistic


def test_weights_come_back_and_the_same_weights_have_the_same_figures() -> None:
    task = Logistic()
    torch.manual_seed(0)
    model = task.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = landscape(task, model)
    assert landscape(task, model) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert first.gap == first.validation_loss - first.train_loss


def test_losses_are_means_over_all_samples() -> None:
    task = Digits(hidden=8)
    torch.manual_seed(0)
    model = task.model()
    inputs, classes = task.validation_data().tensors
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(inputs), classes)
    assert landscape(task, model, batch_size=7).validation_loss == pytest.approx(float(expected), rel=1e-5)


def test_a_sharper_minimum_rises_more() -> None:
    """Of a quadratic the mean rise is RELATIVE^2 / 2 times the sum of curvature times square of each weight."""

    class Quadratic(Logistic):
        def loss(self, model: nn.Module, batch: object) -> torch.Tensor:
            weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
            return self.curvature * ((weights - 1) ** 2).sum() / 2

    rises = []
    for curvature in (1.0, 4.0):
        task = Quadratic()
        object.__setattr__(task, "curvature", curvature)
        model = task.model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        rises.append(landscape(task, model).rise)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert rises[1] == pytest.approx(4 * rises[0])
    assert rises[0] == pytest.approx(RELATIVE**2 / 2 * size, rel=3 * math.sqrt(2 / size / 8))
