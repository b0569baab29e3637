import contextlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps import frame
from ps.contribution import Contribution, Encoder, KnownDigests
from ps.errors import MalformedFrame
from ps.frame import Bytes
from ps.layout import Layout, Rule, Run, TensorSpec

SPECS = [
    TensorSpec(name="w", shape=(3, 8192), dtype="float32"),
    TensorSpec(name="b", shape=(5,), dtype="float32"),
    TensorSpec(name="n", shape=(), dtype="int64", rule=Rule.EQUAL),
]
SHARD = Layout(SPECS, 1).shards[0]


def push(run: Run, seed: int = 0) -> tuple[pb.FrameHeader, Bytes]:
    payload = np.random.default_rng(seed).integers(0, 256, SHARD.payload_bytes(run), np.uint8)
    header = pb.FrameHeader(kind=pb.PUSH, step=3, first_chunk=run.first, num_chunks=len(run), dtype=SHARD.block_of(run).dtype, weight=2.0)
    header.digests.extend(frame.payload_digests(payload, SHARD, run))
    return header, payload


def checked(data: bytes) -> Run:
    header, payload = frame.decode(data)
    return frame.checked_run(header, payload, SHARD, with_payload=True)


@given(st.binary(max_size=300), st.integers(0, 2**40), st.lists(st.floats(allow_nan=False), max_size=5), st.text(max_size=20))
def test_a_frame_comes_back_as_it_was_sent_aligned_and_without_a_copy(payload: bytes, step: int, norms: list[float], detail: str) -> None:
    header = pb.FrameHeader(kind=pb.PUSH, step=step, norms=norms, detail=detail)
    parts = [np.frombuffer(payload[:7], np.uint8), np.frombuffer(payload[7:], np.uint8)]
    data = frame.encode(header, parts)
    found, bytes_found = frame.decode(data)
    assert found == header
    assert bytes_found.tobytes() == payload
    if payload:
        assert np.shares_memory(bytes_found, np.frombuffer(data, np.uint8))
        assert data.index(payload, len(data) - len(payload)) % frame.PAYLOAD_ALIGN == 0


@given(st.binary(max_size=300), st.integers(0, 2**40))
def test_the_generated_class_reads_a_frame_and_the_frame_reads_what_it_writes(payload: bytes, step: int) -> None:
    header = pb.FrameHeader(kind=pb.PARAMS, step=step, digests=[1, 2])
    message = pb.Frame.FromString(frame.encode(header, [np.frombuffer(payload, np.uint8)]))
    assert message.header == header and message.payload == payload and not any(message.padding)
    found, bytes_found = frame.decode(pb.Frame(header=header, payload=payload).SerializeToString())
    assert found == header and bytes_found.tobytes() == payload


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x0a" + tail))
@example(b"\x0a\x00\x7a\x00")
@example(b"\x0a\x00\x12\xff\xff\xff\xff\xff\xff\xff\x7f\x7a\x00")
@example(b"\x0a" + b"\xff" * 12)
@example(b"\x0a\x00\x12")
@example(b"\x0a\x02\x0a\xff")
def test_arbitrary_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        checked(data)


