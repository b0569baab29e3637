"""Every schedule: torch's rates over a run, and torch's weights on two workers."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from ps.config import GroupConfig, OptimizerConfig, ScheduleConfig
from ps.schedules import learning_rate, schedule_factor
from tests.ps.recipe import STEPS, assert_same_after_moving, model, plain, served

LR = 0.1
Scheduler = Callable[[torch.optim.Optimizer, int], theirs.LRScheduler]
"""Torch's class for an optimizer and a number of units."""

SCHEDULES: dict[str, tuple[ScheduleConfig, Scheduler]] = {
    "constant": (ScheduleConfig(), lambda o, n: theirs.ConstantLR(o, factor=1.0)),
    "step": (ScheduleConfig(name="step", every=3), lambda o, n: theirs.StepLR(o, 3)),
    "step with gamma": (ScheduleConfig(name="step", every=1, gamma=0.9), lambda o, n: theirs.StepLR(o, 1, gamma=0.9)),
    "multi_step": (ScheduleConfig(name="multi_step", milestones=(2, 3, 9)), lambda o, n: theirs.MultiStepLR(o, [2, 3, 9])),
    "exponential": (ScheduleConfig(name="exponential", gamma=0.9), lambda o, n: theirs.ExponentialLR(o, 0.9)),
    "linear": (
        ScheduleConfig(name="linear", min_factor=0.1),
        lambda o, n: theirs.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=n),
    ),
    "linear to nothing": (
        ScheduleConfig(name="linear"),
        lambda o, n: theirs.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=n),
    ),
    "cosine": (ScheduleConfig(name="cosine", min_factor=0.1), lambda o, n: theirs.CosineAnnealingLR(o, n, eta_min=0.1 * LR)),
    "restarts": (ScheduleConfig(name="cosine", t_0=4), lambda o, n: theirs.CosineAnnealingWarmRestarts(o, 4)),
    "restarts further and further apart": (
        ScheduleConfig(name="cosine", t_0=2, t_mult=3, min_factor=0.2),
        lambda o, n: theirs.CosineAnnealingWarmRestarts(o, 2, T_mult=3, eta_min=0.2 * LR),
    ),
    "one_cycle": (ScheduleConfig(name="one_cycle"), lambda o, n: theirs.OneCycleLR(o, LR, total_steps=n, cycle_momentum=False)),
    "one_cycle with its keys": (
        ScheduleConfig(name="one_cycle", pct_start=0.45, div_factor=10, final_div_factor=100, anneal="linear"),
        lambda o, n: theirs.OneCycleLR(
            o, LR, total_steps=n, cycle_momentum=False, pct_start=0.45, div_factor=10, final_div_factor=100, anneal_strategy="linear"
        ),
    ),
}


def sgd(network: torch.nn.Module | None = None) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters() if network else [torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=LR)


def torch_rates(optimizer: torch.optim.Optimizer, scheduler: theirs.LRScheduler, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def rates(schedule: ScheduleConfig, total_steps: int, steps_per_epoch: int = 1) -> list[float]:
    return [learning_rate(OptimizerConfig(lr=LR), schedule, version, total_steps, steps_per_epoch) for version in range(total_steps)]


@pytest.mark.parametrize("num_units", [7, 20, 301])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_of_a_run_are_torchs(name: str, num_units: int) -> None:
    schedule, scheduler = SCHEDULES[name]
    optimizer = sgd()
    assert rates(schedule, num_units) == pytest.approx(torch_rates(optimizer, scheduler(optimizer, num_units), num_units), abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_with_unit_epoch_the_rate_stays_within_an_epoch(name: str) -> None:
    schedule, scheduler = SCHEDULES[name]
    optimizer = sgd()
    by_epoch = torch_rates(optimizer, scheduler(optimizer, 11), 11)
    expected = [rate for rate in by_epoch for _ in range(3)][:31]  # the last epoch is cut short
    assert rates(ScheduleConfig(**vars(schedule) | {"unit": "epoch"}), 31, 3) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if "one_cycle" not in name])
def test_behind_a_warm_up_the_schedule_starts_as_in_sequential_lr(name: str) -> None:
    schedule, scheduler = SCHEDULES[name]
    optimizer = sgd()
    warm_up = theirs.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
    both = theirs.SequentialLR(optimizer, [warm_up, scheduler(optimizer, 25)], milestones=[5])
    assert rates(ScheduleConfig(**vars(schedule) | {"warmup_steps": 5}), 30) == pytest.approx(torch_rates(optimizer, both, 30), abs=1e-12)


def test_a_warm_up_in_epochs_rises_at_every_step() -> None:
    schedule = ScheduleConfig(name="step", every=1, gamma=0.5, unit="epoch", warmup_epochs=2)
    assert rates(schedule, 8, 2) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_a_warm_up_rises_to_where_a_cycle_starts() -> None:
    factors = [schedule_factor(ScheduleConfig(name="one_cycle", warmup_steps=4), version, 34) for version in range(6)]
    assert factors[:5] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04]) and factors[5] > factors[4]


@pytest.mark.parametrize("total_steps", [1, 2, 3])
@pytest.mark.parametrize("pct_start", [0.0, 0.5, 1.0])
def test_a_cycle_of_a_few_steps_has_rates(pct_start: float, total_steps: int) -> None:
    schedule = ScheduleConfig(name="one_cycle", pct_start=pct_start)
    assert all(0 < schedule_factor(schedule, version, total_steps) <= 1 for version in range(total_steps + 2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_beyond_the_run_there_is_still_a_rate(name: str) -> None:
    schedule, _ = SCHEDULES[name]
    assert all(0 <= schedule_factor(schedule, version, 10) <= 1 for version in (10, 11, 500))
    warm = ScheduleConfig(**vars(schedule) | {"warmup_steps": 20})
    assert all(0 <= schedule_factor(warm, version, 10) <= 1 for version in (0, 9, 19, 20, 21))


def test_groups_and_decisions_have_their_part_in_the_rate() -> None:
    groups = (GroupConfig(pattern="a", lr=0.4), GroupConfig(pattern="b", lr_factor=0.5), GroupConfig(pattern="c", weight_decay=0.0))
    optimizer, warm = OptimizerConfig(lr=LR, groups=groups), ScheduleConfig(warmup_steps=2)
    found = [learning_rate(optimizer, warm, 0, 9, group=group, rate_factor=0.25) for group in range(4)]
    assert found == pytest.approx([LR / 8, 0.4 / 8, LR / 16, LR / 8])


@pytest.mark.parametrize("name", ["multi_step", "restarts further and further apart", "one_cycle with its keys"])
def test_two_workers_with_a_schedule_equal_torch_in_one_process(name: str) -> None:
    schedule, scheduler = SCHEDULES[name]
    network = model()
    optimizer = sgd(network)
    expected = plain(optimizer, network, scheduler=scheduler(optimizer, STEPS))
    assert_same_after_moving(served(OptimizerConfig(lr=LR), 2, schedule=schedule), expected)


@pytest.mark.parametrize("name", ["step", "one_cycle"])
def test_two_workers_with_a_schedule_by_epochs_equal_torch_in_one_process(name: str) -> None:
    schedule, scheduler = SCHEDULES[name]
    network = model()
    optimizer = sgd(network)
    expected = plain(optimizer, network, scheduler=scheduler(optimizer, 4), steps_per_epoch=5)
    by_epoch = ScheduleConfig(**vars(schedule) | {"unit": "epoch"})
    assert_same_after_moving(served(OptimizerConfig(lr=LR), 2, schedule=by_epoch, steps_per_epoch=5), expected)
