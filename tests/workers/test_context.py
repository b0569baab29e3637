"""Own loops in workers against real servers and a driver's Control: what they report, and that none of their mistakes hangs."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from deploy.books import means
from ps.config import OptimizerConfig, Timeouts
from ps.credentials import token_of
from ps.errors import ConfigError
from ps.plan import Plan
from ps.roles import Role
from tests.ps.cluster import TOKEN, Cluster, cluster
from tests.ps.driver import Driver
from tests.workers import loops
from workers.config import TrainConfig, WorkerSettings
from workers.context import Sampler, load_loop
from workers.imports import import_attribute
from workers.sampler import BatchPlan, torch_seed
from workers.worker import Worker


class Outcome:
    """How a run of two ranks ended."""

    def __init__(self, driver: Driver, servers: Cluster) -> None:
        self.control, self.epochs = driver.control, driver.epochs
        self.weights = servers.weights(self.control.final_version) if self.control.final_version is not None else None

    @property
    def error(self) -> str:
        assert self.control.failure is not None, "nothing was found wrong"
        return self.control.failure.error


def run(loop: Callable[..., object], *, ends_at: int = 99, **train: Any) -> Outcome:
    """Two ranks, two servers; ended, as a driver does, as soon as something has failed."""
    settings: dict[str, Any] = {"batch_size": 1, "epochs": 2, "seed": 1, **train}
    with cluster(2, 2, optimizer=OptimizerConfig(lr=0.1), plan=Plan(5, 10, own_loop=True)) as servers, driving(servers) as driver:
        driver.ends_at = ends_at
        workers = [worker(servers, driver, rank, f"{loop.__module__}:{loop.__name__}", settings) for rank in range(2)]
        threads = [threading.Thread(target=_quietly, args=(w.run,), daemon=True) for w in workers]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        with driver.servicer.changed:
            while any(thread.is_alive() for thread in threads) and driver.control.failure is None:
                driver.servicer.changed.wait(0.02)
                assert time.monotonic() < deadline, "it hangs"
        if driver.control.failure:
            driver.servicer.stop()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "a worker does not stop"
        return Outcome(driver, servers)


@contextmanager
def driving(servers: Cluster) -> Iterator[Driver]:
    driver = Driver(servers.settings.run_id, servers.settings.generation)
    driver.control.num_servers = 2
    for address in servers.addresses:
        driver.control.register("server", address.shard, address)
    try:
        yield driver
    finally:
        driver.servicer.stop()
        driver.close()


def worker(servers: Cluster, driver: Driver, rank: int, loop: str, train: dict[str, Any]) -> Worker:
    return Worker(
        WorkerSettings(
            run_id=servers.settings.run_id,
            token=token_of(TOKEN, Role("member", rank)),
            rank=rank,
            num_workers=2,
            num_servers=2,
            control_address=f"127.0.0.1:{driver.port}",
            train=TrainConfig(**train, loop=loop),
            optimizer=servers.settings.optimizer,
            timeouts=Timeouts(heartbeat_s=0.02, connect_s=5, control_s=5),
        )
    )


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):  # the Control has been told
        call()


def test_a_loop_trains_and_reports_means_by_their_weights() -> None:
    made = run(loops.right)
    assert made.control.failure is None and made.control.final_version == 10
    assert [epoch.version for epoch in made.epochs] == [5, 10]
    assert means(made.epochs[0], own_loop=True) == {"seen": 4.0}
    model = loops.model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = BatchPlan(10, 2, 2, 1, 1)
    for step in range(10):
        opt.zero_grad()
        model(loops.DATA[torch.from_numpy(batches.global_indices(step))]).square().mean().backward()
        opt.step()
    assert made.weights is not None
    assert torch.allclose(made.weights["weight"], model.weight, atol=1e-6)


def test_gradients_that_leave_during_backward_make_the_same_bits() -> None:
    """Rank 1 has no samples in the last step of an epoch, and its gradients of infinite numbers count for nothing."""
    settings = {"batch_size": None, "global_batch_size": 3, "epochs": 3}
    first, last = run(loops.tells_weights_first, **settings), run(loops.tells_weights_last, **settings)
    assert first.control.failure is None and last.control.failure is None
    assert first.weights is not None and last.weights is not None
    assert all(torch.equal(value, last.weights[name]) and value.isfinite().all() for name, value in first.weights.items())


def test_a_second_backward_after_gradients_have_left_ends_the_run() -> None:
    assert re.search(r"the gradient of \w+ was added to after it had been pushed: .*one backward per step", run(loops.two_backwards_in_a_step).error)


def test_a_loop_starts_from_the_values_of_train_init(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.full((1, 2), 9.0), "bias": torch.zeros(1)}, tmp_path / "start.safetensors")
    made = run(loops.stops_where_the_driver_says, ends_at=1, init=str(tmp_path / "start.safetensors"))
    assert made.weights is not None
    assert made.weights["weight"].tolist() == [[9.0, 9.0]]


def test_steps_end_where_the_report_said_so_even_if_nobody_listens() -> None:
    assert run(loops.stops_where_the_driver_says, ends_at=3).control.final_version == 3


def test_a_metric_of_some_ranks_is_the_mean_over_these() -> None:
    made = run(loops.different_metrics)
    assert made.control.failure is None
    assert means(made.epochs[0], own_loop=True) == {"both": 2 / 3, "mine": 7.0}


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (loops.only_rank_0_reports, "rank 1 pushes step 2, rank 0 waits in ctx.report at version 2: every rank must call it"),
        (loops.only_rank_0_reports_at_the_end, "rank 1 left its loop at version 10, rank 0 waits in ctx.report at version 10"),
        (loops.rank_1_leaves_while_rank_0_reports, "rank 1 left its loop at version 3, rank 0 waits in ctx.report at version 3"),
        (loops.rank_1_leaves_early, "rank 1 left its loop at version 3, rank 0 goes on: end all together, when ctx.report says so"),
        (loops.rank_1_steps_twice, r"opt.step\(\) was called twice in step 0 of rank 1"),
    ],
)
def test_ranks_that_part_are_named(loop: Callable[..., object], message: str) -> None:
    assert re.search(message, error := run(loop).error), error


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (loops.reports_twice, r"ctx.report\(\) was called twice at version 1 on rank \d: give it all metrics in one call"),
        (loops.reports_a_reserved_name, "a metric may not be called step"),
        (loops.reports_no_weight, r"ctx.report\(..., weight=nan\) is out of range"),
        (loops.reports_a_number, r"ctx.report\(an object of type float\): give metrics by name, for example ctx.report\({'accuracy': 0.9}"),
        (loops.reports_a_list, r"ctx.report: a is a tensor of shape \[2\]: give a number"),
        (loops.optimizes_parameters, r"ctx.optimizer\(an object of type generator\): give the model itself"),
        (loops.samples_the_data, r"ctx.sampler\(a tensor of shape \[10, 2\]\): give the number of training samples, ctx.sampler\(len\(data\)\)"),
        (loops.reports_first, r"ctx.report\(\) before ctx.optimizer"),
        (loops.two_optimizers, r"ctx.optimizer\(model\) was called twice: .* nn.ModuleDict"),
        (loops.two_samplers, r"ctx.sampler\(5\) after ctx.sampler\(10\)"),
        (loops.no_data, r"ctx.sampler\(0\): the training data is empty"),
        (loops.half, "parameter weight of the model is float16: train in float32 or float64"),
        (loops.no_length, r"needs the length of the run: call ctx.sampler\(len\(data\)\) before it, or set train.max_steps"),
        (loops.steps_first, r"ctx.steps\(\) before ctx.optimizer"),
        (loops.another_model, "rank . against rank .: initial values of bias differ"),
        (loops.other_data, "does every rank see the same training data"),
        (loops.steps_twice, r"opt.step\(\) was called twice in step 0 of rank \d: call it once in every step"),
        (loops.never_steps, r"opt.step\(\) was not called in step 0 of rank \d"),
        (loops.steps_after_the_last, r"opt.step\(\) after the last of 10 steps: iterate over ctx.steps\(\)"),
        (loops.returns_at_once, r"has returned without ctx.optimizer\(model\)"),
        (loops.exits, r"called sys.exit\(3\): return from it, or raise an error"),
    ],
)
def test_a_mistake_ends_the_run_with_the_remedy(loop: Callable[..., object], message: str) -> None:
    assert re.search(message, error := run(loop).error), error


def test_a_loop_that_goes_on_where_the_run_ends_is_refused() -> None:
    assert "opt.step() after ctx.report had returned True" in run(loops.steps_although_the_run_ends, ends_at=2).error


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rihgt", "no rihgt in tests.workers.loops: did you mean right?"),
        ("NUMBER", "is no function: write def train"),
        ("Context", "is no function: write def train"),
        ("without_argument", r"cannot be called with the context alone \(too many positional arguments\)"),
        ("yields", "is a generator or async"),
        ("waits", "is a generator or async"),
    ],
)
def test_what_is_no_loop_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_loop(f"{loops.__name__}:{name}")


def test_a_module_without_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no function: write package.module:function"):
        load_loop(loops.__name__)


def test_a_file_that_cannot_be_imported_is_named_with_its_error(tmp_path: Any) -> None:
    (tmp_path / "broken.py").write_text("1 +\n")
    with pytest.raises(ConfigError, match="train.loop = '.*broken.py:train' cannot be imported: SyntaxError"):
        load_loop(f"{tmp_path}/broken.py:train")
    with pytest.raises(ConfigError, match="there is no file .*brokn.py: did you mean broken.py?"):
        import_attribute(f"{tmp_path}/brokn.py:train", "train.loop")


# -- samples and seeds ---------------------------------------------------------------------------------------------


def test_the_sampler_deals_every_sample_of_an_epoch_once() -> None:
    batches = BatchPlan(17, 5, 7, 2, 3)
    ranks = [Sampler(batches, rank) for rank in range(5)]
    dealt = np.concatenate([sampler(step) for step in range(ranks[0].steps_per_epoch) for sampler in ranks])
    assert sorted(dealt) == list(range(17))
    assert [len(sampler(2)) for sampler in ranks] == [1, 1, 1, 0, 0]
    for sampler in ranks:
        parts = list(sampler.micro_batches(1))
        assert np.array_equal(np.concatenate(parts), sampler(1)) and all(map(len, parts))


def test_micro_batches_have_the_seeds_of_a_tasks() -> None:
    sampler = Sampler(BatchPlan(16, 2, 8, 2, 3), 1)
    seeds = [torch.initial_seed() for _ in sampler.micro_batches(5)]
    assert seeds == [torch_seed(3, 5, 1, 0), torch_seed(3, 5, 1, 1)]
