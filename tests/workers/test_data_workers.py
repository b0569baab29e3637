import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ps.layout import Layout
from tests.workers.alone import gradient_step
from workers.batches import Batches
from workers.binding import BoundModel, specs_of
from workers.config import TrainConfig
from workers.data import fetch
from workers.prefetch import AHEAD, Prefetcher
from workers.sampler import BatchPlan, sample_rng
from workers.spans import Spans
from workers.tasks.synthetic_mlp import SyntheticMLP

DEADLINE_S = 10


@contextmanager
def prefetcher(num_threads: int) -> Iterator[Prefetcher]:
    made = Prefetcher(num_threads)
    try:
        yield made
    finally:
        made.close()


def data_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_inputs(num_threads: int) -> None:
    with prefetcher(num_threads) as ahead:
        assert list(ahead.map(lambda x: x * x, range(50))) == [x * x for x in range(50)]
        assert list(ahead.map(str, [])) == []


def test_a_later_result_that_is_ready_first_waits_for_its_turn() -> None:
    second_done = threading.Event()

    def work(i: int) -> int:
        assert second_done.wait(DEADLINE_S) if i == 0 else second_done.set() is None
        return i

    with prefetcher(2) as ahead:
        assert list(ahead.map(work, range(2))) == [0, 1]


def test_no_more_is_prepared_than_the_limit() -> None:
    drawn: list[int] = []

    def inputs() -> Iterator[int]:
        for i in count():
            drawn.append(i)
            yield i

    with prefetcher(3) as ahead:
        results = ahead.map(lambda x: x, inputs())
        assert not drawn
        for used in range(1, 20):
            next(results)
            assert len(drawn) == used + AHEAD * 3


def test_without_threads_nothing_is_done_ahead() -> None:
    done: list[int] = []
    with prefetcher(0) as ahead:
        results = ahead.map(done.append, count())
        next(results)
        assert done == [0]
        assert not data_threads()


def test_an_error_is_raised_where_its_result_is_asked_for() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise OSError("disk on fire")
        return i

    for num_threads in (0, 2):
        with prefetcher(num_threads) as ahead:
            results = ahead.map(work, count())
            assert list(islice(results, 3)) == [0, 1, 2]
            with pytest.raises(OSError, match="disk on fire"):
                next(results)


def test_close_cancels_what_has_not_begun_and_leaves_no_thread() -> None:
    begun: list[int] = []
    first_runs, may_end = threading.Event(), threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        if i == 1:
            first_runs.set()
            assert may_end.wait(DEADLINE_S)

    ahead = Prefetcher(1)
    next(results := ahead.map(work, count()))
    assert first_runs.wait(DEADLINE_S)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    may_end.set()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    assert begun == [0, 1]
    assert not data_threads()
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


@dataclass(frozen=True)
class Watched(SyntheticMLP):
    """Noise on every sample, from the generator alone; notes who loads."""

    threads: ClassVar[list[str]] = []
    fails_at: ClassVar[int | None] = None

    def augment(self, samples: list[Any], rng: np.random.Generator) -> list[Any]:
        self.threads.append(threading.current_thread().name)
        if self.fails_at is not None and len(self.threads) > self.fails_at:
            raise OSError("sample 7 cannot be read")
        return [(x + rng.standard_normal(), y) for x, y in samples]


@pytest.fixture
def task() -> Iterator[Watched]:
    Watched.threads.clear()
    yield Watched(inputs=8, width=8, depth=1, classes=3, samples=40)
    Watched.fails_at = None
    assert not data_threads()


@pytest.fixture
def batches(task: Watched) -> Iterator[Callable[..., Batches]]:
    made: list[Batches] = []

    def make(num_threads: int, *, num_workers: int = 2, global_batch: int = 12, accumulate: int = 2, rank: int = 1) -> Batches:
        plan = BatchPlan(40, num_workers=num_workers, global_batch=global_batch, accumulate=accumulate, seed=3)
        made.append(Batches(task, task.train_data(), plan, torch.float64, rank=rank, num_threads=num_threads))
        return made[-1]

    yield make
    for one in made:
        one.close()


