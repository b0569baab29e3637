"""Cores and links that are shared: hand-computed times."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.predict.events import Clock, Cores, Thread
from deploy.predict.links import Links, fair_rates


def times() -> tuple[Clock, dict[str, float], Callable[[str], Callable[[], None]]]:
    clock, found = Clock(), {}
    return clock, found, lambda name: lambda: found.__setitem__(name, clock.now_s)


def test_threads_share_cores_equally_and_use_one_each_at_most() -> None:
    clock, found, note = times()
    cores = Cores(clock, 2)
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        cores.work(seconds, 1, note(name))
    clock.run()
    # three threads on two cores: a and b are done after 1.5 s, c has one second left and a core of its own
    assert found == pytest.approx({"a": 1.5, "b": 1.5, "c": 2.5})
    assert cores.busy_s == pytest.approx(4.0)


def test_a_late_thread_slows_the_others_from_then_on() -> None:
    clock, found, note = times()
    cores = Cores(clock, 1)
    cores.work(2.0, 1, note("a"))
    clock.after(1.0, lambda: cores.work(0.25, 1, note("b")))
    clock.run()
    assert found == pytest.approx({"b": 1.5, "a": 2.25})


def test_replicas_count_against_the_cores_of_all_hosts() -> None:
    clock, found, note = times()
    Cores(clock, 1, num_hosts=4).work(1.0, 8, note("eight on four"))
    clock.run()
    assert found == pytest.approx({"eight on four": 2.0})


def test_a_thread_does_one_thing_after_the_other() -> None:
    clock, found, note = times()
    thread = Thread(Cores(clock, math.inf), 1)
    thread.do(1.0, note("a"))
    thread.do(2.0, note("b"))
    clock.run()
    assert found == pytest.approx({"a": 1.0, "b": 3.0})


def test_flows_share_a_link_and_take_what_others_leave() -> None:
    clock, found, note = times()
    links = Links(clock)
    server = links.direction(10.0)
    thin, thick = links.direction(2.0), links.direction(100.0)
    links.send(4.0, thin, server, note("thin"))
    links.send(24.0, thick, server, note("thick"))
    clock.run()
    # max-min: 2 for the thin one, 8 for the other until 2 s; then 10
    assert found == pytest.approx({"thin": 2.0, "thick": 2.8})


def test_both_directions_of_a_link_are_full() -> None:
    clock, found, note = times()
    links = Links(clock)
    (a_up, a_down), (b_up, b_down) = [(links.direction(5.0), links.direction(5.0)) for _ in range(2)]
    links.send(10.0, a_up, b_down, note("there"))
    links.send(10.0, b_up, a_down, note("back"))
    clock.run()
    assert found == pytest.approx({"there": 2.0, "back": 2.0})


@given(st.integers(1, 12), st.integers(2, 6), st.randoms(use_true_random=False))
def test_rates_are_max_min_fair(num_flows: int, num_links: int, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    capacity = rng.uniform(1, 10, num_links)
    ends = np.array([rng.choice(num_links, 2, replace=False) for _ in range(num_flows)])
    replicas, weights = rng.integers(1, 4, num_flows).astype(float), rng.uniform(0.5, 2, num_flows)
    rates = fair_rates(capacity, ends.T, replicas, weights)
    used = np.array([(rates * replicas)[(ends == link).any(axis=1)].sum() for link in range(num_links)])
    assert (used <= capacity * (1 + 1e-6)).all()
    for flow, (up, down) in enumerate(ends):  # every flow has a full link on which nobody has more for its weight
        assert any(
            used[link] >= capacity[link] * (1 - 1e-6)
            and (rates / weights)[(ends == link).any(axis=1)].max() <= rates[flow] / weights[flow] * (1 + 1e-6)
            for link in (up, down)
        )
