"""A task's loss, taken apart at the model that it calls: what goes in is the first stage's, what comes out the last one's."""

from collections.abc import Callable
from typing import Any, Never, cast

from torch import Tensor, nn

from ps.errors import ConfigError
from workers.answers import metrics_of
from workers.task import Task

_RULE = "where a model is split over stages, the task's loss() and metrics() call the model once, as model(x, …), and use nothing else of it"


class _ModelCall:
    """Stands for the model in a loss."""

    def __init__(self, answer: Callable[[tuple[Any, ...]], Any], *, training: bool) -> None:
        self.training = training
        self._answer = answer
        self.num_calls = 0

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        self.num_calls += 1
        if named or self.num_calls > 1:
            raise ConfigError(_RULE)
        return self._answer(inputs)

    def __getattr__(self, name: str) -> Never:
        raise ConfigError(f"{_RULE}; it asks for model.{name}")


class _Taken(Exception):
    """The loss has called the model; nothing after that is wanted."""


def inputs_of(task: Task, batch: Any, *, training: bool = True) -> tuple[Any, ...]:
    """What the task's loss calls the model with. Raises ConfigError."""
    taken: list[tuple[Any, ...]] = []

    def take(inputs: tuple[Any, ...]) -> Never:
        taken.append(inputs)
        raise _Taken

    try:
        task.loss(cast(nn.Module, _ModelCall(take, training=training)), batch)
    except _Taken:
        return taken[0]
    raise ConfigError(_RULE)


def loss_of(task: Task, batch: Any, answer: Callable[[], Any], *, training: bool = True) -> Tensor | tuple[Tensor, float]:
    """The task's loss on a model that gives what `answer` returns. Raises ConfigError."""
    call = _ModelCall(lambda inputs: answer(), training=training)
    loss = task.loss(cast(nn.Module, call), batch)
    if not call.num_calls:
        raise ConfigError(_RULE)
    return loss


def metrics_with(task: Task, batch: Any, answer: Any) -> dict[str, float]:
    """The task's metrics on a model that gives `answer`, in evaluation. Raises ConfigError."""
    return metrics_of(task, cast(nn.Module, _ModelCall(lambda inputs: answer, training=False)), batch)
