import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from workers.answers import mean_and_weight
from workers.data import TensorData, cast, fetch
from workers.sampler import BatchPlan, sample_rng
from workers.task import Task, load_task
from workers.tasks import SHIPPED
from workers.tasks.digits import Digits, rows
from workers.tasks.synthetic_mlp import SyntheticMLP

OWN = f"{Path(__file__).parents[2]}/examples/own_task.py:Rings"
SMALL = {"inputs": 16, "width": 16, "depth": 2, "classes": 3, "samples": 256}
RNG = np.random.default_rng(0)


def train(task: Task, steps: int, lr: float, batch: int = 64) -> tuple[nn.Module, Iterator[float]]:
    """The trained model and the losses on the way."""
    torch.manual_seed(0)
    model, data = task.model(), task.train_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    plan = BatchPlan(len(data), num_workers=1, global_batch=batch, accumulate=1, seed=0)
    losses = []
    for step in range(steps):
        samples = fetch(task, data, plan.global_indices(step), sample_rng(0, step, 0), training=True)
        loss, _ = mean_and_weight(task.loss(model, samples), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return model, iter(losses)


@pytest.mark.parametrize(("name", "fields"), [("digits", {}), ("synthetic-mlp", SMALL), (OWN, {})])
def test_a_task_trains_in_plain_torch(name: str, fields: dict[str, Any]) -> None:
    _, losses = train(load_task(name, fields), steps=150, lr=1e-2)
    first, *_, last = losses
    assert last < first / 2


@pytest.mark.parametrize("name", [*sorted(SHIPPED.keys() - {"fashion-mnist"}), OWN])
def test_data_and_seeded_models_are_the_same_every_time(name: str) -> None:
    task = load_task(name, SMALL if name == "synthetic-mlp" else {})
    for make in (task.train_data, task.validation_data):
        indices = np.arange(len(make()))
        first, second = (fetch(task, make(), indices, RNG, training=False) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(task.model().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_digits_are_scikit_learns_which_is_not_imported_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sklearn", None)
        without.setitem(sys.modules, "sklearn.datasets", None)
        read = rows()
    pixels, digits = load_digits(return_X_y=True)
    assert np.array_equal(read, np.column_stack([pixels, digits]))


def test_digits_reach_97_percent() -> None:
    task = Digits()
    validation = task.validation_data()
    assert (len(task.train_data()), len(validation)) == (1437, 360)
    assert (validation.tensors[0].min().item(), validation.tensors[0].max().item()) == (0, 1)
    model, _ = train(task, steps=20 * 23, lr=3e-3)
    with torch.no_grad():
        assert task.metrics(model, validation.tensors)["accuracy"] / len(validation) >= 0.97


def test_the_synthetic_model_has_the_size_its_fields_say() -> None:
    task = SyntheticMLP(inputs=5, width=7, depth=2, classes=3, samples=80)
    assert [list(p.shape) for p in task.model().parameters() if p.dim() == 2] == [[7, 5], [7, 7], [3, 7]]
    assert (len(task.train_data()), len(task.validation_data())) == (80, 10)
    assert not torch.equal(task.train_data().tensors[0][:10], task.validation_data().tensors[0])
    same, other = (SyntheticMLP(**SMALL, seed=seed).train_data().tensors[0] for seed in (0, 1))
    assert not torch.equal(same, other)


@pytest.mark.parametrize("fields", [{"width": 0}, {"classes": 1}, {"samples": 7}, {"seed": -1}])
def test_synthetic_fields_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"task\.\w+ = -?\d is out of range: >= \d"):
        SyntheticMLP(**fields)


@dataclass(frozen=True)
class Noisy(SyntheticMLP):
    def augment(self, samples: list[Any], rng: np.random.Generator) -> list[Any]:
        return [(x + rng.standard_normal(), y) for x, y in samples]


@dataclass(frozen=True)
class Collating(SyntheticMLP):
    def collate(self, samples: list[Any], rng: np.random.Generator) -> Any:
        return "collated", len(samples)


def test_rows_of_tensors_are_what_stacking_the_samples_gives() -> None:
    task = SyntheticMLP(**SMALL)
    data, indices = task.train_data(), np.array([3, 1, 1])
    fast = fetch(task, data, indices, RNG, training=True)
    slow = task.collate([data[i] for i in indices], RNG)
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


def test_only_training_augments_and_from_the_generator_alone() -> None:
    task = Noisy(**SMALL)
    data, indices = task.train_data(), np.arange(4)
    same = [fetch(task, data, indices, sample_rng(0, 5, 1), training=True)[0] for _ in range(2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], data.batch(indices)[0])
    assert torch.equal(fetch(task, data, indices, RNG, training=False)[0], data.batch(indices)[0])


def test_a_tasks_own_collate_is_used_in_both_phases() -> None:
    task = Collating(**SMALL)
    for training in (True, False):
        assert fetch(task, task.train_data(), np.arange(4), RNG, training) == ("collated", 4)


def test_plain_lists_of_arrays_and_numbers_are_data() -> None:
    data = [(np.ones(2, np.float32) * i, i) for i in range(5)]
    x, y = fetch(SyntheticMLP(), data, np.array([4, 0]), RNG, training=True)
    assert x.tolist() == [[4, 4], [0, 0]]
    assert y.tolist() == [4, 0]


def test_tensors_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, not \[2, 3\]"):
        TensorData(torch.zeros(2), torch.zeros(3))


def test_cast_changes_floating_tensors_only_at_any_depth() -> None:
    Pair = namedtuple("Pair", "x y")
    x, y = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    batch = cast({"a": [x, (y, x)], "b": Pair(x, "text")}, torch.float64)
    assert batch["a"][0].dtype == batch["a"][1][1].dtype == batch["b"].x.dtype == torch.float64
    assert batch["a"][1][0].dtype == torch.int64
    assert isinstance(batch["b"], Pair)
    assert batch["b"].y == "text"
