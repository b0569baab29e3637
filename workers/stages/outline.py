"""A task's model without its values: the same modules, names and shapes, but each tensor takes the memory of one number."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ps.errors import ConfigError
from workers.answers import model_of
from workers.stages.blocks import as_tuple, blocks_of, in_evaluation
from workers.task import Task


class BuiltWhole(BaseException):
    """Why a model cannot be built block by block. It passes through the user's code, which may catch any Exception."""


@dataclass(frozen=True)
class Made:
    """A parameter or buffer, when a module took it."""

    shape: tuple[int, ...]
    block: int | None
    """The first block that has it in the end. None: none has."""


@dataclass(frozen=True)
class Outline:
    """What is known of a model before it is built."""

    model: nn.Module
    """Computes with zeros, which take memory for the block that is being computed."""
    blocks: Sequence[nn.Module]
    made: Sequence[Made]
    """In the order in which model() makes them."""


def outline_of(task: Task, dtype: torch.dtype) -> Outline:
    """`dtype`: of floating-point tensors in the end. Raises BuiltWhole, ConfigError."""
    taken: list[tuple[Tensor, tuple[int, ...]]] = []
    unwritten = _Unwritten()

    def take(tensor: Tensor) -> None:
        taken.append((tensor, tuple(tensor.shape)))
        tensor.data = _zeros_like(tensor, tensor.dtype)
        unwritten.storages.add(storage_of(tensor))

    try:
        with unwritten, registered(take):
            model = model_of(task)
    except ConfigError:
        raise
    except Exception as error:
        raise BuiltWhole(f"its model() needs values ({' '.join(str(error).split())})") from error
    blocks = blocks_of(task, model)
    block_of = {id(tensor): i for i in reversed(range(len(blocks))) for tensor in (*blocks[i].parameters(), *blocks[i].buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _zeros_like(tensor, dtype if tensor.is_floating_point() else tensor.dtype)
    for block in set(blocks):
        block.register_forward_pre_hook(_fill)
        block.register_forward_hook(_empty)
    return Outline(model, blocks, [Made(shape, block_of.get(id(tensor))) for tensor, shape in taken])


@contextmanager
def registered(take: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls `take` with every parameter and buffer that a module takes, before the module goes on."""

    def seen(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            take(tensor)

    hooks = [register_module_parameter_registration_hook(seen), register_module_buffer_registration_hook(seen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Chain:
    """Follows a model's forward: does it do nothing but call its blocks one after the other, each with the very tensors that the one before has
    returned?"""

    def __init__(self, blocks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> None:
        self._left = list(blocks)
        self._is_unbroken = True
        self._pass_on(inputs)

    def _pass_on(self, values: tuple[Any, ...]) -> None:
        self._values, self._versions = values, _versions(values)

    def before(self, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A block is called."""
        is_next = bool(self._left) and self._left.pop(0) is block
        self._is_unbroken &= is_next and not named and self._are(given)

    def after(self, block: nn.Module, given: tuple[Any, ...], outputs: Any) -> None:
        """It has returned."""
        self._pass_on(as_tuple(outputs))

    def ends_with(self, outputs: tuple[Any, ...]) -> bool:
        """Whether all was so, and the model returns this."""
        return self._is_unbroken and not self._left and self._are(outputs)

    def _are(self, values: tuple[Any, ...]) -> bool:
        same = len(values) == len(self._values) and all(a is b for a, b in zip(values, self._values, strict=True))
        return same and _versions(values) == self._versions


@torch.no_grad()
def is_chain(outline: Outline, inputs: tuple[Any, ...]) -> bool:
    """Whether the model is its blocks one after the other, whatever their values. False: that cannot be seen so."""
    chain = Chain(outline.blocks, inputs)
    hooks = [
        hook
        for block in set(outline.blocks)
        for hook in (block.register_forward_pre_hook(chain.before, with_kwargs=True), block.register_forward_hook(chain.after))
    ]
    try:
        with in_evaluation(outline.model):
            return chain.ends_with(as_tuple(outline.model(*inputs)))
    except Exception:  # noqa: BLE001 - the user's code, with zeros for values
        return False
    finally:
        for hook in hooks:
            hook.remove()


def storage_of(tensor: Tensor) -> int:
    """By which a tensor's memory is known, whatever looks at it."""
    return int(tensor.untyped_storage()._cdata)


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode of torch that is nothing to `torch.compile`, whose import would take seconds and 80 MB."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Unwritten(Watching):  # type: ignore[no-untyped-call]
    """While a model is outlined: nothing is written to what its modules have taken."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and args and isinstance(args[0], Tensor) and storage_of(args[0]) in self.storages:
            return args[0]
        return func(*args, **(kwargs or {}))


def _zeros_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return _zeros((), dtype).expand(tensor.shape)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Unseen by modes of torch, which count."""
    return torch.from_numpy(np.zeros(shape, str(dtype).removeprefix("torch.")))


def _fill(block: nn.Module, inputs: Any) -> None:
    """Kernels are chosen by how operands lie in memory."""
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.data = _zeros(tuple(tensor.shape), tensor.dtype)


def _empty(block: nn.Module, inputs: Any, outputs: Any) -> None:
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.data = _zeros_like(tensor, tensor.dtype)


def _versions(values: tuple[Any, ...]) -> list[int]:
    return [value._version for value in tree_leaves(values) if isinstance(value, Tensor)]
