"""Settings of the training recipe: update rule, parameter groups, clipping, learning rate.

Keys that belong to some optimizers or schedules only are None until they are set; `_OPTIMIZERS` and `_SCHEDULES` say
which belong where, and what None stands for. A key that is set where it does not belong is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ps.checks import REQUIRED, check_keys, require_each
from ps.groups import GroupConfig

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]
ScheduleName = Literal["constant", "step", "multi_step", "exponential", "linear", "cosine", "one_cycle"]

_SECOND_MOMENT = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.0, "momentum_form": "torch", "dampening": 0.0, "nesterov": False},
    "adam": {"lr": 0.001, "weight_decay": 0.0, **_SECOND_MOMENT},
    "adamw": {"lr": 0.001, "weight_decay": 0.01, **_SECOND_MOMENT},
    "rmsprop": {"lr": 0.001, "weight_decay": 0.0, "rho": 0.9, "eps": 1e-8, "momentum": 0.0, "centered": False},
    "adagrad": {"lr": 0.01, "weight_decay": 0.0, "eps": 1e-10},
}
"""The keys of every optimizer with their defaults."""

_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"every": REQUIRED, "gamma": 0.1},
    "multi_step": {"milestones": REQUIRED, "gamma": 0.1},
    "exponential": {"gamma": REQUIRED},
    "linear": {"min_factor": 0.0},
    "cosine": {"min_factor": 0.0, "t_0": None, "t_mult": 1},
    "one_cycle": {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4, "anneal": "cos"},
}
"""The keys of every schedule with their defaults."""


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What one parameter group is updated with: nothing is left open. Keys of other optimizers have values without effect."""

    lr: float
    weight_decay: float
    momentum: float = 0.0
    momentum_form: Literal["torch", "ema"] = "torch"
    dampening: float = 0.0
    nesterov: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    amsgrad: bool = False
    rho: float = 0.0
    centered: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule, applied on the servers to the mean gradient. The formulas are in `ps.optimizers`."""

    name: OptimizerName = "sgd"
    """`sgd` (momentum and Nesterov's form by their keys), `adam` (Kingma & Ba 2015), `adamw` (Loshchilov & Hutter 2019),
    `rmsprop` (Tieleman & Hinton 2012), `adagrad` (Duchi et al. 2011)."""
    lr: float | None = None
    """Learning rate, > 0. None: 0.01 for sgd and adagrad, 0.001 for the others."""
    momentum: float | None = None
    """sgd, rmsprop: factor of the old velocity, 0 <= momentum < 1. None: 0, no velocity is kept."""
    momentum_form: Literal["torch", "ema"] | None = None
    """sgd: `torch`: v = m*v + (1 - dampening)*g. `ema`: v = m*v + (1 - m)*g. Then w = w - lr*v. None: torch."""
    dampening: float | None = None
    """sgd: part of the gradient kept out of the velocity after the first update, 0 <= dampening <= 1. None: 0."""
    nesterov: bool | None = None
    """sgd: w = w - lr*(g + m*v) (Sutskever et al. 2013); needs momentum, no dampening, momentum_form = "torch". None: false."""
    beta1: float | None = None
    """adam, adamw: decay of the mean of gradients, 0 <= beta1 < 1. None: 0.9."""
    beta2: float | None = None
    """adam, adamw: decay of the mean of squared gradients, 0 <= beta2 < 1. None: 0.999."""
    amsgrad: bool | None = None
    """adam, adamw: divide by the largest mean of squares so far (Reddi et al. 2018). None: false."""
    rho: float | None = None
    """rmsprop: decay of the mean of squared gradients, 0 <= rho < 1; torch calls it alpha. None: 0.9 (torch: 0.99)."""
    centered: bool | None = None
    """rmsprop: divide by the variance of gradients in place of their mean square (Graves 2013). None: false."""
    eps: float | None = None
    """adam, adamw, rmsprop, adagrad: added to the denominator, > 0. None: 1e-8, for adagrad 1e-10."""
    weight_decay: float | None = None
    """>= 0. adamw: w = w * (1 - lr*weight_decay) before the update, None: 0.01. The others: weight_decay*w is added to the
    gradient (an L2 penalty), after clipping; None: 0."""
    groups: tuple[GroupConfig, ...] = ()
    """`[[optimizer.groups]]`: parameters with settings of their own, by name; the first group that matches is a parameter's."""
    clip_value: float | None = None
    """Every element of the mean gradient is clipped to [-clip_value, clip_value], > 0, as `torch.nn.utils.clip_grad_value_` does
    and before `max_grad_norm`. None: no clipping."""
    max_grad_norm: float | None = None
    """Global norm to which the mean gradient is clipped, > 0; the norm is that after `clip_value`. None: no clipping."""
    nonfinite: Literal["error", "skip"] = "error"
    """What a NaN or infinity in the mean gradient does: end the run, or skip the step on every server."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Batch rule: with a global batch of k * `reference_batch_size`, all rates are those given times sqrt(k) (Krizhevsky 2014;
    for adam and rmsprop Malladi et al. 2022) or k (Goyal et al. 2017, with a warm-up)."""
    reference_batch_size: int | None = None
    """Global batch for which the rates were chosen, >= 1. None only with lr_scaling = "none"."""

    def __post_init__(self) -> None:
        require_each(self, "optimizer", ("momentum", "beta1", "beta2", "rho"), lambda value: 0 <= value < 1, "0 <= value < 1")
        require_each(self, "optimizer", ("lr", "eps", "clip_value", "max_grad_norm"), lambda value: value > 0, "> 0")
        require_each(self, "optimizer", ("weight_decay",), lambda value: value >= 0, ">= 0")
        require_each(self, "optimizer", ("dampening",), lambda value: 0 <= value <= 1, "0 <= value <= 1")
        require_each(self, "optimizer", ("reference_batch_size",), lambda value: value >= 1, ">= 1")
        check_keys(self, "optimizer", self.name, _OPTIMIZERS)
        self._check_velocity()
        if (self.lr_scaling == "none") != (self.reference_batch_size is None):
            raise ValueError(
                f'optimizer.lr_scaling = "{self.lr_scaling}" with optimizer.reference_batch_size = {self.reference_batch_size}: '
                'set lr_scaling = "sqrt" or "linear" and the global batch that optimizer.lr was chosen for, or neither'
            )

    def _check_velocity(self) -> None:
        if self.nesterov and not (self.momentum and not self.dampening):
            raise ValueError(
                f"optimizer.nesterov = true with momentum = {self.momentum or 0.0} and dampening = {self.dampening or 0.0}: "
                "set momentum above 0 and leave dampening out"
            )
        if self.momentum_form == "ema" and (self.nesterov or self.dampening):
            raise ValueError(
                'optimizer.momentum_form = "ema" has a dampening of its own and no Nesterov form: leave optimizer.nesterov and '
                'optimizer.dampening out, or set momentum_form = "torch"'
            )

    @property
    def two_phase(self) -> bool:
        """Whether a step needs the norms of all shards before any of them may apply it."""
        return self.max_grad_norm is not None or self.nonfinite == "skip"

    def settings(self, group: int = 0) -> GroupSettings:
        """What a parameter group is updated with; group 0 holds the parameters that no pattern matches."""
        defaults = _OPTIMIZERS[self.name]
        values = {key: default if getattr(self, key) is None else getattr(self, key) for key, default in defaults.items()}
        if group:
            own = self.groups[group - 1]
            if own.lr is not None:
                values["lr"] = own.lr
            if own.lr_factor is not None:
                values["lr"] *= own.lr_factor
            if own.weight_decay is not None:
                values["weight_decay"] = own.weight_decay
        return GroupSettings(**values)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate as a function of the version. The formulas are in `ps.schedules`."""

    name: ScheduleName = "constant"
    """`constant`, `step`, `multi_step`, `exponential`, `linear`, `cosine` (Loshchilov & Hutter 2017; with restarts if `t_0` is set)
    or `one_cycle` (Smith & Topin 2018; the rate only)."""
    unit: Literal["step", "epoch"] = "step"
    """What the schedule counts; with `epoch` the rate stays the same within an epoch, but for the warm-up."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to where the schedule starts, >= 0; the schedule counts from their end. With unit = "step"."""
    warmup_epochs: int = 0
    """The same in epochs, with unit = "epoch", >= 0; the rate rises at every step."""
    every: int | None = None
    """step: units between two falls of the rate, >= 1; required."""
    milestones: tuple[int, ...] | None = None
    """multi_step: units after which the rate falls, >= 1 and rising; required."""
    gamma: float | None = None
    """step, multi_step: factor of the rate at every fall, > 0. None: 0.1. exponential: factor per unit; required."""
    min_factor: float | None = None
    """linear, cosine: last rate as a fraction of the full one, 0 <= min_factor <= 1. None: 0."""
    t_0: int | None = None
    """cosine: units until the first restart from the full rate, >= 1. None: one fall over the whole run."""
    t_mult: int | None = None
    """cosine with t_0: every period is as many times as long as the one before, >= 1. None: 1."""
    pct_start: float | None = None
    """one_cycle: fraction of the run in which the rate rises, 0 <= pct_start <= 1. None: 0.3."""
    div_factor: float | None = None
    """one_cycle: full rate over the first one, >= 1. None: 25."""
    final_div_factor: float | None = None
    """one_cycle: first rate over the last one, >= 1. None: 1e4."""
    anneal: Literal["cos", "linear"] | None = None
    """one_cycle: shape of rise and fall. None: cos."""

    def __post_init__(self) -> None:
        require_each(self, "schedule", ("warmup_steps", "warmup_epochs"), lambda value: value >= 0, ">= 0")
        require_each(self, "schedule", ("every", "t_0", "t_mult"), lambda value: value >= 1, ">= 1")
        require_each(self, "schedule", ("milestones",), _rising, "at least one, each >= 1 and above the one before")
        require_each(self, "schedule", ("gamma",), lambda value: value > 0, "> 0")
        require_each(self, "schedule", ("min_factor", "pct_start"), lambda value: 0 <= value <= 1, "0 <= value <= 1")
        require_each(self, "schedule", ("div_factor", "final_div_factor"), lambda value: value >= 1, ">= 1")
        check_keys(self, "schedule", self.name, _SCHEDULES)
        other = "epoch" if self.unit == "step" else "step"
        if getattr(self, f"warmup_{other}s"):
            raise ValueError(
                f'schedule.warmup_{other}s with schedule.unit = "{self.unit}": use schedule.warmup_{self.unit}s, or set unit = "{other}"'
            )
        if self.t_mult is not None and self.t_0 is None:
            raise ValueError(f"schedule.t_mult = {self.t_mult} without schedule.t_0: set t_0, the length of the first period")

    def value(self, key: str) -> Any:
        """A key's value, or its default in this schedule."""
        given = getattr(self, key)
        return _SCHEDULES[self.name][key] if given is None else given


def _rising(numbers: Sequence[int]) -> bool:
    return bool(numbers) and all(a < b for a, b in zip((0, *numbers), numbers, strict=False))
