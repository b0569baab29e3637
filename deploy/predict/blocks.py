"""How long a task's blocks take on this machine, what they pass on and what they keep: the short calibration behind plans of ranks that are split."""

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from deploy.config import Config
from ps.errors import ConfigError
from ps.layout import TensorSpec
from ps.stages.neighbour import Neighbour
from workers.answers import data_of, mean_and_weight
from workers.batches import Batches, MicroBatch
from workers.binding import specs_of
from workers.config import PipelineConfig
from workers.initial import build_model
from workers.sampler import BatchPlan, torch_seed
from workers.spans import Spans
from workers.stages.blocks import check_composition, sizes_of
from workers.stages.model_call import inputs_of
from workers.stages.place import Place, placed
from workers.stages.stage import Stage
from workers.task import Samples, load_task

T = TypeVar("T")
ENOUGH_S = 0.6
LEAST, MOST = 3, 25
"""Passes that are timed, after one that is not: until they have taken ENOUGH_S, but so many."""


@dataclass(frozen=True)
class Profile:
    """One micro-batch, by block; seconds of a processor."""

    samples: int
    load_s: float
    """The micro-batch itself, made of its samples."""
    forward_s: tuple[float, ...]
    """Of the last block with the loss."""
    backward_s: tuple[float, ...]
    put_s: tuple[float, ...]
    """What the block passes on, or its gradients, put into frames, if a stage ends there."""
    passed_bytes: tuple[int, ...]
    """Behind each block but the last, as frames."""
    kept: tuple[dict[int, int], ...]
    """What backward needs: bytes of every piece of memory, which blocks may share."""

    def kept_bytes(self, blocks: range) -> int:
        """Of these blocks together."""
        return sum({place: size for block in blocks for place, size in self.kept[block].items()}.values())


@dataclass(frozen=True)
class Whole:
    """One micro-batch of the whole model, as a rank of one worker computes it; seconds of a processor."""

    load_s: float
    forward_s: float
    backward_s: float
    kept_bytes: int


class Blocks:
    """A config's task on this machine, whole and in blocks. Data is loaded, and profiles are made, when they are asked for."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for what is not timed here."""
        if config.task is None:
            raise ConfigError("an own loop (train.loop) has no blocks that could be timed: plan from one of its runs")
        if config.scaling.gpus_per_worker or config.train.autocast != "none":
            raise ConfigError("what is timed here computes on processors without autocast: plan from a run")
        self._config = config
        self._task = load_task(config.task.name, config.task.fields)
        self._dtype = getattr(torch, config.train.dtype)
        self._model = build_model(self._task, config.train)
        self._blocks = self._task.blocks(self._model) or []
        self.num_blocks = len(self._blocks)
        """0: the task is never split."""
        self._profiles: dict[int, Profile] = {}

    @cached_property
    def _data(self) -> Samples:
        return data_of(self._task, "train")

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Of whole ranks."""
        return specs_of(self._model, self._config.optimizer.groups)

    def placed(self, num_stages: int) -> tuple[Place, tuple[TensorSpec, ...]]:
        """The model over so many stages, by `pipeline.balance` (cuts: only for their own number of stages). Raises ConfigError."""
        pipeline = self._config.pipeline
        if isinstance(pipeline.balance, tuple) and len(pipeline.balance) + 1 != num_stages:
            pipeline = PipelineConfig()
        place = placed(self._task, self._model, pipeline, 0, num_stages, lambda: self._inputs(self._loaded(1)))
        return place, specs_of(self._model, self._config.optimizer.groups, place.stages(self._model))

    def stage_bytes(self, place: Place) -> list[float]:
        """Parameters of every stage."""
        sizes = sizes_of(self._blocks)
        return [sum(sizes[i] for i in blocks) for blocks in place.split.stages]

    def profile(self, samples: int) -> Profile:
        """Of a micro-batch of so many. Raises ConfigError if the blocks are not the model."""
        if samples not in self._profiles:
            if not self._profiles:
                check_composition(self._model, self._blocks, self._inputs(self._loaded(1)))
            with _torch_threads(self._config.train.num_threads):
                self._profiles[samples] = self._timed(samples)
        return self._profiles[samples]

    @property
    def _clock(self) -> Callable[[], float]:
        """Of the processor, if one thread computes: what others take of it does not count."""
        return time.thread_time if self._config.train.num_threads == 1 else time.perf_counter

    @property
    def _own(self) -> set[int]:
        """Where the memory of parameters is."""
        return {parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()}

    def whole(self, samples: int) -> Whole:
        """Of a micro-batch of so many."""
        clock, kept = self._clock, dict[int, int]()
        micro, load_s = self._load(samples)
        self._model.train()

        def forward() -> Tensor:
            torch.manual_seed(torch_seed(self._config.train.seed, 0, 0, 0))
            return mean_and_weight(self._task.loss(self._model, micro.batch), micro.num_samples)[0]

        def both() -> tuple[float, float]:
            loss, forward_s = _taken(clock, forward)
            return forward_s, _taken(clock, loss.backward)[1]

        with _torch_threads(self._config.train.num_threads):
            with saved_tensors_hooks(_keeper(kept, self._own), lambda value: value):
                forward()
            rows = _repeated(both)
        more = samples / micro.num_samples  # than the task has
        forward_s, backward_s = (more * statistics.median_low(row[k] for row in rows) for k in range(2))
        self._model.zero_grad(set_to_none=True)
        return Whole(more * load_s, forward_s, backward_s, round(more * sum(kept.values())))

    def _timed(self, samples: int) -> Profile:
        clock = self._clock
        micro, load_s = self._load(samples)
        stages = [
            Stage(self._task, [block], i, seed=self._config.train.seed, rank=0, check=lambda step, loss: None) for i, block in enumerate(self._blocks)
        ]
        self._model.train()
        kept, passed = _look(stages, micro, self._own)
        rows = _repeated(lambda: _pass(stages, micro, clock))
        more = samples / micro.num_samples  # than the task has
        forward, backward, put = ([more * statistics.median_low(row[i][k] for row in rows) for i in range(len(stages))] for k in range(3))
        self._model.zero_grad(set_to_none=True)
        return Profile(
            samples, more * load_s, tuple(forward), tuple(backward), tuple(put), tuple(round(more * size) for size in passed),
            tuple({place: round(more * size) for place, size in of.items()} for of in kept),
        )  # fmt: skip

    def _load(self, samples: int) -> tuple[MicroBatch, float]:
        """One, and how long it takes to make when the task's data is there."""
        micro = self._loaded(samples)
        return micro, statistics.median_low(_repeated(lambda: _taken(self._clock, lambda: self._loaded(samples))[1]))

    def _loaded(self, samples: int) -> MicroBatch:
        plan = replace(BatchPlan.from_config(self._config.train, 1, len(self._data)), global_batch=samples, accumulate=1)
        return next(iter(Batches(self._task, self._data, plan, self._dtype, rank=0, num_threads=0).of_step(0, Spans())))

    def _inputs(self, micro: MicroBatch) -> tuple[Any, ...]:
        return inputs_of(self._task, micro.batch)


