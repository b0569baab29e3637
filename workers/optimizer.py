"""The optimizer of a user's own loop, in Horovod's words."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from ps.errors import ConfigError

Exchange = Callable[[float], None]
"""Pushes the gradients with a weight, and returns when the next version is installed in the model."""


class DistributedOptimizer(torch.optim.Optimizer):
    """`opt.zero_grad(); loss.backward(); opt.step(weight=len(batch))`: the step of all workers together.

    The optimizer itself lives on the servers, set by the `[optimizer]` and `[schedule]` sections: there are no
    parameter groups, rates or state here. What other code does with them, or with gradients after `backward`,
    would have no effect, and is refused with the section to use instead.
    """

    def __init__(self, model: nn.Module, exchange: Exchange) -> None:
        # torch's own constructor makes parameter groups and state, which are the servers'
        self._model = model
        self._exchange = exchange
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._after_backward: dict[nn.Parameter, tuple[torch.Tensor, int]] = {}
        for parameter in self._names:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._remember)  # type: ignore[no-untyped-call]

    def _remember(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        self._after_backward[parameter] = parameter.grad, parameter.grad._version

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients. `set_to_none=False` would make zeros of parameters that the batch does not reach."""
        if not set_to_none:
            raise ConfigError("opt.zero_grad(set_to_none=False) is not supported: leave the argument out")
        self._model.zero_grad(set_to_none=True)
        self._after_backward.clear()

    def step(self, closure: Callable[[], Any] | None = None, *, weight: float = 1.0) -> None:  # type: ignore[override]
        """Pushes the gradients, waits for all workers, installs the new parameters.

        `weight`: what this worker's mean counts for, usually its number of samples (0: none, its gradients are not
        pushed). Collective: every worker calls it once per step. Raises ConfigError if gradients were changed after
        `backward`, and what the servers raise.
        """
        if closure is not None:
            raise ConfigError("opt.step(closure) is not supported: call loss.backward() before opt.step(weight=...)")
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"opt.step(weight={weight}) is out of range: finite and >= 0")
        self._check_gradients()
        self._exchange(weight)
        self._after_backward.clear()

    def _check_gradients(self) -> None:
        for parameter, name in self._names.items():
            found = parameter.grad
            pushed = self._after_backward.get(parameter)
            if pushed is None and found is None:
                continue
            if pushed is None or found is not pushed[0] or found._version != pushed[1]:
                raise ConfigError(
                    f"the gradient of {name} was changed after backward, when it counts as pushed: clip with optimizer.max_grad_norm "
                    "or optimizer.clip_value, scale the loss instead of the gradient, and begin every step with opt.zero_grad()"
                )

    @property
    def param_groups(self) -> NoReturn:  # type: ignore[override]
        """Refused: schedulers and warm-up helpers look here."""
        raise ConfigError(
            "this optimizer has no parameter groups, it lives on the servers: set the rate by the [schedule] section and "
            "groups by [[optimizer.groups]], not by a torch.optim.lr_scheduler"
        )

    def state_dict(self) -> NoReturn:
        """Refused: the state is the servers'."""
        raise ConfigError("this optimizer has no state, it lives on the servers: weights are in the run directory, or use model.state_dict()")

    def load_state_dict(self, state_dict: Any) -> NoReturn:
        """Refused: the state is the servers'."""
        raise ConfigError("this optimizer takes no state, it lives on the servers: start from weights with train.init = FILE.safetensors")

    def __repr__(self) -> str:
        return f"DistributedOptimizer({len(self._names)} parameters, updated on the servers)"
