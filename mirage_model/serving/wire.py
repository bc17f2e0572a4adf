"""The wire form of values: the dataclasses of `mirage_model.interface`, arrays, numbers and texts.

A value is a tree, with the bytes of its arrays in buffers beside it. The reader is led by the type
that it expects, so that a new field of a dataclass needs nothing here.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
import inspect
import math
from pathlib import Path
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from mirage_model.interface import EngineProtocol
from mirage_model.serving.engine_pb2 import (
    Array,
    Empty,
    Payload,
    Value,
)
from mirage_model.serving.images import (
    Buffer,
    Images,
    Part,
    WireError,
    buffer_of,
    compressed,
    fill,
    parts_of,
)

DTYPES = ('|b1', '|u1', '|i1', '<u2', '<i4', '<i8', '<f2', '<f4', '<f8')
"""The types of elements that travel."""
MAX_DEPTH = 16
"""Deepest nesting of a value."""
MAX_VALUES = 20_000
"""Most values of a tree."""
MAX_AXES = 8
"""Most axes of an array."""
MAX_BUFFERS = 4096
"""Most buffers of an array."""


@dataclass(frozen=True, kw_only=True)
class ArrayLimits:
    """Limits that are checked before an array takes memory."""

    nbytes: int
    """Bytes of all arrays of a value, decompressed."""


def encode(value: object, images: Images = 'none', *, name: str = '') -> tuple[Value, list[Part]]:
    """Return the tree of a value, and the buffers of its arrays.

    Args:
        images: Compression of images; everything else travels as it is.
        name: Name of the field that holds the value; only ``depth`` is stored as depth.
    """
    parts: list[Part] = []
    return _encode(value, images, parts, name), parts


def payload(value: object, images: Images = 'none') -> Payload:
    """Return a value with its buffers as one message."""
    tree, parts = encode(value, images)
    return Payload(value=tree, buffers=[bytes(buffer_of(part)) for part in parts])


def _encode(value: object, images: Images, parts: list[Part], name: str) -> Value:
    if value is None:
        return Value(none=Empty())
    if isinstance(value, bool | np.bool_):
        return Value(flag=bool(value))
    if isinstance(value, int | np.integer):
        return Value(integer=int(value))
    if isinstance(value, float | np.floating):
        return Value(number=float(value))
    if isinstance(value, str | Path):
        return Value(text=str(value))
    if isinstance(value, np.ndarray):
        return Value(array=_encode_array(value, images, parts, name))
    message = Value()
    if is_dataclass(value) or isinstance(value, Mapping):
        items = (
            value.items()
            if isinstance(value, Mapping)
            else ((field.name, getattr(value, field.name)) for field in fields(value))
        )
        message.fields.SetInParent()
        for key, item in items:
            message.fields.items[key].CopyFrom(_encode(item, images, parts, key))
        return message
    if isinstance(value, list | tuple):
        message.list.SetInParent()
        message.list.items.extend(_encode(item, images, parts, name) for item in value)
        return message
    raise TypeError(f'a {type(value).__name__} cannot travel')


def _encode_array(array: np.ndarray, images: Images, parts: list[Part], name: str) -> Array:
    array = np.ascontiguousarray(array).reshape(array.shape)
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    if array.dtype.str not in DTYPES:
        raise TypeError(f'{name}: an array of {array.dtype} cannot travel')
    encoding, own = compressed(array, images, name)
    parts.extend(own)
    return Array(
        dtype=array.dtype.str,
        shape=array.shape,
        encoding=encoding,
        first=len(parts) - len(own),
        count=len(own),
    )


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A part of an array that waits for its buffer."""

    into: np.ndarray
    encoding: int
    name: str

    def fill(self, buffer: Buffer) -> None:
        """Write the content of the buffer. Raises WireError."""
        fill(self.into, buffer, self.encoding, self.name)


def decode(
    value: Value, kind: Any, *, buffers: int, limits: ArrayLimits
) -> tuple[Any, list[Slot]]:
    """Return the value of a type, and a slot for each buffer, which make its arrays complete.

    Raises:
        WireError: The tree does not have the form of the type, its arrays exceed the limits, or
            they do not take that many buffers.
    """
    reader = _ValueReader(limits)
    result = reader.read(value, kind, 'value', 0)
    return result, reader.slots_of(buffers)


def read_payload(message: Payload, kind: Any, *, limits: ArrayLimits) -> Any:
    """Return the value of a message. Raises WireError."""
    value, slots = decode(message.value, kind, buffers=len(message.buffers), limits=limits)
    _fill_all(slots, message)
    return value


def _fill_all(slots: list[Slot], message: Payload) -> None:
    for slot, buffer in zip(slots, message.buffers, strict=True):
        slot.fill(buffer)


