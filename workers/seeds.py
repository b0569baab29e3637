"""Torch's generator in a forward pass: seeded for every micro-batch, and anew before each block of a model that may be split, so that masks of
dropout are the same however the blocks are spread over stages."""

from functools import partial
from typing import Any

import torch
from torch import nn

from workers.sampler import layer_seed, torch_seed
from workers.task import Task


def seed_layer(seed: int, step: int, rank: int, micro: int, layer: int) -> None:
    """Before a micro-batch goes through block `layer`, counted from 1. 0: before it goes through anything."""
    # as torch.manual_seed, which looks for devices first: 0.3 ms for each block of each micro-batch
    value = layer_seed(torch_seed(seed, step, rank, micro), layer)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(value)


class BlockSeeds:
    """Of a whole rank's model: its blocks, if the task names any, are seeded whenever they are called in training."""

    def __init__(self, task: Task, model: nn.Module, seed: int, rank: int) -> None:
        self._seed = seed
        self._rank = rank
        self._at = (0, 0)
        """Step and micro-batch."""
        for layer, block in enumerate(task.blocks(model) or (), start=1):
            block.register_forward_pre_hook(partial(self._before, layer))

    def begin(self, step: int, micro: int) -> None:
        """A micro-batch goes forward."""
        self._at = step, micro
        torch.manual_seed(torch_seed(self._seed, step, self._rank, micro))

    def _before(self, layer: int, block: nn.Module, inputs: Any) -> None:
        if block.training:
            step, micro = self._at
            seed_layer(self._seed, step, self._rank, micro, layer)
