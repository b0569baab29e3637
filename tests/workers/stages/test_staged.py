"""W ranks of P stages give what one process gives; the same bits for every P, number of servers, and from run to run."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from ps.errors import ConfigError, NonFinite
from tests.ps.rules import TABLE
from tests.ps.training import Job, difference, moved, plain
from tests.workers.stages.staged import Net, Split5, run

JOB = replace(Job(task=Split5()).changed(accumulate=3, max_steps=11), num_workers=2)


def momentum(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(("num_workers", "num_stages", "num_servers"), [(1, 1, 1), (1, 5, 1), (2, 2, 2), (2, 3, 3), (3, 4, 1)])
def test_ranks_of_stages_equal_one_process(num_workers: int, num_stages: int, num_servers: int) -> None:
    """The last of five batches leaves two samples: a rank of three has none. Micro-batches of 6 and of 4 samples are uneven for others."""
    job = replace(JOB, num_workers=num_workers, num_servers=num_servers)
    found = run(job, num_stages).weights
    assert difference(found, plain(job, momentum)) <= 1e-10
    assert moved(job, found) >= 1e-3
    start = job.model().state_dict()
    for name in ("parts.0.frozen.weight", "parts.1.unused.weight"):
        assert torch.equal(found[name], start[name])
    assert not torch.equal(found["parts.4.marked.weight"], start["parts.4.marked.weight"])


@pytest.mark.parametrize("name", TABLE)
def test_every_optimizer_on_stages_equals_torchs(name: str) -> None:
    config, make, _ = TABLE[name]
    job = replace(JOB, optimizer=config)
    assert difference(run(job, 2).weights, plain(job, make)) <= 1e-10


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_float32_stages_are_as_close_as_rounding_allows(name: str) -> None:
    config, make, _ = TABLE[name]
    job = replace(JOB, optimizer=config).changed(dtype="float32")
    found = run(job, 3).weights
    assert difference(found, plain(job, make)) <= 1e-5 <= moved(job, found) / 100


def test_the_bits_do_not_depend_on_the_number_of_stages_or_servers() -> None:
    """With dropout, whose masks come from layer, step, rank and micro-batch."""
    job = replace(JOB, task=Split5(dropout=0.3)).changed(dtype="float32")
    found = [
        run(job, 1),
        run(job, 2),
        run(replace(job, num_servers=3, overlap=False), 3),
        run(replace(job, num_servers=1), 5),
        run(job, 2),
    ]
    assert len({outcome.params_sha256 for outcome in found}) == 1
    assert all(outcome.sums == found[0].sums for outcome in found)
    without = replace(job, task=Split5())
    assert run(without, 2).params_sha256 != found[0].params_sha256


@dataclass(frozen=True)
class Faulty(Split5):
    """Its third block, or its loss, fails; or the loss treats the model as it may not."""

    fault: str = ""

    def model(self) -> nn.Module:
        net = Net(0.0)
        if self.fault == "block":
            net.parts[2].inner = Failing(70, 100)
        return net

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, mark = batch
        if self.fault == "twice":
            model(x, mark)
        if self.fault == "weights":
            return functional.mse_loss(model(x, mark), y) + model.parts[0].wide.weight.square().sum()  # type: ignore[union-attr, index]
        if self.fault == "names":
            return functional.mse_loss(model(x, mark=mark), y)
        if self.fault == "none":
            return y.sum()
        loss = functional.mse_loss(model(x, mark), y)
        return loss * float("nan") if self.fault == "nan" else loss


class Failing(nn.Linear):
    """Works in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ArithmeticError("the block fails")
        return super().forward(x)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("block", ArithmeticError, "the block fails"),
        ("nan", NonFinite, "loss is nan at step 0 on rank 0"),
        ("twice", ConfigError, "call the model once"),
        ("weights", ConfigError, "it asks for model.parts"),
        ("names", ConfigError, r"as model\(x, …\)"),
        ("none", ConfigError, "call the model once"),
    ],
)
def test_a_stage_that_fails_ends_the_others_and_is_named(fault: str, error: type[Exception], text: str) -> None:
    job = replace(JOB, task=Faulty(fault=fault), num_workers=1)
    with pytest.raises(error, match=text):
        run(job, 4, [1, 2, 3])
