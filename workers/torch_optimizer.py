"""The config's optimizer as a class of `torch.optim`, for a model that is not served."""

from collections.abc import Mapping

import torch
from torch import nn

from ps.config import OptimizerConfig, ScheduleConfig
from ps.errors import ConfigError
from ps.groups import assign_groups
from ps.plan import Plan
from ps.recipe import GroupSettings
from ps.schedules import learning_rate


class LocalOptimizer:
    """Clips, updates and skips as the servers would; `step` takes the mean gradient in `.grad`. Fused where torch has it."""

    def __init__(self, config: OptimizerConfig, schedule: ScheduleConfig, plan: Plan, params: Mapping[str, nn.Parameter]) -> None:
        check_in_torch(config)
        self._config = config
        self._schedule = schedule
        self._plan = plan
        self._params = {name: param for name, param in params.items() if param.requires_grad}
        group_of = assign_groups(params, config.groups)
        indices = sorted({group_of[name] for name in self._params})
        groups = [_group(config, index, [p for name, p in self._params.items() if group_of[name] == index]) for index in indices]
        self._optimizer = _optimizer(config, groups)

    def step(self, version: int) -> None:
        """Applies the gradient of the step computed from `version`, unless it is not finite and such steps are skipped."""
        config, params = self._config, list(self._params.values())
        if config.clip_value is not None:
            nn.utils.clip_grad_value_(params, config.clip_value)
        if config.two_phase:
            norm = nn.utils.clip_grad_norm_(params, config.max_grad_norm or torch.inf)
            if config.nonfinite == "skip" and not torch.isfinite(norm):
                return
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, self._schedule, version, self._plan.total_steps, self._plan.steps_per_epoch, group=group["index"])
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Takes the gradients away."""
        self._optimizer.zero_grad()


def check_in_torch(config: OptimizerConfig) -> None:
    """Raises ConfigError for an update rule that `torch.optim` does not have."""
    if config.momentum_form == "ema":
        raise ConfigError('optimizer.momentum_form = "ema" has no class in torch.optim to compare with: set momentum_form = "torch"')


def _group(config: OptimizerConfig, index: int, params: list[nn.Parameter]) -> dict[str, object]:
    settings = config.settings(index)
    return {"params": params, "index": index, "lr": settings.lr, "weight_decay": settings.weight_decay}


def _optimizer(config: OptimizerConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    settings: GroupSettings = config.settings()
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, dampening=settings.dampening, nesterov=settings.nesterov, fused=True)
        case "adam" | "adamw":
            cls = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
            return cls(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, amsgrad=settings.amsgrad, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, alpha=settings.rho, eps=settings.eps, momentum=settings.momentum, centered=settings.centered)
        case "adagrad":
            return torch.optim.Adagrad(groups, eps=settings.eps, fused=True)
