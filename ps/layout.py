"""Where every element lives: named tensors are cut into chunks, chunks are dealt to shards.

Pure. The cut depends on the model only, so that chunk identities, digests and bits are the same
for every number of servers; the dealing balances bytes and gives each shard consecutive chunks of
a tensor, so that a run of chunks is few contiguous pieces.
"""

import hashlib
import heapq
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

CHUNK_ELEMENTS = 8192
"""Largest number of elements of a chunk; a multiple of 64, at which torch's fused kernels may be sliced without changing a bit."""
ALIGN_BYTES = 512
"""Every tensor starts at a multiple of it in every memory: 64 elements of the widest dtype."""
KEPT_PIECES = 1 << 18
"""Of runs that were asked for before, in one shard's layout."""
DTYPES = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
"""Element types and their sizes in bytes."""

IntArray = npt.NDArray[np.int64]


class Rule(IntEnum):
    """How a tensor is updated; the numbers are those of the protocol."""

    OPTIMIZER = 1
    MEAN = 2
    SUM = 3
    EQUAL = 4
    FROZEN = 5


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the model."""

    name: str
    """Unique name in the state dict."""
    shape: tuple[int, ...]
    dtype: str
    """Key of DTYPES."""
    rule: Rule = Rule.OPTIMIZER
    group: int = 0
    """Index of the optimizer's parameter group."""
    stage: int = 0
    """Part of a layer-split rank that computes with it, and pushes it."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name} has dtype {self.dtype}, which is not one of {', '.join(DTYPES)}")

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPES[self.dtype]


@dataclass(frozen=True)
class Run:
    """Consecutive chunks [first, stop) of one shard, counted inside the shard."""

    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def span(self) -> slice:
        return slice(self.first, self.stop)


@dataclass(frozen=True)
class Piece:
    """A contiguous part of a run: where it lies in the shard, in the flat layout and in a payload (offsets in bytes)."""

    local: int
    flat: int
    payload: int
    num_bytes: int


@dataclass(frozen=True)
class Block:
    """Consecutive chunks of a shard that share rule, dtype, parameter group and stage; no frame crosses its ends."""

    run: Run
    rule: Rule
    dtype: str
    group: int
    stage: int


class ShardLayout:
    """The chunks of one shard, in the order of the whole layout; the arrays are indexed by local chunk."""

    def __init__(self, layout: "Layout", index: int, chunks: IntArray) -> None:
        self.index = index
        self.chunks = chunks
        """Ids in the whole layout."""
        self.tensor = layout.chunk_tensor[chunks]
        self.stage = np.array([spec.stage for spec in layout.specs], np.int64)[self.tensor]
        """Who pushes each chunk."""
        self.num_bytes = layout.chunk_bytes[chunks]
        self.flat = layout.chunk_flat[chunks]
        """Byte offsets in the flat layout."""
        self.local = self._local_offsets(layout)
        """Byte offsets in the shard's memory."""
        self.size_bytes = _aligned(int(self.local[-1] + self.num_bytes[-1])) if len(chunks) else 0
        """Bytes of one copy of the shard's tensors, alignment included."""
        self.blocks = tuple(self._blocks(layout.specs))
        self.num_optimizer = sum(len(b.run) for b in self.blocks if b.rule is Rule.OPTIMIZER)
        """Chunks that the optimizer updates; they come first."""
        self.num_versioned = sum(len(b.run) for b in self.blocks if b.rule is not Rule.FROZEN)
        """Chunks with a version word; frozen ones come last."""
        self._ends = np.append(self.local, self.size_bytes)
        self._bytes_before: list[int] = [0, *np.cumsum(self.num_bytes).tolist()]
        self._pieces: dict[Run, tuple[Piece, ...]] = {}
        self._num_pieces = 0
        """In `_pieces`, about: threads may count at once."""

    def __len__(self) -> int:
        return len(self.chunks)

    def _local_offsets(self, layout: "Layout") -> IntArray:
        offsets = np.zeros(len(self.chunks), np.int64)
        end = 0
        for i, chunk in enumerate(self.chunks):
            if i and self.tensor[i] != self.tensor[i - 1]:
                end = _aligned(end)
            offsets[i] = end
            end += int(layout.chunk_bytes[chunk])
        return offsets

    def _blocks(self, specs: Sequence[TensorSpec]) -> Iterator[Block]:
        first = 0
        keys = [(specs[t].rule, specs[t].dtype, specs[t].group, specs[t].stage) for t in self.tensor]
        for i in range(1, len(keys) + 1):
            if i == len(keys) or keys[i] != keys[first]:
                yield Block(Run(first, i), *keys[first])
                first = i

    def span_bytes(self, run: Run) -> slice:
        """The run's bytes in the shard's memory, up to the next chunk: a multiple of 64 elements at both ends."""
        stop = int(self._ends[run.stop]) if run.stop < len(self) else self.size_bytes
        return slice(int(self.local[run.first]), stop)

    def payload_bytes(self, run: Run) -> int:
        """Bytes of the run's elements without the alignment between them."""
        return self._bytes_before[run.stop] - self._bytes_before[run.first]

    def pieces(self, run: Run) -> tuple[Piece, ...]:
        """The run as contiguous pieces, fewest possible."""
        found = self._pieces.get(run)
        if found is None:
            found = self._merged(run)
            self._num_pieces += len(found)
            if self._num_pieces > KEPT_PIECES:  # runs come from members: what is kept of them is bounded
                self._pieces, self._num_pieces = {}, len(found)
            self._pieces[run] = found
        return found

    def _merged(self, run: Run) -> tuple[Piece, ...]:
        merged: list[Piece] = []
        payload = 0
        for i in range(run.first, run.stop):
            local, flat, size = int(self.local[i]), int(self.flat[i]), int(self.num_bytes[i])
            last = merged[-1] if merged else None
            if last and last.local + last.num_bytes == local and last.flat + last.num_bytes == flat:
                merged[-1] = Piece(last.local, last.flat, last.payload, last.num_bytes + size)
            else:
                merged.append(Piece(local, flat, payload, size))
            payload += size
        return tuple(merged)

    def block_of(self, run: Run) -> Block:
        """The block that holds the whole run. Raises ValueError if none does."""
        for block in self.blocks:
            if block.run.first <= run.first < run.stop <= block.run.stop:
                return block
        raise ValueError(f"chunks {run.first}..{run.stop - 1} are not a run of one block of shard {self.index}")

    def frames(self, frame_bytes: int, stage: int | None = None) -> list[Run]:
        """The chunks of a stage (None: of all) as runs of at most `frame_bytes` of payload (at least one chunk), none across blocks."""
        return [run for block in self.blocks if stage in (None, block.stage) for run in self.split(block.run, frame_bytes)]

    def spans(self, stage: int) -> list[Run]:
        """The chunks of a stage as fewest possible runs, across blocks."""
        mine = np.flatnonzero(np.diff(self.stage == stage, prepend=False, append=False)).tolist()
        return [Run(a, b) for a, b in zip(mine[::2], mine[1::2], strict=True)]

    def split(self, run: Run, num_bytes: int) -> list[Run]:
        """The run as runs of at most so much payload, and at least one chunk."""
        before, runs, first = self._bytes_before, [], run.first
        while first < run.stop:
            stop = max(first + 1, bisect_right(before, before[first] + num_bytes, first, run.stop + 1) - 1)
            runs.append(Run(first, stop))
            first = stop
        return runs


