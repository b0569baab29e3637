"""One stage's passes over micro-batches: its blocks forward, and backward to what came in. It knows no neighbour."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.answers import check_gradient, mean_and_weight
from workers.batches import MicroBatch
from workers.seeds import seed_layer
from workers.stages.blocks import as_tuple
from workers.stages.model_call import inputs_of, loss_of
from workers.task import Task

Activations = tuple[Any, ...]
"""What a block returns; floating-point tensors that need a gradient are leaves of the stage that takes them."""
Gradients = tuple[Tensor | None, ...]
"""As long as the activations they belong to."""
Again = Callable[[], AbstractContextManager[Activations]]
"""Has a micro-batch's outputs for its backward, which is the block."""

_GENERATOR = threading.RLock()
"""Guards torch's generator, which all threads of a process share, from seed to last use."""


class Stage:
    """Blocks `first`, … of a task's model. One thread uses it; the result depends on (parameters, seed, step, rank, micro-batch) alone."""

    def __init__(
        self,
        task: Task,
        blocks: Sequence[nn.Module],
        first: int,
        *,
        seed: int,
        rank: int,
        check: Callable[[int, float], None],
        recompute: bool = False,
    ) -> None:
        """`check`: is given step and value of every loss that counts, before its backward. `recompute`: what backward needs is not kept from
        forward, but computed again: the same, for seeds and buffers are what they were."""
        self._task = task
        self._blocks = blocks
        self._first = first
        self._seed = seed
        self._rank = rank
        self._check = check
        self._recompute = recompute
        self._buffers = [buffer for block in blocks for buffer in block.buffers()]
        self._held: dict[int, tuple[Activations, Again]] = {}
        """What came in and how to have what went out, of micro-batches that are still to go backward."""

    def begin(self) -> None:
        """A new step; what a step left in the middle has kept is gone."""
        self._held.clear()

    def inputs(self, step: int, micro: MicroBatch) -> Activations:
        """What the model is called with: the first stage's input."""
        with _GENERATOR:
            seed_layer(self._seed, step, self._rank, micro.index, 0)
            return inputs_of(self._task, micro.batch)

    def forward(self, step: int, micro: MicroBatch, inputs: Activations) -> Activations:
        """The blocks' output, cut off: the next stage's input. Raises ConfigError."""
        buffers = [buffer.clone() for buffer in self._buffers] if self._recompute else []
        versions = _versions(inputs)
        outputs = self._compute(step, micro, inputs)
        if not self._recompute:
            self._held[micro.index] = inputs, _as_it_is(outputs)
        elif _versions(inputs) == versions:
            self._held[micro.index] = inputs, partial(self._computed_again, step, micro, inputs, buffers)
        else:
            raise ConfigError("a block changes what it is given in place, so it cannot be computed again: set pipeline.recompute = false")
        return tuple(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in outputs)

    def forward_to_loss(self, step: int, micro: MicroBatch, inputs: Activations, *, several: bool) -> tuple[float, float]:
        """Loss and weight of the micro-batch; (0, 0) without weight. Last stage only.

        `several`: the step has several micro-batches, whose gradients are weighted before they are added up. Raises ConfigError.
        """

        def answer() -> Any:
            outputs = self._compute(step, micro, inputs)
            return outputs[0] if len(outputs) == 1 else outputs

        with _GENERATOR:
            seed_layer(self._seed, step, self._rank, micro.index, 0)
            mean, weight = mean_and_weight(loss_of(self._task, micro.batch, answer), micro.num_samples)
        if not weight:
            self._held[micro.index] = inputs, _as_it_is(())
            return 0.0, 0.0
        check_gradient(mean)
        value = float(mean.detach())
        self._check(step, value)
        self._held[micro.index] = inputs, _as_it_is((mean * weight if several else mean,))
        return value, weight

    def evaluate(self, inputs: Activations) -> Activations:
        """The blocks' output, of which nothing is kept: in evaluation mode, without gradients."""
        for block in self._blocks:
            inputs = as_tuple(block(*inputs))
        return inputs

    def backward(self, micro: int, gradients: Gradients | None) -> Gradients:
        """Adds up the parameters' gradients; returns those of what came in. None: from the loss."""
        inputs, outputs_again = self._held.pop(micro)
        with outputs_again() as outputs:
            if gradients is None:
                gradients = tuple(torch.ones_like(loss) for loss in outputs)
            chosen = [(x, g) for x, g in zip(outputs, gradients, strict=True) if g is not None]
            if chosen:
                torch.autograd.backward([x for x, _ in chosen], [g for _, g in chosen])
        return tuple(x.grad if isinstance(x, Tensor) else None for x in inputs)

    def _compute(self, step: int, micro: MicroBatch, inputs: Activations) -> Activations:
        for index, block in enumerate(self._blocks, start=self._first):
            with _GENERATOR:
                seed_layer(self._seed, step, self._rank, micro.index, 1 + index)
                inputs = as_tuple(block(*inputs))
        return inputs

    @contextmanager
    def _computed_again(self, step: int, micro: MicroBatch, inputs: Activations, buffers: Sequence[Tensor]) -> Iterator[Activations]:
        """With the buffers that it had; those of now are there again afterwards."""
        now = [buffer.clone() for buffer in self._buffers]
        self._set_buffers(buffers)
        yield self._compute(step, micro, inputs)
        self._set_buffers(now)

    @torch.no_grad()
    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def _as_it_is(outputs: Activations) -> Again:
    return lambda: nullcontext(outputs)


def _versions(values: Activations) -> list[int]:
    """Change with what is written to them."""
    return [value._version for value in values if isinstance(value, Tensor)]