def read(one: Batches, steps: Any) -> list[list[tuple[int, int, list[Any], list[Any]]]]:
    """(index, samples, x, y) of every micro-batch, by step."""
    return [[(m.index, m.num_samples, m.batch[0].tolist(), m.batch[1].tolist()) for m in one.of_step(step, Spans())] for step in steps]


def test_a_batch_is_a_function_of_seed_step_rank_and_micro_batch(task: Watched, batches: Callable[..., Batches]) -> None:
    plan, data = BatchPlan(40, num_workers=2, global_batch=12, accumulate=2, seed=3), task.train_data()
    for step in (0, 7):
        expected = [fetch(task, data, part, sample_rng(3, step, 1, i), training=True) for i, part in enumerate(plan.micro_batches(step, rank=1))]
        found = [micro.batch for micro in batches(0).of_step(step, Spans())]
        assert [x.tolist() for x, _ in found] == [x.double().tolist() for x, _ in expected]
        assert [y.tolist() for _, y in found] == [y.tolist() for _, y in expected]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_change_no_bit_and_no_order(batches: Callable[..., Batches], num_threads: int) -> None:
    """10 steps of 4 in an epoch: the last one of each has 4 samples for 2 ranks."""
    assert read(batches(num_threads), range(10)) == read(batches(0), range(10))


def test_batches_are_loaded_by_the_threads_and_cast_there(task: Watched, batches: Callable[..., Batches]) -> None:
    (micro, *_) = batches(2).of_step(0, Spans())
    assert micro.batch[0].dtype == torch.float64
    assert {name.rpartition("_")[0] for name in task.threads} == {"loader"}


def test_any_step_may_follow(batches: Callable[..., Batches]) -> None:
    """A rank that starts late, goes back, or leaves a step in the middle."""
    one, plain = batches(2), batches(0)
    order = [5, 6, 2, 3, 3, 9]
    assert read(one, order) == read(plain, order)
    next(one.of_step(10, Spans()))
    assert read(one, [11]) == read(plain, [11])


def test_a_rank_without_samples_has_no_micro_batch(batches: Callable[..., Batches]) -> None:
    one = batches(2, num_workers=15, global_batch=13, rank=14)
    assert read(one, range(8)) == [[]] * 8


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_of_the_loader_reaches_the_training_thread(task: Watched, batches: Callable[..., Batches], num_threads: int) -> None:
    Watched.fails_at = 3
    with pytest.raises(OSError, match="sample 7 cannot be read"):
        read(batches(num_threads), range(10))


def test_only_the_wait_counts_as_data_wait(batches: Callable[..., Batches]) -> None:
    spans = Spans()
    read_names = [list(spans.take()[1]) for _ in batches(1).of_step(0, spans)]
    assert read_names == [["data_wait"], ["data_wait"]]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_gradients_are_the_same_bits_with_data_workers(task: Watched, num_threads: int) -> None:
    def gradients(data_workers: int) -> list[bytes]:
        torch.manual_seed(0)
        model = task.model()
        bound = BoundModel(model, Layout(specs_of(model), 1))
        plan = BatchPlan(40, num_workers=2, global_batch=12, accumulate=2, seed=3)
        step = gradient_step(task, task.train_data(), plan, bound, torch.float32, rank=0, nonfinite="error", data_workers=data_workers)
        try:
            return [(step.compute(t, Spans()), bound.gradients.tobytes())[1] for t in range(6)]
        finally:
            step.close()

    assert gradients(num_threads) == gradients(0)


def test_fewer_than_no_data_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="train.data_workers = -1 is out of range: >= 0"):
        TrainConfig(batch_size=1, data_workers=-1)
