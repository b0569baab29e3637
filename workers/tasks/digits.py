"""Handwritten digits: scikit-learn's 1,797 scans of 8 x 8 pixels."""

from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.data import TensorData
from workers.tasks.classification import Classification

NUM_TRAIN = 1437
"""Scans of the training part; the other 360 validate."""


@dataclass(frozen=True)
class Digits(Classification):
    """A perceptron with two hidden layers on a fixed split of the scans."""

    hidden: int = 64
    """Width of the hidden layers, >= 1."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"task.hidden = {self.hidden} is out of range: >= 1")

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 10),
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def train_data(self) -> TensorData:
        return _scans(slice(NUM_TRAIN))

    def validation_data(self) -> TensorData:
        return _scans(slice(NUM_TRAIN, None))


def rows() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Each scan and, behind it, its digit: of scikit-learn's file, for to import scikit-learn takes as long as to import torch."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(path), delimiter=",")


def _scans(part: slice) -> TensorData:
    shuffled = np.random.default_rng(0).permutation(rows())[part]
    return TensorData(torch.tensor(shuffled[:, :-1] / 16, dtype=torch.float32), torch.tensor(shuffled[:, -1], dtype=torch.int64))
