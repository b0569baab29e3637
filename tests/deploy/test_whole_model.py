"""A model with all that is hard about a model, in a file that imports its neighbour, with a batch of 7 on 5 workers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deploy.result import Result
from ps.config import OptimizerConfig
from tests.deploy.forked import train
from tests.ps.training import Job, as_ranks, difference, moved
from workers.config import TrainConfig
from workers.task import load_task

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.encode = nn.Linear(8, 8, bias=False)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.3)
        self.decode = nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(8, 1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.norm(self.encode(self.frozen(x)).view(-1, 2, 4)).flatten(1)
        return self.head(self.decode(self.drop(torch.tanh(hidden)))).squeeze(1)
"""
TASK = """
from dataclasses import dataclass

import torch

from whole_net import Net
from workers.data import TensorData
from workers.task import Task


@dataclass(frozen=True)
class Whole(Task):
    def model(self):
        return Net()

    def train_data(self):
        x = torch.randn(30, 8, generator=torch.Generator().manual_seed(7))
        return TensorData(x, x.sum(1))

    def validation_data(self):
        return self.train_data()

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()
"""
TRAIN: dict[str, Any] = {"global_batch_size": 7, "epochs": 3, "seed": 3, "dtype": "float64"}
"""Steps of 7, 7, 7, 7 and 2 samples: ranks have 2, 2, 1, 1, 1 of them, and three have none in the last step."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "whole_net.py").write_text(NET)
    (folder / "task.py").write_text(TASK)
    return f"{folder}/task.py:Whole"


def run(storage: Path, task: str, num_servers: int) -> Result:
    optimizer = OptimizerConfig(lr=0.05, momentum=0.9)
    result = train(storage, task, **TRAIN, optimizer=optimizer, num_workers=5, num_servers=num_servers)
    assert result.error is None
    return result


@pytest.fixture(scope="module")
def on_one_server(task: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(tmp_path_factory.mktemp("one"), task, num_servers=1)


def test_a_whole_model_is_trained_as_one_process_would(task: str, on_one_server: Result) -> None:
    job = Job(task=load_task(task, {}), train=TrainConfig(**TRAIN, max_steps=15), num_workers=5)
    expected = as_ranks(job, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
    weights = load_file(on_one_server.path / "weights" / "last.safetensors")
    assert set(expected) - set(weights) == {"decode.weight"}, "the other name of encode.weight"
    assert difference(weights, expected) <= 1e-10
    assert moved(job, weights) > 0.1
    first = job.model().state_dict()
    assert all(torch.equal(weights[name], first[name]) for name in first if name.startswith(("frozen", "unused")))
    assert int(weights["norm.num_batches_tracked"]) == 15


def test_a_whole_model_has_the_same_bits_on_any_number_of_servers(task: str, on_one_server: Result, tmp_path: Path) -> None:
    assert digests(run(tmp_path, task, num_servers=4)) == digests(on_one_server)


def digests(result: Result) -> tuple[str, str]:
    summary = json.loads((result.path / "summary.json").read_text())
    return summary["params_sha256"], summary["buffers_sha256"]
