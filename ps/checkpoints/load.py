"""Reads a checkpoint: everything is checked against the manifest before a byte of it is used, then dealt to any number of servers."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import spec_messages
from ps.checkpoints.manifest import Manifest, PartRecord, digest_of, from_hex
from ps.checkpoints.parts import Digests, PartShape, ShardData, chunk_digests, open_part, optimizer_chunks, rank_shape, shard_shape
from ps.errors import CheckpointDamaged
from ps.frame import Bytes
from ps.layout import IntArray, Layout, Rule, Run

_FRAME_BYTES = 1 << 20


class Checkpoint:
    """A whole one. `manifest` lies beside its parts, which stay mapped."""

    def __init__(self, path: Path) -> None:
        """`path`: of the manifest. Raises CheckpointDamaged that names the file and its defect."""
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointDamaged(f"{path} cannot be read: {error.strerror or error}") from error
        self.manifest = manifest = Manifest.from_json(data, str(path))
        specs = manifest.specs
        if sum(spec.num_bytes for spec in specs) > sum(self._size(part) for part in manifest.shards):
            raise CheckpointDamaged(f"{path} speaks of more bytes than its parts have")
        try:
            self.layout = Layout(specs, len(manifest.shards))
        except ValueError as error:
            raise CheckpointDamaged(f"{path}: {error}") from error
        self._initial = self._digests(manifest.initial_digests, len(self.layout), "version 0")
        self._shards = [self._shard(index) for index in range(len(manifest.shards))]
        self._ranks = [self._rank(index) for index in range(len(manifest.ranks))]
        self._check_whole()
        self._owner = np.zeros(len(self.layout), np.int64)
        self._place = np.zeros(len(self.layout), np.int64)
        for mine in self.layout.shards:
            self._owner[mine.chunks] = mine.index
            self._place[mine.chunks] = np.arange(len(mine))

    @property
    def version(self) -> int:
        return self.manifest.version

    # -- checks ----------------------------------------------------------------------------------------------

    def _size(self, record: PartRecord) -> int:
        if not re.fullmatch(r"[a-z0-9-]+\.safetensors", record.file, re.ASCII):
            raise CheckpointDamaged(f"{self.path} names a file {record.file!r}")
        path = self.path.with_name(record.file)
        try:
            return path.stat().st_size
        except OSError as error:
            raise CheckpointDamaged(f"{path} cannot be read: {error.strerror or error}") from error

    def _open(self, record: PartRecord, shape: PartShape) -> Bytes:
        self._size(record)
        return open_part(self.path.with_name(record.file), shape, self.manifest.version)

    def _shard(self, index: int) -> ShardData:
        manifest, record, mine = self.manifest, self.manifest.shards[index], self.layout.shards[index]
        data = ShardData(self._open(record, shard_shape(self.layout, index, manifest.slots)), mine, manifest.slots)
        self._check(record, record.digests, data.digests(), mine.chunks, "values")
        self._check(record, record.state_digests, data.state_digests(), mine.chunks, "optimizer state")
        return data

    def _rank(self, index: int) -> Bytes:
        record = self.manifest.ranks[index]
        data = self._open(record, rank_shape(self.layout, index, len(self.manifest.ranks)))
        chunks = optimizer_chunks(self.layout)
        self._check(record, record.digests, chunk_digests(data, self.layout.chunk_bytes[chunks].tolist()), chunks, "what is yet to be sent")
        return data

    def _check(self, record: PartRecord, expected: str, found: Digests, chunks: IntArray, what: str) -> None:
        wrong = np.flatnonzero(self._digests(expected, len(found), record.file) != found)
        if len(wrong):
            name = self.layout.specs[int(self.layout.chunk_tensor[chunks[wrong[0]]])].name
            raise CheckpointDamaged(f"{self.path.with_name(record.file)} is damaged: {what} of {name} ({len(wrong)} of {len(found)} chunks)")

    def _digests(self, text: str, count: int, of: str) -> Digests:
        try:
            digests = from_hex(text)
        except ValueError as error:
            raise CheckpointDamaged(f"{self.path} has digests of {of} that are none") from error
        if len(digests) != count:
            raise CheckpointDamaged(f"{self.path} has {len(digests)} digests of the {count} chunks of {of}")
        return digests

    def _check_whole(self) -> None:
        shards = self.manifest.shards
        found = digest_of(self.layout, self.version, [from_hex(s.digests) for s in shards], [from_hex(s.state_digests) for s in shards])
        if found != self.manifest.digest:
            raise CheckpointDamaged(f"{self.path}: the parts do not belong together")

    # -- what it holds ---------------------------------------------------------------------------------------

    def residual(self, rank: int) -> Bytes:
        """The part of a worker; empty if there is none."""
        return self._ranks[rank] if rank < len(self._ranks) else np.zeros(0, np.uint8)

    def frames(self, layout: Layout, shard: int) -> Iterator[bytes]:
        """What a server is given of it by Restore: `shard` of a layout of the same model, for any number of servers."""
        manifest = self.manifest
        model = pb.JoinRequest(
            tensors=spec_messages(layout.specs),
            chunk_digests=self._initial.tolist(),
            steps_per_epoch=manifest.plan.steps_per_epoch,
            total_steps=manifest.plan.total_steps,
            validate_every=manifest.plan.validate_every,
            own_loop=manifest.plan.own_loop,
        )
        request = pb.RestoreRequest(model=model, version=self.version, decided=manifest.decided, rate_factor=manifest.rate_factor)
        yield frame.encode(pb.FrameHeader(kind=pb.RESTORE), [np.frombuffer(request.SerializeToString(), np.uint8)])
        mine = layout.shards[shard]
        for run in mine.frames(_FRAME_BYTES):
            block = mine.block_of(run)
            for slot in range(1 + manifest.slots if block.rule is Rule.OPTIMIZER else 1):
                payload = self._payload(mine.chunks[run.span].tolist(), slot)
                header = pb.FrameHeader(kind=pb.STATE, first_chunk=run.first, num_chunks=len(run), dtype=block.dtype, slot=slot)
                header.digests.extend(frame.payload_digests(payload, mine, run))
                if not slot and block.rule is Rule.OPTIMIZER:
                    header.updates.extend(int(self._shards[self._owner[c]].updates[self._place[c]]) for c in mine.chunks[run.span])
                yield frame.encode(header, [payload])

    def _payload(self, chunks: list[int], slot: int) -> Bytes:
        return np.concatenate([self._chunk(chunk, slot) for chunk in chunks])

    def _chunk(self, chunk: int, slot: int) -> Bytes:
        owner, place = int(self._owner[chunk]), int(self._place[chunk])
        data, mine = self._shards[owner], self.layout.shards[owner]
        start = mine.payload_bytes(Run(0, place))
        memory = data.slots[slot - 1] if slot else data.params
        return memory[start : start + int(mine.num_bytes[place])]
