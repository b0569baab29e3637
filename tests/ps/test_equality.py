"""Any number of workers and servers gives what one process gives; the same bits from run to run."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from ps.config import CommConfig, OptimizerConfig, ScheduleConfig
from ps.schedules import learning_rate
from tests.ps.rules import TABLE
from tests.ps.training import Job, Marked, as_ranks, difference, moved, plain, run

MOMENTUM = Job()


def momentum(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def one_process() -> dict[str, torch.Tensor]:
    return plain(MOMENTUM, momentum)


@pytest.mark.parametrize("num_servers", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_any_cluster_equals_one_process(num_workers: int, num_servers: int, one_process: dict[str, torch.Tensor]) -> None:
    found = run(replace(MOMENTUM, num_workers=num_workers, num_servers=num_servers)).weights
    assert difference(found, one_process) <= 1e-10
    assert moved(MOMENTUM, found) >= 1e-7 * 1000
    start = MOMENTUM.model().state_dict()
    for name in ("frozen.weight", "unused.weight"):
        assert torch.equal(found[name], start[name])
    assert not torch.equal(found["marked.weight"], start["marked.weight"])


@pytest.mark.parametrize("name", ["dampening", "adam", "rmsprop"])
def test_state_of_tensors_that_lack_a_gradient_in_some_steps_is_torchs(name: str) -> None:
    """What the first gradient makes, the count of updates, and a plain slot; every rule by itself is in test_recipe_optimizers.py."""
    config, make, _ = TABLE[name]
    job = replace(MOMENTUM, optimizer=config, num_workers=3)
    found = run(job).weights
    assert difference(found, plain(job, make)) <= 1e-10
    assert moved(job, found) >= 1e-7


def test_float32_is_as_close_as_rounding_allows() -> None:
    """Of every rule in test_optimizers.py."""
    config, make, tolerance = TABLE["momentum"]
    job = replace(MOMENTUM, optimizer=config).changed(dtype="float32")
    found = run(job).weights
    assert found["wide.weight"].dtype is torch.float32
    assert tolerance is not None and difference(found, plain(job, make)) <= tolerance
    assert moved(job, found) >= 1000 * tolerance


def test_the_bits_depend_on_nothing_but_the_seed() -> None:
    base = replace(MOMENTUM, num_workers=3).changed(dtype="float32")
    same = [
        replace(base, num_servers=1),
        replace(base, num_servers=2),
        replace(base, num_servers=4),
        replace(base, num_servers=2, comm=CommConfig(shared_memory=False)),  # frames as the link was measured
        replace(base, num_servers=2, shuffle=1, comm=CommConfig(frame_bytes=4096, window_frames=1)),
        replace(base, num_servers=4, shuffle=2, comm=CommConfig(frame_bytes=4096, window_frames=3, out_of_order_bytes=0)),
        replace(base, num_servers=1, shuffle=3, comm=CommConfig(frame_bytes=4 << 20, window_frames=64)),
    ]
    found = [run(job) for job in same]
    assert len({outcome.params_sha256 for outcome in found}) == 1
    assert all(outcome.sums == found[0].sums for outcome in found), "the loss is a contribution like any other"
    assert run(base.changed(seed=4)).params_sha256 != found[0].params_sha256


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_streams_that_break_change_no_bit(max_grad_norm: float | None, caplog: pytest.LogCaptureFixture) -> None:
    job = replace(MOMENTUM, num_workers=3, optimizer=replace(MOMENTUM.optimizer, max_grad_norm=max_grad_norm)).changed(max_steps=22)
    whole = run(job)
    broken = run(replace(job, breaks=True, comm=CommConfig(frame_bytes=4096, window_frames=2)))
    assert broken.params_sha256 == whole.params_sha256 and broken.sums == whole.sums
    assert caplog.text.count("broke: joining again") >= 5


@pytest.mark.parametrize("num_workers", [1, 3])
def test_accumulated_micro_batches_are_one_batch(num_workers: int) -> None:
    job = replace(MOMENTUM, num_workers=num_workers).changed(accumulate=3)
    found = run(job).weights
    assert difference(found, plain(job, momentum)) <= 1e-10


def test_a_schedule_counts_the_steps() -> None:
    job = replace(MOMENTUM, optimizer=OptimizerConfig(lr=0.1), schedule=ScheduleConfig(name="cosine", warmup_steps=4), num_workers=3)
    made: list[optim.Optimizer] = []

    def sgd(parameters: Any) -> optim.Optimizer:
        made.append(optim.SGD(parameters, lr=0.1))
        return made[0]

    steps = iter(range(job.steps))

    def set_rate(model: nn.Module) -> None:
        made[0].param_groups[0]["lr"] = learning_rate(job.optimizer, job.schedule, next(steps), job.steps)

    assert difference(run(job).weights, plain(job, sgd, set_rate)) <= 1e-10


def test_clipping_by_the_global_norm_is_torchs() -> None:
    clipped: list[float] = []

    def clip(model: nn.Module) -> None:
        clipped.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))

    reference = plain(MOMENTUM, momentum, clip)
    assert min(clipped) < 0.5 < max(clipped), "some steps are clipped, others not"
    for num_servers in (1, 3):
        job = replace(MOMENTUM, num_workers=3, num_servers=num_servers, optimizer=replace(MOMENTUM.optimizer, max_grad_norm=0.5))
        assert difference(run(job).weights, reference) <= 1e-10


class Tied(nn.Module):
    """The same matrix goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 8, bias=False)
        self.decode = nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        return self.head(self.decode(torch.tanh(self.encode(x))))


@dataclass(frozen=True)
class TiedTask(Marked):
    def model(self) -> nn.Module:
        return Tied()


def test_tied_weights_are_one_parameter() -> None:
    job = replace(MOMENTUM, task=TiedTask(), num_workers=3)
    found = run(job).weights
    assert set(found) == {"encode.weight", "head.weight", "head.bias"}
    assert difference(found, plain(job, momentum)) <= 1e-10


@dataclass(frozen=True)
class Weighted(TiedTask):
    """Weighs a batch by its content, and some not at all."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, mark = batch
        weights = (x[:, 0] > 0).to(x.dtype)
        total = weights.sum()
        if total == 0:
            return (model(x, mark) * 0).sum(), 0.0
        per_sample = functional.mse_loss(model(x, mark), y, reduction="none").mean(1)
        return (per_sample * weights).sum() / total, float(total)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_tasks_own_weights_are_those_of_the_mean(accumulate: int) -> None:
    job = replace(MOMENTUM, task=Weighted(), num_workers=4).changed(accumulate=accumulate)
    assert difference(run(job).weights, plain(job, momentum)) <= 1e-10


class Normed(nn.Module):
    """Batch statistics, which are per rank, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.inner(x).view(-1, 4, 4)).flatten(1))


@dataclass(frozen=True)
class NormedTask(Marked):
    def model(self) -> nn.Module:
        return Normed()


@pytest.mark.parametrize(("num_workers", "global_batch_size", "accumulate"), [(2, 12, 1), (3, 16, 1), (3, 23, 2)])
def test_batch_statistics_are_the_weighted_mean_of_the_ranks(num_workers: int, global_batch_size: int, accumulate: int) -> None:
    """The last batches of 2, 2 and 4 samples leave ranks with few samples or none; a count of batches must not differ between ranks."""
    job = replace(MOMENTUM, task=NormedTask(), num_workers=num_workers)
    job = job.changed(global_batch_size=global_batch_size, accumulate=accumulate)
    found = run(job)
    assert difference(found.weights, as_ranks(job, momentum)) <= 1e-10
    assert int(found.weights["norm.num_batches_tracked"]) > 0
    assert run(replace(job, num_servers=1, shuffle=5)).buffers_sha256 == found.buffers_sha256


def test_more_servers_than_chunks_leave_some_with_nothing_to_do() -> None:
    job = replace(MOMENTUM, task=TiedTask(), num_servers=6)
    found = run(job)
    assert difference(found.weights, plain(job, momentum)) <= 1e-10
    clipped = replace(job, optimizer=replace(job.optimizer, max_grad_norm=0.1))
    assert run(clipped).params_sha256 == run(replace(clipped, num_servers=1)).params_sha256 != found.params_sha256
