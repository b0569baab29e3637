import math
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ps.errors import NonFinite
from ps.layout import Layout
from ps.weights import SUMS
from tests.workers.alone import gradient_step
from workers.binding import BoundModel, specs_of
from workers.data import TensorData
from workers.sampler import BatchPlan
from workers.spans import Spans
from workers.step import Contribution, GradientStep
from workers.task import Task


@dataclass(frozen=True)
class Line(Task):
    """Fits a line with dropout; `bad` is the sample whose value is NaN."""

    bad: int = -1
    weighted: bool = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def train_data(self) -> TensorData:
        x = torch.arange(20.0).view(10, 2) / 20
        y = x.sum(1, keepdim=True)
        if self.bad >= 0:
            y[self.bad] = math.nan
        return TensorData(x, y)

    def validation_data(self) -> TensorData:
        return self.train_data()

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y = batch
        mean = functional.mse_loss(model(x), y)
        return (mean, float((x[:, 0] > 0.5).sum())) if self.weighted else mean


def made(task: Task, *, rank: int = 0, num_workers: int = 1, accumulate: int = 1, nonfinite: str = "error", batch: int = 8) -> GradientStep:
    model = task.model()
    bound = BoundModel(model, Layout(specs_of(model), 1))
    bound.install(0)
    plan = BatchPlan(10, num_workers, batch, accumulate, seed=5)
    return gradient_step(task, task.train_data(), plan, bound, torch.float32, rank=rank, nonfinite=nonfinite)


def computed(gradient: GradientStep, step: int) -> tuple[Contribution, bytes]:
    contribution = gradient.compute(step, Spans())
    return contribution, gradient._bound.gradients.tobytes()


def test_a_contribution_is_a_function_of_parameters_seed_step_and_rank() -> None:
    first = made(Line())
    wanted = computed(first, 3)
    torch.rand(7)
    assert computed(first, 3) == wanted, "neither of what was computed before"
    second = made(Line())
    computed(second, 2)
    assert computed(second, 3) == wanted, "nor of the process"
    assert computed(second, 4) != wanted
    assert computed(made(Line(), rank=1, num_workers=2), 3) != wanted


@pytest.mark.parametrize(("num_workers", "accumulate"), [(1, 1), (1, 3), (16, 1)], ids=["one", "micro-batches", "no samples"])
def test_no_time_between_a_steps_parts_is_without_a_name(num_workers: int, accumulate: int) -> None:
    ticks = count()
    spans = Spans(clock=lambda: float(next(ticks)))
    made(Line(), rank=num_workers - 1, num_workers=num_workers, accumulate=accumulate).compute(0, spans)
    total, named = spans.take()
    assert total - sum(named.values()) == 2, "before the first part and after the last"


def test_a_rank_without_samples_contributes_nothing() -> None:
    gradient = made(Line(), rank=2, num_workers=3)
    contribution, _ = computed(gradient, 1)  # two samples are left for three ranks
    assert (contribution.weight, contribution.samples) == (0.0, 0) and math.isnan(contribution.loss)
    assert not any(gradient._bound.is_present(i) for i in range(len(gradient._bound.layout.specs)))


def test_sums_and_weight_are_those_of_the_samples() -> None:
    gradient = made(Line())
    contribution, _ = computed(gradient, 0)
    assert (contribution.weight, contribution.samples) == (8.0, 8)
    sums = gradient._bound._views[2][[s.name for s in gradient._bound.layout.specs].index(SUMS)].tolist()
    assert sums == pytest.approx([contribution.loss * 8, 8.0, 8.0, 1.0])


def test_only_rank_0_counts_steps() -> None:
    gradient = made(Line(), rank=1, num_workers=2)
    computed(gradient, 0)
    assert gradient._bound._views[2][-1].tolist()[3] == 0.0


@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_add_up_to_their_weighted_mean(weighted: bool) -> None:
    task = Line(weighted=weighted)
    whole, parts = made(task), made(task, accumulate=3)
    for gradient in (whole, parts):
        gradient._bound.model[1].p = 0.0
    one, three = computed(whole, 0)[0], computed(parts, 0)[0]
    assert (three.weight, three.samples) == (one.weight, one.samples)
    if not weighted:
        np.testing.assert_allclose(three.loss, one.loss, rtol=1e-6)
        for one_gradient, three_gradient in zip(whole._bound._views[2][:-1], parts._bound._views[2][:-1], strict=True):
            np.testing.assert_allclose(three_gradient, one_gradient, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where() -> None:
    gradient = made(Line(bad=3), batch=10)
    with pytest.raises(NonFinite, match='loss is nan at step 0 on rank 0: lower optimizer.lr.* optimizer.nonfinite = "skip"'):
        computed(gradient, 0)


def test_a_loss_that_is_not_finite_is_pushed_where_servers_skip_the_step() -> None:
    losses = [computed(made(Line(bad=3), nonfinite="skip"), step)[0].loss for step in range(2)]
    assert sorted(map(math.isnan, losses)) == [False, True]


def test_a_batch_of_no_weight_is_as_if_it_were_not_there() -> None:
    @dataclass(frozen=True)
    class Nothing(Line):
        def loss(self, model: nn.Module, batch: Any) -> Any:
            return torch.tensor(math.nan), 0.0

    gradient = made(Nothing())
    contribution, _ = computed(gradient, 0)
    assert (contribution.weight, contribution.samples) == (0.0, 8)
    assert not any(gradient._bound.is_present(i) for i in range(len(gradient._bound.layout.specs)))
