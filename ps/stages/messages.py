"""What neighbouring stages say to each other, and how it travels: as frames, a tensor's bytes in the order in which they lie in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from protos import pserver_pb2 as pb
from ps import frame
from ps.errors import ConfigError, MalformedFrame
from ps.frame import Bytes

FRAME_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 30
"""Of one micro-batch's activations: what announces more is not believed."""
_MAX_TENSORS, _MAX_DIMENSIONS = 256, 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


@dataclass(frozen=True)
class Message:
    """What one stage has for a neighbour."""

    kind: pb.Kind
    """ACTIVATIONS, GRADIENTS or AGREE."""
    step: int
    micro: int = 0
    values: Sequence[Any] = ()
    """Tensors, or None where there is no gradient."""
    weight: float = 0.0
    """GRADIENTS: of the micro-batch, as its loss gave it."""


def frames_of(message: Message) -> Iterator[bytes]:
    """The first one says which tensors follow. Raises ConfigError for what is no tensor."""
    passed, flats = [], []
    for value in message.values:
        described, flat = _described(value)
        passed.append(described)
        flats.append(flat)
    header = pb.FrameHeader(kind=message.kind, step=message.step, micro=message.micro, weight=message.weight, passed=passed)
    if sum(map(len, flats)) <= FRAME_BYTES:
        yield _digested(header, flats)
        return
    yield frame.encode(header)
    for flat in flats:
        for at in range(0, len(flat), FRAME_BYTES):
            yield _digested(pb.FrameHeader(kind=message.kind, step=message.step, micro=message.micro), [flat[at : at + FRAME_BYTES]])


def _digested(header: pb.FrameHeader, parts: Sequence[Bytes]) -> bytes:
    header.digests.append(_digest(parts))
    return frame.encode(header, parts)


def _digest(parts: Sequence[Bytes]) -> int:
    found = xxhash.xxh3_64()
    for part in parts:
        found.update(part.data)
    return found.intdigest()


def _described(value: Any) -> tuple[pb.Passed, Bytes]:
    if value is None:
        return pb.Passed(), np.empty(0, np.uint8)
    if not isinstance(value, Tensor) or (name := str(value.dtype).removeprefix("torch.")) not in _DTYPES:
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"an object of type {type(value).__name__}"
        raise ConfigError(f"{what} cannot travel between stages: the blocks before and after a cut pass tensors of numbers")
    tensor = value.detach().cpu()
    if not _is_dense(tensor.shape, tensor.stride()):
        tensor = tensor.contiguous()
    return pb.Passed(dtype=name, shape=tensor.shape, strides=tensor.stride(), needs_gradient=value.requires_grad), _flat(tensor)


def _flat(tensor: Tensor) -> Bytes:
    """The bytes of a dense tensor, as they lie in memory."""
    flat: Bytes = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return flat


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill a piece of memory, in whatever order: then they arrive in that order, for kernels may depend on it."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


class Assembly:
    """The message that arrives in frames. One thread uses it."""

    def __init__(self) -> None:
        self._message: Message | None = None
        self._memory: list[Bytes] = []
        """What is to be filled of its tensors."""
        self._missing = 0
        """Bytes that have not come."""

    def take(self, data: bytes) -> Message | None:
        """The message, once its last frame has come. Raises MalformedFrame."""
        header, payload = frame.decode(data)
        if header.kind not in (pb.ACTIVATIONS, pb.GRADIENTS, pb.AGREE):
            raise MalformedFrame(f"frame of kind {header.kind} between stages")
        if self._message is None:
            self._begin(header)
        elif header.passed:
            raise MalformedFrame("a message between stages begins within another one")
        self._fill(header, payload)
        if self._missing:
            return None
        message, self._message = self._message, None
        return message

    def _begin(self, header: pb.FrameHeader) -> None:
        sizes = [_checked_bytes(passed) for passed in header.passed]
        if len(sizes) > _MAX_TENSORS or sum(sizes) > MAX_MESSAGE_BYTES:
            raise MalformedFrame(f"{len(sizes)} tensors of {sum(sizes)} bytes between stages")
        tensors = [_made(passed) for passed in header.passed]
        self._memory = [_flat(tensor.detach()) for tensor in tensors if tensor is not None and tensor.numel()]
        self._missing = sum(sizes)
        self._message = Message(header.kind, header.step, header.micro, tensors, header.weight)

    def _fill(self, header: pb.FrameHeader, payload: Bytes) -> None:
        if len(payload) > self._missing:
            raise MalformedFrame(f"a message between stages brings {len(payload)} bytes where {self._missing} are left")
        if len(payload) and list(header.digests) != [_digest([payload])]:
            raise MalformedFrame("the digest of a tensor between stages is wrong")
        self._missing -= len(payload)
        while len(payload):
            memory = self._memory[0]
            size = min(len(memory), len(payload))
            memory[:size], payload = payload[:size], payload[size:]
            self._memory[0] = memory[size:]
            if not len(self._memory[0]):
                self._memory.pop(0)


def _checked_bytes(passed: pb.Passed) -> int:
    """Bytes of a tensor that is to be believed. Raises MalformedFrame."""
    if not passed.dtype:
        return 0
    if passed.dtype not in _DTYPES or len(passed.shape) > _MAX_DIMENSIONS or len(passed.strides) != len(passed.shape):
        raise MalformedFrame(f"a tensor of type {passed.dtype!r} with {len(passed.shape)} dimensions between stages")
    count = prod(passed.shape)
    if count > MAX_MESSAGE_BYTES or max(passed.strides, default=0) > MAX_MESSAGE_BYTES or not _is_dense(passed.shape, passed.strides):
        raise MalformedFrame(f"a tensor of {count} elements, not one after the other, between stages")
    return count * _DTYPES[passed.dtype].itemsize


def _made(passed: pb.Passed) -> Tensor | None:
    """Aligned as torch aligns: the bits of a matrix product may depend on it."""
    if not passed.dtype:
        return None
    dtype = _DTYPES[passed.dtype]
    made = torch.empty_strided(tuple(passed.shape), tuple(passed.strides), dtype=dtype)
    return made.requires_grad_(passed.needs_gradient and dtype.is_floating_point)
