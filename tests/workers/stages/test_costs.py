"""What blocks cost in time, as it is counted."""

import pytest
import torch
from torch import nn

from ps.errors import ConfigError
from tests.workers.stages.staged import Split5
from workers.config import PipelineConfig
from workers.stages.costs import BYTE, operations_of
from workers.stages.place import placed

ROWS = 4


class Squares(nn.Module):
    """Computes much with no parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (x.t() @ x)


class Wide(Split5):
    """A large table that is hardly used, then blocks that compute."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(10_000, 8), nn.Flatten(1), nn.Linear(24, 60), Squares(), Squares(), nn.Linear(60, 2))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())


def test_operations_and_bytes_are_counted_and_views_are_free() -> None:
    blocks = [nn.Flatten(1), nn.Linear(6, 5, bias=False), nn.ReLU()]
    found = operations_of(nn.Sequential(*blocks), blocks, (torch.ones(ROWS, 2, 3),))
    matrices = 4 * (ROWS * 6 + 6 * 5 + ROWS * 5)
    assert found == [0, 2 * ROWS * 6 * 5 + BYTE * matrices, BYTE * 4 * 2 * ROWS * 5]


def test_time_cuts_where_bytes_would_not() -> None:
    task = Wide()
    model = task.model()
    text = torch.zeros(ROWS, 3, dtype=torch.long)
    cuts = {}
    for balance in ("bytes", "time"):
        cuts[balance] = placed(task, model, PipelineConfig(balance=balance), 0, 2, lambda: (text,)).split.cuts
    assert cuts == {"bytes": (1,), "time": (4,)}


def test_counting_leaves_the_model_as_it_was() -> None:
    norm = nn.BatchNorm1d(3)
    operations_of(norm, [norm], (torch.randn(ROWS, 3),))
    assert norm.training and norm.num_batches_tracked == 0


def test_blocks_that_do_not_follow_each_other_are_named() -> None:
    blocks = [nn.Linear(3, 4), nn.Linear(5, 4)]
    with pytest.raises(ConfigError, match="the task's blocks do not follow each other: mat1 and mat2"):
        operations_of(nn.Sequential(*blocks), blocks, (torch.ones(ROWS, 3),))
