"""The bytes of a frame: a small header and the raw little-endian elements of a run of chunks.

A frame is a valid `pserver.Frame` message: field 1 the serialized header, field 15 the payload, last.
Header and payload are joined and parted here by hand, so that no tensor passes through a protobuf object.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import xxhash
from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps.codecs import CASTS, CODECS, Chunk, Seed, format_of
from ps.comm import CAST_BYTES, EXACT
from ps.errors import MalformedFrame
from ps.layout import CHUNK_ELEMENTS, DTYPES, Run, ShardLayout

Bytes = npt.NDArray[np.uint8]
"""Raw bytes, one-dimensional."""

_HEADER_TAG = b"\x0a"  # field 1, length-delimited
_RECEIPT_TAG = b"\x1a"  # field 3, length-delimited
_PAYLOAD_TAG = b"\x7a"  # field 15, length-delimited
_PADDING_TAG = b"\x12"  # field 2, length-delimited
PAYLOAD_ALIGN = 16
"""The payload begins at a multiple of it, as bytes objects do: unaligned arrays are slow to add."""
MAX_RUN_BYTES = 16 << 20
"""Of a run's elements in their own type: a frame of a few bytes must not decode to the whole shard."""
MAX_HEADER_BYTES = 4 << 20
"""Longest header accepted: the norms of 500,000 chunks."""


def encode(header: pb.FrameHeader, payload: Iterable[Bytes] = ()) -> bytes:
    """The frame's bytes; the payload's parts are copied once."""
    parts = [part.data for part in payload]
    head = header.SerializeToString()
    front = b"".join([_HEADER_TAG, _varint(len(head)), head])
    size = sum(part.nbytes for part in parts)
    if not size:
        return front
    lead = _PAYLOAD_TAG + _varint(size)
    padding = -(len(front) + 2 + len(lead)) % PAYLOAD_ALIGN
    return b"".join([front, _PADDING_TAG, bytes([padding]), bytes(padding), lead, *parts])


def encode_run(
    header: pb.FrameHeader, memory: Bytes, layout: ShardLayout, run: Run, *, flat: bool, wire: str = EXACT, digests: Sequence[int] | None = None
) -> bytes:
    """The frame of a run whose elements lie in `memory`; `wire` is the format configured for the direction. `digests`: of its chunks as they lie
    there, if they are known.
    """
    block = layout.block_of(run)
    header.dtype = block.dtype
    parts = payload_parts(memory, layout, run, flat=flat)
    if (name := format_of(wire, block)) == EXACT:
        header.digests.extend(digests or chunk_digests(memory, layout, run, flat=flat))
        return encode(header, parts)
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return encode_coded(header, CASTS[name].encode(values.view(block.dtype), chunks_of(layout, run), Seed()), layout, run, name)


def encode_coded(header: pb.FrameHeader, payload: Bytes, layout: ShardLayout, run: Run, name: str) -> bytes:
    """The frame of a run whose payload is in the format `name` already."""
    header.dtype, header.format = layout.block_of(run).dtype, name
    header.digests.extend(_digests(payload, CODECS[name].sizes(payload, header.dtype, chunks_of(layout, run))))
    return encode(header, [payload])


def with_receipts(receipts: Sequence[bytes], data: bytes) -> bytes:
    """A message of receipts, as serialized headers, and a frame or b""."""
    parts = [part for receipt in receipts for part in (_RECEIPT_TAG, _varint(len(receipt)), receipt)]
    padding = -(sum(map(len, parts)) + 2) % PAYLOAD_ALIGN
    return b"".join([*parts, _PADDING_TAG, bytes([padding]), bytes(padding), data])


def receipts_of(data: bytes) -> tuple[list[pb.FrameHeader], int]:
    """Receipts that a message begins with, and where its frame begins; at its end, if it has none. Raises MalformedFrame."""
    receipts, at = [], 0
    while data[at : at + 1] == _RECEIPT_TAG:
        receipt, at = _header(data, at + 1)
        receipts.append(receipt)
    return receipts, _skip_padding(data, at) if receipts else 0


