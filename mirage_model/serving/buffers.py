"""Buffers on their way, in protobuf's form but without copies by its classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import time
from typing import Any

from mirage_model.serving.engine_pb2 import Buffers, Payload, StreamReply
from mirage_model.serving.images import Buffer, Part, WireError, buffer_of

MAX_TREE = 2**20
"""Largest request without the content of its buffers, `FIELD` added for each field [bytes]."""
FIELD = 128
"""Memory that a field takes beside its content [bytes]."""
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
        fields += [bytes([_ITEMS]), _varint(len(item)), item]
    length = sum(map(len, fields)) + len(tail)
    return b''.join((bytes([_BUFFERS]), _varint(length), *fields, tail))


def read_reply(message: bytes) -> StreamReply | BufferGroup:
    """Return a message; buffers are views of it. Raises ValueError for one that is malformed."""
    if message[:1] != bytes([_BUFFERS]):
        return StreamReply.FromString(message)
    view = memoryview(message)
    length, at = _read_varint(view, 1)
    if length != len(view) - at:
        raise WireError('buffers: the message has another length than it says')
    items: list[Buffer] = []
    while at < len(view) and view[at] == _ITEMS:
        length, at = _read_varint(view, at + 1)
        if length > len(view) - at:
            raise WireError('buffers: a buffer is longer than the message')
        items.append(view[at : at + length])
        at += length
    rest = Buffers.FromString(bytes(view[at:]))
    return BufferGroup(items=items, encode_seconds=rest.encode_seconds)


def check_request(message: bytes, kind: Any) -> None:
    """Raise WireError if a request has more than `MAX_TREE` beside its buffers; it is not parsed.

    Args:
        kind: Class of the message, with or without ``arguments``.
    """
    if len(message) <= MAX_TREE:
        return
    arguments = kind.DESCRIPTOR.fields_by_name.get('arguments')
    path = (_key(arguments.number), _BUFFERS_OF_PAYLOAD) if arguments else ()
    _count_beside(memoryview(message), path, MAX_TREE)


def _count_beside(view: memoryview, path: tuple[int, ...], left: int) -> int:
    """Return what is left of a number of bytes after a message, without the content of the fields
    at the end of a path."""
    at = 0
    while at < len(view):
        began = at
        key, at = _read_varint(view, at)
        if key & 7 == 0:
            _, at = _read_varint(view, at)
        elif key & 7 == 1:
            at += 8
        elif key & 7 == 5:
            at += 4
        elif key & 7 != 2:
            raise WireError('request: a field is malformed')
        else:
            length, at = _read_varint(view, at)
            if key in path[:-1]:
                left = _count_beside(view[at : at + length], path[1:], left)
            if key in path[:1]:
                left += length  # of a buffer, or counted already
            at += length
        left -= at - began + FIELD
        if left < 0:
            raise WireError(f'request: more than {MAX_TREE} bytes beside its arrays')
    return left


def _key(number: int) -> int:
    """Return what a field of bytes begins with: its number, and that its length follows."""
    return number << 3 | 2


_BUFFERS = _key(StreamReply.DESCRIPTOR.fields_by_name['buffers'].number)
_ITEMS = _key(Buffers.DESCRIPTOR.fields_by_name['items'].number)
_BUFFERS_OF_PAYLOAD = _key(Payload.DESCRIPTOR.fields_by_name['buffers'].number)


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