@given(st.data())
def test_a_mutated_frame_is_malformed_or_what_was_sent(data: st.DataObject) -> None:
    run = data.draw(st.sampled_from([Run(0, 1), Run(1, 4), Run(3, 4), Run(4, 5)]))
    header, payload = push(run)
    sent = bytearray(frame.encode(header, [payload]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(sent), 120) - 1) | st.integers(0, len(sent) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if how == "flip":
            sent[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del sent[at : at + data.draw(st.integers(1, 40))]
        else:
            sent[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        if not sent:
            break
    try:
        found, bytes_found = frame.decode(bytes(sent))
        taken = frame.checked_run(found, bytes_found, SHARD, with_payload=True)
    except MalformedFrame:
        return
    # the header carries no digest of its own, but bytes are never taken for chunks they do not belong to
    assert bytes_found.tobytes() == payload.tobytes() or SHARD.payload_bytes(taken) == len(bytes_found)
    assert list(found.digests) == frame.payload_digests(bytes_found, SHARD, taken)


def test_a_well_formed_frame_is_taken() -> None:
    header, payload = push(Run(1, 4))
    assert checked(frame.encode(header, [payload])) == Run(1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_chunk": 5}, r"names chunks 5\.\.7, shard 0 has 5"),
        ({"num_chunks": 0}, r"names chunks 1\.\.0"),
        ({"num_chunks": 2**32 - 1}, "shard 0 has 5"),
        ({"num_chunks": 4}, "not a run of one block"),
        ({"dtype": "float64"}, "has dtype 'float64', they are float32"),
        ({"dtype": ""}, "has dtype ''"),
        ({"num_chunks": 2}, r"brings 65556 bytes, they have 65536"),
        ({"first_chunk": 0}, "brings 65556 bytes, they have 98304"),
        ({"digests": [1, 2]}, "of 3 chunks brings 2 digests"),
        ({"digests": [1, 2, 3]}, "chunk 1 of shard 0: digest 0000000000000001 was sent"),
    ],
)
def test_every_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    header, payload = push(Run(1, 4))
    for name, value in change.items():
        header.ClearField(name)  # type: ignore[arg-type]
        header.MergeFrom(pb.FrameHeader(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(MalformedFrame, match=message):
        checked(frame.encode(header, [payload]))


@pytest.mark.parametrize("num_bytes", [0, 65555, 65557])
def test_a_payload_of_the_wrong_length_is_named(num_bytes: int) -> None:
    header, payload = push(Run(1, 4))
    with pytest.raises(MalformedFrame, match=rf"brings {num_bytes} bytes, they have 65556"):
        checked(frame.encode(header, [np.resize(payload, num_bytes)]))


@pytest.mark.parametrize("field", [{"dtype": "float32"}, {"digests": [1]}])
def test_an_absent_frame_with_traces_of_a_payload_is_refused(field: dict[str, object]) -> None:
    header = pb.FrameHeader(kind=pb.ABSENT, num_chunks=1, **field)  # type: ignore[arg-type]
    with pytest.raises(MalformedFrame, match="ABSENT brings a payload"):
        frame.checked_run(header, np.empty(0, np.uint8), SHARD, with_payload=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin with a header"),
        (b"\x7a\x01a", "does not begin with a header"),
        (b"\x0a\xff\xff\xff\x7f", "announces a header of 268435455 bytes"),
        (b"\x0a\x05ab", "announces a header of 5 bytes"),
        (b"\x0a\x01\x08", "cannot be parsed"),
        (b"\x0a\x00\x1a\x00", "something other than a payload"),
        (b"\x0a\x00\x7a\x05ab", "announces a payload of 5 bytes and brings 2"),
        (b"\x0a\x00\x7a\x01ab", "announces a payload of 1 bytes and brings 2"),
        (b"\x0a\x80", "ends within a length"),
    ],
)
def test_what_is_wrong_with_the_bytes_is_named(data: bytes, message: str) -> None:
    with pytest.raises(MalformedFrame, match=message):
        frame.decode(data)


def test_chunks_land_where_they_belong_in_both_memories() -> None:
    layout = Layout(SPECS, 2)
    source = np.arange(layout.flat_bytes, dtype=np.uint64).astype(np.uint8)
    flat = np.zeros_like(source)
    for shard in layout.shards:
        local = np.zeros(shard.size_bytes, np.uint8)
        for run in shard.frames(40_000):
            payload = np.concatenate(frame.payload_parts(source, shard, run, flat=True))
            assert frame.payload_digests(payload, shard, run) == frame.chunk_digests(source, shard, run, flat=True)
            frame.land(payload, local, shard, run, flat=False)
            assert frame.chunk_digests(local, shard, run, flat=False) == frame.chunk_digests(source, shard, run, flat=True)
            frame.land(np.concatenate(frame.payload_parts(local, shard, run, flat=False)), flat, shard, run, flat=True)
    for spec, at in zip(SPECS, layout.tensor_flat.tolist(), strict=True):
        np.testing.assert_array_equal(flat[at : at + spec.num_bytes], source[at : at + spec.num_bytes])


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=20), st.booleans())
def test_receipts_come_back_before_the_frame_they_went_with_which_stays_aligned(sequences: list[int], alone: bool) -> None:
    receipts = [pb.FrameHeader(kind=pb.RECEIPT, sequence=sequence, clock_s=0.5) for sequence in sequences]
    data = b"" if alone else frame.encode(*push_of_one_chunk())
    message = frame.with_receipts([receipt.SerializeToString() for receipt in receipts], data)
    found, at = frame.receipts_of(message)
    assert found == receipts and message[at:] == data and at % frame.PAYLOAD_ALIGN == 0
    assert list(pb.Frame.FromString(message).receipts) == receipts
    if not alone:
        assert pb.Frame.FromString(message).payload == frame.decode(message, at)[1].tobytes() == push_of_one_chunk()[1][0].tobytes()


def push_of_one_chunk() -> tuple[pb.FrameHeader, list[Bytes]]:
    header, payload = push(Run(0, 1))
    return header, [payload]


@given(st.integers(0, 60))
def test_receipts_that_end_too_soon_are_malformed(length: int) -> None:
    receipts = [pb.FrameHeader(kind=pb.RECEIPT, sequence=i, clock_s=1.0).SerializeToString() for i in (1, 2, 3)]
    with contextlib.suppress(MalformedFrame):
        found, at = frame.receipts_of(frame.with_receipts(receipts, b"")[:length])
        assert len(found) <= 3 and at >= 0


def test_a_frame_without_receipts_has_none() -> None:
    assert frame.receipts_of(frame.encode(*push_of_one_chunk())) == ([], 0)


def test_known_digests_are_taken_and_others_are_made() -> None:
    layout = Layout(SPECS, 1)
    memory = np.random.default_rng(0).integers(0, 256, layout.flat_bytes, np.uint8)
    known = KnownDigests(layout)
    contribution = Contribution(3, 2.0, memory, np.ones(len(SPECS), np.bool_), known)
    tensors = {spec.name: i for i, spec in enumerate(SPECS)}
    runs = [Run(i, i + 1) for i in range(len(SHARD))]
    of_w = [run for run in runs if SHARD.tensor[run.first] == tensors["w"]]
    assert len(of_w) == 3
    known.keep(tensors["w"], [7, 8, 9])

    def digests(run: Run, *, shared: bool = False) -> list[int]:
        data = Encoder(SHARD, "fp32").encode(pb.Member(), pb.PUSH, run, contribution, 1, shared=shared).data
        return list(frame.decode(data)[0].digests)

    for run in runs:
        assert digests(run) == ([7 + of_w.index(run)] if run in of_w else frame.chunk_digests(memory, SHARD, run, flat=True))
    across = Run(of_w[-1].first, of_w[-1].stop + 1)
    assert digests(across) == frame.chunk_digests(memory, SHARD, across, flat=True), "of one tensor they are not known"
    assert digests(across, shared=True) == [], "made only if it comes again, by the server"
    known.forget(tensors["w"])
    assert digests(of_w[0]) == frame.chunk_digests(memory, SHARD, of_w[0], flat=True)
