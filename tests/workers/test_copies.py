"""Models that compute elsewhere than where versions land: copies give the bits of views, and wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ps.config import OptimizerConfig
from ps.layout import ALIGN_BYTES, Layout
from ps.plan import Plan
from tests.ps.cluster import cluster, in_threads
from tests.ps.training import Job, Marked, moved, train
from tests.workers.alone import gradient_step
from workers.binding import BoundModel, specs_of
from workers.config import TrainConfig
from workers.device import Mover
from workers.spans import Spans


class Mixed(nn.Module):
    """Batch statistics, a frozen layer, tied weights, a head that nothing uses, one that few samples use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 24).requires_grad_(False)
        self.norm = nn.BatchNorm1d(24)
        self.down = nn.Linear(24, 24)
        self.tied = nn.Linear(24, 24)
        self.tied.weight = self.down.weight
        self.head = nn.Linear(24, 2)
        self.marked = nn.Linear(24, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, mark: Tensor) -> Tensor:
        hidden = self.frozen(x)
        hidden = self.norm(hidden) if len(x) > 1 else hidden
        hidden = torch.tanh(self.tied(torch.tanh(self.down(hidden))))
        return torch.where(mark[:, None], self.marked(hidden), self.head(hidden)) if mark.any() else self.head(hidden)


@dataclass(frozen=True)
class MixedTask(Marked):
    def model(self) -> nn.Module:
        return Mixed()


def trained(job: Job, copies: bool | None) -> tuple[str, dict[str, Tensor]]:
    """Digest and values of all that the servers hold in the end; the ranks' models hold the same."""
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    with cluster(job.num_workers, job.num_servers, optimizer=job.optimizer, plan=plan) as servers:
        members = [servers.member(rank, job.model(), copies=copies) for rank in range(job.num_workers)]
        in_threads([lambda member=member: train(job, member, []) for member in members])  # type: ignore[misc]
        weights = servers.weights(job.steps)
        for member in members:
            landed = member.bound.landing
            pointers = [p.data_ptr() - memory.ctypes.data for p in member.bound.model.parameters() for memory in landed]
            assert any(0 <= pointer < landed[0].nbytes for pointer in pointers) != bool(copies)
            assert all(torch.equal(t, weights[name]) for name, t in member.bound.model.state_dict().items() if name in weights)
        return servers.sha256(job.steps), weights


@pytest.mark.parametrize(
    "train_config",
    [
        TrainConfig(global_batch_size=12, max_steps=22, epochs=10, seed=3, dtype="float32"),
        TrainConfig(global_batch_size=12, max_steps=11, epochs=10, seed=3, dtype="float64", accumulate=2),
    ],
)
def test_copies_give_the_bits_of_views(train_config: TrainConfig) -> None:
    job = Job(task=MixedTask(), train=train_config, optimizer=OptimizerConfig(lr=0.1, momentum=0.9), num_workers=3)
    wanted, values = trained(job, copies=None)
    found, copied = trained(job, copies=True)
    assert found == wanted
    assert values.keys() == copied.keys() and all(torch.equal(values[name], copied[name]) for name in values), "buffers too"
    assert moved(job, values) > 0.01


class Recorded:
    """In place of torch.cuda: streams and events that note who waits for whom."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._compute = self._stream("compute")
        self._num_events = 0

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, wait_stream=lambda other: self.notes.append(f"{name} waits for {other.name}"))

    def Stream(self) -> SimpleNamespace:  # noqa: N802
        return self._stream("side")

    def Event(self) -> SimpleNamespace:  # noqa: N802
        name = f"event {self._num_events}"
        self._num_events += 1
        return SimpleNamespace(
            record=lambda stream: self.notes.append(f"{name} ends {stream.name}"), synchronize=lambda: self.notes.append(f"host waits for {name}")
        )

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return self._compute

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        self.notes.append(f"in {stream.name}")
        yield
        self.notes.append(f"out {stream.name}")


COPIES = ["side waits for compute", "in side", "out side", "compute waits for side", "event 0 ends side"]


def test_copies_wait_for_compute_compute_for_copies_and_the_host_before_it_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Recorded()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    model = nn.Linear(3, 2)
    bound = BoundModel(model, Layout(specs_of(model), 1), copies=True)
    bound.install(0)
    assert streams.notes == COPIES, "the host need not wait"
    streams.notes.clear()
    model(torch.ones(1, 3)).sum().backward()
    bound.gather(1.0, divide=False, sums=(1.0, 1.0, 1.0, 1.0))
    assert streams.notes == [*COPIES, "host waits for event 0"], "gradients may be read, the version's memory be landed in"
    streams.notes.clear()
    bound.gather(0.0, divide=False, sums=None)
    assert streams.notes[-1] == "host waits for event 0", "without samples too: the version that is left may still be copied"
    streams.notes.clear()
    bound.mover.wait_for_compute()
    assert streams.notes == ["event 1 ends compute", "host waits for event 1"]


def test_the_forward_waits_for_the_installed_version_in_a_span_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Recorded()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    job = Job()
    model = job.model()
    model.register_forward_pre_hook(lambda module, args: streams.notes.append("forward"))
    bound = BoundModel(model, Layout(specs_of(model), 1), copies=True)
    step = gradient_step(job.task, job.task.train_data(), job.batches(), bound, job.dtype, rank=0, nonfinite="error")
    spans = Spans()
    bound.install(0)
    step.compute(0, spans)
    step.close()
    assert streams.notes == [*COPIES, "host waits for event 0", "forward", *COPIES, "host waits for event 0"]
    assert set(spans.take()[1]) == {"data_wait", "forward", "backward", "copy"}


def test_host_memory_is_aligned_and_zero() -> None:
    for size in (1, ALIGN_BYTES, 70_000):
        memory = Mover(torch.device("cpu")).memory(size)
        assert memory.shape == (size,) and not memory.any() and memory.ctypes.data % ALIGN_BYTES == 0
