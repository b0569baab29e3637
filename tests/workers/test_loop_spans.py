"""Names for the time of an own loop, on a clock of the tests."""

import copy

import pytest
import torch
from torch import nn

from workers.loop_spans import LoopSpans
from workers.spans import Spans


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def go(self, seconds: float) -> None:
        self.now_s += seconds


class Slow(nn.Module):
    """Takes 10 s."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self._clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._clock.go(10)
        return self.inner(x)


X = torch.ones(3, 2)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock: Clock) -> Slow:
    return Slow(clock)


@pytest.fixture
def spans(clock: Clock) -> Spans:
    return Spans(clock=clock)


def taken(spans: Spans) -> dict[str, float]:
    total, found = spans.take()
    assert sum(found.values()) == total
    return {name: seconds for name, seconds in found.items() if seconds}


def test_time_before_inside_and_after_the_model_has_names(model: Slow, clock: Clock, spans: Spans) -> None:
    loop = LoopSpans(model, spans)
    for _ in range(2):
        clock.go(20)
        loss = model(X).sum()
        clock.go(30)
        loss.backward()
        loop.ends()
        assert taken(spans) == {"data_wait": 20, "forward": 10, "backward": 30}


def test_several_forwards_and_an_exchange_that_begins_between_them(model: Slow, clock: Clock, spans: Spans) -> None:
    loop = LoopSpans(model, spans)
    clock.go(20)
    loop.begins()
    for _ in range(2):
        model(X).sum().backward()
        clock.go(10)
    loop.ends()
    assert taken(spans) == {"data_wait": 20, "forward": 20, "backward": 20}


def test_a_loop_that_calls_parts_of_the_model_computes_forward_until_the_first_gradient(model: Slow, clock: Clock, spans: Spans) -> None:
    loop = LoopSpans(model, spans)
    clock.go(20)
    loss = model.inner(X).sum()
    loss.backward()
    clock.go(10)
    loop.ends()
    assert taken(spans) == {"forward": 20, "backward": 10}


def test_a_model_that_is_validated_before_it_is_trained_has_no_backward_yet(model: Slow, clock: Clock, spans: Spans) -> None:
    loop = LoopSpans(model, spans)
    with torch.no_grad():
        model(X)
    clock.go(20)
    loop.ends()
    assert taken(spans) == {"forward": 10, "data_wait": 20}


def test_a_copy_of_the_model_is_a_copy_of_the_model(model: Slow) -> None:
    LoopSpans(model, Spans())
    assert torch.equal(copy.deepcopy(model)(X), model(X))
