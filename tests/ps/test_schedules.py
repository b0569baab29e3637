import pytest
import torch

from ps.config import OptimizerConfig, ScheduleConfig
from ps.schedules import learning_rate

SGD = OptimizerConfig(lr=0.5)


def rates(schedule: ScheduleConfig, total_steps: int) -> list[float]:
    return [learning_rate(SGD, schedule, version, total_steps) for version in range(total_steps)]


def test_the_default_rates_are_those_of_the_optimizers() -> None:
    found = [learning_rate(OptimizerConfig(name=name), ScheduleConfig(), 0, 1) for name in ("sgd", "adam")]
    assert found == [0.01, 0.001]


def test_a_constant_rate_stays() -> None:
    assert rates(ScheduleConfig(), 4) == [0.5] * 4


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    assert rates(ScheduleConfig(warmup_steps=4), 6) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_cosine_is_torchs(min_factor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.5 * min_factor)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(ScheduleConfig(name="cosine", min_factor=min_factor), 20) == pytest.approx(expected, abs=1e-12)


def test_cosine_follows_warm_up_and_ends_at_its_smallest_rate() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=10, min_factor=0.2)
    assert learning_rate(SGD, schedule, 9, 100) == learning_rate(SGD, schedule, 10, 100) == 0.5
    assert learning_rate(SGD, schedule, 55, 100) == pytest.approx(0.5 * 0.6)
    assert learning_rate(SGD, schedule, 100, 100) == learning_rate(SGD, schedule, 1000, 100) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_never_divides_by_zero() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=10)
    assert learning_rate(SGD, schedule, 9, 10) == 0.5
    assert learning_rate(SGD, schedule, 10, 10) == 0.5
