"""The sum of contributions has the bits of adding them one after the other, whatever is lent and whoever leaves meanwhile."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.layout import CHUNK_ELEMENTS, Layout, Rule, Run, TensorSpec
from ps.pending import Part
from ps.reduction import Accumulators

SPECS = (
    TensorSpec(name="a", shape=(3 * CHUNK_ELEMENTS + 5,), dtype="float32", rule=Rule.OPTIMIZER),
    TensorSpec(name="b", shape=(7,), dtype="float32", rule=Rule.OPTIMIZER),
    TensorSpec(name="sums", shape=(4,), dtype="float64", rule=Rule.SUM),
)
LAYOUT = Layout(SPECS, 1)
SHARD = LAYOUT.shards[0]
RUNS = [part for block in SHARD.blocks for part in SHARD.split(block.run, 2 * 4 * CHUNK_ELEMENTS)]


def segment(rank: int) -> np.ndarray:
    """A flat layout of finite numbers."""
    memory = np.zeros(LAYOUT.flat_bytes, np.uint8)
    random = np.random.default_rng(rank)
    for spec, at in zip(SPECS, LAYOUT.tensor_flat.tolist(), strict=True):
        memory[at : at + spec.num_bytes].view(spec.dtype)[:] = random.standard_normal(spec.num_elements)
    return memory


def packed(memory: np.ndarray, run: Run) -> np.ndarray:
    return np.concatenate([memory[piece.flat : piece.flat + piece.num_bytes] for piece in SHARD.pieces(run)])


def one_by_one(run: Run, ranks: list[int], weights: list[float]) -> bytes:
    dtype = SHARD.block_of(run).dtype
    is_sum = SHARD.block_of(run).rule is Rule.SUM
    scaled = [packed(segment(rank), run).view(dtype) * np.dtype(dtype).type(1.0 if is_sum else weights[rank]) for rank in ranks]
    total = scaled[0]
    for part in scaled[1:]:
        total = total + part
    return total.tobytes()


def sums(accumulators: Accumulators, run: Run) -> bytes:
    """Without the alignment."""
    start = SHARD.span_bytes(run).start
    memory = accumulators.of(run)
    return b"".join(memory[piece.local - start : piece.local - start + piece.num_bytes].tobytes() for piece in SHARD.pieces(run))


@given(st.data())
def test_any_mix_of_contributions(data: st.DataObject) -> None:
    num_workers = data.draw(st.integers(1, 5))
    accumulators = Accumulators(SHARD, num_workers)
    for _ in range(2):  # steps: nothing of the first is left in the second
        ranks = sorted(data.draw(st.sets(st.integers(0, num_workers - 1), min_size=1)))
        weights = data.draw(st.lists(st.sampled_from([1.0, 1.0, 0.0, 3.0]), min_size=num_workers, max_size=num_workers))
        for rank in ranks:
            memory = segment(rank)
            for run in RUNS:
                flat = data.draw(st.booleans())
                part = Part(run, memory, is_flat=True) if flat else Part(run, packed(memory, run))
                accumulators.add(rank, part, weights[rank], is_first=rank == ranks[0])
            leaver = data.draw(st.none() | st.integers(0, rank))
            if leaver is not None:
                for block in SHARD.blocks:
                    accumulators.fold(block.run, leaver)
                if leaver == rank:
                    memory[:] = 255
        for run in RUNS:
            accumulators.fold(run)
            assert sums(accumulators, run) == one_by_one(run, ranks, weights)


def test_who_has_been_folded_is_not_read_any_more() -> None:
    accumulators = Accumulators(SHARD, 3)
    run = RUNS[0]
    memory = [segment(rank) for rank in range(3)]
    for rank in range(3):
        accumulators.add(rank, Part(run, memory[rank], is_flat=True), 1.0, is_first=rank == 0)
    assert accumulators.lenders(run) == [0, 1, 2]
    accumulators.fold(run, 1)
    assert accumulators.lenders(run) == [2]
    memory[0][:] = memory[1][:] = 255
    accumulators.fold(run)
    assert accumulators.lenders(run) == []
    assert sums(accumulators, run) == one_by_one(run, [0, 1, 2], [1.0] * 3)


@pytest.mark.parametrize("size", [1, 4 * CHUNK_ELEMENTS, 9 * CHUNK_ELEMENTS, 1 << 30])
def test_a_run_is_split_whole(size: int) -> None:
    run = Run(1, len(SHARD.chunks) - 1)
    parts = SHARD.split(run, size)
    assert [parts[0].first, parts[-1].stop] == [run.first, run.stop]
    assert all(one.stop == other.first for one, other in pairwise(parts))
    assert all(len(part) == 1 or SHARD.payload_bytes(part) <= size for part in parts)
    assert all(SHARD.payload_bytes(Run(one.first, one.stop + 1)) > size for one in parts[:-1])
