"""A worker's whole life against real servers and a driver's Control, without Ray and without processes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ps.config import OptimizerConfig, Timeouts
from ps.credentials import token_of
from ps.errors import NonFinite, Stopped
from ps.ledger import WorkerRow, from_line
from ps.plan import Plan
from ps.roles import Role
from tests.ps.cluster import TOKEN, Cluster, cluster, in_threads
from tests.ps.driver import Driver
from workers.config import TrainConfig, WorkerSettings
from workers.data import TensorData
from workers.task import Task
from workers.worker import Worker


@dataclass(frozen=True)
class Plane(Task):
    """Fits a plane; raises or yields NaN in the given step's loss."""

    raises: bool = False
    is_nan: bool = False

    def model(self) -> nn.Module:
        model = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in model.parameters():  # not from torch's own generator, which the threads of this test share
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
        return model

    def train_data(self) -> TensorData:
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
        return TensorData(x, x.sum(1, keepdim=True))

    def validation_data(self) -> TensorData:
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
        return TensorData(x, x.sum(1, keepdim=True))

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if self.raises:
            raise KeyError("no such\ncolumn")
        x, y = batch
        return functional.mse_loss(model(x), y) * (math.nan if self.is_nan else 1.0)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        assert not model.training
        return {"seen": float(len(batch[0]))}


class Job:
    """Two ranks, two servers, three steps per epoch, seven steps."""

    def __init__(self, servers: Cluster, driver: Driver) -> None:
        self.servers, self.driver = servers, driver
        for address in servers.addresses:
            driver.control.num_servers = len(servers.addresses)
            driver.control.register("server", address.shard, address)

    def worker(self, rank: int, **fields: bool) -> Worker:
        settings = WorkerSettings(
            run_id=self.servers.settings.run_id,
            token=token_of(TOKEN, Role("member", rank)),
            rank=rank,
            num_workers=2,
            num_servers=2,
            control_address=f"127.0.0.1:{self.driver.port}",
            task=f"{Plane.__module__}:Plane",
            task_fields=dict(fields),
            train=TrainConfig(batch_size=4, epochs=5, max_steps=7, seed=1),
            optimizer=self.servers.settings.optimizer,
            timeouts=Timeouts(heartbeat_s=0.02, connect_s=5, control_s=5),
        )
        return Worker(settings)

    def run(self, **fields: bool) -> None:
        in_threads([self.worker(rank, **fields).run for rank in range(2)])

    @property
    def rows(self) -> list[WorkerRow]:
        rows = [from_line(line) for line in self.driver.rows]
        return [row for row in rows if isinstance(row, WorkerRow)]


@contextmanager
def job() -> Iterator[Job]:
    with cluster(2, 2, optimizer=OptimizerConfig(lr=0.1), plan=Plan(3, 7)) as servers:
        driver = Driver(servers.settings.run_id, servers.settings.generation)
        try:
            yield Job(servers, driver)
        finally:
            driver.servicer.stop()
            driver.close()


def test_a_run_reports_exact_sums_at_ends_of_epochs_and_at_its_own() -> None:
    with job() as made:
        made.run()
        control, epochs = made.driver.control, {epoch.version: epoch for epoch in made.driver.epochs}
        assert control.final_version == 7 and control.failure is None
        assert [version for version in epochs if version in (3, 6, 7)] == [3, 6, 7], "the last one ends in mid-epoch"
        assert [epochs[v].training["samples"] for v in (3, 6, 7)] == [20.0, 20.0, 8.0]
        assert [epochs[v].training["steps"] for v in (3, 6, 7)] == [3.0, 3.0, 1.0]
        last = epochs[7].validation
        assert (last["samples"], last["weight"], last["metric.seen"]) == (7.0, 7.0, 7.0)
        model = Plane().model()
        model.load_state_dict(made.servers.weights(7))
        x, y = made_of(Plane().validation_data())
        assert last["loss"] == pytest.approx(float(functional.mse_loss(model(x), y).detach()) * 7, rel=1e-5)


def made_of(data: TensorData) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data.tensors
    return x, y


def test_every_step_of_every_rank_has_a_row() -> None:
    with job() as made:
        made.run()
        rows = {(row.rank, row.step): row for row in made.rows}
        assert sorted(rows) == [(rank, step) for rank in range(2) for step in range(7)] and len(made.rows) == 14
        assert [rows[0, step].samples + rows[1, step].samples for step in range(3)] == [8, 8, 4]
        for row in made.rows:
            assert row.loss is not None and 0 < row.exposed_s <= row.step_s
            assert [(t.shard, t.push_bytes > 0, t.pull_bytes == t.push_bytes) for t in row.shards] == [(0, True, True), (1, True, True)]


def test_a_run_ends_where_the_driver_says() -> None:
    with job() as made:
        made.driver.ends_at = 3
        made.run()
        assert made.driver.control.final_version == 3


def test_an_error_of_the_users_code_is_reported_in_one_line() -> None:
    with job() as made:
        with pytest.raises(KeyError):
            made.worker(0, raises=True).run()
        failure = made.driver.control.failure
        assert failure is not None and (failure.worker, failure.error_type) == (0, "WorkerFailed")
        assert failure.error.startswith("KeyError: ") and "\n" not in failure.error and "no such" in failure.traceback


def test_a_loss_that_is_not_finite_is_reported_as_such() -> None:
    with job() as made:
        with pytest.raises(NonFinite):
            made.run(is_nan=True)
        failure = made.driver.control.failure
        assert failure is not None and failure.error_type == "NonFinite" and "at step 0 on rank" in failure.error


def test_a_waiting_worker_stops_when_the_driver_says_so() -> None:
    with job() as made:
        worker = made.worker(0)  # waits for rank 1 for ever

        def stop_when_it_steps() -> None:
            while not made.driver.steps:
                pass
            made.driver.servicer.stop()

        with pytest.raises(Stopped, match=r"the driver asks to stop|the run ends"):
            in_threads([stop_when_it_steps, worker.run])
        assert made.driver.control.failure is None, "to be stopped is no failure"
