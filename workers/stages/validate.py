"""The validation phase of a split rank: forward passes only, sums on the last stage."""

from typing import Any

import torch
from torch import nn

from ps.stages.neighbour import Neighbour
from workers.data import cast, fetch
from workers.sampler import sample_rng, validation_slices
from workers.stages.model_call import inputs_of, loss_of, metrics_with
from workers.stages.stage import Stage
from workers.task import Samples, Task
from workers.validate import add_batch, no_sums

_AHEAD = 2
"""Batches by which a stage may be ahead of the next one."""


class StageValidation:
    """One stage's part of validation phases, with the values that a whole model has."""

    def __init__(self, task: Task, data: Samples, stage: Stage, model: nn.Module, dtype: torch.dtype, *, rank: int, num_workers: int) -> None:
        self._task = task
        self._data = data
        self._stage = stage
        self._model = model
        self._dtype = dtype
        self._rank = rank
        self._num_workers = num_workers

    def run(self, version: int, batch_size: int, earlier: Neighbour | None, later: Neighbour | None) -> dict[str, float]:
        """Sums of the rank's part, as `validate` has them; on stages before the last none."""
        self._model.eval()
        slices = list(validation_slices(len(self._data), self._num_workers, self._rank, batch_size))
        sums = no_sums()
        with torch.no_grad():
            for index, indices in enumerate(slices):
                batch = None
                if not (earlier and later):
                    batch = cast(fetch(self._task, self._data, indices, sample_rng(0, 0, self._rank), training=False), self._dtype)
                inputs = earlier.take_activations(version, index) if earlier else inputs_of(self._task, batch, training=False)
                if earlier:
                    earlier.put_gradients(version, index, (), 0.0)  # taken: the next may come
                outputs = self._stage.evaluate(inputs)
                if later:
                    if index >= _AHEAD:
                        later.take_gradients(version, index - _AHEAD)
                    later.put_activations(version, index, outputs)
                else:
                    self._add(sums, batch, outputs, len(indices))
        if not later:
            return sums
        for index in range(max(0, len(slices) - _AHEAD), len(slices)):
            later.take_gradients(version, index)
        return {}

    def _add(self, sums: dict[str, float], batch: Any, outputs: tuple[Any, ...], num_samples: int) -> None:
        answer = outputs[0] if len(outputs) == 1 else outputs
        loss = loss_of(self._task, batch, lambda: answer, training=False)
        add_batch(sums, loss, num_samples, metrics_with(self._task, batch, answer))
