"""A stage that computes its forward once more for its backward: the same bits, without what lies between."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from ps.errors import ConfigError
from tests.workers.stages.staged import Split5
from workers.batches import MicroBatch
from workers.stages.stage import Stage


class Watched(nn.Module):
    """Batch statistics and dropout; knows whether what it has computed on the way still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(1))
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        inner = torch.exp(self.drop(self.norm(x))) / self.passes.clone()
        self.seen.append(weakref.ref(inner))
        return inner * inner


class Changing(nn.Module):
    """Changes what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def stage(*blocks: nn.Module, recompute: bool) -> Stage:
    return Stage(Split5(), blocks, 1, seed=3, rank=0, check=lambda step, loss: None, recompute=recompute)


def passes(*, recompute: bool) -> tuple[list[Any], int]:
    """Gradients and buffers after a step of three micro-batches, and how many of the values in between lived until backward."""
    torch.manual_seed(1)
    blocks = [nn.Linear(4, 6), Watched(), nn.Linear(6, 2)]
    one = stage(*blocks, recompute=recompute)
    inputs = [torch.randn(5, 4, requires_grad=True) for _ in range(3)]
    outputs = [one.forward(7, MicroBatch(i, 3, 5, None), (x,)) for i, x in enumerate(inputs)]
    alive = sum(seen() is not None for seen in blocks[1].seen)  # type: ignore[union-attr]
    back = [one.backward(i, (torch.ones_like(out),)) for i, (out,) in enumerate(outputs)]
    model = nn.Sequential(*blocks)
    return [*(p.grad for p in model.parameters()), *model.buffers(), *(gradient for (gradient,) in back), *(out for (out,) in outputs)], alive


def test_what_is_computed_again_has_the_same_bits_and_is_not_kept() -> None:
    kept, alive = passes(recompute=False)
    again, none_alive = passes(recompute=True)
    assert (alive, none_alive) == (3, 0)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_a_block_that_changes_its_input_is_not_computed_again() -> None:
    one = stage(Changing(), recompute=True)
    with pytest.raises(ConfigError, match="in place, so it cannot be computed again: set pipeline.recompute = false"):
        one.forward(0, MicroBatch(0, 1, 2, None), (torch.ones(2),))
