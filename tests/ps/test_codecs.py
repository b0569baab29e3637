import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.codecs import CASTS, Bytes, Chunk, Codec, Floats, Int8, Seed, TopK, format_of
from ps.errors import MalformedFrame
from ps.layout import Block, Rule, Run

CODECS: dict[str, Codec] = {**CASTS, "int8": Int8(), "topk": TopK(0.05)}
CHUNKS = [Chunk(3, 8192), Chunk(4, 100), Chunk(9, 1), Chunk(10, 2000)]
TOTAL = sum(chunk.count for chunk in CHUNKS)
SEED = Seed(seed=5, step=7, rank=2)

codecs = st.sampled_from(sorted(CODECS))
dtypes = st.sampled_from(["float32", "float64"])


def values_of(seed: int, dtype: str = "float32", magnitude: float = 0.0) -> Floats:
    """Normal numbers with zeros among them, times 10**magnitude."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(TOTAL) * 10.0**magnitude * (rng.random(TOTAL) < 0.9)
    return values.astype(dtype)


def read_only(payload: Bytes) -> Bytes:
    """As it comes from the wire."""
    return np.frombuffer(payload.tobytes(), np.uint8)


def pieces(values: Floats) -> list[Floats]:
    return np.split(values, np.cumsum([chunk.count for chunk in CHUNKS])[:-1])


@given(codecs, dtypes, st.integers(0, 99), st.floats(-6, 4))
@settings(max_examples=60, deadline=None)
def test_the_same_contribution_has_the_same_bytes_however_it_is_cut_into_runs(name: str, dtype: str, seed: int, magnitude: float) -> None:
    codec, values = CODECS[name], values_of(seed, dtype, magnitude)
    whole = codec.encode(values, CHUNKS, SEED)
    assert codec.encode(values.copy(), CHUNKS, SEED).tobytes() == whole.tobytes()
    records = [codec.encode(part, [chunk], SEED) for part, chunk in zip(pieces(values), CHUNKS, strict=True)]
    assert b"".join(record.tobytes() for record in records) == whole.tobytes()
    assert codec.sizes(whole, dtype, CHUNKS) == [len(record) for record in records]
    parts = [codec.decode(read_only(record), dtype, [chunk]) for record, chunk in zip(records, CHUNKS, strict=True)]
    assert np.concatenate(parts).tobytes() == codec.decode(read_only(whole), dtype, CHUNKS).tobytes()


@pytest.mark.parametrize("other", [Seed(seed=6, step=7, rank=2), Seed(seed=5, step=8, rank=2), Seed(seed=5, step=7, rank=3)])
def test_another_run_step_rank_or_chunk_rounds_otherwise(other: Seed) -> None:
    values, codec = values_of(0), Int8()
    assert codec.encode(values, CHUNKS, SEED).tobytes() != codec.encode(values, CHUNKS, other).tobytes()
    assert codec.encode(values[:8192], CHUNKS[:1], SEED).tobytes() != codec.encode(values[:8192], [Chunk(5, 8192)], SEED).tobytes()


@given(dtypes, st.integers(0, 99), st.floats(-6, 4))
@settings(max_examples=40, deadline=None)
def test_what_a_format_loses_is_bounded(dtype: str, seed: int, magnitude: float) -> None:
    values = values_of(seed, dtype, magnitude)
    size = np.abs(values)
    largest = np.concatenate([np.full(len(part), np.abs(part).max()) for part in pieces(values)])
    half = np.where(size > 65504, size - 65504, size * 2**-11 + 2**-25)
    bounds = {"fp32": 0 * size, "bf16": size * 2**-8, "fp16": half, "int8": largest / 127, "topk": size}
    for name, bound in bounds.items():
        decoded = CODECS[name].decode(CODECS[name].encode(values, CHUNKS, SEED), dtype, CHUNKS)
        assert decoded.dtype == dtype
        assert (np.abs(decoded - values) <= bound * 1.001).all(), name


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_arrives_as_one(name: str, bad: float) -> None:
    values = values_of(1)
    values[50] = bad
    assert not np.isfinite(CODECS[name].decode(CODECS[name].encode(values, CHUNKS, SEED), "float32", CHUNKS)[50])


def test_fp16_saturates_finite_numbers_only() -> None:
    values = np.array([65504.0, 65519.9, 65520.0, 1e30, -1e30, np.inf, -np.inf, 1.0], np.float32)
    decoded = CASTS["fp16"].decode(CASTS["fp16"].encode(values, [Chunk(0, 8)], SEED), "float32", [Chunk(0, 8)])
    assert decoded.tolist() == [65504, 65504, 65504, 65504, -65504, np.inf, -np.inf, 1]


def test_int8_is_right_on_average_and_keeps_extremes_zeros_and_tiny_numbers() -> None:
    chunk, values = Chunk(0, 4096), np.full(4096, 0.3, np.float32)
    values[:3] = [127.0, -127.0, 0.0]
    decoded = Int8().decode(Int8().encode(values, [chunk], SEED), "float32", [chunk])
    assert decoded[:3].tolist() == [127.0, -127.0, 0.0]
    assert abs(decoded[3:].mean() - 0.3) < 0.03
    for tiny in (0.0, 1e-44, 1e-38):
        same = np.full(10, tiny, np.float32)
        assert np.abs(Int8().decode(Int8().encode(same, [Chunk(0, 10)], SEED), "float32", [Chunk(0, 10)])).max() <= 2e-38


@pytest.mark.parametrize("values", [np.ones(8192), np.zeros(8192), np.arange(8192.0), (np.arange(8192) % 16 == 3) * 1.0])
def test_top_k_sends_at_most_twice_its_share(values: Floats) -> None:
    codec, chunk = TopK(0.01), Chunk(0, 8192)
    payload = codec.encode(values.astype(np.float32), [chunk], SEED)
    assert len(payload) <= 2 + 6 * 2 * 82
    sent = codec.decode(payload, "float32", [chunk])
    assert set(np.flatnonzero(sent)) <= set(np.flatnonzero(values))
    assert len(payload) > 2 or not values.any()


@given(codecs, dtypes, st.binary(max_size=400), st.lists(st.integers(1, 200), min_size=1, max_size=4))
@settings(deadline=None)
def test_bytes_of_anybody_decode_to_the_right_shape_or_are_malformed(name: str, dtype: str, payload: bytes, counts: list[int]) -> None:
    chunks = [Chunk(i, count) for i, count in enumerate(counts)]
    try:
        with np.errstate(all="ignore"):
            decoded = CODECS[name].decode(np.frombuffer(payload, np.uint8), dtype, chunks)
    except MalformedFrame:
        return
    assert decoded.shape == (sum(counts),) and decoded.dtype == dtype


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_payload_that_is_too_short_or_too_long_is_malformed(name: str) -> None:
    codec = CODECS[name]
    payload = codec.encode(values_of(2), CHUNKS, SEED)
    for wrong in (payload[:-1], np.append(payload, np.uint8(0)), payload[:0]):
        with pytest.raises(MalformedFrame):
            codec.decode(wrong, "float32", CHUNKS)


@pytest.mark.parametrize(
    ("places", "count"),
    [([1, 1], 2), ([2, 1], 2), ([1, 10], 2), ([1], 11)],
    ids=["twice", "descending", "outside", "more than there are"],
)
def test_top_k_refuses_places_that_a_sender_would_not_write(places: list[int], count: int) -> None:
    parts = [np.array([count], np.uint16), np.array(places, np.uint16), np.ones(len(places), np.float32)]
    payload = np.concatenate([part.view(np.uint8) for part in parts])
    with pytest.raises(MalformedFrame):
        TopK().decode(payload, "float32", [Chunk(0, 10)])


def test_a_length_is_refused_before_memory_is_taken_for_it() -> None:
    for codec in CODECS.values():
        with pytest.raises(MalformedFrame):
            codec.decode(np.ones(2, np.uint8), "float32", [Chunk(0, 1 << 50)])


def test_only_what_an_optimizer_updates_is_cast() -> None:
    assert format_of("bf16", Block(Run(0, 1), Rule.OPTIMIZER, "float32", 0, 0)) == "bf16"
    for rule, dtype in [(Rule.MEAN, "float32"), (Rule.SUM, "float64"), (Rule.EQUAL, "int64"), (Rule.OPTIMIZER, "int8")]:
        assert format_of("bf16", Block(Run(0, 1), rule, dtype, 0, 0)) == "fp32"
