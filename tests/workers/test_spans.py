import time

import pytest

from workers.spans import UNNAMED, Spans


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_slow_host_computes_so_many_times_as_long_and_does_nothing_else_slower() -> None:
    spans = Spans(slowdown=3.0)
    with spans.span("backward"):
        busy(0.01)
        with spans.span("copy"):  # as a hook in the middle of backward
            busy(0.01)
        busy(0.01)
    total_s, seconds = spans.take()
    assert seconds["backward"] + 5e-4 >= 0.06 and 0.01 <= seconds["copy"] < 0.03
    assert total_s == pytest.approx(sum(seconds.values()), abs=1e-3)


def test_what_is_too_short_to_wait_for_is_owed_until_it_is_not() -> None:
    waits: list[float] = []
    spans = Spans(slowdown=2.0, wait=lambda seconds: (waits.append(seconds), busy(seconds))[0])
    for _ in range(40):
        with spans.span("backward"):
            busy(1e-4)
    assert 1 <= len(waits) < 20
    assert sum(waits) > 40 * 1e-4 - 6e-4


def test_an_own_loop_is_slow_in_all_that_has_no_name() -> None:
    spans = Spans(slowdown=2.0)
    busy(0.01)
    with spans.span("copy"):
        busy(0.005)
    spans.rest("backward")
    assert spans.take()[1]["backward"] >= 0.02 - 5e-4


def test_time_may_be_kept_out_of_the_span_around_it() -> None:
    spans = Spans()
    with spans.span("forward"), spans.span(UNNAMED):
        busy(0.01)
    total_s, seconds = spans.take()
    assert total_s >= 0.01 > 0.005 > seconds["forward"] and len(seconds) == 1


def test_without_a_slowdown_nobody_waits() -> None:
    waits: list[float] = []
    spans = Spans(wait=waits.append)
    with spans.span("backward"):
        busy(0.002)
    spans.rest("backward")
    assert not waits
