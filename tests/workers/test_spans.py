from collections.abc import Callable

import pytest

from workers.spans import Spans


class Hours:
    """Time that passes where the test lets it pass, and in waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []

    def go(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.go(seconds)


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def spans_of(hours: Hours) -> Callable[[float], Spans]:
    return lambda slowdown: Spans(slowdown=slowdown, wait=hours.wait, clock=lambda: hours.now_s)


def test_a_slow_host_computes_so_many_times_as_long_and_does_nothing_else_slower(hours: Hours, spans_of: Callable[[float], Spans]) -> None:
    spans = spans_of(3.0)
    with spans.span("backward"):
        hours.go(0.01)
        with spans.span("copy"):  # as a hook in the middle of backward
            hours.go(0.02)
        hours.go(0.01)
    total_s, seconds = spans.take()
    assert seconds == pytest.approx({"backward": 0.06, "copy": 0.02})
    assert total_s == pytest.approx(0.08)


def test_what_is_too_short_to_wait_for_is_owed_until_it_is_not(hours: Hours, spans_of: Callable[[float], Spans]) -> None:
    spans = spans_of(2.0)
    for _ in range(42):
        with spans.span("backward"):
            hours.go(1e-4)
    assert 1 <= len(hours.waits) < 20 and min(hours.waits) > 4.9e-4
    assert 42 * 1e-4 - 5.1e-4 < sum(hours.waits) < 42 * 1e-4 + 1e-9


def test_a_wait_that_was_too_long_is_made_good_by_the_next(hours: Hours) -> None:
    spans = Spans(slowdown=2.0, wait=lambda seconds: hours.wait(seconds + 0.001), clock=lambda: hours.now_s)
    for _ in range(10):
        with spans.span("forward"):
            hours.go(0.004)
    assert spans.take()[1]["forward"] == pytest.approx(0.08, abs=0.001 + 1e-9)


def test_an_own_loop_is_slow_in_all_that_has_no_name(hours: Hours, spans_of: Callable[[float], Spans]) -> None:
    spans = spans_of(2.0)
    hours.go(0.01)
    with spans.span("copy"):
        hours.go(0.005)
    spans.rest("backward")
    assert spans.take()[1] == pytest.approx({"backward": 0.02, "copy": 0.005})


def test_without_a_slowdown_nobody_waits(hours: Hours, spans_of: Callable[[float], Spans]) -> None:
    spans = spans_of(1.0)
    with spans.span("backward"):
        hours.go(0.002)
    spans.rest("backward")
    assert not hours.waits