class _ValueReader:
    def __init__(self, limits: ArrayLimits):
        self._slots: dict[int, Slot] = {}
        self._values = 0
        self._left = limits.nbytes
        self._limit = limits.nbytes

    def slots_of(self, buffers: int) -> list[Slot]:
        """Return the slots in the order of their buffers."""
        if sorted(self._slots) != list(range(buffers)):
            raise WireError(f'value: its arrays do not take {buffers} buffers')
        return [self._slots[index] for index in range(buffers)]

    def read(self, value: Value, kind: Any, name: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError(f'{name}: nested more than {MAX_DEPTH} deep')
        self._values += 1
        if self._values > MAX_VALUES:
            raise WireError(f'{name}: more than {MAX_VALUES} values')
        form, origin = value.WhichOneof('kind'), get_origin(kind)
        if origin in (Union, types.UnionType):
            return self._read_union(value, get_args(kind), name, depth)
        if origin is Literal:
            text = self.read(value, str, name, depth)
            if text not in get_args(kind):
                raise WireError(f'{name}: {text!r} is not one of {get_args(kind)}')
            return text
        if kind is None or kind is type(None):
            _expect(form == 'none', name, form, 'none')
            return None
        if kind is float and form == 'integer':
            return float(value.integer)
        for plain, field in _PLAIN.items():
            if kind is plain:
                _expect(form == field, name, form, field)
                return plain(getattr(value, field))
        if kind is np.ndarray:
            _expect(form == 'array', name, form, 'array')
            return self._read_array(value.array, name)
        if origin in (list, tuple, collections.abc.Sequence):
            _expect(form == 'list', name, form, 'list')
            item_kind = get_args(kind)[0]
            items = [
                self.read(item, item_kind, f'{name}[{i}]', depth + 1)
                for i, item in enumerate(value.list.items)
            ]
            return tuple(items) if origin is tuple else items
        if origin is collections.abc.Mapping:
            _expect(form == 'fields', name, form, 'fields')
            item_kind = get_args(kind)[1]
            return {
                key: self.read(item, item_kind, f'{name}[{key!r}]', depth + 1)
                for key, item in value.fields.items.items()
            }
        assert is_dataclass(kind) and isinstance(kind, type), f'{name}: {kind} is not known'
        _expect(form == 'fields', name, form, 'fields')
        return kind(**self.read_fields(value, _field_types(kind), name, depth))

    def read_fields(
        self, value: Value, kinds: Mapping[str, tuple[Any, bool]], name: str, depth: int = 0
    ) -> dict[str, Any]:
        """Read values by name; each name has its type, and whether it may be missing."""
        given = value.fields.items
        if unknown := sorted(set(given) - set(kinds)):
            raise WireError(f'{name}: has the unknown fields {unknown}, known are {sorted(kinds)}')
        missing = [
            key for key, (_, optional) in kinds.items() if not optional and key not in given
        ]
        if missing:
            raise WireError(f'{name}: the fields {missing} are missing')
        return {
            key: self.read(given[key], kind, f'{name}.{key}', depth + 1)
            for key, (kind, _) in kinds.items()
            if key in given
        }

    def _read_union(self, value: Value, kinds: tuple, name: str, depth: int) -> Any:
        """Read the first type of a union that fits."""
        reasons, left, slots = [], self._left, dict(self._slots)
        for kind in kinds:
            try:
                return self.read(value, kind, name, depth)
            except WireError as error:
                reasons.append(str(error))
                self._left, self._slots = left, dict(slots)
        raise WireError('; '.join(reasons))

    def _read_array(self, message: Array, name: str) -> np.ndarray:
        if message.dtype not in DTYPES:
            raise WireError(f'{name}: dtype {message.dtype!r} is not allowed, {DTYPES} are')
        dtype, shape = np.dtype(message.dtype), tuple(message.shape)
        nbytes = math.prod(shape) * dtype.itemsize
        if max(nbytes, *shape, 0) > self._left or len(shape) > MAX_AXES:
            raise WireError(f'{name}: an array of {shape} is too large, {self._limit} bytes fit')
        if message.count > MAX_BUFFERS:
            raise WireError(f'{name}: has {message.count} buffers, {MAX_BUFFERS} are allowed')
        self._left -= nbytes
        array = np.empty(shape, dtype)
        parts = parts_of(array, message.encoding, message.count, name)
        for index, part in enumerate(parts, message.first):
            if index in self._slots:
                raise WireError(f'{name}: buffer {index} belongs to another array')
            self._slots[index] = Slot(into=part, encoding=message.encoding, name=name)
        return array


_PLAIN: dict[type, str] = {
    bool: 'flag',
    int: 'integer',
    float: 'number',
    str: 'text',
    Path: 'text',
}


def _expect(right: bool, name: str, form: str | None, wanted: str) -> None:
    if not right:
        raise WireError(f'{name}: is {form}, must be {wanted}')


@cache
def _field_types(kind: type) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is not MISSING or field.default_factory is not MISSING,
        )
        for field in fields(kind)
    }


@cache
def arguments_of(verb: str) -> dict[str, tuple[Any, bool]]:
    """Return the type of each argument of a verb of `EngineProtocol`, and whether it may be
    missing."""
    function = getattr(EngineProtocol, verb)
    hints = get_type_hints(function)
    return {
        name: (hints[name], parameter.default is not inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ('self', 'cancelled')
    }


@cache
def result_of(verb: str) -> Any:
    """Return the type of what a verb of `EngineProtocol` returns or yields."""
    kind = get_type_hints(getattr(EngineProtocol, verb))['return']
    if get_origin(kind) is collections.abc.Iterator:
        return get_args(kind)[0]
    return kind


def bind(verb: str, arguments: Sequence[object], keywords: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a verb by name."""
    function: Callable = getattr(EngineProtocol, verb)
    bound = inspect.signature(function).bind(None, *arguments, **keywords).arguments
    return {name: value for name, value in bound.items() if name not in ('self', 'cancelled')}


def read_arguments(message: Payload, verb: str, *, limits: ArrayLimits) -> dict[str, Any]:
    """Return the arguments of a verb of `EngineProtocol`. Raises WireError."""
    _expect(message.value.WhichOneof('kind') == 'fields', verb, 'no fields', 'fields')
    reader = _ValueReader(limits)
    found = reader.read_fields(message.value, arguments_of(verb), verb)
    _fill_all(reader.slots_of(len(message.buffers)), message)
    return found
