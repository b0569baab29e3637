"""Schedules for any number of stages and micro-batches: complete, in order, never stuck, with the bubble that the closed form has."""

from collections import deque
from itertools import product

import pytest

from deploy.predict.floors import bubble
from workers.stages.schedule import Op, Schedule, most_held, passes

SIZES = list(product(range(1, 9), range(13)))
SCHEDULES: list[Schedule] = ["1f1b", "gpipe"]


def finish(num_stages: int, num_micro: int, capacity: int, schedule: Schedule = "1f1b") -> bool:
    """Whether stages that block on full and on empty channels come to the end. The network is deterministic (Kahn): one order shows all."""
    down, up = [[deque[int]() for _ in range(num_stages + 1)] for _ in range(2)]
    left = [deque(passes(schedule, s, num_stages, num_micro)) for s in range(num_stages)]
    sends: list[Op | None] = [None] * num_stages
    moved = True
    while moved:
        moved = False
        for stage in range(num_stages):
            if op := sends[stage]:
                target = (down[stage + 1], stage + 1 < num_stages) if op.kind == "forward" else (up[stage], stage > 0)
                if target[1] and len(target[0]) >= capacity:
                    continue
                if target[1]:
                    target[0].append(op.micro)
                sends[stage], moved = None, True
            elif left[stage]:
                op = left[stage][0]
                source = (down[stage], stage > 0) if op.kind == "forward" else (up[stage + 1], stage + 1 < num_stages)
                if source[1] and not source[0]:
                    continue
                if source[1]:
                    assert source[0].popleft() == op.micro, "what arrives is what the schedule wants"
                left[stage].popleft()
                sends[stage], moved = op, True
    return not any(left) and not any(sends)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("capacity", [1, 2])
def test_no_schedule_gets_stuck_on_bounded_channels(capacity: int, schedule: Schedule) -> None:
    assert all(finish(p, m, capacity, schedule) for p, m in SIZES)


def test_without_any_room_it_would_get_stuck() -> None:
    assert not finish(2, 1, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pass_comes_once_backward_in_order_and_no_more_are_held_than_said(schedule: Schedule) -> None:
    for num_stages, num_micro in SIZES:
        for stage in range(num_stages):
            ops = passes(schedule, stage, num_stages, num_micro)
            for kind in ("forward", "backward"):
                assert [op.micro for op in ops if op.kind == kind] == list(range(num_micro))
            held = peak = 0
            for op in ops:
                held += 1 if op.kind == "forward" else -1
                peak = max(peak, held)
                assert held >= 0
            assert peak == most_held(schedule, stage, num_stages, num_micro)


def test_gpipe_goes_forward_over_all_before_it_goes_backward() -> None:
    for num_stages, num_micro in SIZES:
        for stage in range(num_stages):
            kinds = [op.kind for op in passes("gpipe", stage, num_stages, num_micro)]
            assert kinds == ["forward"] * num_micro + ["backward"] * num_micro


def makespan(schedule: Schedule, num_stages: int, num_micro: int, forward_s: float, backward_s: float) -> float:
    """Seconds of a step whose stages take as long as each other."""
    ends: dict[tuple[str, int, int], float] = {}
    left = [deque(passes(schedule, s, num_stages, num_micro)) for s in range(num_stages)]
    now = [0.0] * num_stages
    while any(left):
        for stage, ops in enumerate(left):
            while ops:
                op = ops[0]
                at = stage - 1 if op.kind == "forward" else stage + 1
                ready = ends.get((op.kind, at, op.micro)) if 0 <= at < num_stages else 0.0
                if ready is None:
                    break
                now[stage] = max(now[stage], ready) + (forward_s if op.kind == "forward" else backward_s)
                ends[op.kind, stage, op.micro] = now[stage]
                ops.popleft()
    return max(now)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bubble_is_that_of_the_closed_form(schedule: Schedule) -> None:
    for num_stages, num_micro in SIZES:
        if num_micro:
            took = makespan(schedule, num_stages, num_micro, 1.0, 2.0)
            assert (took - num_micro * 3.0) / took == pytest.approx(bubble(num_stages, num_micro))
