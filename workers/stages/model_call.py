"""A task's loss, taken apart at the model that it calls: what goes in is the first stage's, what comes out the last one's."""

from collections.abc import Callable
from typing import Any, Never, cast

from torch import Tensor, nn

from ps.errors import ConfigError
from workers.task import Task

_RULE = "where a model is split over stages, the task's loss() calls the model once, as model(x, …), and uses nothing else of it"


class _ModelCall:
    """Stands for the model in a loss."""

    training = True

    def __init__(self, answer: Callable[[tuple[Any, ...]], Any]) -> None:
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


def inputs_of(task: Task, batch: Any) -> tuple[Any, ...]:
    """What the task's loss calls the model with. Raises ConfigError."""
    taken: list[tuple[Any, ...]] = []

    def take(inputs: tuple[Any, ...]) -> Never:
        taken.append(inputs)
        raise _Taken

    try:
        task.loss(cast(nn.Module, _ModelCall(take)), batch)
    except _Taken:
        return taken[0]
    raise ConfigError(_RULE)


def loss_of(task: Task, batch: Any, answer: Callable[[], Any]) -> Tensor | tuple[Tensor, float]:
    """The task's loss on a model that gives what `answer` returns. Raises ConfigError."""
    call = _ModelCall(lambda inputs: answer())
    loss = task.loss(cast(nn.Module, call), batch)
    if not call.num_calls:
        raise ConfigError(_RULE)
    return loss
