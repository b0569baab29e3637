"""A task that goes wrong in the way that it is told to."""

import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workers.data import TensorData
from workers.sampler import torch_seed
from workers.task import Task

BROKEN = "tests.deploy.broken:Broken"
ENDLESS = {"batch_size": 8, "epochs": 1_000_000}


@dataclass(frozen=True)
class Broken(Task):
    """`how` it goes wrong; `mark` is a file by which the test and the ranks tell each other."""

    how: str = ""
    mark: str = ""

    def model(self) -> nn.Module:
        if self.how == "model":
            raise RuntimeError("there is no\nsuch layer")
        width = 5 if self.how == "shapes" and self._is_first() else 4
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))

    def train_data(self) -> TensorData:
        if self.how == "train_data":
            raise FileNotFoundError(2, "No such file or directory", "/data/missing")
        return _samples(0 if self.how == "empty" else 256)

    def validation_data(self) -> TensorData:
        return _samples(0 if self.how == "no validation" else 32)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        if model.training:
            self._train()
        elif self.how == "long validation":
            Path(self.mark).touch()
            signal.pause()
        loss = (model(inputs) - targets).square().mean()
        if self.how == "writes late" and torch.initial_seed() in (torch_seed(0, 5, 0), torch_seed(0, 6, 1)):
            model[0].weight.detach().mul_(0.5)
        if self.how == "random" and model.training:
            return loss * (1 + int.from_bytes(os.urandom(4), "little") / 2**32)
        return loss * math.nan if self.how == "nan" and torch.initial_seed() == torch_seed(0, 7, 1) else loss

    def _train(self) -> None:
        if self.how == "loss":
            raise ValueError("labels are\nmissing")
        if self.how == "loss of step 5" and torch.initial_seed() == torch_seed(0, 5, 1):
            raise ValueError("labels are missing")
        if self.how == "suicide" and torch.initial_seed() == torch_seed(0, 5, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "long":
            time.sleep(0.01)
        if self.how == "random" and torch.initial_seed() == torch_seed(0, 5, 1):
            while not Path(self.mark).exists():
                time.sleep(0.01)
        if self.how == "slow":
            _hold_the_interpreter(3.0)

    def _is_first(self) -> bool:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Wrong(Broken):
    """Returns what it should not, as `how` says."""

    def model(self) -> Any:
        model = super().model()
        return {"no model": None, "half model": model.half()}.get(self.how, model) if "model" in self.how else model

    def train_data(self) -> Any:
        return None if self.how == "no data" else super().train_data()

    def loss(self, model: nn.Module, batch: Any) -> Any:
        loss = super().loss(model, batch)
        answers = {"vector loss": loss.reshape(1), "detached loss": loss.detach(), "weightless loss": (loss, 0.0)}
        return answers.get(self.how, loss)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        return {"loss": 1.0} if self.how == "metric loss" else {}


def _hold_the_interpreter(seconds: float) -> None:
    """Keeps every other thread of the process from running, as a C extension may that never releases the lock."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    sys.setswitchinterval(former)


def _samples(number: int) -> TensorData:
    inputs = torch.randn(number, 8, generator=torch.Generator().manual_seed(7))
    return TensorData(inputs, inputs.sum(1, keepdim=True))