def _pass(stages: Sequence[Stage], micro: MicroBatch, clock: Callable[[], float]) -> list[tuple[float, float, float]]:
    """Forward, backward and frames of every block, in seconds."""
    forward, backward, put = [], [], []
    begun = clock()
    values = stages[0].inputs(0, micro)
    for stage in stages[:-1]:
        values = stage.forward(0, micro, values)
        forward.append(clock() - begun)
        begun = clock()
        _framed(values)
        put.append(clock() - begun)
        begun = clock()
    stages[-1].forward_to_loss(0, micro, values, several=True)
    forward.append(clock() - begun)
    gradients = None
    for stage in reversed(stages):
        begun = clock()
        gradients = stage.backward(micro.index, gradients)
        backward.append(clock() - begun)
    return list(zip(forward, reversed(backward), [*put, 0.0], strict=True))


def _framed(values: Sequence[Any]) -> int:
    """Bytes of the activations as they travel."""
    neighbour = Neighbour(lambda data: None)
    neighbour.put_activations(0, 0, values)
    return neighbour.sent_bytes


def _look(stages: Sequence[Stage], micro: MicroBatch, own: Collection[int]) -> tuple[list[dict[int, int]], list[int]]:
    """What every block keeps for its backward, but for the memory of parameters, and the bytes that each but the last passes on; warms up."""
    kept: list[dict[int, int]] = [{} for _ in stages]
    passed = []
    values = stages[0].inputs(0, micro)
    for stage, of in zip(stages, kept, strict=True):
        with saved_tensors_hooks(_keeper(of, own), lambda value: value):
            if stage is stages[-1]:
                stage.forward_to_loss(0, micro, values, several=True)
            else:
                values = stage.forward(0, micro, values)
                passed.append(_framed(values))
    gradients = None
    for stage in reversed(stages):
        gradients = stage.backward(micro.index, gradients)
    return kept, passed


def _keeper(kept: dict[int, int], own: Collection[int]) -> Callable[[Tensor], Tensor]:
    """Notes the memory of what is saved for backward, unless it is in `own`."""

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    return keep


def _taken(clock: Callable[[], float], make: Callable[[], T]) -> tuple[T, float]:
    """What is made, and how long that took."""
    begun = clock()
    made = make()
    return made, clock() - begun


def _repeated(measure: Callable[[], T]) -> list[T]:
    measure()
    rows: list[T] = []
    begun = time.perf_counter()
    while len(rows) < LEAST or (len(rows) < MOST and time.perf_counter() - begun < ENOUGH_S):
        rows.append(measure())
    return rows


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
