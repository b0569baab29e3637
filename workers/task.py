"""The user's part of a run: model, data and loss; and how a task travels as a name and its fields."""

import dataclasses
import inspect
import typing
from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import pydantic
import pydantic_core
from torch import Tensor, nn
from torch.utils.data import default_collate

from ps.errors import ConfigError
from workers.imports import import_attribute, import_path, nearest
from workers.tasks import SHIPPED


class Samples(Protocol):
    """Map-style data: the same sample for an index, whenever and wherever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Task(ABC):
    """What is trained. A subclass is a frozen dataclass whose fields are the keys of `[task]`.

    All methods must depend on the fields and their arguments only, so that every rank, restarted or not, sees the same.
    """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model; torch's generator is seeded from `train.seed` when this is called."""

    @abstractmethod
    def train_data(self) -> Samples:
        """Data of the training phase; every sample is used once per epoch."""

    @abstractmethod
    def validation_data(self) -> Samples:
        """Data of the validation phase."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, float]:
        """Mean over the batch as a scalar; alone, or with its weight against other batches (alone: number of samples)."""

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Sums over the samples of a validation batch, which are divided by the number of all validation samples."""
        return {}

    def augment(self, samples: list[Any], rng: np.random.Generator) -> list[Any]:
        """The samples as they are trained on; training phase only, any randomness from `rng`."""
        return samples

    def collate(self, samples: list[Any], rng: np.random.Generator) -> Any:
        """The batch of `loss`; by default as torch's DataLoader stacks it. Floating-point tensors are cast to `train.dtype` after."""
        return default_collate(samples)

    def blocks(self, model: nn.Module) -> list[nn.Module] | None:
        """Consecutive parts whose composition is the model, where it may be split. None: it is never split."""
        return None


def load_task(name: str, fields: dict[str, Any]) -> Task:
    """The task called `name` with the values of its fields as TOML or JSON gives them; raises ConfigError.

    `name` is a shipped name, "package.module:Class" (the working directory counts) or "path/file.py:Class" (its folder counts).
    """
    cls = _checked_class(_find(name))
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in fields:
        if key not in allowed:
            raise ConfigError(f"task.{key} is no field of {cls.__name__}: {nearest(key, allowed)}")
    try:
        return pydantic.TypeAdapter(cls).validate_json(pydantic_core.to_json(fields), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, cls, fields)) from error
    except pydantic.errors.PydanticUserError as error:
        reason = error.message.splitlines()[0]
        raise ConfigError(f"{cls.__name__} has a field that no config file can hold: {reason}") from error


def task_path(task: Task | type[Task]) -> str:
    """Name under which any process loads the class of `task`; files with their absolute path. Raises ConfigError."""
    cls = _checked_class(task if isinstance(task, type) else type(task))
    if "<locals>" in cls.__qualname__:
        raise ConfigError(f"{cls.__name__} is defined inside a function: move it to the top level of its module")
    return import_path(cls)


def task_fields(task: Task) -> dict[str, Any]:
    """Values of the fields as JSON can hold them, for `load_task`."""
    values = pydantic.TypeAdapter(type(task)).dump_python(task, mode="json")
    return {f.name: values[f.name] for f in dataclasses.fields(task) if f.init}


def _find(name: str) -> object:
    path = SHIPPED.get(name, name)
    if ":" not in path:
        own = "an own one is named package.module:Class or path/file.py:Class"
        raise ConfigError(f"task.name = {name!r} is no shipped task: {nearest(name, list(SHIPPED))}; {own}")
    if path.startswith("__main__:"):
        raise _in_main(path.partition(":")[2])
    return import_attribute(path, "task.name")


def _checked_class(cls: object) -> type[Task]:
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{getattr(cls, '__name__', cls)} is no task: derive it from workers.task.Task")
    if cls.__module__ == "__main__":
        raise _in_main(cls.__name__)
    if "__dataclass_fields__" not in vars(cls):
        raise ConfigError(f"{cls.__name__} is no dataclass: decorate it with @dataclass(frozen=True)")
    if inspect.isabstract(cls):
        raise ConfigError(f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}")
    if any(f.name == "name" for f in dataclasses.fields(cls)):
        raise ConfigError(f"{cls.__name__} has a field `name`, but task.name names the task: rename the field")
    return cls


def _in_main(name: str) -> ConfigError:
    remedy = f"move it to a module of its own file, e.g. mytask.py, and name it mytask:{name}"
    return ConfigError(f"{name} is defined in __main__, which no worker can import: {remedy}")


def _explain(error: pydantic.ValidationError, cls: type[Task], fields: dict[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # raised by the task's own __post_init__
        return str(first.get("ctx", {}).get("error", first["msg"]))
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"task.{name} is missing: {cls.__name__} has no default for it"
    if not first["type"].endswith(("_type", "_parsing", "_from_float", "literal_error")):
        return f"task.{name} = {fields[name]!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    annotation = typing.get_type_hints(cls)[name]
    wanted = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return f"task.{name} = {fields[name]!r} is no {wanted}"
