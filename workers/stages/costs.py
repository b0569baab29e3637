"""How long blocks take, as far as that can be counted: the same on every host, so that all stages of a run come to the same cuts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from workers.stages.blocks import as_tuple, in_evaluation

BYTE = 5.0
"""Floating-point operations that take as long as reading or writing a byte: some 50 GFLOP/s and 10 GB/s of a core."""


_PICKING = ("aten::embedding", "aten::index", "aten::index_select", "aten::gather")
"""Operations that read as much as they write of a table that may be large."""


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations read and write; views are free."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            read = (result,) if func.name().partition(".")[0] in _PICKING else (args, kwargs)
            tensors = [value for value in tree_leaves((read, result)) if isinstance(value, Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def operations_of(model: nn.Module, blocks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> list[float]:
    """Of every block, forward, on these inputs of the first one; backward takes about twice as many of each. Raises ConfigError."""
    found = []
    with in_evaluation(model), torch.no_grad():
        for block in blocks:
            with FlopCounterMode(display=False) as operations, _Traffic() as traffic:  # type: ignore[no-untyped-call]
                inputs = as_tuple(block(*inputs))
            found.append(operations.get_total_flops() + BYTE * traffic.num_bytes)
    return found
