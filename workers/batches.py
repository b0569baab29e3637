"""The batches of one rank in the order of the steps, prepared ahead by background threads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from workers.data import cast, fetch, move
from workers.prefetch import Prefetcher
from workers.sampler import BatchPlan, Indices, sample_rng
from workers.spans import Spans
from workers.task import Samples, Task

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MicroBatch:
    """A rank's micro-batch of a step, ready for the loss."""

    index: int
    """Its place in the step, from 0."""
    num_in_step: int
    """Micro-batches the rank has in the step; 0 in the stand-in of a step without samples."""
    num_samples: int
    batch: Any
    """What `loss` gets, floating-point tensors cast; on the device once `of_step` yields it. None in the stand-in."""


class Batches:
    """A pure function of (seed, step, rank), read step by step: `num_threads` changes when a batch is made, not what is in it."""

    def __init__(
        self, task: Task, data: Samples, plan: BatchPlan, dtype: torch.dtype, *, rank: int, num_threads: int, device: torch.device = CPU
    ) -> None:
        self._task = task
        self._data = data
        self._plan = plan
        self._dtype = dtype
        self._rank = rank
        self._device = device
        self._prefetcher = Prefetcher(num_threads)
        self._stream: Iterator[MicroBatch] = iter(())
        self._next_step = -1

    def of_step(self, step: int, spans: Spans) -> Iterator[MicroBatch]:
        """Micro-batches of `step`, none if the rank has no samples; the wait for each is a `data_wait`.

        Steps that follow each other are prepared ahead; any other step, or one after a step left in the middle, starts afresh.
        Raises what the task raised.
        """
        if step != self._next_step:
            self._stream = self._prefetcher.map(self._load, self._parts(step))
        self._next_step = -1
        last = False
        while not last:
            with spans.span("data_wait"):
                micro = next(self._stream)
                last = micro.index + 1 >= micro.num_in_step
                moved = replace(micro, batch=move(micro.batch, self._device)) if micro.num_in_step else None
            if moved:
                yield moved
        self._next_step = step + 1

    def close(self) -> None:
        """Ends the threads; returns after the loads in progress."""
        self._prefetcher.close()

    def _parts(self, first_step: int) -> Iterator[tuple[int, int, int, Indices | None]]:
        """(step, index, num_in_step, indices) from `first_step` on, without end; each step has at least a stand-in."""
        for step in count(first_step):
            parts = self._plan.micro_batches(step, self._rank)
            if not parts:
                yield step, 0, 0, None
            for i, indices in enumerate(parts):
                yield step, i, len(parts), indices

    def _load(self, part: tuple[int, int, int, Indices | None]) -> MicroBatch:
        step, index, num_in_step, indices = part
        if indices is None:
            return MicroBatch(index, num_in_step, 0, None)
        rng = sample_rng(self._plan.seed, step, self._rank, index)
        batch = cast(fetch(self._task, self._data, indices, rng, training=True), self._dtype, pin=self._device.type == "cuda")
        return MicroBatch(index, num_in_step, len(indices), batch)
