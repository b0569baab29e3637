"""Which samples a rank sees in a step, and the generators it sees them with: functions of (seed, step, rank) alone.

Every generator comes from `SeedSequence(seed, spawn_key=(purpose, ...))`: no stream depends on how often another was
used, so a restarted rank computes the same gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ps.errors import ConfigError
from workers.config import TrainConfig

Indices = npt.NDArray[np.int64]

_SHUFFLE, _SAMPLES, _TORCH = range(3)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a run. `step` counts over the whole run, from 0."""

    num_samples: int
    """Samples of an epoch, >= 1."""
    num_workers: int
    global_batch: int
    """Samples of all workers in one step, accumulation included; the last step of an epoch has what is left."""
    accumulate: int
    """Micro-batches into which a rank cuts its part of a step."""
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError("the task's train_data() is empty")

    @classmethod
    def from_config(cls, train: TrainConfig, num_workers: int, num_samples: int) -> "BatchPlan":
        global_batch = train.global_batch_size
        if global_batch is None:
            assert train.batch_size is not None
            global_batch = num_workers * train.batch_size * train.accumulate
        return cls(num_samples, num_workers, global_batch, train.accumulate, train.seed)

    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.num_samples, self.global_batch)

    def micro_batch_size(self) -> int:
        """Samples of the largest micro-batch."""
        part = -(-self.global_batch // self.num_workers)
        return -(-part // self.accumulate)

    def global_indices(self, step: int) -> Indices:
        """Samples of `step` over all ranks, in rank order."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch())
        return global_indices(self.num_samples, self.seed, epoch, step_in_epoch, self.global_batch)

    def micro_batches(self, step: int, rank: int) -> list[Indices]:
        """Samples of `rank` in `step` by micro-batch, none of them empty; an empty list if it has no samples.

        All ranks with samples have equally many micro-batches, so that buffers which count batches stay equal.
        """
        batch = self.global_indices(step)
        part = batch[part_of(len(batch), self.num_workers, rank)]
        num_micro = min(self.accumulate, max(len(batch) // self.num_workers, 1))
        micro = (part[part_of(len(part), num_micro, i)] for i in range(num_micro))
        return [indices for indices in micro if len(indices)]


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """ceil(num_samples / global_batch): nothing is dropped."""
    return -(-num_samples // global_batch)


def global_indices(num_samples: int, seed: int, epoch: int, step_in_epoch: int, global_batch: int) -> Indices:
    """Samples of all ranks in one step: a slice of the epoch's permutation, owned by the caller."""
    start = step_in_epoch * global_batch
    return _permutation(num_samples, seed, epoch)[start : start + global_batch].copy()


def part_of(length: int, num_parts: int, part: int) -> slice:
    """Contiguous part `part` of `num_parts`, as equal as possible: the first ones have one more."""
    each, more = divmod(length, num_parts)
    start = part * each + min(part, more)
    return slice(start, start + each + (part < more))


def validation_slices(num_samples: int, num_workers: int, rank: int, batch_size: int) -> Iterator[Indices]:
    """Batches of the contiguous part of the validation data that `rank` evaluates, in order; none if it has no samples."""
    part = part_of(num_samples, num_workers, rank)
    for start in range(part.start, part.stop, batch_size):
        yield np.arange(start, min(start + batch_size, part.stop), dtype=np.int64)


def sample_rng(seed: int, step: int, rank: int, micro: int = 0) -> np.random.Generator:
    """Generator of a task's `augment` and `collate` for one micro-batch."""
    return _generator(seed, _SAMPLES, step, rank, micro)


@lru_cache(maxsize=1024)
def torch_seed(seed: int, step: int, rank: int, micro: int = 0) -> int:
    """Seed of torch's generator (dropout) for one micro-batch, 0 <= seed < 2**63; independent of `sample_rng`."""
    words = np.random.SeedSequence(seed, spawn_key=(_TORCH, step, rank, micro)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def layer_seed(micro_seed: int, layer: int) -> int:
    """Seed before a layer, from its micro-batch's `torch_seed`, 0 <= seed < 2**63: the same on whatever stage the layer is. Layer 0 keeps that of the
    micro-batch; others step through the numbers by the golden ratio (Weyl's sequence), which repeats none."""
    return (micro_seed + layer * 0x9E3779B97F4A7C15) % 2**63


@lru_cache(maxsize=1)
def _permutation(num_samples: int, seed: int, epoch: int) -> Indices:
    return _generator(seed, _SHUFFLE, epoch).permutation(num_samples)


def _generator(seed: int, *spawn_key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=spawn_key)))
