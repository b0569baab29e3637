import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import ConfigError
from workers.config import TrainConfig
from workers.sampler import (
    BatchPlan,
    global_indices,
    part_of,
    sample_rng,
    steps_per_epoch,
    torch_seed,
    validation_slices,
)

plans = st.builds(
    BatchPlan,
    num_samples=st.integers(1, 60),
    num_workers=st.integers(1, 6),
    global_batch=st.integers(1, 70),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 2**70),
)


@given(plans, st.integers(0, 3))
def test_every_sample_is_used_once_per_epoch(plan: BatchPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch(), (epoch + 1) * plan.steps_per_epoch())
    used = [plan.micro_batches(step, rank) for step in steps for rank in range(plan.num_workers)]
    assert sorted(np.concatenate(list(itertools.chain(*used)))) == list(range(plan.num_samples))


@given(plans, st.integers(0, 200))
def test_ranks_and_micro_batches_in_order_make_up_the_global_batch(plan: BatchPlan, step: int) -> None:
    micro = [indices for rank in range(plan.num_workers) for indices in plan.micro_batches(step, rank)]
    assert all(0 < len(indices) <= plan.micro_batch_size() for indices in micro)
    np.testing.assert_array_equal(np.concatenate(micro), plan.global_indices(step))


@given(plans, st.integers(0, 200))
def test_parts_of_the_ranks_differ_by_one_sample_at_most(plan: BatchPlan, step: int) -> None:
    sizes = [sum(map(len, plan.micro_batches(step, rank))) for rank in range(plan.num_workers)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(
    ("length", "num_parts", "sizes"),
    [(7, 5, [2, 2, 1, 1, 1]), (2, 4, [1, 1, 0, 0]), (8, 4, [2, 2, 2, 2]), (0, 2, [0, 0])],
)
def test_the_first_parts_have_one_more(length: int, num_parts: int, sizes: list[int]) -> None:
    assert [len(range(length)[part_of(length, num_parts, i)]) for i in range(num_parts)] == sizes


def test_full_micro_batches_have_the_batch_size_of_the_config() -> None:
    plan = BatchPlan.from_config(TrainConfig(batch_size=4, accumulate=3, seed=1), num_workers=2, num_samples=50)
    assert plan.global_batch == 24
    assert [len(indices) for indices in plan.micro_batches(0, 1)] == [4, 4, 4]
    assert plan.steps_per_epoch() == 3
    assert [plan.micro_batches(2, 0)[0].size, plan.micro_batches(2, 1)[0].size] == [1, 1]  # 50 - 2 * 24 = 2 are left


def test_a_global_batch_size_includes_workers_and_accumulation() -> None:
    plan = BatchPlan.from_config(TrainConfig(global_batch_size=10, accumulate=2), num_workers=3, num_samples=100)
    assert [[len(i) for i in plan.micro_batches(0, rank)] for rank in range(3)] == [[2, 2], [2, 1], [2, 1]]


def test_a_rank_without_samples_has_no_micro_batches() -> None:
    plan = BatchPlan(num_samples=2, num_workers=4, global_batch=8, accumulate=2, seed=0)
    assert [len(plan.micro_batches(0, rank)) for rank in range(4)] == [1, 1, 0, 0]


def test_empty_training_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train_data\(\) is empty"):
        BatchPlan.from_config(TrainConfig(batch_size=1), num_workers=1, num_samples=0)


def test_epochs_and_seeds_shuffle_differently_and_repeatably() -> None:
    orders = {(seed, epoch): tuple(global_indices(100, seed, epoch, 0, 100)) for seed in (0, 1, 2**64) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 9
    assert all(tuple(global_indices(100, *key, 0, 100)) == order for key, order in orders.items())


def test_changing_a_batch_leaves_the_next_reader_untouched() -> None:
    expected = global_indices(10, 0, 0, 0, 10).copy()
    global_indices(10, 0, 0, 0, 10)[:] = -1
    np.testing.assert_array_equal(global_indices(10, 0, 0, 0, 10), expected)


def test_the_last_step_counts() -> None:
    assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 60))
def test_validation_covers_all_samples_in_order(num_samples: int, num_workers: int, batch_size: int) -> None:
    batches = [b for rank in range(num_workers) for b in validation_slices(num_samples, num_workers, rank, batch_size)]
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert [i for batch in batches for i in batch] == list(range(num_samples))


def test_streams_differ_in_every_argument_and_repeat() -> None:
    arguments = list(itertools.product((0, 1, 2**40), (0, 1), (0, 1), (0, 1)))
    drawn = {args: (int(sample_rng(*args).integers(2**62)), torch_seed(*args)) for args in arguments}
    assert len(set(itertools.chain(*drawn.values()))) == 2 * len(arguments)
    assert all(torch_seed(*args) == seed for args, (_, seed) in drawn.items())
    assert all(0 <= seed < 2**63 for _, seed in drawn.values())


def test_a_torch_seed_seeds_torch() -> None:
    draws = [torch.rand(3, generator=torch.Generator().manual_seed(torch_seed(0, step, 0))) for step in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
