"""The device path as far as a host without GPUs can go: the same code, with torch's stand-ins for streams, or with recorded ones."""

import os
from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

from ps.config import Timeouts
from ps.credentials import token_of
from ps.errors import ConfigError, ResourcesMissing
from ps.layout import Layout
from ps.roles import Role
from tests.ps.cluster import TOKEN, cluster
from tests.ps.driver import Driver
from tests.ps.training import Job, Marked
from workers.batches import Batches
from workers.binding import BoundModel, specs_of
from workers.config import TrainConfig, WorkerSettings
from workers.context import Context
from workers.data import cast, move
from workers.device import check_device, device_of_rank, make_deterministic, operations_named
from workers.spans import Spans
from workers.validate import validate
from workers.worker import Worker


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Determinism is a setting of the process; a worker's ends with it, this one goes on."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


# -- which device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "num_visible", "expected"),
    [
        (0.0, 4, [None] * 4),
        (1.0, 1, [0, 0, 0, 0]),  # Ray shows each process its own
        (2.0, 2, [0, 0, 0, 0]),
        (0.5, 1, [0, 0, 0, 0]),
        (1.0, 4, [0, 1, 2, 3]),  # all of the host
        (1.0, 3, [0, 1, 2, 0]),
        (2.0, 8, [0, 2, 4, 6]),
        (0.5, 2, [0, 1, 0, 1]),
    ],
)
def test_ranks_get_their_own_devices_or_take_turns(gpus: float, num_visible: int, expected: list[int | None]) -> None:
    found = [device_of_rank(rank, gpus, num_visible) for rank in range(4)]
    assert found == [torch.device("cpu") if index is None else torch.device("cuda", index) for index in expected]


def test_a_gpu_that_was_promised_but_is_not_there_is_refused() -> None:
    with pytest.raises(ResourcesMissing, match=r"^GPU: torch .* sees none on .*: install a CUDA build .* scaling\.use_gpu = false$"):
        device_of_rank(0, 0.5, 0)


def test_a_model_elsewhere_is_refused_by_the_name_of_a_tensor() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_device(model, torch.device("cpu"))
    model[1].running_var = torch.ones(2, device="meta")
    with pytest.raises(ConfigError, match=r"^1\.running_var of the model is on meta, but the worker trains on cpu: model\.to\(ctx\.device\)"):
        check_device(model, torch.device("cpu"))


# -- the same bits from every run ----------------------------------------------------------------------------


@pytest.mark.usefixtures("restored")
def test_a_process_is_made_deterministic() -> None:
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("restored")
def test_a_cublas_setting_of_the_user_is_kept_if_it_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG = ':0:0' .* unset it, or set it to :4096:8"):
        make_deterministic()


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"), operations_named():
        torch.ones(2, 3) @ torch.ones(2, 3)


@dataclass(frozen=True)
class Fit(Marked):
    """With an operation that has no deterministic implementation, on the CPU neither."""

    def model(self) -> nn.Module:
        return nn.Linear(8, 2)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y, _ = batch
        out = model(x).clone()
        out.put_(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=out.dtype))
        return functional.mse_loss(out, y)


@contextmanager
def only_worker(gpus: float = 0.0, loop: str | None = None) -> Iterator[tuple[Driver, Worker]]:
    """The one rank of a run with a driver and a server."""
    with cluster(1, 1) as servers:
        driver = Driver(servers.settings.run_id, servers.settings.generation)
        driver.control.num_workers = 1
        driver.control.register("server", 0, servers.addresses[0])
        settings = WorkerSettings(
            run_id=servers.settings.run_id,
            token=token_of(TOKEN, Role("member", 0)),
            rank=0,
            num_workers=1,
            num_servers=1,
            gpus=gpus,
            control_address=f"127.0.0.1:{driver.port}",
            task=None if loop else f"{Fit.__module__}:Fit",
            train=TrainConfig(batch_size=8, max_steps=2, loop=loop),
            timeouts=Timeouts(heartbeat_s=0.02, connect_s=5, control_s=5),
        )
        try:
            yield driver, Worker(settings)
        finally:
            driver.servicer.stop()
            driver.close()


@pytest.mark.usefixtures("restored")
def test_an_operation_that_gives_other_bits_in_every_run_is_named() -> None:
    make_deterministic()
    with only_worker() as (driver, worker):
        with pytest.raises(ConfigError, match=r"^put_ has no deterministic implementation .*: use another .* \(scaling\.use_gpu = false\)$"):
            worker.run()
        failure = driver.control.failure
    assert failure is not None and (failure.worker, failure.error_type) == (0, "ConfigError") and failure.error.startswith("put_ has no")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has what is missed")
def test_a_worker_without_the_gpu_it_was_promised_says_so() -> None:
    with only_worker(gpus=1.0) as (driver, worker):
        with pytest.raises(ResourcesMissing, match="sees none"):
            worker.run()
        failure = driver.control.failure
    assert failure is not None and failure.error_type == "ResourcesMissing"


def loop_elsewhere(ctx: Context) -> None:
    ctx.optimizer(nn.Linear(2, 2, device="meta"))


def test_an_own_loop_whose_model_is_elsewhere_is_told_so() -> None:
    with only_worker(loop=f"{__name__}:loop_elsewhere") as (_, worker), pytest.raises(ConfigError, match="weight of the model is on meta"):
        worker.run()


# -- batches -------------------------------------------------------------------------------------------------


class Encoding(UserDict[str, Tensor]):
    """As tokenizers return it: no dict, but it can be moved."""

    def to(self, device: torch.device) -> "Encoding":
        return Encoding({name: value.to(device) for name, value in self.items()})


def test_all_of_a_batch_is_moved() -> None:
    x, device = torch.ones(2, 3), torch.device("meta")
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    batch = {"x": (x, [x]), "encoded": Encoding(y=x), "packed": packed, "text": "a", "number": 1}
    found = move(batch, device)
    assert (found["x"][0].device, found["x"][1][0].device, found["encoded"]["y"].device, found["packed"].data.device) == (device,) * 4
    assert found["packed"].batch_sizes.device.type == "cpu", "torch wants it there"
    assert (found["text"], found["number"]) == ("a", 1)
    assert move(batch, torch.device("cpu")) is batch


def test_a_cast_batch_keeps_its_form() -> None:
    x = torch.ones(2, 3)
    found = cast({"x": (x, [x]), "packed": pack_sequence([x, x]), "labels": torch.zeros(2, dtype=torch.int64)}, torch.float64)
    assert found["x"][0].dtype == found["x"][1][0].dtype == found["packed"].data.dtype == torch.float64
    assert found["labels"].dtype == found["packed"].batch_sizes.dtype == torch.int64


@dataclass(frozen=True)
class Somewhere(Marked):
    """Notes where its batches are."""

    devices: ClassVar[list[str]] = []

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.devices.extend(part.device.type for part in batch)
        return torch.zeros(())


def test_batches_of_both_phases_are_where_the_model_is() -> None:
    job = Job(task=Somewhere())
    bound = BoundModel(model := job.model(), Layout(specs_of(model), 1))
    bound.device = torch.device("meta")
    batches = Batches(job.task, job.task.train_data(), job.batches(), job.dtype, rank=0, num_threads=1, device=bound.device)
    (micro,) = batches.of_step(0, Spans())
    batches.close()
    assert {part.device.type for part in micro.batch} == {"meta"}
    Somewhere.devices.clear()
    validate(job.task, job.task.validation_data(), bound.model, job.dtype, device=bound.device, rank=0, num_workers=1, batch_size=25)
    assert Somewhere.devices == ["meta"] * 6