class Layout:
    """The whole model, cut and dealt."""

    def __init__(self, specs: Sequence[TensorSpec], num_servers: int) -> None:
        twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
        if twice:
            raise ValueError(f"tensor names are not unique: {min(twice)}")
        self.specs = tuple(specs)
        self.num_servers = num_servers
        self.order = sorted(range(len(specs)), key=lambda i: (specs[i].rule, specs[i].dtype, specs[i].group, i))
        """Tensor indices in layout order: those the optimizer updates first, frozen ones last."""
        self.tensor_flat = np.zeros(len(specs), np.int64)
        """Byte offset of every tensor in the flat layout."""
        self.flat_bytes = 0
        self._cut()
        shard_of = self._deal()
        self.shards = tuple(ShardLayout(self, s, np.flatnonzero(shard_of == s)) for s in range(num_servers))

    def _cut(self) -> None:
        tensors: list[int] = []
        starts, sizes = [], []
        self._first_chunk: dict[int, int] = {}
        for index in self.order:
            spec = self.specs[index]
            self._first_chunk[index] = len(tensors)
            self.tensor_flat[index] = self.flat_bytes
            for start in range(0, spec.num_elements, CHUNK_ELEMENTS):
                tensors.append(index)
                starts.append(start)
                sizes.append(min(CHUNK_ELEMENTS, spec.num_elements - start))
            self.flat_bytes += _aligned(spec.num_bytes)
        itemsize = np.array([DTYPES[s.dtype] for s in self.specs], np.int64)
        self.chunk_tensor = np.array(tensors, np.int64)
        self.chunk_start = np.array(starts, np.int64)
        self.chunk_bytes = np.array(sizes, np.int64) * itemsize[self.chunk_tensor]
        self.chunk_flat = self.tensor_flat[self.chunk_tensor] + self.chunk_start * itemsize[self.chunk_tensor]

    def _deal(self) -> IntArray:
        """Shard of every chunk: each tensor in one piece per shard, always to the shard with the fewest bytes."""
        shard_of = np.zeros(len(self.chunk_tensor), np.int64)
        loads = {frozen: [(0, s) for s in range(self.num_servers)] for frozen in (False, True)}
        for index in self.order:
            if self.specs[index].rule is Rule.SUM:
                continue  # loss and metric sums live on shard 0
            load = loads[self.specs[index].rule is Rule.FROZEN]
            chunks = slice(self._first_chunk[index], self._first_chunk[index] + -(-self.specs[index].num_elements // CHUNK_ELEMENTS))
            dealt = []
            for chunk in range(chunks.start, chunks.stop):
                size, shard = load[0]
                heapq.heapreplace(load, (size + int(self.chunk_bytes[chunk]), shard))
                dealt.append(shard)
            shard_of[chunks] = sorted(dealt)
        return shard_of

    def __len__(self) -> int:
        return len(self.chunk_tensor)

    def first_chunk(self, tensor: int) -> int:
        """Where the chunks of a tensor begin, which follow each other."""
        return self._first_chunk[tensor]

    def spans_of_stage(self, stage: int) -> list[tuple[int, int]]:
        """Where a stage's tensors lie in the flat layout: first byte, and the one after the last."""
        spans: list[tuple[int, int]] = []
        for index in self.order:
            spec, at = self.specs[index], int(self.tensor_flat[index])
            if spec.stage == stage:
                stop = at + _aligned(spec.num_bytes)
                spans.append((spans.pop()[0], stop) if spans and spans[-1][1] == at else (at, stop))
        return spans

    @cached_property
    def shard_bytes(self) -> tuple[int, ...]:
        """Bytes that every shard exchanges per direction and step."""
        return tuple(int(s.num_bytes[: s.num_versioned].sum()) for s in self.shards)

    @property
    def imbalance(self) -> float:
        """Largest shard over the mean, in bytes; 1.0 is perfect."""
        total = sum(self.shard_bytes)
        return max(self.shard_bytes) * self.num_servers / total if total else 1.0

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that identify names, shapes, dtypes, rules and the dealing."""
        text = json.dumps([[asdict(spec) for spec in self.specs], self.num_servers])
        return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES
