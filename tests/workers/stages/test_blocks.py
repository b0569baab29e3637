"""Blocks that are not the model, and parameters that two stages would need."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from ps.errors import ConfigError
from tests.ps.training import Marked
from workers.stages.blocks import blocks_of, check_composition, check_tied, sizes_of, tied
from workers.stages.split import balanced, cut_at


class Chain(nn.Module):
    """Three layers; with `skip`, the first one's input goes around it."""

    def __init__(self, *, skip: bool = False, is_tied: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.skip = skip
        if is_tied:
            self.layers[2].weight = self.layers[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(self.layers[0](x))
        y = y + x if self.skip else y
        return self.layers[2](self.layers[1](y))


@dataclass(frozen=True)
class Chained(Marked):
    taken: list[int] = field(default_factory=list)

    def blocks(self, model: nn.Module) -> list[nn.Module] | None:
        return [model.layers[i] for i in self.taken]  # type: ignore[index]


def test_blocks_that_are_the_model_are_fine_and_stay_in_their_mode() -> None:
    model = Chain()
    check_composition(model, list(model.layers), (torch.randn(2, 4),))
    assert all(module.training for module in model.modules())


def test_a_skip_around_a_block_is_refused() -> None:
    model = Chain(skip=True)
    with pytest.raises(ConfigError, match="a skip connection"):
        check_composition(model, list(model.layers), (torch.randn(2, 4),))


def test_blocks_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4))
    with pytest.raises(ConfigError, match="do not follow each other"):
        check_composition(model, [model[1], model[0]], (torch.randn(2, 4),))


def test_a_parameter_outside_the_blocks_is_named() -> None:
    with pytest.raises(ConfigError, match="layers.1.weight of the model is in none"):
        blocks_of(Chained(taken=[0, 2]), Chain())
    with pytest.raises(ConfigError, match="Chained has no blocks"):
        blocks_of(Chained(), Chain())
    assert len(blocks_of(Chained(taken=[0, 1, 2]), Chain())) == 3


def test_tied_parameters_stay_on_one_stage_or_are_refused_by_name() -> None:
    model = Chain(is_tied=True)
    blocks = list(model.layers)
    assert tied(blocks) == [(0, 2)] and tied(list(Chain().layers)) == []
    assert sizes_of(blocks) == [80, 80, 16]
    with pytest.raises(ConfigError, match=r"layers\.0\.weight is used on stages 0 and 1"):
        check_tied(model, blocks, cut_at([1], sizes_of(blocks), 2))
    with pytest.raises(ConfigError, match="leaves 1 parts for 2 stages"):
        balanced(sizes_of(blocks), 2, together=tied(blocks))
    with_more = [*blocks, nn.Linear(4, 4)]
    check_tied(model, with_more, balanced(sizes_of(with_more), 2, together=tied(with_more)))
