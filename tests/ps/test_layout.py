import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.balance import PAGE, SERVERS, imbalance, page
from ps.layout import ALIGN_BYTES, CHUNK_ELEMENTS, DTYPES, KEPT_PIECES, Layout, Rule, Run, ShardLayout, TensorSpec
from workers.shapes import MODELS, bert_large, gpt2, resnet50

SHAPES = st.lists(st.integers(0, 90), max_size=3).map(tuple) | st.sampled_from([(8192,), (8193,), (64, 129), (3, 8192), (), (0, 4)])


@st.composite
def models(draw: st.DrawFn) -> list[TensorSpec]:
    specs = []
    for i, shape in enumerate(draw(st.lists(SHAPES, min_size=1, max_size=8))):
        rule = draw(st.sampled_from(Rule))
        dtype = draw(st.sampled_from(["float32", "float64"])) if rule is Rule.OPTIMIZER else draw(st.sampled_from(sorted(DTYPES)))
        specs.append(TensorSpec(name=f"t{i}", shape=shape, dtype=dtype, rule=rule, group=draw(st.integers(0, 1))))
    return specs


@given(models(), st.integers(1, 6))
def test_every_element_is_in_exactly_one_chunk_cut_at_multiples_of_64(specs: list[TensorSpec], num_servers: int) -> None:
    layout = Layout(specs, num_servers)
    for index, spec in enumerate(specs):
        chunks = np.flatnonzero(layout.chunk_tensor == index)
        sizes = layout.chunk_bytes[chunks] // DTYPES[spec.dtype]
        starts = layout.chunk_start[chunks]
        assert (starts % 64 == 0).all() and (sizes <= CHUNK_ELEMENTS).all() and (sizes > 0).all()
        assert [i for a, n in zip(starts, sizes, strict=True) for i in range(a, a + n)] == list(range(spec.num_elements))


@given(models(), st.integers(1, 6))
def test_every_chunk_is_on_exactly_one_shard_in_layout_order(specs: list[TensorSpec], num_servers: int) -> None:
    layout = Layout(specs, num_servers)
    assert sorted(c for shard in layout.shards for c in shard.chunks.tolist()) == list(range(len(layout)))
    assert all((np.diff(shard.chunks) > 0).all() for shard in layout.shards)


