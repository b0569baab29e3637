"""Gradients leave while the backward pass that makes them goes on."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from ps.errors import ConfigError
from ps.layout import Rule
from workers.binding import BoundModel
from workers.spans import Spans


class Exchange(Protocol):
    """What a step needs of the other side: a session, which is one rank's connection to all shards."""

    def begin(self, step: int, weight: float) -> None:
        """A step of which nothing is ready; returns when all of its version has landed and is installed."""

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """These contributions are in `BoundModel.gradients`, or absent; each tensor once per step. Does not block."""


class Pushes:
    """The contribution of one step after the other: `begin` before the last backward of a step, `end` after it. One thread uses it.

    In the first step whose backward comes between the two everything is pushed by `end`, and what cannot leave early is found out:
    gradients that a backward adds to several times, buffers that it changes.
    """

    def __init__(self, bound: BoundModel, exchange: Exchange, spans: Spans, *, early: bool, own_loop: bool, adds_in_place: bool = False) -> None:
        """`early`: False pushes everything at the end of every step. `own_loop`: parameters keep their `grad` once it is pushed, and a step
        may begin before its forward, which changes buffers. `adds_in_place`: gradients are added up where they are pushed from, which must be
        free before a step's first backward."""
        self._bound = bound
        self._exchange = exchange
        self._spans = spans
        self._early = early
        self._adds_in_place = adds_in_place and not bound.copies
        self._keeps_gradients = own_loop or bound.copies
        self._is_open = False
        self._divisor: float | None = None
        self._weight = 0.0
        self._sums: Sequence[float] | None = None
        self._times: dict[int, int] = {}
        """How often the step's backward has completed each gradient."""
        self._late: set[int] | None = None
        """Tensors that may not leave early; None before a step has shown which."""
        self._copying: deque[tuple[Any, int]] = deque()
        """Tensors on their way from the device, with the event after the copy."""
        specs = bound.layout.specs
        self._buffers = [] if own_loop else [i for i in bound.versioned if specs[i].rule in (Rule.MEAN, Rule.EQUAL)]
        """Those that leave when a step begins, but for the late ones."""
        if early or self._adds_in_place:
            for i in bound.versioned:
                if specs[i].rule is Rule.OPTIMIZER:
                    bound.tensor(i).register_post_accumulate_grad_hook(partial(_call, self._made, i))  # type: ignore[no-untyped-call]

    def begin(self, step: int, sums: Sequence[float] | None, *, weight: float, divide: bool) -> None:
        """The step's last backward follows, if there is one. `sums` are its SUM_NAMES, None without samples; gradients are divided by
        `weight` if `divide`. Returns when all of version `step` is installed."""
        self._exchange.begin(step, weight)
        self._is_open = True
        self._sums, self._weight = sums, weight
        self._divisor = weight if divide else None
        self._times = {}
        if sums is None or self._late is None:
            self._keep_buffers()
            return
        early = [i for i in self._buffers if i not in self._late]
        with self._spans.span("copy"):
            for i in early:
                self._bound.collect(i, None)
            early.append(self._bound.collect_sums(sums))
            self._bound.mover.wait()
        self._keep_buffers()
        self._exchange.ready(early, present=True)

    def _keep_buffers(self) -> None:
        with self._spans.span("copy"):
            self._before = [self._bound.tensor(i).clone() for i in self._buffers]

    def _made(self, tensor: int) -> None:
        """The hook of a gradient to which a backward has added all that it has."""
        if self._adds_in_place:
            self._bound.keep_gradient(tensor)
        if not self._early or not self._is_open or self._sums is None:
            return
        self._times[tensor] = self._times.get(tensor, 0) + 1
        if self._late is None or tensor in self._late:
            return
        if self._times[tensor] > 1:
            raise ConfigError(
                f"the gradient of {self._name(tensor)} was added to after it had been pushed: use torch.utils.checkpoint with use_reentrant=False, "
                "one backward per step, or train.overlap = false"
            )
        with self._spans.span("copy"):
            self._bound.collect(tensor, self._divisor)
            if not self._keeps_gradients:
                self._bound.tensor(tensor).grad = None
            self._copying.append((self._bound.mover.mark(), tensor))
        self._push_copied()

    def _push_copied(self) -> None:
        done = []
        while self._copying and self._copying[0][0].query():
            done.append(self._copying.popleft()[1])
        if done:
            self._exchange.ready(done, present=True)

    def end(self) -> None:
        """The step's backward is over: pushes what has not left."""
        self._is_open = False
        with self._spans.span("copy"):
            self._check_buffers()
            rest = self._bound.gather(self._weight, divide=self._divisor is not None, sums=self._sums)
            self._push_copied()  # `gather` has waited for the copies
            for present in (True, False):
                if chosen := [i for i in rest if self._bound.is_present(i) is present]:
                    self._exchange.ready(chosen, present=present)

    def _check_buffers(self) -> None:
        """What backward changes (by activation checkpointing) may not leave before it. Torch's kernel of BatchNorm counts no versions."""
        changed = {i for i, before in zip(self._buffers, self._before, strict=True) if not _same_bits(self._bound.tensor(i), before)}
        if self._late is None:
            if self._times:
                self._late = changed | {i for i, times in self._times.items() if times > 1}
        elif self._sums is not None and changed - self._late:
            name = self._name(min(changed - self._late))
            raise ConfigError(f"the buffer {name} was changed by backward after it had been pushed: set train.overlap = false")

    def _name(self, tensor: int) -> str:
        return self._bound.layout.specs[tensor].name


def _call(made: Callable[[int], None], tensor: int, _parameter: torch.Tensor) -> None:
    made(tensor)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
