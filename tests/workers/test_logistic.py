from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from ps.config import OptimizerConfig, ScheduleConfig
from ps.errors import ConfigError
from ps.optimizers import num_slots, update_rule
from ps.schedules import learning_rate
from workers.data import cast
from workers.task import load_task
from workers.tasks.logistic import Logistic

STEPS = 500


@lru_cache
def problem() -> tuple[Logistic, nn.Linear, tuple[Tensor, Tensor]]:
    """The task, its model and all training scans, in float64."""
    task = Logistic(l2=0.05)
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    assert [p.shape for p in task.model().parameters()] == [p.shape for p in model.parameters()]
    return task, model, cast(task.train_data().tensors, torch.float64)


def loss_at(weights: Tensor) -> Tensor:
    """Loss over all training scans at 650 flat weights; gradients go to the model's parameters."""
    task, model, batch = problem()
    nn.utils.vector_to_parameters(weights, model.parameters())
    return task.loss(model, batch)


def gradient_at(weights: Tensor) -> Tensor:
    _, model, _ = problem()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss_at(weights), list(model.parameters()))])


def hessian_at(weights: Tensor) -> Tensor:
    """Mean of (diag(p) - p p^T) x (1, x)(1, x)^T over the scans, plus l2; p are the class probabilities."""
    task, model, (pixels, _) = problem()
    nn.utils.vector_to_parameters(weights, model.parameters())
    p = model(pixels).softmax(1).detach()
    ones = torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], 1)
    pairs = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    by_class = torch.einsum("nck,nij->cikj", pairs, ones[:, :, None] * ones[:, None, :]) / len(pixels)
    order = torch.arange(650).view(10, 65)
    flat = torch.cat([order[:, :64].flatten(), order[:, 64]])
    return by_class.reshape(650, 650)[flat][:, flat] + task.l2 * torch.eye(650, dtype=torch.float64)


@lru_cache
def minimum() -> Tensor:
    """Newton's method from zero, until the gradient is nothing but rounding."""
    weights = torch.zeros(650, dtype=torch.float64)
    for _ in range(8):
        weights = weights - torch.linalg.solve(hessian_at(weights), gradient_at(weights))
    assert gradient_at(weights).norm() < 1e-12
    return weights


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(lr=1.5),
        OptimizerConfig(lr=0.2, momentum=0.9),
        OptimizerConfig(lr=2.0, momentum=0.9, momentum_form="ema"),
        OptimizerConfig(lr=0.2, momentum=0.9, nesterov=True),
        OptimizerConfig(lr=0.3, momentum=0.9, dampening=0.5),
        OptimizerConfig(name="adam", lr=0.1),
        OptimizerConfig(name="adam", lr=0.1, amsgrad=True),
        OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.0),
        OptimizerConfig(name="rmsprop", lr=0.02),
        OptimizerConfig(name="rmsprop", lr=0.02, centered=True, momentum=0.5),
        OptimizerConfig(name="adagrad", lr=0.5),
    ],
    ids=lambda o: " ".join(f"{k}={v}" for k, v in vars(o).items() if k != "lr" and v not in (None, "error", "none", ())),
)
def test_every_optimizer_meets_the_same_minimum(optimizer: OptimizerConfig) -> None:
    rule, schedule = update_rule(optimizer), ScheduleConfig(name="cosine")
    weights = torch.randn(650, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slots = [torch.zeros_like(weights) for _ in range(num_slots(optimizer))]
    assert (weights - minimum()).norm() > 10
    for step in range(STEPS):
        rule(weights, gradient_at(weights), slots, step, learning_rate(optimizer, schedule, step, STEPS))
    assert (weights - minimum()).norm() < 2e-3
    assert 0 <= loss_at(weights).item() - loss_at(minimum()).item() < 1e-7


def test_the_loss_is_curved_by_l2_at_least_in_every_direction() -> None:
    for weights in (torch.zeros(650, dtype=torch.float64), minimum()):
        curvature = torch.linalg.eigvalsh(hessian_at(weights))
        assert 0.05 - 1e-9 < curvature.min() < 0.051
        assert curvature.max() < 5


def test_the_minimum_reads_digits() -> None:
    task, model, _ = problem()
    nn.utils.vector_to_parameters(minimum(), model.parameters())
    data = task.validation_data()
    with torch.no_grad():
        assert task.metrics(model, cast(data.tensors, torch.float64))["accuracy"] > 0.9 * len(data)


def test_the_penalty_is_shared_out_among_parts_of_a_batch() -> None:
    """The mean over parts, weighted by samples, is the loss of the whole: the penalty counts once."""
    task, model, (pixels, digits) = problem()
    parts = [slice(0, 100), slice(100, 400), slice(400, 1437)]
    sizes = [len(digits[part]) for part in parts]
    losses = [task.loss(model, (pixels[part], digits[part])).item() for part in parts]
    whole = task.loss(model, (pixels, digits)).item()
    assert sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes) == pytest.approx(whole, rel=1e-12)


def test_without_penalty_there_is_no_single_minimum() -> None:
    with pytest.raises(ConfigError, match=r"task\.l2 = 0\.0 is out of range: > 0"):
        load_task("logistic", {"l2": 0.0})
