"""Which part of a task's model a stage has: its blocks, and the names of its tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ps.weights import SUMS
from workers.config import PipelineConfig
from workers.stages.blocks import blocks_of, check_tied, sizes_of, tied
from workers.stages.costs import operations_of
from workers.stages.split import Split, balanced, cut_at
from workers.task import Task


@dataclass(frozen=True)
class Place:
    """A model cut into stages, as one of them sees it."""

    blocks: Sequence[nn.Module]
    """All of the model's."""
    split: Split
    stage: int

    @property
    def own(self) -> list[nn.Module]:
        """The stage's blocks."""
        return [self.blocks[i] for i in self.split.stages[self.stage]]

    @property
    def first(self) -> int:
        """The first of them."""
        return self.split.stages[self.stage].start

    def stages(self, model: nn.Module) -> dict[str, int]:
        """Of every tensor of the model by its name, and of the epoch sums, which are the last stage's."""
        stage_of = {
            id(tensor): stage
            for stage, held in enumerate(self.split.stages)
            for i in held
            for tensor in (*self.blocks[i].parameters(), *self.blocks[i].buffers())
        }
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        return {name: stage_of[id(tensor)] for name, tensor in named} | {SUMS: len(self.split.stages) - 1}


def placed(task: Task, model: nn.Module, pipeline: PipelineConfig, stage: int, num_stages: int, inputs: Callable[[], tuple[Any, ...]]) -> Place:
    """`inputs`: of the first block, the same for every stage of every rank. Raises ConfigError where the model cannot be split so."""
    blocks = blocks_of(task, model)
    cuts = pipeline.balance
    costs = operations_of(model, blocks, inputs()) if cuts == "time" else sizes_of(blocks)
    split = cut_at(cuts, costs, num_stages) if isinstance(cuts, tuple) else balanced(costs, num_stages, together=tied(blocks))
    check_tied(model, blocks, split)
    return Place(blocks, split, stage)
