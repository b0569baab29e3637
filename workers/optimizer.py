"""The optimizer of a user's own loop, in Horovod's words."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from ps.errors import ConfigError

Begin = Callable[[float, bool], None]
"""The step's last backward follows, if it has not been: its gradients have this weight, and are divided by it or not."""
Step = Callable[[float], None]
"""Pushes what has not left, with its weight; returns when the next version is installed in the model."""


class DistributedOptimizer(torch.optim.Optimizer):
    """`opt.zero_grad(); loss.backward(); opt.step(weight=len(batch))`: the step of all workers together.

    `opt.zero_grad(weight=len(batch))` announces what `step` will be told: gradients then leave while backward goes on.

    The optimizer itself lives on the servers, set by the `[optimizer]` and `[schedule]` sections: there are no
    parameter groups, rates or state here. What other code does with them, or with gradients after `backward`,
    would have no effect, and is refused with the section to use instead.
    """

    def __init__(self, model: nn.Module, begin: Begin, step: Step) -> None:
        # torch's own constructor makes parameter groups and state, which are the servers'
        self._model = model
        self._begin, self._step = begin, step
        self._announced: float | None = None
        """Weight of the backward whose gradients leave at once."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._trainable = {parameter: name for parameter, name in names.items() if parameter.requires_grad}
        self._frozen = {parameter: name for parameter, name in names.items() if not parameter.requires_grad}
        self._after_backward: dict[nn.Parameter, tuple[torch.Tensor, int]] = {}
        self._is_pushed = False
        """Whether gradients have not been dropped since the last step."""
        self._installed = self._marks()
        for parameter in self._trainable:
            parameter.register_post_accumulate_grad_hook(self._remember)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True, *, weight: float | None = None) -> None:
        """Drops the gradients. `weight`: what `step` will be told, if exactly one backward comes before it.

        `set_to_none=False` would make zeros of parameters that the batch does not reach: ConfigError.
        """
        if not set_to_none:
            raise ConfigError("opt.zero_grad(set_to_none=False) is not supported: leave the argument out")
        self._check_announced(None)
        self._model.zero_grad(set_to_none=True)
        self._after_backward.clear()
        self._is_pushed = False
        if weight is not None:
            _check_weight("zero_grad", weight)
            self._begin(float(weight), False)
            self._announced = float(weight)

    def step(self, closure: Callable[[], Any] | None = None, *, weight: float = 1.0, divide: bool = False) -> None:  # type: ignore[override]
        """Pushes the gradients, waits for all workers, installs the new parameters.

        `weight`: what this worker's mean counts for, usually its number of samples (0: none, its gradients are not
        pushed). `divide`: the gradients are of `mean * weight`, added up over several backwards; divides them by the whole
        weight. Collective: every worker calls it once per step. Raises ConfigError if gradients or parameters were changed by
        others, and what the servers raise.
        """
        if closure is not None:
            raise ConfigError("opt.step(closure) is not supported: call loss.backward() before opt.step(weight=...)")
        _check_weight("step", weight)
        self._check_announced((float(weight), divide))
        self._check_parameters()
        self._check_gradients(float(weight))
        if self._announced is None:
            self._begin(float(weight), divide)
        self._step(float(weight))
        self._announced = None
        self._after_backward.clear()
        self._is_pushed = True
        self._installed = self._marks()

    # -- what others may not do ------------------------------------------------------------------------------

    def _remember(self, parameter: torch.Tensor) -> None:
        """Called when a backward has added to a gradient."""
        assert isinstance(parameter, nn.Parameter)
        found, former = parameter.grad, self._after_backward.get(parameter)
        assert found is not None
        if self._is_pushed:
            raise ConfigError("backward after opt.step() would add to the gradients of the step before: begin every step with opt.zero_grad()")
        if former is not None and found.grad_fn is None and (found is not former[0] or found._version != former[1] + 1):
            raise _changed(self._trainable[parameter])
        self._after_backward[parameter] = found, found._version

    def _check_announced(self, told: tuple[float, bool] | None) -> None:
        if self._announced is not None and told != (self._announced, False):
            told_text = "opt.zero_grad() follows" if told is None else f"opt.step(weight={told[0]:g}, divide={told[1]}) follows"
            raise ConfigError(
                f"opt.zero_grad(weight={self._announced:g}) has let gradients leave, and {told_text}: one backward and "
                f"opt.step(weight={self._announced:g}) must, or leave the weight out there"
            )

    def _check_gradients(self, weight: float) -> None:
        for parameter, name in self._trainable.items():
            found, pushed = parameter.grad, self._after_backward.get(parameter)
            if found is None and pushed is None:
                continue
            if self._is_pushed:
                raise ConfigError("the gradients are those of the step before: begin every step with opt.zero_grad()")
            if pushed is None or found is not pushed[0] or found._version != pushed[1]:
                raise _changed(name)
        for parameter, name in self._frozen.items():
            if parameter.grad is not None:
                raise ConfigError(f"{name} was frozen when ctx.optimizer(model) was called, but has a gradient: thaw it before that call")
        if weight and self._trainable and not self._after_backward:
            raise ConfigError(f"opt.step(weight={weight:g}) without any gradient: call loss.backward() before it, or say weight=0 without samples")

    def _marks(self) -> list[tuple[int, int]]:
        """What changes when somebody writes to a parameter or gives it other memory."""
        return [(parameter.data_ptr(), parameter._version) for parameter in self._trainable]

    def _check_parameters(self) -> None:
        for found, installed, name in zip(self._marks(), self._installed, self._trainable.values(), strict=True):
            if found != installed:
                raise ConfigError(
                    f"parameter {name} was changed after ctx.optimizer(model), but the servers hold it: load or initialise the model before "
                    "that call, and try other values on a copy.deepcopy(model)"
                )

    @property
    def param_groups(self) -> NoReturn:  # type: ignore[override]
        """Refused: schedulers, gradient scalers and warm-up helpers look here."""
        raise ConfigError(
            "this optimizer has no parameter groups, it lives on the servers: set the rate by the [schedule] section and groups by "
            "[[optimizer.groups]], not by a torch.optim.lr_scheduler; in place of a GradScaler use bfloat16, which needs none"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> NoReturn:
        """Refused: the groups are the servers'."""
        raise ConfigError("this optimizer takes no parameter groups, it lives on the servers: set them by [[optimizer.groups]]")

    def state_dict(self) -> NoReturn:
        """Refused: the state is the servers'."""
        raise ConfigError("this optimizer has no state, it lives on the servers: weights are in the run directory, or use model.state_dict()")

    def load_state_dict(self, state_dict: Any) -> NoReturn:
        """Refused: the state is the servers'."""
        raise ConfigError("this optimizer takes no state, it lives on the servers: start from weights with train.init = FILE.safetensors")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"this optimizer has no {name}: it lives on the servers, set by the [optimizer] and [schedule] sections")

    def __repr__(self) -> str:
        return f"DistributedOptimizer({len(self._trainable)} parameters, updated on the servers)"


def _changed(name: str) -> ConfigError:
    return ConfigError(
        f"the gradient of {name} was changed after backward, when it counts as pushed: clip with optimizer.max_grad_norm "
        "or optimizer.clip_value, scale the loss instead of the gradient, and begin every step with opt.zero_grad()"
    )


def _check_weight(method: str, weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"opt.{method}(weight={weight}) is out of range: finite and >= 0")
