"""A layer that takes its time and uses no processor."""

import time
from typing import Any

import torch
from torch import Tensor, nn


class Idle(nn.Module):
    """A layer that takes time and gives back its input, as one does that computes on another device."""

    def __init__(self, elements: int, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(elements))
        self._seconds = seconds

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = _Idle.apply(inputs, self.weight, self._seconds)  # type: ignore[no-untyped-call]
        return outputs


class _Idle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, seconds: float) -> Tensor:
        ctx.size, ctx.seconds = len(weight), seconds
        time.sleep(seconds)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        time.sleep(2 * ctx.seconds)
        return gradients[0], torch.zeros(ctx.size), None