@given(models(), st.integers(2, 6))
def test_chunks_do_not_depend_on_the_number_of_servers(specs: list[TensorSpec], num_servers: int) -> None:
    one, many = Layout(specs, 1), Layout(specs, num_servers)
    for name in ("chunk_tensor", "chunk_start", "chunk_bytes", "chunk_flat", "tensor_flat"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    assert one.flat_bytes == many.flat_bytes


@given(models(), st.integers(1, 4))
def test_tensors_start_aligned_and_nothing_overlaps_in_either_memory(specs: list[TensorSpec], num_servers: int) -> None:
    layout = Layout(specs, num_servers)
    assert (layout.tensor_flat % ALIGN_BYTES == 0).all()
    taken = np.zeros(layout.flat_bytes, np.int64)
    for shard in layout.shards:
        local = np.zeros(shard.size_bytes, np.int64)
        for flat, at, size in zip(shard.flat.tolist(), shard.local.tolist(), shard.num_bytes.tolist(), strict=True):
            taken[flat : flat + size] += 1
            local[at : at + size] += 1
        assert local.max(initial=0) <= 1
    assert taken.max(initial=0) <= 1
    assert taken.sum() == sum(spec.num_bytes for spec in specs)


@given(models(), st.integers(1, 4), st.integers(1, 200_000))
def test_frames_cover_a_shard_in_order_within_blocks_and_bound(specs: list[TensorSpec], num_servers: int, frame_bytes: int) -> None:
    for shard in Layout(specs, num_servers).shards:
        runs = shard.frames(frame_bytes)
        assert [i for run in runs for i in range(run.first, run.stop)] == list(range(len(shard)))
        for run in runs:
            shard.block_of(run)
            assert len(run) == 1 or shard.payload_bytes(run) <= frame_bytes


@given(models(), st.integers(1, 4), st.data())
def test_pieces_cover_a_run_exactly_in_every_memory(specs: list[TensorSpec], num_servers: int, data: st.DataObject) -> None:
    layout = Layout(specs, num_servers)
    shard = data.draw(st.sampled_from(layout.shards))
    if not len(shard):
        return
    first = data.draw(st.integers(0, len(shard) - 1))
    run = Run(first, data.draw(st.integers(first + 1, len(shard))))
    payload, local, flat = [], [], []
    for piece in shard.pieces(run):
        payload += range(piece.payload, piece.payload + piece.num_bytes)
        local += range(piece.local, piece.local + piece.num_bytes)
        flat += range(piece.flat, piece.flat + piece.num_bytes)
    assert payload == list(range(shard.payload_bytes(run)))
    assert local == [b for i in range(first, run.stop) for b in range(shard.local[i], shard.local[i] + shard.num_bytes[i])]
    assert flat == [b for i in range(first, run.stop) for b in range(shard.flat[i], shard.flat[i] + shard.num_bytes[i])]


@given(models(), st.integers(1, 4))
def test_blocks_put_the_optimizers_chunks_first_and_frozen_ones_last(specs: list[TensorSpec], num_servers: int) -> None:
    layout = Layout(specs, num_servers)
    for shard in layout.shards:
        rules = [specs[t].rule for t in shard.tensor]
        assert rules == sorted(rules)
        assert shard.num_optimizer == rules.count(Rule.OPTIMIZER)
        assert shard.num_versioned == len(rules) - rules.count(Rule.FROZEN)
        assert [i for b in shard.blocks for i in range(b.run.first, b.run.stop)] == list(range(len(shard)))
        if shard.index:
            assert Rule.SUM not in rules


def test_a_run_across_blocks_is_refused() -> None:
    specs = [TensorSpec(name="w", shape=(4,), dtype="float32"), TensorSpec(name="b", shape=(4,), dtype="float32", rule=Rule.MEAN)]
    with pytest.raises(ValueError, match="not a run of one block"):
        Layout(specs, 1).shards[0].block_of(Run(0, 2))


def test_a_name_that_is_not_unique_is_refused() -> None:
    with pytest.raises(ValueError, match="not unique: w"):
        Layout([TensorSpec(name="w", shape=(4,), dtype="float32")] * 2, 1)


def test_a_dtype_that_is_not_served_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor w has dtype complex64"):
        TensorSpec(name="w", shape=(4,), dtype="complex64")


def test_more_servers_than_chunks_leave_the_last_ones_empty() -> None:
    shards = Layout([TensorSpec(name="w", shape=(9000,), dtype="float32")], 4).shards
    assert [len(shard) for shard in shards] == [1, 1, 0, 0]
    assert shards[3].frames(1 << 20) == [] and shards[3].size_bytes == 0


def test_frozen_tensors_are_dealt_evenly_and_do_not_count_as_traffic() -> None:
    specs = [TensorSpec(name="w", shape=(8, 8192), dtype="float32"), TensorSpec(name="f", shape=(80, 8192), dtype="float32", rule=Rule.FROZEN)]
    layout = Layout(specs, 4)
    assert layout.shard_bytes == (65536,) * 4
    assert {int(s.num_bytes.sum()) for s in layout.shards} == {22 * 32768}


@settings(max_examples=20)
@given(models(), st.integers(1, 4))
def test_the_digest_tells_models_and_dealings_apart(specs: list[TensorSpec], num_servers: int) -> None:
    renamed = [TensorSpec(name="other", shape=specs[0].shape, dtype=specs[0].dtype, rule=specs[0].rule), *specs[1:]]
    assert Layout(specs, num_servers).digest == Layout(list(specs), num_servers).digest
    assert len({Layout(s, n).digest for s in (specs, renamed) for n in (num_servers, num_servers + 1)}) == 4


@pytest.mark.parametrize("num_servers", SERVERS)
@pytest.mark.parametrize("model", MODELS)
def test_shards_of_well_known_models_are_balanced_by_bytes(model: str, num_servers: int) -> None:
    assert imbalance(model, num_servers) <= 1.02


def test_the_recorded_balance_is_true() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m benchmarks.balance"


def test_generated_shapes_have_the_published_numbers_of_parameters() -> None:
    counts = [sum(math.prod(shape) for shape in model().values()) for model in (resnet50, gpt2, bert_large)]
    assert counts == [25_557_032, 124_439_808, 335_141_888]
    sizes = {name: math.prod(shape) for name, shape in MODELS["one-embedding"]().items()}
    assert sizes["embedding.weight"] / sum(sizes.values()) == pytest.approx(0.9, abs=0.01)


def test_a_tensors_chunks_on_a_shard_follow_each_other() -> None:
    layout = Layout([TensorSpec(name="w", shape=(40, 8192), dtype="float32"), TensorSpec(name="v", shape=(40, 8192), dtype="float32")], 4)

    def parts(shard: ShardLayout) -> int:
        return len(shard.pieces(Run(0, len(shard))))

    assert [parts(shard) for shard in layout.shards] == [2, 2, 2, 2]


def test_what_is_kept_of_runs_that_members_choose_is_bounded() -> None:
    specs = [TensorSpec(name=f"t{i}", shape=(1,), dtype="float32") for i in range(1000)]
    shard = Layout(specs, 1).shards[0]
    kept = []
    for run in (Run(first, 1000 - last) for first in range(17) for last in range(17)):
        assert len(shard.pieces(run)) == len(run)
        kept.append(sum(map(len, shard._pieces.values())))
    assert KEPT_PIECES - 1000 < max(kept) <= KEPT_PIECES and kept[-1] < KEPT_PIECES // 2
    assert shard.pieces(Run(0, 1000)) is shard.pieces(Run(0, 1000))


def test_names_that_come_twice_are_found_among_many_in_a_moment() -> None:
    specs = [TensorSpec(name=f"t{i // 2}", shape=(1,), dtype="float32") for i in range(1 << 17)]
    with pytest.raises(ValueError, match="tensor names are not unique: t0"):
        Layout(specs, 1)
