"""What a task's methods return, checked: a wrong answer is a ConfigError that says what to return."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.task import Samples, Task

_SERVED = (torch.float32, torch.float64)


def model_of(task: Task) -> nn.Module:
    """A new model. Raises ConfigError."""
    model = task.model()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the task's model() returned {named(model)}: return a torch.nn.Module")
    check_parameters(model)
    return model


def check_parameters(model: nn.Module) -> None:
    """Raises ConfigError for a type that no optimizer on the servers updates."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in _SERVED:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"parameter {name} of the model is {dtype}: train in float32 or float64, without model.half() or the like; "
                "bfloat16 is for autocast and for the wire (comm.push_format, comm.pull_format)"
            )


def data_of(task: Task, phase: Literal["train", "validation"]) -> Samples:
    """The data of a phase. Raises ConfigError."""
    data: Samples = task.train_data() if phase == "train" else task.validation_data()
    for method, what in (("__len__", "length"), ("__getitem__", "sample by index")):
        if not hasattr(data, method):
            remedy = "return map-style data such as TensorData(inputs, targets)" + ("" if phase == "train" else ", [] for none")
            raise ConfigError(f"the task's {phase}_data() returned {named(data)}, which has no {what}: {remedy}")
    return data


def mean_and_weight(loss: Tensor | tuple[Tensor, float], num_samples: int) -> tuple[Tensor, float]:
    """What a task's `loss` returned for a batch of `num_samples`, as scalar mean and weight. Raises ConfigError."""
    remedy = "return the mean over the batch as a scalar tensor, alone or as (mean, weight)"
    mean, weight = loss if isinstance(loss, tuple) and len(loss) == 2 else (loss, num_samples)
    if not isinstance(mean, Tensor):
        raise ConfigError(f"the task's loss() returned {named(mean)}: {remedy}")
    if mean.dim() != 0:
        raise ConfigError(f"the task's loss() returned a tensor of shape {list(mean.shape)}: {remedy}")
    number = number_of(weight)
    if number is None or not 0 <= number < math.inf:
        raise ConfigError(f"the weight {weight} of the task's loss() is out of range: a finite number >= 0")
    return mean, number


def check_gradient(mean: Tensor) -> None:
    """Raises ConfigError for a loss that no backward can start from."""
    if not mean.requires_grad:
        raise ConfigError("the task's loss() returned a tensor without gradient: compute it from what the model returns, without detach() or item()")


def metrics_of(task: Task, model: nn.Module, batch: Any) -> dict[str, float]:
    """Sums over a validation batch by name. Raises ConfigError."""
    metrics = task.metrics(model, batch)
    if not isinstance(metrics, dict):
        raise ConfigError(f"the task's metrics() returned {named(metrics)}: return a dict of sums over the batch, for example {{'accuracy': 12.0}}")
    if "loss" in metrics:
        raise ConfigError("the task's metrics() returns a metric called loss, as the validation loss is called: rename it")
    found = {}
    for name, value in metrics.items():
        number = number_of(value)
        if number is None:
            raise ConfigError(f"the task's metrics() returned {named(value)} for {name}: return a number, the sum over the batch")
        found[name] = number
    return found


def number_of(value: Any) -> float | None:
    """The value of a number or of a tensor with one element; else None."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def named(value: object) -> str:
    """What stands where something else was expected."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
