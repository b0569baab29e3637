"""What a push format has not sent yet, kept until it is: a member's residuals, in memory that survives its process.

sent + residual = all that was ever to be pushed (error feedback: Seide et al., "1-bit stochastic gradient descent",
Interspeech 2014). Two versions by parity, as on the shards: step t reads version t and writes version t + 1, so that a
repeated push brings the same bytes. Version t is dropped by step t + 1, of which nothing is encoded before step t has been
applied everywhere. A skipped step was pushed in vain: its residual is that of before, on all ranks.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.codecs import Codec, Seed, lossy_codec
from ps.config import CommConfig
from ps.errors import ResourcesMissing, StateLost
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import ALIGN_BYTES, IntArray, Layout, Rule, Run, ShardLayout
from ps.segments import Segment, find_segment, new_segment, run_prefix

_MAGIC = np.frombuffer(b"pserverR", np.int64)[0]
_HEADER_BYTES = 512


class RankState:
    """Residuals of all that an optimizer updates, laid out in a buffer that may survive the process. Not thread-safe.

    `key`: 32 bytes that identify run, member, model and format.
    """

    def __init__(self, memory: Bytes, layout: Layout, codec: Codec, *, seed: int, rank: int, skip_nonfinite: bool, key: bytes) -> None:
        size = _copy_bytes(layout)
        self._header: IntArray = memory[:_HEADER_BYTES].view(np.int64)
        self._copies = (memory[_HEADER_BYTES : _HEADER_BYTES + size], memory[_HEADER_BYTES + size : _HEADER_BYTES + 2 * size])
        """As the beginning of a flat layout, where the tensors with an optimizer are."""
        self._layout = layout
        self._codec = codec
        self._seed = seed
        self._rank = rank
        self.skip_nonfinite = skip_nonfinite
        """As `optimizer.nonfinite` says."""
        self._segment: Segment | None = None
        self.is_new = not (self._header[0] == _MAGIC and (self._header[8:12] == np.frombuffer(key, np.int64)).all())
        """Whether no former process has left it."""
        if self.is_new:
            memory[:] = 0
            self._header[8:12] = np.frombuffer(key, np.int64)
            self._header[0] = _MAGIC

    @staticmethod
    def size_bytes(layout: Layout) -> int:
        """Memory needed."""
        return _HEADER_BYTES + 2 * _copy_bytes(layout)

    @property
    def version(self) -> int:
        """Newest version whose residuals are final."""
        return int(self._header[1])

    def resume(self, version: int, *, skipped: bool) -> None:
        """The member is to compute step `version`; `skipped`: the servers have not applied the step before. Raises StateLost."""
        if self.version == version - 1 and not self.is_new:
            self.settle(version - 1, skipped=skipped)
        if self.version != version:
            raise StateLost(
                f"rank {self._rank} joins at version {version}, but what its push format has yet to send is of version {self.version}: its memory "
                'went with its host, start the run again; with comm.push_format = "fp32", "bf16" or "fp16" there is no such memory'
            )

    def covers(self, layout: ShardLayout, run: Run) -> bool:
        """Whether the run has residuals."""
        return layout.block_of(run).rule is Rule.OPTIMIZER and layout.block_of(run).dtype in ("float32", "float64")

    def encode(self, layout: ShardLayout, run: Run, values: Bytes, step: int) -> Bytes:
        """The payload of a push of a run whose gradient lies in a flat layout; what it leaves out becomes the residual.

        A step before `version` is applied everywhere: an own loop does it once more, and nobody reads what it pushes.
        """
        assert step <= self.version, "the step before is not settled"
        dtype, chunks = layout.block_of(run).dtype, frame.chunks_of(layout, run)
        seed, gradient = Seed(self._seed, step, self._rank), _gathered(values, layout, run).view(dtype)
        if step < self.version:
            return self._codec.encode(gradient, chunks, seed)
        whole = gradient + _gathered(self._copies[step % 2], layout, run).view(dtype)
        payload = self._codec.encode(whole, chunks, seed)
        left = whole - self._codec.decode(payload, dtype, chunks)
        frame.land(left.view(np.uint8), self._copies[(step + 1) % 2], layout, run, flat=True)
        return payload

    def keep(self, layout: ShardLayout, run: Run, step: int) -> None:
        """Nothing of the run is sent in `step`: its residual stays."""
        if step < self.version:
            return
        for piece in layout.pieces(run):
            place = slice(piece.flat, piece.flat + piece.num_bytes)
            self._copies[(step + 1) % 2][place] = self._copies[step % 2][place]

    def settle(self, step: int, *, skipped: bool) -> None:
        """The step has been applied everywhere, or skipped. The version is written last: a kill in between repeats this."""
        hit("worker.settles")
        if skipped:
            self._copies[(step + 1) % 2][:] = self._copies[step % 2]
        self._header[1] = step + 1

    def packed(self, version: int) -> Bytes:
        """A copy of all residuals of a version, those of one tensor after the other's, in layout order."""
        memory = self.residual(version)
        return np.concatenate([np.zeros(0, np.uint8), *(memory[place] for place in _places(self._layout))])

    def load(self, version: int, packed: Bytes) -> None:
        """Makes what `packed` returned the residuals of a version, the newest; nothing if it is empty. The version is written last."""
        at = 0
        for place in _places(self._layout) if len(packed) else ():
            size = place.stop - place.start
            self._copies[version % 2][place] = packed[at : at + size]
            at += size
        self._header[1] = version

    def residual(self, version: int) -> Bytes:
        """All residuals of a version, as the beginning of a flat layout."""
        return self._copies[version % 2]

    @classmethod
    def open(cls, run_id: str, member: pb.Member, layout: Layout, comm: CommConfig, *, seed: int, skip_nonfinite: bool) -> "RankState":
        """The member's, as a former process has left it or new. `seed`: of the run. Raises ResourcesMissing."""
        size, name = cls.size_bytes(layout), _segment_name(run_id, member)
        path = find_segment(name)
        try:
            segment = Segment(path, size) if path else new_segment(name, size)
        except OSError as error:
            what = f"{size} bytes in memory or on disk for what comm.push_format has yet to send"
            raise ResourcesMissing(f"rank {member.rank} cannot have {what}: {error.strerror or error}") from error
        state = cls._at(segment.memory, run_id, member, layout, comm, seed=seed, skip_nonfinite=skip_nonfinite)
        state._segment = segment
        return state

    @classmethod
    def _at(cls, memory: Bytes, run_id: str, member: pb.Member, layout: Layout, comm: CommConfig, *, seed: int, skip_nonfinite: bool) -> "RankState":
        what = f"{run_id}:{member.generation}:{member.rank}.{member.stage}:{comm.push_format}:{comm.topk_fraction}:{seed}"
        key = hashlib.blake2b(layout.digest + what.encode(), digest_size=32).digest()
        codec = lossy_codec(comm.push_format, comm.topk_fraction)
        return cls(memory, layout, codec, seed=seed, rank=member.rank, skip_nonfinite=skip_nonfinite, key=key)

    @classmethod
    def left_behind(
        cls,
        read: Callable[[str], Bytes | None],
        run_id: str,
        generation: int,
        rank: int,
        version: int,
        layout: Layout,
        comm: CommConfig,
        *,
        seed: int,
        skip_nonfinite: bool,
    ) -> Bytes:
        """What a dead member has yet to send at `version`, packed, out of the memory that it has left. `read` copies memory of a name,
        where the member was. Raises StateLost."""
        member = pb.Member(rank=rank, generation=generation)
        memory = read(_segment_name(run_id, member))
        if memory is None or len(memory) != cls.size_bytes(layout):
            raise StateLost(f"what rank {rank} has yet to send in {comm.push_format} is not in its host's memory, or out of reach there")
        state = cls._at(memory, run_id, member, layout, comm, seed=seed, skip_nonfinite=skip_nonfinite)
        if state.version < version and skip_nonfinite:
            raise StateLost(f"rank {rank} died before it knew whether step {state.version} was skipped")
        state.resume(version, skipped=False)
        return state.packed(version)

    def close(self, *, remove: bool = True) -> None:
        """Gives the memory back; `remove`: nobody goes on with it."""
        if self._segment:
            self._segment.close(remove=remove)


def _segment_name(run_id: str, member: pb.Member) -> str:
    return f"{run_prefix(run_id)}g{member.generation}-e{member.rank}.{member.stage}"


def _copy_bytes(layout: Layout) -> int:
    starts = layout.tensor_flat.tolist()
    ends = [start + spec.num_bytes for spec, start in zip(layout.specs, starts, strict=True) if spec.rule is Rule.OPTIMIZER]
    return -(-max(ends, default=0) // ALIGN_BYTES) * ALIGN_BYTES


def _places(layout: Layout) -> list[slice]:
    """Where the tensors with an optimizer lie in a flat layout, in layout order."""
    starts = [(layout.specs[i], int(layout.tensor_flat[i])) for i in layout.order]
    return [slice(start, start + spec.num_bytes) for spec, start in starts if spec.rule is Rule.OPTIMIZER]


def _gathered(memory: Bytes, layout: ShardLayout, run: Run) -> Bytes:
    parts = frame.payload_parts(memory, layout, run, flat=True)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
