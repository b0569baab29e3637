"""A task's blocks, looked at before they are split: together they must be the model, and no parameter may be needed on two stages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.stages.split import Split
from workers.task import Task


def blocks_of(task: Task, model: nn.Module) -> list[nn.Module]:
    """The task's blocks, every parameter and buffer of the model in one of them. Raises ConfigError."""
    blocks = task.blocks(model)
    if not blocks:
        raise ConfigError(f"{type(task).__name__} has no blocks: return them from blocks(model), or take one stage")
    held = {id(tensor) for block in blocks for tensor in _tensors(block)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in held:
            raise ConfigError(f"{name} of the model is in none of the task's blocks: every parameter and buffer belongs to one")
    return blocks


def sizes_of(blocks: Sequence[nn.Module]) -> list[float]:
    """Bytes of every block's parameters, a shared one counted where it comes first."""
    seen: set[int] = set()
    sizes = []
    for block in blocks:
        own = {id(p): p for p in block.parameters() if id(p) not in seen}
        sizes.append(float(sum(p.nbytes for p in own.values())))
        seen |= own.keys()
    return sizes


def tied(blocks: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """First and last block of every parameter or buffer that is in several."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for tensor in _tensors(block):
            first.setdefault(id(tensor), index)
            last[id(tensor)] = index
    return sorted({(i, last[tensor]) for tensor, i in first.items() if last[tensor] > i})


def check_tied(model: nn.Module, blocks: Sequence[nn.Module], split: Split) -> None:
    """Raises ConfigError where two stages would need one parameter or buffer."""
    stage_of = {block: stage for stage, held in enumerate(split.stages) for block in held}
    where: dict[int, int] = {}
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for index, block in enumerate(blocks):
        for tensor in _tensors(block):
            stage = where.setdefault(id(tensor), stage_of[index])
            if stage != stage_of[index]:
                raise ConfigError(
                    f"{names[id(tensor)]} is used on stages {stage} and {stage_of[index]}: untie it, or cut where one stage holds both uses"
                )


@torch.no_grad()
def check_composition(model: nn.Module, blocks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> None:
    """Raises ConfigError unless the blocks one after the other give what the model gives, in evaluation mode, to the last bit.

    What they do not pass on (a skip connection around a block, a tensor that one keeps for another) makes a difference.
    """
    with in_evaluation(model):
        wanted = as_tuple(model(*inputs))
        found = inputs
        for block in blocks:
            found = as_tuple(block(*[x.clone() if isinstance(x, Tensor) else x for x in found]))
    if len(found) != len(wanted) or not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
        raise ConfigError(
            "the task's blocks one after the other are not its model: what goes around a block (a skip connection) must travel through it, "
            "as one more tensor that it takes and returns"
        )


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """For its blocks one after the other: modules are in evaluation mode, and then in the modes that they were in. Raises ConfigError if the
    blocks do not follow each other."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"the task's blocks do not follow each other: {' '.join(str(error).split())}") from error
    finally:
        for module, training in modes.items():
            module.training = training


def as_tuple(value: Any) -> tuple[Any, ...]:
    """What a block returns, as what the next one takes."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
