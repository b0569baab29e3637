"""What rank 0 has chosen for all ranks: a sum is complete when the last rank's frames are in, so frames should be alike, and leave alike."""

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from protos import pserver_pb2 as pb
from ps.errors import MalformedFrame


class Order(NamedTuple):
    """In which order frames leave, and how long they are."""

    places: Sequence[int]
    """Of every tensor in rank 0's forward pass."""
    frame_bytes: int
    """Of its frames that travel; 0: none does."""
    ready_s: Sequence[float] = ()
    """When the gradient of every tensor was ready, seconds after its backward pass had begun; empty: not known yet."""
    link_bytes_per_s: float = 0.0
    """What its link carries up, where `ready_s` is known."""

    @property
    def is_measured(self) -> bool:
        """Whether it is known when gradients are ready."""
        return bool(self.ready_s)

    def write(self, header: pb.FrameHeader) -> None:
        """Into the header of an ORDER frame."""
        header.places.extend(self.places)
        header.frame_bytes = self.frame_bytes
        header.ready_s.extend(self.ready_s)
        header.link_bytes_per_s = self.link_bytes_per_s

    @classmethod
    def read(cls, header: pb.FrameHeader) -> "Order":
        """From the header of an ORDER frame."""
        return cls(list(header.places), header.frame_bytes, list(header.ready_s), header.link_bytes_per_s)

    def check(self, num_tensors: int) -> None:
        """Raises MalformedFrame unless it is one of so many tensors."""
        if len(self.places) != num_tensors or len(self.ready_s) not in (0, num_tensors):
            raise MalformedFrame(f"an order of {len(self.places)} tensors and {len(self.ready_s)} times, the model has {num_tensors} tensors")
        if not all(0 <= value < math.inf for value in (*self.ready_s, self.link_bytes_per_s)) or (self.is_measured and not self.link_bytes_per_s):
            raise MalformedFrame("an order with times or a rate that are none")


class Schedule(NamedTuple):
    """From which it follows which frame leaves when, whoever is how far."""

    ready_s: Sequence[float]
    """When the gradient of every tensor is ready in the backward pass."""
    takes_s: Sequence[Sequence[float]]
    """What every frame of every shard takes on a link that `sharing` of the shards share; nothing where it stays in memory."""
    sharing: int

    @property
    def pays(self) -> bool:
        """Frames wait for the link, and not the link for gradients."""
        return math.fsum(map(math.fsum, self.takes_s)) > self.sharing * max(self.ready_s)


def scheduled(keys: Sequence[tuple[int, int]], ready_s: Sequence[float], takes_s: Sequence[float]) -> list[int]:
    """Frames one after the other, each of which takes its time: always the one with the least key of those that are ready when the one
    before has left."""
    coming = sorted(range(len(keys)), key=lambda frame: ready_s[frame], reverse=True)
    waiting: list[tuple[tuple[int, int], int]] = []
    order: list[int] = []
    now_s = 0.0
    while coming or waiting:
        if not waiting:
            now_s = max(now_s, ready_s[coming[-1]])
        while coming and ready_s[coming[-1]] <= now_s:
            frame = coming.pop()
            heappush(waiting, (keys[frame], frame))
        frame = heappop(waiting)[1]
        order.append(frame)
        now_s += takes_s[frame]
    return order
