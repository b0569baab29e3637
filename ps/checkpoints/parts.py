"""One file of a checkpoint: safetensors whose header is known to the byte before the file is opened.

The elements of all chunks lie one after the other without gaps, in the shard's order: first the values, then every tensor of
optimizer state, then the numbers of updates. So a part of any number of servers can be read chunk by chunk.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from ps.errors import CheckpointDamaged
from ps.frame import Bytes
from ps.layout import DTYPES, IntArray, Layout, Rule, ShardLayout

Digests = npt.NDArray[np.uint64]

FORMAT = 1
"""Grows when older versions of pserver could not read the files any more."""
_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
_LONGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One array of a part."""

    name: str
    dtype: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPES[self.dtype]


@dataclass(frozen=True)
class PartShape:
    """What a part holds, in order; `label` says whose it is."""

    label: str
    entries: tuple[Entry, ...]

    @property
    def data_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)

    def header(self, version: int) -> bytes:
        """All of the file that comes before the data."""
        about = {"pserver_format": str(FORMAT), "part": self.label, "version": str(version)}
        tensors: dict[str, object] = {"__metadata__": about}
        at = 0
        for entry in self.entries:
            tensors[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": [entry.num_elements], "data_offsets": [at, at + entry.num_bytes]}
            at += entry.num_bytes
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def shard_shape(layout: Layout, shard: int, slots: int) -> PartShape:
    """Of the part of one server, whose optimizer keeps `slots` tensors per parameter."""
    mine = layout.shards[shard]
    pieces = list(_pieces(layout, mine))
    entries = [Entry(f"params/{name}", dtype, count) for name, dtype, _, count in pieces]
    for slot in range(slots):
        entries += [Entry(f"state.{slot}/{name}", dtype, count) for name, dtype, rule, count in pieces if rule is Rule.OPTIMIZER]
    entries.append(Entry("updates", "int64", mine.num_optimizer))
    return PartShape(f"shard {shard} of {layout.num_servers}", tuple(entries))


def rank_shape(layout: Layout, rank: int, num_workers: int) -> PartShape:
    """Of the part of one worker: what its push format has yet to send."""
    specs = [layout.specs[i] for i in layout.order if layout.specs[i].rule is Rule.OPTIMIZER]
    return PartShape(f"rank {rank} of {num_workers}", tuple(Entry(f"residual/{s.name}", s.dtype, s.num_elements) for s in specs))


def _pieces(layout: Layout, mine: ShardLayout) -> Iterator[tuple[str, str, Rule, int]]:
    """Name, dtype, rule and number of elements of what the shard has of every tensor, in its order."""
    bounds = [0, *(np.flatnonzero(mine.tensor[1:] != mine.tensor[:-1]) + 1).tolist(), len(mine)] if len(mine) else []
    for first, stop in pairwise(bounds):
        spec = layout.specs[int(mine.tensor[first])]
        yield spec.name, spec.dtype, spec.rule, int(mine.num_bytes[first:stop].sum()) // DTYPES[spec.dtype]


def open_part(path: Path, shape: PartShape, version: int) -> Bytes:
    """The data of a part, mapped for reading. Raises CheckpointDamaged that names the file and what is wrong with it."""
    header = shape.header(version)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            file.seek(0)
            found = file.read(8 + min(length, _LONGEST_HEADER))
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror or error}") from error
    if found != header:
        raise CheckpointDamaged(f"{path} {_difference(found, shape, version)}")
    if size != len(header) + shape.data_bytes:
        raise CheckpointDamaged(f"{path} has {size} bytes, not {len(header) + shape.data_bytes}: it is cut short or overwritten")
    if not shape.data_bytes:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r", offset=len(header))


def _difference(found: bytes, shape: PartShape, version: int) -> str:
    """Continues a sentence about a file whose header is not the expected one."""
    try:
        about = json.loads(found[8:])["__metadata__"]
        format, part, its = int(about["pserver_format"]), str(about["part"])[:80], int(about["version"])
    except (ValueError, KeyError, TypeError):
        return "is no part of a checkpoint, or its header is damaged"
    if format > FORMAT:
        return f"was written by a newer pserver (format {format}, this one reads {FORMAT})"
    if part != shape.label:
        return f"holds {part} in place of {shape.label}"
    return f"is of version {its} in place of {version}" if its != version else "holds another model"


def chunk_digests(data: Bytes, sizes: Sequence[int]) -> Digests:
    """xxh3-64 of chunks that lie one after the other."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    digest, view = xxhash.xxh3_64_intdigest, data.data
    return np.array([digest(view[a:b]) for a, b in zip([0, *ends], ends, strict=False)], np.uint64)


class ShardData:
    """The data of a server's part, or memory laid out like one."""

    def __init__(self, data: Bytes, mine: ShardLayout, slots: int) -> None:
        self._mine = mine
        sizes = mine.num_bytes.tolist()
        self._sizes, self._optimizer_sizes = sizes, sizes[: mine.num_optimizer]
        params, each = sum(sizes), sum(self._optimizer_sizes)
        self.params = data[:params]
        self.slots = tuple(data[params + s * each : params + (s + 1) * each] for s in range(slots))
        self.updates: npt.NDArray[np.int64] = data[params + slots * each :].view(np.int64)

    def digests(self) -> Digests:
        """Of every chunk's values."""
        return chunk_digests(self.params, self._sizes)

    def state_digests(self) -> Digests:
        """Of every chunk's optimizer state: its tensors one after the other, then the number of updates."""
        ends = np.cumsum(self._optimizer_sizes, dtype=np.int64).tolist()
        views = [slot.data for slot in self.slots]
        counts = np.ascontiguousarray(self.updates).view(np.uint8).data
        found = np.zeros(len(ends), np.uint64)
        for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False)):
            state = xxhash.xxh3_64()
            for view in views:
                state.update(view[a:b])
            state.update(counts[8 * i : 8 * i + 8])
            found[i] = state.intdigest()
        return found


def layout_digests(layout: Layout, flat: Bytes) -> Digests:
    """Of all chunks in a flat layout, in layout order."""
    starts = layout.chunk_flat.tolist()
    ends = (layout.chunk_flat + layout.chunk_bytes).tolist()
    digest, view = xxhash.xxh3_64_intdigest, flat.data
    return np.array([digest(view[a:b]) for a, b in zip(starts, ends, strict=True)], np.uint64)


def chain(before: str, version: int, digests: Digests) -> str:
    """The next link of a chain of digests: BLAKE2b over the link before, the version and all chunks' digests in layout order."""
    text = before.encode() + version.to_bytes(8, "little") + digests.astype("<u8").tobytes()
    return hashlib.blake2b(text, digest_size=32).hexdigest()


def optimizer_chunks(layout: Layout) -> IntArray:
    """Ids of the chunks that an optimizer updates, in layout order."""
    rules = np.array([spec.rule for spec in layout.specs])
    return np.flatnonzero(rules[layout.chunk_tensor] == Rule.OPTIMIZER)
