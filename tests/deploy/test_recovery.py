"""Which process is started again, which silence is an end: decisions without processes or clocks."""

import pytest

from deploy.launch.base import ProcessKey
from deploy.recovery import DEATHS_AT_ONE_STEP, Pulse, Recovery

W0, W1, S0 = ProcessKey("worker", 0), ProcessKey("worker", 1), ProcessKey("server", 0)


def test_a_death_within_the_limit_is_made_good_and_the_next_one_ends_the_run() -> None:
    recovery = Recovery(2)
    assert recovery.died(W0, "was killed", 3, 0.0) is None
    assert recovery.died(S0, "was killed", 5, 1.0) is None
    assert recovery.died(W1, "was killed", 7, 2.0) == "failure.max_failures = 2 is used up"


def test_without_recovery_the_first_death_ends_the_run_and_needs_no_reason() -> None:
    assert Recovery(0).died(W0, "was killed", 3, 0.0) == ""


def test_without_a_limit_only_a_process_that_dies_at_one_step_again_and_again_ends_the_run() -> None:
    recovery = Recovery(None)
    for step in range(100):
        assert recovery.died(W0, "was killed", step, 0.0) is None
    for _ in range(DEATHS_AT_ONE_STEP - 1):
        assert recovery.died(W1, "was killed", 100, 0.0) is None
        assert recovery.died(S0, "was killed", 100, 0.0) is None
    assert recovery.died(W1, "was killed", 100, 0.0) == f"it has died {DEATHS_AT_ONE_STEP} times at step 100"


def test_a_process_is_back_when_it_has_reached_the_step_at_which_it_died() -> None:
    recovery = Recovery(None)
    recovery.died(W0, "was killed", 7, 10.0)
    recovery.died(W0, "was killed", 7, 12.0)
    assert recovery.told(W0, 0, 13.0) is None
    assert recovery.told(W1, 7, 13.0) is None
    assert recovery.told(W0, 7, 15.0) is recovery.deaths[1]
    assert [death.back_after_s for death in recovery.deaths] == [5.0, 3.0]
    assert recovery.told(W0, 8, 16.0) is None


class Silent:
    """Processes that give no sign of life for `seconds`, watched once a second."""

    def __init__(self, frozen_after_s: float = 30.0) -> None:
        self.pulse = Pulse(frozen_after_s)
        self.beats = {W0: 1, W1: 1}
        self.cpu_s: dict[ProcessKey, float] = {}
        self.now_s = 0.0
        self.named: list[tuple[float, ProcessKey]] = []
        self.frozen: list[tuple[float, ProcessKey]] = []

    def pass_s(self, seconds: int, *, beating: tuple[ProcessKey, ...] = (W1,), working: tuple[ProcessKey, ...] = ()) -> None:
        for _ in range(seconds):
            for key in beating:
                self.beats[key] += 1
            for key in working:
                self.cpu_s[key] = self.cpu_s.get(key, 0.0) + 0.5
            self._tick(self.now_s + 1.0)

    def _tick(self, now_s: float) -> None:
        self.now_s = now_s
        named, frozen = self.pulse.tick(now_s, self.beats, self.cpu_s.get)
        self.named += [(now_s, key) for key in named]
        self.frozen += [(now_s, key) for key in frozen]

    def stop_the_driver(self, seconds: float) -> None:
        self._tick(self.now_s + seconds)


def test_a_silent_process_is_named_once_and_then_killed() -> None:
    made = Silent()
    made.pass_s(32)
    assert made.named == [(11.0, W0)]
    assert made.frozen[0] == (31.0, W0)
    assert W1 not in dict(map(reversed, made.frozen))  # type: ignore[arg-type]


def test_one_sign_of_life_begins_the_time_anew() -> None:
    made = Silent()
    made.pass_s(29)
    made.pass_s(1, beating=(W0, W1))
    made.pass_s(29)
    assert not made.frozen


def test_a_silent_process_that_computes_is_named_but_never_killed() -> None:
    made = Silent()
    made.cpu_s[W0] = 7.0
    made.pass_s(300, working=(W0,))
    assert made.named == [(11.0, W0)]
    assert not made.frozen
    made.pass_s(41)
    assert made.frozen, "it does not compute any more"


@pytest.mark.parametrize("gap_s", [40.0, 4000.0])
def test_a_driver_that_was_stopped_itself_blames_nobody(gap_s: float) -> None:
    made = Silent()
    made.pass_s(3)
    made.stop_the_driver(gap_s)
    assert not made.named
    assert not made.frozen


def test_a_successor_begins_with_a_time_of_its_own() -> None:
    made = Silent()
    made.pass_s(25)
    del made.beats[W0]
    made.pass_s(1)
    made.beats[W0] = 0
    made.pass_s(25)
    assert not made.frozen
