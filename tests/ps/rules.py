"""Every optimizer beside the same one in plain torch."""

from collections.abc import Callable, Iterable

import torch
from torch import optim

from ps.config import OptimizerConfig

Parameters = Iterable[torch.Tensor]

# config, the same in torch, worst difference in float32 (None: adaptive rules amplify rounding where gradients are near 0)
TABLE: dict[str, tuple[OptimizerConfig, Callable[[Parameters], optim.Optimizer], float | None]] = {
    "sgd": (OptimizerConfig(lr=0.1), lambda p: optim.SGD(p, lr=0.1), 1e-5),
    "sgd with decay": (OptimizerConfig(lr=0.1, weight_decay=0.01), lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01), 1e-5),
    "momentum": (OptimizerConfig(lr=0.1, momentum=0.9), lambda p: optim.SGD(p, lr=0.1, momentum=0.9), 1e-5),
    "momentum with decay": (
        OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        1e-5,
    ),
    "dampening": (  # the first velocity is the whole gradient: torch clones it
        OptimizerConfig(lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        1e-5,
    ),
    "nesterov": (OptimizerConfig(lr=0.1, momentum=0.9, nesterov=True), lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 1e-5),
    "adam": (OptimizerConfig(name="adam", lr=0.01), lambda p: optim.Adam(p, lr=0.01), None),
    "adam with decay": (OptimizerConfig(name="adam", lr=0.01, weight_decay=0.1), lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1), None),
    "adam with other betas": (
        OptimizerConfig(name="adam", beta1=0.5, beta2=0.9, eps=1e-3),
        lambda p: optim.Adam(p, lr=0.001, betas=(0.5, 0.9), eps=1e-3),  # 0.001 is the default of both
        None,
    ),
    "adamw": (OptimizerConfig(name="adamw", lr=0.01), lambda p: optim.AdamW(p, lr=0.01), None),
    "rmsprop": (OptimizerConfig(name="rmsprop", lr=0.01), lambda p: optim.RMSprop(p, lr=0.01, alpha=0.9), None),  # 0.9: Hinton's
    "adagrad": (OptimizerConfig(name="adagrad", lr=0.1), lambda p: optim.Adagrad(p, lr=0.1), None),
}
EMA = OptimizerConfig(lr=0.1, momentum=0.9, momentum_form="ema")
CONFIGS = {name: row[0] for name, row in TABLE.items()} | {"ema momentum": EMA}
