"""Update rules on runs of chunks, through the kernels of `torch.optim` (fused where torch has one for the CPU).

A rule changes contiguous 1-D tensors in place: parameters and one state tensor per slot. The number of
updates applied before comes with the call, because chunks that were absent in a step have fewer. Slots start as zeros.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from ps.config import OptimizerConfig
from ps.recipe import GroupSettings


class UpdateRule(Protocol):
    """Updates parameters and slots in place; the gradient may be overwritten."""

    def __call__(
        self, params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float, divisor: float = 1.0
    ) -> None:
        """`updates`: applied before. `divisor`: of the gradient, 1 unless the rule `can_divide`."""


def can_divide(config: OptimizerConfig, dtype: str) -> bool:
    """Whether the kernel divides the gradient itself, to the bits of a division before, which costs a pass over memory."""
    return config.name != "rmsprop" and dtype == "float32"


def _scale(divisor: float) -> torch.Tensor | None:
    return None if divisor == 1.0 else torch.tensor(divisor)


def num_slots(config: OptimizerConfig) -> int:
    """State tensors per parameter."""
    settings = config.settings()
    match config.name:
        case "sgd":
            return int(settings.momentum > 0)
        case "adam" | "adamw":
            return 3 if settings.amsgrad else 2
        case "rmsprop":
            return 1 + int(settings.centered) + int(settings.momentum > 0)
        case "adagrad":
            return 1


def update_rule(config: OptimizerConfig, group: int = 0) -> UpdateRule:
    """The rule that `config` names, with the settings of a parameter group.

    g is the mean gradient after clipping, t the number of the update from 1, products and roots are element by element.
    All but adamw: g = g + weight_decay w first.

    sgd      v = m v + (1 - dampening) g (v = g in the first update), w = w - lr v; nesterov: w = w - lr (g + m v);
             ema: v = m v + (1 - m) g from v = 0. Polyak 1964; Sutskever et al., "On the importance of initialization and
             momentum in deep learning", ICML 2013.
    adam     m = b1 m + (1 - b1) g, s = b2 s + (1 - b2) g^2, w = w - lr m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps).
             Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015. amsgrad: with the largest s so far; Reddi
             et al., "On the convergence of Adam and beyond", ICLR 2018.
    adamw    w = w (1 - lr weight_decay), then adam. Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
    rmsprop  s = rho s + (1 - rho) g^2, w = w - lr g / (sqrt(s) + eps); momentum: v = m v + g / (sqrt(s) + eps), w = w - lr v;
             centered: a = rho a + (1 - rho) g, s - a^2 in place of s. Tieleman & Hinton, lecture 6.5 of "Neural networks for
             machine learning", 2012; Graves, "Generating sequences with recurrent neural networks", 2013.
    adagrad  s = s + g^2, w = w - lr g / (sqrt(s) + eps). Duchi, Hazan & Singer, "Adaptive subgradient methods", JMLR 2011.
    """
    settings = config.settings(group)
    match config.name:
        case "sgd":
            return _sgd(settings)
        case "adam" | "adamw":
            return _adam(settings, adamw if config.name == "adamw" else adam)
        case "rmsprop":
            return _rmsprop(settings)
        case "adagrad":
            return _adagrad(settings)


def _sgd(settings: GroupSettings) -> UpdateRule:
    ema = settings.momentum_form == "ema"

    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float, divisor: float = 1.0) -> None:
        first = updates == 0 and not ema  # torch starts the velocity as a copy of the gradient
        velocity: list[torch.Tensor | None] = [None if first or not slots else slots[0]]
        sgd(
            [params],
            [grad],
            velocity,
            fused=True,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=lr,
            dampening=settings.momentum if ema else settings.dampening,
            nesterov=settings.nesterov,
            maximize=False,
            grad_scale=_scale(divisor),
        )
        if slots and first:
            assert velocity[0] is not None
            slots[0].copy_(velocity[0])

    return update


def _adam(settings: GroupSettings, kernel: Callable[..., None]) -> UpdateRule:
    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float, divisor: float = 1.0) -> None:
        kernel(
            [params],
            [grad],
            [slots[0]],
            [slots[1]],
            list(slots[2:]),
            [torch.tensor(float(updates))],
            fused=True,
            amsgrad=settings.amsgrad,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=lr,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            maximize=False,
            grad_scale=_scale(divisor),
        )

    return update


def _rmsprop(settings: GroupSettings) -> UpdateRule:
    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float, divisor: float = 1.0) -> None:
        rmsprop(
            [params],
            [grad],
            [slots[0]],
            [slots[1]] if settings.centered else [],
            [slots[-1]] if settings.momentum else [],
            [torch.tensor(float(updates))],
            foreach=False,
            lr=lr,
            alpha=settings.rho,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            centered=settings.centered,
        )

    return update


def _adagrad(settings: GroupSettings) -> UpdateRule:
    def update(params: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], updates: int, lr: float, divisor: float = 1.0) -> None:
        adagrad(
            [params],
            [grad],
            [slots[0]],
            [torch.tensor(float(updates))],
            fused=True,
            lr=lr,
            weight_decay=settings.weight_decay,
            lr_decay=0.0,
            eps=settings.eps,
            maximize=False,
            grad_scale=_scale(divisor),
        )

    return update
