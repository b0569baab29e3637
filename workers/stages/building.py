"""A stage's model, built block by block: each block of another stage is made, digested and given up before the next one is made."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ps.errors import ConfigError
from ps.stages.memory import give_back_freed_memory
from workers.binding import digests_of
from workers.config import PipelineConfig, TrainConfig
from workers.initial import build_model
from workers.stages.blocks import blocks_of, check_composition
from workers.stages.outline import BuiltWhole, Outline, Watching, is_chain, outline_of, registered, storage_of
from workers.stages.place import Place, placed
from workers.task import Task

log = logging.getLogger(__name__)

Inputs = Callable[[], tuple[Any, ...]]
"""What the first block is called with on rank 0's first micro-batch: the same for every stage of every rank."""

_aten = torch.ops.aten
_OVERWRITES = (_aten.normal_, _aten.uniform_, _aten.zero_, _aten.fill_, _aten.copy_, _aten.bernoulli_, _aten.exponential_, _aten.random_)
"""Operations that leave nothing of what their first argument was."""


@dataclass(frozen=True)
class Built:
    """What one stage has of a model."""

    model: nn.Module
    """Other stages' tensors have their shapes and types, and values if the model was built whole."""
    place: Place
    digests: Mapping[str, Sequence[int]]
    """Of the chunks of the tensors without values, by name."""


def build(task: Task, config: TrainConfig, pipeline: PipelineConfig, stage: int, num_stages: int, inputs: Inputs) -> Built:
    """Never does more than one block of another stage have values, unless the model can only be built whole: then the log says why. Raises
    ConfigError."""
    try:
        outline = outline_of(task, getattr(torch, config.dtype))
        split = _placed(task, outline, pipeline, stage, num_stages, inputs).split
        model, digests = _one_by_one(task, config, outline, split.stages[stage])
        place = Place(blocks_of(task, model), split, stage)
        if any(place.stages(model)[name] == stage for name in digests):
            raise BuiltWhole("its model() gives tensors of two blocks the same memory")
        return Built(model, place, digests)
    except BuiltWhole as reason:
        log.warning("this stage builds the whole model, and then gives up what is not its own: %s", reason)
    model = build_model(task, config)
    return Built(model, placed(task, model, pipeline, stage, num_stages, inputs), {})


def check_blocks(task: Task, config: TrainConfig, inputs: Inputs) -> None:
    """Raises ConfigError unless the task's blocks one after the other are its model.

    That is seen without values where the model only passes on what its blocks return; else the whole model is built for it, and given up.
    """
    try:
        if is_chain(outline_of(task, getattr(torch, config.dtype)), inputs()):
            return
    except BuiltWhole:
        pass
    log.info("the whole model is built once, to compare it with its blocks")
    model = build_model(task, config)
    check_composition(model, blocks_of(task, model), inputs())


def _placed(task: Task, outline: Outline, pipeline: PipelineConfig, stage: int, num_stages: int, inputs: Inputs) -> Place:
    try:
        return placed(task, outline.model, pipeline, stage, num_stages, inputs)
    except ConfigError as error:
        if pipeline.balance == "time":  # with zeros for values
            raise BuiltWhole(str(error)) from error
        raise


def _one_by_one(task: Task, config: TrainConfig, outline: Outline, own: range) -> tuple[nn.Module, dict[str, list[int]]]:
    building = _OneByOne(outline, own, getattr(torch, config.dtype))
    try:
        with building, registered(building.take):
            model = build_model(task, config)
    except ConfigError:
        raise
    except Exception as error:
        raise BuiltWhole(" ".join(str(error).split())) from error
    return model, building.digests(model)


@dataclass(frozen=True)
class _Gone:
    """A tensor of another stage that has given up its memory."""

    tensor: Tensor
    """Of the same shape, strides and storage, which has no bytes."""
    size_bytes: int
    """What the storage needs."""
    block: int
    digests: list[int]


class _OneByOne(Watching):  # type: ignore[no-untyped-call]
    """While a model is built: of blocks that are not `own`, only what was made or written last has memory.

    A tensor that is written anew after its block, as `model.apply(initialise)` does, comes back for that.
    """

    def __init__(self, outline: Outline, own: range, dtype: torch.dtype) -> None:
        """`dtype`: of floating-point tensors in the end."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = iter(outline.made)
        self._own = own
        self._dtype = dtype
        self._block = -1
        """That was made or written last."""
        self._new: list[Tensor] = []
        """Its tensors that have never gone, if it is not own."""
        self._back: list[Tensor] = []
        """Those that have come back."""
        self._gone: dict[int, _Gone] = {}
        """By storage."""

    def take(self, tensor: Tensor) -> None:
        """A module takes its next parameter or buffer."""
        made = next(self._made, None)
        if made is None or made.shape != tuple(tensor.shape):
            raise BuiltWhole("its model() makes other tensors when it is called again")
        if made.block is not None and storage_of(tensor) not in self._gone:
            self._turn_to(made.block)
            if made.block not in self._own:
                self._new.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_cast = func is _aten._to_copy.default and kwargs.get("dtype") is self._dtype and args[0].is_floating_point()
        if is_cast and storage_of(args[0]) in map(storage_of, (*self._new, *self._back)):
            self._let_go()  # of the whole model, most likely
        gone = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and storage_of(x) in self._gone] if self._gone else []
        if gone and is_cast:
            return self._cast(gone[0])
        if gone and func is not _aten.detach.default:
            if func.overloadpacket not in _OVERWRITES or len(gone) > 1 or gone[0] is not args[0]:
                raise BuiltWhole(f"its model() does {func} to a tensor of a block after having made another")
            self._bring_back(gone[0])
        return func(*args, **kwargs)

    def digests(self, model: nn.Module) -> dict[str, list[int]]:
        """Of the tensors of the model that have none of their values any more. Raises BuiltWhole."""
        self._let_go()
        if not all(found.tensor.untyped_storage().resizable() for found in self._gone.values()):
            raise BuiltWhole("its model() takes values into numpy")
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: self._gone[storage_of(tensor)].digests for name, tensor in named if storage_of(tensor) in self._gone}

    def _turn_to(self, block: int) -> None:
        if block != self._block:
            self._let_go()
            self._block = block

    def _let_go(self) -> None:
        for tensor in self._new:
            if storage_of(tensor) not in self._gone:  # tied: taken twice
                digests = self._digests_of(tensor.detach())
                empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
                tensor.data = empty  # not what others may look at too
                self._give_up(empty, digests)
        for tensor in self._back:
            self._give_up(tensor, self._digests_of(tensor.clone()))  # numpy's memory would stay as large as it is
        if self._new or self._back:
            self._new, self._back = [], []
            give_back_freed_memory()  # pieces of it would be taken for small things, and the next block finds no place there

    def _digests_of(self, value: Tensor) -> list[int]:
        return digests_of(value.to(self._dtype) if value.is_floating_point() else value)

    def _give_up(self, tensor: Tensor, digests: list[int]) -> None:
        storage = tensor.untyped_storage()
        self._gone[storage_of(tensor)] = _Gone(tensor, storage.nbytes(), self._block, digests)
        storage.resize_(0)

    def _bring_back(self, tensor: Tensor) -> None:
        found = self._gone.pop(storage_of(tensor))
        self._turn_to(found.block)
        found.tensor.untyped_storage().resize_(found.size_bytes)
        self._back.append(found.tensor)

    def _cast(self, tensor: Tensor) -> Tensor:
        """What `digests` are of."""
        found = self._gone[storage_of(tensor)]
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=self._dtype)
        self._turn_to(found.block)
        self._give_up(made, found.digests)
        return made
