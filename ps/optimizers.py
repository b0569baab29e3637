"""Update rules on runs of chunks, through the kernels of `torch.optim`.

A rule changes contiguous 1-D tensors in place: parameters and one state tensor per slot. The number of
updates applied before comes with the call, because chunks that were absent in a step have fewer.
"""

from collections.abc import Callable, Sequence

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ps.config import OptimizerConfig

UpdateRule = Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor], int, float], None]
"""(parameters, gradient, slots, updates applied before, learning rate) -> None, in place; the gradient may be overwritten."""


def num_slots(config: OptimizerConfig) -> int:
    """State tensors per parameter."""
    if config.name == "adam":
        return 2
    return 1 if config.momentum else 0


def update_rule(config: OptimizerConfig) -> UpdateRule:
    """The rule that `config` names.

    sgd: v = m v + g; w = w - lr v (torch's form, whose first v is g), or v = m v + (1 - m) g from v = 0 (`ema`).
    adam: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """
    return _adam(config) if config.name == "adam" else _sgd(config)


def _sgd(config: OptimizerConfig) -> UpdateRule:
    ema = config.momentum_form == "ema"

    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float) -> None:
        first = updates == 0 and not ema  # torch starts the velocity as a copy of the gradient
        velocity: list[torch.Tensor | None] = [None if first or not slots else slots[0]]
        sgd(
            [params],
            [grad],
            velocity,
            fused=True,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            lr=lr,
            dampening=config.momentum if ema else 0.0,
            nesterov=False,
            maximize=False,
        )
        if slots and first:
            assert velocity[0] is not None
            slots[0].copy_(velocity[0])

    return update


def _adam(config: OptimizerConfig) -> UpdateRule:
    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float) -> None:
        adam(
            [params],
            [grad],
            [slots[0]],
            [slots[1]],
            [],
            [torch.tensor(float(updates))],
            fused=True,
            amsgrad=False,
            beta1=config.beta1,
            beta2=config.beta2,
            lr=lr,
            weight_decay=config.weight_decay,
            eps=config.eps,
            maximize=False,
        )

    return update
