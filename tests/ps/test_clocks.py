"""The offset between two hosts' clocks, on simulated ones."""

import random
from dataclasses import replace

import pytest

from deploy.measure.trace import trace
from ps.clocks import ClockOffset
from ps.ledger import aligned
from tests.deploy.ledgers import step_of

START_S = 1_700_000_000.0


@pytest.mark.parametrize("seed", range(10))
def test_the_offset_is_within_its_error_though_delays_are_uneven_and_clocks_drift(seed: int) -> None:
    """Our clock is up to 5 s off and drifts by up to 80 ppm; ways take 0.2 ms and often much longer, one of the two more than the other."""
    rng = random.Random(seed)
    ahead_s, drift = rng.uniform(-5, 5), rng.uniform(-8e-5, 8e-5)
    clocks = ClockOffset()
    errors = []
    for beat in range(600):
        left = START_S + beat
        came = left + 2e-4 + rng.expovariate(1 / 2e-3)
        answered = came + rng.expovariate(1 / 1e-3)
        back = answered + 2e-4 + rng.expovariate(1 / 4e-4)
        ours = [t + ahead_s + drift * (t - START_S) for t in (left, back)]
        clocks.add(ours[0], came, answered, ours[1])
        offset_s, error_s = clocks.at(ours[1] + 0.5)
        assert offset_s is not None and error_s is not None
        truth_s = -(ahead_s + drift * (back + 0.5 - START_S))
        assert abs(offset_s - truth_s) <= error_s
        errors.append(error_s)
    assert max(errors[60:]) < 2e-3, "the quickest of the last exchanges, not the newest"


def test_a_clock_that_is_set_is_noticed_at_once() -> None:
    clocks = ClockOffset()
    assert clocks.at(START_S) == (None, None)
    clocks.add(START_S, START_S + 0.001, START_S + 0.001, START_S + 0.002)
    assert clocks.at(START_S + 0.002) == (pytest.approx(0, abs=1e-6), pytest.approx(0.001, abs=1e-6))
    later = START_S + 10
    clocks.add(later, later + 60.004, later + 60.004, later + 0.008)
    assert clocks.at(later + 0.008) == (pytest.approx(60, abs=1e-6), pytest.approx(0.004, abs=1e-6))
    clocks.add(later + 9, later, later, later + 1)
    assert clocks.at(later + 0.008)[0] == pytest.approx(60, abs=1e-6), "what cannot have been is left out"


def test_rows_of_another_host_stand_where_the_drivers_clock_says() -> None:
    step = step_of(0)
    own, other = step.workers
    own = replace(own, clock_offset_s=2e-4, clock_error_s=5e-4)
    other = replace(other, time_s=other.time_s - 3.0, clock_offset_s=3.0, clock_error_s=1e-3)
    assert aligned(own) == own, "no clock is moved by less than is known of it"
    assert aligned(other).time_s == pytest.approx(step.workers[1].time_s)
    servers = [replace(row, clock_offset_s=0.0, clock_error_s=2e-3) for row in step.servers]
    assert trace([replace(step, workers=[own, other], servers=servers)])["otherData"]["clocks"] == "the driver's, to 2 ms"
    assert trace([step])["otherData"]["clocks"] == "some hosts' own"