def decode(data: bytes, at: int = 0) -> tuple[pb.FrameHeader, Bytes]:
    """Header and payload of the frame that begins there; the payload is a read-only view of `data`. Raises MalformedFrame."""
    if data[at : at + 1] != _HEADER_TAG:
        raise MalformedFrame("frame does not begin with a header: is the sender's version of pserver the same?")
    header, at = _header(data, at + 1)
    if at == len(data):
        return header, np.empty(0, np.uint8)
    at = _skip_padding(data, at)
    if data[at : at + 1] != _PAYLOAD_TAG:
        raise MalformedFrame("frame has something other than a payload after its header")
    size, at = _read_varint(data, at + 1)
    if at + size != len(data):
        raise MalformedFrame(f"frame announces a payload of {size} bytes and brings {len(data) - at}")
    return header, np.frombuffer(data, np.uint8, offset=at)


def _header(data: bytes, at: int) -> tuple[pb.FrameHeader, int]:
    """The header whose length is written at `at`, and where it ends."""
    size, at = _read_varint(data, at)
    if size > MAX_HEADER_BYTES or at + size > len(data):
        raise MalformedFrame(f"frame of {len(data)} bytes announces a header of {size} bytes")
    header = pb.FrameHeader()
    try:
        header.ParseFromString(data[at : at + size])
    except DecodeError as error:
        raise MalformedFrame(f"frame header cannot be parsed: {error}") from error
    return header, at + size


def _skip_padding(data: bytes, at: int) -> int:
    if data[at : at + 1] != _PADDING_TAG:
        return at
    padding, at = _read_varint(data, at + 1)
    if at + padding > len(data):
        raise MalformedFrame(f"frame of {len(data)} bytes announces {padding} bytes of padding")
    return at + padding


def payload_parts(memory: Bytes, layout: ShardLayout, run: Run, *, flat: bool) -> list[Bytes]:
    """The run's contiguous pieces of `memory`, which holds the flat layout or the shard's own."""
    return [memory[(at := piece.flat if flat else piece.local) : at + piece.num_bytes] for piece in layout.pieces(run)]


def payload_bytes(layout: ShardLayout, run: Run, wire: str) -> int:
    """Payload of the run's frame where the cast `wire` is configured."""
    block = layout.block_of(run)
    size = layout.payload_bytes(run)
    return size if format_of(wire, block) == EXACT else size // DTYPES[block.dtype] * CAST_BYTES


def land(payload: Bytes, memory: Bytes, layout: ShardLayout, run: Run, *, flat: bool) -> None:
    """Copies a run's payload to its place in `memory`."""
    for piece in layout.pieces(run):
        at = piece.flat if flat else piece.local
        memory[at : at + piece.num_bytes] = payload[piece.payload : piece.payload + piece.num_bytes]


