"""A task of one's own. In the config file: [task] name = "examples/own_task.py:Rings"; the fields are its other keys."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.data import TensorData
from workers.task import Task


@dataclass(frozen=True)
class Rings(Task):
    """Tells points of a ring from points in its middle."""

    samples: int = 2000
    hidden: int = 32
    noise: float = 0.1

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))

    def train_data(self) -> TensorData:
        return self.points(seed=1)

    def validation_data(self) -> TensorData:
        return self.points(seed=2)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        points, outside = batch
        return nn.functional.binary_cross_entropy_with_logits(model(points).squeeze(1), outside)

    def points(self, seed: int) -> TensorData:
        rng = torch.Generator().manual_seed(seed)
        outside = torch.randint(2, (self.samples,), generator=rng).float()
        angle = torch.rand(self.samples, generator=rng) * 2 * torch.pi
        points = torch.stack([angle.cos(), angle.sin()], dim=1) * outside[:, None]
        return TensorData(points + self.noise * torch.randn(points.shape, generator=rng), outside)
