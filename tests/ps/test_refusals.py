"""Strangers that come again and again wait; a few do not."""

import pytest

from ps.refusals import AT_ONCE, MOST_S, PER_S, Refusals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def wait_of_one(refusals: Refusals) -> float:
    with refusals.wait_s() as seconds:
        return seconds


def test_a_few_are_refused_at_once_and_more_in_turn() -> None:
    clock = Clock()
    refusals = Refusals(1000, clock)
    assert [wait_of_one(refusals) for _ in range(AT_ONCE)] == pytest.approx([0.0] * AT_ONCE, abs=1e-9)
    assert [wait_of_one(refusals) for _ in range(3)] == pytest.approx([1 / PER_S, 2 / PER_S, 3 / PER_S])
    assert max(wait_of_one(refusals) for _ in range(10_000)) == pytest.approx(MOST_S)
    clock.now += MOST_S + AT_ONCE / PER_S
    assert wait_of_one(refusals) == 0.0, "a flood that is over holds up nobody"


def test_no_more_than_may_wait_do() -> None:
    refusals = Refusals(1, Clock())
    for _ in range(AT_ONCE + 1):
        wait_of_one(refusals)
    with refusals.wait_s() as first:
        assert first > 0.0
        assert wait_of_one(refusals) == 0.0
    assert wait_of_one(refusals) > 0.0
