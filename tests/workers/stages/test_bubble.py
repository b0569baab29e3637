"""Stages whose compute is a wait of known length: how long they wait for each other.

Time is simulated: every stage has a clock, which its blocks put on, and a message that comes from a later time.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploy.predict.floors import bubble
from protos import pserver_pb2 as pb
from ps.stages.messages import Message
from ps.stages.neighbour import Neighbour
from tests.ps.training import Job
from tests.workers.stages.staged import Ends, Split5, linked, run
from workers.spans import Spans


class Clock(threading.local):
    """Of a stage's thread."""

    now_s = 0.0


CLOCK = Clock()


class Timed(Neighbour):
    """Messages bring the time at which they were put."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__(send)
        self.sent: deque[float] = deque()
        self.other: Timed

    def put(self, message: Message) -> None:
        self.sent.append(CLOCK.now_s)
        super().put(message)

    def take(self, kind: pb.Kind, step: int | None = None, micro: int = 0) -> Message:
        message = super().take(kind, step, micro)
        CLOCK.now_s = max(CLOCK.now_s, self.other.sent.popleft())
        return message


def timed(num_stages: int) -> list[Ends]:
    ends = linked(num_stages, Timed)
    for before, after in pairwise(ends):
        assert isinstance(before.later, Timed) and isinstance(after.earlier, Timed)
        before.later.other, after.earlier.other = after.earlier, before.later
    return ends


class _Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward_s: float, backward_s: float) -> torch.Tensor:
        ctx.backward_s = backward_s
        CLOCK.now_s += forward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        CLOCK.now_s += ctx.backward_s
        return gradient, None, None


class Waiting(nn.Linear):
    """Nothing but a wait, forward and twice as long backward."""

    def __init__(self, outputs: int, seconds: float) -> None:
        super().__init__(8, outputs)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Waits.apply(super().forward(x), self.seconds, 2 * self.seconds)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Waits(Split5):
    """A block for each stage."""

    lengths: tuple[float, ...] = ()

    def model(self) -> nn.Module:
        *others, last = self.lengths
        return nn.Sequential(*(Waiting(8, seconds) for seconds in others), Waiting(2, last))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, _ = batch
        return functional.mse_loss(model(x), y)


def shares(lengths: tuple[float, ...], micro_batches: int) -> list[float]:
    """Part of its time that each stage waits for others, in a step."""
    job = replace(Job(task=Waits(lengths=lengths)).changed(accumulate=micro_batches, max_steps=1), num_workers=1)
    spans = [Spans(clock=lambda: CLOCK.now_s) for _ in lengths]
    run(job, len(lengths), range(1, len(lengths)), timed, spans.__getitem__)
    taken = [its.take()[1] for its in spans]
    return [its["bubble"] / (its["bubble"] + its["forward"] + its["backward"]) for its in taken]


@pytest.mark.parametrize(("num_stages", "micro_batches"), [(2, 2), (2, 5), (3, 6), (4, 1)])
def test_stages_of_equal_length_wait_for_each_other_as_the_closed_form_says(num_stages: int, micro_batches: int) -> None:
    """The first stage begins first and ends last; for the others the end of the step is a wait in the barrier."""
    first, *later = shares((1.0,) * num_stages, micro_batches)
    assert first == pytest.approx(bubble(num_stages, micro_batches))
    assert [first, *later] == sorted([first, *later], reverse=True)


def test_the_longest_stage_waits_least() -> None:
    first, middle, last = shares((1.0, 2.0, 1.0), 8)
    assert middle < 0.15 < 0.4 < min(first, last)
