import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from ps.decisions import Decider, EarlyStoppingConfig, PlateauConfig
from ps.errors import ConfigError
from ps.plan import Plan

LOSSES = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60)


def decider(early: EarlyStoppingConfig | None = None, plateau: PlateauConfig | None = None) -> Decider:
    return Decider(early or EarlyStoppingConfig(), plateau or PlateauConfig())


@given(LOSSES, st.integers(0, 4), st.integers(0, 3), st.sampled_from(["min", "max"]))
def test_plateau_lowers_the_rate_as_torch_does(losses: list[float], patience: int, cooldown: int, mode: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=patience, cooldown=cooldown, eps=0.0)
    ours = decider(plateau=PlateauConfig(mode=mode, factor=0.5, patience=patience, cooldown=cooldown))  # type: ignore[arg-type]
    for version, loss in enumerate(losses, 1):
        reference.step(loss)
        factor = ours.decide(version, {"validation_loss": loss}, validated=True).rate_factor
        assert factor == optimizer.param_groups[0]["lr"]


def test_the_factor_never_falls_below_its_bound() -> None:
    ours = decider(plateau=PlateauConfig(patience=0, factor=0.1, min_factor=0.05))
    factors = [ours.decide(v, {"validation_loss": 1.0}, validated=True).rate_factor for v in range(1, 5)]
    assert factors == [1.0, 0.1, 0.05, 0.05]


@given(LOSSES, st.integers(1, 5), st.floats(0.0, 1.0))
def test_the_run_stops_after_patience_validations_without_improvement(losses: list[float], patience: int, min_delta: float) -> None:
    ours = decider(EarlyStoppingConfig(patience=patience, min_delta=min_delta))
    best, stale = math.inf, 0
    for version, loss in enumerate(losses, 1):
        decision = ours.decide(version, {"validation_loss": loss}, validated=True)
        improved = best - loss > min_delta
        best, stale = (loss, 0) if improved else (best, stale + 1)
        assert decision.is_best == improved
        assert decision.stop == (stale >= patience)


def test_a_repeated_question_gets_the_recorded_answer() -> None:
    ours = decider(EarlyStoppingConfig(patience=1))
    first = ours.decide(3, {"validation_loss": 1.0}, validated=True)
    assert ours.decide(3, {"validation_loss": 99.0}, validated=True) is first
    assert not ours.log[1:]


def test_epochs_without_validation_change_nothing() -> None:
    ours = decider(EarlyStoppingConfig(patience=1), PlateauConfig(patience=0))
    ours.decide(1, {"train_loss": 1.0, "validation_loss": 1.0}, validated=True)
    for version in itertools.count(2):
        decision = ours.decide(version, {"train_loss": 9.0}, validated=False)
        assert not decision.stop
        assert decision.rate_factor == 1.0
        if version == 10:
            break


def test_without_validation_data_the_training_loss_is_watched() -> None:
    assert decider().decide(1, {"train_loss": 1.0}, validated=True).is_best


def test_a_larger_metric_may_be_the_better_one() -> None:
    ours = decider(EarlyStoppingConfig(metric="validation_accuracy", mode="max"))
    best = [ours.decide(v, {"validation_accuracy": a}, validated=True).is_best for v, a in enumerate([0.5, 0.4, 0.6], 1)]
    assert best == [True, False, True]


def test_nan_is_never_the_best() -> None:
    assert not decider().decide(1, {"validation_loss": math.nan}, validated=True).is_best


def test_an_unknown_metric_is_named_beside_those_there_are() -> None:
    ours = decider(EarlyStoppingConfig(metric="accuracy"))
    with pytest.raises(ConfigError, match=r"early_stopping.metric = 'accuracy' is none of this run's metrics: did you mean 'validation_accuracy'"):
        ours.decide(1, {"validation_accuracy": 1.0}, validated=True)


@pytest.mark.parametrize(
    ("plan", "validates", "decides"),
    [
        (Plan(10, 25, 10), [10, 20, 25], [10, 20, 25]),
        (Plan(10, 25, 20), [20, 25], [10, 20, 25]),  # every second epoch
        (Plan(10, 25, 4), [4, 8, 12, 16, 20, 24, 25], [4, 8, 10, 12, 16, 20, 24, 25]),  # by steps
        (Plan(10, 25), [25], [10, 20, 25]),
    ],
)
def test_phases_end_where_the_plan_says(plan: Plan, validates: list[int], decides: list[int]) -> None:
    assert [v for v in range(26) if plan.validates(v)] == validates
    assert [v for v in range(26) if plan.decides(v)] == decides
