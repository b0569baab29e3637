"""How chunks are grouped into runs changes no bit, whatever the optimizer."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.config import GroupConfig, OptimizerConfig, ScheduleConfig
from ps.layout import CHUNK_ELEMENTS, Layout, Run, TensorSpec
from ps.optimizers import num_slots
from ps.plan import Plan
from ps.store import Store
from ps.update import Updater
from tests.ps.recipe import EMA, OPTIMIZERS

CONFIGS = {name: config for name, (config, _) in OPTIMIZERS.items()} | {
    "ema": EMA,
    "clipped by value": OptimizerConfig(name="adamw", clip_value=0.5),
    "two groups": OptimizerConfig(name="adamw", groups=(GroupConfig(pattern="w1", lr=0.1, weight_decay=0.5),)),
}
SIZES = (2 * CHUNK_ELEMENTS + 77, 33, CHUNK_ELEMENTS, 5, 64 * 3)
"""Tensors with ends between the multiples of 64, so that runs have gaps in them."""
STEPS = 3


def layout_of(dtype: str) -> Layout:
    return Layout([TensorSpec(name=f"w{i}", shape=(size,), dtype=dtype, group=int(i == 1)) for i, size in enumerate(SIZES)], num_servers=1)


def updated(config: OptimizerConfig, dtype: str, cuts: frozenset[int]) -> bytes:
    """All of the store after some steps in runs that end at `cuts` and at the ends of groups."""
    if not config.groups:
        config = OptimizerConfig(**vars(config) | {"groups": (GroupConfig(pattern="w1"),)})
    layout = layout_of(dtype)
    shard = layout.shards[0]
    slots = num_slots(config)
    memory = np.zeros(Store.size_bytes(shard, slots=slots, num_norms=0), np.uint8)
    store = Store(memory, shard, slots=slots, num_norms=0, key=bytes(32))
    store.format()
    random = np.random.default_rng(5)
    whole = Run(0, len(shard))
    values_in(layout, random, store.params(0, whole), dtype)
    store.words[:] = 0
    updater = Updater(layout, store, config, ScheduleConfig(), Plan(steps_per_epoch=2, total_steps=STEPS))
    ends = sorted(cuts | {block.run.stop for block in shard.blocks})
    runs = [Run(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    for step in range(STEPS):
        sums = np.zeros(shard.size_bytes, np.uint8)
        values_in(layout, random, sums, dtype)
        for run in reversed(runs) if step % 2 else runs:
            of_run = sums[shard.span_bytes(run)]
            updater.to_mean(step, run, of_run, 3.0)
            updater.write(step, run, of_run, 3.0)
            store.commit(step, run)
    return memory.tobytes()


def values_in(layout: Layout, random: np.random.Generator, memory: np.ndarray, dtype: str) -> None:
    """Fills the elements and leaves the gaps between them at zero."""
    shard = layout.shards[0]
    for at, size in zip(shard.local.tolist(), shard.num_bytes.tolist(), strict=True):
        part = memory[at : at + size].view(dtype)
        part[:] = random.standard_normal(len(part))


@cache
def updated_in_whole_blocks(name: str, dtype: str) -> bytes:
    return updated(CONFIGS[name], dtype, frozenset())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.frozensets(st.integers(1, len(layout_of("float32")) - 1)))
def test_any_grouping_of_chunks_into_runs_gives_the_same_bits(name: str, dtype: str, cuts: frozenset[int]) -> None:
    assert updated(CONFIGS[name], dtype, cuts) == updated_in_whole_blocks(name, dtype)


def test_bits_do_change_with_what_should_change_them() -> None:
    bits = [updated_in_whole_blocks(name, "float32") for name in CONFIGS]
    assert len(set(bits)) == len(bits)