def chunk_digests(memory: Bytes, layout: ShardLayout, run: Run, *, flat: bool) -> list[int]:
    """xxh3-64 of every chunk of the run as it lies in `memory`."""
    starts = (layout.flat if flat else layout.local)[run.span]
    ends = starts + layout.num_bytes[run.span]
    digest, view = xxhash.xxh3_64_intdigest, memory.data
    return [digest(view[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def tensor_digests(memory: Bytes, dtype: str) -> list[int]:
    """xxh3-64 of every chunk of one tensor, whose bytes these are."""
    size = CHUNK_ELEMENTS * DTYPES[dtype]
    return [xxhash.xxh3_64_intdigest(memory.data[at : at + size]) for at in range(0, len(memory), size)]


def payload_digests(payload: Bytes, layout: ShardLayout, run: Run) -> list[int]:
    """xxh3-64 of every chunk of an exact payload."""
    return _digests(payload, layout.num_bytes[run.span].tolist())


def _digests(payload: Bytes, sizes: Sequence[int]) -> list[int]:
    ends = list(accumulate(sizes))
    digest, view = xxhash.xxh3_64_intdigest, payload.data
    return [digest(view[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def chunks_of(layout: ShardLayout, run: Run) -> list[Chunk]:
    """The run's chunks as codecs know them."""
    size = DTYPES[layout.block_of(run).dtype]
    return [Chunk(id, count // size) for id, count in zip(layout.chunks[run.span].tolist(), layout.num_bytes[run.span].tolist(), strict=True)]


def exact_payload(header: pb.FrameHeader, payload: Bytes, layout: ShardLayout, run: Run) -> Bytes:
    """The run's elements in their own type, from a checked frame's payload, which it may be."""
    if not header.format:
        return payload
    values: Bytes = CODECS[header.format].decode(payload, header.dtype, chunks_of(layout, run)).view(np.uint8)
    return values


def checked_run(
    header: pb.FrameHeader, payload: Bytes, layout: ShardLayout, *, with_payload: bool, wire: str = EXACT, may_share: bool = False
) -> Run:
    """The run a frame speaks of, after its range, dtype, format, length and digests have been checked. Raises MalformedFrame.

    `wire` is the format configured for the direction. `may_share`: the payload may lie in a segment, without digests.
    """
    run = Run(header.first_chunk, header.first_chunk + header.num_chunks)
    if not run.first < run.stop <= len(layout):
        raise MalformedFrame(f"frame names chunks {run.first}..{run.stop - 1}, shard {layout.index} has {len(layout)}")
    try:
        block = layout.block_of(run)
    except ValueError as error:
        raise MalformedFrame(str(error)) from error
    if not with_payload:
        if len(payload) or header.digests or header.dtype or header.format:
            raise MalformedFrame(f"frame of kind {pb.Kind.Name(header.kind)} brings a payload")
        return run
    if header.dtype != block.dtype:
        raise MalformedFrame(f"frame of chunks {run.first}..{run.stop - 1} has dtype {header.dtype!r}, they are {block.dtype}")
    sizes = [] if header.shared else _payload_sizes(header, payload, layout, run, wire)
    if len(header.digests) != (0 if header.shared else len(run)):
        raise MalformedFrame(f"frame of {len(run)} chunks brings {len(header.digests)} digests")
    if header.shared:
        if not may_share or len(payload) or header.format:
            raise MalformedFrame(f"frame of kind {pb.Kind.Name(header.kind)} says that its payload is shared, and may not")
        return run
    found = _digests(payload, sizes)
    if found != header.digests:
        raise _damaged(header, run, layout, found)
    return run


def _damaged(header: pb.FrameHeader, run: Run, layout: ShardLayout, found: list[int]) -> MalformedFrame:
    chunk, sent, arrived = next((run.first + i, a, b) for i, (a, b) in enumerate(zip(header.digests, found, strict=True)) if a != b)
    return MalformedFrame(f"chunk {chunk} of shard {layout.index}: digest {sent:016x} was sent, {arrived:016x} arrived")


def _payload_sizes(header: pb.FrameHeader, payload: Bytes, layout: ShardLayout, run: Run, wire: str) -> list[int]:
    """Bytes of every chunk as it travels, after format and length have been checked. Raises MalformedFrame."""
    name = format_of(wire, layout.block_of(run))
    if header.format != ("" if name == EXACT else name):
        raise MalformedFrame(f"frame of chunks {run.first}..{run.stop - 1} has format {header.format or EXACT!r}, the run's is {name!r}")
    if name != EXACT:
        if layout.payload_bytes(run) > MAX_RUN_BYTES:
            raise MalformedFrame(f"frame of chunks {run.first}..{run.stop - 1} decodes to {layout.payload_bytes(run)} bytes, at most {MAX_RUN_BYTES}")
        return CODECS[name].sizes(payload, header.dtype, chunks_of(layout, run))
    if len(payload) != layout.payload_bytes(run):
        raise MalformedFrame(f"frame of chunks {run.first}..{run.stop - 1} brings {len(payload)} bytes, they have {layout.payload_bytes(run)}")
    sizes: list[int] = layout.num_bytes[run.span].tolist()
    return sizes


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 63:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise MalformedFrame("frame ends within a length")
