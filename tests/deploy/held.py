"""A task that stands still after some steps for as long as a file is there, so that a run is in the middle when something is done to it."""

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.deploy.own_loops import Noisy

FREE_STEPS = 10
_calls = count()


@dataclass(frozen=True, kw_only=True)
class Held(Noisy):
    """`Noisy`, held after so many steps of a process."""

    gate: str

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if next(_calls) >= FREE_STEPS:
            while Path(self.gate).exists():
                time.sleep(0.02)
        return super().loss(model, batch)
