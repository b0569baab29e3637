"""From indices to a batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from workers.sampler import Indices
from workers.task import Samples, Task


class TensorData:
    """Samples held as rows of tensors of equal length; a batch of them is made by one index operation per tensor."""

    def __init__(self, *tensors: Tensor) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"TensorData needs tensors of one length, not {lengths}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int, /) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def batch(self, indices: Indices) -> tuple[Tensor, ...]:
        """Copies of the rows `indices`, as stacking the samples would give them."""
        rows = torch.from_numpy(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def fetch(task: Task, data: Samples, indices: Indices, rng: np.random.Generator, training: bool) -> Any:
    """The batch of the samples `indices`; augmented if `training`."""
    augments = training and type(task).augment is not Task.augment
    if isinstance(data, TensorData) and not augments and type(task).collate is Task.collate:
        return data.batch(indices)
    samples = [data[i] for i in indices.tolist()]
    if augments:
        samples = task.augment(samples, rng)
    return task.collate(samples, rng)


def cast(batch: Any, dtype: torch.dtype, *, pin: bool = False) -> Any:
    """The batch with its floating-point tensors as `dtype`, also inside tuples, lists and dicts; all else as it is.

    `pin`: tensors get pinned memory, from where `move` need not wait.
    """

    def cast_tensor(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(dtype) if value.is_floating_point() else value
        return value.pin_memory() if pin else value

    return _each(batch, cast_tensor)


def move(batch: Any, device: torch.device) -> Any:
    """The batch on `device`: tensors, also inside tuples, lists and dicts, and objects with a method `to` of their own."""
    if device.type == "cpu":
        return batch

    def move_leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return value.to(device) if callable(getattr(value, "to", None)) else value

    return _each(batch, move_leaf, whole=PackedSequence)  # of which one part stays on the CPU


def _each(batch: Any, function: Callable[[Any], Any], whole: type = Tensor) -> Any:
    """The batch with `function` of everything that is `whole`, or is no dict, list or tuple."""
    if isinstance(batch, whole):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _each(value, function, whole) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each(value, function, whole) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_each(value, function, whole) for value in batch)
    return function(batch)
