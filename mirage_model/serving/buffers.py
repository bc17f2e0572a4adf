"""Buffers of an answer on their way, in protobuf's form but without copies by its classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import time
from typing import Any

from mirage_model.serving.engine_pb2 import Buffers, StreamReply
from mirage_model.serving.images import Buffer, Part, WireError, buffer_of

GROUP = 2**16
"""Size from which buffers are sent without waiting for more [bytes]."""


@dataclass(frozen=True, kw_only=True)
class BufferGroup:
    """Buffers that travel together: `Buffers` of engine.proto without copies."""

    items: list[Buffer]
    encode_seconds: float
    """Time that the sender waited for their compression [s]."""


def grouped(parts: Iterable[Part]) -> Iterator[BufferGroup]:
    """Yield the buffers in groups, each as soon as it is large enough."""
    items: list[Buffer] = []
    size, waited = 0, 0.0
    for part in parts:
        began = time.monotonic()
        items.append(buffer_of(part))
        waited += time.monotonic() - began
        size += len(items[-1])
        if size >= GROUP:
            yield BufferGroup(items=items, encode_seconds=waited)
            items, size, waited = [], 0, 0.0
    if items:
        yield BufferGroup(items=items, encode_seconds=waited)


def write_reply(reply: StreamReply | BufferGroup) -> bytes:
    """Return a message in protobuf's form; buffers are copied once, not by way of `Buffers`."""
    if isinstance(reply, StreamReply):
        return reply.SerializeToString()
    tail = Buffers(encode_seconds=reply.encode_seconds).SerializeToString()
    fields: list[Buffer] = []
    for item in reply.items:
        fields += [_ITEMS, _varint(len(item)), item]
    length = sum(map(len, fields)) + len(tail)
    return b''.join((_BUFFERS, _varint(length), *fields, tail))


def read_reply(message: bytes) -> StreamReply | BufferGroup:
    """Return a message; buffers are views of it. Raises ValueError for one that is malformed."""
    if message[:1] != _BUFFERS:
        return StreamReply.FromString(message)
    view = memoryview(message)
    length, at = _read_varint(view, 1)
    if length != len(view) - at:
        raise WireError('buffers: the message has another length than it says')
    items: list[Buffer] = []
    while view[at : at + 1] == _ITEMS:
        length, at = _read_varint(view, at + 1)
        if length > len(view) - at:
            raise WireError('buffers: a buffer is longer than the message')
        items.append(view[at : at + length])
        at += length
    rest = Buffers.FromString(bytes(view[at:]))
    return BufferGroup(items=items, encode_seconds=rest.encode_seconds)


def _field_key(message: Any, name: str) -> bytes:
    """Return what a field of bytes begins with: its number, and that its length follows."""
    return bytes([message.DESCRIPTOR.fields_by_name[name].number << 3 | 2])


_BUFFERS, _ITEMS = _field_key(StreamReply, 'buffers'), _field_key(Buffers, 'items')


def _varint(number: int) -> bytes:
    """Return a number in protobuf's form: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    number = shift = 0
    while at < len(view) and shift < 64:
        number |= (view[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if view[at - 1] < 128:
            return number, at
    raise WireError('buffers: a length is malformed')
