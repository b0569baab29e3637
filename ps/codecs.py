"""How elements travel: wire formats for runs of chunks.

Pure. A chunk's encoded bytes depend on its values and on (seed, step, rank, chunk) only, so that slicing into runs
changes no bit and a repeated push brings the same bytes. A run's payload is its chunks' records, one after the other.
Whatever comes from the wire is checked before memory is taken for it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ps.comm import CAST_BYTES, CommConfig
from ps.errors import MalformedFrame
from ps.layout import CHUNK_ELEMENTS, DTYPES, Block, Rule

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[Any]
"""One-dimensional, float32 or float64."""


@dataclass(frozen=True)
class Chunk:
    """What a codec must know of a chunk."""

    id: int
    """Number in the whole layout, the same for every number of servers."""
    count: int
    """Elements."""


@dataclass(frozen=True)
class Seed:
    """Who rounds what: seeds stochastic rounding together with the chunk's number."""

    seed: int = 0
    """`train.seed`."""
    step: int = 0
    rank: int = 0


class Codec(ABC):
    """One wire format."""

    lossless: bool = False
    """Whether decoded values are the input, bit for bit."""

    @abstractmethod
    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        """The payload of a run of chunks whose elements are `values`; may be a view of them."""

    @abstractmethod
    def sizes(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> list[int]:
        """Bytes of every chunk's record. Raises MalformedFrame unless they are the payload's."""

    @abstractmethod
    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats: ...

    def decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        """The run's elements; may be a read-only view of the payload. Raises MalformedFrame."""
        self.sizes(payload, dtype, chunks)
        return self._decode(payload, dtype, chunks)


class _Cast(Codec):
    """Stateless casts: a fixed number of bytes per element."""

    @abstractmethod
    def itemsize(self, dtype: str) -> int:
        """Bytes of an encoded element."""

    def sizes(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> list[int]:
        return _expect(payload, [chunk.count * self.itemsize(dtype) for chunk in chunks])


class Identity(_Cast):
    """The elements as they are."""

    lossless = True

    def itemsize(self, dtype: str) -> int:
        return np.dtype(dtype).itemsize

    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        return values.view(np.uint8)

    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        return payload.view(dtype)


class BFloat16(_Cast):
    """The upper half of a float32, rounded to nearest even."""

    def itemsize(self, dtype: str) -> int:
        return CAST_BYTES

    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        return _halves(values, torch.bfloat16).view(np.uint8)

    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        wide = np.left_shift(payload.view(np.uint16), 16, dtype=np.uint32)
        return wide.view(np.float32).astype(dtype, copy=False)


class Float16(_Cast):
    """IEEE half precision; finite values beyond its range become its largest, infinities stay."""

    def itemsize(self, dtype: str) -> int:
        return CAST_BYTES

    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        halves = _halves(values, torch.float16)
        beyond = (halves & 0x7FFF) == _INFINITE_HALF
        if beyond.any():
            beyond &= np.isfinite(values)
            halves[beyond] -= 1  # the largest finite half precedes infinity, on both sides of zero
        return halves.view(np.uint8)

    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        return payload.view(np.float16).astype(dtype)


class Int8(Codec):
    """A scale of the element's type, then one signed byte per element, rounded up or down at random.

    scale = max |x| / 127, q = floor(x / scale + u) with u uniform in [0, 1): E[q * scale] = x. A chunk with a
    non-finite element decodes to NaN throughout.
    """

    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        records: list[Bytes] = []
        for chunk, part in _parts(values, chunks):
            scale, quantised = self._quantise(part, chunk, seed)
            records += [scale, quantised]
        return _joined(records)

    def _quantise(self, part: Floats, chunk: Chunk, seed: Seed) -> tuple[Bytes, Bytes]:
        largest = max(abs(part.min()), abs(part.max())) if len(part) else part.dtype.type(0)
        scale = np.array([largest / part.dtype.type(127)], part.dtype)
        if not np.isfinite(largest) or scale[0] < np.finfo(part.dtype).tiny:
            scale[0] = part.dtype.type(0) if np.isfinite(largest) else np.nan
            return scale.view(np.uint8), np.zeros(len(part), np.uint8)
        scaled = part / scale[0]
        scaled += _uniform(chunk, seed).astype(part.dtype)
        np.floor(scaled, out=scaled)
        np.clip(scaled, -127, 127, out=scaled)
        return scale.view(np.uint8), scaled.astype(np.int8).view(np.uint8)

    def sizes(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> list[int]:
        return _expect(payload, [np.dtype(dtype).itemsize + chunk.count for chunk in chunks])

    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        out = np.empty(sum(chunk.count for chunk in chunks), dtype)
        head, at = np.dtype(dtype).itemsize, 0
        for chunk, part in _parts(out, chunks):
            body = at + head
            np.multiply(payload[body : body + chunk.count].view(np.int8), payload[at:body].view(dtype)[0], out=part)
            at = body + chunk.count
        return out


@dataclass(frozen=True)
class TopK(Codec):
    """The largest elements of every chunk: how many (2 bytes), their places (2 bytes each, ascending), their values.

    The threshold is taken from every 16th element, so that about `fraction` of the chunk is sent, never more than twice that.
    """

    fraction: float = 0.01
    """Of the elements, 0 < fraction <= 1. Decoding does not need it."""

    def encode(self, values: Floats, chunks: Sequence[Chunk], seed: Seed) -> Bytes:
        records: list[Bytes] = []
        for _, part in _parts(values, chunks):
            places = self._largest(part)
            records += [np.array([len(places)], np.uint16).view(np.uint8), places.view(np.uint8), part[places].view(np.uint8)]
        return _joined(records)

    def _largest(self, part: Floats) -> npt.NDArray[np.uint16]:
        size = np.abs(part)
        size[np.isnan(size)] = np.inf  # what is not finite must reach the server
        wanted = max(1, math.ceil(self.fraction * len(part)))
        threshold = _nth_largest(size[::_STRIDE] if len(part) > 64 * _STRIDE else size, self.fraction)
        places = np.flatnonzero((size >= threshold) & (size > 0))
        if len(places) > (limit := 2 * wanted):
            kept = size[places]
            exact = np.partition(kept, len(kept) - limit)[len(kept) - limit]
            above, equal = np.flatnonzero(kept > exact), np.flatnonzero(kept == exact)
            places = places[np.sort(np.concatenate([above, equal[: limit - len(above)]]))]
        return places.astype(np.uint16)

    def sizes(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> list[int]:
        sizes: list[int] = []
        at = 0
        for chunk in chunks:
            if at + 2 > len(payload):
                raise MalformedFrame(f"payload of {len(payload)} bytes ends before chunk {chunk.id}")
            count = int(payload[at : at + 2].view(np.uint16)[0])
            sizes.append(2 + count * (2 + np.dtype(dtype).itemsize))
            at += sizes[-1]
        return _expect(payload, sizes)

    def _decode(self, payload: Bytes, dtype: str, chunks: Sequence[Chunk]) -> Floats:
        out = np.zeros(sum(chunk.count for chunk in chunks), dtype)
        at = 0
        for chunk, part in _parts(out, chunks):
            count = int(payload[at : at + 2].view(np.uint16)[0])
            middle, end = at + 2 + 2 * count, at + 2 + count * (2 + part.itemsize)
            places = payload[at + 2 : middle].view(np.uint16)
            if count and (places[-1] >= chunk.count or (places[1:] <= places[:-1]).any()):
                raise MalformedFrame(f"places in chunk {chunk.id} of {chunk.count} elements do not ascend inside of it")
            part[places] = payload[middle:end].view(dtype)
            at = end
        return out


CASTS: dict[str, Codec] = {"fp32": Identity(), "bf16": BFloat16(), "fp16": Float16()}
"""The stateless formats by their names in the config file; "fp32" is the parameters' own type."""
CODECS: dict[str, Codec] = {**CASTS, "int8": Int8(), "topk": TopK()}
"""All formats, for decoding."""


def is_lossy(name: str) -> bool:
    """Whether the format needs error feedback: a cast's rounding is not worth it."""
    return name not in CASTS


def lossy_codec(name: str, topk_fraction: float) -> Codec:
    """For encoding in a lossy format."""
    return TopK(topk_fraction) if name == "topk" else CODECS[name]


def format_of(configured: str, block: Block) -> str:
    """How a block's chunks travel where `configured` is asked for: only what an optimizer updates is cast."""
    return configured if block.rule is Rule.OPTIMIZER and block.dtype in ("float32", "float64") else "fp32"


def wire_bytes(num_bytes: float, dtype: str, wire_format: str, comm: CommConfig) -> float:
    """Payload of `num_bytes` exact bytes as they travel."""
    elements = num_bytes / DTYPES[dtype]
    if wire_format in ("bf16", "fp16"):
        return CAST_BYTES * elements
    if wire_format == "int8":
        return elements * (1 + DTYPES[dtype] / CHUNK_ELEMENTS)
    if wire_format == "topk":
        return elements * (comm.topk_fraction * (2 + DTYPES[dtype]) + 2 / CHUNK_ELEMENTS)
    return num_bytes


_INFINITE_HALF = 0x7C00
_STRIDE = 16
"""Top-k looks at one element of so many for its threshold."""


def _halves(values: Floats, to: torch.dtype) -> npt.NDArray[np.uint16]:
    source = values if values.flags.writeable else values.copy()
    halves: npt.NDArray[np.uint16] = torch.from_numpy(source).to(to).view(torch.int16).numpy().view(np.uint16)
    return halves


def _parts(values: Floats, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Floats]]:
    at = 0
    for chunk in chunks:
        yield chunk, values[at : at + chunk.count]
        at += chunk.count


def _joined(records: Sequence[Bytes]) -> Bytes:
    return np.concatenate(records) if records else np.empty(0, np.uint8)


def _expect(payload: Bytes, sizes: list[int]) -> list[int]:
    if sum(sizes) != len(payload):
        raise MalformedFrame(f"{len(sizes)} chunks bring {len(payload)} bytes, they take {sum(sizes)}")
    return sizes


def _uniform(chunk: Chunk, seed: Seed) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) in steps of 2**-16, one per element: Philox (Salmon et al., SC'11) keyed and counted by who asks."""
    generator = np.random.Philox(key=np.array([seed.seed, seed.rank], np.uint64), counter=np.array([0, chunk.id, seed.step, 0], np.uint64))
    raw = generator.random_raw(-(-chunk.count // 4)).view(np.uint16)[: chunk.count]
    return np.multiply(raw, np.float32(2**-16), dtype=np.float32)


def _nth_largest(sample: Floats, fraction: float) -> Any:
    """The value that about `fraction` of the sample reaches."""
    at = len(sample) - max(1, math.ceil(fraction * len(sample)))
    return np.partition(sample, at)[at]
