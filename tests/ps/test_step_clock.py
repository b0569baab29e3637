import pytest

from protos import pserver_pb2 as pb
from ps.step_clock import StepClock


def test_traffic_is_told_how_long_before_the_end_of_the_step_its_ends_lie() -> None:
    """Shard 0's clock is 100 s ahead of ours, its receipts take no time; nothing goes to shard 1."""
    now = 10.0
    clock = StepClock(0, 2, clock=lambda: now)
    clock.sent(0, 7, 1000)
    now = 10.5
    clock.sent(0, 8, 1000)
    now = 11.0
    clock.received(0, 7, 111.0)
    now = 12.0
    clock.received(0, 8, 112.0)
    now = 13.0
    clock.landed(0, pb.FrameHeader(clock_s=112.5, complete_s=112.0), 2000)
    timing = clock.finish()
    timing.end(now=15.0)
    used, unused = timing.shards
    assert (used.push_from_s, used.push_to_s, used.pull_from_s, used.pull_to_s) == pytest.approx((5.0, 3.0, 2.5, 2.0))
    assert used.push_in_flight_bytes == pytest.approx(1000 * (1.0 + 1.5) / 2.0), "two frames, 1 s and 1.5 s on their way in 2 s"
    assert used.pull_in_flight_bytes == pytest.approx(2000)
    assert unused.push_in_flight_bytes == unused.pull_in_flight_bytes == 0
    assert (unused.push_from_s, unused.push_to_s, unused.pull_from_s, unused.pull_to_s) == (None,) * 4


def test_receipts_that_waited_for_their_answer_do_not_shift_the_servers_clock() -> None:
    """The frame had been received at once, its receipt comes 2 s later with the answer, which was on its way for no time."""
    now = 10.0
    clock = StepClock(0, 1, clock=lambda: now)
    clock.sent(0, 1, 1000)
    now = 12.0
    clock.received(0, 1, 110.0)
    clock.landed(0, pb.FrameHeader(clock_s=112.0, complete_s=111.0), 1000)
    (traffic,) = clock.finish().shards
    assert (traffic.push_s, traffic.pull_s, traffic.wait_s) == pytest.approx((0.0, 0.0, 1.0))
