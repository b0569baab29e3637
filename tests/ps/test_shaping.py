import threading

from hypothesis import given
from hypothesis import strategies as st

from ps.transport.shaping import Link, TokenBucket


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_bytes_pass_at_the_rate(sizes: list[int]) -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=500, clock=clock, wait=clock.wait)
    for size in sizes:
        bucket.take(size)
    assert abs(clock.now - 100.0 - sum(sizes) / 1000.0) < 1e-9


def test_a_pause_saves_at_most_one_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=500, clock=clock, wait=clock.wait)
    clock.now += 3600.0
    bucket.take(500)
    assert clock.waits == []
    bucket.take(1000)
    assert clock.waits == [1.0]


def test_takers_queue_up() -> None:
    waits: list[float] = []
    bucket = TokenBucket(1000.0, burst_bytes=1, clock=lambda: 0.0, wait=waits.append)
    threads = [threading.Thread(target=bucket.take, args=(1000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(round(wait, 2) for wait in waits) == [1.0, 2.0, 3.0, 4.0]


def test_a_link_without_a_rate_lets_everything_pass() -> None:
    waits: list[float] = []
    link = Link(None, wait=waits.append)
    link.send(1 << 60)
    link.receive(1 << 60)
    assert waits == []


def test_a_links_directions_do_not_share_bytes() -> None:
    waits: list[float] = []
    link = Link(1000.0, clock=lambda: 0.0, wait=waits.append)
    link.send(1000)
    link.receive(2000)
    link.send(1000)
    assert waits == [1.0, 2.0, 2.0]
