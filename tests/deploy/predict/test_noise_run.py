"""The gradient noise scale of a whole run: from norms that servers have taken of what workers have pushed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ps.config import OptimizerConfig
from tests.deploy.forked import train
from workers.data import TensorData
from workers.task import Task

INPUTS, SAMPLES = 20, 4096


class Halves(nn.Module):
    """A linear map in two tensors, for two shards; begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Linear(INPUTS // 2, 1, bias=False) for _ in range(2))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[:, : INPUTS // 2]) + self.other(x[:, INPUTS // 2 :])


@dataclass(frozen=True)
class LeastSquares(Task):
    """Targets are linear but for noise of half their variance."""

    def model(self) -> nn.Module:
        return Halves()

    def train_data(self) -> TensorData:
        generator = torch.Generator().manual_seed(5)
        inputs, noise = torch.randn(SAMPLES, INPUTS, generator=generator), torch.randn(SAMPLES, generator=generator)
        true = torch.randn(INPUTS, generator=generator)
        return TensorData(inputs, inputs @ true / true.norm() + 0.7 * noise)

    def validation_data(self) -> TensorData:
        return TensorData(*(tensor[:64] for tensor in self.train_data().tensors))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return (model(inputs).squeeze(1) - targets).square().mean()


def direct_scale() -> float:
    """tr(Σ) / |G|², from the gradients of all single samples where the run begins."""
    inputs, targets = LeastSquares().train_data().tensors
    gradients = -2.0 * targets[:, None] * inputs
    return float(gradients.var(0).sum() / gradients.mean(0).square().sum())


def test_the_noise_scale_of_a_run_is_within_a_quarter_of_the_direct_estimate(tmp_path: Path) -> None:
    result = train(
        tmp_path, f"{__name__}:LeastSquares", batch_size=64, epochs=10, max_steps=300, num_servers=2, optimizer=OptimizerConfig(lr=1e-6),
        validate_every=10,
    )  # fmt: skip
    assert result.error is None
    found = json.loads((result.path / "summary.json").read_text())["comm"]["noise_scale"]
    assert found == pytest.approx(direct_scale(), rel=0.25)
