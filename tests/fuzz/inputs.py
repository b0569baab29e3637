"""What is sent and written: messages by their descriptors, right ones with something changed, and bytes that mean nothing."""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_NUMBERS = [0, 1, 2, 3, 5, 64, 255, 8192, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
_TEXTS = ["", "a", "w", "float32", "float99", "fp16", "topk", "../../etc/passwd", "pserver-", "\0", "\x1b[2J", "é\u2028", "x" * 1025, "x" * 300_000]
_REALS = [0.0, 1.0, -1.0, 0.5, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan")]
_WIDTHS = {
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FIXED64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_ENUM: (0, (1 << 31) - 1),
}
_MANY = 3000
_LONG = 24 << 20
"""Bytes of the longest list: more than any message may have."""


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Of a field: ordinary ones, and those at the edge of what it can hold. A type that is not known here is a KeyError."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        one = message(field.message_type, depth - 1)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        one = st.booleans()
    elif field.type == FieldDescriptor.TYPE_DOUBLE:
        one = st.sampled_from(_REALS) | st.floats()
    elif field.type == FieldDescriptor.TYPE_STRING:
        one = st.sampled_from(_TEXTS) | st.text(max_size=20)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = st.sampled_from([b"", bytes(32), bytes(1 << 16)]) | st.binary(max_size=40)
    else:
        low, high = _WIDTHS[field.type]
        one = st.sampled_from([n for n in (*_NUMBERS, *(-n for n in _NUMBERS)) if low <= n <= high]) | st.integers(low, high)
    if not field.is_repeated:
        return one
    many = st.just([""] * _MANY) if field.type == FieldDescriptor.TYPE_STRING else one.map(_repeated)
    return st.lists(one, max_size=4) | many


def _repeated(value: Any) -> list[Any]:
    size = value.ByteSize() if isinstance(value, Message) else 10
    return [value] * min(_MANY, _LONG // max(size, 1))


def message(descriptor: Descriptor, depth: int = 3) -> st.SearchStrategy[Message]:
    """Any message of the type; nested ones up to `depth`."""
    of_type = GetMessageClass(descriptor)
    fields = [field for field in descriptor.fields if depth or field.type != FieldDescriptor.TYPE_MESSAGE]
    return st.fixed_dictionaries({}, optional={field.name: values(field, depth) for field in fields}).map(lambda found: of_type(**found))


@st.composite
def varied(draw: st.DrawFn, right: Message) -> Message:
    """A right message with a few fields changed, at any depth."""
    made = type(right)()
    made.CopyFrom(right)
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, made)
    return made


def _change(draw: st.DrawFn, target: Message) -> None:
    if not target.DESCRIPTOR.fields:
        return
    field = draw(st.sampled_from(list(target.DESCRIPTOR.fields)))
    inner = getattr(target, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE and draw(st.booleans()):
        if not field.is_repeated:
            _change(draw, inner)
            return
        if inner:
            _change(draw, draw(st.sampled_from(list(inner))))
            return
    target.ClearField(field.name)
    value = draw(values(field, 2))
    if field.is_repeated:
        getattr(target, field.name).extend(value)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(target, field.name).CopyFrom(value)
    else:
        setattr(target, field.name, value)


@st.composite
def damaged(draw: st.DrawFn, right: bytes) -> bytes:
    """The bytes with parts flipped, cut out, repeated, put in or left off; or others altogether."""
    data = bytearray(right)
    changes: list[Callable[[int, int], None]] = [
        lambda at, end: data.__setitem__(slice(at, at + 1), bytes([draw(st.integers(0, 255))])),
        lambda at, end: data.__delitem__(slice(at, end)),
        lambda at, end: data.__setitem__(slice(at, at), data[at:end]),
        lambda at, end: data.__setitem__(slice(at, at), draw(st.binary(max_size=16))),
        lambda at, end: data.__setitem__(slice(at, at), draw(st.sampled_from(_INSERTS))),
        lambda at, end: data.__delitem__(slice(at, None)),
    ]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        draw(st.sampled_from(changes))(at, at + draw(st.integers(0, 64)))
    return bytes(data)


_INSERTS = [
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10,
    b"\x00" * 4096,
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b"9" * 5000,
    b"1e999",
    b"\x0a\xff\xff\xff\xff\x07",
    b"\x0b" * 200,
]


def payloads(right: bytes) -> st.SearchStrategy[bytes]:
    return damaged(right) | st.binary(max_size=200)
