"""From indices to a batch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its floating-point tensors as `dtype`, also inside tuples, lists and dicts; all else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: cast(value, dtype) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(cast(value, dtype) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(cast(value, dtype) for value in batch)
    return batch


def mean_and_weight(loss: Tensor | tuple[Tensor, float], num_samples: int) -> tuple[Tensor, float]:
    """What a task's `loss` returned for a batch of `num_samples`, as scalar mean and weight; raises ValueError."""
    mean, weight = loss if isinstance(loss, tuple) else (loss, float(num_samples))
    if mean.dim() != 0:
        raise ValueError(f"the task's loss has shape {list(mean.shape)}: return the mean over the batch, a scalar")
    weight = float(weight)
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight {weight} of the task's loss is out of range: finite and >= 0")
    return mean, weight
