"""A perceptron of any size on generated data, for benchmarks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from workers.data import TensorData
from workers.tasks.classification import Classification


@dataclass(frozen=True)
class SyntheticMLP(Classification):
    """Learns the classes that a random linear map gives to Gaussian inputs."""

    inputs: int = 1024
    """Numbers in a sample, >= 1."""
    width: int = 1024
    """Width of the hidden layers, >= 1."""
    depth: int = 3
    """Hidden layers, >= 1: parameters are about inputs*width + (depth - 1)*width**2 + width*classes."""
    classes: int = 10
    """Classes, >= 2."""
    samples: int = 4096
    """Training samples, >= 8; an eighth as many validate."""
    seed: int = 0
    """Seeds the data, >= 0."""

    def __post_init__(self) -> None:
        least = {"inputs": 1, "width": 1, "depth": 1, "classes": 2, "samples": 8, "seed": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ValueError(f"task.{name} = {getattr(self, name)} is out of range: >= {limit}")

    def model(self) -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(self.depth):
            layers += [nn.Linear(self.width if i else self.inputs, self.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.width, self.classes))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def train_data(self) -> TensorData:
        return self._data(part=1, num_samples=self.samples)

    def validation_data(self) -> TensorData:
        return self._data(part=2, num_samples=self.samples // 8)

    def _data(self, part: int, num_samples: int) -> TensorData:
        teacher = np.random.default_rng((self.seed, 0)).standard_normal((self.inputs, self.classes), dtype=np.float32)
        inputs = np.random.default_rng((self.seed, part)).standard_normal((num_samples, self.inputs), dtype=np.float32)
        return TensorData(torch.from_numpy(inputs), torch.from_numpy((inputs @ teacher).argmax(1)))
