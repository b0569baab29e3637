"""The validation phase: eval mode, no updates, each rank its part, exact sums."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.answers import mean_and_weight, metrics_of
from workers.data import cast, fetch, move
from workers.sampler import sample_rng, validation_slices
from workers.task import Samples, Task


def no_sums() -> dict[str, float]:
    """Of no batch yet."""
    return {"loss": 0.0, "weight": 0.0, "samples": 0.0}


def validate(
    task: Task, data: Samples, model: nn.Module, dtype: torch.dtype, *, device: torch.device, rank: int, num_workers: int, batch_size: int
) -> dict[str, float]:
    """Sums of the rank's part: `loss` (weighted), `weight`, `samples`, and the task's own metrics (divided by samples later)."""
    model.eval()
    sums = no_sums()
    with torch.no_grad():
        for indices in validation_slices(len(data), num_workers, rank, batch_size):
            batch = move(cast(fetch(task, data, indices, sample_rng(0, 0, rank), training=False), dtype), device)
            add_batch(sums, task.loss(model, batch), len(indices), metrics_of(task, model, batch))
    return sums


def add_batch(sums: dict[str, float], loss: Tensor | tuple[Tensor, float], num_samples: int, metrics: Mapping[str, float]) -> None:
    """What a task's `loss` and `metrics` returned for a batch. Raises ConfigError."""
    mean, weight = mean_and_weight(loss, num_samples)
    if weight:
        sums["loss"] += float(mean) * weight
    sums["weight"] += weight
    sums["samples"] += num_samples
    for name, value in metrics.items():
        sums[f"metric.{name}"] = sums.get(f"metric.{name}", 0.0) + value
