"""The runs behind the plots of docs/optimisation.md: the servers' own update rules and schedules, in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ps.config import OptimizerConfig, ScheduleConfig
from ps.optimizers import num_slots, update_rule
from ps.schedules import learning_rate
from workers.data import TensorData
from workers.sampler import BatchPlan
from workers.task import Task

CONSTANT = ScheduleConfig()


def descend(
    optimizer: OptimizerConfig,
    gradient: Callable[[Tensor], Tensor],
    start: Sequence[float] | Tensor,
    steps: int,
    schedule: ScheduleConfig = CONSTANT,
) -> Tensor:
    """Weights before and after every step, float64 [steps + 1, len(start)]."""
    weights = torch.as_tensor(start, dtype=torch.float64).clone()
    rule, slots = update_rule(optimizer), [torch.zeros_like(weights) for _ in range(num_slots(optimizer))]
    path = [weights.clone()]
    for step in range(steps):
        rule(weights, gradient(weights).clone(), slots, step, learning_rate(optimizer, schedule, step, steps))
        path.append(weights.clone())
    return torch.stack(path)


@dataclass(frozen=True)
class Valley:
    """w^T A w / 2 with curvatures 1 and `ratio` along axes turned by `angle`."""

    ratio: float = 20.0
    angle: float = 0.5

    @property
    def matrix(self) -> Tensor:
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = torch.tensor([[c, -s], [s, c]])
        return turn @ torch.diag(torch.tensor([1.0, self.ratio], dtype=torch.float64)) @ turn.T

    def gradient(self, weights: Tensor) -> Tensor:
        return self.matrix @ weights


@dataclass
class History:
    """Losses by epoch; the first entry is that of the initial weights."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


class FlatTask:
    """A task's losses and gradients at a flat vector of weights."""

    def __init__(self, task: Task, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.task, self.model = task, task.model().to(dtype)
        self.train_data, self.validation_data = (_cast(data, dtype) for data in (task.train_data(), task.validation_data()))
        self.start = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()

    def loss(self, weights: Tensor, data: TensorData, indices: np.ndarray | None = None) -> Tensor:
        nn.utils.vector_to_parameters(weights, self.model.parameters())
        loss = self.task.loss(self.model, data.tensors if indices is None else data.batch(indices))
        assert isinstance(loss, Tensor)
        return loss

    def gradient(self, weights: Tensor, indices: np.ndarray | None = None) -> Tensor:
        loss = self.loss(weights, self.train_data, indices)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.model.parameters()))])

    def fit(self, optimizer: OptimizerConfig, *, batch: int, epochs: int, schedule: ScheduleConfig = CONSTANT, seed: int = 0) -> History:
        """Mini-batches as a run with `train.global_batch_size = batch` draws them."""
        plan = BatchPlan(len(self.train_data), num_workers=1, global_batch=batch, accumulate=1, seed=seed)
        per_epoch = plan.steps_per_epoch()
        weights, rule, history = self.start.clone(), update_rule(optimizer), History()
        slots = [torch.zeros_like(weights) for _ in range(num_slots(optimizer))]
        self._note(weights, history)
        for step in range(per_epoch * epochs):
            gradient = self.gradient(weights, plan.global_indices(step))
            rule(weights, gradient, slots, step, learning_rate(optimizer, schedule, step, per_epoch * epochs, per_epoch))
            if (step + 1) % per_epoch == 0:
                self._note(weights, history)
        return history

    def _note(self, weights: Tensor, history: History) -> None:
        history.train.append(self.loss(weights, self.train_data).item())
        history.validation.append(self.loss(weights, self.validation_data).item())


def _cast(data: object, dtype: torch.dtype) -> TensorData:
    assert isinstance(data, TensorData)
    return TensorData(*(t.to(dtype) if t.is_floating_point() else t for t in data.tensors))
