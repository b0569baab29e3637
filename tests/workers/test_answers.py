"""What a task's methods may return, and what is said of the rest."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ps.errors import ConfigError
from workers.answers import check_gradient, check_parameters, data_of, mean_and_weight, metrics_of, model_of
from workers.task import Task


@dataclass(frozen=True)
class Answering(Task):
    """Returns from every method what it is given."""

    answer: Any

    def model(self) -> Any:
        return self.answer

    def train_data(self) -> Any:
        return self.answer

    def validation_data(self) -> Any:
        return self.answer

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return self.answer

    def metrics(self, model: nn.Module, batch: Any) -> Any:
        return self.answer


SCALAR = torch.tensor(2.0)


def test_a_loss_weighs_as_many_samples_unless_it_says_otherwise() -> None:
    assert mean_and_weight(SCALAR, 7) == (SCALAR, 7.0)
    assert mean_and_weight((SCALAR, 3), 7) == (SCALAR, 3.0)
    assert mean_and_weight((SCALAR, torch.tensor(3)), 7) == (SCALAR, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.zeros(4), r"the task's loss\(\) returned a tensor of shape \[4\]: return the mean over the batch as a scalar tensor"),
        (0.25, r"the task's loss\(\) returned an object of type float: return the mean"),
        (None, r"the task's loss\(\) returned None: return the mean"),
        ((SCALAR, 1.0, 2.0), r"the task's loss\(\) returned an object of type tuple: return the mean"),
        ((SCALAR, -1.0), "weight -1.0 .* out of range"),
        ((SCALAR, float("nan")), "weight nan .* out of range"),
        ((SCALAR, "many"), "weight many .* out of range"),
    ],
)
def test_a_loss_that_is_no_mean_or_no_weight_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mean_and_weight(loss, 4)


def test_a_loss_that_does_not_depend_on_the_model_is_refused() -> None:
    check_gradient(nn.Linear(1, 1)(torch.ones(1)).sum())
    with pytest.raises(ConfigError, match=r"without gradient: compute it from what the model returns"):
        check_gradient(SCALAR)


@pytest.mark.parametrize("answer", [None, nn.Linear])
def test_a_model_that_is_none_is_refused(answer: Any) -> None:
    with pytest.raises(ConfigError, match=r"the task's model\(\) returned (None|an object of type type): return a torch.nn.Module"):
        model_of(Answering(answer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trainable_parameters_of_other_types_are_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConfigError, match=f"parameter 0.weight of the model is {name}: train in float32 or float64, without model.half"):
        model_of(Answering(nn.Sequential(nn.Linear(2, 2)).to(dtype)))


def test_frozen_parameters_may_have_other_types() -> None:
    check_parameters(nn.Sequential(nn.Linear(2, 2).half().requires_grad_(False), nn.Linear(2, 2)))


@pytest.mark.parametrize("phase", ["train", "validation"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"returned None, which has no length: return map-style data"),
        (iter([1]), r"list_iterator, which has no length"),
        (DataLoader([1, 2]), r"DataLoader, which has no sample by index"),
        (SimpleNamespace(), "SimpleNamespace"),
    ],
    ids=["None", "iterator", "loader", "object"],
)
def test_what_has_no_samples_by_index_is_no_data(phase: Any, answer: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"the task's {phase}_data\(\) .*{message}"):
        data_of(Answering(answer), phase)


def test_metrics_are_numbers_by_name() -> None:
    network = nn.Linear(1, 1)
    assert metrics_of(Answering({"right": 3, "wrong": torch.tensor(1)}), network, None) == {"right": 3.0, "wrong": 1.0}
    with pytest.raises(ConfigError, match=r"the task's metrics\(\) returns a metric called loss, .*: rename it"):
        metrics_of(Answering({"right": 3.0, "loss": 1.0}), network, None)
    with pytest.raises(ConfigError, match=r"the task's metrics\(\) returned None: return a dict of sums"):
        metrics_of(Answering(None), network, None)
    with pytest.raises(ConfigError, match=r"the task's metrics\(\) returned a tensor of shape \[3\] for right: return a number"):
        metrics_of(Answering({"right": torch.zeros(3)}), network, None)
