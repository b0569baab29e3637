"""A shard's memory on its host: the store, and behind it the Join request that it was made for, so that a server that is
started again needs nobody to tell it the model.
"""

import hashlib
import threading
import time

import numpy as np

from protos import pserver_pb2 as pb
from ps.config import ServerSettings
from ps.errors import ResourcesMissing
from ps.frame import Bytes
from ps.segments import Segment, SegmentBusy, find_segment, new_segment, run_prefix

_POLL_S = 0.05
_TRAIL_BYTES = 40
"""At the end: a digest of the request (32), and its length (8)."""


class ShardMemory:
    """`store` is the store's part. The process owns it until `close`."""

    def __init__(self, segment: Segment, request_bytes: int) -> None:
        self.segment = segment
        self.store: Bytes = segment.memory[: len(segment.memory) - request_bytes - _TRAIL_BYTES]

    @classmethod
    def make(cls, settings: ServerSettings, store_bytes: int, request: pb.JoinRequest) -> "ShardMemory":
        """New memory, zeroed but for the request. Raises ResourcesMissing."""
        text = request.SerializeToString(deterministic=True)
        size = store_bytes + len(text) + _TRAIL_BYTES
        try:
            segment = new_segment(segment_name(settings), size)
        except OSError as error:
            raise ResourcesMissing(f"shard {settings.shard} cannot have {size} bytes in memory or on disk: {error.strerror or error}") from error
        if segment.existed:
            segment.memory[:] = 0
        tail = hashlib.blake2b(text, digest_size=32).digest() + len(text).to_bytes(8, "little")
        segment.memory[store_bytes:] = np.frombuffer(text + tail, np.uint8)
        return cls(segment, len(text))

    @classmethod
    def find(cls, settings: ServerSettings, stopping: threading.Event) -> tuple["ShardMemory", pb.JoinRequest] | None:
        """What a former process has left here; None if there is nothing, or nothing whole: that is removed.

        Waits for a former process that still ends. Raises ResourcesMissing if it does not.
        """
        segment = _left_behind(settings, stopping)
        if segment is None:
            return None
        request = _request_in(segment.memory)
        if request is None:
            segment.close(remove=True)
            return None
        return cls(segment, request.ByteSize()), request

    def close(self, *, remove: bool) -> None:
        self.segment.close(remove=remove)


def segment_name(settings: ServerSettings) -> str:
    """One per run, generation and shard."""
    return f"{run_prefix(settings.run_id)}g{settings.generation}-s{settings.shard}"


def _left_behind(settings: ServerSettings, stopping: threading.Event) -> Segment | None:
    deadline = time.monotonic() + settings.timeouts.connect_s
    while True:
        path = find_segment(segment_name(settings))
        if path is None or not (size := path.stat().st_size):
            return None
        try:
            return Segment(path, size)
        except SegmentBusy as error:
            if stopping.wait(_POLL_S) or time.monotonic() > deadline:
                raise ResourcesMissing(f"shard {settings.shard}: {error}, a former server that does not end: kill it") from error


def _request_in(memory: Bytes) -> pb.JoinRequest | None:
    if len(memory) < _TRAIL_BYTES:
        return None
    tail = memory[-_TRAIL_BYTES:].tobytes()
    length = int.from_bytes(tail[32:], "little")
    if not 0 < length <= len(memory) - _TRAIL_BYTES:
        return None
    text = memory[len(memory) - _TRAIL_BYTES - length : -_TRAIL_BYTES].tobytes()
    return pb.JoinRequest.FromString(text) if hashlib.blake2b(text, digest_size=32).digest() == tail[:32] else None
